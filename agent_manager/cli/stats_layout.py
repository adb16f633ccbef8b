"""The live view as lines of styled text, for any size of terminal. Pure: it draws nothing and reads no clock."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct, field

from agent_manager.cli import stats_words as words
from agent_manager.cli.output import GIB, gib, printable, seconds
from agent_manager.cli.stats_graph import ASCII, BLOCKS, History, cells, graph, step_for

if TYPE_CHECKING:
    from agent_manager.gpu.base import GpuSample, MemoryHolder
    from agent_manager.swap.stats import AgentSample, StatsSample

Line: TypeAlias = list[tuple[str, str]]
"""Texts and their styles, names of output.ANSI or ''."""

STATE_STYLES = {
    "ready": "green",
    "starting": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "asleep": "blue",
    "failed": "red",
}
AGENT_STYLES = ("green", "cyan", "blue", "magenta")
WIDE = 140
"""From here on the readings fit in one line."""
PAIRED = 72
"""From here on two graphs stand side by side."""
GUTTER = 13
"""Cells of a graph's label."""
TALLEST = 12
GRAPHS = (
    ("memory", "memory", "green", "%"),
    ("utilization", "GPU", "cyan", "%"),
    ("power", "power", "yellow", " W"),
    ("temperature", "heat", "red", " °C"),
    ("tokens in", "in/s", "blue", " /s"),
    ("tokens out", "out/s", "magenta", " /s"),
)
"""Name, short name, style and unit, in the order of `_values`."""
TOKENS = (4, 5)
"""Those of the agents; the others are the card's."""


class Glyphs(Struct, frozen=True):
    """The characters of bars and graphs. The fills of agents differ, so that no colour is needed."""

    agents: str
    others: str
    free: str
    done: str
    left: str
    levels: str
    arrow: str
    edge: str


UNICODE = Glyphs("█▓▚▞", "▒", "·", "━", "─", BLOCKS, "→", "│")
PLAIN = Glyphs("#=%x", "o", ".", "#", "-", ASCII, "->", "|")


