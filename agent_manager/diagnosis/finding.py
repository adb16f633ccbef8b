"""One finding of `doctor`, and the short ways to make one."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct

_GIB: Final = 1 << 30


class State(StrEnum):
    """What a finding means for the host. Only BLOCKED makes it not ready."""

    OK = "ok"
    WARNING = "warning"
    BLOCKED = "blocked"
    SKIPPED = "skipped"


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that was looked at: `check` names it for good, `evidence` is what was seen, in one line.

    `remedy` is a command to copy, or where no command helps what to do; None when there is nothing to do.
    """

    check: str
    state: State
    evidence: str
    remedy: str | None = None


def ok(check: str, evidence: str) -> Finding:
    """It is as it should be."""
    return Finding(check=check, state=State.OK, evidence=evidence)


def warning(check: str, evidence: str, remedy: str | None = None) -> Finding:
    """It works, and something about it should be known, or part of it does not work."""
    return Finding(check=check, state=State.WARNING, evidence=evidence, remedy=remedy)


def blocked(check: str, evidence: str, remedy: str | None = None) -> Finding:
    """A launch would fail."""
    return Finding(check=check, state=State.BLOCKED, evidence=evidence, remedy=remedy)


def skipped(check: str, reason: str) -> Finding:
    """It was not looked at, and why."""
    return Finding(check=check, state=State.SKIPPED, evidence=reason)


def gib(size_bytes: int) -> str:
    """A size in GiB (2^30 bytes), two decimals."""
    return f"{size_bytes / _GIB:.2f} GiB"


def listed(words: tuple[str, ...] | list[str], most: int = 4) -> str:
    """`a, b, c and 2 more`."""
    shown = ", ".join(words[:most])
    return f"{shown} and {len(words) - most} more" if len(words) > most else shown
