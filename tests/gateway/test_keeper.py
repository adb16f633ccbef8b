"""The keeper on engines in memory: who is granted when, who stays, and what is left of a request that is over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from agent_manager.errors import OperationFailed
from agent_manager.gateway.keeper import Bounds
from agent_manager.gateway.tickets import RefusedError
from agent_manager.swap import events as ev
from agent_manager.swap.card import Stage
from agent_manager.swap.notices import AgentState
from tests.swap.engines import tasks

from .keeping import QUIET, hold, reach, until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.swap.engines import ServingRuntime

    from .keeping import Begin, Keep


class TestTurns:
    async def test_the_first_request_brings_its_agent(
        self, begin: Begin, agent_ports: Mapping[str, int]
    ) -> None:
        async with begin() as keep:
            _, granted = await keep.granted("dev")
            assert (granted.port, granted.swap) == (agent_ports["dev"] + 100, "-> dev")
            assert keep.swaps() == {("dev", "done"): 1}

    async def test_the_next_one_goes_straight_through(self, begin: Begin, runtime: ServingRuntime) -> None:
        async with begin() as keep:
            await keep.granted("dev")
            _, granted = await keep.granted("dev")
            assert granted.swap is None
            assert runtime.started() == ["dev"]

    async def test_a_turn_that_changes_nothing_on_the_card_is_there_at_once(self, begin: Begin) -> None:
        async with begin() as keep:
            await keep.served("dev")
            ticket = keep.keeper.ask("dev")
            assert keep.card.in_flight
            ticket.close()
            assert not keep.card.in_flight

    async def test_nor_does_it_wait_until_the_one_that_left_is_removed(
        self, begin: Begin, runtime: ServingRuntime
    ) -> None:
        removing = hold(runtime, "remove", "po")
        async with begin() as keep:
            await keep.served("po")
            await keep.granted("dev")
            await until(lambda: "remove" in dict(runtime.calls), "po is being removed")
            ticket = keep.keeper.ask("dev")
            assert len(keep.card.in_flight) == 2
            ticket.close()
            assert len(keep.card.in_flight) == 1
            assert keep.swaps() == {("po", "done"): 1}, "the swap ends with that"
            removing.set()
            await until(lambda: ("dev", "done") in keep.swaps(), "po is removed")

    async def test_another_agent_comes_when_the_resident_has_nothing_to_do(
        self, begin: Begin, runtime: ServingRuntime, agent_ports: Mapping[str, int]
    ) -> None:
        async with begin() as keep:
            await keep.served("dev")
            _, granted = await keep.granted("po")
            assert (granted.port, granted.swap) == (agent_ports["po"] + 100, "dev -> po")
            assert await runtime.running() == ["po"]
            assert len(await runtime.list()) == 1, "of dev nothing is left"

    async def test_those_who_wait_for_one_agent_are_served_in_order_after_one_swap(
        self, begin: Begin
    ) -> None:
        served: list[str] = []

        async def ask(number: int, keep: Keep) -> None:
            agent = ("dev", "po")[number % 2]
            ticket, _ = await keep.granted(agent)
            served.append(f"{agent}{number}")
            ticket.close()

        async with begin() as keep:
            await asyncio.gather(*(ask(number, keep) for number in range(12)))
            assert served == [f"dev{n}" for n in range(0, 12, 2)] + [f"po{n}" for n in range(1, 12, 2)]
            assert keep.swaps() == {("dev", "done"): 1, ("po", "done"): 1}
            await keep.no_trace()

    async def test_where_a_waiting_request_is(self, begin: Begin, runtime: ServingRuntime) -> None:
        starting = hold(runtime, "start", "dev")
        async with begin() as keep:
            first, second = keep.keeper.ask("dev"), keep.keeper.ask("dev")
            await until(lambda: "dev" in second.whereabouts().doing, "dev starts")
            await until(lambda: second.whereabouts().position == 1, "it is in the queue")
            now = {each.name: each for each in keep.keeper.agents()}
            assert (now["dev"].state, now["dev"].waiting) == (AgentState.STARTING, 2)
            first.close()
            await until(lambda: second.whereabouts().position == 0, "it is next")
            starting.set()
            await second.granted()
            assert {each.name: each.state for each in keep.keeper.agents()} == {
                "po": AgentState.ABSENT,
                "dev": AgentState.READY,
            }

    async def test_a_full_queue_is_said_so(self, begin: Begin, runtime: ServingRuntime) -> None:
        starting = hold(runtime, "start", "dev")
        async with begin(bounds=Bounds(most_waiting=2, most_running=3, rounds=QUIET)) as keep:
            waiting = [keep.keeper.ask("dev") for _ in range(2)]
            with pytest.raises(RefusedError) as refused:
                keep.keeper.ask("dev")
            assert (refused.value.status, refused.value.kind) == (429, "queue_full")
            assert refused.value.retry_after_s
            other = keep.keeper.ask("po")
            starting.set()
            for ticket in waiting:
                await ticket.granted()
            await keep.granted("dev")
            with pytest.raises(RefusedError, match="3 requests are at dev"):
                keep.keeper.ask("dev")
            waiting[0].close()
            other.close()
            keep.keeper.ask("dev")

    async def test_who_waits_too_long_is_told(self, begin: Begin, runtime: ServingRuntime) -> None:
        hold(runtime, "start", "dev")
        async with begin(bounds=Bounds(longest_wait_s=0.05, rounds=QUIET)) as keep:
            ticket = keep.keeper.ask("dev")
            with pytest.raises(RefusedError) as refused:
                await ticket.granted()
            assert (refused.value.status, refused.value.kind) == (503, "waited_too_long")
            ticket.close()
            await keep.no_trace()
            runtime.held["start", "dev"].set()


class TestWhoGoesAway:
    @pytest.mark.parametrize("stage", list(Stage))
    async def test_while_waiting_leaves_no_trace(self, begin: Begin, stage: Stage) -> None:
        async with begin() as keep:
            await keep.served("po")
            let_go = reach(keep, stage)
            asked = [asyncio.create_task(keep.granted("dev")) for _ in range(3)]
            await until(lambda: keep.card.swap is not None and keep.card.swap.stage is stage, stage)
            stays = asyncio.create_task(keep.granted("po"))
            await keep.heard()
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            for ticket in tuple(keep.keeper._tickets.values()):  # noqa: SLF001 - what a front does for a client that left
                if ticket.agent == "dev":
                    ticket.close()
            await keep.heard()
            assert not [each for each in keep.card.waiting if each.agent == "dev"]
            let_go()
            (await stays)[0].close()
            await keep.no_trace()

    async def test_after_the_turn_leaves_no_trace(self, begin: Begin) -> None:
        before = tasks()
        async with begin() as keep:
            ticket, _ = await keep.granted("dev")
            ticket.close()
            ticket.close()
            await keep.no_trace()
        assert tasks() == before


class TestWhoStays:
    async def test_with_keep_alive_zero_it_leaves_after_its_last_request(
        self, begin: Begin, runtime: ServingRuntime
    ) -> None:
        async with begin(keep_alive_s=0.0) as keep:
            first, _ = await keep.granted("dev")
            second, _ = await keep.granted("dev")
            first.close()
            await keep.heard()
            assert keep.card.swap is None
            second.close()
            await keep.emptied()
            assert await runtime.list() == ()
            await keep.served("dev")

    async def test_with_a_keep_alive_it_leaves_when_that_is_over(self, begin: Begin) -> None:
        async with begin(keep_alive_s=0.1) as keep:
            await keep.served("dev")
            assert keep.card.resident is not None
            await keep.emptied()

    async def test_the_time_of_one_that_was_found_begins_now(self, begin: Begin) -> None:
        async with begin(resident="dev", keep_alive_s=60.0) as keep:
            await keep.heard()
            assert keep.card.resident is not None
            assert keep.card.swap is None
        async with begin(resident="po", keep_alive_s=0.1) as keep:
            await keep.emptied()

    async def test_the_default_comes_back(self, begin: Begin, runtime: ServingRuntime) -> None:
        async with begin(default="po", keep_alive_s=0.05) as keep:
            await keep.served("dev")
            await until(lambda: keep.card.resident and keep.card.resident.agent == "po", "po came back")
            assert await runtime.running() == ["po"]

    async def test_who_is_wanted_at_the_beginning_comes_unasked(self, begin: Begin) -> None:
        first = ev.Wanted(goal=ev.Goal(agent="dev", claim_bytes=1))
        async with begin(first=first) as keep:
            await until(lambda: keep.card.resident and keep.card.resident.agent == "dev", "dev came")
            assert keep.swaps() == {("dev", "done"): 1}

    async def test_who_is_there_already_costs_no_swap(self, begin: Begin) -> None:
        first = ev.Wanted(goal=ev.Goal(agent="dev", claim_bytes=1))
        async with begin(first=first, resident="dev") as keep:
            await keep.served("dev")
            assert keep.swaps() == {}


class TestUnload:
    async def test_takes_the_resident_off_once_its_requests_are_over(self, begin: Begin) -> None:
        async with begin() as keep:
            ticket, _ = await keep.granted("dev")
            keep.keeper.unload()
            await until(lambda: keep.card.swap and keep.card.swap.stage is Stage.DRAINING, "it drains")
            await keep.heard()
            assert keep.card.resident is not None
            ticket.close()
            await keep.emptied()

    @pytest.mark.parametrize("stage", list(Stage))
    async def test_during_a_swap_it_is_not_lost(
        self, begin: Begin, runtime: ServingRuntime, stage: Stage
    ) -> None:
        async with begin() as keep:
            await keep.served("po")
            let_go = reach(keep, stage)
            asked = keep.keeper.ask("dev")
            await until(lambda: keep.card.swap is not None and keep.card.swap.stage is stage, stage)
            keep.keeper.unload()
            await keep.heard()
            let_go()
            if stage is Stage.DISCARDING:
                with pytest.raises(RefusedError):
                    await asked.granted()
            else:
                await asked.granted()
            asked.close()
            await keep.emptied()
            await keep.heard()
            assert await runtime.running() == []
            assert keep.swaps()["", "done"] == 1

    async def test_of_an_empty_card_is_nothing_and_is_forgotten(self, begin: Begin) -> None:
        async with begin() as keep:
            keep.keeper.unload()
            await keep.heard()
            await keep.served("dev")
            await keep.heard()
            assert keep.card.resident is not None


class TestTheEnd:
    @pytest.mark.parametrize("stage", [None, *Stage])
    async def test_in_every_stage_it_leaves_an_empty_card(
        self, begin: Begin, runtime: ServingRuntime, stage: Stage | None
    ) -> None:
        async with begin(default="po", keep_alive_s=0.0) as keep:
            await keep.served("po")
            if stage is not None:
                let_go = reach(keep, stage)
                asked = keep.keeper.ask("dev")
                await until(lambda: keep.card.swap is not None and keep.card.swap.stage is stage, stage)
                keep.keeper.close()
                with pytest.raises(RefusedError) as refused:
                    await asked.granted()
                assert (refused.value.status, refused.value.kind) == (503, "closing")
                asked.close()
            leaving = asyncio.create_task(keep.keeper.leave(5.0))
            await keep.heard()
            if stage is not None:
                let_go()
            async with asyncio.timeout(10):
                await leaving
            assert await runtime.list() == ()
            assert runtime.started().count("po") == 1, "nobody is put back who must leave again"

    async def test_of_an_empty_card(self, begin: Begin) -> None:
        async with begin() as keep, asyncio.timeout(10):
            await keep.keeper.leave(5.0)

    @pytest.mark.parametrize(
        ("stage", "left"),
        [
            (None, ["po"]),
            (Stage.DRAINING, []),
            (Stage.STOPPING, []),
            (Stage.MAKING_ROOM, []),
            (Stage.STARTING, ["dev"]),
            (Stage.LOADING, ["dev"]),
            (Stage.DISCARDING, []),
        ],
    )
    async def test_without_stop_an_engine_that_serves_loads_or_starts_is_left(
        self, begin: Begin, runtime: ServingRuntime, stage: Stage | None, left: list[str]
    ) -> None:
        async with begin() as keep:
            await keep.served("po")
            if stage is not None:
                let_go = reach(keep, stage)
                keep.keeper.ask("dev")
                await until(lambda: keep.card.swap is not None and keep.card.swap.stage is stage, stage)
            keep.keeper.close()
            leaving = asyncio.create_task(keep.keeper.leave(0.0, stop=False))
            await keep.heard()
            if stage is not None and stage is not Stage.LOADING:
                let_go()
            async with asyncio.timeout(10):
                await leaving
            assert await runtime.running() == left

    async def test_a_start_that_fails_is_not_waited_for(self, begin: Begin, runtime: ServingRuntime) -> None:
        async with begin() as keep:
            let_go = reach(keep, Stage.STARTING)
            runtime.fails["start", "dev"] = OperationFailed("no")
            keep.keeper.ask("dev")
            await until(lambda: keep.card.swap is not None, "a swap begins")
            keep.keeper.close()
            leaving = asyncio.create_task(keep.keeper.leave(0.0, stop=False))
            await keep.heard()
            let_go()
            async with asyncio.timeout(10):
                await leaving
            assert await runtime.list() == ()

    async def test_requests_that_run_finish_first(self, begin: Begin, runtime: ServingRuntime) -> None:
        async with begin() as keep:
            ticket, _ = await keep.granted("dev")
            keep.keeper.close()
            leaving = asyncio.create_task(keep.keeper.leave(10.0))
            await keep.heard()
            assert not leaving.done()
            assert await runtime.running() == ["dev"]
            ticket.close()
            await leaving
            assert await runtime.running() == []

    async def test_requests_that_never_end_do_not_keep_it(
        self, begin: Begin, runtime: ServingRuntime
    ) -> None:
        async with begin() as keep:
            for _ in range(20):  # uvloop's timers are early now and then
                await keep.granted("dev")
                async with asyncio.timeout(10):
                    await keep.keeper.leave(0.01)
                assert await runtime.running() == []

    async def test_nobody_is_taken_any_more(self, begin: Begin) -> None:
        async with begin() as keep:
            keep.keeper.close()
            with pytest.raises(RefusedError) as refused:
                keep.keeper.ask("dev")
            assert (refused.value.status, refused.value.kind) == (503, "closing")


@pytest.mark.parametrize("keep_alive_s", [0.0, 0.005])
async def test_an_unload_that_races_a_request_loses_none(
    begin: Begin, runtime: ServingRuntime, keep_alive_s: float
) -> None:
    """500 times each: the request comes in every moment of the unloading, from its first to after its last."""
    async with begin(keep_alive_s=keep_alive_s) as keep:
        for number in range(500):
            ticket, _ = await keep.granted("dev")
            assert await runtime.running() == ["dev"], number
            ticket.close()
            for _ in range(number % 50):
                await asyncio.sleep(0)
            if keep_alive_s:
                await asyncio.sleep(keep_alive_s * (number % 7) / 6)
        await keep.no_trace()
        assert set(keep.swaps()) == {("dev", "done"), ("", "done")}
