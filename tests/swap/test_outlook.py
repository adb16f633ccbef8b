"""What would fit a card: for agents, models and repositories, on the card here, of a size, or the reference card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from agent_manager.engines.base import CardKind
from agent_manager.errors import AgentUnknown, EngineFailed, UsageError
from agent_manager.gpu.base import GIB, Card, GpuFacts, MemoryHolder
from agent_manager.gpu.simulated import TOTAL_BYTES
from agent_manager.planning.base import Shortfall
from agent_manager.swap import operations
from agent_manager.swap.outlook import look_ahead
from agent_manager.swap.planned_card import CardOrigin, card_of_size
from tests.checkpoints.weights import TINY_CONFIG, write_checkpoint
from tests.fakes.memory_runtime import Behaviour

from .conftest import NoCard

if TYPE_CHECKING:
    from pathlib import Path

    from agent_manager.gpu.base import GpuProbe
    from agent_manager.planning.base import Fit
    from agent_manager.swap.outlook import AgentOutlook, Outlook
    from agent_manager.swap.planned_card import PlannedCard
    from tests.conftest import FreePort

    from .conftest import Lab
    from .engines import ServingRuntime

CARD_BYTES = int(15.47 * GIB)
LOG = """\
(EngineCore pid=7) INFO 11-20 15:42:17 [gpu_model_runner.py:5150] Model loading took 9.44 GiB memory and 4.1 s
(EngineCore pid=7) INFO 11-20 15:42:52 [gpu_worker.py:760] Available KV cache memory: 3.0 GiB
(EngineCore pid=7) INFO 11-20 15:42:52 [kv_cache_utils.py:2327] GPU KV cache size: 6,290,432 tokens, Maximum
(EngineCore pid=7) INFO 11-20 15:42:56 [model_runner.py:6582] Graph capturing finished in 4 secs, took 0.61 GiB
INFO:     Application startup complete.
"""
CATALOG = """\
version: 1
engine: vllm
models:
  large: {{repo: Qwen/Qwen2.5-32B-Instruct-AWQ}}
  mid: {{repo: Qwen/Qwen3-14B-AWQ}}
  small: {{repo: Qwen/Qwen2.5-7B-Instruct-AWQ}}
  smaller: {{repo: Qwen/Qwen3-4B-AWQ}}
  tiny: {{path: {folder}}}
agents:
  architect: {{model: mid, port: 8000, context: 32k, kv_cache_dtype: fp8}}
  dev: {{model: small, port: 8001, context: 16k, sequences: 8}}
  po: {{model: smaller, port: 8002, context: 8k}}
  odd: {{model: tiny, port: 8003, context: 2k}}
profiles:
  offload:
    agents: {{architect: {{model: large, context: 8k, sequences: 1, cpu_offload: 8GiB, eager: true}}}}
"""


CARD = Card(
    id="GPU-1",
    name="NVIDIA GeForce RTX 5060 Ti",
    total_bytes=CARD_BYTES,
    free_bytes=CARD_BYTES - GIB,
    holders=(MemoryHolder(pid=812, name="gnome-shell", used_bytes=GIB),),
)
"""Of which a desktop holds some."""


@dataclass(frozen=True)
class OneGpu:
    """The reader of a GPU."""

    card: Card = CARD

    def read(self) -> Card:
        return self.card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint on this disk."""
    folder = tmp_path / "tiny"
    write_checkpoint(folder, {"model.safetensors": {"model.embed_tokens.weight": 256_000}}, TINY_CONFIG)
    return folder


