"""The policy: when the resident leaves the card, and who comes next. Pure.

`decide(view, settings) -> Stay | SwapTo | Unload`: no I/O, no clock, no log; the time comes in with the view.
Requests for the resident go straight through and are none of this module's business. The others collect, and
are granted together after one swap. In the words of the rules below, *busy* is a resident in which requests run:

- **An empty card** takes the next agent at once.
- **A busy resident** is kept until the longest waiter's patience is over, and for its minimum residency at
  least. Then it leaves: new requests for it wait with the others, so that the drain ends.
- **An idle resident** is kept for as long as it pays: its past gaps between requests say whether the next
  request will probably come sooner than a swap would take (`rhythm.py`). Nobody's patience is stretched for it.
- **The next** is the agent of the longest waiter, counted from its arrival plus what its swap takes, so that a
  quick swap may go before a slow one; only when the longest waiter is not made late by it.
- **With nobody waiting**, a resident that was idle for `keep_alive` makes way for the default agent, or leaves.

Patience and residency are multiples of what the swap costs, there and back: with swaps of one second it is
wrong to make somebody wait a minute, with swaps of a minute it is wrong not to. `Settings` caps both. The
figures were chosen by `benchmarks/scheduling`, not by taste.

**Nobody waits longer than** `max_wait_s + k × (swap + drain + min_residency_s)`, where k counts the other
agents that waited, or were being loaded, when the request arrived, plus one; swap and drain are the longest
that occur, and no swap fails. Why: agents that begin to wait later come later, unless they are done with the
card by the longest waiter's `max_wait_s`. So by then only those k - 1 are before it, each of which may take its
swap, its minimum residency and its drain, as may the resident of now.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct, field

from agent_manager.swap.rhythm import linger_s

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UNMEASURED_SWAP_S = 30.0
"""What a swap is taken to cost before one was measured: a 14B model from a warm disk."""
FOREVER = -1.0
"""`keep_alive_s` of an agent that leaves the card for another one only."""


class Settings(Struct, frozen=True, kw_only=True):
    """What the catalog says about who stays.

    `max_wait_s` and `min_residency_s` are caps: with quick swaps the policy stays below both. `keep_alive_s` is
    how long an idle agent stays on the card with nobody waiting: 0 is until its last request is over, negative
    is forever, as in Ollama; `keep_alive_of_s` says it for single groups.
    """

    max_wait_s: float = 300.0
    min_residency_s: float = 60.0
    keep_alive_s: float = FOREVER
    keep_alive_of_s: Mapping[str, float] = field(default_factory=dict)


class Tuning(Struct, frozen=True, kw_only=True):
    """What nobody has to set, in round trips: the swap to the waiter's agent and the swap back.

    `patience_trips` is how long one waits for a busy resident, `residency_trips` how long a busy resident is kept
    in any case; here a trip has `drain_s` on top, which is about one longer answer. `saved_trips` is what the next
    request is worth to an idle resident, for each one who waits: less than a whole trip, since the way back is
    often needed anyway. `benchmarks/scheduling/RESULTS.md` shows what other figures would come to.
    """

    patience_trips: float = 5.0
    residency_trips: float = 1.0
    saved_trips: float = 0.15
    drain_s: float = 8.0


TUNED = Tuning()


class Resident(Struct, frozen=True, kw_only=True):
    """Who is on the card and serves. A group is the agents that share one instance, by any one name.

    `since_s` is when it became ready, `running` how many granted requests are not finished, `last_request_s`
    when the last of them arrived or finished (None: it had none since it is on the card), `gaps_s` the last
    idle times of the group between two requests, oldest first.
    """

    group: str
    since_s: float
    running: int = 0
    last_request_s: float | None = None
    gaps_s: tuple[float, ...] = ()

    @property
    def idle_since_s(self) -> float:
        """When it had something to do the last time, provided that nothing runs now."""
        return self.since_s if self.last_request_s is None else max(self.since_s, self.last_request_s)


class Waiting(Struct, frozen=True, kw_only=True):
    """A request that was not granted yet."""

    group: str
    arrived_s: float


class View(Struct, frozen=True, kw_only=True):
    """All that a decision is made of. Times are seconds of one clock that never goes back.

    `waiting` is oldest first; what waits for the resident's own group does not count, since it is granted.
    `swap_cost_s` is what the last swap to a group took, from the stop of its predecessor until it was ready.
    `default` is the group that comes back when the resident has been idle for its keep-alive.
    """

    now_s: float
    resident: Resident | None = None
    waiting: Sequence[Waiting] = ()
    swap_cost_s: Mapping[str, float] = field(default_factory=dict)
    default: str | None = None

    def cost_s(self, group: str) -> float:
        """What a swap to the group will take, as far as anybody knows."""
        return self.swap_cost_s.get(group, UNMEASURED_SWAP_S)


class Cause(StrEnum):
    """Why the resident changes; for people to read."""

    EMPTY = "the card was empty"
    LULL = "nothing was asked of the resident"
    OVERDUE = "somebody had waited long enough"
    IDLE = "idle for its keep-alive"
    OUTDATED = "its settings changed"


class Stay(Struct, frozen=True, kw_only=True):
    """Nothing changes. Ask again at `until_s`, or when something happens; None: only when something happens."""

    until_s: float | None = None


class SwapTo(Struct, frozen=True, kw_only=True):
    """The card goes to `group`; the resident, if there is one, drains first."""

    group: str
    cause: Cause


class Unload(Struct, frozen=True, kw_only=True):
    """The resident leaves, and nobody comes."""

    cause: Cause


Decision: TypeAlias = Stay | SwapTo | Unload


def decide(view: View, settings: Settings, tuning: Tuning = TUNED) -> Decision:
    """What to do with the card now, while no swap is under way. O(waiting), blocks on nothing."""
    resident = view.resident
    first = _first_arrivals(view)
    if resident is None:
        if not first:
            return Stay()
        return SwapTo(group=_next(view, first, settings, tuning), cause=Cause.EMPTY)
    if not first:
        return _with_nobody_waiting(view, resident, settings)
    leave_s = _patience_over_s(view, resident, first, settings, tuning)
    if resident.running == 0:
        leave_s = min(leave_s, resident.idle_since_s + _linger_s(view, resident, first, tuning))
    if view.now_s < leave_s:
        return Stay(until_s=leave_s)
    cause = Cause.LULL if resident.running == 0 else Cause.OVERDUE
    return SwapTo(group=_next(view, first, settings, tuning), cause=cause)


def _first_arrivals(view: View) -> dict[str, float]:
    """When each group that needs the card began to wait, the longest waiter first."""
    first: dict[str, float] = {}
    for request in view.waiting:
        if view.resident is None or request.group != view.resident.group:
            first.setdefault(request.group, request.arrived_s)
    return first


def _round_trip_s(view: View, one: str, other: str) -> float:
    return view.cost_s(one) + view.cost_s(other)


def _patience_over_s(
    view: View, resident: Resident, first: Mapping[str, float], settings: Settings, tuning: Tuning
) -> float:
    """When a busy resident has to leave: somebody's patience is over, and so is its minimum residency."""
    trips_s = {group: tuning.drain_s + _round_trip_s(view, resident.group, group) for group in first}
    patience_over_s = min(
        arrived_s + min(settings.max_wait_s, tuning.patience_trips * trips_s[group])
        for group, arrived_s in first.items()
    )
    kept_s = min(settings.min_residency_s, tuning.residency_trips * min(trips_s.values()))
    return max(patience_over_s, resident.since_s + kept_s)


