"""A recorded session of `gpu-stats` as a picture: panels over one time axis, by matplotlib, without a display."""

from __future__ import annotations

import io
import logging
import math
import statistics
from itertools import pairwise
from typing import TYPE_CHECKING

from agent_manager.cli import stats_record
from agent_manager.cli.output import DAY_S, GIB, seconds
from agent_manager.errors import HostNotReady, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from agent_manager.cli.stats_record import Row

FORMATS = {".svg": {"Date": None}, ".png": {"Software": None}}
"""What is drawn by the suffix, and what is left out so that one recording gives one picture."""
INCHES = (11.0, 9.0)
DOTS_PER_INCH = 120
HEADROOM = 1.25
"""A panel's height over that of its values: the legend stands there."""
MOST = 4000
PAUSE = 5
"""So many times the usual distance between two rows is a gap: a recording can be added to later."""
NOBODY = "no agent"
COLOURS = ("tab:green", "tab:blue", "tab:purple", "tab:brown", "tab:pink", "tab:cyan")


def plot(recording: Path, out: Path) -> None:
    """Draw a recording of `gpu-stats --csv`. Blocks for a second or two.

    Raises UsageError for another suffix than .svg and .png, and for what is no recording or an empty one;
    HostNotReady when the picture cannot be written.
    """
    if out.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{out}: pictures are .svg or .png", hint="choose a name with one of them", where=str(out)
        )
    rows = stats_record.read(recording)
    if not rows:
        raise UsageError(f"{recording}: it holds no samples yet", where=str(recording))
    try:
        out.write_bytes(_picture(_thinned(rows), out.suffix.lower()))
    except OSError as error:
        reason = error.strerror or str(error)
        raise HostNotReady(
            f"{out}: {reason}", hint="choose a file that can be written", where=str(out)
        ) from error


def _picture(rows: Sequence[Row], suffix: str) -> bytes:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache
    import matplotlib as mpl  # noqa: PLC0415 - takes half a second, and only --plot needs it
    from matplotlib.figure import Figure  # noqa: PLC0415 - likewise

    drawn = io.BytesIO()
    with mpl.rc_context(
        {
            "svg.hashsalt": "agent-manager",
            "svg.fonttype": "none",
            "axes.grid": True,
            "date.converter": "concise",
            "grid.alpha": 0.3,
        }
    ):
        figure = Figure(figsize=INCHES, layout="constrained")
        _draw(figure, rows)
        figure.savefig(drawn, format=suffix[1:], dpi=DOTS_PER_INCH, metadata=FORMATS[suffix])
    return drawn.getvalue()


