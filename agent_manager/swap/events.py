"""What goes into the swap machine and what comes out of it: values, events and effects.

Each effect that is slow names, after the arrow, the events that it ends in.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_manager.swap.schedule import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupant:
    """An instance, as far as the card is concerned: `claim_bytes` is the memory it takes while it runs.

    `fingerprint` says what runs: two instances with one fingerprint are the same engine with the same settings.
    """

    instance_id: str
    agent: str
    claim_bytes: int
    fingerprint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The agent that is to have the card, and the memory it will take."""

    agent: str
    claim_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The card should have `goal` and nothing else. `replace_same`: even if that agent is there already.

    `wish` is a name for this one, with which its end is told.
    """

    goal: Goal | None
    drain_timeout_s: float = 60.0
    replace_same: bool = False
    wish: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A request came in."""

    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A granted request is over, however it ended."""

    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The client of a request went away."""

    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """The time of the last `Wake` has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """Nothing runs or waits in the engine."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainExpired:
    """The drain time is over; whatever still runs in the engine will be cut."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """No process of the instance is left."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopFailed:
    """The instance could not be stopped; it may still hold its memory."""

    instance_id: str
    reason: object


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFree:
    """The memory that was waited for is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryHeld:
    """The memory did not become free in time."""

    reason: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The instance was spawned."""

    occupant: Occupant


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailed:
    """Nothing was spawned. `instance_id` is the record that was left, if there is one."""

    reason: object
    instance_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The instance answered a completion."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed:
    """The instance will not become ready."""

    instance_id: str
    reason: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """A ready instance ended by itself; not one whose `Stop` was asked for."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """The user wants out: of the swap that this `wish` began, None of whichever is under way."""

    wish: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Wait until nothing runs in the engine → Drained | DrainExpired."""

    occupant: Occupant
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End the instance → Stopped | StopFailed. `at_once`: nothing in it is worth waiting for."""

    occupant: Occupant
    at_once: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitMemory:
    """Wait until the card has room → MemoryFree | MemoryHeld."""

    agent: str
    claim_bytes: int
    restoring: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Create and start an instance of the agent → Started | StartFailed."""

    agent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAgain:
    """Start an instance that was stopped → Started | StartFailed."""

    occupant: Occupant


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitReady:
    """Follow the load → Ready | LoadFailed."""

    occupant: Occupant
    restoring: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Keep the instance's log, then forget it; no event comes back."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon:
    """Give up the wait that is under way (drain, memory or load); no event comes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The request may go to the resident."""

    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """The request will not be served."""

    request_id: str
    reason: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """Say `Due` when the clock says `at_s`, or later; it takes the place of an earlier `Wake`."""

    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """A swap has ended, whoever wanted it: a user, waiting requests, or the keep-alive of an idle agent."""

    outcome: Outcome


Effect: TypeAlias = (  # fmt: skip
    Drain | Stop | AwaitMemory | Start | StartAgain | AwaitReady | Remove | Abandon | Grant | Reject | Wake
    | Finish
)  # fmt: skip
