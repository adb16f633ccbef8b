"""Bringing checkpoints here: which, in which order, what it would take, and what it took."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.catalog.agents import Model
from agent_manager.catalog.lockfile import record_revision
from agent_manager.catalog.values import RefusedError, parse_repo
from agent_manager.checkpoints.disk import Checkpoint, hub_cache_from, locate
from agent_manager.errors import DownloadFailed, Interrupted, UsageError
from agent_manager.swap.notices import PullProgress, Remark, Step, StepBegan

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from agent_manager.catalog.agents import Catalog
    from agent_manager.checkpoints.fetching.plan import PullPlan
    from agent_manager.checkpoints.fetching.progress import PullProgress as Progress
    from agent_manager.swap.host import Host
    from agent_manager.swap.notices import Listener

T = TypeVar("T")

_END_S = 1.0
"""How long a download that is given up has to put its things in order; killed, it would lose nothing either."""


class FileOutline(Struct, frozen=True, kw_only=True):
    """A file that an engine needs; `fetch_bytes` of it are not here."""

    name: str
    size_bytes: int
    fetch_bytes: int


class PullOutline(Struct, frozen=True, kw_only=True):
    """What a pull of a model would fetch. `files` is empty, and nothing to fetch, where all of it is here."""

    name: str
    repo: str | None
    revision: str | None
    pinned: bool
    size_bytes: int
    fetch_bytes: int
    files: tuple[FileOutline, ...]


class Pulled(Struct, frozen=True, kw_only=True):
    """A model that is here now. `fetched_bytes` came; `took_s` is None where all of it was here already."""

    name: str
    repo: str | None
    revision: str | None
    folder: Path
    size_bytes: int
    fetched_bytes: int
    took_s: float | None


def agents_models(catalog: Catalog) -> tuple[Model, ...]:
    """The models of all agents, each once, in the catalog's order."""
    return tuple({agent.model.name: agent.model for agent in catalog.agents.values()}.values())


def repository(catalog: Catalog, name: str) -> Model:
    """A repository of the Hub by its own name, as a model: the catalog's, where it declares it. Raises UsageError."""
    for model in catalog.models.values():
        if model.repo == name:
            return model
    try:
        repo = parse_repo(name)
    except RefusedError as refused:
        raise UsageError(f"'{name}': {refused.message}", hint=refused.hint) from None
    return Model(name=repo, repo=repo)


async def outline(host: Host, models: Sequence[Model]) -> tuple[PullOutline, ...]:
    """What a pull of these models would fetch. Asks the Hub where something is missing; changes nothing.

    Raises CheckpointUnusable for a broken folder, DownloadFailed.
    """
    return tuple([await _outline(host, model) for model in models])


async def pull_models(host: Host, models: Sequence[Model], *, listener: Listener) -> tuple[Pulled, ...]:
    """Bring these models here, one after the other; those that fail do not keep the others from coming.

    What is here already is not fetched again. Raises CheckpointUnusable for a broken folder, and DownloadFailed at
    the end for what failed.
    """
    pulled: list[Pulled] = []
    failed: list[tuple[Model, DownloadFailed]] = []
    for model in models:
        try:
            pulled.append(await _pull(host, model, listener))
        except DownloadFailed as failure:
            failed.append((model, failure))
            if len(models) > 1:
                listener(Remark(message=f"{model.name}: {failure.message}", warning=True))
    if len(failed) > 1:
        names = ", ".join(model.name for model, _ in failed)
        hint = failed[0][1].hint
        raise DownloadFailed(f"{len(failed)} of {len(models)} models were not pulled: {names}", hint=hint)
    if failed:
        raise failed[0][1]
    return tuple(pulled)


async def fetch(
    host: Host, model: Model, *, listener: Listener, only: Collection[str] | None = None
) -> Model:
    """Fetch a checkpoint, at its commit or at the one its main branch has now, which is then recorded.

    `only` are files that are fetched again, whether or not they are here. Raises DownloadFailed.
    """
    fetched, _ = await _fetch(host, model, listener, only)
    return fetched


