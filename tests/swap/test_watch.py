"""Samples of the card and of the agents on it, with engines in memory and with real simulated ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from msgspec import Struct
from msgspec.structs import replace

from agent_manager.errors import HostNotReady, NoGpu
from agent_manager.gpu.base import GIB, Card, MemoryHolder
from agent_manager.gpu.host import CARD_ID as CPU
from agent_manager.gpu.samplers import MemorySampler
from agent_manager.gpu.simulated import CARD_ID as SIMULATED
from agent_manager.gpu.simulated import claim
from agent_manager.swap import watch as watching
from agent_manager.swap.lock import own_card
from agent_manager.swap.notices import AgentState, Step
from agent_manager.swap.watch import watch
from tests.fakes.memory_runtime import Behaviour

from .engines import Manners, tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from agent_manager.gpu.base import GpuSampler
    from agent_manager.runtimes.base import Instance
    from agent_manager.swap.host import Host
    from agent_manager.swap.stats import StatsSample

    from .conftest import Lab
    from .engines import ServingRuntime

GPU = "GPU-00000000-aaaa"
CARD = Card(id=GPU, name="A card", total_bytes=16 * GIB, free_bytes=4 * GIB)
SOON_S = 0.01
CONCURRENCY = "GPU KV cache size: 8,192 tokens, Maximum concurrency for 4,096 tokens per request: 2.00x"


@dataclass(kw_only=True)
class Cards:
    """The cards of a host, by selector (None is the first GPU).

    `opened` are the selectors that samplers were asked for, `closed` those whose samplers were closed.
    """

    there: dict[str | None, Card | HostNotReady] = field(default_factory=dict)
    opened: list[str | None] = field(default_factory=list)
    closed: list[str | None] = field(default_factory=list)

    def __call__(self, selector: str | None) -> GpuSampler:
        self.opened.append(selector)
        return _Sampler(_Probe(self, selector))


class _Probe(Struct, frozen=True):
    cards: Cards
    selector: str | None

    def read(self) -> Card:
        found = self.cards.there.get(self.selector, NoGpu("there is no GPU on this machine"))
        if isinstance(found, HostNotReady):
            raise found
        return found


class _Sampler(MemorySampler, frozen=True):
    probe: _Probe

    def close(self) -> None:
        self.probe.cards.closed.append(self.probe.selector)


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_PERIOD_S", 0.0)
    monkeypatch.setattr(watching, "ASK_PERIOD_S", 0.0)


@contextlib.asynccontextmanager
async def samples(host: Host, cards: Cards | None = None) -> AsyncIterator[AsyncIterator[StatsSample]]:
    async with contextlib.aclosing(watch(host, interval_s=SOON_S, sampler_of=cards)) as generator:
        yield generator


async def first(host: Host, cards: Cards | None = None) -> StatsSample:
    async with samples(host, cards) as generator:
        return await anext(generator)


async def until(generator: AsyncIterator[StatsSample], met: Callable[[StatsSample], bool]) -> StatsSample:
    async with asyncio.timeout(20):
        async for sample in generator:
            if met(sample):
                return sample
    raise AssertionError("the samples ended")


def chosen(lab: Lab) -> Host:
    return lab.host(engine="simulated")


async def on_gpu(engines: ServingRuntime, lab: Lab, agent: str, card: str = GPU) -> Instance:
    """An engine of that agent that runs on a GPU."""
    await lab.launch(agent)
    spec = next(each.spec for each in await engines.list() if each.spec.agent == agent)
    await engines.stop(spec.id, grace_s=0)
    await engines.remove(spec.id)
    await engines.create(replace(spec, id=f"{agent}-00000001", engine="vllm", card=card))
    await engines.start(f"{agent}-00000001")
    return next(each for each in await engines.list() if each.spec.agent == agent)


class TestTheCard:
    async def test_is_that_of_the_engine_that_was_chosen(self, quick: Lab) -> None:
        sample = await first(chosen(quick))
        assert sample.gpu is not None
        assert (sample.gpu.uuid, sample.gpu.simulated, sample.agents) == (SIMULATED, True, ())
        sample = await first(quick.host(engine="vllm-cpu"))
        assert sample.gpu is not None
        assert sample.gpu.uuid == CPU

    async def test_is_the_simulated_one_where_the_catalog_says_so(self, quick: Lab) -> None:
        sample = await first(quick.host())
        assert sample.gpu is not None
        assert sample.gpu.uuid == SIMULATED

    async def test_is_the_first_gpu_when_nothing_else_is_said(self, quick: Lab) -> None:
        cards = Cards(there={None: CARD})
        assert (await first(quick.host(engine="vllm"), cards)).gpu
        assert cards.closed == cards.opened == [None]

    async def test_is_the_one_of_the_environment(self, quick: Lab) -> None:
        cards = Cards(there={"1": CARD})
        host = quick.host(engine="vllm", environ={"AGENT_MANAGER_GPU": "1"})
        assert (await first(host, cards)).gpu
        assert cards.opened == ["1"]

    async def test_is_the_one_our_engines_run_on(self, quick: Lab, engines: ServingRuntime) -> None:
        await on_gpu(engines, quick, "dev")
        cards = Cards(there={None: replace(CARD, id="GPU-other"), GPU: CARD})
        sample = await first(quick.host(), cards)
        assert cards.opened == [GPU]
        assert [agent.name for agent in sample.agents] == ["dev"]

    @pytest.mark.parametrize("default", ["", "engine: vllm"])
    async def test_is_the_simulated_one_without_a_gpu_and_says_why(self, quick: Lab, default: str) -> None:
        await quick.launch("dev")
        quick.catalog_path.write_text(
            quick.catalog_path.read_text().replace("engine: simulated\n", f"{default}\n", 1)
        )
        cards = Cards()
        cards.there[SIMULATED] = replace(CARD, id=SIMULATED, simulated=True)
        sample = await first(quick.host(), cards)
        assert sample.gpu is not None
        assert sample.gpu.simulated
        assert sample.notes == ("there is no GPU on this machine; shown is SIM-0",)
        assert [agent.name for agent in sample.agents] == ["dev"]

    async def test_must_be_there_at_first(self, quick: Lab) -> None:
        cards = Cards()
        with pytest.raises(NoGpu, match="there is no GPU on this machine"):
            await first(quick.host(engine="vllm"), cards)
        assert cards.closed == cards.opened == [None]

    async def test_may_go_away_and_come_back(self, quick: Lab) -> None:
        cards = Cards(there={None: CARD})
        async with samples(quick.host(engine="vllm"), cards) as generator:
            assert (await anext(generator)).gpu
            cards.there[None] = NoGpu("the GPU is lost")
            gone = await anext(generator)
            assert (gone.gpu, gone.notes) == (None, ("the GPU is lost; it is read again when it is back",))
            cards.there[None] = CARD
            back = await anext(generator)
        assert back.gpu is not None
        assert back.notes == ()


class TestTheAgents:
    async def test_one_that_serves(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.behaviours["dev"] = Behaviour(lines=("loading", CONCURRENCY))
        engines.manners["dev"] = Manners(requests=3)
        await quick.launch("dev")
        (agent,) = (await first(chosen(quick))).agents
        instance = await engines.only()
        assert (agent.name, agent.state, agent.engine, agent.runtime) == (
            "dev",
            AgentState.READY,
            "simulated",
            "process",
        )
        assert (agent.port, agent.claim_bytes) == (quick.ports["dev"], instance.spec.claim_bytes)
        assert (agent.context, agent.concurrency, agent.phase) == (4096, 2.0, None)
        assert set(agent.pids) == await engines.pids(instance.spec.id)
        assert agent.traffic is not None
        assert (agent.traffic.running, agent.traffic.generation_tokens_per_s) == (3, None)

    async def test_the_memory_of_its_processes_and_of_no_other(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        instance = await on_gpu(engines, quick, "dev")
        (pid,) = await engines.pids(instance.spec.id)
        others = MemoryHolder(pid=1, name="init", used_bytes=GIB)
        mine = MemoryHolder(pid=pid, name="python", used_bytes=5 * GIB)
        cards = Cards(there={GPU: replace(CARD, holders=(others, mine))})
        async with samples(quick.host(), cards) as generator:
            (agent,) = (await anext(generator)).agents
            assert agent.used_bytes == 5 * GIB
            # As under WSL2: processes show, what they hold does not.
            cards.there[GPU] = replace(CARD, holders=(replace(mine, used_bytes=None),))
            (agent,) = (await anext(generator)).agents
        assert agent.used_bytes is None
        assert (agent.claim_bytes, agent.pids) == (instance.spec.claim_bytes, (pid,))

    async def test_a_claim_from_within_a_container_is_known_by_its_name(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        await quick.launch("dev")
        instance = await engines.only()
        with claim(quick.state.card(SIMULATED), instance.spec.id, GIB):
            (agent,) = (await first(chosen(quick))).agents
        assert agent.used_bytes == GIB
        assert os.getpid() in agent.pids

    async def test_one_that_loads(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.manners["dev"] = Manners(healthy=False, requests=None)
        engines.behaviours["dev"] = Behaviour(
            lines=("vLLM server version 0.32", "Loading safetensors checkpoint shards:  40% Completed | 2/5")
        )
        await quick.leave_loading("dev")
        (agent,) = (await first(chosen(quick))).agents
        assert (agent.state, agent.phase, agent.phase_percent) == (AgentState.STARTING, "loading weights", 40)
        assert (agent.traffic, agent.concurrency) == (None, None)

    async def test_one_that_does_not_answer_any_more(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.behaviours["dev"] = Behaviour(lines=("Application startup complete",))
        await quick.launch("dev")
        engines.manners["dev"] = Manners(healthy=False)
        (agent,) = (await first(chosen(quick))).agents
        assert agent.state is AgentState.FAILED

    @pytest.mark.parametrize(
        ("step", "shown"),
        [
            (Step.DRAINING, AgentState.DRAINING),
            (Step.STOPPING, AgentState.STOPPING),
            (Step.LOADING, AgentState.STARTING),
        ],
    )
    async def test_one_that_an_operation_is_at(self, quick: Lab, step: Step, shown: AgentState) -> None:
        await quick.launch("dev")
        async with own_card(quick.state, SIMULATED, verb="stop dev") as lock:
            lock.tell(step.value, "dev")
            (agent,) = (await first(chosen(quick))).agents
        assert agent.state is shown

    async def test_one_on_another_card_is_named(self, quick: Lab, engines: ServingRuntime) -> None:
        await on_gpu(engines, quick, "dev")
        sample = await first(chosen(quick))
        assert (sample.agents, sample.notes) == ((), (f"not shown: dev is on {GPU}",))

    async def test_come_and_go(self, quick: Lab) -> None:
        async with samples(chosen(quick)) as generator:
            assert (await anext(generator)).agents == ()
            await quick.launch("dev")
            await until(generator, lambda sample: [each.name for each in sample.agents] == ["dev"])
            await quick.launch("po")
            await until(generator, lambda sample: [each.name for each in sample.agents] == ["po"])
            await quick.stop("po")
            await until(generator, lambda sample: not sample.agents)

    async def test_another_process_on_the_card_is_looked_into_at_once(
        self, quick: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watching, "LOOK_PERIOD_S", 10_000.0)
        cards = Cards(there={SIMULATED: replace(CARD, id=SIMULATED)})
        async with samples(chosen(quick), cards) as generator:
            await anext(generator)
            await quick.launch("dev")
            cards.there[SIMULATED] = replace(
                CARD, id=SIMULATED, holders=(MemoryHolder(pid=1, name="python", used_bytes=GIB),)
            )
            await until(generator, lambda sample: [each.name for each in sample.agents] == ["dev"])

    async def test_what_an_operation_waits_for_is_a_note(self, quick: Lab) -> None:
        async with own_card(quick.state, SIMULATED, verb="launch dev") as lock:
            lock.tell(Step.WAITING_FOR_MEMORY.value, "dev")
            (note,) = (await first(chosen(quick))).notes
        assert note.startswith("launch dev (pid ")
        assert note.endswith("): waiting for memory dev")

    async def test_a_slow_one_keeps_no_sample_waiting(
        self, quick: Lab, engines: ServingRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await quick.launch("dev")
        held = asyncio.Event()
        async with samples(chosen(quick)) as generator:
            await anext(generator)

            async def never(_: str) -> frozenset[int]:
                await held.wait()
                return frozenset({7})

            with monkeypatch.context() as patch:
                patch.setattr(engines, "pids", never)
                for _ in range(3):
                    sample = await asyncio.wait_for(anext(generator), 20)
                    assert [each.pids for each in sample.agents] != [(7,)]
            held.set()
            await until(generator, lambda sample: sample.agents[0].pids == (7,))


class TestRealEngines:
    async def test_traffic_and_swaps(self, lab: Lab) -> None:
        lab.catalog(inter_token_ms=5)
        await lab.launch("po")
        await lab.launch("dev")
        async with samples(chosen(lab)) as generator:
            sample = await anext(generator)
            (agent,) = sample.agents
            assert agent.used_bytes == agent.claim_bytes
            assert agent.concurrency
            assert [(swap.left, swap.arrived) for swap in sample.swaps] == [("po", "dev"), (None, "po")]
            assert all(swap.seconds > 0 for swap in sample.swaps)
            asking = asyncio.create_task(_complete(lab.ports["dev"]))
            busy = await until(generator, lambda sample: bool(_tokens_per_s(sample)))
            await asking
            await until(generator, lambda sample: _tokens_per_s(sample) == 0)
        assert busy.agents[0].traffic is not None
        assert busy.agents[0].traffic.running == 1

    async def test_a_swap_that_failed_is_none(self, lab: Lab) -> None:
        lab.catalog(dev="oom")
        await lab.launch("po")
        with pytest.raises(Exception, match="dev"):
            await lab.launch("dev")
        swaps = (await first(chosen(lab))).swaps
        assert [swap.arrived for swap in swaps] == ["po"]


async def test_so_many_and_no_more(quick: Lab) -> None:
    seen = [sample async for sample in watch(chosen(quick), interval_s=SOON_S, count=3)]
    assert len(seen) == 3
    assert sorted(sample.at for sample in seen) == [sample.at for sample in seen]


async def test_leaves_no_task_behind(
    quick: Lab, engines: ServingRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await quick.launch("dev")
    before = tasks()
    async with samples(chosen(quick)) as generator:
        await anext(generator)
        with monkeypatch.context() as patch:
            patch.setattr(engines, "pids", lambda _: asyncio.Event().wait())
            await anext(generator)
    assert tasks() == before


def _tokens_per_s(sample: StatsSample) -> float | None:
    traffic = sample.agents[0].traffic if sample.agents else None
    return traffic.generation_tokens_per_s if traffic else None


async def _complete(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"model": "dev", "prompt": "Hi", "max_tokens": 200, "ignore_eos": true}'
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    await reader.read()
    writer.close()
    await writer.wait_closed()
