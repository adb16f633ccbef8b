"""The last minutes of a few series, and how they are drawn with characters."""

from __future__ import annotations

from collections import deque
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

KEPT_S = 3600
"""More than graphs show, unless samples are minutes apart."""
SHORTEST_WINDOW_S = 120
STEPS_S = (1, 2, 5, 10, 30, 60)
BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII = " .:#"


class History:
    """The means of some series over each second; a second without a value is a gap."""

    def __init__(self, series: int) -> None:
        self._series = range(series)
        self._slots: deque[tuple[int, list[float], list[int]]] = deque()

    def add(self, at_s: float, values: Sequence[float | None]) -> None:
        """Take in one value of each series, None for one that has none now. A clock set back begins anew."""
        second = int(at_s)
        if self._slots and second < self._slots[-1][0]:
            self._slots.clear()
        if not self._slots or second > self._slots[-1][0]:
            self._slots.append((second, [0.0 for _ in self._series], [0 for _ in self._series]))
        _, sums, counts = self._slots[-1]
        for index, value in enumerate(values):
            if value is not None:
                sums[index] += value
                counts[index] += 1
        while self._slots[0][0] <= second - KEPT_S:
            self._slots.popleft()

    def columns(self, count: int, step_s: int) -> list[list[float | None]]:
        """For each series its means over the last `count` steps of `step_s`, oldest first.

        Steps begin at whole multiples of their length, so that a graph moves by columns and never shimmers.
        """
        sums = [[0.0] * count for _ in self._series]
        counts = [[0] * count for _ in self._series]
        first = self._slots[-1][0] // step_s - count + 1 if self._slots else 0
        for second, slot_sums, slot_counts in reversed(self._slots):
            column = second // step_s - first
            if column < 0:
                break
            for index in self._series:
                sums[index][column] += slot_sums[index]
                counts[index][column] += slot_counts[index]
        return [
            [total / number if number else None for total, number in zip(*each, strict=True)]
            for each in zip(sums, counts, strict=True)
        ]


def step_for(columns: int, interval_s: float) -> int:
    """Seconds that one of `columns` stands for: together two minutes or more, each with a sample, be it late."""
    for step_s in STEPS_S:
        if step_s >= 2 * interval_s and step_s * columns >= SHORTEST_WINDOW_S:
            return step_s
    return STEPS_S[-1]


def graph(values: Sequence[float | None], top: float, rows: int, levels: str = BLOCKS) -> list[str]:
    """`rows` lines, the topmost first; `top` fills the height. A gap is empty, and nothing else is."""
    full = len(levels) - 1
    scale = rows * full / top if top > 0 else 0.0
    heights = [0 if value is None else max(1, min(rows * full, round(value * scale))) for value in values]
    return [
        "".join([levels[min(full, max(0, height - below))] for height in heights])
        for below in range((rows - 1) * full, -1, -full)
    ]


def cells(parts: Sequence[int], total: int, width: int) -> list[int]:
    """How many of `width` cells each part of `total` gets, rounded so that the sum is right."""
    edges = [min(width, round(edge * width / total)) for edge in accumulate(parts, initial=0)]
    return [end - begin for begin, end in pairwise(edges)]
