"""What is printed: the result and nothing else on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from agent_manager.json_text import to_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO


GIB = 1 << 30
MINUTE_S = 60
"""And the minutes of an hour."""
DAY_S = 86400
FELT_S = 10.0
"""Below this, tenths of a second can be felt."""
RESET = "\x1b[0m"
ANSI = {
    "bold": "\x1b[1m",
    "dim": "\x1b[2m",
    "red": "\x1b[31m",
    "bold red": "\x1b[1;31m",
    "green": "\x1b[32m",
    "yellow": "\x1b[33m",
    "blue": "\x1b[34m",
    "cyan": "\x1b[36m",
    "magenta": "\x1b[35m",
}
"""Few enough to write out: an error must not wait for a library to be imported."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Cell(Struct, frozen=True):
    """One cell of a table: its text and its style, a name of ANSI or ''."""

    text: str
    style: str = ""


class Output(Struct, frozen=True, kw_only=True):
    """Where this invocation's words go. `json`, `quiet`, `verbose`, `no_color` are the global options."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    no_color: bool = False

    def document(self, value: object) -> None:
        """The result as one JSON document on stdout."""
        sys.stdout.write(to_json(value, indent=2) + "\n")

    def json_line(self, value: object) -> None:
        """One of many JSON documents on stdout, each on its own line, written at once."""
        sys.stdout.write(to_json(value) + "\n")
        sys.stdout.flush()

    def result(self, text: str) -> None:
        """A line of the result, on stdout."""
        sys.stdout.write(text + "\n")

    def success(self, text: str) -> None:
        """A line that says it went well, on stdout; silent with --quiet."""
        if not self.quiet:
            self.result(text)

    def note(self, text: str) -> None:
        """One line on stderr that a person may want to know; silent with --quiet."""
        if not self.quiet:
            self.complain("note:", text, "dim")

    def warning(self, text: str) -> None:
        """One line on stderr that a person must know."""
        self.complain("warning:", text, "yellow")

    def complain(self, label: str, text: str, style: str) -> None:
        """`label text` on stderr, the label in its style."""
        sys.stdout.flush()
        with contextlib.suppress(OSError):  # a terminal that was closed: there is nobody to tell
            sys.stderr.write(f"{self.styled(label, style, sys.stderr)} {printable(text)}\n")
            sys.stderr.flush()

    def colours(self, stream: TextIO) -> bool:
        """Whether `stream` is a terminal that wants colours: no --no-color, no NO_COLOR, not TERM=dumb."""
        if self.no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return False
        return stream.isatty()

    def styled(self, text: str, style: str, stream: TextIO | None = None) -> str:
        """The text in a style of ANSI, or as it is where `stream` (stdout) wants no colours."""
        if not style or not self.colours(stream or sys.stdout):
            return text
        return f"{ANSI[style]}{text}{RESET}"

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, flexible: Sequence[str] = ()
    ) -> None:
        """An aligned table on stdout, one line for each row.

        A terminal that is too narrow for that gets the columns `flexible` folded into more lines.
        """
        if sys.stdout.isatty():
            self._fitted_table(headers, rows, flexible)
            return
        lines = [list(headers), *([_cell(cell).text for cell in row] for row in rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
        for line in lines:
            padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            self.result("  ".join(padded).rstrip())

    def _fitted_table(
        self, headers: Sequence[str], rows: Sequence[Sequence[Cell | str]], flexible: Sequence[str]
    ) -> None:
        from rich.console import Console  # noqa: PLC0415 - only a terminal needs it; slow to import
        from rich.table import Table  # noqa: PLC0415 - likewise
        from rich.text import Text  # noqa: PLC0415 - likewise

        coloured = self.colours(sys.stdout)
        console = Console(color_system="standard" if coloured else None, highlight=False)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for header in headers:
            table.add_column(Text(header), overflow="fold", no_wrap=header not in flexible)
        for row in rows:
            cells = [_cell(cell) for cell in row]
            table.add_row(*(Text(printable(cell.text), style=cell.style) for cell in cells))
        console.print(table)


def printable(text: str) -> str:
    r"""The text without control characters, which could repaint a terminal: each shown as `\x1b`."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def gib(size_bytes: int) -> str:
    """A size in GiB (2^30 bytes), two decimals."""
    return f"{size_bytes / GIB:.2f} GiB"


def seconds(duration_s: float, *, whole: bool = False) -> str:
    """A duration for a person: `0.4 s` (unless `whole`), `35 s`, `2 min 5 s`, `3 h 10 min`."""
    if duration_s < FELT_S and not whole:
        return f"{duration_s:.1f} s"
    minutes, rest = divmod(round(duration_s), MINUTE_S)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, MINUTE_S)
    if not hours:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def ago(then: datetime) -> str:
    """How long ago, in one unit: `12 s ago`, `16 min ago`, `3 h ago`, `2 d ago`."""
    elapsed_s = max(0, int((datetime.now(UTC) - then).total_seconds()))
    for unit, length_s in (("d", DAY_S), ("h", MINUTE_S * MINUTE_S), ("min", MINUTE_S)):
        if elapsed_s >= length_s:
            return f"{elapsed_s // length_s} {unit} ago"
    return f"{elapsed_s} s ago"


def _cell(cell: Cell | str) -> Cell:
    return cell if isinstance(cell, Cell) else Cell(cell)
