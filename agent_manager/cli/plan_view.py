"""How an outlook is shown: the card, a table, one bar for each agent, and what would make the rest fit."""

from __future__ import annotations

import shutil
import sys
import textwrap
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from agent_manager.cli.output import Cell, gib
from agent_manager.errors import CheckpointUnusable, DoesNotFit
from agent_manager.planning.base import Shortfall

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from agent_manager.cli.output import Output
    from agent_manager.errors import AgentManagerError
    from agent_manager.planning.speed import Speed
    from agent_manager.swap.outlook import AgentOutlook, Outlook
    from agent_manager.swap.planned_card import PlannedCard

GIB: Final = 1 << 30
GB: Final = 10**9
PARTS: Final = ("weights", "overhead", "KV cache", "free")
FIELDS: Final = {"weights": "weights_bytes", "overhead": "overhead_bytes", "KV cache": "kv_cache_bytes"}
STYLES: Final = ("blue", "magenta", "green", "dim")
SHAPES: Final = "█#=·"
ASCII: Final = "X#=."
"""For a terminal or a pipe that takes no more."""
LEAST_BAR: Final = 12
FIGURE: Final = 9
"""The width of a figure in GiB, with the blank before it."""
MEASURED: Final = "*"
SLOW_TOKENS_PER_S: Final = 10


def document(outlook: Outlook) -> dict[str, object]:
    """The outlook under the names of the contract."""
    card = outlook.card
    return {
        "card": {
            "name": card.name,
            "origin": card.origin,
            "uuid": card.card.id if card.card else None,
            "total_bytes": card.total_bytes,
            "free_bytes": card.free_bytes,
            "simulated": card.simulated,
            "processes": card.holders,
            "note": card.note,
        },
        "engine": outlook.engine,
        "agents": [_agent_document(agent, card.total_bytes) for agent in outlook.agents],
        "together": [each.agents for each in outlook.together],
    }


def _agent_document(agent: AgentOutlook, total_bytes: int) -> dict[str, object]:
    answer, fit = agent.answer, agent.fit
    speed = agent.tokens_per_s
    return {
        "name": agent.agent.name,
        "model": agent.agent.model.name,
        "repo": agent.agent.model.repo,
        "fits": agent.fits,
        "weights_bytes": agent.weights_bytes,
        "kv_cache_bytes": agent.kv_cache_bytes,
        "overhead_bytes": agent.overhead_bytes,
        "free_bytes": total_bytes - fit.budget_bytes if fit else None,
        "budget_bytes": fit.budget_bytes if fit else None,
        "utilization": fit.utilization if fit else None,
        "context": agent.agent.context,
        "sequences": agent.agent.sequences,
        "kv_cache_dtype": agent.agent.kv_cache_dtype,
        "kv_tokens": fit.kv_tokens if fit else None,
        "concurrency": fit.concurrency if fit else None,
        "tokens_per_s": [round(speed.low, 2), round(speed.high, 2)] if speed else None,
        "download_bytes": agent.download_bytes,
        "measured": sorted(fit.measured) if fit else [],
        "shortfall": _shortfall_document(answer, agent) if isinstance(answer, Shortfall) else None,
        "notes": agent.notes,
        "problems": agent.problems,
    }


def _shortfall_document(shortfall: Shortfall, agent: AgentOutlook) -> dict[str, object]:
    remedies = [{"change": option.changes or None, "message": option.message} for option in agent.options]
    return {"message": shortfall.message, "missing_bytes": shortfall.missing_bytes, "remedies": remedies}


def failure(outlook: Outlook) -> AgentManagerError | None:
    """The error to end with: what cannot run, else what nothing is known of; None when everything fits."""
    card = outlook.card.name
    small = [
        agent
        for agent in outlook.agents
        if isinstance(agent.answer, Shortfall) and agent.answer.missing_bytes
    ]
    if small:
        return DoesNotFit(
            f"{_names(small)} {'does' if len(small) == 1 else 'do'} not fit {card}", where="agents"
        )
    unfit = [agent for agent in outlook.agents if agent.fits is False]
    if unfit:
        return DoesNotFit(f"{_names(unfit)} cannot run on {card}", where="agents")
    unknown = [agent for agent in outlook.agents if agent.fits is None]
    return CheckpointUnusable(f"nothing is known of {_names(unknown)}", where="agents") if unknown else None


def _names(agents: Sequence[AgentOutlook]) -> str:
    return ", ".join(agent.agent.name for agent in agents)


def show(outlook: Outlook, output: Output) -> None:
    """The whole outlook, for a person."""
    page = _Page(output)
    page.section(_card(outlook.card))
    output.result("")
    _table(outlook, output)
    _bars(outlook, page)
    page.section(_together(outlook))
    for agent in outlook.agents:
        page.section(_trouble(agent))
    page.section(_notes(outlook))


