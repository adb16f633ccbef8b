from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from agent_manager.checkpoints.disk import facts_on_disk
from agent_manager.checkpoints.facts import Origin, Shape
from agent_manager.checkpoints.remote import Inspected, inspect
from agent_manager.errors import CheckpointUnusable, DownloadFailed
from tests.checkpoints.loopback_hub import COMMIT, LoopbackHub, serving
from tests.checkpoints.weights import TINY_CONFIG, safetensors, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REPO = "Qwen/Tiny"
CONFIG = json.dumps(TINY_CONFIG).encode()
WEIGHTS_BYTES = 4 << 20
"""Of one tensor: far more than a header."""


def looked_at(files: Mapping[str, bytes], repo: str = REPO) -> tuple[Inspected, LoopbackHub]:
    with serving(LoopbackHub(repo=repo, files=files)) as hub:
        return inspect(repo, endpoint=hub.url), hub


def refused(files: Mapping[str, bytes], repo: str = REPO) -> CheckpointUnusable:
    with pytest.raises(CheckpointUnusable) as caught:
        looked_at(files, repo)
    return caught.value


def shards(count: int, tensors: int = 1) -> dict[str, dict[str, int]]:
    return {
        f"model-{shard:05}-of-{count:05}.safetensors": {
            f"model.layers.{shard}.mlp.part_{tensor}.qweight": WEIGHTS_BYTES // tensors
            for tensor in range(tensors)
        }
        for shard in range(1, count + 1)
    }


def repository(folder: Path, parts: dict[str, dict[str, int]]) -> dict[str, bytes]:
    """The files of a real checkpoint."""
    write_checkpoint(folder, parts, TINY_CONFIG)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_says_what_the_files_would_say_on_disk(tmp_path: Path) -> None:
    found, _ = looked_at(
        {**repository(tmp_path, shards(5)), "README.md": b"words", "original/x.safetensors": b"x"}
    )
    there = facts_on_disk(tmp_path)
    assert found.facts.weights_bytes == there.weights_bytes
    assert found.facts.shape == there.shape
    assert isinstance(found.facts.shape, Shape)
    assert found.facts.origin is Origin.HUB
    assert found.commit == COMMIT
    assert found.download_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert {file.name for file in found.files} == {path.name for path in tmp_path.iterdir()}


def test_a_header_longer_than_the_first_request(tmp_path: Path) -> None:
    parts = shards(1, tensors=4096)
    found, _ = looked_at(repository(tmp_path, parts))
    assert len(safetensors(next(iter(parts.values())))) > WEIGHTS_BYTES + 200_000
    assert found.facts.weights_bytes == facts_on_disk(tmp_path).weights_bytes


def test_reads_headers_and_no_weights(tmp_path: Path) -> None:
    parts = shards(5)
    found, hub = looked_at(repository(tmp_path, parts))
    assert found.facts.disk_bytes > 5 * WEIGHTS_BYTES
    assert all(hub.sent[name] <= 128 * 1024 for name in parts)


def test_loads_what_the_index_names_and_nothing_else(tmp_path: Path) -> None:
    files = repository(tmp_path, shards(2))
    found, _ = looked_at({**files, "consolidated.safetensors": safetensors({"all.weight": WEIGHTS_BYTES})})
    assert found.facts.weights_bytes == facts_on_disk(tmp_path).weights_bytes


def test_an_index_that_names_a_file_the_repository_lacks(tmp_path: Path) -> None:
    files = repository(tmp_path, shards(2))
    del files["model-00002-of-00002.safetensors"]
    error = refused(files)
    assert "model-00002-of-00002.safetensors is not in the repository" in error.message


def test_gguf_is_refused_in_numbers() -> None:
    files = {
        "Qwen2.5-32B-Instruct-Q4_K_M.gguf": bytes(200),
        "Qwen2.5-32B-Instruct-Q5_K_M-00001-of-00002.gguf": bytes(150),
        "Qwen2.5-32B-Instruct-Q5_K_M-00002-of-00002.gguf": bytes(100),
        "Qwen2.5-32B-Instruct-Q2_K.gguf": bytes(90),
        "Qwen2.5-32B-Instruct-Q8_0.gguf": bytes(400),
        "Qwen2.5-32B-Instruct-IQ3_XS.gguf": bytes(120),
    }
    error = refused(files, "bartowski/Qwen2.5-32B-Instruct-GGUF")
    labels = [part.split(" ")[0] for part in error.message.partition("(")[2].split(", ")]
    assert labels[:4] == ["Q2_K", "Q4_K_M", "Q5_K_M", "Q8_0"]
    assert "vLLM does not load" in error.message
    assert error.hint is not None
    assert "Qwen/Qwen2.5-32B-Instruct-AWQ is 19.33 GB" in error.hint


@pytest.mark.parametrize(
    "files",
    [
        {"README.md": b"x"},
        {"config.json": CONFIG},
        {"config.json": CONFIG, "pytorch_model.bin": b"x"},
        {"x.safetensors": b"x"},
    ],
)
def test_nothing_that_an_engine_loads(files: dict[str, bytes]) -> None:
    assert "no config.json with safetensors weights" in refused(files).message


@pytest.mark.parametrize("config", [b"", b"not json", b"[]"])
def test_a_config_that_is_not_one(config: bytes) -> None:
    error = refused({"config.json": config, "model.safetensors": safetensors({"a": 8})})
    assert error.message == f"{REPO}/config.json: it is not a JSON object"


def test_weights_that_are_no_safetensors() -> None:
    error = refused(
        {"config.json": CONFIG, "model.safetensors": b"version https://git-lfs.github.com/spec/v1"}
    )
    assert error.message.startswith(f"{REPO}/model.safetensors: its header")


def test_a_repository_that_is_not_there() -> None:
    with serving(LoopbackHub(repo=REPO, files={})) as hub, pytest.raises(DownloadFailed, match="Qwen/Other"):
        inspect("Qwen/Other", endpoint=hub.url)
