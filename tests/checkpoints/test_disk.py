from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from agent_manager.catalog.agents import Model
from agent_manager.checkpoints.disk import (
    Checkpoint,
    Missing,
    facts_of,
    facts_on_disk,
    hub_cache_from,
    is_wanted,
    locate,
    repo_folder,
)
from agent_manager.checkpoints.facts import Origin, Shape
from agent_manager.checkpoints.known import KNOWN
from agent_manager.errors import CheckpointUnusable

from .weights import TINY_CONFIG, write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

REPO = "Qwen/Qwen3-14B-AWQ"
COMMIT = "31c69efc29464b6bb0aee1398b5a7b50a99340c3"
SHARDS = {
    "model-00001-of-00002.safetensors": {"model.embed_tokens.weight": 4000},
    "model-00002-of-00002.safetensors": {"model.norm.weight": 256, "lm_head.weight": 4000},
}


def at(path: Path) -> Model:
    return Model(name="tiny", path=path)


def pulled(cache: Path, *, blobs: bool = True) -> Path:
    """A snapshot as huggingface_hub makes it: links to blobs, and the commit's list of files."""
    storage = repo_folder(REPO, cache)
    snapshot = storage / "snapshots" / COMMIT
    write_checkpoint(storage / "staging", SHARDS, TINY_CONFIG)
    (storage / "staging" / "tokenizer.json").write_text("{}", "utf-8")
    snapshot.mkdir(parents=True)
    (storage / "blobs").mkdir()
    files = {}
    for number, path in enumerate(sorted((storage / "staging").iterdir())):
        blob = storage / "blobs" / f"blob{number}"
        files[path.name] = {"size": path.stat().st_size, "blob_id": blob.name}
        if blobs:
            path.rename(blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    (storage / "trees").mkdir()
    listing = {
        "format_version": 1,
        "files": {**files, "README.md": {"size": 1}, "original/x.json": {"size": 1}},
    }
    (storage / "trees" / f"{COMMIT}.json").write_text(json.dumps(listing), "utf-8")
    return snapshot


class TestFolder:
    def test_complete(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "model", SHARDS, TINY_CONFIG)
        (tmp_path / "model" / "README.md").write_text("x" * 1000, "utf-8")
        found = locate(at(tmp_path / "model"), hub_cache=tmp_path)
        files = [path for path in (tmp_path / "model").iterdir() if path.name != "README.md"]
        assert found == Checkpoint(
            folder=tmp_path / "model", revision=None, size_bytes=sum(path.stat().st_size for path in files)
        )

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointUnusable, match="there is no folder") as caught:
            locate(at(tmp_path / "model"), hub_cache=tmp_path)
        assert caught.value.where == "models.tiny.path"
        assert caught.value.hint

    def test_no_config(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path, SHARDS, TINY_CONFIG)
        (tmp_path / "config.json").unlink()
        with pytest.raises(CheckpointUnusable, match=r"lacks config\.json$"):
            locate(at(tmp_path), hub_cache=tmp_path)

    def test_no_weights(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path, {}, TINY_CONFIG)
        (tmp_path / "pytorch_model.bin").write_bytes(b"x")
        with pytest.raises(CheckpointUnusable, match=r"lacks \*\.safetensors"):
            locate(at(tmp_path), hub_cache=tmp_path)

    def test_a_shard_of_the_index_is_absent(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path, SHARDS, TINY_CONFIG)
        (tmp_path / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(CheckpointUnusable, match=r"lacks model-00002-of-00002\.safetensors$"):
            locate(at(tmp_path), hub_cache=tmp_path)

    @pytest.mark.parametrize(
        "index",
        ["nothing", "[]", "{}", '{"weight_map": {"a": "../../etc/passwd"}}', '{"weight_map": {"a": 1}}'],
    )
    def test_a_damaged_index(self, tmp_path: Path, index: str) -> None:
        write_checkpoint(tmp_path, {}, TINY_CONFIG)
        (tmp_path / "model.safetensors.index.json").write_text(index, "utf-8")
        with pytest.raises(CheckpointUnusable, match=r"model\.safetensors\.index\.json: "):
            locate(at(tmp_path), hub_cache=tmp_path)


class TestHubCache:
    def test_never_downloaded(self, tmp_path: Path) -> None:
        pinned = locate(Model(name="m", repo=REPO, revision=COMMIT), hub_cache=tmp_path)
        assert pinned == Missing(reason=f"{REPO} at {COMMIT[:12]} was never downloaded", revision=COMMIT)
        assert locate(Model(name="m", repo=REPO), hub_cache=tmp_path) == Missing(
            reason=f"{REPO} was never downloaded", revision=None
        )

    def test_complete(self, tmp_path: Path) -> None:
        snapshot = pulled(tmp_path)
        found = locate(Model(name="m", repo=REPO, revision=COMMIT), hub_cache=tmp_path)
        assert isinstance(found, Checkpoint)
        assert (found.folder, found.revision) == (snapshot, COMMIT)
        assert found.size_bytes == sum(path.stat().st_size for path in snapshot.iterdir())

    def test_a_file_of_the_listing_is_absent(self, tmp_path: Path) -> None:
        (pulled(tmp_path) / "tokenizer.json").unlink()
        found = locate(Model(name="m", repo=REPO, revision=COMMIT), hub_cache=tmp_path)
        assert isinstance(found, Missing)
        assert found.files == ("tokenizer.json",)
        assert found.revision == COMMIT
        assert "incomplete: tokenizer.json missing" in found.reason

    def test_a_link_to_no_blob_is_absent(self, tmp_path: Path) -> None:
        storage = repo_folder(REPO, tmp_path)
        pulled(tmp_path)
        (storage / "blobs" / "blob1").unlink()
        found = locate(Model(name="m", repo=REPO, revision=COMMIT), hub_cache=tmp_path)
        assert isinstance(found, Missing)
        assert found.files == ("model-00001-of-00002.safetensors",)

    def test_without_a_listing_the_index_decides(self, tmp_path: Path) -> None:
        snapshot = pulled(tmp_path)
        (repo_folder(REPO, tmp_path) / "trees" / f"{COMMIT}.json").write_text("damaged", "utf-8")
        (snapshot / "tokenizer.json").unlink()
        assert isinstance(locate(Model(name="m", repo=REPO, revision=COMMIT), hub_cache=tmp_path), Checkpoint)

    def test_unpinned_is_the_commit_main_had(self, tmp_path: Path) -> None:
        pulled(tmp_path)
        refs = repo_folder(REPO, tmp_path) / "refs"
        refs.mkdir()
        (refs / "main").write_text("../../elsewhere", "utf-8")
        assert isinstance(locate(Model(name="m", repo=REPO), hub_cache=tmp_path), Missing)
        (refs / "main").write_text(COMMIT, "utf-8")
        found = locate(Model(name="m", repo=REPO), hub_cache=tmp_path)
        assert isinstance(found, Checkpoint)
        assert found.revision == COMMIT


class TestFacts:
    def test_from_disk(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path, SHARDS, TINY_CONFIG)
        facts = facts_on_disk(tmp_path)
        assert isinstance(facts.shape, Shape)
        assert facts.shape.kv_bytes_per_token(2) == 512
        assert facts.weights_bytes == 4256 + 42 + 4096 * 32 * 2
        assert facts.disk_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))

    def test_a_corrupt_shard_is_named(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path, SHARDS, TINY_CONFIG)
        shard = tmp_path / "model-00002-of-00002.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(CheckpointUnusable, match="model-00002-of-00002") as caught:
            facts_on_disk(tmp_path)
        assert caught.value.where == str(shard)

    def test_a_config_that_is_not_json(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path, SHARDS, TINY_CONFIG)
        (tmp_path / "config.json").write_bytes(b"\xff{")
        with pytest.raises(CheckpointUnusable, match=r"config\.json: it is not JSON"):
            facts_on_disk(tmp_path)

    def test_the_disk_comes_before_the_table(self, tmp_path: Path) -> None:
        model = Model(name="m", repo=REPO, revision=COMMIT)
        assert facts_of(model, hub_cache=tmp_path) is KNOWN[REPO]
        pulled(tmp_path)
        facts = facts_of(model, hub_cache=tmp_path)
        assert facts is not None
        assert facts.origin is Origin.DISK

    def test_nothing_is_known(self, tmp_path: Path) -> None:
        assert facts_of(Model(name="m", repo="Some/Body"), hub_cache=tmp_path) is None


class TestWhere:
    @pytest.mark.parametrize(
        ("environ", "expected"),
        [
            ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
            ({"HUGGINGFACE_HUB_CACHE": "/c", "HF_HOME": "/b"}, "/c"),
            ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/x"}, "/b/hub"),
            ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ],
    )
    def test_the_cache(self, environ: dict[str, str], expected: str) -> None:
        assert str(hub_cache_from(environ)) == expected

    def test_the_home_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/somewhere")
        assert str(hub_cache_from({})) == "/somewhere/.cache/huggingface/hub"

    @pytest.mark.parametrize(
        ("name", "wanted"),
        [
            ("model-00001-of-00002.safetensors", True),
            ("model.safetensors.index.json", True),
            ("chat_template.jinja", True),
            ("merges.txt", True),
            ("tokenizer.model", True),
            ("pytorch_model.bin", False),
            ("model.gguf", False),
            ("README.md", False),
            ("original/model.safetensors", False),
        ],
    )
    def test_what_an_engine_needs(self, name: str, wanted: bool) -> None:  # noqa: FBT001 - a column of the table
        assert is_wanted(name) is wanted
