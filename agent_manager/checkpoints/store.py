"""What a repository takes in the Hub cache, and deleting a commit of it. Nothing here follows a link out of it.

A blob may be a link into the store that repositories share, `<hub cache>/blobs/<two digits>/<xet hash>`. Beside
each file of that store, `<xet hash>.refs` names the blobs that lead to it, one on each line, relative to the cache,
and whoever changes either holds `<xet hash>.lock` (huggingface_hub's `utils/_shared_blobs.py`, version 2.4).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.checkpoints.disk import listed_files, main_branch, repo_folder
from agent_manager.errors import OperationFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent_manager.catalog.agents import Model

_PARTIAL: Final = ".incomplete"
_BLOCK_BYTES: Final = 512
"""The unit of st_blocks (stat(2))."""
_XET_HASH: Final = re.compile(r"[0-9a-f]{64}")
_MARKER: Final = ".huggingface-shared-blobs"
_MARKED: Final = "1\n"
_FOLDERS: Final = ("snapshots", "refs", "trees", "blobs")
"""In the order of deletion: whatever interrupts it, no snapshot leads to blobs that are gone."""


class Usage(Struct, frozen=True, kw_only=True):
    """Bytes on disk of a repository in the Hub cache, all commits; `partial_bytes` of them are unfinished files."""

    disk_bytes: int = 0
    partial_bytes: int = 0


class Removal(Struct, frozen=True, kw_only=True):
    """What deleting a model would delete: `paths` in that order, then `shared`, to which nothing else leads.

    `kept_revisions` are other commits of the same repository, which stay with the blobs they need.
    """

    model: str
    repo: str
    revision: str | None
    hub_cache: Path
    paths: tuple[Path, ...]
    shared: tuple[Path, ...]
    freed_bytes: int
    kept_revisions: tuple[str, ...]


def usage(repo: str, hub_cache: Path) -> Usage:
    """What a repository takes now; nothing where it was never downloaded or cannot be read. Reads no file."""
    folder = repo_folder(repo, hub_cache)
    sizes: dict[Path, int] = {}
    for path in _below(folder):
        target = _shared_target(path, hub_cache) if path.parent == folder / "blobs" else None
        sizes[target or path] = _size_bytes(target or path)
    partial_bytes = sum(size for path, size in sizes.items() if path.suffix == _PARTIAL)
    return Usage(disk_bytes=sum(sizes.values()), partial_bytes=partial_bytes)


def plan_removal(model: Model, *, hub_cache: Path) -> Removal:
    """What would go if a model were deleted: its commit's files, but no blob that another commit needs.

    `hub_cache` is absolute. Nothing goes where nothing of the commit is here. Raises UsageError for a `path:` model,
    OperationFailed for a folder that is a link or cannot be read.
    """
    if model.repo is None:
        raise UsageError(
            f"model '{model.name}' is a folder of yours, not a download: {model.path}",
            hint="delete it by hand if you no longer need it",
            where=f"models.{model.name}.path",
        )
    folder = repo_folder(model.repo, hub_cache)
    try:
        _refuse_links(folder)
        revision = model.revision or main_branch(folder)
        snapshots = (path.name for path in _entries(folder / "snapshots") if path.is_dir())
        others = tuple(name for name in snapshots if name != revision)
        paths = tuple(_doomed(folder, revision, others) if others else _whole(folder))
        gone = frozenset(_blobs(paths))
        targets = {_shared_target(blob, hub_cache) for blob in gone} - {None}
        shared = tuple(sorted(target for target in targets if target and _frees(target, gone, hub_cache)))
        freed_bytes = sum(_size_bytes(path) for path in {path for top in paths for path in _below(top)})
    except OSError as error:
        raise _failed(error, folder) from error
    return Removal(
        model=model.name,
        repo=model.repo,
        revision=revision,
        hub_cache=hub_cache,
        paths=paths,
        shared=shared,
        freed_bytes=freed_bytes + sum(map(_size_bytes, shared)),
        kept_revisions=others,
    )


def remove(removal: Removal) -> None:
    """Delete what the plan names. Raises OperationFailed while it is being downloaded, or where the disk refuses."""
    with _no_download(removal.repo, removal.hub_cache):
        try:
            for path in removal.paths:
                _delete(path)
        except OSError as error:
            raise _failed(error, repo_folder(removal.repo, removal.hub_cache)) from error
        for target in removal.shared:
            _sweep(target, removal.hub_cache)


def _whole(folder: Path) -> Iterator[Path]:
    yield from (path for path in (*(folder / name for name in _FOLDERS), folder) if os.path.lexists(path))


def _doomed(folder: Path, revision: str | None, others: Iterable[str]) -> Iterator[Path]:
    """One commit: its snapshot, its list, the branches it is, and the blobs that no other commit names."""
    if revision is None:
        return
    kept = {name for other in others for name in _needed(folder, other)}
    own = set(_needed(folder, revision)) - kept
    tops = (folder / "snapshots" / revision, folder / "trees" / f"{revision}.json")
    yield from (path for path in tops if os.path.lexists(path))
    yield from (path for path in _below(folder / "refs") if _says(path, revision))
    yield from (path for path in _entries(folder / "blobs") if path.name.split(".")[0] in own)


def _needed(folder: Path, revision: str) -> Iterator[str]:
    """The names of the blobs that a commit's snapshot leads to or its list names."""
    for path in _below(folder / "snapshots" / revision):
        if path.is_symlink():
            yield path.readlink().name
    for file in listed_files(folder, revision).values():
        if file.digest:
            yield file.digest


