"""Wishes: each is told its own end, one that came during a swap only when that is over, and nobody asks in a loop."""

from __future__ import annotations

import asyncio

import pytest

from agent_manager.gateway.wishes import Wishes
from agent_manager.swap import events as ev

WANTED = ev.Wanted(goal=ev.Goal(agent="dev", claim_bytes=1))


def outcome(result: ev.Result, wish: str | None) -> ev.Outcome:
    return ev.Outcome(result=result, goal=None, resident=None, wish=wish)


@pytest.fixture
def told() -> list[ev.Event]:
    return []


@pytest.fixture
def wishes(told: list[ev.Event]) -> Wishes:
    return Wishes(told.append)


async def begun(wishes: Wishes, name: str) -> asyncio.Task[ev.Outcome]:
    task = asyncio.create_task(wishes.ask(name, WANTED))
    await asyncio.sleep(0)
    assert wishes.asked(name)
    return task


async def test_each_is_told_its_own_end(wishes: Wishes) -> None:
    mine, other = await begun(wishes, "mine"), await begun(wishes, "other")
    wishes.finished(outcome(ev.Result.FAILED, "other"))
    wishes.finished(outcome(ev.Result.DONE, None))
    assert (await other).result is ev.Result.FAILED
    assert not mine.done()
    wishes.finished(outcome(ev.Result.DONE, "mine"))
    assert (await mine).result is ev.Result.DONE
    assert not wishes.asked("mine")


async def test_one_that_comes_during_a_swap_waits_for_its_end(wishes: Wishes, told: list[ev.Event]) -> None:
    mine = await begun(wishes, "mine")
    wishes.finished(outcome(ev.Result.BUSY, "mine"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not mine.done()
    assert len(told) == 1
    wishes.finished(outcome(ev.Result.DONE, None))
    assert (await mine).result is ev.Result.BUSY


async def test_the_end_of_a_swap_that_came_at_once_is_not_missed(wishes: Wishes) -> None:
    mine = await begun(wishes, "mine")
    wishes.finished(outcome(ev.Result.BUSY, "mine"))
    wishes.finished(outcome(ev.Result.DONE, None))
    assert (await mine).result is ev.Result.BUSY


async def test_one_that_is_given_up_before_its_turn(wishes: Wishes, told: list[ev.Event]) -> None:
    mine = await begun(wishes, "mine")
    assert wishes.interrupt("mine")
    assert told[-1] == ev.Interrupted(wish="mine")
    wishes.finished(outcome(ev.Result.BUSY, "mine"))
    assert (await mine).result is ev.Result.INTERRUPTED
    assert not wishes.interrupt("mine")
