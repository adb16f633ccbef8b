"""Following a load: what is told, when it counts as ready, when as failed, and with which cause."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from agent_manager.errors import EngineFailed
from agent_manager.runtimes.base import Activity, InstanceSpec
from agent_manager.swap.notices import LoadProgress, Notice, Step, StepBegan
from agent_manager.swap.readiness import LoadWatch
from tests.fakes.memory_runtime import Behaviour

from .conftest import eventually
from .engines import Manners, ServingRuntime, tasks

if TYPE_CHECKING:
    from tests.conftest import FreePort

LINES = (
    "(APIServer pid=1) INFO 11-20 10:00:00 [api_utils.py:1] vLLM server version 0.32.0",
    "(EngineCore pid=2) INFO 11-20 10:00:01 [core.py:1] Initializing a V1 LLM engine (v0.32.0)",
    "(EngineCore pid=2) Loading safetensors checkpoint shards:  50% Completed | 1/2",
    "(EngineCore pid=2) Loading safetensors checkpoint shards:  25% Completed | 1/4",
    "(EngineCore pid=2) Loading safetensors checkpoint shards: 100% Completed | 2/2",
    "nothing that anybody knows",
)


@pytest.fixture
def spec(free_port: FreePort) -> InstanceSpec:
    port = free_port()
    return InstanceSpec(
        id="dev-00000001",
        agent="dev",
        engine="vllm",
        model="small",
        card="GPU-1",
        claim_bytes=1,
        argv=("vllm", "serve"),
        engine_port=port + 100,
        agent_port=port,
    )


class Watched:
    """An instance that was started, and what is told while it loads."""

    def __init__(self, runtime: ServingRuntime, spec: InstanceSpec, *, stall_timeout_s: float = 900) -> None:
        self.runtime = runtime
        self.spec = spec
        self.told: list[Notice] = []
        self.watch = LoadWatch(runtime, spec, listener=self.told.append, stall_timeout_s=stall_timeout_s)

    async def load(self) -> None:
        """Start the engine and follow it."""
        await self.runtime.create(self.spec)
        await self.runtime.start(self.spec.id)
        before = tasks()
        try:
            await self.watch.until_ready()
        finally:
            assert tasks() <= before, "no watcher is left"

    @property
    def phases(self) -> list[tuple[str, int | None]]:
        return [(n.phase.name, n.phase.percent) for n in self.told if isinstance(n, LoadProgress)]


class StubbornlyBusy(ServingRuntime):
    """Uses as much CPU as there is while it loads, and answers after `looks` looks at that."""

    looks = 8

    async def activity(self, instance_id: str) -> Activity:
        assert await self.pids(instance_id)
        self.looks -= 1
        self.manners["dev"].healthy = self.looks <= 0
        return Activity(cpu_seconds=time.monotonic(), disk_bytes=0)


class Talkative(StubbornlyBusy):
    """Uses nothing, but says something each time."""

    async def activity(self, instance_id: str) -> Activity:
        await super().activity(instance_id)
        self.say(instance_id, "still here")
        await asyncio.sleep(0.01)  # the log is followed meanwhile
        return Activity(cpu_seconds=0, disk_bytes=0)


class Reading(StubbornlyBusy):
    """Uses no CPU, but reads from disk."""

    async def activity(self, instance_id: str) -> Activity:
        await super().activity(instance_id)
        return Activity(cpu_seconds=0, disk_bytes=-self.looks)


async def test_phases_are_told_as_they_come_and_never_go_back(
    engines: ServingRuntime, spec: InstanceSpec
) -> None:
    manners = engines.manners["dev"] = Manners(healthy=False)
    engines.behaviours["dev"] = Behaviour(lines=LINES)
    watched = Watched(engines, spec)
    load = asyncio.create_task(watched.load())
    await eventually(lambda: len(watched.phases) == 4, "four phases")
    assert watched.phases == [
        ("starting vLLM", None),
        ("starting the engine", None),
        ("loading weights", 50),
        ("loading weights", 100),
    ]
    manners.healthy = True
    await load
    assert watched.told[-1] == StepBegan(step=Step.CHECKING, agent="dev")
    assert engines.completed == ["dev"]


async def test_a_health_that_lies_is_not_believed(engines: ServingRuntime, spec: InstanceSpec) -> None:
    engines.manners["dev"] = Manners(completes=False)
    with pytest.raises(EngineFailed, match="dev refused a one-token completion: no reason given"):
        await Watched(engines, spec).load()


async def test_another_engine_at_the_port(engines: ServingRuntime, spec: InstanceSpec) -> None:
    engines.manners["dev"] = Manners(serves_as="gpt-2")
    with pytest.raises(EngineFailed, match=f"port {spec.engine_port} serves gpt-2, not dev") as raised:
        await Watched(engines, spec).load()
    assert str(spec.engine_port) in str(raised.value.hint)
    assert engines.completed == []


async def test_an_engine_that_agents_share_must_serve_them_all(
    engines: ServingRuntime, spec: InstanceSpec
) -> None:
    shared = replace(spec, shared_with=("po",))
    engines.manners["dev"] = Manners(serves_as="dev")
    with pytest.raises(EngineFailed, match="serves dev, not dev and po"):
        await Watched(engines, shared).load()


async def test_names_that_are_late_are_asked_for_again(engines: ServingRuntime, spec: InstanceSpec) -> None:
    engines.manners["dev"] = Manners(deaf_to_models=2)
    await Watched(engines, spec).load()
    assert engines.completed == ["dev"]


async def test_names_that_never_come(engines: ServingRuntime, spec: InstanceSpec) -> None:
    engines.manners["dev"] = Manners(deaf_to_models=10**6)
    with pytest.raises(EngineFailed, match="serves no model, not dev"):
        await Watched(engines, spec).load()


async def test_an_engine_that_ends_is_told_with_the_cause_its_log_gives(
    engines: ServingRuntime, spec: InstanceSpec
) -> None:
    engines.behaviours["dev"] = Behaviour(
        lines=(*LINES, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."), exits=1
    )
    with pytest.raises(EngineFailed, match=r"dev did not start: .*memory") as raised:
        await Watched(engines, spec).load()
    assert raised.value.hint
    assert raised.value.where == "agents.dev"


async def test_an_engine_that_dies_of_its_first_request_is_told_with_its_cause(
    engines: ServingRuntime, spec: InstanceSpec
) -> None:
    engines.manners["dev"] = Manners(completes=None)
    with pytest.raises(EngineFailed, match=r"dev did not start: .*the tokenizer has no vocabulary"):
        await Watched(engines, spec).load()


async def test_an_engine_that_ends_without_a_word(engines: ServingRuntime, spec: InstanceSpec) -> None:
    engines.behaviours["dev"] = Behaviour(exits=0)
    with pytest.raises(EngineFailed, match="dev ended with exit code 0 and said nothing"):
        await Watched(engines, spec).load()


async def test_an_engine_whose_end_nobody_saw(engines: ServingRuntime, spec: InstanceSpec) -> None:
    engines.manners["dev"] = Manners(healthy=False)
    watched = Watched(engines, spec)
    load = asyncio.create_task(watched.load())
    await eventually(lambda: ("wait", spec.id) in engines.calls, "it is watched")
    engines.exit(spec.id, None)
    with pytest.raises(EngineFailed, match="dev ended: nobody saw it end"):
        await load


async def test_no_progress_ends_the_load_with_its_last_words(
    engines: ServingRuntime, spec: InstanceSpec
) -> None:
    engines.manners["dev"] = Manners(healthy=False)
    engines.behaviours["dev"] = Behaviour(lines=("vLLM server version 0.32.0", "I am thinking"))
    with pytest.raises(
        EngineFailed, match=r"dev made no progress for .*; its last words: I am thinking"
    ) as raised:
        await Watched(engines, spec, stall_timeout_s=0.2).load()
    assert "stall_timeout" in str(raised.value.hint)


async def test_no_progress_and_no_words(engines: ServingRuntime, spec: InstanceSpec) -> None:
    engines.manners["dev"] = Manners(healthy=False)
    with pytest.raises(EngineFailed, match="and said nothing"):
        await Watched(engines, spec, stall_timeout_s=0.2).load()


@pytest.mark.parametrize("kind", [StubbornlyBusy, Talkative, Reading])
async def test_a_load_may_take_any_time_while_it_makes_progress(
    kind: type[StubbornlyBusy], spec: InstanceSpec
) -> None:
    runtime = kind(manners={"dev": Manners(healthy=False)})
    # Looked at every 50 ms: it is ready after twice the time in which it must have made progress.
    await Watched(runtime, spec, stall_timeout_s=0.2).load()
    assert runtime.looks <= 0
    await runtime.close()


async def test_a_watch_that_is_cancelled_leaves_the_engine_alone(
    engines: ServingRuntime, spec: InstanceSpec
) -> None:
    engines.manners["dev"] = Manners(healthy=False)
    watched = Watched(engines, spec)
    load = asyncio.create_task(watched.load())
    await asyncio.wait((load,), timeout=0.1)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert await engines.running() == ["dev"]
