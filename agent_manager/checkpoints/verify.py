"""Every byte of a checkpoint against what its file should be, offline and at the disk's speed.

The Hub cache names a blob by its digest: the sha256 of a large file, the git blob's sha1 of a small one. A link
in a snapshot leads to `blobs/<digest>`, which may itself be a link into the store that repositories share
(`<hub cache>/blobs/<two digits>/<hash>`), whose names are Xet hashes and prove nothing here. Where a link has no
such name, as on a file system without links, the commit's list of files in `trees/` knows the digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.checkpoints.disk import (
    CONFIG,
    DIGEST,
    WEIGHTS,
    Listed,
    damage_of_weights,
    is_wanted,
    listed_files,
    main_branch,
    repo_folder,
    wanted_files,
)
from agent_manager.errors import CheckpointUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from agent_manager.catalog.agents import Model

CHUNK_BYTES: Final = 1 << 20
"""Small enough to be hashed out of the processor's cache, large enough that Python's share vanishes."""
_MOST_HOPS: Final = 8
_SHA256_DIGITS: Final = 64
_BLOBS: Final = "blobs"


class FileState(StrEnum):
    """What is known of a file. `UNVERIFIABLE`: nothing contradicts it, but no digest is known to prove it."""

    INTACT = "intact"
    CORRUPT = "corrupt"
    MISSING = "missing"
    UNVERIFIABLE = "unverifiable"


class ModelState(StrEnum):
    """What is known of a model: the worst of its files. `ABSENT`: nothing of it is here."""

    INTACT = "intact"
    CORRUPT = "corrupt"
    INCOMPLETE = "incomplete"
    ABSENT = "absent"
    UNVERIFIABLE = "unverifiable"


class FileCheck(Struct, frozen=True, kw_only=True):
    """A file of a checkpoint. `size_bytes` is what is there; `reason` says what is wrong with it."""

    name: str
    state: FileState
    size_bytes: int = 0
    reason: str | None = None


class ModelCheck(Struct, frozen=True, kw_only=True):
    """A model of the catalog.

    `checked_bytes` is the size of the files that were compared with what the Hub says of them. `reason` is set where
    there is more to say than the files do; `repaired` names those that were fetched again since.
    """

    name: str
    repo: str | None
    path: Path | None
    revision: str | None
    state: ModelState
    checked_bytes: int
    files: tuple[FileCheck, ...]
    reason: str | None = None
    repaired: tuple[str, ...] = ()

    @property
    def broken(self) -> tuple[FileCheck, ...]:
        """The files that are corrupt or missing."""
        return tuple(file for file in self.files if file.state in {FileState.CORRUPT, FileState.MISSING})


class VerifyProgress(Struct, frozen=True, kw_only=True):
    """Bytes read so far, over all models, of those that are to be read."""

    done_bytes: int
    total_bytes: int


class _File(Struct, frozen=True, kw_only=True, eq=False):
    """A file to check: `size_bytes` is what is there (None: nothing), `listed` what the Hub said of it."""

    name: str
    path: Path
    size_bytes: int | None
    listed: Listed
    digest: str | None


class _Survey(Struct, frozen=True, kw_only=True):
    """A model and its files before any is read."""

    model: Model
    revision: str | None
    here: bool
    files: tuple[_File, ...]
    reason: str | None = None


def verify(
    models: Sequence[Model],
    *,
    hub_cache: Path,
    on_progress: Callable[[VerifyProgress], None],
    only: frozenset[str] | None = None,
) -> tuple[ModelCheck, ...]:
    """Read every file of these models, on as many threads as there are cores; never the network.

    Blocks until all are read. `only` names the files to look at again, the others are left out. `on_progress` is
    called from the reading threads, one call at a time; an exception it raises ends the reading and is raised here.
    What is wrong is told in the result, never raised.
    """
    surveys = [_survey(model, hub_cache, only) for model in models]
    # The largest first, so that none is left to one thread while the others have nothing more to do.
    files = sorted(
        (file for survey in surveys for file in survey.files),
        key=lambda file: file.size_bytes or 0,
        reverse=True,
    )
    meter = _Meter(on_progress, total_bytes=sum(file.size_bytes or 0 for file in files))
    meter.add(0)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="verify") as pool:
        checks = dict(zip(files, pool.map(partial(_check, meter=meter), files), strict=True))
    return tuple(_model_check(survey, tuple(checks[file] for file in survey.files)) for survey in surveys)


class _Meter:
    """Counts bytes over all threads, and remembers what the listener raised so that every thread stops."""

    def __init__(self, listener: Callable[[VerifyProgress], None], *, total_bytes: int) -> None:
        self._listener = listener
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def add(self, size_bytes: int) -> None:
        """Count bytes that were read and tell the listener. Raises what it raised, in every thread."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._done_bytes += size_bytes
            try:
                self._listener(VerifyProgress(done_bytes=self._done_bytes, total_bytes=self._total_bytes))
            except BaseException as failure:
                self._failure = failure
                raise


def _survey(model: Model, hub_cache: Path, only: frozenset[str] | None) -> _Survey:
    """The files that a model should have, and those it has."""
    revision, folder, listed = None, model.path, dict[str, Listed]()
    absent = f"there is no folder {folder}"
    if model.repo is not None:
        storage = repo_folder(model.repo, hub_cache)
        revision = model.revision or main_branch(storage)
        folder = storage / "snapshots" / revision if revision else None
        listed = listed_files(storage, revision) if revision else {}
        absent = f"{model.repo}{f' at {revision[:12]}' if revision else ''} was never downloaded"
    try:
        if folder is None or not folder.is_dir():
            return _Survey(model=model, revision=revision, here=False, files=(), reason=absent)
        files = tuple(_files(folder, listed, only))
    except OSError as error:
        reason = f"{error.filename}: {error.strerror or error}"
        return _Survey(model=model, revision=revision, here=True, files=(), reason=reason)
    return _Survey(model=model, revision=revision, here=True, files=files)


