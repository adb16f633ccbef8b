"""The live view in a real terminal: its screens, how it is left, and that the terminal is as it was."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.cli.program import WAIT_S, Terminal, make_program
from tests.conftest import kill_engines

if TYPE_CHECKING:
    from tests.conftest import FreePort

ROOT = Path(__file__).parents[2]
SCREENS = Path(__file__).with_name("screens")
ENV = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": str(ROOT),
    "TERM": "xterm-256color",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
}
COLOUR = re.compile(rb"\x1b\[[0-9;]*m")
WRITE = "WRITE_SCREENS" in os.environ
"""Store what is seen instead of comparing it; look at it before it is committed."""


def show(
    folder: Path, *args: str, columns: int = 80, lines: int = 24, env: dict[str, str] | None = None
) -> Terminal:
    command = [sys.executable, "-m", "tests.cli.show", *args]
    return Terminal(command, env=ENV | (env or {}), cwd=folder, columns=columns, lines=lines)


def until_stored(terminal: Terminal, name: str) -> None:
    """Read until the screen is the stored one."""
    stored = SCREENS / f"{name}.txt"
    if WRITE:
        drawn_s = time.monotonic() + 10.0
        terminal.until(lambda _: time.monotonic() > drawn_s)
        stored.parent.mkdir(exist_ok=True)
        stored.write_text("\n".join(terminal.lines) + "\n", encoding="utf-8")
    wanted = stored.read_text(encoding="utf-8").splitlines()
    terminal.until(lambda lines: lines == wanted)


def assert_restored(terminal: Terminal, modes: list[object]) -> None:
    assert terminal.modes == modes
    assert terminal.raw.count(b"\x1b[?1049h") == terminal.raw.count(b"\x1b[?1049l") > 0
    assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")
    assert not terminal.screen.cursor.hidden


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (120, 40), (60, 20), (40, 10)])
def test_the_screen_of_a_busy_card(tmp_path: Path, columns: int, lines: int) -> None:
    with show(tmp_path, "busy", columns=columns, lines=lines) as terminal:
        until_stored(terminal, f"busy-{columns}x{lines}")


@pytest.mark.parametrize("scene", ["idle", "lost", "unified"])
def test_the_screen_of_an_odd_card(tmp_path: Path, scene: str) -> None:
    with show(tmp_path, scene) as terminal:
        until_stored(terminal, f"{scene}-80x24")


def test_the_title_says_that_it_is_simulated(tmp_path: Path) -> None:
    with show(tmp_path, "busy", "--simulated") as terminal:
        terminal.until(lambda lines: bool(lines) and "simulated: there is no GPU behind it" in lines[0])


@pytest.mark.parametrize(
    ("options", "env"), [(("--no-color",), {}), ((), {"NO_COLOR": "1"})], ids=["option", "environment"]
)
def test_without_colour_the_screen_is_the_same(
    tmp_path: Path, options: tuple[str, ...], env: dict[str, str]
) -> None:
    with show(tmp_path, "busy", *options, env=env) as terminal:
        until_stored(terminal, "busy-80x24")
        assert not COLOUR.search(terminal.raw)
    with show(tmp_path, "busy") as terminal:
        until_stored(terminal, "busy-80x24")
        assert COLOUR.search(terminal.raw)


def test_a_terminal_without_unicode_gets_ascii(tmp_path: Path) -> None:
    with show(tmp_path, "busy", env={"PYTHONIOENCODING": "ascii"}) as terminal:
        until_stored(terminal, "ascii-80x24")
        assert terminal.raw.isascii()


def test_it_follows_the_size_of_its_terminal(tmp_path: Path) -> None:
    with show(tmp_path, "busy") as terminal:
        until_stored(terminal, "busy-80x24")
        for columns, lines in ((120, 40), (40, 10), (200, 60), (80, 24)):
            terminal.resize(columns, lines)
            until_stored(terminal, f"busy-{columns}x{lines}")


@pytest.mark.parametrize("key", ["q", "Q", "\x1b"])
def test_a_key_leaves_it(tmp_path: Path, key: str) -> None:
    with show(tmp_path, "busy") as terminal:
        modes = terminal.modes
        until_stored(terminal, "busy-80x24")
        terminal.send("x\x1b[A")  # no such key, and an arrow
        terminal.send(key)
        assert terminal.wait() == 0
        assert b"samples closed" in terminal.raw
        assert terminal.raw.endswith(b"left\r\n")
        assert_restored(terminal, modes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_it(tmp_path: Path, number: signal.Signals) -> None:
    with show(tmp_path, "busy") as terminal:
        modes = terminal.modes
        until_stored(terminal, "busy-80x24")
        if number is signal.SIGINT:
            terminal.interrupt()
        else:
            terminal.process.send_signal(number)
        assert terminal.wait() == 130
        assert b"samples closed" in terminal.raw
        assert terminal.raw.endswith(b"interrupted\r\n")
        assert_restored(terminal, modes)


def test_a_crash_gives_the_terminal_back(tmp_path: Path) -> None:
    with show(tmp_path, "busy", "--crash") as terminal:
        modes = terminal.modes
        assert terminal.wait() == 1
        assert b"OperationFailed: the samples broke" in terminal.raw
        assert terminal.raw.index(b"OperationFailed") > terminal.raw.index(b"\x1b[?1049l")
        assert_restored(terminal, modes)


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(tmp_path: Path) -> None:
    with show(tmp_path, "busy") as terminal:
        modes = terminal.modes
        until_stored(terminal, "busy-80x24")
        terminal.send("\x1a")
        process = psutil.Process(terminal.process.pid)
        terminal.until(
            lambda _: process.status() == psutil.STATUS_STOPPED and terminal.raw.endswith(b"\x1b[?1049l")
        )
        assert_restored(terminal, modes)
        terminal.screen.reset()
        process.resume()
        until_stored(terminal, "busy-80x24")
        terminal.send("q")
        assert terminal.wait() == 0
        assert_restored(terminal, modes)


def test_a_terminal_that_is_closed_ends_it(tmp_path: Path) -> None:
    with show(tmp_path, "busy") as terminal:
        until_stored(terminal, "busy-80x24")
        terminal.hang_up()
        terminal.process.wait(WAIT_S)


def test_where_there_is_no_terminal_it_says_so(tmp_path: Path) -> None:
    with show(tmp_path, "busy", env={"TERM": "dumb"}) as terminal:
        assert terminal.wait() == 1
        assert b"UsageError: the live view needs a terminal" in terminal.raw
        assert b"\x1b" not in terminal.raw


def test_an_engine_with_load_shows_its_tokens(tmp_path: Path, free_port: FreePort) -> None:
    program = make_program(tmp_path, free_port, inter_token_ms=5.0)
    try:
        assert program.run("launch", "dev", "--engine", "simulated", "--no-pull").code == 0
        ended = threading.Event()
        load = threading.Thread(target=keep_busy, args=(program.ports["dev"], ended))
        load.start()
        try:
            with program.terminal("gpu-stats", "--interval", "0.3") as terminal:
                columns = terminal.until(lambda lines: tokens_per_s(lines) > 0)
                assert "simulated: there is no GPU behind it" in columns[0]
                assert "dev 1" in columns[2], "its share of the memory"
                terminal.send("q")
                assert terminal.wait() == 0
        finally:
            ended.set()
            load.join()
    finally:
        kill_engines(tmp_path / "state")


def keep_busy(port: int, ended: threading.Event) -> None:
    body = json.dumps({"model": "dev", "prompt": "on and on", "max_tokens": 100}).encode()
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    while not ended.is_set():
        with urllib.request.urlopen(asked, timeout=WAIT_S) as answer:  # noqa: S310 - our own loopback address
            answer.read()


def tokens_per_s(lines: list[str]) -> float:
    """What stands under OUT/S for dev; 0 for a dash, or when it is not there yet."""
    headers = next((line for line in lines if line.startswith("AGENT")), "")
    row = next((line for line in lines if line.startswith("dev ")), "")
    end = headers.find("OUT/S") + len("OUT/S")
    cell = row[:end].split()[-1:] or ["-"]
    return 0.0 if cell == ["-"] or not headers else float(cell[0])
