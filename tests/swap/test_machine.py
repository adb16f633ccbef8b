"""The swap machine, one story at a time: each line of a `tell` is an event and the effects it must have."""

from __future__ import annotations

import pytest

from agent_manager.swap.events import (
    Abandon,
    Arrived,
    AwaitMemory,
    AwaitReady,
    Cancelled,
    Drain,
    Drained,
    DrainExpired,
    Effect,
    Event,
    Exited,
    Finish,
    Finished,
    Goal,
    Grant,
    Interrupted,
    LoadFailed,
    MemoryFree,
    MemoryHeld,
    Occupant,
    Outcome,
    Ready,
    Reject,
    Remove,
    Result,
    Start,
    StartAgain,
    Started,
    StartFailed,
    Stop,
    StopFailed,
    Stopped,
    Wanted,
)
from agent_manager.swap.machine import Stage, State, following, step
from agent_manager.swap.schedule import Request, next_agent

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


# --- swaps that go well -----------------------------------------------------------------------------------


def test_launch_on_an_empty_card() -> None:
    state = tell(
        EMPTY,
        (want(DEV), [room(DEV)]),
        (MemoryFree(), [Start(agent="dev")]),
        (Started(occupant=DEV), [load(DEV)]),
        (ready(DEV), [end(Result.DONE, DEV, DEV)]),
    )
    assert state == State(total_bytes=CARD_BYTES, resident=DEV)


def test_a_swap_removes_the_one_that_left_only_when_the_newcomer_is_ready() -> None:
    state = tell(
        PO_SERVES,
        (want(DEV, drain_timeout_s=5), [drain(PO, 5)]),
        (drained(PO), [stop(PO)]),
        (stopped(PO), [room(DEV)]),
        (MemoryFree(), [Start(agent="dev")]),
        (Started(occupant=DEV), [load(DEV)]),
        (ready(DEV), [remove(PO), end(Result.DONE, DEV, DEV)]),
    )
    assert state == State(total_bytes=CARD_BYTES, resident=DEV)


def test_stop_empties_the_card() -> None:
    state = tell(
        PO_SERVES,
        (want(None), [drain(PO)]),
        (drained(PO), [stop(PO)]),
        (stopped(PO), [remove(PO), end(Result.DONE, None, None)]),
    )
    assert state == EMPTY


@pytest.mark.parametrize(
    ("state", "occupant"), [(PO_SERVES, PO), (PO_SERVES, PO_NEW), (EMPTY, None)], ids=["same", "new", "empty"]
)
def test_what_is_there_already_is_done_at_once(state: State, occupant: Occupant | None) -> None:
    assert tell(state, (want(occupant), [end(Result.DONE, occupant, state.resident)])) == state


def test_the_same_agent_is_replaced_when_told_so() -> None:
    tell(
        PO_SERVES,
        (want(PO_NEW, replace_same=True), [drain(PO)]),
        (drained(PO), [stop(PO)]),
        (stopped(PO), [room(PO_NEW)]),
        (MemoryFree(), [Start(agent="po")]),
        (Started(occupant=PO_NEW), [load(PO_NEW)]),
        (ready(PO_NEW), [remove(PO), end(Result.DONE, PO, PO_NEW)]),
    )


def test_an_empty_card_is_not_emptied_again_even_when_told_to_replace() -> None:
    assert tell(EMPTY, (want(None, replace_same=True), [end(Result.DONE, None, None)])) == EMPTY


def test_a_goal_larger_than_the_card_is_refused_and_nothing_is_touched() -> None:
    giant = Occupant(instance_id="giant-1", agent="giant", claim_bytes=CARD_BYTES + 1)
    reason = "giant takes 17 bytes, the card has 16"
    assert tell(PO_SERVES, (want(giant), [end(Result.FAILED, giant, PO, reason)])) == PO_SERVES


def test_a_goal_as_large_as_the_card_fits() -> None:
    whole = Occupant(instance_id="whole-1", agent="whole", claim_bytes=CARD_BYTES)
    tell(EMPTY, (want(whole), [room(whole)]))


