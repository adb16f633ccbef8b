"""The cases as a picture: small multiples, a column for each figure, a row for each swap cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.scheduling.report import POLICIES, SWAP_COSTS_S, cases

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

COLUMNS = {
    "swaps": "swaps",
    "makespan_s": "makespan, s",
    "mean_s": "mean wait, s",
    "p50_s": "p50 wait, s",
    "p95_s": "p95 wait, s",
    "worst_s": "worst wait, s",
}
MARKS = {
    "first come": ("o", 5, "#bbbbbb"),
    "collation": ("s", 8, "#e69f00"),
    "agent-manager": ("D", 4, "#0072b2"),
}
LEAST_S = 0.1
"""What is drawn for nothing at all: the axes are logarithmic."""


def draw(path: Path) -> None:
    """Write the picture as SVG: the same bytes for the same figures and the same matplotlib."""
    with mpl.rc_context({"svg.hashsalt": "scheduling", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(14, 8.5), layout="constrained")
        axes = figure.subplots(len(SWAP_COSTS_S), len(COLUMNS), sharey=True)
        for row, swap_s in enumerate(SWAP_COSTS_S):
            for column, (name, title) in enumerate(COLUMNS.items()):
                _panel(axes[row][column], name, swap_s)
                if row == 0:
                    axes[row][column].set_title(title)
            axes[row][0].set_ylabel(f"swaps of {swap_s:.0f} s")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(POLICIES), frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _panel(axes: Axes, figure: str, swap_s: float) -> None:
    shown = [case for case in cases() if case.swap_s == swap_s]
    places = range(len(shown))
    for policy in POLICIES:
        values = [max(LEAST_S, getattr(case.by_policy[policy.name], figure)) for case in shown]
        mark, size, colour = MARKS[policy.name]
        axes.plot(values, places, linestyle="", marker=mark, markersize=size, color=colour, label=policy.name)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_yticks(places, [case.trace for case in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(visible=True, axis="y", color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    if figure not in ("swaps", "makespan_s"):
        axes.set_xlim(left=LEAST_S)
