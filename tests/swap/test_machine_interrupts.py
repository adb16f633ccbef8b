"""Interrupts, told event by event, and instances that do not stop or that end by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent_manager.swap.events import (
    Abandon,
    Effect,
    Event,
    Exited,
    Finished,
    Grant,
    MemoryFree,
    MemoryHeld,
    Occupant,
    Reject,
    Result,
    Started,
    StartFailed,
    StopFailed,
)
from tests.swap.story import (
    BACK_TO_LOADING,
    BACK_TO_ROOM,
    BACK_TO_STARTING,
    DEV,
    EMPTIED,
    EMPTY,
    INTERRUPT,
    PO,
    PO_COMES_BACK,
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
    load_failed,
    ready,
    remove,
    room,
    stop,
    stopped,
    tell,
    want,
)

if TYPE_CHECKING:
    from agent_manager.swap.card import State

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
    assert card(state) == EMPTY


def test_a_request_after_the_resident_ended_starts_it_anew() -> None:
    state = after(PO_SERVES, Exited(instance_id=PO.instance_id))
    tell(state, (asks("a", PO), [room(PO)]))


def test_a_resident_that_ends_while_it_drains_makes_room_and_is_not_put_back() -> None:
    state = tell(
        after(PO_SERVES, asks("a", PO), want(DEV)),
        (Exited(instance_id=PO.instance_id), [Abandon(), remove(PO), room(DEV)]),
        (MemoryHeld(reason="pid 7 holds it"), [end(Result.FAILED, DEV, None, "pid 7 holds it")]),
    )
    assert card(state) == EMPTY


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
    assert card(state) == PO_SERVES


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


def test_what_cannot_be_discarded_is_a_failure_even_after_an_interrupt() -> None:
    loading = after(EMPTY, want(DEV), MemoryFree(), Started(occupant=DEV), INTERRUPT)
    still = StopFailed(instance_id=DEV.instance_id, reason="still")
    tell(loading, (still, [end(Result.FAILED, DEV, DEV, "still")]))
