"""New settings while requests wait and run, and wishes that are told their own end."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from agent_manager.swap.card import State
from agent_manager.swap.desk import Desk
from agent_manager.swap.events import (
    Abandon,
    Drain,
    Finish,
    Finished,
    Goal,
    Grant,
    Interrupted,
    MemoryFree,
    Reject,
    Renewed,
    Result,
    Started,
    Stop,
)
from agent_manager.swap.machine import step
from agent_manager.swap.schedule import Settings
from tests.swap.story import (
    DEV,
    EMPTY,
    INTERRUPT,
    PO,
    PO_SERVES,
    TO_LOADING,
    TO_STARTING,
    TO_STOPPING,
    after,
    asks,
    drained,
    goal,
    ready,
    remove,
    room,
    stop,
    stopped,
    want,
)

PO_OLD = replace(PO, fingerprint="old")
CLAIMS = {"po": PO.claim_bytes, "dev": DEV.claim_bytes}


def renewed(*current: str, gone: tuple[str, ...] = (), group_of: dict[str, str] | None = None) -> Renewed:
    return Renewed(
        settings=Settings(keep_alive_s=7.0),
        group_of=group_of or {},
        default=None,
        claims={name: claim for name, claim in CLAIMS.items() if name not in gone},
        refusals=dict.fromkeys(gone, "it is gone"),
        current=frozenset(current),
    )


def serving_po(*requests: str) -> State:
    """PO_OLD is on the card, and these run in it."""
    state = State(total_bytes=16, resident=PO_OLD, desk=Desk())
    for request in requests:
        state, _ = step(state, asks(request, PO))
    return state


def test_an_instance_with_the_settings_of_now_serves_on() -> None:
    state, effects = step(serving_po("a"), renewed("old"))
    assert effects == ()
    assert state.desk.settings.keep_alive_s == 7.0
    _, effects = step(state, asks("b", PO))
    assert effects == (Grant(request_id="b"),)


def test_one_with_settings_of_earlier_leaves_at_once_when_it_idles() -> None:
    state, effects = step(serving_po(), renewed("new"))
    assert effects == (Drain(occupant=PO_OLD, timeout_s=60.0),)
    assert state.serving is None


def test_one_with_settings_of_earlier_finishes_what_runs_then_leaves() -> None:
    state, effects = step(serving_po("a"), renewed("new"))
    assert effects == ()
    state, effects = step(state, Finished(request_id="a"))
    assert effects == (Drain(occupant=PO_OLD, timeout_s=60.0),)
    state, effects = step(state, drained(PO_OLD))
    assert effects == (Stop(occupant=PO_OLD, at_once=False),)
    state, effects = step(state, stopped(PO_OLD))
    assert [type(effect) for effect in effects] == [type(remove(PO_OLD)), Finish]
    assert state.resident is None


def test_who_asks_for_it_meanwhile_waits_for_the_new_one() -> None:
    state, _ = step(serving_po("a"), renewed("new"))
    state, effects = step(state, asks("b", PO))
    assert effects == (Drain(occupant=PO_OLD, timeout_s=60.0),)
    assert [request.id for request in state.waiting] == ["b"]
    state, effects = step(state, Finished(request_id="a"))
    state, _ = step(state, drained(PO_OLD))
    state, effects = step(state, stopped(PO_OLD))
    assert effects == (room(PO),)


def test_one_of_earlier_is_not_put_back() -> None:
    state, _ = step(serving_po("a"), renewed("new"))
    state = after(state, asks("b", DEV), Finished(request_id="a"), drained(PO_OLD), stopped(PO_OLD))
    state, effects = step(state, INTERRUPT)
    assert effects[0] == Abandon()
    assert state.swap is None
    assert state.resident is None


def test_requests_for_who_is_gone_are_refused_with_the_reason() -> None:
    state, _ = step(serving_po("a"), asks("b", DEV))
    state, effects = step(state, renewed("old", gone=("dev",)))
    assert effects == (Reject(request_id="b", reason="it is gone"),)
    assert state.waiting == ()
    assert state.in_flight == {"a"}


def test_a_swap_to_who_is_gone_is_undone() -> None:
    state = after(PO_SERVES, *TO_LOADING)
    state, effects = step(state, renewed(PO.fingerprint, DEV.fingerprint, gone=("dev",)))
    assert effects == (Abandon(), stop(DEV, at_once=True))


def test_it_is_undone_once_however_often_that_is_said() -> None:
    gone = renewed(PO.fingerprint, gone=("dev",))
    state = after(PO_SERVES, *TO_STOPPING, gone, gone)
    assert step(state, stopped(PO))[1] == (room(PO, again=True),)
    state = after(PO_SERVES, *TO_STARTING, INTERRUPT, gone, Started(occupant=DEV))
    assert step(state, stopped(DEV))[1] == (remove(DEV), room(PO, again=True))


@pytest.mark.parametrize("served", ["old", "new"])
def test_who_arrives_with_settings_of_earlier_serves_nobody(served: str) -> None:
    dev = replace(DEV, fingerprint=served)
    state = after(EMPTY, asks("a", DEV), MemoryFree(), Started(occupant=dev))
    state, _ = step(state, renewed("new"))
    state, effects = step(state, ready(dev))
    granted = Grant(request_id="a") in effects
    assert granted is (served == "new")
    assert [request.id for request in state.waiting] == ([] if granted else ["a"])


def test_groups_are_those_of_now_also_for_who_waits() -> None:
    state, _ = step(serving_po("a"), asks("b", DEV))
    state, effects = step(state, renewed("old", group_of={"po": "po", "dev": "po"}))
    assert effects == (Grant(request_id="b"),)


def test_a_stuck_one_is_not_stopped_again_and_again() -> None:
    state = replace(serving_po(), stuck=True)
    assert step(state, renewed("new"))[1] == ()


# --- wishes -----------------------------------------------------------------------------------------------


def test_a_wish_is_told_its_own_end() -> None:
    wanted = replace(want(DEV), wish="mine")
    state, _ = step(PO_SERVES, wanted)
    _, effects = step(state, replace(want(PO), wish="other"))
    assert isinstance(effects[0], Finish)
    assert (effects[0].outcome.wish, effects[0].outcome.result) == ("other", Result.BUSY)
    _, effects = step(after(state, *TO_LOADING[1:]), ready(DEV))
    end = next(effect.outcome for effect in effects if isinstance(effect, Finish))
    assert (end.wish, end.result, end.goal) == ("mine", Result.DONE, goal(DEV))


def test_only_its_own_interrupt_ends_a_wish() -> None:
    state = after(PO_SERVES, replace(want(DEV), wish="mine"), *TO_LOADING[1:])
    assert step(state, Interrupted(wish="other")) == (state, ())
    assert step(state, Interrupted(wish="mine"))[1] == (Abandon(), stop(DEV, at_once=True))
    assert step(state, Interrupted())[1] == (Abandon(), stop(DEV, at_once=True))


def test_no_wish_interrupts_the_swap_of_requests() -> None:
    state = after(EMPTY, asks("a", DEV), MemoryFree(), Started(occupant=DEV))
    assert step(state, Interrupted(wish="mine")) == (state, ())
    assert state.desk.goal("dev") == Goal(agent="dev", claim_bytes=DEV.claim_bytes)
