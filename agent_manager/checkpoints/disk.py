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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent_manager.checkpoints.facts import (
    HEADER_LENGTH_BYTES,
    Facts,
    Origin,
    Tensor,
    facts_from,
    header_length,
    parse_header,
)
from agent_manager.checkpoints.known import known_facts
from agent_manager.errors import CheckpointUnusable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model's files, complete. `revision` is the commit, None for a `path:` model."""

    folder: Path
    revision: str | None
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A Hub model that is not here, or not all of it: `files` are the absent ones, as far as that is known.

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
    """Find a model's files. Reads a few small files, never the network.

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
    for path in sorted(folder / name for name in _weight_names(folder)):
        file_tensors, size_bytes = _read_header(path)
        tensors.extend(file_tensors)
        disk_bytes += size_bytes
    return facts_from(config, tensors, disk_bytes=disk_bytes, origin=Origin.DISK, where=str(config_path))


def facts_of(model: Model, *, hub_cache: Path) -> Facts | None:
    """What is known of a model: from its files when they are here, else from the well-known checkpoints.

    None when neither knows it. Raises CheckpointUnusable as `locate` and `facts_on_disk` do.
    """
    match locate(model, hub_cache=hub_cache):
        case Checkpoint(folder=folder):
            return facts_on_disk(folder)
        case Missing():
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
        absent = _absent(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    if absent:
        raise CheckpointUnusable(
            f"model '{name}': {folder} lacks {_listed(absent)}",
            hint="copy the rest of the model there; an engine needs config.json and safetensors weights",
            where=where,
        )
    return Checkpoint(folder=folder, revision=None, size_bytes=_size_bytes(folder))


def _in_cache(repo: str, revision: str | None, hub_cache: Path) -> Checkpoint | Missing:
    storage = repo_folder(repo, hub_cache)
    commit = revision or _main_branch(storage)
    if commit is None:
        return Missing(reason=f"{repo} was never downloaded", revision=None)
    folder = storage / "snapshots" / commit
    try:
        if not folder.is_dir():
            return Missing(reason=f"{repo} at {commit[:12]} was never downloaded", revision=commit)
        absent = _absent(folder, listed=_tree(storage, commit))
    except OSError as error:
        raise _unreadable(folder, error) from error
    if absent:
        reason = f"{repo} at {commit[:12]} is incomplete: {_listed(absent)} missing"
        return Missing(reason=reason, revision=commit, files=absent)
    return Checkpoint(folder=folder, revision=commit, size_bytes=_size_bytes(folder))


def _absent(folder: Path, *, listed: Iterable[str] = ()) -> tuple[str, ...]:
    """The files that should be in `folder` and are not; a link to a blob that is gone counts as absent."""
    expected = {CONFIG, *_weight_names(folder), *listed}
    return tuple(sorted(name for name in expected if not (folder / name).is_file()))


def _weight_names(folder: Path) -> frozenset[str]:
    """The weight files the index names, else all there are; `*.safetensors` itself when there is none.

    vLLM chooses in the same way (`filter_duplicate_safetensors_files`).
    """
    index_path = folder / INDEX
    if not index_path.is_file():
        return frozenset(path.name for path in folder.glob("*.safetensors")) or frozenset({"*.safetensors"})
    weight_map = _read_json(index_path).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointUnusable(
            f"{index_path}: weight_map does not name files of its folder",
            hint="the file is damaged; delete it and fetch it again",
            where=str(index_path),
        )
    return frozenset(names)


def _tree(storage: Path, commit: str) -> tuple[str, ...]:
    """The wanted files of a commit as huggingface_hub listed them; none when it kept no list we can read."""
    try:
        files = json.loads((storage / "trees" / f"{commit}.json").read_text("utf-8"))["files"]
        return tuple(name for name in files if is_wanted(name))
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _main_branch(storage: Path) -> str | None:
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
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            length = header_length(file.read(HEADER_LENGTH_BYTES), file_bytes=size_bytes, where=str(path))
            return parse_header(file.read(length), file_bytes=size_bytes, where=str(path)), size_bytes
    except OSError as error:
        raise _unreadable(path, error) from error


def _listed(names: tuple[str, ...], most: int = 3) -> str:
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
