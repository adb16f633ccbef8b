"""From the Hub into the Hub cache: plan what a checkpoint still needs, then fetch it, from where it was cut off."""

from __future__ import annotations

import asyncio
import errno
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from agent_manager.checkpoints import hub
from agent_manager.checkpoints.disk import Missing, locate
from agent_manager.checkpoints.fetching.patience import GO_ON, Patience
from agent_manager.checkpoints.fetching.plan import FilePlan, PullPlan, check_space
from agent_manager.checkpoints.fetching.progress import Progress
from agent_manager.checkpoints.layout import Storage
from agent_manager.checkpoints.wanted import needed
from agent_manager.errors import DownloadFailed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from agent_manager.catalog.agents import Model
    from agent_manager.checkpoints.fetching.progress import ProgressListener, RemarkListener
    from agent_manager.checkpoints.hub import RemoteFile

_PATIENCE: Final = Patience()


def plan_pull(
    model: Model,
    *,
    revision: str,
    hub_cache: Path,
    endpoint: str | None = None,
    only: Collection[str] | None = None,
    patience: Patience = _PATIENCE,
    on_remark: RemarkListener = lambda _: None,
) -> PullPlan:
    """What it takes to have a model here at one commit. Asks the Hub and looks at the disk; changes nothing.

    `only` restricts it to those files, which are then fetched again if they are here. Blocks. Raises DownloadFailed.
    """
    if model.repo is None:
        raise ValueError(f"model {model.name} is not on the Hub")
    repo = model.repo
    there = hub.listing(repo, revision=revision, endpoint=endpoint, patience=patience, on_remark=on_remark)

    def read(file: RemoteFile) -> bytes:
        return hub.read_range(
            repo, there.commit, file.name, start=0, length=file.size_bytes, endpoint=endpoint
        )

    if only is None:
        files = needed(repo, there.files, read)
    else:
        files = tuple(file for file in there.files if file.name in only)
        unknown = sorted(set(only) - {file.name for file in files})
        if unknown:
            raise DownloadFailed(f"{repo} has no file {unknown[0]} at {there.commit[:12]}", where=repo)
    storage = Storage(hub_cache=hub_cache, repo=repo, commit=there.commit)
    again = only is not None
    plans = (_file_plan(storage, file, again=again) for file in files)
    return PullPlan(listing=there, storage=storage, files=tuple(plans), again=again)


def _file_plan(storage: Storage, file: RemoteFile, *, again: bool) -> FilePlan:
    here_bytes = storage.partial_bytes(file) if again else storage.here_bytes(file)
    return FilePlan(file=file, here_bytes=here_bytes, fetch_bytes=file.size_bytes - here_bytes)


def pull(  # noqa: PLR0913 - what, where, and who is told
    model: Model,
    *,
    revision: str,
    hub_cache: Path,
    on_progress: ProgressListener,
    on_remark: RemarkListener = lambda _: None,
    endpoint: str | None = None,
    only: Collection[str] | None = None,
    patience: Patience = _PATIENCE,
) -> Path:
    """Download what an engine needs of a model at one commit into the Hub cache; returns the snapshot's folder.

    `only` restricts it to those files, which are fetched again if they are here; what is there stays until its
    successor is verified. See `plan_pull` and `fetch`, which are its two halves.
    """
    plan = plan_pull(
        model,
        revision=revision,
        hub_cache=hub_cache,
        endpoint=endpoint,
        only=only,
        patience=patience,
        on_remark=on_remark,
    )
    return fetch(
        model, plan, on_progress=on_progress, on_remark=on_remark, endpoint=endpoint, patience=patience
    )


def fetch(
    model: Model,
    plan: PullPlan,
    *,
    on_progress: ProgressListener,
    on_remark: RemarkListener = lambda _: None,
    endpoint: str | None = None,
    patience: Patience = _PATIENCE,
) -> Path:
    """Do what a plan says; returns the snapshot's folder.

    Blocks until it is complete, on an event loop of its own. Both listeners are called from this thread;
    `on_progress` ten times a second, whether or not bytes come, and what it raises ends the download and is raised
    here. Each file has its final name once its hash is right; one that is cut off goes on from there next time,
    in whatever process. Raises DownloadFailed: refused, unreachable, no space, damaged on its way.
    """
    from agent_manager.checkpoints.fetching.fetch import fetch_files  # noqa: PLC0415 - aiohttp; needed only to fetch

    storage, repo, missing = plan.storage, plan.listing.repo, plan.missing
    progress = Progress(
        {each.file.name: each.file.size_bytes for each in missing},
        {each.file.name: each.here_bytes for each in missing},
    )
    check_space(plan)
    with _disk_errors(repo, storage.hub_cache):
        # An unpinned model is read at what refs/main says; a pinned one needs no branch.
        with suppress(*() if missing else (OSError,)):  # a complete model may be on a read-only disk
            storage.begin(plan.listing.files, branch=None if model.revision else "main")
        work = fetch_files(
            [each.file for each in missing],
            storage=storage,
            origin=hub.origin(repo, plan.listing.commit, endpoint),
            patience=patience,
            progress=progress,
            on_progress=on_progress,
            on_remark=on_remark,
            again=plan.again,
        )
        asyncio.run(work)
    found = locate(replace(model, revision=plan.listing.commit), hub_cache=storage.hub_cache)
    if isinstance(found, Missing) and not plan.again:
        raise DownloadFailed(found.reason, hint=GO_ON, where=repo)
    return storage.snapshot


@contextmanager
def _disk_errors(repo: str, hub_cache: Path) -> Iterator[None]:
    """Say in our words what the disk does."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            said = f"the disk is full while downloading {repo}"
            hint = "free some space, then run the command again: it goes on from what is here"
        else:
            said = f"the Hub cache cannot be written: {error.strerror or error}"
            hint = "make it writable for this user, or set HF_HUB_CACHE to a folder that is"
        raise DownloadFailed(said, hint=hint, where=str(error.filename or hub_cache)) from error
