"""How long commands take that do next to nothing, in multiples of an empty Python program."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from benchmarks.table import Row, ratio, seconds_of

RUNS = 15
BOUNDS = {"--version": 3.0, "--help": 15.0, "status": 40.0}


def measure() -> list[Row]:
    program = str(Path(sys.executable).with_name("agent-manager"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "AGENT_MANAGER_STATE_DIR": folder}
        for argument, bound in BOUNDS.items():
            measured, unit = ratio(
                lambda argument=argument: seconds_of([program, argument], environ),  # type: ignore[misc]
                lambda: seconds_of([sys.executable, "-c", "pass"], environ),
                RUNS,
            )
            rows.append(
                Row(
                    what=f"`agent-manager {argument}`",
                    figure=f"{measured:.1f} ×",
                    yardstick=f"`python -c pass` ({unit * 1000:.1f} ms)",
                    bound=f"≤ {bound:.0f} ×",
                    kept=measured <= bound,
                )
            )
    return rows
