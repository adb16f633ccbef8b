"""A picture at the bottom of the terminal that changes in place, with lines above it that stay. On stderr."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from agent_manager.cli.output import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

BAR_CELLS: Final = 20
REFRESH_PER_S: Final = 10
GONE: Final = (OSError, SystemExit)
"""What writing to a terminal that was closed raises; rich ends the program on a closed pipe."""


class Display:
    """Draws what `picture` returns, several times a second, from `start` to `stop`."""

    def __init__(self, *, colours: bool, picture: Callable[[], RenderableType]) -> None:
        self.console = Console(
            file=sys.stderr, color_system="auto" if colours else None, force_terminal=True, highlight=False
        )
        self.plain = self.console.options.ascii_only
        """Whether the terminal knows ASCII alone."""
        self._picture = picture
        self._live: Live | None = None

    def start(self) -> None:
        """Begin to draw."""
        self._live = Live(
            console=self.console,
            get_renderable=self._picture,
            refresh_per_second=REFRESH_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def refresh(self) -> None:
        """Draw now, if it is being drawn."""
        if self._live is not None:
            self._live.refresh()

    def stop(self) -> None:
        """Take the picture away, whatever became of the terminal."""
        try:
            if self._live is not None:
                self._live.stop()
        except GONE:
            # Nobody reads the terminal any more; what rich would say about that has no reader either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    def remark(self, message: str, *, warning: bool) -> None:
        """A line above the picture."""
        self.console.print(Text("warning: " if warning else "", style="yellow") + Text(printable(message)))