class View(Struct):
    """What a view remembers from one sample to the next: the graphs, and the fill of each agent."""

    interval_s: float
    simulated: bool
    glyphs: Glyphs = UNICODE
    sample: StatsSample | None = None
    _history: History = field(default_factory=lambda: History(len(GRAPHS)))
    _fills: dict[str, int] = field(default_factory=dict)
    _power_limit_w: float | None = None
    _seen: set[int] = field(default_factory=set)

    def take(self, sample: StatsSample) -> None:
        """Show this one from now on."""
        self.sample = sample
        for agent in sample.agents:
            self._fills.setdefault(agent.name, len(self._fills) % len(self.glyphs.agents))
        if sample.gpu and sample.gpu.power_limit_w:
            self._power_limit_w = sample.gpu.power_limit_w
        values = _values(sample)
        self._seen.update(index for index, value in enumerate(values) if value is not None)
        self._history.add(sample.at.timestamp(), values)

    def lines(self, width: int, height: int) -> list[Line]:
        """At most `height` lines for a terminal of `width` cells. Wide characters are for the caller to cut."""
        sample = self.sample
        if sample is None:
            return [[("reading the card ...", "dim")]]
        top = [self._title(sample, width), *self._card(sample, width)]
        agents = [[], *self._agents(sample, width)]
        notes = _notes(sample, height // 8)
        others = words.others(sample)
        rows, swaps, processes = _shares(
            height - len(top) - len(agents) - len(notes),
            len(self._places(width)),
            len(sample.swaps),
            len(others),
        )
        return [
            *top,
            *notes,
            *self._graphs(sample, width, rows),
            *agents,
            *self._swaps(sample, swaps),
            *_processes(others, processes),
        ][:height]

    def _title(self, sample: StatsSample, width: int) -> Line:
        name = words.card(sample)
        mark = f"  {words.ONLY_SIMULATED}" if self.simulated or (sample.gpu and sample.gpu.simulated) else ""
        clock = f"{sample.at.astimezone():%H:%M:%S}  every {self.interval_s:g} s  "
        line = [(name, "bold"), (mark, "magenta")]
        for right in (f"{clock}q leaves", "q leaves"):
            space = width - len(name) - len(mark) - len(right)
            if space > 1:
                return [*line, (" " * space + right, "dim")]
        return line

    def _card(self, sample: StatsSample, width: int) -> list[Line]:
        gpu = sample.gpu
        if gpu is None:
            return []
        said = words.readings(gpu)
        throttling = ("  " + said[-1], "yellow" if gpu.throttle_reasons else "")
        if width >= WIDE:
            readings: list[Line] = [[("  ".join(said[:-1]), ""), throttling]]
        else:
            readings = [[("  ".join(said[:5]), "")], [("  ".join(said[5:-1]), ""), throttling]]
        return [*self._memory(gpu, sample.agents, width), *readings]

    def _memory(self, gpu: GpuSample, agents: tuple[AgentSample, ...], width: int) -> list[Line]:
        """The bar, and what its fills mean."""
        if gpu.total_bytes is None or gpu.free_bytes is None:
            return [[(f"memory {words.DASH}  it is the host's", "")]]
        used_bytes = unexplained = gpu.total_bytes - gpu.free_bytes
        parts = []
        for agent in agents:
            part = min(
                unexplained, (agent.claim_bytes if agent.used_bytes is None else agent.used_bytes) or 0
            )
            unexplained -= part
            index = self._fills[agent.name]
            label = f"{agent.name} {words.held(agent).replace(' GiB', '')}"
            parts.append((part, self.glyphs.agents[index], AGENT_STYLES[index], label))
        parts.append((unexplained, self.glyphs.others, "yellow", f"others {unexplained / GIB:.2f}"))
        parts.append((gpu.free_bytes, self.glyphs.free, "dim", f"free {gib(gpu.free_bytes)}"))
        sides = f"  {gib(used_bytes)} of {gib(gpu.total_bytes)}  {used_bytes / gpu.total_bytes:4.0%}"
        room = max(4, width - len("memory ") - len(sides))
        widths = cells([part for part, *_ in parts], gpu.total_bytes, room)
        bar = [(fill * count, style) for (_, fill, style, _), count in zip(parts, widths, strict=True)]
        legend = [(" " * len("memory"), "")]
        for _, fill, style, label in parts:
            legend += [(f" {fill}", style), (f" {label} ", "")]
        return [[("memory ", ""), *bar, (sides, "bold")], legend]

    def _places(self, width: int) -> list[list[int]]:
        """Which graphs stand beside each other, from the top. What the card never told has none."""
        beside = 2 if width >= PAIRED else 1
        of_card = sorted(self._seen - set(TOKENS))
        return [
            series[first : first + beside]
            for series in (of_card, list(TOKENS))
            for first in range(0, len(series), beside)
        ]

    def _graphs(self, sample: StatsSample, width: int, rows: int) -> list[Line]:
        places = self._places(width)
        beside = len(places[-1])
        columns = (width - 2 * (beside - 1)) // beside - GUTTER - 1
        if not rows or columns < 1:
            return []
        step_s = step_for(columns, self.interval_s)
        series = self._history.columns(columns, step_s)
        lines: list[Line] = [[(f"the last {seconds(step_s * columns, whole=True)}", "dim")]]
        for place in places:
            drawn = [self._graph(index, sample, series[index], rows) for index in place]
            for blocks in zip(*drawn, strict=True):
                line = list(blocks[0])
                for block in blocks[1:]:
                    line += [("  ", ""), *block]
                lines.append(line)
        return lines

    def _graph(self, index: int, sample: StatsSample, values: list[float | None], rows: int) -> list[Line]:
        """`rows` lines: what it is, its value now and what its full height stands for, then the curve."""
        label, short, style, unit = GRAPHS[index]
        now = _values(sample)[index]
        top = _top(unit, self._power_limit_w, values)
        if rows == 1:
            gutter = [f"{short:<6} {_number(now):>5}"]
        else:
            value = words.DASH if now is None else f"{_number(now)}{unit}"
            known = any(each is not None for each in values)
            gutter = [label, value, f"of {_number(top)}{unit}" if known else "", *[""] * rows][:rows]
        return [
            [(f"{text:<{GUTTER}}", "bold" if row == 1 else ""), (self.glyphs.edge, "dim"), (curve, style)]
            for row, (text, curve) in enumerate(
                zip(gutter, graph(values, top, rows, self.glyphs.levels), strict=True)
            )
        ]

    def _agents(self, sample: StatsSample, width: int) -> list[Line]:
        if not sample.agents:
            return [[(words.NOBODY, "dim")]]
        columns = words.columns(width)
        return [
            [(" ".join(words.fitted(column, column.header) for column in columns), "dim")],
            *(self._agent(agent, columns) for agent in sample.agents),
        ]

    def _agent(self, agent: AgentSample, columns: list[words.Column]) -> Line:
        name, state, *rest = (words.fitted(column, column.text(agent)) for column in columns)
        line = [(name, "bold"), (f" {state} ", STATE_STYLES.get(agent.state.value, ""))]
        if agent.phase is None:
            return [*line, (" ".join(rest), "")]
        # Before it serves there is no traffic to tell of; the columns after it keep their places.
        loading = [column for column in columns[2:] if column.from_width == 0]
        room = sum(column.width + 1 for column in loading) - 1
        said = printable(words.phase(agent))[:room]
        return [
            *line,
            *self._progress(said, agent.phase_percent, room),
            (" ".join(["", *rest[len(loading) :]]), ""),
        ]

    def _progress(self, said: str, percent: int | None, room: int) -> Line:
        width = room - len(said) - 1
        if percent is None or width < 1:
            return [(f"{said:<{room}}", "yellow")]
        done = width * min(100, max(0, percent)) // 100
        bar = [(self.glyphs.done * done, "green"), (self.glyphs.left * (width - done), "dim")]
        return [(f"{said} ", "yellow"), *bar]

    def _swaps(self, sample: StatsSample, count: int) -> list[Line]:
        lines: list[Line] = []
        for done in sample.swaps[:count]:
            when, what, took = words.swap(done, sample.at, self.glyphs.arrow)
            lines.append(
                [(f"{'' if lines else 'swaps':<10} ", "dim"), (f"{when:<13} {what:<24} took {took}", "")]
            )
        return [[], *lines] if lines else []


def _values(sample: StatsSample) -> tuple[float | None, ...]:
    gpu, traffics = sample.gpu, [agent.traffic for agent in sample.agents if agent.traffic is not None]
    used_bytes = gpu.used_bytes if gpu else None
    read = [each.prompt_tokens_per_s for each in traffics if each.prompt_tokens_per_s is not None]
    written = [each.generation_tokens_per_s for each in traffics if each.generation_tokens_per_s is not None]
    return (
        100 * used_bytes / gpu.total_bytes if gpu and used_bytes is not None and gpu.total_bytes else None,
        gpu.utilization_pct if gpu else None,
        gpu.power_w if gpu else None,
        gpu.temperature_c if gpu else None,
        sum(read) if read else None,
        sum(written) if written else None,
    )


def _top(unit: str, power_limit_w: float | None, values: list[float | None]) -> float:
    """What a graph's full height stands for: 100 % or °C, the power limit, or a round number above all values."""
    if unit in {"%", " °C"}:
        return 100.0
    if unit == " W" and power_limit_w:
        return power_limit_w
    most = max((value for value in values if value is not None), default=0.0)
    decade = 10.0 ** max(1, math.floor(math.log10(max(most, 1.0))))
    return next(decade * step for step in (1, 2, 5, 10) if decade * step >= most)


def _number(value: float | None) -> str:
    return words.rate(value) if value is None or value >= words.THOUSANDS_FROM else f"{value:.0f}"


def _notes(sample: StatsSample, most: int) -> list[Line]:
    most = max(1, most)
    shown = sample.notes if len(sample.notes) <= most else sample.notes[: most - 1]
    lines: list[Line] = [[("! ", "yellow"), (printable(note), "yellow")] for note in shown]
    if len(shown) < len(sample.notes):
        lines.append([("! ", "yellow"), (f"and {len(sample.notes) - len(shown)} more notes", "yellow")])
    return lines


def _processes(others: list[MemoryHolder], count: int) -> list[Line]:
    lines: list[Line] = []
    for each in others[:count]:
        label = "" if lines else "others"
        text = f"pid {each.pid:<9} {words.size(each.used_bytes):>10}  {printable(each.name)}"
        lines.append([(f"{label:<10} ", "dim"), (text, "")])
    return [[], *lines] if lines else []


def _shares(room: int, stacked: int, swaps: int, others: int) -> tuple[int, int, int]:
    """How many of `room` lines go to each graph, to swaps and to processes; the blank lines between are counted.

    First three swaps and two processes, then graphs as tall as they may be, then more of the two.
    """

    def block(lines: int) -> int:
        return lines + 1 if lines else 0

    shown, processes = min(swaps, 3), min(others, 2)
    if room - block(shown) - block(processes) <= stacked:
        processes = 0
    if room - block(shown) <= stacked:
        shown = min(shown, 1) if room - 2 > stacked else 0
    rows = max(0, min(TALLEST, (room - 1 - block(shown) - block(processes)) // stacked))
    spare = room - block(shown) - block(processes) - (1 + rows * stacked if rows else 0)
    more = max(0, min(swaps - shown, spare - (0 if shown else 1)))
    more_others = max(0, min(others - processes, spare - more - (0 if processes else 1)))
    return rows, shown + more, processes + more_others
