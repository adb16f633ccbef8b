"""A program of its own for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.program import Program, make_program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import FreePort


@pytest.fixture
def program(tmp_path: Path, free_port: FreePort) -> Iterator[Program]:
    """Quick and simulated; whatever it still runs is stopped in the end."""
    made = make_program(tmp_path, free_port)
    yield made
    if (tmp_path / "state" / "instances").is_dir():
        made.run("stop", "--all", "--drain-timeout", "0")