async def _outline(host: Host, model: Model) -> PullOutline:
    here = await _here(host, model)
    if here is not None:
        return PullOutline(
            name=model.name,
            repo=model.repo,
            revision=here.revision,
            pinned=model.revision is not None,
            size_bytes=here.size_bytes,
            fetch_bytes=0,
            files=(),
        )
    plan = await _in_thread(lambda: _plan(host, model, None))
    files = (
        FileOutline(name=each.file.name, size_bytes=each.file.size_bytes, fetch_bytes=each.fetch_bytes)
        for each in plan.files
    )
    return PullOutline(
        name=model.name,
        repo=model.repo,
        revision=plan.listing.commit,
        pinned=model.revision is not None,
        size_bytes=plan.size_bytes,
        fetch_bytes=plan.fetch_bytes,
        files=tuple(files),
    )


async def _pull(host: Host, model: Model, listener: Listener) -> Pulled:
    began = time.monotonic()
    here, fetched_bytes = await _here(host, model), None
    if here is None:
        fetched, fetched_bytes = await _fetch(host, model, listener, None)
        here = await _here(host, fetched)
    if here is None:
        raise DownloadFailed(f"{model.name} is not here after all", hint="run the command again")
    return Pulled(
        name=model.name,
        repo=model.repo,
        revision=here.revision,
        folder=here.folder,
        size_bytes=here.size_bytes,
        fetched_bytes=fetched_bytes or 0,
        took_s=None if fetched_bytes is None else time.monotonic() - began,
    )


async def _here(host: Host, model: Model) -> Checkpoint | None:
    """The model's files, if all of them are here; an unpinned one has to be asked for at the Hub."""
    if model.repo is not None and model.revision is None:
        return None
    found = await asyncio.to_thread(locate, model, hub_cache=hub_cache_from(host.environ))
    return found if isinstance(found, Checkpoint) else None


def _plan(
    host: Host, model: Model, only: Collection[str] | None, say: Callable[[str], None] = lambda _: None
) -> PullPlan:
    """What to fetch, at the model's commit or the one that its main branch has now. Blocks."""
    from agent_manager.checkpoints import hub  # noqa: PLC0415 - its library costs more than all else
    from agent_manager.checkpoints.fetching import pull  # noqa: PLC0415 - likewise

    if model.repo is None:
        raise AssertionError("a folder is never pulled")
    revision = model.revision or hub.resolve_revision(model.repo, on_remark=say)
    cache = hub_cache_from(host.environ)
    return pull.plan_pull(model, revision=revision, hub_cache=cache, only=only, on_remark=say)


async def _fetch(
    host: Host, model: Model, listener: Listener, only: Collection[str] | None
) -> tuple[Model, int]:
    """Fetch it; the model at its commit, and how many bytes came."""
    given_up = threading.Event()
    listener(StepBegan(step=Step.PULLING, agent=model.name))

    def tell(now: Progress) -> None:
        if given_up.is_set():
            raise Interrupted(f"the pull of {model.name} was given up")
        listener(
            PullProgress(
                model=model.name, done_bytes=now.done_bytes, total_bytes=now.total_bytes, files=now.files
            )
        )

    def say(message: str) -> None:
        listener(Remark(message=message))

    def work() -> PullPlan:
        from agent_manager.checkpoints.fetching import pull  # noqa: PLC0415 - its library costs more than all else

        plan = _plan(host, model, only, say)
        pull.fetch(model, plan, on_progress=tell, on_remark=say)
        return plan

    plan = await _in_thread(work, given_up)
    commit = plan.listing.commit
    if model.revision is None and model.repo is not None and model.name in host.catalog.models:
        record_revision(host.catalog.source, model.repo, commit, state_root=host.state.root)
    return replace(model, revision=commit), plan.fetch_bytes


async def _in_thread(work: Callable[[], T], given_up: threading.Event | None = None) -> T:
    """What `work` returns. Cancelled, it sets `given_up`, waits a moment for the thread's end and leaves it behind.

    A thread of asyncio's own pool would hold up the end of the program until the network has answered.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type] # without an error it is what `work` gave

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001 - the top of a thread: it is raised where it is waited for
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            return  # the loop is over, and so is whoever wanted to know

    thread = threading.Thread(target=run, daemon=True, name="pull")
    thread.start()
    try:
        return await answer
    except asyncio.CancelledError:
        if given_up is not None:
            given_up.set()
            await asyncio.shield(asyncio.to_thread(thread.join, _END_S))
        raise
