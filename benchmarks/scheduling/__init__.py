"""Does the swap policy earn its keep? Simulated traces, beside two simple policies and a clairvoyant one.

`python -m benchmarks.scheduling` prints the tables, keeps them in RESULTS.md and draws policies.svg.
"""

from benchmarks.scheduling.report import measure

__all__ = ["measure"]
