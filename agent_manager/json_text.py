"""Values as JSON text, and back: their types say how.

The text is ASCII and made by Python's own json, since a file's name may be no UTF-8: it survives both ways.
"""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import TypeVar

from msgspec import convert, to_builtins

T = TypeVar("T")


def to_json(value: object, *, indent: int | None = None, in_order: bool = False) -> str:
    """The value as JSON: Structs as objects, times as ISO 8601, paths as strings. `in_order`: keys sorted.

    Raises NotImplementedError for what has no place in JSON.
    """
    return json.dumps(to_builtins(value, enc_hook=_other), indent=indent, sort_keys=in_order)


def from_json(text: str | bytes, kind: type[T]) -> T:
    """The `kind` that `text` says. Raises ValueError for anything else."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    return convert(found, kind)


def _other(value: object) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise NotImplementedError(f"JSON has no {type(value).__name__}")
