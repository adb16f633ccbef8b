"""What a pull will fetch, settled before it begins, and whether there is room for it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.errors import DownloadFailed

if TYPE_CHECKING:
    from agent_manager.checkpoints.hub import Listing, RemoteFile
    from agent_manager.checkpoints.layout import Storage

_GIB: Final = 1 << 30


class FilePlan(Struct, frozen=True, kw_only=True):
    """A file that an engine needs. `here_bytes` of it are on the disk, `fetch_bytes` have to come."""

    file: RemoteFile
    here_bytes: int
    fetch_bytes: int


class PullPlan(Struct, frozen=True, kw_only=True):
    """What it takes to have a model here. `again`: its files are fetched whether or not they are here."""

    listing: Listing
    storage: Storage
    files: tuple[FilePlan, ...]
    again: bool

    @property
    def size_bytes(self) -> int:
        """Of all files it is about."""
        return sum(each.file.size_bytes for each in self.files)

    @property
    def fetch_bytes(self) -> int:
        """What is not on the disk, neither whole nor in a partial file that goes on."""
        return sum(each.fetch_bytes for each in self.files)

    @property
    def missing(self) -> tuple[FilePlan, ...]:
        """The files that have to be fetched, or put where an engine looks for them."""
        if self.again:
            return self.files
        return tuple(each for each in self.files if not self.storage.complete(each.file))


def check_space(plan: PullPlan) -> None:
    """Raises DownloadFailed when the disk cannot hold the rest; says what others' partial files take there."""
    hub_cache = plan.storage.hub_cache
    existing = next(folder for folder in (hub_cache, *hub_cache.parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
    if plan.fetch_bytes <= free_bytes:
        return
    ours = {plan.storage.partial(each.file) for each in plan.files}
    blobs = (plan.storage.folder / "blobs").glob("*.incomplete")
    stale_bytes = sum(path.stat().st_blocks * 512 for path in blobs if path not in ours)
    stale = f" ({stale_bytes / _GIB:.2f} GiB are partial files of it, safe to delete)" if stale_bytes else ""
    repo = plan.listing.repo
    raise DownloadFailed(
        f"{repo} needs {_gib(plan.fetch_bytes)} more, {existing} has {_gib(free_bytes)} free{stale}",
        hint="free some space, or set HF_HUB_CACHE to a folder on a larger disk",
        where=str(hub_cache),
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.2f} GiB"