@pytest.mark.parametrize(
    "events", [(want(DEV),), TO_STOPPING, TO_ROOM, TO_STARTING, TO_LOADING, TO_DISCARDING, BACK_TO_LOADING]
)
def test_a_second_swap_is_refused_while_one_is_under_way(events: tuple[Event, ...]) -> None:
    state = after(PO_SERVES, *events)
    assert tell(state, (want(PO), [end(Result.BUSY, PO, state.resident)])) == state


# --- draining ---------------------------------------------------------------------------------------------


def test_a_drain_waits_for_granted_requests_even_if_the_engine_looks_idle() -> None:
    tell(
        PO_SERVES,
        (asks("a", PO), [Grant(request_id="a")]),
        (asks("b", PO), [Grant(request_id="b")]),
        (want(DEV), [drain(PO)]),
        (drained(PO), []),
        (Finished(request_id="a"), []),
        (Cancelled(request_id="b"), [stop(PO)]),
    )


def test_a_drain_waits_for_the_engine_even_if_no_granted_request_is_left() -> None:
    tell(
        PO_SERVES,
        (asks("a", PO), [Grant(request_id="a")]),
        (want(DEV), [drain(PO)]),
        (Finished(request_id="a"), []),
        (drained(PO), [stop(PO)]),
    )


@pytest.mark.parametrize("idle", [True, False])
def test_when_the_drain_time_is_over_requests_are_cut(idle: bool) -> None:  # noqa: FBT001 - pytest passes by name
    state = tell(
        after(PO_SERVES, asks("a", PO), want(DEV), *([drained(PO)] if idle else [])),
        (DrainExpired(instance_id=PO.instance_id), [stop(PO)]),
        (stopped(PO), [room(DEV)]),
    )
    assert state.in_flight == frozenset()
    assert tell(state, (Finished(request_id="a"), [])) == state


def test_a_drain_time_of_nothing_stops_at_once() -> None:
    tell(
        PO_SERVES,
        (want(DEV, drain_timeout_s=0), [drain(PO, 0)]),
        (DrainExpired(instance_id=PO.instance_id), [stop(PO, at_once=True)]),
    )


# --- failures, and how they are undone --------------------------------------------------------------------


def test_memory_that_is_held_brings_the_previous_one_back() -> None:
    state = tell(
        after(PO_SERVES, *TO_ROOM),
        (MemoryHeld(reason="pid 7 holds it"), [room(PO, again=True)]),
        *PO_COMES_BACK,
        (ready(PO), [end(Result.FAILED, DEV, PO, "pid 7 holds it")]),
    )
    assert state == PO_SERVES


@pytest.mark.parametrize("record", [DEV.instance_id, None])
def test_a_start_that_fails_brings_the_previous_one_back(record: str | None) -> None:
    removed: list[Effect] = [remove(DEV)] if record else []
    tell(
        after(PO_SERVES, *TO_STARTING),
        (StartFailed(reason="port taken", instance_id=record), [*removed, room(PO, again=True)]),
        *PO_COMES_BACK,
        (ready(PO), [end(Result.FAILED, DEV, PO, "port taken")]),
    )


def test_a_load_that_fails_is_discarded_and_the_previous_one_comes_back() -> None:
    state = tell(
        after(PO_SERVES, *TO_LOADING),
        (load_failed(DEV, "no such file"), [stop(DEV, at_once=True)]),
        (stopped(DEV), [remove(DEV), room(PO, again=True)]),
        *PO_COMES_BACK,
        (ready(PO), [end(Result.FAILED, DEV, PO, "no such file")]),
    )
    assert state == PO_SERVES


def test_a_launch_that_fails_on_an_empty_card_leaves_it_empty() -> None:
    loading = after(EMPTY, want(DEV), MemoryFree(), Started(occupant=DEV))
    state = tell(
        loading,
        (load_failed(DEV, "no such file"), [stop(DEV, at_once=True)]),
        (stopped(DEV), [remove(DEV), end(Result.FAILED, DEV, None, "no such file")]),
    )
    assert state == EMPTY


