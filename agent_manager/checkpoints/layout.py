"""Writing the Hub cache as huggingface_hub 2.4 does, so that every other tool finds what is fetched here.

`disk.py` draws the layout. Beside it, `<hub cache>/.locks/models--Org--Name/<blob>.lock` is held (flock) by whoever
fetches that blob: huggingface_hub and this program wait for each other.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.checkpoints.disk import repo_folder
from agent_manager.checkpoints.fetching.partial import SUFFIX, done_bytes_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from agent_manager.checkpoints.hub import RemoteFile

_TREE_FORMAT: Final = 1
_LOCK_POLL_S: Final = 0.2
_LOCK_MODE: Final = 0o664
"""As huggingface_hub: users of a shared cache wait for each other."""


class Storage(Struct, frozen=True, kw_only=True):
    """Where the cache keeps one repository at one commit. Methods that write may raise OSError."""

    hub_cache: Path
    repo: str
    commit: str

    @property
    def folder(self) -> Path:
        """The repository's folder."""
        return repo_folder(self.repo, self.hub_cache)

    @property
    def snapshot(self) -> Path:
        """The commit's folder: what an engine reads."""
        return self.folder / "snapshots" / self.commit

    def blob(self, file: RemoteFile) -> Path:
        """Where a file's bytes are."""
        return self.folder / "blobs" / file.blob

    def partial(self, file: RemoteFile) -> Path:
        """Where a file's bytes are while they arrive."""
        return self.folder / "blobs" / f"{file.blob}{SUFFIX}"

    def pointer(self, file: RemoteFile) -> Path:
        """Where an engine finds a file."""
        return self.snapshot / file.name

    def here_bytes(self, file: RemoteFile) -> int:
        """How much of a file is on the disk. Under its final name, one of another size counts for nothing."""
        if self.complete(file) or self.whole_blob(file):
            return file.size_bytes
        return self.partial_bytes(file)

    def partial_bytes(self, file: RemoteFile) -> int:
        """How much of a file its partial file holds."""
        return done_bytes_at(self.partial(file), file.size_bytes)

    def whole_blob(self, file: RemoteFile) -> bool:
        """Whether a file's bytes are here under their final name, as far as their size tells."""
        return _size_bytes(self.blob(file)) == file.size_bytes

    def complete(self, file: RemoteFile) -> bool:
        """Whether a file is where an engine looks for it, as far as its size tells."""
        return _size_bytes(self.pointer(file)) == file.size_bytes

    def begin(self, files: Iterable[RemoteFile], *, branch: str | None) -> None:
        """Make the folders, and keep the commit's list of files; `branch` is one that has this commit now."""
        for folder in (self.folder / "blobs", self.snapshot):
            folder.mkdir(parents=True, exist_ok=True)
        tree = self.folder / "trees" / f"{self.commit}.json"
        if not tree.exists():
            entries = {file.name: _entry(file) for file in sorted(files, key=lambda file: file.name)}
            _write(tree, json.dumps({"format_version": _TREE_FORMAT, "files": entries}, indent=1))
        ref = self.folder / "refs" / (branch or "")
        if branch and (not ref.exists() or ref.read_text("utf-8") != self.commit):
            _write(ref, self.commit)

    def link(self, file: RemoteFile) -> None:
        """Let an engine find a file whose blob is here."""
        pointer = self.pointer(file)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        fresh = pointer.with_name(f".{pointer.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(self.blob(file), pointer.parent))
        fresh.replace(pointer)

    @asynccontextmanager
    async def locked(self, file: RemoteFile, waiting: Callable[[], None]) -> AsyncIterator[None]:
        """Be the only one who fetches this blob. Calls `waiting` once if another process is, and waits for it."""
        path = self.hub_cache / ".locks" / self.folder.name / f"{file.blob}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _LOCK_MODE)
        try:
            if not _locks(descriptor):
                waiting()
                while not _locks(descriptor):  # noqa: ASYNC110 - flock tells nobody when it is free
                    await asyncio.sleep(_LOCK_POLL_S)
            yield
        finally:
            os.close(descriptor)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            return False
        raise
    return True


def _entry(file: RemoteFile) -> dict[str, object]:
    """A file in `trees/<commit>.json`, as huggingface_hub's `_tree_cache.py` has it."""
    entry: dict[str, object] = {"size": file.size_bytes, "blob_id": file.git_blob or file.blob}
    if file.sha256 is not None:
        entry |= {"lfs_sha256": file.sha256, "lfs_size": file.size_bytes}
    if file.xet_hash is not None:
        entry["xet_hash"] = file.xet_hash
    return entry


def _size_bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write(path: Path, text: str) -> None:
    """Write a small file so that a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
