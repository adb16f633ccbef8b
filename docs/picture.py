"""Draw docs/session.svg, the README's picture: a real session in a real terminal, on the simulated engine.

    make picture      or      python -m docs.picture

It needs the ports 8001, 8002, 8101 and 8102, and half a minute. The shell, the commands and all that is on the
screen are real; times and addresses are this run's.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from tests.cli.program import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyte.screens import Char

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "session.svg"
COLUMNS, LINES = 100, 36
LOAD_SECONDS = 6.0
"""Long enough to be caught half-way."""

SHELL = ["bash", "--noprofile", "--norc"]
PROMPT = b"\x1b[1;32m$\x1b[0m "
LAST_STEP = "━━━━━━━━━━━━━━━─────"
"""The bar at which the picture is taken: three quarters of the weights are loaded."""

FAINT = (b"\x1b[2m", b"\x1b[90m")
"""pyte knows no faint text; grey is what terminals make of it."""
BACKGROUND, FOREGROUND = (13, 17, 23), (201, 209, 217)
NORMAL = [(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34)]
NORMAL += [(88, 166, 255), (210, 120, 240), (57, 197, 207), (177, 186, 196)]
BRIGHT = [(125, 133, 144), *NORMAL[1:]]
THEME = TerminalTheme(BACKGROUND, FOREGROUND, NORMAL, BRIGHT)

FRAME = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="A terminal session">
<style>
.{unique_id}-matrix {{
  font: {char_height}px/{line_height}px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}}
.{unique_id}-title {{ font: 600 18px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""rich's own frame without the fonts that it fetches from afar."""


def main() -> None:
    """Run the session, draw it, and leave nothing running."""
    with tempfile.TemporaryDirectory(prefix="agent-manager-picture.") as folder:
        environment = _environment(Path(folder))
        try:
            raw = session(environment, Path(folder))
        finally:
            stop = [sys.executable, "-m", "agent_manager", "--quiet", "stop", "--all"]
            subprocess.run([*stop, "--wait", "30"], env=environment, cwd=folder, check=True)
    PICTURE.write_text(draw(screen_of(raw)), encoding="utf-8")


def _environment(folder: Path) -> dict[str, str]:
    catalog = (ROOT / "models.yaml").read_text(encoding="utf-8")
    (folder / "models.yaml").write_text(
        catalog.replace("load_seconds: 2.0", f"load_seconds: {LOAD_SECONDS}"), encoding="utf-8"
    )
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        "PS1": r"\[\e[1;32m\]$\[\e[0m\] ",
        "AGENT_MANAGER_STATE_DIR": str(folder / "state"),
    }


def session(environment: dict[str, str], folder: Path) -> bytes:
    """All that the terminal got up to the moment of the picture."""
    with Terminal(SHELL, env=environment, cwd=folder, columns=COLUMNS, lines=LINES) as terminal:
        terminal.until(lambda _: PROMPT in terminal.raw)
        type_in(terminal, "export AGENT_MANAGER_ENGINE=simulated")
        type_in(terminal, "agent-manager launch dev --quiet")  # from now on it is known how long dev takes
        type_in(terminal, "agent-manager stop --quiet; PS1='\\n'\"$PS1\"; clear")
        type_in(terminal, "export AGENT_MANAGER_ENGINE=simulated  # no GPU here: all is real but the model")
        type_in(terminal, "agent-manager launch po")
        type_in(terminal, 'agent-manager chat po --max-tokens 16 "Which story comes first?"')
        type_in(terminal, "agent-manager status")
        terminal.send("agent-manager launch dev\n")
        terminal.until(lambda lines: any(LAST_STEP in line for line in lines))
        raw = terminal.raw
        type_in(terminal, "\x03\x03")
        return raw


def type_in(terminal: Terminal, line: str) -> None:
    """Type a line at the prompt and wait for the next prompt."""
    before = terminal.raw.count(PROMPT)
    terminal.send(f"{line}\n")
    terminal.until(lambda _: terminal.raw.count(PROMPT) > before)


def screen_of(raw: bytes) -> pyte.Screen:
    """What those bytes make a terminal show."""
    screen = pyte.Screen(COLUMNS, LINES)
    pyte.ByteStream(screen).feed(raw.replace(*FAINT))
    return screen


def draw(screen: pyte.Screen) -> str:
    """The screen as an SVG document that needs nothing else: no font, no script, no address."""
    console = Console(
        record=True, width=screen.columns, file=io.StringIO(), color_system="standard", force_terminal=True
    )
    written = [number for number, line in enumerate(screen.display) if line.strip()]
    for number in range(written[0], written[-1] + 1):
        row = screen.buffer[number]
        console.print(Text.assemble(*_words([row[column] for column in range(screen.columns)])))
    console.print()  # rich leaves the last line without a clip path
    return console.export_svg(
        title="agent-manager", theme=THEME, code_format=FRAME, font_aspect_ratio=0.6, unique_id="session"
    )


def _words(row: list[Char]) -> Iterator[tuple[str, Style]]:
    """Each word by itself, so that columns stay in line whatever the width of the reader's font."""
    for (style, _), cells in groupby(row, key=lambda cell: (_style(cell), cell.data == " ")):
        yield "".join(cell.data for cell in cells), style


def _style(cell: Char) -> Style:
    colour = cell.fg.replace("brown", "yellow").replace("bright", "bright_")
    return Style(color=None if colour == "default" else colour, bold=cell.bold, reverse=cell.reverse)


if __name__ == "__main__":
    main()