EMPTIED: list[Effect] = [remove(PO), end(Result.FAILED, DEV, None, "no such file")]
"""The previous one could not come back; what is told is why the newcomer failed."""


@pytest.mark.parametrize(
    ("events", "failure"),
    [
        (BACK_TO_ROOM, MemoryHeld(reason="pid 7 holds it")),
        (BACK_TO_STARTING, StartFailed(reason="port taken")),
        (BACK_TO_STARTING, StartFailed(reason="port taken", instance_id=PO.instance_id)),
        ((*BACK_TO_LOADING, load_failed(PO, "killed")), stopped(PO)),
    ],
)
def test_when_going_back_fails_too_the_card_is_empty(events: tuple[Event, ...], failure: Event) -> None:
    assert tell(after(PO_SERVES, *events), (failure, EMPTIED)) == EMPTY


# --- instances that do not stop ---------------------------------------------------------------------------

PO_STUCK = after(PO_SERVES, *TO_STOPPING, StopFailed(instance_id=PO.instance_id, reason="it ignores SIGKILL"))
DEV_STUCK = after(EMPTY, want(DEV), MemoryFree(), Started(occupant=DEV), load_failed(DEV, "no such file"))
DEV_STUCK = after(DEV_STUCK, StopFailed(instance_id=DEV.instance_id, reason="it ignores SIGKILL"))


def test_an_instance_that_cannot_be_stopped_keeps_the_card() -> None:
    state = tell(
        after(PO_SERVES, *TO_STOPPING),
        (
            StopFailed(instance_id=PO.instance_id, reason="it ignores SIGKILL"),
            [end(Result.FAILED, DEV, PO, "it ignores SIGKILL")],
        ),
    )
    assert state.swap is None
    assert state.claimed_bytes == PO.claim_bytes


def test_a_newcomer_that_cannot_be_discarded_keeps_the_card() -> None:
    state = tell(
        after(PO_SERVES, *TO_DISCARDING),
        (
            StopFailed(instance_id=DEV.instance_id, reason="it ignores SIGKILL"),
            [remove(PO), end(Result.FAILED, DEV, DEV, "no such file")],
        ),
    )
    assert state.swap is None
    assert state.claimed_bytes == DEV.claim_bytes


@pytest.mark.parametrize(("state", "stuck"), [(PO_STUCK, PO), (DEV_STUCK, DEV)])
def test_what_cannot_be_stopped_does_not_serve(state: State, stuck: Occupant) -> None:
    tell(state, (want(stuck), [drain(stuck)]))
    tell(
        state,
        (asks("a", stuck), [drain(stuck)]),
        (drained(stuck), [stop(stuck)]),
        (
            StopFailed(instance_id=stuck.instance_id, reason="still"),
            [end(Result.FAILED, stuck, stuck, "still"), Reject(request_id="a", reason="still")],
        ),
    )


def test_what_is_stopped_at_the_second_attempt_makes_way() -> None:
    state = after(PO_STUCK, want(DEV), drained(PO), stopped(PO), MemoryFree(), Started(occupant=DEV))
    tell(
        state,
        (ready(DEV), [remove(PO), end(Result.DONE, DEV, DEV)]),
        (asks("a", DEV), [Grant(request_id="a")]),
    )


# --- instances that end by themselves ---------------------------------------------------------------------


def test_a_resident_that_ends_is_removed_and_leaves_the_card_empty() -> None:
    gone = Exited(instance_id=PO.instance_id)
    state = tell(PO_SERVES, (asks("a", PO), [Grant(request_id="a")]), (gone, [remove(PO)]))
    assert state == EMPTY


def test_a_request_after_the_resident_ended_starts_it_anew() -> None:
    state = after(PO_SERVES, Exited(instance_id=PO.instance_id))
    tell(state, (asks("a", PO), [room(PO)]))


