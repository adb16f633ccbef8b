"""The real program, run as a user runs it: as a process with pipes, or in a terminal of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pyte

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.conftest import FreePort

CATALOG = """\
version: 1
engines:
  simulated: {{load_seconds: {load_seconds}, time_to_first_token_ms: 1, inter_token_ms: {inter_token_ms}}}
models:
  tiny: {{repo: Qwen/Qwen2.5-0.5B-Instruct, revision: "{commit}"}}
  other: {{path: ./nowhere}}
agents:
  dev: {{model: tiny, port: {dev}, context: 2k, sequences: 2}}
  po: {{model: tiny, port: {po}, context: 2k, sequences: 2}}
profiles:
  smaller: {{agents: {{dev: {{context: 1k}}}}}}
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WAIT_S = 20.0
TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""A session leader becomes the program, with its standard input as the terminal that Ctrl-C comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How the program ended and what it wrote."""

    code: int
    out: str
    err: str


class Program:
    """agent-manager with a state folder, a home and a catalog of its own."""

    def __init__(self, folder: Path, catalog: Path, ports: dict[str, int]) -> None:
        self.folder = folder
        self.catalog = catalog
        self.ports = ports
        kept = {
            name: os.environ[name]
            for name in ("PATH", "LANG", "PYTHONDONTWRITEBYTECODE")
            if name in os.environ
        }
        self.env = kept | {
            "HOME": str(folder),
            "AGENT_MANAGER_STATE_DIR": str(folder / "state"),
            "AGENT_MANAGER_CATALOG": str(catalog),
            "HF_HUB_CACHE": str(folder / "hub"),
        }

    def run(self, *args: str, stdin: str = "", env: dict[str, str] | None = None) -> Result:
        """Run it to its end, all of its streams pipes."""
        done = subprocess.run(
            argv(*args),
            input=stdin,
            env=self.env | (env or {}),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_S * 2,
        )
        return Result(code=done.returncode, out=done.stdout, err=done.stderr)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start it with pipes; the caller ends it."""
        return subprocess.Popen(
            argv(*args),
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def terminal(self, *args: str, env: dict[str, str] | None = None) -> Terminal:
        """Start it in a terminal."""
        return Terminal(argv(*args), env=self.env | {"TERM": "xterm-256color"} | (env or {}), cwd=self.folder)


def argv(*args: str) -> list[str]:
    return [sys.executable, "-m", "agent_manager", *args]


def make_program(
    folder: Path, free_port: FreePort, *, load_seconds: float = 0.0, inter_token_ms: float = 1.0
) -> Program:
    """A program whose catalog has the agents dev and po, simulated and quick."""
    ports = {"dev": free_port(), "po": free_port()}
    catalog = folder / "models.yaml"
    catalog.write_text(
        CATALOG.format(commit=COMMIT, load_seconds=load_seconds, inter_token_ms=inter_token_ms, **ports)
    )
    return Program(folder, catalog, ports)


class Terminal:
    """A process in a pseudo-terminal, seen through a terminal emulator. Use it as a context manager."""

    def __init__(
        self, command: Sequence[str], *, env: dict[str, str], cwd: Path, columns: int = 100, lines: int = 30
    ) -> None:
        self.screen = pyte.Screen(columns, lines)
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)
        self._fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.hang_up()

    def hang_up(self) -> None:
        """Close the terminal, as a lost connection does."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def lines(self) -> list[str]:
        """What is on the screen, without trailing blanks and without the empty lines below."""
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def modes(self) -> list[object]:
        """How it treats keys: what `stty` shows."""
        return termios.tcgetattr(self._fd)

    def resize(self, columns: int, lines: int) -> None:
        """Change its size, which the program is told."""
        self.screen.resize(lines, columns)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def send(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C when the program sleeps.

        Between what it shows and the system call that waits there is a moment in which Python keeps a signal
        until that call returns: nobody presses a key so soon, a test does.
        """
        deadline = time.monotonic() + WAIT_S
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline, "it never waited:\n" + "\n".join(self.lines)
            self._read()
        self.send("\x03")

    def until(self, met: Callable[[list[str]], bool]) -> list[str]:
        """Read until the screen is as wanted; fails with the screen when that never comes."""
        deadline = time.monotonic() + WAIT_S
        while not met(self.lines):
            assert time.monotonic() < deadline, "the screen never came:\n" + "\n".join(self.lines)
            if not self._read():
                assert met(self.lines), "it ended, and the screen never came:\n" + "\n".join(self.lines)
        return self.lines

    def wait(self) -> int:
        """Read to the end and return the exit code, -N for a signal."""
        deadline = time.monotonic() + WAIT_S
        while self._read():
            assert time.monotonic() < deadline, "it never ended:\n" + "\n".join(self.lines)
        return self.process.wait(WAIT_S)

    def _read(self) -> bool:
        """Take in what comes within a moment; False at the end."""
        if not select.select([self._fd], [], [], 0.1)[0]:
            return True
        data = b""
        with contextlib.suppress(OSError):  # Linux says EIO when the last one has closed the terminal
            data = os.read(self._fd, 65536)
        self.raw += data
        self._stream.feed(data)
        return bool(data)
