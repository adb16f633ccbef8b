"""What the swap machine's world is made of: the agents, engines as they really are, and what a swap has met."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agent_manager.swap.events import Goal, Occupant, Outcome, Result

CARD_BYTES = 16
CLAIMS = {"po": 6, "dev": 10, "architect": 16, "giant": 17}


class Fate(StrEnum):
    """What became of a request."""

    WAITING = "waiting"
    GRANTED = "granted"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


@dataclass(kw_only=True)
class Engine:
    """An instance as it really is; `serving` are the requests that run in it."""

    occupant: Occupant
    running: bool = True
    ready: bool = False
    stuck: bool = False
    exit_unreported: bool = False
    serving: set[str] = field(default_factory=set)


@dataclass(kw_only=True)
class Trip:
    """What a swap has met so far, and so how it has to end.

    `trouble` is the outcome that is to be told: the first thing that went wrong, or the first interrupt.
    """

    goal: Goal | None
    previous: Occupant | None
    trouble: tuple[Result, object | None] | None = None
    leaving_stopped: bool = False
    put_back: bool = False
    drain_expired: bool = False
    emptied: bool = False
    lost: bool = False
    stuck: Occupant | None = None

    def met(self, result: Result, reason: object | None = None) -> None:
        self.trouble = self.trouble or (result, reason)

    def check(self, outcome: Outcome, *, outdated: bool) -> None:
        """Raises AssertionError unless `outcome` is how this swap had to end.

        `outdated`: the previous one has settings of earlier now, with which it is not put back.
        """
        result, reason = self.trouble or (Result.DONE, None)
        assert (outcome.goal, outcome.result, outcome.reason) == (self.goal, result, reason)
        if self.stuck is not None:
            assert outcome.resident == self.stuck
        elif result is Result.DONE and self.goal is not None:
            assert outcome.resident is not None
            assert outcome.resident.agent == self.goal.agent
        elif (
            result is Result.DONE
            or self.emptied
            or self.lost
            or (self.leaving_stopped and not self.put_back and outdated)
        ):
            assert outcome.resident is None
        else:
            assert outcome.resident == self.previous