def test_a_resident_that_ends_while_it_drains_makes_room_and_is_not_put_back() -> None:
    state = tell(
        after(PO_SERVES, asks("a", PO), want(DEV)),
        (Exited(instance_id=PO.instance_id), [Abandon(), remove(PO), room(DEV)]),
        (MemoryHeld(reason="pid 7 holds it"), [end(Result.FAILED, DEV, None, "pid 7 holds it")]),
    )
    assert state == EMPTY


def test_a_resident_that_ends_while_it_drains_for_a_stop_is_what_was_wanted() -> None:
    draining = after(PO_SERVES, want(None))
    tell(
        draining, (Exited(instance_id=PO.instance_id), [Abandon(), remove(PO), end(Result.DONE, None, None)])
    )


def test_an_instance_that_ends_while_it_is_stopped_changes_nothing() -> None:
    state = after(PO_SERVES, *TO_STOPPING)
    assert tell(state, (Exited(instance_id=PO.instance_id), [])) == state


# --- the first interrupt undoes ---------------------------------------------------------------------------


def test_interrupted_while_draining_nothing_has_happened() -> None:
    state = tell(
        after(PO_SERVES, asks("a", PO), want(DEV)),
        (INTERRUPT, [Abandon(), end(Result.INTERRUPTED, DEV, PO)]),
        (Finished(request_id="a"), []),
    )
    assert state == PO_SERVES


def test_interrupted_while_stopping_the_stop_is_seen_through_and_undone() -> None:
    state = tell(
        after(PO_SERVES, *TO_STOPPING),
        (INTERRUPT, []),
        (stopped(PO), [room(PO, again=True)]),
        *PO_COMES_BACK,
        (ready(PO), [end(Result.INTERRUPTED, DEV, PO)]),
    )
    assert state == PO_SERVES


def test_interrupted_while_making_room_the_previous_one_comes_back() -> None:
    state = tell(
        after(PO_SERVES, *TO_ROOM),
        (INTERRUPT, [Abandon(), room(PO, again=True)]),
        *PO_COMES_BACK,
        (ready(PO), [end(Result.INTERRUPTED, DEV, PO)]),
    )
    assert state == PO_SERVES


def test_interrupted_while_starting_the_start_is_seen_through_and_undone() -> None:
    state = tell(
        after(PO_SERVES, *TO_STARTING),
        (INTERRUPT, []),
        (Started(occupant=DEV), [stop(DEV, at_once=True)]),
        (stopped(DEV), [remove(DEV), room(PO, again=True)]),
        *PO_COMES_BACK,
        (ready(PO), [end(Result.INTERRUPTED, DEV, PO)]),
    )
    assert state == PO_SERVES


def test_interrupted_while_starting_and_the_start_fails_anyway() -> None:
    tell(
        after(PO_SERVES, *TO_STARTING),
        (INTERRUPT, []),
        (StartFailed(reason="port taken"), [room(PO, again=True)]),
        *PO_COMES_BACK,
        (ready(PO), [end(Result.INTERRUPTED, DEV, PO)]),
    )


def test_interrupted_while_loading_the_newcomer_is_discarded_and_the_previous_one_comes_back() -> None:
    state = tell(
        after(PO_SERVES, *TO_LOADING),
        (INTERRUPT, [Abandon(), stop(DEV, at_once=True)]),
        (stopped(DEV), [remove(DEV), room(PO, again=True)]),
        *PO_COMES_BACK,
        (ready(PO), [end(Result.INTERRUPTED, DEV, PO)]),
    )
    assert state == PO_SERVES


def test_an_interrupted_launch_on_an_empty_card_leaves_it_empty() -> None:
    tell(
        after(EMPTY, want(DEV)),
        (INTERRUPT, [Abandon(), end(Result.INTERRUPTED, DEV, None)]),
    )