def _files(folder: Path, listed: Mapping[str, Listed], only: frozenset[str] | None) -> Iterator[_File]:
    names = set(_names_in(folder)) | {CONFIG}
    with contextlib.suppress(CheckpointUnusable):  # a damaged index, which is looked at like any file
        names |= wanted_files(folder, listed).keys()
    for name in sorted(names):
        if only is None or name in only:
            file = _file(folder, name, listed.get(name, Listed()))
            # A stray file that nothing describes and no engine reads proves nothing either way.
            if file.digest or is_wanted(name):
                yield file


def _names_in(folder: Path) -> Iterator[str]:
    """Every file below `folder`, as the Hub names it; links to folders are not followed."""
    for parent, _, names in os.walk(folder, onerror=_raise):
        for name in names:
            yield (Path(parent) / name).relative_to(folder).as_posix()


def _raise(error: OSError) -> None:
    raise error


def _file(folder: Path, name: str, listed: Listed) -> _File:
    path = folder / name
    try:
        size_bytes = path.stat().st_size if path.is_file() else None
    except OSError:
        size_bytes = None
    return _File(
        name=name,
        path=path,
        size_bytes=size_bytes,
        listed=listed,
        digest=_digest_in_name(path) or listed.digest,
    )


def _digest_in_name(path: Path) -> str | None:
    """The digest that names the blob which `path` leads to, link by link."""
    for _ in range(_MOST_HOPS):
        if path.parent.name == _BLOBS and DIGEST.fullmatch(path.name):
            return path.name
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _check(file: _File, *, meter: _Meter) -> FileCheck:
    """Read one file to its end, or not at all where its length tells enough."""
    size_bytes = file.size_bytes
    if size_bytes is None:
        reason = "its blob is gone" if file.path.is_symlink() else None
        return FileCheck(name=file.name, state=FileState.MISSING, reason=reason)
    try:
        state, reason = _compare(file, size_bytes, meter)
    except OSError as error:  # a disk that cannot read it back, or a file that is not ours to read
        state, reason = FileState.CORRUPT, f"it cannot be read: {error.strerror or error}"
    return FileCheck(name=file.name, state=state, size_bytes=size_bytes, reason=reason)


def _compare(file: _File, size_bytes: int, meter: _Meter) -> tuple[FileState, str | None]:
    if file.listed.size_bytes not in {None, size_bytes}:
        meter.add(size_bytes)
        return FileState.CORRUPT, f"it has {size_bytes} of {file.listed.size_bytes} bytes"
    if file.digest is None:
        meter.add(size_bytes)
        damage = _visible_damage(file.path)
        return (FileState.CORRUPT, damage) if damage else (FileState.UNVERIFIABLE, None)
    if _digest_of(file.path, like=file.digest, size_bytes=size_bytes, meter=meter) == file.digest:
        return FileState.INTACT, None
    what = "sha256" if len(file.digest) == _SHA256_DIGITS else "sha1"
    return FileState.CORRUPT, _visible_damage(file.path) or f"its bytes do not match its {what}"


def _digest_of(path: Path, *, like: str, size_bytes: int, meter: _Meter) -> str:
    """A digest of the kind that `like` is: sha256, or git's sha1 of `blob <size>`, a zero byte and the content."""
    if len(like) == _SHA256_DIGITS:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    view = memoryview(bytearray(min(CHUNK_BYTES, max(1, size_bytes))))
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := file.readinto(view):
            digest.update(view[:count])
            meter.add(count)
    return digest.hexdigest()


def _visible_damage(path: Path) -> str | None:
    """What a file's own form says against it: a safetensors file's header and length, or JSON that is none."""
    if path.suffix == WEIGHTS:
        return damage_of_weights(path)
    if path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except ValueError:
            return "it is not JSON"
    return None


def again(check: ModelCheck, files: Iterable[FileCheck]) -> ModelCheck:
    """The check of a model once `files` of it were looked at again; those that are intact now were repaired."""
    newer = {file.name: file for file in files}
    merged = tuple(newer.get(file.name, file) for file in check.files)
    broken = {file.name for file in check.broken}
    return replace(
        check,
        state=_state(merged, check.reason),
        checked_bytes=_checked_bytes(merged),
        files=merged,
        repaired=tuple(
            file.name for file in merged if file.name in broken and file.state == FileState.INTACT
        ),
    )


def _model_check(survey: _Survey, files: tuple[FileCheck, ...]) -> ModelCheck:
    model = survey.model
    return ModelCheck(
        name=model.name,
        repo=model.repo,
        path=model.path,
        revision=survey.revision,
        state=_state(files, survey.reason) if survey.here else ModelState.ABSENT,
        checked_bytes=_checked_bytes(files),
        files=files,
        reason=survey.reason,
    )


def _checked_bytes(files: Iterable[FileCheck]) -> int:
    return sum(file.size_bytes for file in files if file.state in {FileState.INTACT, FileState.CORRUPT})


def _state(files: Iterable[FileCheck], reason: str | None) -> ModelState:
    states = {file.state for file in files}
    if FileState.CORRUPT in states:
        return ModelState.CORRUPT
    if reason or FileState.MISSING in states:
        return ModelState.INCOMPLETE
    return ModelState.UNVERIFIABLE if FileState.UNVERIFIABLE in states else ModelState.INTACT
