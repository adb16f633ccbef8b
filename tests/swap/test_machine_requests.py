"""Requests, told event by event: granted, collected for another agent, rejected, cancelled."""

from __future__ import annotations

from agent_manager.swap.events import (
    Abandon,
    Cancelled,
    Finished,
    Grant,
    MemoryFree,
    MemoryHeld,
    Occupant,
    Reject,
    Result,
    Start,
    Started,
)
from agent_manager.swap.machine import State
from agent_manager.swap.schedule import Request, next_agent
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
    load,
    ready,
    remove,
    room,
    stop,
    stopped,
    tell,
    want,
)

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