def test_an_interrupt_comes_too_late_for_a_stop_that_is_under_way() -> None:
    tell(
        after(PO_SERVES, want(None), drained(PO)),
        (INTERRUPT, []),
        (INTERRUPT, []),
        (stopped(PO), [remove(PO), end(Result.DONE, None, None)]),
    )


# --- the second one empties the card ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "last"),
    [
        ((*TO_STOPPING, INTERRUPT, INTERRUPT, stopped(PO)), []),
        ((*TO_STOPPING, INTERRUPT, stopped(PO), INTERRUPT), [Abandon()]),
        ((*TO_ROOM, INTERRUPT, INTERRUPT), [Abandon()]),
        ((*TO_STARTING, INTERRUPT, INTERRUPT, Started(occupant=DEV), stopped(DEV)), [remove(DEV)]),
        ((*TO_STARTING, INTERRUPT, INTERRUPT, StartFailed(reason="port taken")), []),
        ((*TO_STARTING, INTERRUPT, Started(occupant=DEV), INTERRUPT, stopped(DEV)), [remove(DEV)]),
        ((*TO_LOADING, INTERRUPT, INTERRUPT, stopped(DEV)), [remove(DEV)]),
        ((*TO_LOADING, INTERRUPT, stopped(DEV), INTERRUPT), [Abandon()]),
        (
            (*TO_ROOM, INTERRUPT, MemoryFree(), INTERRUPT, Started(occupant=PO), stopped(PO)),
            [],
        ),
        ((*TO_ROOM, INTERRUPT, MemoryFree(), Started(occupant=PO), INTERRUPT, stopped(PO)), []),
    ],
    ids=[
        "stopping twice",
        "stopping, making room to go back",
        "making room, making room to go back",
        "starting twice",
        "starting twice, it fails",
        "starting, discarding",
        "loading, discarding",
        "loading, making room to go back",
        "making room, starting again",
        "making room, loading again",
    ],
)
def test_a_second_interrupt_leaves_the_card_empty(events: tuple[Event, ...], last: list[Effect]) -> None:
    state = after(PO_SERVES, *events[:-1])
    assert tell(state, (events[-1], [*last, remove(PO), end(Result.INTERRUPTED, DEV, None)])) == EMPTY


@pytest.mark.parametrize(
    ("events", "last"),
    [
        ((*TO_DISCARDING, INTERRUPT, stopped(DEV)), [remove(DEV)]),
        ((*BACK_TO_ROOM, INTERRUPT), [Abandon()]),
        ((*BACK_TO_STARTING, INTERRUPT, Started(occupant=PO), stopped(PO)), []),
        ((*BACK_TO_LOADING, INTERRUPT, stopped(PO)), []),
    ],
    ids=["discarding", "making room", "starting", "loading"],
)
def test_an_interrupt_while_a_failure_is_undone_leaves_the_card_empty(
    events: tuple[Event, ...], last: list[Effect]
) -> None:
    state = after(PO_SERVES, *events[:-1])
    assert tell(state, (events[-1], [*last, *EMPTIED])) == EMPTY


# --- requests ---------------------------------------------------------------------------------------------


def test_requests_for_the_resident_are_granted_at_once() -> None:
    state = tell(
        PO_SERVES,
        (asks("a", PO), [Grant(request_id="a")]),
        (asks("b", PO), [Grant(request_id="b")]),
        (Finished(request_id="a"), []),
    )
    assert state.in_flight == {"b"}


def test_requests_for_another_agent_swap_it_in_and_are_granted_together() -> None:
    state = tell(
        PO_SERVES,
        (asks("a", DEV), [drain(PO)]),
        (asks("b", DEV), []),
        (drained(PO), [stop(PO)]),
        (stopped(PO), [room(DEV)]),
        (MemoryFree(), [Start(agent="dev")]),
        (Started(occupant=DEV), [load(DEV)]),
        (asks("c", DEV), []),
        (
            ready(DEV),
            [remove(PO), end(Result.DONE, DEV, DEV), *(Grant(request_id=each) for each in "abc")],
        ),
    )
    assert state.in_flight == {"a", "b", "c"}


