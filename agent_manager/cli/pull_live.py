"""The live display of a pull: a line for each file on its way, below them one for the whole model."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Self

from rich.console import Group
from rich.text import Text

from agent_manager.checkpoints.disk import WEIGHTS
from agent_manager.cli.display import BAR_CELLS, GONE, Display
from agent_manager.cli.output import printable
from agent_manager.cli.progress import percentage
from agent_manager.cli.pull_progress import Rate, amount
from agent_manager.swap.notices import PullProgress, Remark, StepBegan

if TYPE_CHECKING:
    from types import TracebackType

    from agent_manager.checkpoints.fetching.progress import FileProgress
    from agent_manager.swap.notices import Notice

MOST_FILES = 8
"""Lines of files at once; more are counted."""
LEAST_NAME_CELLS, MOST_NAME_CELLS = 12, 34
FIGURE_CELLS = 59
"""What the figures take: `100%  12.34 GiB of 15.47 GiB  123.4 MB/s, 12 min 10 s left`, and a gap."""
BAR_FITS = 100
"""Cells of a terminal that has room for bars beside the figures."""


class LivePull:
    """A context manager: the display lives inside the block. `tell` never raises; any one thread may call it."""

    def __init__(self, *, colours: bool) -> None:
        self._display = Display(colours=colours, picture=self._picture)
        self._console = self._display.console
        self._full, self._empty, self._ellipsis = ("#", "-", "~") if self._display.plain else ("━", "─", "…")
        self._lock = threading.Lock()
        self._begin("")

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()

    def tell(self, notice: Notice) -> None:
        """Show the notice."""
        with contextlib.suppress(*GONE):
            match notice:
                case StepBegan(agent=model):
                    with self._lock:
                        self._begin(model)
                case PullProgress():
                    self._saw(notice)
                case Remark(message=message, warning=warning):
                    self._display.remark(message, warning=warning)

    def _begin(self, model: str) -> None:
        self._model = model
        self._now: PullProgress | None = None
        self._total = Rate()
        self._rates: dict[str, Rate] = {}

    def _saw(self, now: PullProgress) -> None:
        clock_s = time.monotonic()
        with self._lock:
            self._now = now
            self._total.saw(clock_s, now.done_bytes)
            for file in now.files:
                self._rates.setdefault(file.name, Rate()).saw(clock_s, file.done_bytes)

    def _picture(self) -> Group:
        with self._lock:
            now = self._now
            if now is None:
                return Group(Text(f"pulling {self._model}: asking the Hub" if self._model else ""))
            on_the_way = [file for file in now.files if 0 < file.done_bytes < file.size_bytes]
            lines = [self._file_line(file) for file in on_the_way[:MOST_FILES]]
            done = sum(file.done_bytes == file.size_bytes for file in now.files)
            if done == len(now.files) and now.files:
                what = f"{now.model}: checking"
            else:
                what = f"{now.model}: {done} of {len(now.files)} files"
            left = now.total_bytes - now.done_bytes
            lines.append(self._line(what, now.done_bytes, now.total_bytes, self._total.told(left), "bold"))
        return Group(*lines)

    def _file_line(self, file: FileProgress) -> Text:
        left = file.size_bytes - file.done_bytes
        told = self._rates[file.name].told(left)
        return self._line(file.name, file.done_bytes, file.size_bytes, told, "")

    def _line(self, name: str, done_bytes: int, total_bytes: int, told: str, style: str) -> Text:
        """`name  ━━━━───── 40%  1.20 of 3.00 GiB  85.2 MB/s, 21 s left`, no wider than the terminal."""
        percent = percentage(done_bytes, total_bytes)
        full = BAR_CELLS * percent // 100
        wide = self._console.width >= BAR_FITS
        cells = self._console.width - FIGURE_CELLS - (BAR_CELLS + 2 if wide else 0)
        cells = max(LEAST_NAME_CELLS, min(MOST_NAME_CELLS, cells))
        bar = [
            Text(self._full * full, style="green"),
            Text(self._empty * (BAR_CELLS - full), style="dim"),
            Text("  "),
        ]
        line = Text().join(
            [
                Text(f"{self._short(name, cells):<{cells}}  ", style=style),
                *(bar if wide else []),
                Text(f"{percent:>3}%  {amount(done_bytes)} of {amount(total_bytes)}  ", style="cyan"),
                Text(told),
            ]
        )
        line.truncate(max(1, self._console.width - 1), overflow="ellipsis")
        return line

    def _short(self, name: str, cells: int) -> str:
        """A name in so many cells: without its ending, then without its beginning, where it must be."""
        name = printable(name)
        if len(name) > cells:
            name = name.removesuffix(WEIGHTS)
        return name if len(name) <= cells else self._ellipsis + name[1 - cells :]
