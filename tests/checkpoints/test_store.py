"""Deleting a commit from a Hub cache: what goes, what stays, and that huggingface_hub would do the same."""

from __future__ import annotations

import fcntl
import shutil
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import scan_cache_dir
from huggingface_hub.utils._shared_blobs import (
    publish_blob_to_shared_store,
)  # the layout as its owner makes it

from agent_manager.catalog.agents import Model
from agent_manager.checkpoints.disk import repo_folder
from agent_manager.checkpoints.store import Usage, plan_removal, remove, usage
from agent_manager.errors import OperationFailed, UsageError

from .test_verify import COMMIT, FILES, FIRST, MODEL, REPO, SECOND, blob_name, lay

if TYPE_CHECKING:
    from pathlib import Path

    from agent_manager.checkpoints.store import Removal

OTHER = "b" * 40
CHANGED = {**FILES, SECOND: FILES[SECOND] + b"!", "config.json": b"{}"}


def below(folder: Path) -> set[str]:
    """Every file and link, relative; locks are litter of both programs."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file()) and path.suffix != ".lock"
    }


def sizes(cache: Path) -> int:
    """Bytes of all files; who uses what in the shared store is bookkeeping."""
    files = (path for path in cache.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files if path.suffix != ".refs")


def deleted(cache: Path, model: Model = MODEL) -> Removal:
    """Delete it, and hold what was said of the bytes against the disk."""
    removal = plan_removal(model, hub_cache=cache)
    before = sizes(cache)
    remove(removal)
    assert before - sizes(cache) == removal.freed_bytes
    return removal


def test_the_only_commit_goes_with_its_folder(tmp_path: Path) -> None:
    lay(tmp_path, FILES)
    storage = repo_folder(REPO, tmp_path)
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text(COMMIT)
    (storage / "blobs" / "feed.agent-manager.incomplete").write_bytes(bytes(5000))
    (tmp_path / "models--Some--Other").mkdir()
    (tmp_path / "models--Some--Other" / "x").touch()
    removal = deleted(tmp_path)
    assert (removal.revision, removal.kept_revisions) == (COMMIT, ())
    assert below(tmp_path) == {"models--Some--Other/x"}
    assert not storage.exists()


def test_another_commit_stays_with_every_file_it_needs(tmp_path: Path) -> None:
    lay(tmp_path, FILES)
    lay(tmp_path, CHANGED, OTHER)
    storage = repo_folder(REPO, tmp_path)
    own = storage / "blobs" / f"{blob_name(SECOND, FILES[SECOND])}.agent-manager.incomplete"
    theirs = storage / "blobs" / f"{blob_name(SECOND, CHANGED[SECOND])}.agent-manager.incomplete"
    for partial in (own, theirs):
        partial.write_bytes(bytes(5000))
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text(OTHER)
    (storage / "refs" / "v1").write_text(COMMIT)
    removal = deleted(tmp_path)
    assert removal.kept_revisions == (OTHER,)
    assert {path.name for path in (storage / "snapshots").iterdir()} == {OTHER}
    assert all(
        (storage / "snapshots" / OTHER / name).read_bytes() == content for name, content in CHANGED.items()
    )
    assert {path.name for path in (storage / "blobs").iterdir()} == {
        theirs.name,
        *(blob_name(name, content) for name, content in CHANGED.items()),
    }
    assert {path.name for path in (storage / "refs").iterdir()} == {"main"}
    assert {path.name for path in (storage / "trees").iterdir()} == {f"{OTHER}.json"}


@pytest.mark.parametrize("commits", [1, 2])
def test_huggingface_hub_would_leave_the_same(tmp_path: Path, commits: int) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    lay(ours, FILES)
    if commits == 2:
        lay(ours, CHANGED, OTHER)
    shutil.copytree(ours, theirs, symlinks=True)
    removal = deleted(ours)
    strategy = scan_cache_dir(theirs).delete_revisions(COMMIT)
    strategy.execute()
    (repo_folder(REPO, theirs) / "trees" / f"{COMMIT}.json").unlink(missing_ok=True)  # it leaves that behind
    assert below(ours) == below(theirs)
    tree_bytes = removal.freed_bytes - strategy.expected_freed_size
    assert 0 <= tree_bytes < 4096


class TestSharedStore:
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        """Two repositories whose first shard is one file in the store that they share."""
        cache = tmp_path / "hub"
        lay(cache, FILES)
        self.share(cache, REPO)
        return cache

    @staticmethod
    def share(cache: Path, repo: str) -> None:
        blob = repo_folder(repo, cache) / "blobs" / blob_name(FIRST, FILES[FIRST])
        assert publish_blob_to_shared_store(
            blob_path=str(blob),
            xet_hash="cd" * 32,
            cache_dir=cache,
            expected_size=len(FILES[FIRST]),
            replace_existing=False,
        )
        assert blob.is_symlink()

    def test_what_only_this_repository_used_goes(self, cache: Path) -> None:
        deleted(cache)
        assert below(cache) == {"blobs/.huggingface-shared-blobs"}

    def test_what_another_repository_uses_stays(self, cache: Path) -> None:
        other = repo_folder("Some/Other", cache)
        shutil.copytree(repo_folder(REPO, cache), other, symlinks=True)
        blob = other / "blobs" / blob_name(FIRST, FILES[FIRST])
        blob.unlink()
        blob.write_bytes(FILES[FIRST])
        self.share(cache, "Some/Other")
        removal = deleted(cache)
        assert removal.freed_bytes < len(FILES[FIRST])
        assert blob.read_bytes() == FILES[FIRST]
        deleted(cache, Model(name="other", repo="Some/Other", revision=COMMIT))
        assert below(cache) == {"blobs/.huggingface-shared-blobs"}

    def test_what_another_repository_begins_to_use_meanwhile_stays(self, cache: Path) -> None:
        removal = plan_removal(MODEL, hub_cache=cache)
        other = repo_folder("Some/Other", cache)
        (other / "blobs").mkdir(parents=True)
        blob = other / "blobs" / blob_name(FIRST, FILES[FIRST])
        blob.write_bytes(FILES[FIRST])
        self.share(cache, "Some/Other")
        remove(removal)
        assert blob.read_bytes() == FILES[FIRST]

    @pytest.mark.parametrize("lost", ["manifest", "marker"])
    def test_without_a_word_on_who_uses_it_nothing_shared_goes(self, cache: Path, lost: str) -> None:
        shared = cache / "blobs" / "cd" / ("cd" * 32)
        (
            shared.with_name(f"{shared.name}.refs")
            if lost == "manifest"
            else cache / "blobs" / ".huggingface-shared-blobs"
        ).unlink()
        deleted(cache)
        assert shared.read_bytes() == FILES[FIRST]

    def test_its_bytes_count_once(self, cache: Path) -> None:
        lay(cache, {FIRST: FILES[FIRST]} | {"x.json": b"{}"}, OTHER)
        self_bytes = usage(REPO, cache).disk_bytes
        assert len(FILES[FIRST]) < self_bytes < 2 * len(FILES[FIRST])


class TestLinks:
    """Nothing outside the cache is ever deleted or counted."""

    @pytest.mark.parametrize("name", ["", "snapshots", "blobs", "refs", "trees"])
    def test_a_folder_that_is_a_link_is_refused(self, tmp_path: Path, name: str) -> None:
        lay(tmp_path / "hub", FILES)
        linked = repo_folder(REPO, tmp_path / "hub") / name
        outside = tmp_path / "outside"
        if linked.exists():
            linked.rename(outside)
        else:
            outside.mkdir()
        linked.symlink_to(outside)
        before = below(tmp_path)
        with pytest.raises(OperationFailed, match=r"is a link to .*outside: nothing was deleted"):
            plan_removal(MODEL, hub_cache=tmp_path / "hub")
        assert below(tmp_path) == before

    def test_a_blob_that_is_a_link_elsewhere_loses_only_the_link(self, tmp_path: Path) -> None:
        snapshot = lay(tmp_path / "hub", FILES)
        precious = tmp_path / "precious.safetensors"
        precious.write_bytes(FILES[FIRST])
        blob = (snapshot / FIRST).resolve()
        blob.unlink()
        blob.symlink_to(precious)
        folder = tmp_path / "photos"
        folder.mkdir()
        (folder / "me.png").touch()
        (snapshot / "assets").symlink_to(folder)
        removal = deleted(tmp_path / "hub")
        assert removal.freed_bytes < len(FILES[FIRST])
        assert precious.read_bytes() == FILES[FIRST]
        assert (folder / "me.png").exists()
        assert not repo_folder(REPO, tmp_path / "hub").exists()


def test_nothing_of_it_is_here(tmp_path: Path) -> None:
    assert plan_removal(MODEL, hub_cache=tmp_path).paths == ()
    lay(tmp_path, FILES, OTHER)
    removal = plan_removal(MODEL, hub_cache=tmp_path)
    assert (removal.paths, removal.freed_bytes, removal.kept_revisions) == ((), 0, (OTHER,))


def test_a_download_that_never_ended(tmp_path: Path) -> None:
    blobs = repo_folder(REPO, tmp_path) / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / f"{'c' * 64}.agent-manager.incomplete").open("wb") as file:
        file.write(bytes(8192))
        file.truncate(1 << 30)  # sparse, as a partial file is
    here = usage(REPO, tmp_path)
    assert here == Usage(disk_bytes=here.partial_bytes, partial_bytes=here.partial_bytes)
    assert 8192 <= here.partial_bytes < 1 << 20
    removal = plan_removal(MODEL, hub_cache=tmp_path)
    assert removal.freed_bytes == here.partial_bytes
    remove(removal)
    assert below(tmp_path) == set()


def test_while_it_is_downloaded_nothing_goes(tmp_path: Path) -> None:
    lay(tmp_path, FILES)
    removal = plan_removal(MODEL, hub_cache=tmp_path)
    locks = tmp_path / ".locks" / repo_folder(REPO, tmp_path).name
    locks.mkdir(parents=True)
    before = below(tmp_path)
    with (locks / f"{blob_name(FIRST, FILES[FIRST])}.lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OperationFailed, match="is being downloaded now"):
            remove(removal)
        assert below(tmp_path) == before
    remove(removal)
    assert not repo_folder(REPO, tmp_path).exists()


def test_a_folder_of_the_users_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder of yours"):
        plan_removal(Model(name="mine", path=tmp_path), hub_cache=tmp_path)


class TestUsage:
    def test_of_a_complete_model(self, tmp_path: Path) -> None:
        lay(tmp_path, FILES)
        assert usage(REPO, tmp_path) == Usage(disk_bytes=sizes(tmp_path), partial_bytes=0)

    def test_of_nothing(self, tmp_path: Path) -> None:
        assert usage(REPO, tmp_path) == Usage()
