"""The progress display: screens in a real terminal, lines in a pipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tests.cli.program import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

TELL = str(Path(__file__).with_name("tell.py"))
ROOT = Path(__file__).parents[2]
ENV = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LANG": "C.UTF-8"}


@contextmanager
def display(
    folder: Path, *options: str, columns: int = 80, env: dict[str, str] | None = None
) -> Iterator[tuple[Terminal, TextIO]]:
    """The display in a terminal, and the pipe that takes the names of notices."""
    pipe = folder / "notices"
    os.mkfifo(pipe)
    command = [sys.executable, TELL, str(pipe), *options]
    with (
        Terminal(command, env=ENV | (env or {}), cwd=folder, columns=columns) as terminal,
        pipe.open("w", buffering=1, encoding="utf-8") as notices,
    ):
        yield terminal, notices


def tell(notices: TextIO, *names: str) -> None:
    notices.writelines(f"{name}\n" for name in names)


def normal(lines: list[str]) -> list[str]:
    """The screen without what the clock decides."""
    text = "\n".join(lines)
    text = re.sub(r"^[⠁-⣿|/\\-] ", "* ", text.replace("about 35 s", "about T"), flags=re.MULTILINE)
    return re.sub(r"\d+(\.\d)? s\b", "N s", text).splitlines()


def test_the_screens_of_a_swap(tmp_path: Path) -> None:
    with display(tmp_path, "--simulated") as (terminal, notices):
        tell(notices, "drain")
        terminal.until(lambda lines: normal(lines) == ["* draining po  N s"])
        tell(notices, "stop", "memory", "held", "warn")
        terminal.until(
            lambda lines: (
                normal(lines)
                == [
                    "✓ draining po  N s",
                    "✓ stopping po  N s",
                    "held by\\x1b[2J firefox (pid 12)",
                    "warning: docker does not answer",
                    "* waiting for memory for dev  N s",
                ]
            )
        )
        tell(notices, "start", "load", "weights-60")
        terminal.until(
            lambda lines: (
                normal(lines)[4:]
                == [
                    "✓ waiting for memory for dev  N s",
                    "✓ starting dev  N s",
                    "simulated engine: it generates text, there is no model",
                    "* loading dev  loading weights  ━━━━━━━━━━━━──────── 60%  N s of about T",
                ]
            )
        )
        tell(notices, "ready", "check")
        terminal.until(
            lambda lines: normal(lines)[7:] == ["✓ loading dev  N s", "* asking dev for a first word  N s"]
        )
        notices.close()
        assert terminal.wait() == 0
        assert normal(terminal.lines)[7:] == [
            "✓ loading dev  N s",
            "✓ asking dev for a first word  N s",
            "done",
        ]
        assert not terminal.screen.cursor.hidden


def test_the_screens_of_a_failed_load_that_is_undone(tmp_path: Path) -> None:
    with display(tmp_path) as (terminal, notices):
        tell(notices, "stop", "start", "load", "discard", "restore", "restore-load")
        terminal.until(
            lambda lines: (
                normal(lines)
                == [
                    "✓ stopping po  N s",
                    "✓ starting dev  N s",
                    "✗ loading dev  N s",
                    "✓ stopping dev  N s",
                    "✓ putting po back: starting po  N s",
                    "* putting po back: loading po  N s of about N s",
                ]
            )
        )
        tell(notices, "warn", "fail")
        assert terminal.wait() == 3
        assert normal(terminal.lines)[5:] == [
            "· putting po back: loading po  N s",
            "warning: docker does not answer",
        ]
        assert not terminal.screen.cursor.hidden


def test_a_download_has_a_bar(tmp_path: Path) -> None:
    with display(tmp_path) as (terminal, notices):
        tell(notices, "pull", "pulled-half")
        terminal.until(
            lambda lines: (
                normal(lines) == ["* pulling tiny  2.00 GiB of 4.00 GiB  ━━━━━━━━━━────────── 50%  N s"]
            )
        )
        tell(notices, "memory", "restore")
        terminal.until(lambda lines: "✗ waiting for memory for dev" in "\n".join(lines))
        notices.close()
        assert terminal.wait() == 0


def test_a_narrow_terminal_keeps_it_in_one_line(tmp_path: Path) -> None:
    with display(tmp_path, columns=30) as (terminal, notices):
        tell(notices, "load", "weights-60")
        terminal.until(lambda lines: normal(lines) == ["* loading dev  loading weigh…"])
        notices.close()
        terminal.wait()


def test_no_colour_leaves_only_the_cursor_to_move(tmp_path: Path) -> None:
    with display(tmp_path, "--no-color") as (terminal, notices):
        tell(notices, "warn", "load", "weights-60")
        terminal.until(lambda lines: "60%" in "\n".join(lines))
        notices.close()
        terminal.wait()
        assert not re.search(rb"\x1b\[[0-9;]*m", terminal.raw)


def test_a_terminal_without_unicode_gets_ascii(tmp_path: Path) -> None:
    with display(tmp_path, env={"PYTHONIOENCODING": "ascii"}) as (terminal, notices):
        tell(notices, "stop", "load", "weights-60")
        terminal.until(lambda lines: any("############-------- 60%" in line for line in lines))
        notices.close()
        assert terminal.wait() == 0
        assert normal(terminal.lines)[0] == "+ stopping po  N s"


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(tmp_path: Path) -> None:
    with display(tmp_path, env={"TERM": "dumb"}) as (terminal, notices):
        tell(notices, "stop", "load")
        notices.close()
        assert terminal.wait() == 0
        assert b"\x1b" not in terminal.raw
        assert terminal.lines == ["stopping po", "loading dev, about 35 s", "done"]


def test_a_terminal_that_is_closed_does_not_end_the_swap(tmp_path: Path) -> None:
    with display(tmp_path) as (terminal, notices):
        tell(notices, "load")
        terminal.until(lambda lines: any("loading dev" in line for line in lines))
        terminal.hang_up()
        tell(notices, "weights-60", "check", "warn")
        notices.close()
        terminal.process.wait(20)
        assert (tmp_path / "notices.heard").exists()


def piped(tmp_path: Path, *options: str, names: tuple[str, ...]) -> tuple[str, str]:
    pipe = tmp_path / "notices"
    pipe.write_text("".join(f"{name}\n" for name in names))
    done = subprocess.run(
        [sys.executable, TELL, str(pipe), *options], capture_output=True, text=True, check=True, env=ENV
    )
    return done.stdout, done.stderr


NAMES = ("drain", "stop", "held", "warn", "start", "load", "weights", "weights-60", "check")


def test_a_pipe_gets_one_line_for_each_step_and_phase(tmp_path: Path) -> None:
    out, err = piped(tmp_path, "--simulated", names=NAMES)
    assert out == "done\n"
    assert err.splitlines() == [
        "draining po",
        "stopping po",
        "held by\\x1b[2J firefox (pid 12)",
        "warning: docker does not answer",
        "starting dev",
        "simulated engine: it generates text, there is no model",
        "loading dev, about 35 s",
        "loading dev: loading weights",
        "asking dev for a first word",
    ]


def test_a_pipe_hears_of_a_download_every_ten_percent(tmp_path: Path) -> None:
    _, err = piped(tmp_path, names=("pull", "pulled-half", "pulled-more", "pulled-all"))
    assert err.splitlines() == [
        "pulling tiny",
        "pulling tiny: 50% of 4.00 GiB",
        "pulling tiny: 100% of 4.00 GiB",
    ]


def test_quiet_is_silent(tmp_path: Path) -> None:
    assert piped(tmp_path, "--quiet", names=NAMES) == ("done\n", "")


def test_with_json_a_terminal_gets_plain_lines(tmp_path: Path) -> None:
    with display(tmp_path, "--json") as (terminal, notices):
        tell(notices, "stop")
        notices.close()
        terminal.wait()
        assert b"\x1b" not in terminal.raw