def _says(ref: Path, revision: str) -> bool:
    try:
        return ref.read_text("utf-8").strip() == revision
    except (OSError, UnicodeDecodeError):
        return False


def _blobs(paths: Iterable[Path]) -> Iterator[Path]:
    """The entries of `blobs/` among what is deleted."""
    for path in paths:
        if path.parent.name == "blobs":
            yield path
        elif path.name == "blobs":
            yield from _entries(path)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _below(path: Path) -> Iterator[Path]:
    """Every file and link at or below `path`, none of them followed."""
    if path.is_symlink() or not path.is_dir():
        if os.path.lexists(path):
            yield path
        return
    for parent, folders, names in os.walk(path):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        yield from (Path(parent) / name for name in (*names, *links))


def _size_bytes(path: Path) -> int:
    """What deleting `path` gives back: a sparse file takes less than its length, a hard link nothing."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        return 0
    return min(found.st_size, found.st_blocks * _BLOCK_BYTES)


def _refuse_links(folder: Path) -> None:
    """Raises OperationFailed when the repository's folder, or one in it, is a link to somewhere else."""
    for path in (folder, *(folder / name for name in _FOLDERS)):
        if path.is_symlink():
            raise OperationFailed(
                f"{path} is a link to {path.readlink()}: nothing was deleted",
                hint="delete by hand what it leads to, then the link",
                where=str(path),
            )


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _no_download(repo: str, hub_cache: Path) -> Iterator[None]:
    """Hold the locks under which this repository's files are downloaded. Raises OperationFailed if one is taken."""
    with contextlib.ExitStack() as held:
        for path in _entries(hub_cache / ".locks" / repo_folder(repo, hub_cache).name):
            try:
                file = held.enter_context(path.open("rb"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OperationFailed(
                    f"{repo} is being downloaded now: nothing was deleted",
                    hint="wait for the download to end, or end it",
                    where=str(path),
                ) from None
            except OSError as error:
                raise _failed(error, path) from error
        yield


def _shared_target(blob: Path, hub_cache: Path) -> Path | None:
    """The file of the shared store that a blob is a link to; None for any other link or file."""
    if not blob.is_symlink():
        return None
    store = Path(os.path.normpath(hub_cache)) / "blobs"
    target = Path(os.path.normpath(blob.parent / blob.readlink()))
    inside = target.parent.parent == store and target.parent.name == target.name[:2]
    if not inside or not _XET_HASH.fullmatch(target.name) or target.is_symlink() or not target.is_file():
        return None
    try:
        return target if (store / _MARKER).read_text("utf-8") == _MARKED else None
    except (OSError, UnicodeDecodeError):
        return None


def _users(target: Path, hub_cache: Path) -> set[Path] | None:
    """The blobs that lead to a file of the shared store; None when that cannot be told."""
    try:
        lines = target.with_name(f"{target.name}.refs").read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    named = {hub_cache / line for line in lines if _is_blob_name(line)}
    return {blob for blob in named if _shared_target(blob, hub_cache) == target}


def _frees(target: Path, gone: frozenset[Path], hub_cache: Path) -> bool:
    """Whether nothing leads to a file of the shared store but the blobs that are deleted."""
    users = _users(target, hub_cache)
    return users is not None and set() < users <= gone


def _is_blob_name(line: str) -> bool:
    parts = Path(line).parts
    return len(parts) == len(("repository", "blobs", "name")) and parts[1] == "blobs" and ".." not in parts


def _sweep(target: Path, hub_cache: Path) -> None:
    """Delete a file of the shared store unless a blob still leads to it, or nobody can tell."""
    with contextlib.suppress(OSError):
        descriptor = os.open(
            target.with_name(f"{target.name}.lock"),
            os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o666,
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _users(target, hub_cache) == set():
                target.unlink()
                target.with_name(f"{target.name}.refs").unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _failed(error: OSError, where: Path) -> OperationFailed:
    return OperationFailed(
        f"{error.filename or where}: {error.strerror or error}",
        hint="make it readable and writable for this user, then run the command again",
        where=str(where),
    )
