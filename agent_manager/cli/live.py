"""The live display: finished steps as ticked lines, below them one line for the step under way."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

from rich.spinner import Spinner
from rich.text import Text

from agent_manager.cli.display import BAR_CELLS, GONE, Display
from agent_manager.cli.output import GIB, gib, printable, seconds
from agent_manager.cli.progress import SIMULATED, Stopwatch, failed, percentage, words
from agent_manager.engines.base import READY
from agent_manager.errors import Interrupted
from agent_manager.swap.notices import LoadProgress, PullProgress, ReadProgress, Remark, Step, StepBegan

if TYPE_CHECKING:
    from types import TracebackType

    from agent_manager.swap.notices import Notice

FIGURES_CELLS = 16
"""About as many as a percentage and a duration take behind the bar."""


class LiveProgress:
    """A context manager: the display lives inside the block. `tell` never raises and never blocks for long."""

    def __init__(self, *, colours: bool, simulated: bool) -> None:
        self._display = Display(colours=colours, picture=self._line)
        self._console, plain = self._display.console, self._display.plain
        self._spinner = Spinner("line" if plain else "dots", style="cyan")
        self._tick, self._cross, self._dot, self._full, self._empty = "+x.#-" if plain else "✓✗·━─"
        self._simulated = simulated
        self._step: StepBegan | None = None
        self._watch = Stopwatch()
        self._detail = ""
        self._percent: int | None = None
        self._undoing = False

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(*GONE):
            # After an undo only the error that follows knows how the last step ended.
            undone = self._undoing or (kind is not None and issubclass(kind, Interrupted))
            self._go_on(None, good=None if kind and undone else kind is None)
        self._display.stop()

    def tell(self, notice: Notice) -> None:
        """Show the notice."""
        with contextlib.suppress(*GONE):
            match notice:
                case StepBegan():
                    self._begin(notice)
                case LoadProgress(phase=phase) if phase.name != READY:
                    self._detail, self._percent = phase.name, phase.percent
                case PullProgress(done_bytes=done, total_bytes=total):
                    self._detail = f"{gib(done)} of {gib(total)}"
                    self._percent = percentage(done, total)
                case ReadProgress(done_bytes=done, total_bytes=total):
                    rate = gib(int(done / max(self._watch.elapsed_s, 0.001)))
                    self._detail = f"{done / GIB:.2f} of {gib(total)}, {rate}/s"
                    self._percent = percentage(done, total)
                case Remark(message=message, warning=warning):
                    self._remark(message, warning=warning)

    def _begin(self, notice: StepBegan) -> None:
        self._go_on(notice, good=self._step is None or not failed(self._step, notice))
        self._undoing = self._undoing or notice.restoring
        if self._simulated and notice.step is Step.LOADING and not notice.restoring:
            self._console.print(Text(SIMULATED, style="magenta"))

    def _remark(self, message: str, *, warning: bool) -> None:
        if warning and self._undoing:
            self._go_on(None, good=None)
        self._display.remark(message, warning=warning)

    def _go_on(self, following: StepBegan | None, *, good: bool | None) -> None:
        """The live line shows what follows; the step that was under way becomes a line above it that stays.

        `good`: how it ended, None when that is not known.
        """
        done, took_s = self._step, self._watch.elapsed_s
        self._step, self._watch, self._detail, self._percent = following, Stopwatch(), "", None
        self._display.refresh()
        if done is not None:
            mark, style = {
                True: (self._tick, "green"),
                False: (self._cross, "red"),
                None: (self._dot, "dim"),
            }[good]
            self._console.print(
                Text.assemble((mark, style), " ", words(done), ("  " + seconds(took_s), "dim"))
            )

    def _line(self) -> Text:
        step = self._step
        if step is None:
            return Text()
        frame = self._spinner.render(self._console.get_time())
        parts = [frame if isinstance(frame, Text) else Text(), Text(" " + words(step))]
        if self._detail:
            parts.append(Text(f"  {printable(self._detail)}", style="cyan"))
        if self._percent is not None:
            full = BAR_CELLS * self._percent // 100
            bar = [
                Text("  " + self._full * full, style="green"),
                Text(self._empty * (BAR_CELLS - full), style="dim"),
            ]
            # Where not all of it fits, the figures say more.
            fits = sum(map(len, parts)) + BAR_CELLS + FIGURES_CELLS <= self._console.width
            parts += [*(bar if fits else []), Text(f" {self._percent}%")]
        expected = f" of about {seconds(step.expected_s, whole=True)}" if step.expected_s else ""
        parts.append(Text(f"  {seconds(self._watch.elapsed_s, whole=True)}{expected}"))
        line = Text().join(parts)
        line.truncate(max(1, self._console.width - 1), overflow="ellipsis")
        return line
