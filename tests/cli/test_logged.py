"""What is logged reaches a person as one line, and a traceback only who asked for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, logging
from agent_manager.cli.logged import tell_what_is_logged
from agent_manager.cli.output import Output

async def forgets():
    async def dies():
        raise ValueError("why\\nit died")
    task = asyncio.ensure_future(dies())
    await asyncio.sleep(0)

tell_what_is_logged(Output(verbose={verbose}))
logging.getLogger("a.room").info("not worth a line")
logging.getLogger("a.room").warning("skipping %s", "x\x1b[31m")
asyncio.run(forgets())
"""


@pytest.mark.parametrize("verbose", [False, True])
def test_a_line_each(verbose: bool) -> None:  # noqa: FBT001 - pytest's way
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(verbose=verbose)],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    lines = done.stderr.splitlines()
    assert lines[0] == "warning: skipping x\\x1b[31m"
    assert lines[-1].startswith("warning: Task exception was never retrieved")
    assert lines[-1].endswith(": ValueError: why it died")
    assert ("Traceback" in done.stderr) == verbose
    assert verbose or len(lines) == 2
