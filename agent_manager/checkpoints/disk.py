"""Checkpoints on this machine: local folders and the standard Hub cache, read without the Hub's library.

    <hub cache>/models--Org--Name/
      refs/<branch>            the commit a branch had when it was last looked up
      snapshots/<commit>/      links to blobs; what an engine reads
      trees/<commit>.json      every file of that commit, written by huggingface_hub
      blobs/                   the bytes, and *.incomplete while they arrive

The layout is huggingface_hub's (its `_tree_cache.py` and `constants.py`, version 2.4).
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.checkpoints.facts import Facts, Origin, facts_from
from agent_manager.checkpoints.headers import (
    HEADER_LENGTH_BYTES,
    Tensor,
    header_length,
    indexed_files,
    parse_header,
)
from agent_manager.checkpoints.known import known_facts
from agent_manager.errors import CheckpointUnusable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_manager.catalog.agents import Model

WANTED_PATTERNS: Final = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
)
"""Files an engine needs: weights, configuration, tokenizer, chat template."""
UNWANTED_PATTERNS: Final = ("*/*",)
"""Nothing below a folder: those hold other formats of the same weights."""

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
WEIGHTS: Final = ".safetensors"
NO_WEIGHTS: Final = "*.safetensors"
"""What is told to be missing where there are none, and nothing says how they are named."""

DIGEST: Final = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
"""The sha256 of a large file, or the git blob's sha1 of a small one: the name of its blob."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_MISSING: Final = "missing"


class Checkpoint(Struct, frozen=True, kw_only=True):
    """A model's files, complete. `revision` is the commit, None for a `path:` model."""

    folder: Path
    revision: str | None
    size_bytes: int


class Listed(Struct, frozen=True, kw_only=True):
    """What the Hub says of a file of a commit, None where that is not known.

    `digest` is the sha256 of a large file (64 digits), the git blob's sha1 of a small one (40).
    """

    size_bytes: int | None = None
    digest: str | None = None


class Missing(Struct, frozen=True, kw_only=True):
    """A Hub model that is not here, or not all of it.

    `files` are those that are absent or not whole, as far as that is known.

    `revision` is the commit looked for, None when none is pinned and none was ever looked up.
    """

    reason: str
    revision: str | None
    files: tuple[str, ...] = ()


def hub_cache_from(environ: Mapping[str, str]) -> Path:
    """The Hub cache that huggingface_hub uses under this environment."""
    cache = environ.get("XDG_CACHE_HOME", "~/.cache")
    home = environ.get("HF_HOME", f"{cache}/huggingface")
    hub = environ.get("HF_HUB_CACHE", environ.get("HUGGINGFACE_HUB_CACHE", f"{home}/hub"))
    return Path(os.path.expandvars(hub)).expanduser().absolute()


def repo_folder(repo: str, hub_cache: Path) -> Path:
    """Where the cache keeps a repository."""
    return hub_cache / f"models--{repo.replace('/', '--')}"


def is_wanted(name: str) -> bool:
    """Whether an engine needs this file of a repository."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in WANTED_PATTERNS) and not any(
        fnmatch.fnmatchcase(name, pattern) for pattern in UNWANTED_PATTERNS
    )


def locate(model: Model, *, hub_cache: Path) -> Checkpoint | Missing:
    """Find a model's files, and whether each has its length. Reads a few small files, never the network.

    A Hub model without a pinned commit is looked for at the one its main branch had when last looked up.
    Raises CheckpointUnusable for a `path:` model whose folder is absent or incomplete, or a damaged index.
    """
    if model.path is not None:
        return _in_folder(model.name, model.path)
    if model.repo is None:
        raise ValueError(f"model {model.name} has neither a repository nor a path")
    return _in_cache(model.repo, model.revision, hub_cache)


def facts_on_disk(folder: Path) -> Facts:
    """Read `config.json` and the weights' headers in `folder`. Raises CheckpointUnusable, naming the file."""
    config_path = folder / CONFIG
    config = _read_json(config_path)
    tensors: list[Tensor] = []
    disk_bytes = 0
    for path in sorted(folder / name for name in weight_names(folder)):
        file_tensors, size_bytes = _read_header(path)
        tensors.extend(file_tensors)
        disk_bytes += size_bytes
    return facts_from(config, tensors, disk_bytes=disk_bytes, origin=Origin.DISK, where=str(config_path))


