"""Stories for the swap machine: who is on the card, events and effects in short, and how they are told."""

from __future__ import annotations

from msgspec.structs import replace

from agent_manager.swap.card import State
from agent_manager.swap.desk import Desk
from agent_manager.swap.events import (
    Arrived,
    AwaitMemory,
    AwaitReady,
    Drain,
    Drained,
    Effect,
    Event,
    Finish,
    Goal,
    Interrupted,
    LoadFailed,
    MemoryFree,
    Occupant,
    Outcome,
    Ready,
    Remove,
    Request,
    Result,
    StartAgain,
    Started,
    Stop,
    Stopped,
    Wanted,
)
from agent_manager.swap.machine import step

CARD_BYTES = 16
PO = Occupant(instance_id="po-1", agent="po", claim_bytes=6)
PO_NEW = Occupant(instance_id="po-2", agent="po", claim_bytes=6)
DEV = Occupant(instance_id="dev-1", agent="dev", claim_bytes=10)
EMPTY = State(total_bytes=CARD_BYTES)
PO_SERVES = State(total_bytes=CARD_BYTES, resident=PO)
INTERRUPT = Interrupted()


def goal(occupant: Occupant) -> Goal:
    return Goal(agent=occupant.agent, claim_bytes=occupant.claim_bytes)


def want(occupant: Occupant | None, *, drain_timeout_s: float = 60.0, replace_same: bool = False) -> Wanted:
    wanted = goal(occupant) if occupant else None
    return Wanted(goal=wanted, drain_timeout_s=drain_timeout_s, replace_same=replace_same)


def asks(request_id: str, occupant: Occupant) -> Arrived:
    return Arrived(request=Request(id=request_id, agent=occupant.agent, claim_bytes=occupant.claim_bytes))


def drained(occupant: Occupant) -> Drained:
    return Drained(instance_id=occupant.instance_id)


def stopped(occupant: Occupant) -> Stopped:
    return Stopped(instance_id=occupant.instance_id)


def ready(occupant: Occupant) -> Ready:
    return Ready(instance_id=occupant.instance_id)


def load_failed(occupant: Occupant, reason: str) -> LoadFailed:
    return LoadFailed(instance_id=occupant.instance_id, reason=reason)


def drain(occupant: Occupant, timeout_s: float = 60.0) -> Drain:
    return Drain(occupant=occupant, timeout_s=timeout_s)


def stop(occupant: Occupant, *, at_once: bool = False) -> Stop:
    return Stop(occupant=occupant, at_once=at_once)


def room(occupant: Occupant, *, again: bool = False) -> AwaitMemory:
    return AwaitMemory(agent=occupant.agent, claim_bytes=occupant.claim_bytes, restoring=again)


def load(occupant: Occupant, *, again: bool = False) -> AwaitReady:
    return AwaitReady(occupant=occupant, restoring=again)


def remove(occupant: Occupant) -> Remove:
    return Remove(instance_id=occupant.instance_id)


def end(
    result: Result, wanted: Occupant | None, resident: Occupant | None, reason: str | None = None
) -> Finish:
    asked = goal(wanted) if wanted else None
    return Finish(outcome=Outcome(result=result, goal=asked, resident=resident, reason=reason))


def tell(state: State, *story: tuple[Event, list[Effect]]) -> State:
    """Play the events, compare the effects of each, and return the state they lead to."""
    for number, (event, expected) in enumerate(story):
        state, effects = step(state, event)
        assert list(effects) == expected, f"line {number}: {event}"
    return state


def card(state: State) -> State:
    """The state but for what is remembered of the past."""
    return replace(state, now_s=0.0, desk=Desk(waiting=state.desk.waiting, running=state.desk.running))


def after(state: State, *events: Event) -> State:
    """The state that the events lead to, whatever their effects."""
    for event in events:
        state, _ = step(state, event)
    return state


TO_STOPPING = (want(DEV), drained(PO))
TO_ROOM = (*TO_STOPPING, stopped(PO))
TO_STARTING = (*TO_ROOM, MemoryFree())
TO_LOADING = (*TO_STARTING, Started(occupant=DEV))
TO_DISCARDING = (*TO_LOADING, load_failed(DEV, "no such file"))
BACK_TO_ROOM = (*TO_DISCARDING, stopped(DEV))
BACK_TO_STARTING = (*BACK_TO_ROOM, MemoryFree())
BACK_TO_LOADING = (*BACK_TO_STARTING, Started(occupant=PO))

PO_COMES_BACK: tuple[tuple[Event, list[Effect]], ...] = (
    (MemoryFree(), [StartAgain(occupant=PO)]),
    (Started(occupant=PO), [load(PO, again=True)]),
)


EMPTIED: list[Effect] = [remove(PO), end(Result.FAILED, DEV, None, "no such file")]
"""The previous one could not come back; what is told is why the newcomer failed."""
