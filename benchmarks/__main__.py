"""Measure everything, print the table, keep it in RESULTS.md. Exits 1 when a bound is not kept."""

from __future__ import annotations

import datetime as dt
import os
import platform
import sys
from pathlib import Path

from benchmarks import docker, startup, swap
from benchmarks.table import markdown

RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> int:
    # A user's Python keeps its bytecode; one that is told not to would compile us anew in every run.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    rows = [*startup.measure(), *swap.measure()]
    skipped = ""
    try:
        rows += docker.measure()
    except docker.SkippedError as error:
        skipped = f"\n\nNot measured: `launch` in Docker ({error})."
    table = markdown(rows) + skipped
    print(table)
    day = dt.datetime.now(tz=dt.UTC).date().isoformat()
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    RESULTS.write_text(
        "# Benchmark results\n\n"
        f"The last run: {day}, {machine}. Medians; `make bench` writes this page.\n\n"
        f"{table}\n\n"
        "Ratios hold across machines, milliseconds do not. How each row is measured is said at the top of the\n"
        "file that measures it: `startup.py`, `swap.py`, `docker.py`.\n"
    )
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
