"""Requests: granted, collected for another agent, rejected, cancelled; event by event, over time, in numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_manager.swap.card import State
from agent_manager.swap.desk import Desk
from agent_manager.swap.events import (
    Abandon,
    Cancelled,
    Due,
    Effect,
    Event,
    Finished,
    Grant,
    MemoryFree,
    MemoryHeld,
    Occupant,
    Reject,
    Result,
    Start,
    Started,
    Wake,
)
from agent_manager.swap.machine import step
from agent_manager.swap.schedule import Cause, Settings
from tests.swap.story import (
    CARD_BYTES,
    DEV,
    EMPTY,
    INTERRUPT,
    PO,
    PO_NEW,
    PO_SERVES,
    TO_LOADING,
    after,
    asks,
    drain,
    drained,
    end,
    goal,
    load,
    ready,
    remove,
    room,
    stop,
    stopped,
    tell,
    want,
)
from tests.swap.traffic import Ask, Traffic

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


# --- requests over time -----------------------------------------------------------------------------------


def at(state: State, now_s: float, event: Event, expected: list[Effect]) -> State:
    state, effects = step(state, event, now_s)
    assert list(effects) == expected
    return state


def serving(occupant: Occupant, **known: float) -> State:
    desk = Desk(settings=Settings(max_wait_s=30, min_residency_s=10), swap_cost_s=known)
    return State(total_bytes=CARD_BYTES, resident=occupant, desk=desk)


def test_a_busy_resident_is_kept_until_the_waiter_has_waited_long_enough() -> None:
    state = at(serving(PO), 100, asks("a", PO), [Grant(request_id="a")])
    state = at(state, 101, asks("b", DEV), [Wake(at_s=131)])
    state = at(state, 110, asks("c", PO), [Grant(request_id="c"), Wake(at_s=131)])
    state = at(state, 131, Due(), [drain(PO)])
    assert state.swap is not None
    assert state.swap.cause is Cause.OVERDUE
    at(state, 132, asks("d", PO), [])


def test_a_resident_leaves_as_soon_as_its_last_request_is_over() -> None:
    state = at(serving(PO), 100, asks("a", PO), [Grant(request_id="a")])
    state = at(state, 101, asks("b", DEV), [Wake(at_s=131)])
    state = at(state, 105, Finished(request_id="a"), [drain(PO)])
    at(state, 131, Due(), [])


def test_a_resident_is_kept_for_the_next_request_of_a_client_that_comes_back_quickly() -> None:
    state = serving(PO, po=60, dev=60)
    for n in range(4):
        state = at(state, 10 * n, asks(f"a{n}", PO), [Grant(request_id=f"a{n}")])
        state = at(state, 10 * n + 9, Finished(request_id=f"a{n}"), [])
    state, [wake] = step(state, asks("b", DEV), 39)
    assert isinstance(wake, Wake)
    assert 40 <= wake.at_s < 41
    at(state, wake.at_s, Due(), [drain(PO)])


def test_nobody_is_waited_for_when_the_only_waiter_went_away() -> None:
    state = at(serving(PO), 100, asks("a", PO), [Grant(request_id="a")])
    state = at(state, 101, asks("b", DEV), [Wake(at_s=131)])
    state = at(state, 102, Cancelled(request_id="b"), [])
    at(state, 131, Due(), [])


def test_a_swap_is_measured_from_the_stop_until_the_newcomer_answers() -> None:
    state = at(serving(PO), 100, want(DEV), [drain(PO)])
    state = at(state, 150, drained(PO), [stop(PO)])
    state = at(state, 151, stopped(PO), [room(DEV)])
    state = at(state, 152, MemoryFree(), [Start(agent="dev")])
    state = at(state, 153, Started(occupant=DEV), [load(DEV)])
    state = at(state, 180, ready(DEV), [remove(PO), end(Result.DONE, DEV, DEV)])
    assert state.desk.swap_cost_s == {"dev": 30}
    assert state.desk.since_s == 180


def test_a_drain_ends_in_time_although_the_engine_never_saw_a_granted_request() -> None:
    state = at(serving(PO), 100, asks("a", PO), [Grant(request_id="a")])
    state = at(state, 101, want(DEV, drain_timeout_s=20), [drain(PO, 20)])
    state = at(state, 102, drained(PO), [Wake(at_s=121)])
    at(state, 121, Due(), [stop(PO)])


def test_agents_that_share_a_model_are_served_by_one_instance() -> None:
    desk = Desk(group_of={"dev": "coder", "po": "coder"})
    state = State(total_bytes=CARD_BYTES, resident=DEV, desk=desk)
    state = at(state, 1, asks("a", PO), [Grant(request_id="a")])
    at(state, 2, want(PO), [end(Result.DONE, PO, DEV)])


def test_an_idle_resident_leaves_the_card_after_its_keep_alive() -> None:
    desk = Desk(settings=Settings(keep_alive_s=60))
    state = State(total_bytes=CARD_BYTES, resident=PO, desk=desk)
    state = at(state, 1, asks("a", PO), [Grant(request_id="a")])
    state = at(state, 5, Finished(request_id="a"), [Wake(at_s=65)])
    state = at(state, 65, Due(), [drain(PO)])
    state = at(state, 65, drained(PO), [stop(PO)])
    at(state, 66, stopped(PO), [remove(PO), end(Result.DONE, None, None)])


def test_a_request_that_comes_while_an_idle_resident_is_unloaded_brings_it_back() -> None:
    desk = Desk(settings=Settings(keep_alive_s=60))
    state = State(total_bytes=CARD_BYTES, resident=PO, desk=desk)
    state = at(state, 60, Due(), [drain(PO)])
    state = at(state, 60, asks("a", PO), [])
    state = at(state, 60, drained(PO), [stop(PO)])
    at(state, 61, stopped(PO), [remove(PO), end(Result.DONE, None, None), room(PO)])


def test_the_default_agent_comes_back_when_the_card_is_not_needed() -> None:
    desk = Desk(settings=Settings(keep_alive_s=60), default=goal(PO))
    state = State(total_bytes=CARD_BYTES, resident=DEV, desk=desk)
    state = at(state, 60, Due(), [drain(DEV)])
    state = at(state, 60, drained(DEV), [stop(DEV)])
    state = at(state, 61, stopped(DEV), [room(PO)])
    state = at(state, 61, MemoryFree(), [Start(agent="po")])
    state = at(state, 61, Started(occupant=PO), [load(PO)])
    state = at(state, 70, ready(PO), [remove(DEV), end(Result.DONE, PO, PO)])
    at(state, 1e6, Due(), [])


def test_a_default_agent_that_does_not_load_is_tried_again_only_after_another_keep_alive() -> None:
    desk = Desk(settings=Settings(keep_alive_s=60), default=goal(PO))
    state = State(total_bytes=CARD_BYTES, resident=DEV, desk=desk)
    state = at(state, 60, Due(), [drain(DEV)])
    state = after(state, drained(DEV), stopped(DEV), MemoryHeld(reason="pid 7"), MemoryFree())
    state = after(state, Started(occupant=DEV))
    told = end(Result.FAILED, PO, DEV, "pid 7")
    at(state, 70, ready(DEV), [told, Wake(at_s=130)])


# --- traffic ----------------------------------------------------------------------------------------------

AGENTS = ("architect", "dev", "po")
seconds = st.floats(min_value=0, max_value=60)
asked = st.builds(
    Ask,
    agent=st.sampled_from(AGENTS),
    arrives_s=st.floats(0, 300),
    duration_s=seconds,
    leaves_after_s=st.none() | seconds,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    asks_=st.lists(asked, min_size=1, max_size=30),
    swap_s=st.fixed_dictionaries(dict.fromkeys(AGENTS, seconds)),
    max_wait_s=seconds,
    min_residency_s=seconds,
    keep_alive_s=st.sampled_from([-1.0, 0.0, 20.0]),
    shared=st.booleans(),
)
def test_everybody_is_served_once_by_the_right_agent_and_in_time(
    asks_: list[Ask],
    swap_s: dict[str, float],
    max_wait_s: float,
    min_residency_s: float,
    keep_alive_s: float,
    shared: bool,  # noqa: FBT001 - hypothesis passes by name
) -> None:
    desk = Desk(
        settings=Settings(max_wait_s=max_wait_s, min_residency_s=min_residency_s, keep_alive_s=keep_alive_s),
        group_of={"architect": "thinker", "po": "thinker"} if shared else {},
        swap_cost_s={desk_group: max(swap_s.values()) for desk_group in (*AGENTS, "thinker")},
    )
    traffic = Traffic(asks_, dict.fromkeys(AGENTS, max(swap_s.values())), desk)
    traffic.play()
    turn_s = max(swap_s.values()) + traffic.longest_drain_s + min_residency_s
    for seen in traffic.seen.values():
        until_s = seen.granted_s if seen.granted_s is not None else seen.ended_s
        assert until_s is not None
        assert until_s - seen.arrived_s <= max_wait_s + seen.turns * turn_s + 1e-6


@pytest.mark.parametrize("swap_s", [1.0, 10.0, 60.0])
def test_twelve_alternating_requests_at_once_make_two_swaps(swap_s: float) -> None:
    asks_ = [Ask(agent=AGENTS[n % 2], arrives_s=0, duration_s=3) for n in range(12)]
    traffic = Traffic(asks_, dict.fromkeys(AGENTS, swap_s), Desk())
    traffic.play()
    assert traffic.swaps == 2
