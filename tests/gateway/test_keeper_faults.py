"""The keeper where engines do not start, end, hang or fall silent: in memory, with real HTTP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from agent_manager.errors import HostNotReady, PortInUse
from agent_manager.gateway import trust
from agent_manager.gateway.tickets import RefusedError
from agent_manager.swap import lookout, waits
from agent_manager.swap.card import Stage
from agent_manager.swap.notices import AgentState
from tests.fakes.memory_runtime import Behaviour
from tests.swap.engines import Manners

from .keeping import KILLED, WATCHFUL, reach, until

if TYPE_CHECKING:
    from tests.swap.engines import ServingRuntime

    from .keeping import Begin


class TestAnAgentThatDoesNotStart:
    async def test_those_who_wait_are_told_why_and_the_other_goes_on(
        self, begin: Begin, runtime: ServingRuntime
    ) -> None:
        runtime.behaviours["dev"] = Behaviour(lines=("ValueError: no such quantization: q5",), exits=1)
        async with begin() as keep:
            await keep.served("po")
            waiting = [keep.keeper.ask("dev") for _ in range(3)]
            for ticket in waiting:
                with pytest.raises(RefusedError, match="no such quantization: q5") as refused:
                    await ticket.granted()
                assert (refused.value.status, refused.value.kind) == (503, "agent_failed")
                assert refused.value.retry_after_s == trust.FIRST_PAUSE_S + 1
                ticket.close()
            _, granted = await keep.granted("po")
            assert granted.swap is None or granted.swap.endswith("-> po")
            assert await runtime.running() == ["po"]
            assert keep.swaps()["dev", "failed"] == 1
            assert any("no such quantization" in warning for warning in keep.warnings())

    async def test_it_is_not_tried_again_before_its_pause_is_over(
        self, begin: Begin, runtime: ServingRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runtime.fails["start", "dev"] = PortInUse("port 8101 is in use by nginx")
        async with begin() as keep:
            with pytest.raises(RefusedError, match="nginx"):
                await keep.granted("dev")
            states = {each.name: each.state for each in keep.keeper.agents()}
            assert states["dev"] is AgentState.FAILED
            del runtime.fails["start", "dev"]
            with pytest.raises(RefusedError, match="nginx") as refused:
                keep.keeper.ask("dev")
            assert 0 < (refused.value.retry_after_s or 0) <= trust.FIRST_PAUSE_S + 1
            assert runtime.started() == ["dev"]
            now_s = asyncio.get_running_loop().time()
            monkeypatch.setattr("agent_manager.gateway.keeper.time.monotonic", lambda: now_s + 11)
            keep.keeper.ask("dev")

    async def test_killed_while_it_loads_is_no_reason_to_refuse_anybody(
        self, begin: Begin, runtime: ServingRuntime
    ) -> None:
        runtime.manners["dev"] = Manners(healthy=False)
        async with begin() as keep:
            asked = [asyncio.create_task(keep.granted("dev")) for _ in range(2)]
            await until(lambda: keep.card.swap and keep.card.swap.stage is Stage.LOADING, "dev loads")
            runtime.manners["dev"].healthy = True
            runtime.exit((await runtime.only()).spec.id, KILLED)
            for ticket, _ in await asyncio.gather(*asked):
                ticket.close()
            assert runtime.started() == ["dev", "dev"]
            await keep.no_trace()

    async def test_killed_each_time_it_loads_is_one(self, begin: Begin, runtime: ServingRuntime) -> None:
        runtime.behaviours["dev"] = Behaviour(lines=("INFO: loading",), exits=KILLED)
        async with begin() as keep:
            with pytest.raises(RefusedError, match="SIGKILL"):
                await keep.granted("dev")
            assert runtime.started() == ["dev", "dev"]


class TestAResidentThatEnds:
    async def test_the_next_request_starts_it_again_at_once(
        self, begin: Begin, runtime: ServingRuntime
    ) -> None:
        async with begin() as keep:
            ticket, _ = await keep.granted("dev")
            runtime.exit((await runtime.only()).spec.id, 1)
            await ticket.unanswered()
            ticket.close()
            await keep.served("dev")
            assert runtime.started() == ["dev", "dev"]
            assert len(await runtime.list()) == 1, "of the dead one nothing is left"

    async def test_nobody_starts_it_when_nobody_asks(self, begin: Begin, runtime: ServingRuntime) -> None:
        async with begin() as keep:
            await keep.served("dev")
            runtime.exit((await runtime.only()).spec.id, 1)
            await until(lambda: keep.card.resident is None, "it is known to be gone")
            await keep.heard()
            assert await runtime.list() == ()
            assert keep.card.swap is None

    async def test_again_and_again_is_refused_with_the_cause(
        self, begin: Begin, runtime: ServingRuntime
    ) -> None:
        async with begin() as keep:
            for _ in range(2):
                await keep.served("dev")
                runtime.exit((await runtime.only()).spec.id, 1)
                await until(lambda: keep.card.resident is None, "it is known to be gone")
            await until(lambda: len(keep.warnings()) == 2, "it is told")
            with pytest.raises(RefusedError, match="dev ended with 1") as refused:
                keep.keeper.ask("dev")
            assert (refused.value.status, refused.value.kind) == (503, "agent_failed")
            assert refused.value.retry_after_s
            await keep.served("po")

    async def test_who_waits_for_another_agent_is_served(self, begin: Begin, runtime: ServingRuntime) -> None:
        async with begin() as keep:
            running, _ = await keep.granted("dev")
            waiting = asyncio.create_task(keep.granted("po"))
            await until(lambda: keep.card.waiting, "po waits, since dev is busy")
            runtime.exit((await runtime.only()).spec.id, 1)
            await waiting
            running.close()
            assert await runtime.running() == ["po"]

    async def test_while_it_drains_makes_way_at_once(self, begin: Begin, runtime: ServingRuntime) -> None:
        async with begin() as keep:
            await keep.served("po")
            reach(keep, Stage.DRAINING)
            waiting = asyncio.create_task(keep.granted("dev"))
            await until(lambda: keep.card.swap and keep.card.swap.stage is Stage.DRAINING, "po drains")
            runtime.exit((await runtime.only()).spec.id, 1)
            await waiting
            assert len(await runtime.list()) == 1, "of po nothing is left"

    async def test_one_that_is_silent_while_it_drains_is_not_waited_for(
        self, begin: Begin, runtime: ServingRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waits, "SILENT_S", 0.1)
        async with begin() as keep:
            await keep.served("po")
            runtime.manners["po"] = Manners(requests=None)
            await keep.served("dev")

    async def test_a_request_it_hung_up_on_asks_again_when_that_is_known(
        self, begin: Begin, runtime: ServingRuntime
    ) -> None:
        async with begin() as keep:
            ticket, _ = await keep.granted("dev")
            instance = (await runtime.only()).spec.id
            runtime.exit(instance, 1)
            await ticket.unanswered()
            assert keep.card.resident is None, "or it would be granted the dead one again"
            ticket.close()
            await keep.served("dev")

    async def test_a_request_may_learn_that_it_was_hung_up_on_long_after(
        self, begin: Begin, runtime: ServingRuntime
    ) -> None:
        async with begin() as keep:
            ticket, _ = await keep.granted("dev")
            runtime.exit((await runtime.only()).spec.id, 1)
            await until(lambda: keep.card.resident is None, "it is known to be gone")
            await keep.heard()
            await ticket.unanswered()
            await keep.served("dev")
            await ticket.unanswered()

    async def test_one_that_hung_up_once_and_answers_is_left_alone(
        self, begin: Begin, runtime: ServingRuntime
    ) -> None:
        async with begin() as keep:
            ticket, _ = await keep.granted("dev")
            await ticket.unanswered()
            assert await runtime.running() == ["dev"]
            assert keep.card.resident is not None

    async def test_one_that_listens_no_more_and_does_not_end_is_ended(
        self, begin: Begin, runtime: ServingRuntime
    ) -> None:
        async with begin(bounds=WATCHFUL) as keep:
            ticket, _ = await keep.granted("dev")
            runtime.manners["dev"] = Manners(healthy=False, requests=None, completes=False)
            await ticket.unanswered()
            ticket.close()
            await until(lambda: keep.card.resident is None, "it is gone")
            assert any("does not listen any more" in warning for warning in keep.warnings())
            runtime.manners.clear()
            await keep.served("dev")

    async def test_a_runtime_that_does_not_answer_is_asked_again(
        self, begin: Begin, runtime: ServingRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lookout, "LOOK_AGAIN_S", 0.01)
        runtime.fails["wait", "dev"] = HostNotReady("docker is being restarted")
        async with begin(resident="dev") as keep:
            await until(lambda: runtime.calls.count(("wait", "dev-0000")) > 2, "it was asked three times")
            del runtime.fails["wait", "dev"]
            runtime.exit("dev-0000", 1)
            await until(lambda: keep.card.resident is None, "it is known to be gone")
            assert keep.warnings() == ["dev ended with 1"]


class TestTheWatchman:
    async def test_one_that_hangs_though_it_is_healthy_is_ended_and_starts_when_it_is_asked_for(
        self, begin: Begin, runtime: ServingRuntime
    ) -> None:
        async with begin(bounds=WATCHFUL) as keep:
            await keep.served("dev")
            runtime.manners["dev"] = Manners(hangs=True)
            await until(lambda: keep.card.resident is None, "it is ended")
            runtime.manners.clear()
            assert any("one-token completion" in warning for warning in keep.warnings())
            await keep.served("dev")
            assert runtime.started() == ["dev", "dev"]

    async def test_one_that_answers_is_left_alone(self, begin: Begin, runtime: ServingRuntime) -> None:
        async with begin(bounds=WATCHFUL) as keep:
            await keep.served("dev")
            before = len(runtime.completed)
            await until(lambda: len(runtime.completed) > before + 3, "it was asked three times")
            assert runtime.started() == ["dev"]

    async def test_one_that_was_found_is_asked_at_once(self, begin: Begin, runtime: ServingRuntime) -> None:
        async with begin(resident="dev") as keep:
            await until(lambda: runtime.completed == ["dev"], "it was asked")
            assert (await keep.granted("dev"))[1].swap is None

    async def test_one_that_does_not_get_on_with_its_requests_is_ended(
        self, begin: Begin, runtime: ServingRuntime
    ) -> None:
        async with begin(bounds=WATCHFUL, stall_s=0.2) as keep:
            ticket, _ = await keep.granted("dev")
            runtime.manners["dev"] = Manners(requests=1)
            await until(lambda: keep.card.resident is None, "it is ended")
            assert any("did not get on" in warning for warning in keep.warnings())
            runtime.manners.clear()
            ticket.close()
            await keep.served("dev")

    @pytest.mark.parametrize("manners", [Manners(requests=0), Manners(requests=None)])
    async def test_one_that_has_nothing_to_do_or_does_not_tell_is_left_alone(
        self, begin: Begin, runtime: ServingRuntime, manners: Manners
    ) -> None:
        async with begin(bounds=WATCHFUL, stall_s=0.05) as keep:
            await keep.granted("dev")
            runtime.manners["dev"] = manners
            looks = 0
            while looks < 10:
                await asyncio.sleep(WATCHFUL.rounds.every_s)
                looks += 1
            assert await runtime.running() == ["dev"]

    async def test_one_that_is_deaf_while_it_has_requests_is_ended(
        self, begin: Begin, runtime: ServingRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("agent_manager.engines.client.PROBE_TIMEOUT_S", 0.05)
        async with begin(bounds=WATCHFUL, stall_s=0.2) as keep:
            ticket, _ = await keep.granted("dev")
            runtime.manners["dev"] = Manners(deaf=True)
            await until(lambda: keep.card.resident is None, "it is ended")
            runtime.manners.clear()
            ticket.close()
            await keep.served("dev")
