"""One row of the table, and how rows are measured and printed."""

from __future__ import annotations

import statistics
import subprocess
import time
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class SkippedError(Exception):
    """It cannot be measured here; the message says why."""


class Row(Struct, frozen=True, kw_only=True):
    """A figure beside its yardstick and the bound it has to keep."""

    what: str
    figure: str
    yardstick: str
    bound: str
    kept: bool


def seconds_of(argv: Sequence[str], environ: Mapping[str, str]) -> float:
    """Wall time of one run of a program that must succeed."""
    began = time.perf_counter()
    subprocess.run(argv, env=dict(environ), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def ratio(subject: Callable[[], float], yardstick: Callable[[], float], runs: int) -> tuple[float, float]:
    """Median of subject ÷ yardstick, pair by pair, and the yardstick's median seconds; one warm-up pair first."""
    subject(), yardstick()
    pairs = [(subject(), yardstick()) for _ in range(runs)]
    return statistics.median(a / b for a, b in pairs), statistics.median(b for _, b in pairs)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    head = ("what", "measured", "yardstick", "bound", "kept")
    cells = [
        (row.what, row.figure, row.yardstick, row.bound, "yes" if row.kept else "**no**") for row in rows
    ]
    widths = [max(len(line[column]) for line in [head, *cells]) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
             for line in [head, tuple("-" * width for width in widths), *cells]]  # fmt: skip
    return "\n".join(lines)