def test_a_swap_for_a_request_drains_as_long_as_the_card_says() -> None:
    state = State(total_bytes=CARD_BYTES, resident=PO, drain_timeout_s=7)
    tell(state, (asks("a", DEV), [drain(PO, 7)]))


def test_requests_for_an_agent_that_leaves_wait_and_bring_it_back() -> None:
    state = tell(
        after(PO_SERVES, want(DEV)),
        (asks("a", PO), []),
        (drained(PO), [stop(PO)]),
    )
    state = after(state, stopped(PO), MemoryFree(), Started(occupant=DEV))
    state = tell(state, (ready(DEV), [remove(PO), end(Result.DONE, DEV, DEV), drain(DEV)]))
    state = after(state, drained(DEV), stopped(DEV), MemoryFree(), Started(occupant=PO_NEW))
    tell(state, (ready(PO_NEW), [remove(DEV), end(Result.DONE, PO, PO_NEW), Grant(request_id="a")]))


def test_requests_for_an_agent_that_stays_after_all_are_granted() -> None:
    state = after(PO_SERVES, want(DEV), asks("a", PO))
    tell(state, (INTERRUPT, [Abandon(), end(Result.INTERRUPTED, DEV, PO), Grant(request_id="a")]))
    state = after(PO_SERVES, want(PO_NEW, replace_same=True), asks("a", PO))
    tell(state, (INTERRUPT, [Abandon(), end(Result.INTERRUPTED, PO, PO), Grant(request_id="a")]))


def test_a_swap_that_fails_rejects_those_who_waited_for_it_with_its_reason() -> None:
    state = after(PO_SERVES, asks("a", DEV), asks("b", PO), drained(PO), stopped(PO))
    state = after(state, MemoryHeld(reason="pid 7 holds it"), MemoryFree(), Started(occupant=PO))
    told = end(Result.FAILED, DEV, PO, "pid 7 holds it")
    tell(
        state,
        (ready(PO), [told, Reject(request_id="a", reason="pid 7 holds it"), Grant(request_id="b")]),
    )


def test_an_interrupted_swap_rejects_those_who_waited_for_it() -> None:
    refused = Reject(request_id="a", reason="the swap was interrupted")
    tell(
        after(PO_SERVES, asks("a", DEV)),
        (INTERRUPT, [Abandon(), end(Result.INTERRUPTED, DEV, PO), refused]),
    )


def test_after_a_failed_swap_the_next_agent_has_its_turn() -> None:
    state = after(EMPTY, asks("a", DEV), asks("b", PO))
    failed = end(Result.FAILED, DEV, None, "pid 7 holds it")
    refused = Reject(request_id="a", reason="pid 7 holds it")
    tell(state, (MemoryHeld(reason="pid 7 holds it"), [failed, refused, room(PO)]))


def test_a_request_that_was_cancelled_while_it_waited_is_never_granted() -> None:
    state = after(PO_SERVES, asks("a", DEV), asks("b", DEV), *TO_LOADING[1:])
    tell(
        state,
        (Cancelled(request_id="a"), []),
        (ready(DEV), [remove(PO), end(Result.DONE, DEV, DEV), Grant(request_id="b")]),
    )


def test_a_request_that_no_card_could_serve_is_rejected_at_once() -> None:
    giant = Occupant(instance_id="giant-1", agent="giant", claim_bytes=CARD_BYTES + 1)
    refused = Reject(request_id="a", reason="giant does not fit the card")
    assert tell(PO_SERVES, (asks("a", giant), [refused])) == PO_SERVES


def test_the_oldest_request_says_which_agent_is_next() -> None:
    requests = [Request(id=id_, agent=agent, claim_bytes=1) for id_, agent in [("a", "po"), ("b", "dev")]]
    assert next_agent(requests) == requests[0]
    assert next_agent([]) is None


# --- taking over, and what comes too late -----------------------------------------------------------------


