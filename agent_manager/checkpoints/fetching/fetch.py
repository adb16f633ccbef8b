"""Fetching files into the Hub cache: several at once, each verified before it has its final name."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from agent_manager.checkpoints.fetching.partial import Partial
from agent_manager.checkpoints.fetching.transfer import (
    LARGE_REQUESTS,
    SMALL_BYTES,
    SMALL_REQUESTS,
    Client,
    together,
)
from agent_manager.errors import DownloadFailed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from agent_manager.checkpoints.fetching.patience import Patience
    from agent_manager.checkpoints.fetching.progress import Progress, ProgressListener, RemarkListener
    from agent_manager.checkpoints.fetching.transfer import Origin
    from agent_manager.checkpoints.hub import RemoteFile
    from agent_manager.checkpoints.layout import Storage

    class Hash(Protocol):
        """Of hashlib."""

        def update(self, data: bytes, /) -> None:
            """Take in more."""
            ...

        def hexdigest(self) -> str:
            """What it comes to."""
            ...


TELL_EVERY_S: Final = 0.1
"""A listener hears this often, also when nothing comes: it is how a download is given up."""

_STEP_BYTES: Final = 16 << 20
_AT_ONCE_BYTES: Final = 1 << 20
"""Less than this is hashed where it is; handing it to a thread would take longer."""
_TRIES: Final = 2


class Fetcher:
    """One download: the files of one repository at one commit. `again`: also those that are here already."""

    def __init__(
        self, storage: Storage, progress: Progress, client: Client, say: RemarkListener, *, again: bool
    ) -> None:
        self._storage = storage
        self._progress = progress
        self._client = client
        self._say = say
        self._again = again
        self._small, self._large = asyncio.Semaphore(SMALL_REQUESTS), asyncio.Semaphore(LARGE_REQUESTS)

    async def all(self, files: Sequence[RemoteFile]) -> None:
        """Fetch them, in their order, small and large ones side by side."""
        await together(*(self._one(file) for file in files))

    async def _one(self, file: RemoteFile) -> None:
        async with self._small if file.size_bytes < SMALL_BYTES else self._large:
            if self._again or not self._here(file):
                async with self._storage.locked(file, lambda: self._say(_waiting(file))):
                    if self._again or not self._here(file):
                        await self._fetch(file)
            if not self._storage.complete(file):
                self._storage.link(file)
            self._progress.reached(file.name, file.size_bytes)

    def _here(self, file: RemoteFile) -> bool:
        return self._storage.complete(file) or self._storage.whole_blob(file)

    async def _fetch(self, file: RemoteFile) -> None:
        """Bring it under its final name. Raises DownloadFailed and OSError."""
        path = self._storage.partial(file)
        partial = Partial.open(path, file.size_bytes)
        try:
            digests = []
            for left in reversed(range(_TRIES)):
                self._progress.reached(file.name, partial.done_bytes)
                digests.append(await self._arrives(file, partial))
                if digests[-1] == file.blob or (file.sha256 is None and digests[-1] in digests[:-1]):
                    # A small file that comes the same twice: this server names it in a way of its own.
                    partial.finish(self._storage.blob(file))
                    return
                partial.restart()
                if left:
                    self._say(f"{file.name}: not the bytes that the Hub lists: fetching it again")
            partial.discard()
        finally:
            partial.close()
        raise DownloadFailed(
            f"{file.name} came damaged, {_TRIES} times: its hash is not the one that the Hub lists",
            hint="something between the Hub and this host changes files: check HTTPS_PROXY and HF_ENDPOINT",
            where=file.name,
        )

    async def _arrives(self, file: RemoteFile, partial: Partial) -> str:
        """Fetch what is missing, hashing behind it; the hash of all of it."""
        news, digest = asyncio.Event(), _hash_of(file)

        def arrived() -> None:
            self._progress.reached(file.name, partial.done_bytes)
            news.set()

        remote = self._client.remote(file.name, file.size_bytes)
        await together(self._client.fetch(remote, partial, arrived), _hash_behind(partial, digest, news))
        return digest.hexdigest()


async def fetch_files(  # noqa: PLR0913 - one download, in its parts
    files: Sequence[RemoteFile],
    *,
    storage: Storage,
    origin: Origin,
    patience: Patience,
    progress: Progress,
    on_progress: ProgressListener,
    on_remark: RemarkListener,
    again: bool,
) -> None:
    """Fetch `files` into `storage`, telling both listeners from this task; what they raise ends it and is raised.

    Raises DownloadFailed, and OSError for the disk. What is there by then is kept for the next time.
    """
    said: set[str] = set()

    def say(remark: str) -> None:
        if remark not in said:  # sixteen connections may break at once, of one cause
            said.add(remark)
            on_remark(remark)

    over = asyncio.Event()

    async def tell() -> None:
        while not over.is_set():
            on_progress(progress.now())
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), TELL_EVERY_S)

    async def work() -> None:
        async with Client(origin, patience, say) as client:
            await Fetcher(storage, progress, client, say, again=again).all(files)
        over.set()

    await together(work(), tell())
    on_progress(progress.now())


async def _hash_behind(partial: Partial, digest: Hash, news: asyncio.Event) -> None:
    """Hash a file as far as it is here without a gap, until all of it is. Pieces come in order, so this keeps up."""
    hashed = 0
    while hashed < partial.size_bytes:
        news.clear()
        end = min(partial.front, hashed + _STEP_BYTES)
        if end - hashed < _STEP_BYTES and end < partial.size_bytes:
            await news.wait()
        elif end - hashed <= _AT_ONCE_BYTES:
            digest.update(partial.read(hashed, end - hashed))
            hashed = end
        else:
            data = await asyncio.to_thread(partial.read, hashed, end - hashed)
            await asyncio.to_thread(digest.update, data)
            hashed = end


def _hash_of(file: RemoteFile) -> Hash:
    """What a blob is named by: sha256 in large file storage, else git's sha1."""
    if file.sha256 is not None:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)


def _waiting(file: RemoteFile) -> str:
    return f"another process is fetching {file.name}: waiting for it"
