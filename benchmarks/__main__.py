"""Measure everything, or the modules that are named; print the table. Exits 1 when a bound is not kept.

python -m benchmarks                 all of it, kept in RESULTS.md
python -m benchmarks startup pull    only those, printed only
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.table import SkippedError, markdown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.table import Row

MODULES = ("startup", "swap", "docker", "gateway", "scheduling", "stats", "stats_view", "pull", "verify")
"""Each measures one thing, with `measure()`, and says at its top how."""
RESULTS = Path(__file__).with_name("RESULTS.md")


def main(names: Sequence[str]) -> int:
    """Measure; the exit code."""
    # A user's Python keeps its bytecode; one that is told not to would compile us anew in every run.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    rows: list[Row] = []
    notes: list[str] = []
    for name in names or MODULES:
        try:
            rows += import_module(f"benchmarks.{name}").measure()
        except SkippedError as error:
            notes.append(f"Not measured: `{name}.py` ({error}).")
    table = "\n\n".join([markdown(rows), *notes])
    print(table)
    if not names:
        _keep(table)
    return 0 if all(row.kept for row in rows) else 1


def _keep(table: str) -> None:
    day = dt.datetime.now(tz=dt.UTC).date().isoformat()
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    RESULTS.write_text(
        "# Benchmark results\n\n"
        f"The last run: {day}, {machine}. Medians; `make bench` writes this page.\n\n"
        f"{table}\n\n"
        "Ratios hold across machines, milliseconds do not. How each row is measured is said at the top of the\n"
        "module that measures it. The swap policy has a page of its own:\n"
        "[scheduling/RESULTS.md](scheduling/RESULTS.md).\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
