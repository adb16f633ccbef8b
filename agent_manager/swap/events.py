"""What goes into the swap machine and what comes out of it: values, events and effects.

Each effect that is slow names, after the arrow, the events that it ends in.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_manager.swap.schedule import Settings


class Occupant(Struct, frozen=True, kw_only=True):
    """An instance, as far as the card is concerned: `claim_bytes` is the memory it takes while it runs.

    `fingerprint` says what runs: two instances with one fingerprint are the same engine with the same settings.
    """

    instance_id: str
    agent: str
    claim_bytes: int
    fingerprint: str = ""


class Goal(Struct, frozen=True, kw_only=True):
    """The agent that is to have the card, and the memory it will take."""

    agent: str
    claim_bytes: int


class Request(Struct, frozen=True, kw_only=True):
    """A request for an agent, and the memory that agent takes."""

    id: str
    agent: str
    claim_bytes: int


class Result(StrEnum):
    """How a swap ended."""

    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    BUSY = "busy"


class Outcome(Struct, frozen=True, kw_only=True):
    """The end of a swap: what was wanted (None: an empty card), and who is on the card now (None: nobody).

    `reason` is what the failing effect reported; the machine passes it on without looking at it. `wish` is that
    of the `Wanted` which it answers, None for what nobody asked for by name.
    """

    result: Result
    goal: Goal | None
    resident: Occupant | None
    reason: object | None = None
    wish: str | None = None


# --- events -----------------------------------------------------------------------------------------------


class Wanted(Struct, frozen=True, kw_only=True):
    """The card should have `goal` and nothing else. `replace_same`: even if that agent is there already.

    `wish` is a name for this one, with which its end is told.
    """

    goal: Goal | None
    drain_timeout_s: float = 60.0
    replace_same: bool = False
    wish: str | None = None


class Arrived(Struct, frozen=True, kw_only=True):
    """A request came in."""

    request: Request


class Finished(Struct, frozen=True, kw_only=True):
    """A granted request is over, however it ended."""

    request_id: str


class Cancelled(Struct, frozen=True, kw_only=True):
    """The client of a request went away."""

    request_id: str


class Due(Struct, frozen=True, kw_only=True):
    """The time of the last `Wake` has come."""


class Drained(Struct, frozen=True, kw_only=True):
    """Nothing runs or waits in the engine."""

    instance_id: str


class DrainExpired(Struct, frozen=True, kw_only=True):
    """The drain time is over; whatever still runs in the engine will be cut."""

    instance_id: str


class Stopped(Struct, frozen=True, kw_only=True):
    """No process of the instance is left."""

    instance_id: str


class StopFailed(Struct, frozen=True, kw_only=True):
    """The instance could not be stopped; it may still hold its memory."""

    instance_id: str
    reason: object


class MemoryFree(Struct, frozen=True, kw_only=True):
    """The memory that was waited for is there."""


class MemoryHeld(Struct, frozen=True, kw_only=True):
    """The memory did not become free in time."""

    reason: object


class Started(Struct, frozen=True, kw_only=True):
    """The instance was spawned."""

    occupant: Occupant


class StartFailed(Struct, frozen=True, kw_only=True):
    """Nothing was spawned. `instance_id` is the record that was left, if there is one."""

    reason: object
    instance_id: str | None = None


class Ready(Struct, frozen=True, kw_only=True):
    """The instance answered a completion."""

    instance_id: str


class LoadFailed(Struct, frozen=True, kw_only=True):
    """The instance will not become ready."""

    instance_id: str
    reason: object


class Exited(Struct, frozen=True, kw_only=True):
    """A ready instance ended by itself; not one whose `Stop` was asked for."""

    instance_id: str


class Interrupted(Struct, frozen=True, kw_only=True):
    """The user wants out: of the swap that this `wish` began, None of whichever is under way."""

    wish: str | None = None


class Renewed(Struct, frozen=True, kw_only=True):
    """The settings are other ones from now on; `settings`, `group_of` and `default` are as in `Desk`.

    `claims` are the agents that can be served, and the memory each takes; requests for others are refused with
    what `refusals` says of them. `current` are the fingerprints of engines with these settings; any other serves
    nobody any more, and leaves the card as soon as its requests are over.
    """

    settings: Settings
    group_of: Mapping[str, str]
    default: Goal | None
    claims: Mapping[str, int]
    refusals: Mapping[str, object]
    current: frozenset[str]


Event: TypeAlias = (  # fmt: skip
    Wanted | Arrived | Finished | Cancelled | Due | Exited | Interrupted | Renewed | Drained | DrainExpired
    | Stopped | StopFailed | MemoryFree | MemoryHeld | Started | StartFailed | Ready | LoadFailed
)  # fmt: skip


# --- effects ----------------------------------------------------------------------------------------------


class Drain(Struct, frozen=True, kw_only=True):
    """Wait until nothing runs in the engine → Drained | DrainExpired."""

    occupant: Occupant
    timeout_s: float


class Stop(Struct, frozen=True, kw_only=True):
    """End the instance → Stopped | StopFailed. `at_once`: nothing in it is worth waiting for."""

    occupant: Occupant
    at_once: bool


class AwaitMemory(Struct, frozen=True, kw_only=True):
    """Wait until the card has room → MemoryFree | MemoryHeld."""

    agent: str
    claim_bytes: int
    restoring: bool


class Start(Struct, frozen=True, kw_only=True):
    """Create and start an instance of the agent → Started | StartFailed."""

    agent: str


class StartAgain(Struct, frozen=True, kw_only=True):
    """Start an instance that was stopped → Started | StartFailed."""

    occupant: Occupant


class AwaitReady(Struct, frozen=True, kw_only=True):
    """Follow the load → Ready | LoadFailed."""

    occupant: Occupant
    restoring: bool


class Remove(Struct, frozen=True, kw_only=True):
    """Keep the instance's log, then forget it; no event comes back."""

    instance_id: str


class Abandon(Struct, frozen=True, kw_only=True):
    """Give up the wait that is under way (drain, memory or load); no event comes back."""


class Grant(Struct, frozen=True, kw_only=True):
    """The request may go to the resident."""

    request_id: str


class Reject(Struct, frozen=True, kw_only=True):
    """The request will not be served."""

    request_id: str
    reason: object


class Wake(Struct, frozen=True, kw_only=True):
    """Say `Due` when the clock says `at_s`, or later; it takes the place of an earlier `Wake`."""

    at_s: float


class Finish(Struct, frozen=True, kw_only=True):
    """A swap has ended, whoever wanted it: a user, waiting requests, or the keep-alive of an idle agent."""

    outcome: Outcome


Effect: TypeAlias = (  # fmt: skip
    Drain | Stop | AwaitMemory | Start | StartAgain | AwaitReady | Remove | Abandon | Grant | Reject | Wake
    | Finish
)  # fmt: skip
