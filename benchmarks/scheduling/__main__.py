"""Simulate, print the tables, keep them in RESULTS.md, draw the picture. The same on every machine."""

from __future__ import annotations

import sys
from pathlib import Path

from agent_manager.swap import schedule
from benchmarks.scheduling import plot
from benchmarks.scheduling.report import cases_table, measure, misses, shorts_table, variants_table
from benchmarks.scheduling.simulate import SLOTS
from benchmarks.scheduling.traces import SEEDS
from benchmarks.table import markdown

HERE = Path(__file__).parent

PAGE = """\
# What the swap policy is worth

`python -m benchmarks.scheduling` writes this page: simulated, so it is the same on every machine. The policy is
the one that runs (`agent_manager/swap/schedule.py`, with its default settings: {settings}).
How the card is simulated is said in `simulate.py`, who asks for what in `traces.py`, the others in `policies.py`:
*first come* serves strictly in the order of arrival, *collation* turns ABCABC into AABBCC and swaps when the
resident has nothing to do. Traces that are drawn are drawn {seeds} times: swaps and makespans are sums.
Waits are from arrival until one of the engine's {slots} slots takes the request, in seconds.

{rows}

![swaps, makespan and waits of the three policies](policies.svg)

## All cases

The last column is ours beside the better of the two others; bold is a miss, more than 5 % beyond it.

{cases}

### Misses, and why

{misses}

## Other figures

Why the policy's own figures (`schedule.Tuning`, and the defaults of `schedule.Settings`) are what they are: each
line changes one of them. Misses are cases more than 5 % beyond the better simple policy in makespan or p95; the
rest are geometric means over all cases, in multiples of collation.

{variants}

## Beside somebody who knows the future

The first jobs of each trace, twelve at most, beside the least that is possible (`clairvoyant.py`): a schedule
for the makespan, and another for the mean wait, both found by branch and bound. It knows who will ask and swaps
ahead of them, which nobody can.

{shorts}
"""


def main() -> int:
    rows = measure()
    defaults = schedule.Settings()
    page = PAGE.format(
        settings=f"`max_wait` {defaults.max_wait_s:.0f} s, `min_residency` {defaults.min_residency_s:.0f} s",
        seeds=SEEDS,
        slots=SLOTS,
        rows=markdown(rows),
        cases=cases_table(),
        misses=misses() or "None.",
        variants=variants_table(),
        shorts=shorts_table(),
    )
    print(page)
    (HERE / "RESULTS.md").write_text(page)
    plot.draw(HERE / "policies.svg")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
