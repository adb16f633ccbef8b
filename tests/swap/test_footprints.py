"""What engines said of their memory: kept for the very same setup, used by the next plan, never in anybody's way."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from agent_manager.catalog.agents import Agent, EngineSettings, Model
from agent_manager.engines.figures import FigureReader
from agent_manager.engines.vllm import VllmEngine
from agent_manager.gpu.base import GIB, Card
from agent_manager.planning.base import Measured
from agent_manager.runtimes.base import InstanceSpec
from agent_manager.swap.footprints import Footprints, Setup, setup_of
from agent_manager.swap.readiness import LoadWatch
from tests.engines.test_phases import GPU

from .conftest import eventually

if TYPE_CHECKING:
    from agent_manager.state import StateDir
    from tests.conftest import FreePort

    from .engines import ServingRuntime

DEV = Setup(
    agent="dev",
    engine="vllm",
    model="small",
    card="GPU-1",
    source="Qwen/Qwen2.5-7B-Instruct-AWQ",
    revision="b" * 40,
    size_bytes=None,
    build="vllm/vllm-openai:v0.32.0",
    extra="d1",
)
SAID = Measured(
    weights_bytes=5 * GIB, kv_cache_bytes=7 * GIB, kv_tokens=131_072, context=4096, utilization=0.92
)


def test_figures_are_remembered_for_the_same_setup(state: StateDir) -> None:
    footprints = Footprints(state)
    assert footprints.last(DEV) is None
    footprints.record(DEV, SAID)
    footprints.record(DEV, replace(SAID, kv_tokens=131_088))

    assert Footprints(state).last(DEV) == replace(SAID, kv_tokens=131_088)


@pytest.mark.parametrize(
    "change",
    [
        {"agent": "po"},
        {"engine": "vllm-cpu"},
        {"model": "other"},
        {"card": "GPU-2"},
        {"source": "Qwen/Other"},
        {"revision": "c" * 40},
        {"revision": None},
        {"size_bytes": 7},
        {"build": "vllm/vllm-openai:v0.33.0"},
        {"extra": "d2"},
    ],
)
def test_figures_of_another_setup_are_not_used(state: StateDir, change: dict[str, Any]) -> None:
    footprints = Footprints(state)
    footprints.record(DEV, SAID)

    assert footprints.last(replace(DEV, **change)) is None


def test_agents_models_and_cards_have_their_own(state: StateDir) -> None:
    footprints = Footprints(state)
    others = [replace(DEV, agent="po"), replace(DEV, model="other"), replace(DEV, card="GPU-2")]
    for tokens, setup in enumerate((DEV, *others), start=1):
        footprints.record(setup, replace(SAID, kv_tokens=tokens))
    found = [footprints.last(setup) for setup in (DEV, *others)]

    assert [measured and measured.kv_tokens for measured in found] == [1, 2, 3, 4]


def test_the_latest_setup_takes_the_place_of_the_one_before(state: StateDir) -> None:
    footprints = Footprints(state)
    footprints.record(DEV, SAID)
    newer = replace(DEV, build="vllm/vllm-openai:v0.33.0")
    footprints.record(newer, SAID)

    assert footprints.last(newer) == SAID
    assert footprints.last(DEV) is None
    assert len(json.loads((state.cache / "footprints.json").read_text())) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: "",
        lambda _: "{",
        lambda _: "[]",
        lambda _: '{"dev/vllm/small/GPU-1": 7}',
        lambda text: text.replace('"kv_tokens": 131072', '"kv_tokens": "many"'),
        lambda text: text.replace('"kv_tokens": 131072', '"kv_tokens": true'),
        lambda text: text.replace('"kv_tokens"', '"tokens"'),
        lambda text: text.replace('"eager": false', '"eager": null'),
        lambda text: text.replace('"measured": {', '"measured": 7, "else": {'),
        lambda _: "\udcff",
    ],
)
def test_what_cannot_be_read_is_forgotten_and_replaced(state: StateDir, spoil: Any) -> None:  # noqa: ANN401 - a lambda
    footprints = Footprints(state)
    footprints.record(DEV, SAID)
    path = state.cache / "footprints.json"
    path.write_text(spoil(path.read_text()), errors="surrogateescape")
    assert footprints.last(DEV) is None
    footprints.record(DEV, SAID)

    assert footprints.last(DEV) == SAID


def test_a_disk_that_takes_nothing_is_no_failure(state: StateDir) -> None:
    state.root.mkdir()
    state.cache.write_text("a file in the folder's place: as good as a full disk, for root too")
    footprints = Footprints(state)
    footprints.record(DEV, SAID)

    assert footprints.last(DEV) is None


def test_a_setup_says_what_runs_the_engine_and_keeps_no_secret() -> None:
    model = Model(name="small", repo="Qwen/Qwen2.5-7B-Instruct-AWQ")
    agent = Agent(name="dev", model=model, port=8001, context=4096, sequences=4, extra_args=("--x", "hush"))
    settings = EngineSettings(name="vllm", command=("vllm", "serve"), image="image:1", env={"B": "hush"})
    card = Card(id="GPU-1", name="GPU", total_bytes=1, free_bytes=1)

    def made(agent: Agent = agent, settings: EngineSettings = settings, runtime: str = "docker") -> Setup:
        return setup_of(agent, VllmEngine(), settings, card, runtime=runtime, revision="b" * 40, facts=None)

    assert (made().build, made(runtime="process").build) == ("image:1", "vllm serve")
    assert (made().source, made().revision) == ("Qwen/Qwen2.5-7B-Instruct-AWQ", "b" * 40)
    assert "hush" not in repr(made())
    assert made(replace(agent, extra_args=("--y",))) != made()
    assert made(settings=replace(settings, env={"B": "else"})) != made()
    assert made(replace(agent, sampling={"temperature": 0.1}, port=9000)) == made(), "neither takes memory"


async def test_figures_that_come_later_than_the_answer_are_waited_for(
    engines: ServingRuntime, free_port: FreePort
) -> None:
    port = free_port()
    spec = InstanceSpec(
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
    figures = FigureReader()
    watch = LoadWatch(engines, spec, listener=lambda _: None, stall_timeout_s=900, figures=figures)

    async def say_late() -> None:
        await eventually(lambda: engines.completed == ["dev"], "it answered")
        for line in GPU:
            engines.say(spec.id, line)

    await engines.create(spec)
    await engines.start(spec.id)
    await asyncio.gather(watch.until_ready(), say_late())

    assert figures.measured is not None
    assert (figures.measured.kv_tokens, figures.measured.graph_bytes) == (66_224, round(0.61 * GIB))
