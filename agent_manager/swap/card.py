"""The card as the swap machine sees it: who is on it, which swap is under way, who waits. Values, pure."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

from agent_manager.swap.desk import Desk
from agent_manager.swap.events import Effect, Goal, Occupant, Result

if TYPE_CHECKING:
    from agent_manager.swap.events import Request
    from agent_manager.swap.schedule import Cause


class Stage(StrEnum):
    """How far a swap is."""

    DRAINING = "draining"
    STOPPING = "stopping"
    MAKING_ROOM = "making room"
    STARTING = "starting"
    LOADING = "loading"
    DISCARDING = "discarding"


class Swap(Struct, frozen=True, kw_only=True):
    """A swap under way. `goal` None empties the card. While `restoring`, the one that left is going back.

    `idle`: the engine reported that nothing runs or waits in it. `drain_until_s`: when the drain time is over.
    `left_s`: when the card was left, from which on the swap is measured (None: by somebody else). `cause`: why
    the policy wanted it (None: a user did). `wish` is the user's. `result` is DONE until something goes wrong.
    """

    goal: Goal | None
    stage: Stage
    drain_timeout_s: float
    cause: Cause | None = None
    wish: str | None = None
    drain_until_s: float = 0.0
    left_s: float | None = None
    leaving: Occupant | None = None
    arriving: Occupant | None = None
    restoring: bool = False
    idle: bool = False
    result: Result = Result.DONE
    reason: object | None = None
    interrupts: int = 0


class State(Struct, frozen=True):
    """The card. `resident` serves; during a swap it is the one being drained, or already None.

    `stuck`: the resident could not be stopped; it holds its memory and serves nobody. Settled when `swap` is
    None; then nothing waits but for a resident that the policy keeps until a `Wake`. `current` are the
    fingerprints of engines with the settings of now, None as long as these never changed. `now_s` is the latest
    time that was told.
    """

    total_bytes: int
    resident: Occupant | None = None
    stuck: bool = False
    swap: Swap | None = None
    desk: Desk = Desk()
    drain_timeout_s: float = 60.0
    current: frozenset[str] | None = None
    now_s: float = 0.0

    @property
    def in_flight(self) -> frozenset[str]:
        """Requests granted to the resident and not finished."""
        return frozenset(request.id for request in self.desk.running)

    @property
    def waiting(self) -> tuple[Request, ...]:
        """Requests not granted yet, oldest first."""
        return tuple(waiter.request for waiter in self.desk.waiting)

    @property
    def serving(self) -> str | None:
        """The agent whose requests the resident takes, unless it is being drained; None: nobody's."""
        resident = self.resident
        return resident.agent if resident and not self.stuck and not self.is_outdated(resident) else None

    @property
    def outdated(self) -> bool:
        """Whether the resident has settings of earlier; then it takes no more requests."""
        return self.resident is not None and self.is_outdated(self.resident)

    def is_outdated(self, occupant: Occupant) -> bool:
        """Whether this instance has settings of earlier."""
        return self.current is not None and occupant.fingerprint not in self.current

    @property
    def claimed_bytes(self) -> int:
        """Memory of the card that running instances may take."""
        claimed = self.resident.claim_bytes if self.resident else 0
        swap = self.swap
        if swap and swap.leaving and swap.stage is Stage.STOPPING:
            claimed += swap.leaving.claim_bytes
        if swap and swap.stage is Stage.STARTING:
            claimed += swap.leaving.claim_bytes if swap.restoring and swap.leaving else 0
            claimed += swap.goal.claim_bytes if swap.goal and not swap.restoring else 0
        if swap and swap.arriving:
            claimed += swap.arriving.claim_bytes
        return claimed


Step: TypeAlias = tuple[State, tuple[Effect, ...]]
"""What a step leads to: the card, and what is to be done."""


def following(
    *, total_bytes: int, arriving: Occupant, leaving: Occupant | None, drain_timeout_s: float = 60.0
) -> State:
    """The state in which somebody else's unfinished swap is taken over while its newcomer still loads."""
    goal = Goal(agent=arriving.agent, claim_bytes=arriving.claim_bytes)
    swap = Swap(
        goal=goal,
        stage=Stage.LOADING,
        drain_timeout_s=drain_timeout_s,
        leaving=leaving,
        arriving=arriving,
    )
    return State(total_bytes=total_bytes, swap=swap, drain_timeout_s=drain_timeout_s)
