"""Which agents can be relied on: one that failed is not tried again at once, and everybody is told why. Pure.

A swap to an agent that does not start costs the others the card twice, so each failure in a row makes the next
try later. A crash says less than a start that failed for a reason: the first one is forgiven.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

FIRST_PAUSE_S: Final = 10.0
LONGEST_PAUSE_S: Final = 600.0
GOOD_WHILE_S: Final = 60.0
"""An engine that served for so long before it crashed was a good one: the count begins anew."""


class _Record(Struct):
    failures: int = 0
    cause: str = ""
    until_s: float = 0.0
    ready_s: float | None = None


class Trust:
    """The record of every agent. Times are of one clock that never goes back."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def ready(self, agent: str, now_s: float) -> None:
        """It serves."""
        record = self._records.setdefault(agent, _Record())
        record.ready_s = now_s
        record.until_s = 0.0

    def failed(self, agent: str, cause: str, now_s: float, *, by_itself: bool) -> None:
        """It crashed or was killed, or (`by_itself` False) its start ended with a reason that may well last."""
        record = self._records.setdefault(agent, _Record())
        if record.ready_s is not None and now_s - record.ready_s >= GOOD_WHILE_S:
            record.failures = 0
        record.failures += 1
        record.cause, record.ready_s = cause, None
        doublings = record.failures - (2 if by_itself else 1)
        pause_s = FIRST_PAUSE_S * 2.0 ** min(doublings, 10) if doublings >= 0 else 0.0
        record.until_s = now_s + min(pause_s, LONGEST_PAUSE_S)

    def forgiven(self, agent: str) -> None:
        """Somebody wants it tried again now."""
        self._records.pop(agent, None)

    def paused(self, agent: str, now_s: float) -> tuple[str, float] | None:
        """Why it is not tried now, and for how many seconds still; None when it is."""
        record = self._records.get(agent)
        if record is None or now_s >= record.until_s:
            return None
        return record.cause, record.until_s - now_s