def _linger_s(view: View, resident: Resident, first: Mapping[str, float], tuning: Tuning) -> float:
    """How long an idle resident is kept for its next request while others wait."""
    waiting = sum(request.group != resident.group for request in view.waiting)
    trip_s = min(_round_trip_s(view, resident.group, group) for group in first)
    return linger_s(resident.gaps_s, tuning.saved_trips * trip_s / waiting)


def _next(view: View, first: Mapping[str, float], settings: Settings, tuning: Tuning) -> str:
    """The group that gets the card: the longest waiter's, unless a quicker swap makes nobody late."""
    oldest = next(iter(first))
    chosen = min(first, key=lambda group: first[group] + view.cost_s(group))
    free_now = view.resident is None or view.resident.running == 0
    kept_s = min(
        settings.min_residency_s,
        tuning.residency_trips * (tuning.drain_s + _round_trip_s(view, chosen, oldest)),
    )
    done_s = view.now_s + view.cost_s(chosen) + kept_s
    return chosen if free_now and done_s <= first[oldest] + settings.max_wait_s else oldest


def _with_nobody_waiting(view: View, resident: Resident, settings: Settings) -> Decision:
    keep_s = settings.keep_alive_of_s.get(resident.group, settings.keep_alive_s)
    unused = keep_s == 0 and resident.last_request_s is None
    if resident.running or keep_s < 0 or unused or resident.group == view.default:
        return Stay()
    leave_s = resident.idle_since_s + keep_s
    if view.now_s < leave_s:
        return Stay(until_s=leave_s)
    if view.default is not None:
        return SwapTo(group=view.default, cause=Cause.IDLE)
    return Unload(cause=Cause.IDLE)
