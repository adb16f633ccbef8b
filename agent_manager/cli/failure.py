"""An error, as a person or a program reads it: on stderr, what went wrong and what to do next."""

from __future__ import annotations

import contextlib
import sys
import traceback
from typing import TYPE_CHECKING

from agent_manager.cli.output import printable
from agent_manager.errors import CatalogInvalid
from agent_manager.json_text import to_json

if TYPE_CHECKING:
    from agent_manager.cli.output import Output
    from agent_manager.errors import AgentManagerError, Problem


def report(error: AgentManagerError, output: Output) -> None:
    """Say it on stderr: one JSON document with --json; with --verbose the traceback first."""
    if output.verbose:
        traceback.print_exception(error)
    if output.json:
        _write(to_json({"error": _document(error)}))
        return
    _say(output, error.message, error.hint)
    if isinstance(error, CatalogInvalid):
        for problem in error.problems:
            _problem(output, problem)


def report_internal(error: Exception, output: Output) -> None:
    """Say that this is our mistake, not the user's. The traceback only with --verbose."""
    if output.verbose:
        traceback.print_exception(error)
    words = " ".join(str(error).split())
    message = f"internal error: {type(error).__name__}" + (f": {words}" if words else "")
    hint = "this is a mistake in agent-manager: please report it with what 'agent-manager -v' shows"
    if output.json:
        document = {"code": "internal_error", "message": message, "hint": hint, "where": None}
        _write(to_json({"error": document}))
    else:
        _say(output, message, hint)


def _document(error: AgentManagerError) -> dict[str, object]:
    document: dict[str, object] = {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "where": error.where,
    }
    if isinstance(error, CatalogInvalid):
        document["problems"] = error.problems
    return document


def _problem(output: Output, problem: Problem) -> None:
    place = output.styled(f"{problem.file}:{problem.line}:", "bold", sys.stderr)
    _write(f"{place} {printable(f'{problem.path}: {problem.message}')}")
    _hint(output, problem.hint)


def _say(output: Output, message: str, hint: str | None) -> None:
    output.complain("error:", message, "bold red")
    _hint(output, hint)


def _hint(output: Output, hint: str | None) -> None:
    for line in printable(hint or "").splitlines():
        _write(f"  {output.styled('hint:', 'cyan', sys.stderr)} {line}")


def _write(line: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed: there is nobody to tell
        sys.stderr.write(line + "\n")
