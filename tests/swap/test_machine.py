"""Swaps, told event by event: those that go well, drains, failures, takeovers, and what comes too late."""

from __future__ import annotations

import pytest

from agent_manager.swap.card import Stage, State, following
from agent_manager.swap.events import (
    Abandon,
    Cancelled,
    Drained,
    DrainExpired,
    Effect,
    Event,
    Exited,
    Finished,
    Grant,
    LoadFailed,
    MemoryFree,
    MemoryHeld,
    Occupant,
    Ready,
    Result,
    Start,
    Started,
    StartFailed,
    StopFailed,
    Stopped,
    Wake,
)
from tests.swap.story import (
    BACK_TO_LOADING,
    BACK_TO_ROOM,
    BACK_TO_STARTING,
    CARD_BYTES,
    DEV,
    EMPTIED,
    EMPTY,
    INTERRUPT,
    PO,
    PO_COMES_BACK,
    PO_NEW,
    PO_SERVES,
    TO_DISCARDING,
    TO_LOADING,
    TO_ROOM,
    TO_STARTING,
    TO_STOPPING,
    after,
    asks,
    card,
    drain,
    drained,
    end,
    load,
    load_failed,
    ready,
    remove,
    room,
    stop,
    stopped,
    tell,
    want,
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
    assert card(state) == State(total_bytes=CARD_BYTES, resident=DEV)


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
    assert card(state) == State(total_bytes=CARD_BYTES, resident=DEV)


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
        (drained(PO), [Wake(at_s=60)]),
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