def facts_of(model: Model, *, hub_cache: Path) -> Facts | None:
    """What is known of a model: from its files when they are here, else from the well-known checkpoints.

    None when neither knows it. Raises CheckpointUnusable as `locate` and `facts_on_disk` do.
    """
    return facts_at(locate(model, hub_cache=hub_cache), model)


def facts_at(place: Checkpoint | Missing, model: Model) -> Facts | None:
    """As `facts_of`, for what `locate` found of that model."""
    if isinstance(place, Checkpoint):
        return facts_on_disk(place.folder)
    return known_facts(model.repo) if model.repo else None


def _in_folder(name: str, folder: Path) -> Checkpoint:
    where = f"models.{name}.path"
    try:
        if not folder.is_dir():
            raise CheckpointUnusable(
                f"model '{name}': there is no folder {folder}",
                hint="correct its path in the catalog, or put the model's files there",
                where=where,
            )
        broken = _broken(folder, {})
    except OSError as error:
        raise _unreadable(folder, error) from error
    absent = tuple(file for file, damage in broken.items() if damage == _MISSING)
    if absent:
        raise CheckpointUnusable(
            f"model '{name}': {folder} lacks {shortened(absent)}",
            hint="copy the rest of the model there; an engine needs config.json and safetensors weights",
            where=where,
        )
    if broken:
        raise CheckpointUnusable(
            f"model '{name}': in {folder} {_told(broken)}", hint="copy the model there again", where=where
        )
    return Checkpoint(folder=folder, revision=None, size_bytes=_size_bytes(folder))


def _in_cache(repo: str, revision: str | None, hub_cache: Path) -> Checkpoint | Missing:
    storage = repo_folder(repo, hub_cache)
    commit = revision or main_branch(storage)
    if commit is None:
        return Missing(reason=f"{repo} was never downloaded", revision=None)
    folder = storage / "snapshots" / commit
    try:
        if not folder.is_dir():
            return Missing(reason=f"{repo} at {commit[:12]} was never downloaded", revision=commit)
        broken = _broken(folder, listed_files(storage, commit))
    except OSError as error:
        raise _unreadable(folder, error) from error
    if broken:
        reason = f"{repo} at {commit[:12]} is incomplete: {_told(broken)}"
        return Missing(reason=reason, revision=commit, files=tuple(broken))
    return Checkpoint(folder=folder, revision=commit, size_bytes=_size_bytes(folder))


def wanted_files(folder: Path, listed: Mapping[str, Listed]) -> dict[str, int | None]:
    """The files that an engine needs of `folder`, with their sizes as far as they are listed.

    The commit's list says which those are, but of its weights only what the index names: others are the same once
    more. Without a list, the index and what is there decide. Raises CheckpointUnusable for a damaged index, OSError.
    """
    sizes = {name: file.size_bytes for name, file in listed.items() if is_wanted(name)}
    sizes.setdefault(CONFIG, None)
    others = {name: size for name, size in sizes.items() if not name.endswith(WEIGHTS)}
    if INDEX in sizes and _damage(folder / INDEX, sizes[INDEX]):
        # It cannot say which weights are needed; those that are here should be whole.
        return others | {name: size for name, size in sizes.items() if (folder / name).is_file()}
    if INDEX in sizes or sizes == others:
        return others | {name: sizes.get(name) for name in weight_names(folder)}
    return sizes


