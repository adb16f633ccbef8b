"""What an engine's log says of its memory: weights, KV cache, CUDA graphs. Texts as of vLLM 0.32.

Lines are told apart by their words, wherever they stand in the line; any may be missing: vLLM on the CPU prints
the KV cache's tokens alone. Sizes are as exact as the log's two decimals of a GiB.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent_manager.gpu.base import GIB
from agent_manager.planning.base import Measured

if TYPE_CHECKING:
    from collections.abc import Callable

_GIB: Final = r"(-?\d+(?:\.\d+)?) GiB"


def _bytes(text: str) -> int:
    return round(float(text) * GIB)


def _count(text: str) -> int:
    return int(text.replace(",", ""))


_LINES: Final[tuple[tuple[str, re.Pattern[str], Callable[[str], int]], ...]] = (
    ("weights_bytes", re.compile(rf"Model loading took {_GIB}"), _bytes),
    ("kv_cache_bytes", re.compile(rf"Available KV cache memory: {_GIB}"), _bytes),
    ("kv_tokens", re.compile(r"\w KV cache size: ([\d,]*\d) tokens"), _count),
    ("graph_bytes", re.compile(rf"Graph capturing finished in \d+ secs, took {_GIB}"), _bytes),
)
"""Fields of Measured, where the log says them, and how."""


class FigureReader:
    """The figures of one load, gathered line by line; what is said twice counts as it was said last."""

    def __init__(self) -> None:
        self._said: dict[str, int] = {}

    def feed(self, line: str) -> None:
        """Take what `line` says, if it says anything."""
        for name, pattern, read in _LINES:
            found = pattern.search(line)
            if found:
                self._said[name] = read(found[1])

    @property
    def measured(self) -> Measured | None:
        """What was said so far, without the settings that the engine ran with; None: nothing."""
        said = self._said
        if not said:
            return None
        return Measured(
            weights_bytes=said.get("weights_bytes"),
            kv_cache_bytes=said.get("kv_cache_bytes"),
            kv_tokens=said.get("kv_tokens"),
            graph_bytes=said.get("graph_bytes"),
        )
