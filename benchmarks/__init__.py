"""How fast, as ratios measured in one run beside a named yardstick. `python -m benchmarks` prints the table."""
