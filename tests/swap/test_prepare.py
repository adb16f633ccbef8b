"""From a name to an engine that can be started: what is chosen, what is refused, and what is never touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec import json

from agent_manager.errors import CheckpointUnusable, DockerNotReady, DoesNotFit, NoGpu, UsageError
from agent_manager.gpu.simulated import CARD_ID, TOTAL_BYTES
from agent_manager.runtimes.base import InstanceSpec
from agent_manager.runtimes.docker.runtime import DockerRuntime
from agent_manager.swap.prepare import choose_engine, choose_runtime, draft, prepare, probe_of
from tests.checkpoints.weights import TINY_CONFIG, write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from agent_manager.swap.prepare import Draft

    from .conftest import Lab


ANSWERING = {"--override-generation-config", "--default-chat-template-kwargs"}


async def _draft(lab: Lab, **choice: object) -> Draft:
    host = lab.host(**choice)
    return await draft(host, host.catalog.agent("dev"))


class TestTheEngine:
    async def test_the_catalogs(self, quick: Lab) -> None:
        engine, _, card = await choose_engine(quick.host())
        assert (engine.name, card.id, card.total_bytes) == ("simulated", CARD_ID, TOTAL_BYTES)

    async def test_the_users_beats_the_catalogs(self, quick: Lab) -> None:
        engine, _, card = await choose_engine(quick.host(engine="vllm-cpu"))
        assert (engine.name, card.id) == ("vllm-cpu", "CPU-0")

    async def test_nobody_chose_and_there_is_no_gpu(self, quick: Lab) -> None:
        _without(quick, "engine: simulated\n")
        with pytest.raises(
            NoGpu, match="no engine was chosen, and there is no GPU on this machine"
        ) as raised:
            await choose_engine(quick.host())
        for choice in ("--engine vllm ", "--engine vllm-cpu", "--engine simulated"):
            assert choice in str(raised.value.hint)

    async def test_a_gpu_was_chosen_and_there_is_none(self, quick: Lab) -> None:
        with pytest.raises(NoGpu, match=r"^there is no GPU on this machine$"):
            await choose_engine(quick.host(engine="vllm"))

    async def test_an_engine_that_does_not_exist(self, quick: Lab) -> None:
        with pytest.raises(UsageError, match="no engine named 'ollama'") as raised:
            await choose_engine(quick.host(engine="ollama"))
        assert "vllm, vllm-cpu, simulated" in str(raised.value.hint)
        with pytest.raises(UsageError):
            probe_of(quick.host(), "ollama")


class TestTheRuntime:
    async def test_the_engines_own(self, quick: Lab) -> None:
        host = quick.host()
        assert choose_runtime(host, (await choose_engine(host))[0]).name == "process"

    async def test_docker_is_that_of_vllm_and_without_docker_this_is_told(
        self, quick: Lab, tmp_path: Path
    ) -> None:
        nowhere = DockerRuntime(quick.state, environ={"DOCKER_HOST": f"unix://{tmp_path}/no.sock"})
        runtimes = {"process": quick.runtime, "docker": nowhere}
        with pytest.raises(DockerNotReady, match="Docker is not running"):
            await _draft(quick, engine="vllm-cpu", runtimes=runtimes)
        with pytest.raises(DockerNotReady):
            await _draft(quick, runtime="docker", runtimes=runtimes)

    async def test_one_that_does_not_exist(self, quick: Lab) -> None:
        with pytest.raises(UsageError, match="no runtime named 'podman'") as raised:
            await _draft(quick, runtime="podman")
        assert "process" in str(raised.value.hint)


class TestAgentsThatShareAnInstance:
    async def test_behind_a_gateway_they_get_one_and_each_request_says_how_to_answer(
        self, quick: Lab
    ) -> None:
        _answer_differently(quick)
        host = quick.host(behind_gateway=True)
        po, dev = [await prepare(host, name, pull=False, listener=quick.listen) for name in ("po", "dev")]
        assert po.spec == dev.spec
        assert (po.spec.agent, po.spec.agents) == ("po", ("po", "dev"))
        assert (po.spec.engine_port, po.spec.agent_port) == (quick.ports["po"] + 100, None)
        at = po.spec.argv.index("--served-model-name")
        assert po.spec.argv[at + 1 : at + 3] == ("po", "dev")
        assert not ANSWERING & set(po.spec.argv)
        assert json.decode(json.encode(po.spec), type=InstanceSpec) == po.spec

    async def test_without_a_gateway_each_has_its_own(self, quick: Lab) -> None:
        _answer_differently(quick)
        ready = await prepare(quick.host(), "dev", pull=False, listener=quick.listen)
        assert ready.spec.agents == ("dev",)
        assert ready.spec.argv.count("--served-model-name") == 1
        assert set(ready.spec.argv) >= ANSWERING

    async def test_one_by_itself_keeps_its_flags_behind_a_gateway(self, quick: Lab) -> None:
        _answer_differently(quick)
        text = quick.catalog_path.read_text()
        quick.catalog_path.write_text(text.replace("sequences: 4, thinking", "sequences: 2, thinking"))
        host = quick.host(behind_gateway=True)
        ready = await prepare(host, "dev", pull=False, listener=quick.listen)
        assert ready.spec.agents == ("dev",)
        assert set(ready.spec.argv) >= ANSWERING


class TestTheCheckpoint:
    async def test_the_simulated_engine_needs_none(self, quick: Lab) -> None:
        drafted = await _draft(quick)
        assert drafted.missing is None
        assert drafted.fit is not None
        quick.catalog(model="obscure")
        drafted = await _draft(quick)
        assert drafted.missing is None
        assert drafted.fit is not None
        assert drafted.fit.weights_bytes is None, "nothing is known of it, and nothing is made up"

    async def test_what_is_missing_is_planned_from_public_figures(self, quick: Lab) -> None:
        drafted = await _draft(quick, engine="vllm-cpu", runtime="process")
        assert drafted.missing is not None
        assert drafted.missing.reason == "Qwen/Qwen2.5-7B-Instruct-AWQ was never downloaded"
        assert drafted.fit is not None

    async def test_without_a_pull_what_is_missing_is_refused(self, quick: Lab) -> None:
        host = quick.host(engine="vllm-cpu", runtime="process")
        with pytest.raises(CheckpointUnusable, match="was never downloaded") as raised:
            await prepare(host, "dev", pull=False, listener=quick.listen)
        assert (raised.value.where, raised.value.exit_code) == ("models.small", 1)
        assert "--no-pull" in str(raised.value.hint)
        assert quick.notices == []

    async def test_what_does_not_fit_is_refused_before_it_is_fetched(self, quick: Lab) -> None:
        text = quick.catalog_path.read_text().replace("kv_cache: 1GiB", "kv_cache: 900000GiB")
        quick.catalog_path.write_text(text)
        with pytest.raises(DoesNotFit):
            await prepare(
                quick.host(engine="vllm-cpu", runtime="process"), "dev", pull=True, listener=quick.listen
            )
        assert quick.notices == []

    async def test_one_in_a_folder(self, quick: Lab, tmp_path: Path) -> None:
        folder = tmp_path / "tiny"
        _repo_to_path(quick, folder)
        with pytest.raises(CheckpointUnusable, match="there is no folder"):
            await _draft(quick, engine="vllm-cpu", runtime="process")
        write_checkpoint(folder, {"model.safetensors": {"model.embed_tokens.weight": 256_000}}, TINY_CONFIG)
        host = quick.host(engine="vllm-cpu", runtime="process")
        ready = await prepare(host, "dev", pull=False, listener=quick.listen)
        assert ready.spec.argv[:3] == ("no-such-vllm", "serve", str(folder))
        assert ready.spec.claim_bytes == ready.fit.budget_bytes
        assert (ready.spec.engine_port, ready.spec.agent_port) == (
            quick.ports["dev"] + 100,
            quick.ports["dev"],
        )
        assert ready.spec.card == "CPU-0"


def _answer_differently(lab: Lab) -> None:
    """Dev has defaults of its own; po has none."""
    before, line, after = lab.catalog_path.read_text().partition("  dev: {model")
    line += after.replace("sequences: 4}", "sequences: 4, thinking: false, sampling: {top_p: 0.9}}")
    lab.catalog_path.write_text(before + line)


def _without(lab: Lab, line: str) -> None:
    text = lab.catalog_path.read_text()
    assert line in text
    lab.catalog_path.write_text(text.replace(line, ""))


def _repo_to_path(lab: Lab, folder: Path) -> None:
    text = lab.catalog_path.read_text()
    lab.catalog_path.write_text(text.replace("repo: Qwen/Qwen2.5-7B-Instruct-AWQ", f"path: {folder}"))