@pytest.fixture
def planning(quick: Lab, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A catalog for a GPU, on a machine that does not ask the Hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # The library reads that when it is imported, which another test may have done before.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    quick.catalog_path.write_text(CATALOG.format(folder=folder))
    return quick


async def look(lab: Lab, *names: str, gpu: str | PlannedCard | None = None, **changes: Any) -> Outlook:  # noqa: ANN401
    asked = card_of_size(gpu) if isinstance(gpu, str) else gpu
    return await look_ahead(lab.host(**changes), names, asked=asked)


async def only(lab: Lab, name: str, gpu: str | PlannedCard | None = "16GiB", **changes: Any) -> AgentOutlook:  # noqa: ANN401
    (agent,) = (await look(lab, name, gpu=gpu, **changes)).agents
    return agent


def probe(gpu: GpuProbe) -> dict[str, Any]:
    return {"probe": lambda kind: gpu if kind is CardKind.GPU else NoCard()}


class TestTheCard:
    async def test_without_a_gpu_it_is_the_reference_card(self, planning: Lab) -> None:
        card = (await look(planning)).card
        assert (card.origin, card.total_bytes, card.sold_gb) == (CardOrigin.REFERENCE, TOTAL_BYTES, 16)
        assert card.note == "there is no GPU on this machine"
        assert (card.free_bytes, card.holders) == (None, ())

    async def test_the_one_in_this_machine(self, planning: Lab) -> None:
        card = (await look(planning, **probe(OneGpu()))).card
        assert (card.origin, card.name) == (CardOrigin.HERE, "NVIDIA GeForce RTX 5060 Ti")
        assert (card.total_bytes, card.free_bytes) == (CARD_BYTES, CARD_BYTES - GIB)
        assert [holder.name for holder in card.holders] == ["gnome-shell"]
        assert card.bandwidth_bytes_per_s == (448e9, 448e9)

    async def test_the_simulated_one(self, planning: Lab) -> None:
        card = (await look(planning, engine="simulated")).card
        assert (card.simulated, card.total_bytes, card.bandwidth_bytes_per_s) == (True, TOTAL_BYTES, None)

    async def test_the_hosts_memory(self, planning: Lab) -> None:
        outlook = await look(planning, engine="vllm-cpu")
        assert (outlook.engine, outlook.card.card and outlook.card.card.id) == ("vllm-cpu", "CPU-0")
        with pytest.raises(UsageError, match="--gpu says how large a GPU is"):
            await look(planning, gpu="16GiB", engine="vllm-cpu")


class TestTheAgents:
    async def test_all_of_the_catalog(self, planning: Lab) -> None:
        outlook = await look(planning, gpu="16GiB")
        assert [agent.agent.name for agent in outlook.agents] == ["architect", "dev", "po", "odd"]
        assert [agent.fits for agent in outlook.agents] == [True] * 4
        for agent in outlook.agents:
            assert agent.fit is not None
            assert agent.weights_bytes is not None
            assert agent.overhead_bytes is not None
            assert agent.kv_cache_bytes is not None
            parts = agent.weights_bytes + agent.overhead_bytes + agent.kv_cache_bytes
            assert parts == agent.fit.budget_bytes, "every byte is accounted for"

    async def test_figures_of_one(self, planning: Lab) -> None:
        agent = await only(planning, "architect")
        assert agent.weights_bytes == round(9.44 * GIB)
        assert agent.download_bytes == 9_980_000_000
        assert agent.tokens_per_s is not None
        assert 20 < agent.tokens_per_s.low < agent.tokens_per_s.high < 42, "288 to 448 GB/s"
        assert agent.notes == ("figures of the published checkpoint; its files are not here yet",)
        assert agent.declared

    async def test_one_on_disk_needs_no_download(self, planning: Lab) -> None:
        agent = await only(planning, "odd")
        assert (agent.download_bytes, agent.notes, agent.fits) == (0, (), True)

    async def test_a_card_that_is_known_gives_one_speed(self, planning: Lab) -> None:
        (agent,) = (await look(planning, "dev", **probe(OneGpu()))).agents
        assert agent.tokens_per_s is not None
        assert agent.tokens_per_s.high / agent.tokens_per_s.low == pytest.approx(0.9 / 0.75)

    async def test_a_name_that_is_nothing(self, planning: Lab) -> None:
        with pytest.raises(AgentUnknown, match="no agent or model named 'architekt'") as raised:
            await look(planning, "architekt")
        assert raised.value.hint == "did you mean 'architect'?"
        with pytest.raises(UsageError, match="expected a Hub repository"):
            await look(planning, "Qwen/../etc")


class TestModelsByThemselves:
    async def test_the_32b_wish_in_numbers(self, planning: Lab) -> None:
        agent = await only(planning, "Qwen/Qwen2.5-32B-Instruct-AWQ")
        assert agent.fits is False
        assert isinstance(agent.answer, Shortfall)
        assert "weights 18.14 GiB" in agent.answer.message
        assert "the card gives 14.23 GiB" in agent.answer.message
        assert agent.answer.missing_bytes == pytest.approx(9.61 * GIB, rel=0.01)
        changes = [dict(option.changes) for option in agent.options]
        assert {"model": "mid"} in changes, "the 14B of the catalog"
        assert {"profile": "offload"} in changes
        assert any("cpu_offload" in change for change in changes)
        assert any("a card of" in option.message for option in agent.options)
        offload = next(option.message for option in agent.options if option.changes.get("profile"))
        assert offload.startswith(
            "--profile offload, where architect runs it with context: 8192, cpu_offload: 8GiB"
        )
        assert offload.endswith(" (1.4 to 2.7 tokens/s)")

    async def test_a_profile_in_which_it_does_not_fit_either_is_not_offered(self, planning: Lab) -> None:
        text = planning.catalog_path.read_text().replace("cpu_offload: 8GiB", "cpu_offload: 1GiB")
        planning.catalog_path.write_text(text)
        agent = await only(planning, "large")
        assert not any("profile" in option.changes for option in agent.options)

    async def test_its_settings_are_those_of_any_agent(self, planning: Lab) -> None:
        agent = await only(planning, "Qwen/Qwen3-8B-AWQ")
        chosen = agent.agent
        assert (chosen.context, chosen.sequences, chosen.kv_cache_dtype) == (32768, 4, "fp8")
        assert not agent.declared
        assert agent.fits

    async def test_a_shorter_context_where_the_model_has_no_more(self, planning: Lab) -> None:
        agent = await only(planning, "tiny")
        assert (agent.agent.context, agent.fits) == (4096, True)

    async def test_one_that_nobody_knows(self, planning: Lab) -> None:
        agent = await only(planning, "Nobody/Knows-It")
        assert (agent.fits, agent.answer, agent.weights_bytes) == (None, None, None)
        assert agent.problems == ("Nobody/Knows-It is not here, and HF_HUB_OFFLINE forbids asking the Hub",)

    @pytest.mark.parametrize("repo", ["Qwen/Qwen2.5-32B-Instruct-GGUF", "someone/Model-GGUF", "someone/gguf"])
    async def test_gguf_is_answered_plainly(self, planning: Lab, repo: str) -> None:
        agent = await only(planning, repo)
        assert agent.fits is False
        assert isinstance(agent.answer, Shortfall)
        assert "GGUF" in agent.answer.message
        (option,) = agent.options
        assert ("Qwen/Qwen2.5-32B-Instruct-AWQ" in option.message) == repo.startswith("Qwen/")

    async def test_a_folder_that_is_not_there(self, planning: Lab, folder: Path) -> None:
        (folder / "config.json").unlink()
        agent = await only(planning, "odd")
        assert agent.fits is None
        assert "config.json" in agent.problems[0]


class TestTheGpuItself:
    @staticmethod
    def card(**facts: Any) -> PlannedCard:  # noqa: ANN401 - any field
        gpu = GpuFacts(**({"driver_version": "580.95.05", "compute_capability": (8, 9)} | facts))
        return replace(card_of_size("16GiB"), gpu=gpu)

    async def test_one_that_runs_it(self, planning: Lab) -> None:
        agent = await only(planning, "architect", gpu=self.card())
        assert (agent.fits, agent.problems) == (True, ())

    async def test_a_driver_that_is_too_old(self, planning: Lab) -> None:
        agent = await only(planning, "architect", gpu=self.card(driver_version="550.54.14"))
        assert agent.fits is False
        assert agent.fit is not None, "its memory would"
        assert "550.54.14" in agent.problems[0]
        assert [option.message for option in agent.options] == ["install driver 580 or newer"]

    async def test_a_gpu_that_is_too_old(self, planning: Lab) -> None:
        outlook = await look(planning, "architect", "dev", gpu=self.card(compute_capability=(7, 5)))
        architect, dev = outlook.agents
        assert "fp8 KV cache" in architect.problems[0]
        assert dev.problems == ()


class TestTogether:
    async def test_the_largest_sets(self, planning: Lab) -> None:
        outlook = await look(planning, gpu="24GiB")
        assert [each.agents for each in outlook.together] == [
            ("architect", "po", "odd"),
            ("dev", "po", "odd"),
            ("architect", "dev"),
        ]

    async def test_each_share_holds_a_whole_request(self, planning: Lab) -> None:
        outlook = await look(planning, gpu="24GiB")
        text = planning.catalog_path.read_text()
        for each in outlook.together:
            assert sum(share or 0 for share in each.utilization) < 1
            for name, share in zip(each.agents, each.utilization, strict=True):
                changed = text.replace(f"  {name}: {{", f"  {name}: {{gpu_memory_utilization: {share}, ")
                planning.catalog_path.write_text(changed)
                agent = await only(planning, name, gpu="24GiB")
                assert agent.fit is not None
                assert agent.fit.concurrency is not None
                assert agent.fit.concurrency >= 1

    async def test_none_on_a_small_card(self, planning: Lab) -> None:
        outlook = await look(planning, "architect", "dev", gpu="16GiB")
        assert outlook.together == ()

    async def test_models_by_themselves_are_not_asked(self, planning: Lab) -> None:
        assert (await look(planning, "smaller", "odd", gpu="24GiB")).together == ()


class TestWhatWasMeasured:
    """The agent odd is launched on a GPU whose engine speaks as vLLM does, and planned again."""

    @pytest.fixture
    def gpu(self) -> OneGpu:
        return OneGpu(replace(CARD, free_bytes=CARD_BYTES, holders=()))

    @pytest.fixture
    async def launched(self, planning: Lab, engines: ServingRuntime, gpu: OneGpu) -> Lab:
        text = planning.catalog_path.read_text().replace("port: 8003", f"port: {planning.ports['dev']}")
        planning.catalog_path.write_text(text)
        assert (await self.again(planning, gpu)).measured == frozenset()
        engines.behaviours["odd"] = Behaviour(lines=tuple(LOG.splitlines()))
        host = planning.host(**probe(gpu), runtime="process")
        await operations.launch(host, "odd", listener=planning.listen)
        return planning

    async def again(self, lab: Lab, gpu: OneGpu) -> Fit:
        agent = await only(lab, "odd", gpu=None, **probe(gpu), runtime="process")
        assert agent.fit is not None
        return agent.fit

    async def test_takes_the_place_of_the_estimate(self, launched: Lab, gpu: OneGpu) -> None:
        fit = await self.again(launched, gpu)
        assert fit.weights_bytes == round(9.44 * GIB)
        assert fit.kv_cache_bytes == pytest.approx(3.0 * GIB, rel=0.001)
        assert fit.kv_tokens == pytest.approx(6_290_432, rel=1e-4)
        assert fit.graph_bytes == round(0.61 * GIB)
        assert fit.measured == {
            "weights_bytes",
            "overhead_bytes",
            "kv_cache_bytes",
            "kv_tokens",
            "graph_bytes",
        }

    async def test_is_used_by_the_next_launch(self, launched: Lab, gpu: OneGpu) -> None:
        plan = await operations.plan_launch(launched.host(**probe(gpu), runtime="process"), "odd")
        assert plan.fit is not None
        assert "weights_bytes" in plan.fit.measured
        assert [step.verb for step in plan.steps] == ["keep"], "and is no reason to start it anew"

    async def test_holds_for_another_context_as_far_as_it_can(self, launched: Lab, gpu: OneGpu) -> None:
        change(launched, "context: 2k", "context: 1k")
        fit = await self.again(launched, gpu)
        assert "weights_bytes" in fit.measured
        assert "kv_tokens" not in fit.measured

    async def test_is_void_for_another_engine_checkpoint_or_card(
        self, launched: Lab, gpu: OneGpu, folder: Path
    ) -> None:
        other = OneGpu(replace(gpu.card, id="GPU-2"))
        assert (await self.again(launched, other)).measured == frozenset()
        of_that_size = (await only(launched, "odd", gpu="15.47GiB", runtime="process")).fit
        assert of_that_size is not None
        assert of_that_size.measured == frozenset()
        change(launched, "engine: vllm\n", "engine: vllm\nengines: {vllm: {command: [other, serve]}}\n")
        assert (await self.again(launched, gpu)).measured == frozenset()
        change(launched, "command: [other, serve]", "command: [vllm, serve]")
        assert (await self.again(launched, gpu)).measured
        write_checkpoint(folder, {"model.safetensors": {"model.embed_tokens.weight": 128_000}}, TINY_CONFIG)
        assert (await self.again(launched, gpu)).measured == frozenset()

    async def test_what_an_engine_said_that_was_put_back_is_not_the_newcomers(
        self, launched: Lab, gpu: OneGpu, engines: ServingRuntime, free_port: FreePort
    ) -> None:
        twin = f"  twin: {{model: tiny, port: {free_port()}, context: 2k}}\n"
        change(launched, "profiles:\n", f"{twin}profiles:\n")
        engines.behaviours["twin"] = Behaviour(exits=1)
        with pytest.raises(EngineFailed):
            await operations.launch(
                launched.host(**probe(gpu), runtime="process"), "twin", listener=launched.listen
            )
        assert await engines.running() == ["odd"], "it was put back, and said everything again"
        (twin_now,) = (await look(launched, "twin", **probe(gpu), runtime="process")).agents
        assert twin_now.fit is not None
        assert twin_now.fit.measured == frozenset()

    async def test_a_simulated_engine_measures_nothing(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.behaviours["dev"] = Behaviour(lines=tuple(LOG.splitlines()))
        await quick.launch("dev")
        assert not (quick.state.cache / "footprints.json").exists()
        (dev,) = (await look_ahead(quick.host(), ["dev"])).agents
        assert dev.fit is not None
        assert dev.fit.measured == frozenset()


def change(lab: Lab, old: str, new: str) -> None:
    text = lab.catalog_path.read_text()
    assert old in text
    lab.catalog_path.write_text(text.replace(old, new))