def _broken(folder: Path, listed: Mapping[str, Listed]) -> dict[str, str]:
    """The files that an engine needs of `folder` and that are not whole, and what is wrong with each."""
    damage = {
        name: _damage(folder / name, size) for name, size in sorted(wanted_files(folder, listed).items())
    }
    return {name: found for name, found in damage.items() if found}


def _damage(path: Path, expected_bytes: int | None) -> str | None:
    """What can be told against a file without reading it; a link to a blob that is gone is a missing file."""
    if not path.is_file():
        return _MISSING
    if expected_bytes is not None:
        size_bytes = path.stat().st_size
        return None if size_bytes == expected_bytes else f"it has {size_bytes} of {expected_bytes} bytes"
    return damage_of_weights(path) if path.suffix == WEIGHTS else None


def damage_of_weights(path: Path) -> str | None:
    """What the header of a safetensors file says against its length; None when they agree. Raises OSError."""
    try:
        _header_of(path)
    except CheckpointUnusable as error:
        return error.message.removeprefix(f"{path}: ")
    return None


def _told(broken: Mapping[str, str]) -> str:
    """`a, b missing; c: it has 5 of 10 bytes`."""
    absent = tuple(name for name, damage in broken.items() if damage == _MISSING)
    damaged = tuple(f"{name}: {damage}" for name, damage in broken.items() if damage != _MISSING)
    parts = [f"{shortened(absent)} missing"] if absent else []
    return "; ".join(parts + ([shortened(damaged)] if damaged else []))


def weight_names(folder: Path) -> frozenset[str]:
    """The weight files the index names, else all there are, else NO_WEIGHTS.

    vLLM chooses in the same way (`filter_duplicate_safetensors_files`). Raises CheckpointUnusable for an index
    that names nothing, OSError.
    """
    index_path = folder / INDEX
    if not index_path.is_file():
        return frozenset(path.name for path in folder.glob(f"*{WEIGHTS}")) or frozenset({NO_WEIGHTS})
    return indexed_files(_read_json(index_path), where=str(index_path))


def listed_files(storage: Path, commit: str) -> dict[str, Listed]:
    """The files of a commit as huggingface_hub listed them; none when it kept no list that can be read."""
    try:
        files = json.loads((storage / "trees" / f"{commit}.json").read_text("utf-8"))["files"]
        return {name: _listed(entry) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _listed(entry: Mapping[str, object]) -> Listed:
    size = entry.get("lfs_size", entry.get("size"))
    digest = entry.get("lfs_sha256", entry.get("blob_id"))
    return Listed(
        size_bytes=size if isinstance(size, int) else None,
        digest=digest if isinstance(digest, str) and DIGEST.fullmatch(digest) else None,
    )


def main_branch(storage: Path) -> str | None:
    """The commit that the main branch had when it was last looked up; None when it never was."""
    try:
        commit = (storage / "refs" / "main").read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if is_wanted(path.name) and path.is_file())


def _read_json(path: Path) -> dict[str, object]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise _damaged(path, "it is not JSON") from error
    if not isinstance(document, dict):
        raise _damaged(path, "it is not a JSON object")
    return document


def _read_header(path: Path) -> tuple[tuple[Tensor, ...], int]:
    try:
        return _header_of(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _header_of(path: Path) -> tuple[tuple[Tensor, ...], int]:
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        length = header_length(file.read(HEADER_LENGTH_BYTES), file_bytes=size_bytes, where=str(path))
        return parse_header(file.read(length), file_bytes=size_bytes, where=str(path)), size_bytes


def shortened(names: tuple[str, ...], most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _damaged(path: Path, reason: str) -> CheckpointUnusable:
    return CheckpointUnusable(
        f"{path}: {reason}", hint="the file is damaged; delete it and fetch it again", where=str(path)
    )


def _unreadable(path: Path, error: OSError) -> CheckpointUnusable:
    return CheckpointUnusable(
        f"{path}: {error.strerror or error}",
        hint="make it readable for this user, or fetch the model again",
        where=str(path),
    )
