"""Which files of a repository an engine needs: every weight once, in one format."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from agent_manager.checkpoints.disk import CONFIG, INDEX, is_wanted
from agent_manager.errors import DownloadFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_manager.checkpoints.hub import RemoteFile

_WEIGHTS: Final = ".safetensors"
_SHARD: Final = re.compile(r"model-\d+-of-\d+\.safetensors")


def needed(
    repo: str, files: Sequence[RemoteFile], read: Callable[[RemoteFile], bytes]
) -> tuple[RemoteFile, ...]:
    """The files that an engine needs, of all that a repository has.

    Where an index names the shards, other safetensors files are the same weights once more and are left out; it
    is read (with `read`) only when there are any. Raises DownloadFailed when there is nothing to load.
    """
    wanted = [file for file in files if is_wanted(file.name)]
    weights = {file.name for file in wanted if file.name.endswith(_WEIGHTS)}
    index = next((file for file in wanted if file.name == INDEX), None)
    if index is not None and not all(_SHARD.fullmatch(name) for name in weights):
        weights &= _named(repo, read(index))
    if not weights or all(file.name != CONFIG for file in wanted):
        raise DownloadFailed(
            f"{repo} has no {CONFIG} with safetensors weights: no engine here can load it",
            hint="choose a repository with safetensors weights (AWQ, GPTQ, compressed-tensors or FP8), not GGUF",
            where=repo,
        )
    return tuple(file for file in wanted if file.name in weights or not file.name.endswith(_WEIGHTS))


def _named(repo: str, index: bytes) -> set[str]:
    """The files that an index names."""
    try:
        return set(json.loads(index)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadFailed(
            f"{repo}: its {INDEX} names no files",
            hint="choose another repository, or tell its owner",
            where=repo,
        ) from error
