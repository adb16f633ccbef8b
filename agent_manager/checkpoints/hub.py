"""Fetching checkpoints from the Hub. The only file that imports huggingface_hub, and only to fetch."""

from __future__ import annotations

import errno
import logging
import shutil
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self, cast

from agent_manager.checkpoints.disk import (
    CONFIG,
    UNWANTED_PATTERNS,
    WANTED_PATTERNS,
    Missing,
    locate,
    repo_folder,
)
from agent_manager.errors import DownloadFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from huggingface_hub import DryRunFileInfo

    from agent_manager.catalog.agents import Model

_GIB: Final = 1 << 30
_ASK_TIMEOUT_S: Final = 30.0
_BYTES_BAR: Final = "Reconstructing"
"""How the description of huggingface_hub's bar for bytes written begins (`_snapshot_download.py`)."""
_TRY_AGAIN: Final = "check this host's connection, then run the command again: finished files are kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class PullProgress:
    """How far a download is: bytes written of those that were not here when it began."""

    done_bytes: int
    total_bytes: int


def resolve_revision(repo: str, *, endpoint: str | None = None) -> str:
    """The commit that the repository's main branch has now. Asks the Hub; blocks for up to some seconds.

    `endpoint` None is $HF_ENDPOINT, or the public Hub. Raises DownloadFailed.
    """
    with _as_download_failed(repo, None):
        commit = _ask(repo, None, endpoint)
    if commit is None:
        raise DownloadFailed(
            f"the Hub names no commit for {repo}", hint="write its revision in the catalog", where=repo
        )
    return commit


def pull(
    model: Model,
    *,
    revision: str,
    hub_cache: Path,
    on_progress: Callable[[PullProgress], None],
    endpoint: str | None = None,
) -> Path:
    """Download what an engine needs of a model at one commit into the Hub cache; returns the snapshot's folder.

    Blocks until it is complete. `on_progress` is called from the downloading threads, one call at a time; an
    exception it raises ends the download and is raised here. Finished files are kept, a partial one starts again.
    Raises DownloadFailed: unknown, gated, unreachable, no space, or nothing an engine can load.
    """
    if model.repo is None:
        raise ValueError(f"model {model.name} is not on the Hub")
    progress = _Progress(on_progress)
    with _as_download_failed(model.repo, revision, progress):
        _ask(model.repo, revision, endpoint)  # fails at once where listing files would try for half a minute
        files = _snapshot(model.repo, revision, hub_cache, endpoint, dry_run=True)
        _check_loadable(model.repo, files)
        progress.total_bytes = sum(file.file_size or 0 for file in files if file.will_download)
        _check_space(model.repo, progress.total_bytes, hub_cache)
        progress.add(0)
        _snapshot(model.repo, revision, hub_cache, endpoint, tqdm_class=_bars(progress))
    found = locate(replace(model, revision=revision), hub_cache=hub_cache)
    if isinstance(found, Missing):
        raise DownloadFailed(found.reason, hint=_TRY_AGAIN, where=model.repo)
    return found.folder


class _Progress:
    """Counts bytes over all files, and remembers what the listener raised so that every thread stops."""

    def __init__(self, listener: Callable[[PullProgress], None]) -> None:
        self.total_bytes = 0
        self.failure: BaseException | None = None
        self._done_bytes = 0
        self._listener = listener
        self._lock = threading.Lock()

    def add(self, size_bytes: int) -> None:
        """Count bytes written (fewer than zero: written again) and tell the listener."""
        with self._lock:
            if self.failure is not None:
                raise self.failure
            self._done_bytes += size_bytes
            try:
                self._listener(PullProgress(done_bytes=self._done_bytes, total_bytes=self.total_bytes))
            except BaseException as failure:
                self.failure = failure
                raise


def _bars(progress: _Progress) -> type:
    """A class that stands in for tqdm and reports the one bar that counts bytes written.

    huggingface_hub makes three bars of it: bytes received, bytes written, files.
    """

    class Bar:
        def __init__(self, *_: object, desc: str = "", total: float | None = None, **__: object) -> None:
            self.n: float = 0
            self.total = total
            self.format_dict: dict[str, float | None] = {"rate": None}
            self._counts = desc.startswith(_BYTES_BAR)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self._counts:
                progress.add(int(n or 0))

        def _ignored(self, *_: object, **__: object) -> None:
            """Nothing to draw."""

        refresh = close = set_description = set_description_str = set_postfix_str = _ignored

    return Bar


def _ask(repo: str, revision: str | None, endpoint: str | None) -> str | None:
    """The commit that `revision`, or the main branch, is."""
    from huggingface_hub import HfApi  # noqa: PLC0415 - takes half a second; needed only to fetch

    return HfApi(endpoint=endpoint).model_info(repo, revision=revision, timeout=_ASK_TIMEOUT_S).sha