def _thinned(rows: Sequence[Row]) -> list[Row]:
    """Every n-th row, as many as a picture can show, and each with a swap; an empty one where the session paused."""
    step = -(-len(rows) // MOST)
    kept = [row for number, row in enumerate(rows) if number % step == 0 or row.arrived is not None]
    distances = [(after.time - before.time).total_seconds() for before, after in pairwise(kept)]
    pause = PAUSE * statistics.median(distances) if distances else 0.0
    drawn = kept[:1]
    for row, distance in zip(kept[1:], distances, strict=True):
        if distance > pause:
            drawn.append(stats_record.Row(time=drawn[-1].time))
        drawn.append(row)
    return drawn


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    memory, utilization, power, tokens = figure.subplots(4, 1, sharex=True, height_ratios=(3, 2, 2, 2))
    times = _times(rows)
    _memory(memory, rows)
    _line(utilization, times, rows, "utilization_pct", "GPU", "tab:cyan")
    _line(utilization, times, rows, "memory_utilization_pct", "memory bus", "tab:gray")
    utilization.set(ylabel="utilization (%)", ylim=(0, 100), yticks=range(0, 101, 25))
    _line(power, times, rows, "power_w", "power", "tab:orange")
    _line(power, times, rows, "power_limit_w", "power limit", "tab:orange", dashed=True)
    power.set_ylabel("power (W)")
    heat = power.twinx()
    heat.grid(visible=False)
    _line(heat, times, rows, "temperature_c", "temperature (right)", "tab:red")
    heat.set(ylabel="temperature (°C)", ylim=(0, 100 * HEADROOM), yticks=range(0, 101, 20))
    _line(tokens, times, rows, "prompt_tokens_per_s", "of prompts", "tab:blue")
    _line(tokens, times, rows, "generation_tokens_per_s", "of answers", "tab:purple")
    tokens.set(ylabel="tokens per second", xlabel=f"time ({rows[0].time.astimezone():%Z})")
    _legend(memory)
    _legend(utilization)
    _legend(power, heat)
    _legend(tokens)
    _swaps(figure.axes, memory, rows)
    tokens.xaxis_date(rows[0].time.astimezone().tzinfo)
    figure.suptitle(_title(rows))


def _title(rows: Sequence[Row]) -> str:
    cards = sorted({row.card for row in rows if row.card})
    name = ", ".join(cards) or "no card"
    simulated = " (simulated: there is no GPU behind it)" if any(row.simulated for row in rows) else ""
    first, last = rows[0].time.astimezone(), rows[-1].time.astimezone()
    return (
        f"{name}{simulated}\n{first:%Y-%m-%d %H:%M:%S}, {seconds((last - first).total_seconds(), whole=True)}"
    )


def _memory(axes: Axes, rows: Sequence[Row]) -> None:
    """What is used, in the colour of who is on the card, below what there is."""
    times, used = _times(rows), _values(rows, "used_bytes", GIB)
    names = list(dict.fromkeys(row.agents or NOBODY for row in rows if row.used_bytes is not None))
    colours = dict(zip([name for name in names if name != NOBODY], COLOURS * len(names), strict=False))
    for name in names:
        # The row after the last one belongs to it too, or there would be a slit between two agents.
        here = [(row.agents or NOBODY) == name for row in rows]
        wide = [now or before for before, now in pairwise([False, *here])]
        axes.fill_between(
            times, used, where=wide, color=colours.get(name, "tab:gray"), alpha=0.6, linewidth=0, label=name
        )
    axes.plot(
        times, _values(rows, "total_bytes", GIB), color="black", linestyle="--", linewidth=1, label="total"
    )
    axes.set_ylabel("memory used (GiB)")


def _line(
    axes: Axes,
    times: list[float],
    rows: Sequence[Row],
    name: str,
    label: str,
    colour: str,
    *,
    dashed: bool = False,
) -> None:
    """One series, if anything is known of it."""
    values = _values(rows, name)
    if not all(math.isnan(value) for value in values):
        axes.plot(times, values, color=colour, linewidth=1.2, linestyle="--" if dashed else "-", label=label)


def _legend(axes: Axes, beside: Axes | None = None) -> None:
    """At the top left, where room is made for it; a panel of which nothing is known says so."""
    handles, labels = axes.get_legend_handles_labels()
    if beside is not None:
        more_handles, more_labels = beside.get_legend_handles_labels()
        handles, labels = [*handles, *more_handles], [*labels, *more_labels]
    if handles:
        axes.set_ylim(0, axes.get_ylim()[1] * HEADROOM)
        (beside or axes).legend(handles, labels, loc="upper left", fontsize="small", ncols=4)
    else:
        axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center", va="center", color="gray")


def _swaps(panels: Sequence[Axes], top: Axes, rows: Sequence[Row]) -> None:
    for row in rows:
        if row.arrived is None:
            continue
        at = _at(row)
        for axes in panels:
            axes.axvline(at, color="black", linewidth=0.8, linestyle=":")
        took = f", {seconds(row.swap_seconds)}" if row.swap_seconds is not None else ""
        said = f"{row.left or 'empty card'} → {row.arrived}{took}"
        top.annotate(said, (at, 1.0), xycoords=("data", "axes fraction"), xytext=(2, 2), textcoords="offset points",
                     fontsize="small", rotation=20)  # fmt: skip


def _times(rows: Sequence[Row]) -> list[float]:
    return [_at(row) for row in rows]


def _at(row: Row) -> float:
    """Its place on the time axis: days since 1970, matplotlib's way."""
    return row.time.timestamp() / DAY_S


def _values(rows: Sequence[Row], name: str, unit: float = 1.0) -> list[float]:
    """A column, with holes where it is not known."""
    found = [getattr(row, name) for row in rows]
    return [math.nan if value is None else value / unit for value in found]