def test_an_unfinished_swap_is_followed_to_its_end() -> None:
    state = following(total_bytes=CARD_BYTES, arriving=DEV, leaving=PO)
    assert state.claimed_bytes == DEV.claim_bytes
    tell(state, (ready(DEV), [remove(PO), end(Result.DONE, DEV, DEV)]))


def test_an_unfinished_swap_that_fails_is_undone_by_whoever_follows_it() -> None:
    tell(
        following(total_bytes=CARD_BYTES, arriving=DEV, leaving=PO),
        (load_failed(DEV, "no such file"), [stop(DEV, at_once=True)]),
        (stopped(DEV), [remove(DEV), room(PO, again=True)]),
        *PO_COMES_BACK,
        (ready(PO), [end(Result.FAILED, DEV, PO, "no such file")]),
    )


def test_a_followed_launch_that_is_interrupted_leaves_nothing() -> None:
    tell(
        following(total_bytes=CARD_BYTES, arriving=DEV, leaving=None),
        (INTERRUPT, [Abandon(), stop(DEV, at_once=True)]),
        (stopped(DEV), [remove(DEV), end(Result.INTERRUPTED, DEV, None)]),
    )


LATE: list[Event] = [
    MemoryFree(),
    MemoryHeld(reason="late"),
    Started(occupant=PO_NEW),
    StartFailed(reason="late"),
    *(
        event
        for id_ in ("po-0", "dev-0")
        for event in (
            Drained(instance_id=id_),
            DrainExpired(instance_id=id_),
            Stopped(instance_id=id_),
            StopFailed(instance_id=id_, reason="late"),
            Ready(instance_id=id_),
            LoadFailed(instance_id=id_, reason="late"),
            Exited(instance_id=id_),
        )
    ),
    Finished(request_id="long gone"),
    Cancelled(request_id="long gone"),
]


@pytest.mark.parametrize("event", LATE, ids=repr)
def test_what_comes_too_late_changes_nothing(event: Event) -> None:
    stages: list[tuple[Event, ...]] = [(), (want(DEV),), TO_STOPPING]
    if not isinstance(event, MemoryFree | MemoryHeld):
        stages += [TO_ROOM, BACK_TO_ROOM]
    if not isinstance(event, Started | StartFailed):
        stages += [TO_STARTING, BACK_TO_STARTING]
    for events in (*stages, TO_LOADING, TO_DISCARDING, BACK_TO_LOADING):
        state = after(PO_SERVES, *events)
        assert tell(state, (event, [])) == state


def test_an_interrupt_when_nothing_is_under_way_changes_nothing() -> None:
    assert tell(PO_SERVES, (INTERRUPT, [])) == PO_SERVES


# --- the memory that is counted ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "stage", "claimed_bytes"),
    [
        ((want(DEV),), Stage.DRAINING, 6),
        (TO_STOPPING, Stage.STOPPING, 6),
        (TO_ROOM, Stage.MAKING_ROOM, 0),
        (TO_STARTING, Stage.STARTING, 10),
        (TO_LOADING, Stage.LOADING, 10),
        (TO_DISCARDING, Stage.DISCARDING, 10),
        (BACK_TO_ROOM, Stage.MAKING_ROOM, 0),
        (BACK_TO_STARTING, Stage.STARTING, 6),
        (BACK_TO_LOADING, Stage.LOADING, 6),
    ],
)
def test_every_stage_counts_the_memory_of_what_may_run(
    events: tuple[Event, ...], stage: Stage, claimed_bytes: int
) -> None:
    state = after(PO_SERVES, *events)
    assert state.swap is not None
    assert (state.swap.stage, state.claimed_bytes) == (stage, claimed_bytes)


def test_what_cannot_be_discarded_is_a_failure_even_after_an_interrupt() -> None:
    loading = after(EMPTY, want(DEV), MemoryFree(), Started(occupant=DEV), INTERRUPT)
    still = StopFailed(instance_id=DEV.instance_id, reason="still")
    tell(loading, (still, [end(Result.FAILED, DEV, DEV, "still")]))
