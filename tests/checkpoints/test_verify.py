"""Every byte of a checkpoint against its digest, on caches as huggingface_hub lays them out."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_manager.catalog.agents import Model
from agent_manager.checkpoints.disk import INDEX, Missing, locate, repo_folder
from agent_manager.checkpoints.verify import CHUNK_BYTES, FileState, ModelState, again, verify

from .loopback_hub import COMMIT as HUB_COMMIT
from .loopback_hub import LoopbackHub, serving
from .weights import TINY_CONFIG, safetensors, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_manager.checkpoints.verify import FileCheck, ModelCheck, VerifyProgress

REPO = "Qwen/Qwen3-14B-AWQ"
COMMIT = "31c69efc29464b6bb0aee1398b5a7b50a99340c3"
MODEL = Model(name="m", repo=REPO, revision=COMMIT)
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
FILES = {
    "config.json": json.dumps(TINY_CONFIG).encode(),
    "tokenizer.json": b'{"vocab": {}}',
    "README.md": b"# A model",
    FIRST: safetensors({"model.embed_tokens.weight": 3 * CHUNK_BYTES + 17}),
    SECOND: safetensors({"model.norm.weight": 256}),
}


def blob_name(name: str, content: bytes) -> str:
    """As the Hub names it: large files by their sha256, small ones as git does."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def entry(name: str, content: bytes) -> dict[str, object]:
    blob = blob_name(name, content)
    if len(blob) == 40:
        return {"size": len(content), "blob_id": blob}
    return {"size": len(content), "blob_id": "0" * 40, "lfs_sha256": blob, "lfs_size": len(content)}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A Hub cache with one model in it, complete."""
    cache = tmp_path / "hub"
    lay(cache, FILES)
    return cache


def lay(cache: Path, files: Mapping[str, bytes], commit: str = COMMIT, *, repo: str = REPO) -> Path:
    """Put a commit with these files there: its list, its blobs, its snapshot of links."""
    storage = repo_folder(repo, cache)
    snapshot = storage / "snapshots" / commit
    for folder in (storage / "blobs", storage / "trees", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (storage / "blobs" / blob_name(name, content)).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob_name(name, content)}")
    listing = {"format_version": 1, "files": {name: entry(name, content) for name, content in files.items()}}
    (storage / "trees" / f"{commit}.json").write_text(json.dumps(listing), "utf-8")
    return snapshot


def snapshot_of(cache: Path) -> Path:
    return repo_folder(REPO, cache) / "snapshots" / COMMIT


def check(cache: Path, model: Model = MODEL, only: frozenset[str] | None = None) -> ModelCheck:
    (found,) = verify([model], hub_cache=cache, on_progress=lambda _: None, only=only)
    return found


def states(found: ModelCheck) -> dict[str, str]:
    return {file.name: file.state.value for file in found.files}


def the_broken_one(found: ModelCheck) -> FileCheck:
    (file,) = found.broken
    return file


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.resolve().write_bytes(content)


def test_an_intact_model(cache: Path) -> None:
    found = check(cache)
    assert (found.name, found.repo, found.revision) == ("m", REPO, COMMIT)
    assert found.state is ModelState.INTACT
    assert states(found) == dict.fromkeys(sorted(FILES), "intact")
    assert found.checked_bytes == sum(map(len, FILES.values()))
    assert found.broken == ()


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("where", ["first", "last"])
def test_one_bit_of_any_file(cache: Path, name: str, where: str) -> None:
    flip(snapshot_of(cache) / name, 0 if where == "first" else -1)
    found = check(cache)
    assert found.state is ModelState.CORRUPT
    file = the_broken_one(found)
    assert (file.name, file.state) == (name, FileState.CORRUPT)
    assert file.reason


def test_a_truncated_file_says_how_much_is_there(cache: Path) -> None:
    path = snapshot_of(cache) / SECOND
    os.truncate(path, 100)
    file = the_broken_one(check(cache))
    assert (file.name, file.size_bytes) == (SECOND, 100)
    assert file.reason == f"it has 100 of {len(FILES[SECOND])} bytes"


def test_without_the_list_the_header_says_what_a_truncation_is(cache: Path) -> None:
    (repo_folder(REPO, cache) / "trees" / f"{COMMIT}.json").unlink()
    os.truncate(snapshot_of(cache) / SECOND, len(FILES[SECOND]) - 1)
    file = the_broken_one(check(cache))
    assert file.reason == f"it has {len(FILES[SECOND]) - 1} bytes, its header says {len(FILES[SECOND])}"


def test_a_file_of_the_list_that_is_absent(cache: Path) -> None:
    (snapshot_of(cache) / "tokenizer.json").unlink()
    found = check(cache)
    assert found.state is ModelState.INCOMPLETE
    assert the_broken_one(found).name == "tokenizer.json"
    assert the_broken_one(found).state is FileState.MISSING


def test_a_file_of_the_list_that_no_engine_needs_may_be_absent(cache: Path) -> None:
    (snapshot_of(cache) / "README.md").unlink()
    assert check(cache).state is ModelState.INTACT


def test_a_link_to_a_blob_that_is_gone(cache: Path) -> None:
    (snapshot_of(cache) / FIRST).resolve().unlink()
    found = check(cache)
    file = the_broken_one(found)
    assert (found.state, file.name, file.reason) == (ModelState.INCOMPLETE, FIRST, "its blob is gone")


def test_corrupt_is_worse_than_missing(cache: Path) -> None:
    (snapshot_of(cache) / "tokenizer.json").unlink()
    flip(snapshot_of(cache) / FIRST, -1)
    found = check(cache)
    assert found.state is ModelState.CORRUPT
    assert {file.name for file in found.broken} == {FIRST, "tokenizer.json"}


def test_a_blob_in_the_store_that_repositories_share(cache: Path) -> None:
    # The Xet hash that names it there is no digest of its bytes.
    blob = (snapshot_of(cache) / FIRST).resolve()
    shared = cache / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(f"../../blobs/ab/{shared.name}")
    assert check(cache).state is ModelState.INTACT
    flip(shared, -1)
    assert the_broken_one(check(cache)).name == FIRST


def test_files_that_are_no_links_are_held_against_the_list(cache: Path) -> None:
    for path in snapshot_of(cache).iterdir():
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    assert check(cache).state is ModelState.INTACT
    flip(snapshot_of(cache) / "config.json", 5)
    assert the_broken_one(check(cache)).name == "config.json"


def test_a_file_that_nothing_describes(cache: Path) -> None:
    (snapshot_of(cache) / "notes.txt").write_text("mine")
    assert check(cache).state is ModelState.INTACT
    (snapshot_of(cache) / "adapter.safetensors").write_bytes(safetensors({"a": 8}))
    found = check(cache)
    assert found.state is ModelState.UNVERIFIABLE
    assert states(found)["adapter.safetensors"] == "unverifiable"


def test_a_damaged_index_is_a_corrupt_file(cache: Path) -> None:
    index = "model.safetensors.index.json"
    content = json.dumps({"weight_map": {"a": FIRST, "b": SECOND}}).encode()
    lay(cache, {**FILES, index: content}, commit="a" * 40)
    model = Model(name="m", repo=REPO, revision="a" * 40)
    (repo_folder(REPO, cache) / "trees" / f"{'a' * 40}.json").unlink()
    (repo_folder(REPO, cache) / "snapshots" / ("a" * 40) / index).write_text("{")
    file = the_broken_one(check(cache, model))
    assert (file.name, file.reason) == (index, "it is not JSON")


def test_what_cannot_be_read_is_told(cache: Path) -> None:
    (repo_folder(REPO, cache) / "trees" / f"{COMMIT}.json").unlink()
    (snapshot_of(cache) / SECOND).unlink()
    (snapshot_of(cache) / SECOND).symlink_to(
        "/proc/self/mem"
    )  # a regular file whose first byte is an I/O error
    file = the_broken_one(check(cache))
    assert (file.name, file.reason) == (SECOND, "it cannot be read: Input/output error")


@pytest.mark.parametrize("revision", [COMMIT, None])
def test_never_downloaded(tmp_path: Path, revision: str | None) -> None:
    found = check(tmp_path, Model(name="m", repo=REPO, revision=revision))
    assert (found.state, found.files, found.checked_bytes) == (ModelState.ABSENT, (), 0)
    assert "was never downloaded" in str(found.reason)


def test_an_unpinned_model_is_the_commit_that_main_had(cache: Path) -> None:
    refs = repo_folder(REPO, cache) / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    found = check(cache, Model(name="m", repo=REPO))
    assert (found.state, found.revision) == (ModelState.INTACT, COMMIT)


class TestFolder:
    def test_lengths_and_headers_are_all_there_is(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path, {FIRST: {"a": 100}, SECOND: {"b": 100}}, TINY_CONFIG)
        found = check(tmp_path, Model(name="mine", path=tmp_path))
        assert (found.state, found.broken, found.checked_bytes) == (ModelState.UNVERIFIABLE, (), 0)
        assert set(states(found).values()) == {"unverifiable"}

    def test_a_short_shard_a_cut_json_and_one_that_the_index_names(self, tmp_path: Path) -> None:
        write_checkpoint(
            tmp_path, {FIRST: {"a": 100}, SECOND: {"b": 100}, "model-3.safetensors": {"c": 1}}, TINY_CONFIG
        )
        os.truncate(tmp_path / FIRST, 120)
        (tmp_path / SECOND).unlink()
        (tmp_path / "tokenizer.json").write_text('{"a": ')
        found = check(tmp_path, Model(name="mine", path=tmp_path))
        assert {file.name: file.state.value for file in found.broken} == {
            FIRST: "corrupt",
            SECOND: "missing",
            "tokenizer.json": "corrupt",
        }

    def test_no_folder(self, tmp_path: Path) -> None:
        found = check(tmp_path, Model(name="mine", path=tmp_path / "nowhere"))
        assert (found.state, found.reason) == (
            ModelState.ABSENT,
            f"there is no folder {tmp_path / 'nowhere'}",
        )


class TestProgress:
    def test_it_ends_with_every_byte(self, cache: Path) -> None:
        heard: list[VerifyProgress] = []
        verify(
            [MODEL, Model(name="same", repo=REPO, revision=COMMIT)], hub_cache=cache, on_progress=heard.append
        )
        total = 2 * sum(map(len, FILES.values()))
        assert (heard[0].done_bytes, heard[-1].done_bytes) == (0, total)
        assert {each.total_bytes for each in heard} == {total}
        assert [each.done_bytes for each in heard] == sorted(each.done_bytes for each in heard)

    def test_what_it_raises_ends_the_reading(self, cache: Path) -> None:
        class EnoughError(Exception):
            pass

        seen: list[int] = []

        def stop(now: VerifyProgress) -> None:
            seen.append(now.done_bytes)
            if now.done_bytes:
                raise EnoughError

        with pytest.raises(EnoughError):
            verify([MODEL], hub_cache=cache, on_progress=stop)
        assert len(seen) == 2, "no thread read on"
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("verify")]


def test_again_is_for_the_files_that_were_broken(cache: Path) -> None:
    path = snapshot_of(cache) / FIRST
    flip(path, -1)
    before = check(cache)
    flip(path, -1)
    seen = check(cache, only=frozenset({FIRST}))
    assert states(seen) == {FIRST: "intact"}
    after = again(before, seen.files)
    assert (after.state, after.repaired) == (ModelState.INTACT, (FIRST,))
    assert states(after) == dict.fromkeys(sorted(FILES), "intact")


class TestLocate:
    """The cheap look before a launch: lengths and headers, no digest."""

    def test_complete(self, cache: Path) -> None:
        assert not isinstance(locate(MODEL, hub_cache=cache), Missing)

    @pytest.mark.parametrize("listed", [True, False])
    def test_a_truncated_shard_is_named(self, cache: Path, listed: bool) -> None:  # noqa: FBT001 - a parameter
        if not listed:
            (repo_folder(REPO, cache) / "trees" / f"{COMMIT}.json").unlink()
        cut_bytes = len(FILES[FIRST]) - 1
        os.truncate(snapshot_of(cache) / FIRST, cut_bytes)
        found = locate(MODEL, hub_cache=cache)
        assert isinstance(found, Missing)
        assert found.files == (FIRST,)
        assert f"incomplete: {FIRST}: it has {cut_bytes} " in found.reason

    def test_missing_and_truncated_are_both_told(self, cache: Path) -> None:
        (snapshot_of(cache) / "config.json").unlink()
        (snapshot_of(cache) / FIRST).resolve().unlink()
        os.truncate(snapshot_of(cache) / SECOND, 8)
        found = locate(MODEL, hub_cache=cache)
        assert isinstance(found, Missing)
        assert found.files == ("config.json", FIRST, SECOND)
        assert found.reason.endswith(
            f"is incomplete: config.json, {FIRST} missing; {SECOND}: it has 8 of {len(FILES[SECOND])} bytes"
        )

    def test_weights_that_the_index_does_not_name_need_not_be_here(self, cache: Path) -> None:
        index = json.dumps({"weight_map": {"a": FIRST, "b": SECOND}}).encode()
        model = Model(name="m", repo=REPO, revision="a" * 40)
        snapshot = lay(cache, {**FILES, INDEX: index, "consolidated.safetensors": b"again"}, "a" * 40)
        (snapshot / "consolidated.safetensors").unlink()
        assert not isinstance(locate(model, hub_cache=cache), Missing)
        assert check(cache, model).state is ModelState.INTACT
        (snapshot / FIRST).unlink()
        found = locate(model, hub_cache=cache)
        assert isinstance(found, Missing)
        assert found.files == (FIRST,)
        assert the_broken_one(check(cache, model)).name == FIRST

    @pytest.mark.parametrize("cut", [True, False])
    def test_an_index_that_is_not_whole_is_what_is_missing(self, cache: Path, cut: bool) -> None:  # noqa: FBT001 - a parameter
        index = json.dumps({"weight_map": {"a": FIRST, "b": SECOND}}).encode()
        model = Model(name="m", repo=REPO, revision="a" * 40)
        snapshot = lay(cache, {**FILES, INDEX: index, "consolidated.safetensors": b"again"}, "a" * 40)
        (snapshot / "consolidated.safetensors").unlink()
        if cut:
            os.truncate(snapshot / INDEX, 5)
        else:
            (snapshot / INDEX).unlink()
        found = locate(model, hub_cache=cache)
        assert isinstance(found, Missing)
        assert found.files == (INDEX,)
        assert the_broken_one(check(cache, model)).name == INDEX

    def test_no_digest_is_computed(self, cache: Path) -> None:
        flip(snapshot_of(cache) / FIRST, -1)
        assert not isinstance(locate(MODEL, hub_cache=cache), Missing)


def test_what_huggingface_hub_downloaded_and_what_it_does_not_notice(tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only here, and slow to import

    model = Model(name="m", repo=REPO, revision=HUB_COMMIT)
    with serving(LoopbackHub(repo=REPO, files=FILES)) as hub:
        snapshot = Path(
            snapshot_download(REPO, revision=HUB_COMMIT, cache_dir=tmp_path, endpoint=hub.url, token=False)
        )
        assert states(check(tmp_path, model)) == dict.fromkeys(sorted(FILES), "intact")
        flip(snapshot / FIRST, -1)
        snapshot_download(REPO, revision=HUB_COMMIT, cache_dir=tmp_path, endpoint=hub.url, token=False)
        assert the_broken_one(check(tmp_path, model)).name == FIRST
