"""How requests follow each other: whether it pays to wait for the next one. Pure.

A gap is the time from the moment when an agent has nothing to do any more until it is asked again. It says how
its clients behave (a tool call takes half a second, a person thinks for ten), whoever is on the card meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

REMEMBERED = 8
"""Gaps that are kept: enough to tell a burst's gaps from the pause after it, few enough to unlearn soon."""
MARGIN = 1.05
"""The next gap is not exactly one of the past."""


class Rhythm(Struct, frozen=True, kw_only=True):
    """The past of one group: its last gaps, oldest first, and since when it has nothing to do (None: it has)."""

    gaps_s: tuple[float, ...] = ()
    quiet_since_s: float | None = None

    def asked(self, now_s: float) -> Rhythm:
        """A request came; if it is the first after a quiet time, that was a gap."""
        if self.quiet_since_s is None:
            return self
        gaps_s = (*self.gaps_s, now_s - self.quiet_since_s)
        return Rhythm(gaps_s=gaps_s[-REMEMBERED:])

    def quiet(self, now_s: float) -> Rhythm:
        """Its last request is over, and none waits."""
        return Rhythm(gaps_s=self.gaps_s, quiet_since_s=now_s)


def linger_s(gaps_s: Sequence[float], saved_s: float) -> float:
    """How long to wait for the next request, when one that comes in time saves `saved_s` of the card's time.

    Waiting x seconds costs min(gap, x) and saves `saved_s` if gap ≤ x: the x with the most on balance, over the
    gaps of the past; 0 when none pays, or when nothing is known. What it costs is the card's time, in which
    others could be served; hence it is never more on average than what it saves.
    """
    best_s, most = 0.0, 0.0
    for limit_s in (MARGIN * gap_s for gap_s in gaps_s):
        balance = sum((saved_s if gap_s <= limit_s else 0.0) - min(gap_s, limit_s) for gap_s in gaps_s)
        if balance > most:
            best_s, most = limit_s, balance
    return best_s