class _Page:
    """Lines on stdout, folded where a terminal would break them anywhere."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
        self.shapes = SHAPES if "utf" in (sys.stdout.encoding or "").lower() else ASCII
        self._begun = False

    def section(self, lines: Iterable[str]) -> None:
        """Lines with an empty one before them, if there are any."""
        for number, line in enumerate(lines):
            if self._begun and not number:
                self.output.result("")
            self._begun = True
            self.say(line)

    def say(self, line: str) -> None:
        """One line; what is folded of it stands under its first word."""
        if not sys.stdout.isatty() or len(line) <= self.width:
            self.output.result(line)
            return
        hanging = "    " if line.startswith("  - ") else "  "
        for part in textwrap.wrap(line, self.width, subsequent_indent=hanging, break_on_hyphens=False):
            self.output.result(part)


def _card(card: PlannedCard) -> Iterator[str]:
    name = card.name[:1].upper() + card.name[1:]
    size = f"{gib(card.total_bytes)}{' to CUDA' if card.sold_gb else ''}"
    if card.note:
        yield f"{card.note[:1].upper()}{card.note[1:]}: planned for {card.name}, {size}"
    elif card.card is None:
        yield f"{name}: {size}" if card.sold_gb else name
    else:
        yield f"{name}: {size}, {gib(card.card.free_bytes)} free now"
    if card.holders:
        yield f"  in use by {', '.join(_holder(each.name, each.pid, each.used_bytes) for each in card.holders)}"


def _holder(name: str, pid: int, used_bytes: int | None) -> str:
    return f"{name} (pid {pid}{f', {gib(used_bytes)}' if used_bytes is not None else ''})"


def _table(outlook: Outlook, output: Output) -> None:
    declared = any(agent.declared for agent in outlook.agents)
    headers = ["AGENT", "MODEL", "FITS", "CONTEXT", "AT ONCE", "TOKENS/S", "DOWNLOAD"]
    rows = [list(_row(agent)) for agent in outlook.agents]
    if not declared:
        headers[:2], rows = ["MODEL"], [[row[0], *row[2:]] for row in rows]
    output.table(headers, rows, flexible=("AGENT", "MODEL"))


def _row(agent: AgentOutlook) -> tuple[Cell | str, ...]:
    fit = agent.fit
    word, style = {True: ("yes", "green"), False: ("no", "red"), None: ("unknown", "yellow")}[agent.fits]
    at_once = f"{fit.concurrency:.1f}" if fit and fit.concurrency is not None else ""
    return (
        Cell(agent.agent.name, "bold"),
        agent.agent.model.name if agent.declared else "",
        Cell(word, style),
        f"{agent.agent.context:>7}",
        f"{at_once:>7}",
        _pace(agent.tokens_per_s),
        _download(agent.download_bytes),
    )


def _pace(speed: Speed | None) -> str:
    if speed is None:
        return ""
    digits = 1 if speed.low < SLOW_TOKENS_PER_S else 0
    low, high = f"{speed.low:.{digits}f}", f"{speed.high:.{digits}f}"
    return low if low == high else f"{low}-{high}"


def _download(size_bytes: int | None) -> Cell:
    if size_bytes is None:
        return Cell("")
    return Cell(f"{size_bytes / GB:.2f} GB") if size_bytes else Cell("on disk", "green")


def _bars(outlook: Outlook, page: _Page) -> None:
    """A line for each agent: its parts in GiB and as a bar, which goes on beyond a card that is too small."""
    shown = [agent for agent in outlook.agents if agent.weights_bytes is not None]
    if not shown:
        return
    total_bytes = outlook.card.total_bytes
    name_width = max(len(_short(agent)) for agent in shown)
    bar_width = max(LEAST_BAR, page.width - name_width - len(PARTS) * FIGURE - 3)
    scale_bytes = max(total_bytes, *(sum(_parts(agent)) for agent in shown))
    heads = "".join(f"{part.upper():>{FIGURE - 1}} " for part in PARTS)
    page.output.result("")
    page.output.result(page.output.styled(f"{'GiB':<{name_width}}{heads}".rstrip(), "bold"))
    for agent in shown:
        sizes = (*_parts(agent), _free(agent, total_bytes))
        figures = "".join(_figure(part, size, agent) for part, size in zip(PARTS, sizes, strict=True))
        bar = _bar(sizes, total_bytes, scale_bytes / bar_width, page)
        page.output.result(f"{_short(agent):<{name_width}}{figures} {bar}")
    legend = (
        f"{page.output.styled(shape, style)} {part}"
        for shape, style, part in zip(page.shapes, STYLES, PARTS, strict=True)
    )
    page.output.result(f"  {'   '.join(legend)}   | end of the card")


def _short(agent: AgentOutlook) -> str:
    """A repository without its organisation."""
    return agent.agent.name.rpartition("/")[2]


def _parts(agent: AgentOutlook) -> tuple[int, int, int]:
    return (agent.weights_bytes or 0, agent.overhead_bytes or 0, agent.kv_cache_bytes or 0)


def _free(agent: AgentOutlook, total_bytes: int) -> int:
    """What the engine leaves of the card; below zero what it lacks of its share."""
    if isinstance(agent.answer, Shortfall):
        return -agent.answer.missing_bytes
    return total_bytes - sum(_parts(agent))


def _figure(part: str, size_bytes: int, agent: AgentOutlook) -> str:
    """`9.44`, with a star where it was measured."""
    measured = agent.fit is not None and FIELDS.get(part) in agent.fit.measured
    return f"{size_bytes / GIB:>{FIGURE - 1}.2f}{MEASURED if measured else ' '}"


def _bar(sizes: Sequence[int], total_bytes: int, bytes_per_column: float, page: _Page) -> str:
    """The parts one after another, each at least a column, then what is free; `|` stands where the card ends."""
    end = round(total_bytes / bytes_per_column)
    drawn: list[tuple[str, str]] = []
    for look, size_bytes in zip(zip(page.shapes, STYLES, strict=True), sizes[:-1], strict=False):
        drawn += [look] * (max(1, round(size_bytes / bytes_per_column)) if size_bytes else 0)
    drawn += [(page.shapes[-1], STYLES[-1])] * (end - len(drawn))
    drawn.insert(end, ("|", ""))
    pieces = ((style, "".join(shape for shape, _ in run)) for style, run in groupby(drawn, key=itemgetter(1)))
    return "".join(page.output.styled(piece, style) for style, piece in pieces)


def _together(outlook: Outlook) -> Iterator[str]:
    able = [agent for agent in outlook.agents if agent.declared and agent.fits and agent.weights_bytes]
    if len(able) > 1 and not outlook.together:
        yield "Together: no two of them fit this card, each with one request of its full context"
    for each in outlook.together:
        shares = " and ".join(f"{share:.2f}" for share in each.utilization if share is not None)
        with_shares = f" with gpu_memory_utilization {shares}" if shares else ""
        yield f"Together: {' and '.join(each.agents)}{with_shares}"


def _trouble(agent: AgentOutlook) -> Iterator[str]:
    """What is wrong with an agent, and what would help."""
    if isinstance(agent.answer, Shortfall):
        verb = "does not fit" if agent.answer.missing_bytes else "cannot run"
        yield f"{agent.agent.name} {verb}: {agent.answer.message}"
    for problem in agent.problems:
        yield f"{agent.agent.name}: {problem}"
    for option in agent.options:
        yield f"  - {option.message}"


def _notes(outlook: Outlook) -> Iterator[str]:
    """Where the figures come from."""
    yield from _assumed(outlook)
    yield from _shared(outlook)
    said: dict[str, list[AgentOutlook]] = {}
    for agent in outlook.agents:
        for note in agent.notes:
            said.setdefault(note, []).append(agent)
    for note, agents in said.items():
        yield f"{_names(agents)}: {note}"
    yield from _measured(outlook)
    yield from _now(outlook)
    if any(agent.tokens_per_s for agent in outlook.agents):
        of = f" ({' to '.join(outlook.card.examples)})" if outlook.card.examples else ""
        yield f"tokens/s are derived from memory bandwidth{of}, for one request at a time"


def _assumed(outlook: Outlook) -> Iterator[str]:
    """With what settings a model by itself was planned."""
    for agent in outlook.agents:
        if not agent.declared and agent.weights_bytes is not None:
            chosen = agent.agent
            yield (
                f"{chosen.name}: planned as an agent with context: {chosen.context}, sequences: "
                f"{chosen.sequences}, kv_cache_dtype: {chosen.kv_cache_dtype}"
            )


def _shared(outlook: Outlook) -> Iterator[str]:
    """Agents with one download between them."""
    by_model: dict[str, list[AgentOutlook]] = {}
    for agent in outlook.agents:
        if agent.download_bytes:
            by_model.setdefault(agent.agent.model.name, []).append(agent)
    yield from (f"{_names(agents)}: one download" for agents in by_model.values() if len(agents) > 1)


def _measured(outlook: Outlook) -> Iterator[str]:
    if any(agent.fit and agent.fit.measured for agent in outlook.agents):
        yield f"{MEASURED} measured: the engine said so when it last started here; the rest is estimated"
    for agent in outlook.agents:
        graph_bytes = agent.fit.graph_bytes if agent.fit else None
        if graph_bytes:
            yield f"{agent.agent.name}: CUDA graphs took {gib(graph_bytes)} beside that{MEASURED}"


def _now(outlook: Outlook) -> Iterator[str]:
    """What keeps agents that fit from starting at this moment."""
    free_bytes = outlook.card.free_bytes
    waiting: dict[int, list[AgentOutlook]] = {}
    for agent in outlook.agents:
        if agent.fit and free_bytes is not None and agent.fit.start_bytes > free_bytes:
            waiting.setdefault(agent.fit.start_bytes, []).append(agent)
    for start_bytes, agents in waiting.items():
        verb = "starts" if len(agents) == 1 else "start"
        yield f"{_names(agents)} {verb} when {gib(start_bytes)} are free; a launch takes off what runs there"
