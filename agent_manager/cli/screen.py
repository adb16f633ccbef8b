"""A terminal taken over for a while: the alternate screen, keys as they are pressed, and all given back after."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import termios
import tty
from itertools import groupby
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.segment import Segment
from rich.style import Style

from agent_manager.cli.output import ANSI

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_manager.cli.output import Output

GONE = (OSError, SystemExit)
"""What writing to a terminal that was closed raises; rich ends the program on a closed pipe."""
LEAVING = frozenset(b"qQ\x1b")
_KEYS_AT_ONCE = 1024
_SEQUENCE = re.compile(rb"\x1b[\[O][0-9;?]*[@-~]")
"""An arrow or a function key: it begins as Esc alone does."""
_PLAIN_LETTERS = str.maketrans({"°": " ", "×": "x", "…": "~"})


class Screen:
    """A context manager, within a running event loop: `draw` shows lines until the block ends, however it ends.

    `left` is set when the user pressed q or Esc, or when the terminal is gone. `redraw` is called when the
    terminal has a new size, and when the program comes back after Ctrl-Z.
    """

    def __init__(self, output: Output, redraw: Callable[[], None]) -> None:
        self._console = Console(
            file=sys.stdout,
            color_system="auto" if output.colours(sys.stdout) else None,
            force_terminal=True,
            highlight=False,
        )
        self._styles = {name: Style.parse(name) for name in ANSI} | {"": Style.null()}
        self._redraw = redraw
        self._shown: list[list[Segment]] = []
        self._keyboard: int | None = None
        self._modes: list[Any] = []
        self.plain = self._console.options.ascii_only
        self.left = asyncio.Event()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, now."""
        try:
            return os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            return 80, 24

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self._give_back)
            self._take()
            loop = asyncio.get_running_loop()
            for number, handler in ((signal.SIGWINCH, self._resized), (signal.SIGTSTP, self._suspend)):
                loop.add_signal_handler(number, handler)
                undo.callback(loop.remove_signal_handler, number)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def draw(self, lines: Sequence[Sequence[tuple[str, str]]]) -> None:
        """Show these lines, of texts and styles (names of output.ANSI): writes only those that changed."""
        width, height = self.size
        wanted = [self._line(lines[row] if row < len(lines) else (), width) for row in range(height)]
        if len(self._shown) != height:
            self._shown = [[] for _ in wanted]
        changed = [row for row in range(height) if wanted[row] != self._shown[row]]
        try:
            with self._console:  # one write for all of it
                # What follows one another has the same distance to its place in the list.
                for _, run in groupby(enumerate(changed), lambda each: each[1] - each[0]):
                    rows = [row for _, row in run]
                    self._console.update_screen_lines([wanted[row] for row in rows], 0, rows[0])
        except GONE:
            self.left.set()
        self._shown = wanted

    def _line(self, line: Sequence[tuple[str, str]], width: int) -> list[Segment]:
        """Cut or filled to the width, in cells."""
        if self.plain:
            line = [
                (text.translate(_PLAIN_LETTERS).encode("ascii", "replace").decode(), style)
                for text, style in line
            ]
        segments = [Segment(text, self._styles[style]) for text, style in line if text]
        return Segment.adjust_line_length(segments, width)

    def _take(self) -> None:
        self._console.set_alt_screen()
        self._console.show_cursor(show=False)
        if sys.stdin.isatty():
            keyboard = self._keyboard = sys.stdin.fileno()
            self._modes = termios.tcgetattr(keyboard)
            tty.setcbreak(keyboard, termios.TCSANOW)
            asyncio.get_running_loop().add_reader(keyboard, self._pressed, keyboard)

    def _give_back(self) -> None:
        """Also when it was taken in part; nothing is left to tell when the terminal is gone."""
        if self._keyboard is not None:
            asyncio.get_running_loop().remove_reader(self._keyboard)
            with contextlib.suppress(termios.error):
                termios.tcflush(
                    self._keyboard, termios.TCIFLUSH
                )  # keys meant for the view are not the shell's
                termios.tcsetattr(self._keyboard, termios.TCSANOW, self._modes)
            self._keyboard = None
        try:
            self._console.show_cursor()
            self._console.set_alt_screen(enable=False)
        except GONE:
            # Nobody reads the terminal any more; what Python would say about that at its end has no reader either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _pressed(self, keyboard: int) -> None:
        try:
            keys = os.read(keyboard, _KEYS_AT_ONCE)
        except OSError:
            keys = b""
        if not keys or LEAVING.intersection(_SEQUENCE.sub(b"", keys)):
            asyncio.get_running_loop().remove_reader(keyboard)
            self.left.set()

    def _resized(self) -> None:
        self._shown = []
        with contextlib.suppress(*GONE):
            self._console.clear()
        self._redraw()

    def _suspend(self) -> None:
        """Ctrl-Z: the shell gets its terminal as it was, and the view comes back with `fg`."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
        self._resized()
