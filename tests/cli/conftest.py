"""A program of its own for each test, as a process or, where that does not matter, within this one."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Protocol

import pytest

from agent_manager.cli import app
from tests.cli.program import Program, Result, make_program
from tests.conftest import kill_engines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import FreePort


@pytest.fixture
def program(tmp_path: Path, free_port: FreePort) -> Iterator[Program]:
    """Quick and simulated; whatever it still runs is stopped in the end."""
    made = make_program(tmp_path, free_port)
    yield made
    kill_engines(tmp_path / "state")


class Call(Protocol):
    """Runs the program within this process; a setting in `env` stays for the rest of the test."""

    def __call__(self, *args: str, stdin: str = "", env: dict[str, str] | None = None) -> Result: ...


@pytest.fixture
def call(program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The program without a process of its own: to import what it needs takes most of a second."""
    for name, value in program.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(program.folder)

    def run(*args: str, stdin: str = "", env: dict[str, str] | None = None) -> Result:
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = app.run(args)
        printed = capsys.readouterr()
        return Result(code=code, out=printed.out, err=printed.err)

    return run
