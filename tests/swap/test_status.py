"""The picture of now, for every state an agent can be in; and its log, wherever that is."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from agent_manager.errors import AgentUnknown, HostNotReady, NotRunning
from agent_manager.gpu.simulated import CARD_ID
from agent_manager.runtimes.base import InstanceSpec
from agent_manager.runtimes.process import ProcessRuntime
from agent_manager.state import StateDir
from agent_manager.swap import status
from agent_manager.swap.lock import own_card
from agent_manager.swap.notices import AgentState, AgentStatus, Step
from tests.fakes.memory_runtime import Behaviour

from .engines import Manners, ServingRuntime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent_manager.runtimes.base import Instance

    from .conftest import Lab

OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


class Deaf(ServingRuntime):
    """A runtime that does not answer, such as a docker that is not running."""

    async def list(self) -> tuple[Instance, ...]:
        raise HostNotReady("cannot connect to the Docker daemon")


async def _created(lab: Lab, engines: ServingRuntime, agent: str) -> InstanceSpec:
    """An instance that was recorded and not started, as between two steps of a launch."""
    port = lab.ports[agent]
    spec = InstanceSpec(
        id=f"{agent}-00000001",
        agent=agent,
        engine="simulated",
        model="small",
        card=CARD_ID,
        claim_bytes=1,
        argv=("engine",),
        engine_port=port + 100,
        agent_port=port,
    )
    await engines.create(spec)
    return spec


class TestEachState:
    async def test_absent_says_what_a_launch_would_choose(self, quick: Lab) -> None:
        expected = AgentStatus(
            name="po",
            state=AgentState.ABSENT,
            engine="simulated",
            runtime="process",
            model="small",
            port=quick.ports["po"],
            engine_port=quick.ports["po"] + 100,
        )
        assert await quick.status("po") == expected
        assert not quick.state.root.exists(), "it reads only"

    async def test_absent_with_a_choice(self, quick: Lab) -> None:
        report = await status.report(quick.host(engine="vllm-cpu"))
        assert {(each.engine, each.runtime) for each in report.agents} == {("vllm-cpu", "docker")}
        report = await status.report(quick.host(engine="vllm-cpu", runtime="process"))
        assert {(each.engine, each.runtime) for each in report.agents} == {("vllm-cpu", "process")}

    async def test_ready(self, quick: Lab, engines: ServingRuntime) -> None:
        result = await quick.launch("dev")
        instance = await engines.only()
        now = await quick.status("dev")
        assert now.state is AgentState.READY
        assert now.base_url == result.base_url == f"http://localhost:{quick.ports['dev']}/v1"
        assert (now.instance_id, now.started_at) == (result.instance_id, instance.started_at)
        assert result.ready_after_s is not None
        assert now.ready_after_s == pytest.approx(result.ready_after_s, abs=0.001)
        assert (now.phase, now.cause) == (None, None)

    async def test_starting_says_the_phase_it_is_in(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.behaviours["dev"] = Behaviour(
            lines=("vLLM server version 0.32.0", "Dynamo bytecode transform time")
        )
        engines.manners["dev"] = Manners(healthy=False)
        async with _launching(quick, "dev", Step.LOADING):
            now = await quick.status("dev")
            assert (now.state, now.phase, now.base_url) == (AgentState.STARTING, "compiling", None)
            assert now.started_at is not None
            report = await status.report(quick.host())
            assert report.owner is not None
            assert (report.owner.verb, report.owner.step, report.owner.agent) == (
                "launch dev",
                "loading",
                "dev",
            )

    async def test_starting_until_it_completed_even_if_it_is_healthy(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        spec = await _created(quick, engines, "dev")
        await engines.start(spec.id)
        async with own_card(quick.state, CARD_ID, verb="launch dev") as lock:
            lock.tell("loading", "dev")
            assert (await quick.status("dev")).state is AgentState.STARTING
            lock.tell("loading", "po")
            assert (await quick.status("dev")).state is AgentState.READY

    async def test_starting_without_an_owner_was_left_behind(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        engines.manners["dev"] = Manners(healthy=False)
        spec = await _created(quick, engines, "dev")
        assert (await quick.status("dev")).state is AgentState.ABSENT, "it was never started"
        await engines.start(spec.id)
        assert (await quick.status("dev")).state is AgentState.STARTING

    async def test_draining_and_stopping(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.manners["po"] = Manners(requests=1)
        await quick.launch("po")
        held = engines.held["stop", "po"] = asyncio.Event()
        async with _launching(quick, "dev", Step.DRAINING):
            now = await quick.status("po")
            assert now.state is AgentState.DRAINING
            assert now.base_url is not None, "it still finishes what it has"
            engines.manners["po"].requests = 0
            await quick.until(Step.STOPPING)
            now = await quick.status("po")
            assert (now.state, now.base_url) == (AgentState.STOPPING, None)
            assert (await quick.status("dev")).state is AgentState.ABSENT
            held.set()

    async def test_absent_while_it_waits_to_be_put_back(self, quick: Lab, engines: ServingRuntime) -> None:
        await quick.launch("po")
        engines.manners["dev"] = Manners(healthy=False)
        async with _launching(quick, "dev", Step.LOADING):
            assert (await quick.status("po")).state is AgentState.ABSENT
            assert (await quick.status("dev")).state is AgentState.STARTING

    async def test_failed_with_the_cause_its_log_gives(self, quick: Lab, engines: ServingRuntime) -> None:
        await quick.launch("dev")
        engines.say((await engines.only()).spec.id, OUT_OF_MEMORY)
        engines.exit((await engines.only()).spec.id, 1)
        now = await quick.status("dev")
        assert now.state is AgentState.FAILED
        assert "memory" in str(now.cause)
        assert (now.base_url, now.phase) == (None, None)
        report = await status.report(quick.host())
        assert report.card is None, "nothing runs"

    async def test_failed_without_a_word(self, quick: Lab, engines: ServingRuntime) -> None:
        await quick.launch("dev")
        engines.exit((await engines.only()).spec.id, 3)
        assert (await quick.status("dev")).cause == "dev ended with exit code 3"

    async def test_failed_and_nobody_saw_it(self, quick: Lab, engines: ServingRuntime) -> None:
        await quick.launch("dev")
        engines.exit((await engines.only()).spec.id, None)
        assert (await quick.status("dev")).cause == "nobody saw it end"

    async def test_failed_while_it_runs_and_answers_no_more(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        engines.behaviours["dev"] = Behaviour(lines=("Application startup complete",))
        await quick.launch("dev")
        engines.manners["dev"] = Manners(healthy=False)
        now = await quick.status("dev")
        assert now.state is AgentState.FAILED
        assert "agent-manager restart" in str(now.cause)

    async def test_the_one_that_runs_stands_for_an_agent_else_the_newest(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        engines.fails["remove", "dev"] = HostNotReady("not now")
        old = await quick.launch("dev")
        new = await quick.launch("dev", again=True)
        assert (await quick.status("dev")).instance_id == new.instance_id
        await engines.stop(new.instance_id, grace_s=0)
        await engines.start(old.instance_id)
        assert (await quick.status("dev")).instance_id == old.instance_id


class TestTheWholePicture:
    async def test_with_an_agent_on_the_card(self, quick: Lab) -> None:
        await quick.launch("dev")
        report = await status.report(quick.host())
        assert [each.name for each in report.agents] == ["po", "dev"]
        assert [each.state for each in report.agents] == [AgentState.ABSENT, AgentState.READY]
        assert report.card is not None
        assert (report.card.id, report.card.simulated) == (CARD_ID, True)
        assert (report.owner, report.notes) == (None, ())

    async def test_a_runtime_that_does_not_answer_is_a_note(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        await quick.launch("dev")
        host = quick.host(runtimes={"docker": Deaf(), "process": engines})
        report = await status.report(host)
        assert report.notes == ("runtime docker does not answer: cannot connect to the Docker daemon",)
        assert [each.state for each in report.agents] == [AgentState.ABSENT, AgentState.READY]

    async def test_an_owner_of_an_empty_card_is_shown(self, quick: Lab) -> None:
        async with own_card(quick.state, CARD_ID, verb="launch dev"):
            report = await status.report(quick.host())
        assert report.owner is not None
        assert report.owner.verb == "launch dev"
        assert (await status.report(quick.host())).owner is None

    async def test_a_catalog_without_the_agent_that_runs_does_not_show_it(self, quick: Lab) -> None:
        await quick.launch("dev")
        quick.catalog_path.write_text(quick.catalog_path.read_text().replace("\n  dev:", "\n  tester:"))
        report = await status.report(quick.host())
        assert {each.name: each.state for each in report.agents} == {
            "po": AgentState.ABSENT,
            "tester": AgentState.ABSENT,
        }

    async def test_a_state_folder_that_cannot_be_looked_into_is_a_note(self, quick: Lab) -> None:
        # Longer than a name may be: as good as a folder of another user, for root too.
        quick.state.root.mkdir()
        state = StateDir(quick.state.root / ("x" * 300))
        host = quick.host(state=state, runtimes={"process": ProcessRuntime(state)})
        report = await status.report(host)
        assert {each.state for each in report.agents} == {AgentState.ABSENT}
        (note,) = report.notes
        assert str(state.root) in note


class TestLogs:
    async def test_of_one_that_runs(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.behaviours["dev"] = Behaviour(lines=("one", "two", "three"))
        await quick.launch("dev")
        assert await quick.log("dev") == ["one", "two", "three"]
        assert await quick.log("dev", tail=1) == ["three"]

    async def test_followed_to_its_end(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.behaviours["dev"] = Behaviour(lines=("one",))
        await quick.launch("dev")
        instance = await engines.only()
        seen = []
        async for line in status.agent_logs(quick.host(), "dev", tail=None, since=None, follow=True):
            seen.append(line.text)
            if line.text == "one":
                engines.say(instance.spec.id, "two")
                engines.exit(instance.spec.id, 0)
        assert seen == ["one", "two"]

    async def test_of_one_that_failed(self, quick: Lab, engines: ServingRuntime) -> None:
        await quick.launch("dev")
        instance = await engines.only()
        engines.say(instance.spec.id, OUT_OF_MEMORY)
        engines.exit(instance.spec.id, 1)
        assert await quick.log("dev") == [OUT_OF_MEMORY]

    async def test_of_the_newest_that_was_removed(self, quick: Lab, engines: ServingRuntime) -> None:
        for word in ("old", "new"):
            engines.behaviours["dev"] = Behaviour(lines=(word,))
            await quick.launch("dev")
            await quick.stop("dev")
        assert await quick.log("dev") == ["new"]

    async def test_since(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.behaviours["dev"] = Behaviour(lines=("early",))
        await quick.launch("dev")
        instance = await engines.only()
        *_, early = [line async for line in engines.logs(instance.spec.id)]
        await asyncio.sleep(0.001)
        engines.say(instance.spec.id, "late")
        *_, late = [line async for line in engines.logs(instance.spec.id)]
        assert late.at > early.at
        for _ in ("running", "kept"):
            lines = status.agent_logs(quick.host(), "dev", tail=None, since=late.at, follow=False)
            assert [line.text async for line in lines] == ["late"]
            with contextlib.suppress(NotRunning):
                await quick.stop("dev")

    async def test_of_one_that_never_ran(self, quick: Lab) -> None:
        with pytest.raises(NotRunning, match="dev has never run here, so there is no log") as raised:
            await quick.log("dev")
        assert raised.value.exit_code == 5
        assert "agent-manager launch dev" in str(raised.value.hint)

    async def test_of_an_agent_that_is_unknown(self, quick: Lab) -> None:
        with pytest.raises(AgentUnknown, match="no agent named 'dve'") as raised:
            await quick.log("dve")
        assert "dev" in str(raised.value.hint)

    async def test_of_one_that_left_the_catalog_and_runs(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.behaviours["dev"] = Behaviour(lines=("hello",))
        await quick.launch("dev")
        quick.catalog_path.write_text(quick.catalog_path.read_text().replace("\n  dev:", "\n  tester:"))
        assert await quick.log("dev") == ["hello"]


@contextlib.asynccontextmanager
async def _launching(lab: Lab, agent: str, step: Step) -> AsyncIterator[None]:
    """A launch that is at `step`; it is given up in the end."""
    launch = asyncio.create_task(lab.launch(agent))
    try:
        await lab.until(step)
        yield
    finally:
        launch.cancel()
        await asyncio.gather(launch, return_exceptions=True)
