"""The header of a safetensors file: which tensors it holds, their types and sizes; and what an index names. Pure.

eight bytes       the header's length, little-endian
JSON              {"name": {"dtype": "BF16", "shape": [...], "data_offsets": [first, end]}, ...}
the tensors
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.errors import CheckpointUnusable

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADER_LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 100_000_000
"""The limit of the safetensors library itself (safetensors/src/tensor.rs, MAX_HEADER_SIZE)."""


class Tensor(Struct, frozen=True, kw_only=True):
    """One entry of a safetensors header. `dtype` as written there: `BF16`, `I32`, `F8_E4M3`; empty if it is not."""

    name: str
    size_bytes: int
    dtype: str


def header_length(prefix: bytes, *, file_bytes: int, where: str) -> int:
    """The length of the JSON header that the first eight bytes of a safetensors file announce.

    Raises CheckpointUnusable, naming `where`, when it cannot be right for a file of `file_bytes`.
    """
    length = int.from_bytes(prefix, "little")
    if len(prefix) < HEADER_LENGTH_BYTES or not 0 < length <= min(
        file_bytes - HEADER_LENGTH_BYTES, MAX_HEADER_BYTES
    ):
        raise _corrupt(where, "its header is not that of a safetensors file")
    return length


def parse_header(header: bytes, *, file_bytes: int, where: str) -> tuple[Tensor, ...]:
    """The tensors that a safetensors header lists; `header` is the JSON behind the first eight bytes.

    Raises CheckpointUnusable, naming `where`, when it is corrupt or the file is shorter than its tensors.
    """
    try:
        entries = json.loads(header)
    except ValueError as error:
        raise _corrupt(where, "its header is not JSON") from error
    if not isinstance(entries, dict):
        raise _corrupt(where, "its header is not a table of tensors")
    tensors = []
    end_bytes = 0
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        first, last = _offsets(entry, where)
        end_bytes = max(end_bytes, last)
        tensors.append(Tensor(name=name, size_bytes=last - first, dtype=str(entry.get("dtype", ""))))
    expected_bytes = HEADER_LENGTH_BYTES + len(header) + end_bytes
    if file_bytes != expected_bytes:
        raise _corrupt(where, f"it has {file_bytes} bytes, its header says {expected_bytes}")
    return tuple(tensors)


def indexed_files(index: Mapping[str, object], *, where: str) -> frozenset[str]:
    """The files that a `model.safetensors.index.json` names. Raises CheckpointUnusable, naming `where`.

    vLLM loads these and no others (`filter_duplicate_safetensors_files`).
    """
    weight_map = index.get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(isinstance(name, str) and name and "/" not in name for name in names):
        raise CheckpointUnusable(
            f"{where}: weight_map does not name files of its folder",
            hint="the file is damaged; delete it and fetch it again",
            where=where,
        )
    return frozenset(names)


def _offsets(entry: object, where: str) -> tuple[int, int]:
    match entry:
        case {"data_offsets": [int(first), int(last)]} if 0 <= first <= last:
            return first, last
        case _:
            raise _corrupt(where, "its header has a tensor without valid offsets")


def _corrupt(where: str, reason: str) -> CheckpointUnusable:
    return CheckpointUnusable(
        f"{where}: {reason}",
        hint="the file is damaged or incomplete; delete it and fetch it again",
        where=where,
    )