def _snapshot(
    repo: str, revision: str, hub_cache: Path, endpoint: str | None, **options: object
) -> list[DryRunFileInfo]:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - takes half a second; needed only to fetch

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what it warns of is checked or raised here
    answer = snapshot_download(
        repo,
        revision=revision,
        cache_dir=hub_cache,
        endpoint=endpoint,
        allow_patterns=list(WANTED_PATTERNS),
        ignore_patterns=list(UNWANTED_PATTERNS),
        **cast("Any", options),
    )
    return answer if isinstance(answer, list) else []


def _check_loadable(repo: str, files: Sequence[DryRunFileInfo]) -> None:
    names = {file.filename for file in files}
    if CONFIG not in names or not any(name.endswith(".safetensors") for name in names):
        raise DownloadFailed(
            f"{repo} has no {CONFIG} with safetensors weights: no engine here can load it",
            hint="choose a repository with safetensors weights (AWQ, GPTQ, compressed-tensors or FP8), not GGUF",
            where=repo,
        )


def _check_space(repo: str, needed_bytes: int, hub_cache: Path) -> None:
    """Raises DownloadFailed when the disk cannot hold the rest; says what partial downloads take there."""
    existing = next(folder for folder in (hub_cache, *hub_cache.parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes <= free_bytes:
        return
    partial_bytes = sum(
        path.stat().st_size for path in (repo_folder(repo, hub_cache) / "blobs").glob("*.incomplete")
    )
    partial = (
        f" ({partial_bytes / _GIB:.2f} GiB are partial files of it, safe to delete)" if partial_bytes else ""
    )
    raise DownloadFailed(
        f"{repo} needs {needed_bytes / _GIB:.2f} GiB more, {existing} has {free_bytes / _GIB:.2f} GiB free{partial}",
        hint="free some space, or set HF_HUB_CACHE to a folder on a larger disk",
        where=str(hub_cache),
    )


@contextmanager
def _as_download_failed(repo: str, revision: str | None, progress: _Progress | None = None) -> Iterator[None]:
    """Say the library's errors in our words. What a progress listener raised passes as it is."""
    from httpx2 import HTTPError  # noqa: PLC0415 - huggingface_hub's own HTTP library, loaded with it
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError  # noqa: PLC0415 - only to fetch

    try:
        yield
    except (HTTPError, OSError, EntryNotFoundError, HFValidationError, RuntimeError) as error:
        if progress is not None and error is progress.failure:
            raise
        raise _explained(_root(error), repo, revision) from error


def _root(error: BaseException) -> BaseException:
    """The error behind one that only says that nothing was cached either."""
    from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError  # noqa: PLC0415 - only to fetch

    while isinstance(error, DryRunError | LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _explained(error: BaseException, repo: str, revision: str | None) -> DownloadFailed:
    from httpx2 import HTTPError  # noqa: PLC0415 - huggingface_hub's own HTTP library, loaded with it
    from huggingface_hub import errors  # noqa: PLC0415 - only to fetch

    log_in = "log in with 'hf auth login', or set HF_TOKEN"
    match error:
        case errors.GatedRepoError():  # before RepositoryNotFoundError, which it is too
            said = (
                f"{repo} is gated: its owner wants its terms accepted",
                f"accept them on the Hub, then {log_in}",
            )
        case errors.RevisionNotFoundError():
            said = (
                f"{repo} has no commit {revision}",
                "correct its revision in the catalog or in models.lock.yaml",
            )
        case errors.RepositoryNotFoundError():
            said = (
                f"the Hub has no {repo}, or not for you",
                f"correct its name in the catalog; for a private one {log_in}",
            )
        case errors.DisabledRepoError():
            said = f"the Hub has disabled {repo}", "choose another repository"
        case errors.OfflineModeIsEnabled():
            said = f"{repo} is not here, and HF_HUB_OFFLINE forbids asking the Hub", "unset HF_HUB_OFFLINE"
        case errors.HFValidationError():
            said = f"'{repo}' is not a repository name", "write it as on the Hub, such as Qwen/Qwen3-14B-AWQ"
        case errors.HfHubHTTPError(response=response):
            said = (
                f"the Hub answered {response.status_code} for {repo}",
                "wait a little, then run the command again",
            )
        case HTTPError():
            said = f"the Hub cannot be reached for {repo}: {_line(error)}", _TRY_AGAIN
        case OSError(errno=errno.ENOSPC):
            said = f"the disk is full while downloading {repo}", "free some space, then run the command again"
        case _:
            said = f"the download of {repo} broke: {_line(error)}", _TRY_AGAIN
    return DownloadFailed(said[0], hint=said[1], where=repo)


def _line(error: BaseException) -> str:
    """An error's first line, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
