"""A question that a person at a terminal answers with y or n."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from agent_manager.cli.output import printable

if TYPE_CHECKING:
    from agent_manager.cli.output import Output


def can_ask(output: Output) -> bool:
    """Whether somebody is there to answer, and did not ask for silence or for JSON."""
    return not (output.json or output.quiet) and sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> bool:
    """Put the question on stderr and wait for the answer; anything but y or yes is no."""
    sys.stderr.write(f"{printable(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
