"""What the gateway costs: `agent-manager serve` beside nginx, before the same engine, asked by the same client.

Each figure comes of short turns in one run (the engine itself, nginx, the gateway, and again backwards), and is the
median of the ratios of each round: this way it holds on a machine that does other things, too. The gateway is the
real program, with all that it checks and decides for a request; its engine is `bare_engine.py`, which the catalog
names as the command of the simulated one. nginx is as people set it up before a model: one worker, no buffering, kept
connections. Swaps are between simulated engines, and the yardstick is the same engine started by hand.

Where the time of a request goes (sampled, 16 connections; a request is 0.08-0.09 ms of one core): two fifths are the
kernel and uvloop (two reads, two writes, the wait for the next), a fifth reading the request and writing the answer,
an eighth the ticket (two steps of the swap machine), a fourteenth understanding it (its JSON, its agent), the rest
the way to the engine, checks and glue. Over one connection all of that is added, and the time in which the kernel
wakes two more processes. In a stream only the copying counts: pieces that come together leave together.

Where it is not installed, what needs nginx is left out, and the table says so.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import psutil

from benchmarks.gateway_parts import AGENTS, by_hand, completed_s, gateway, nginx
from benchmarks.load_client import PACE_HZ, PACE_STREAMS
from benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Mapping

Rounds = list[dict[str, float]]

ROUNDS: Final = {"latency": 30, "rate": 20, "chunks": 8, "pace": 1}
LATENCY_BOUND: Final = 5.2
RATE_BOUND: Final = 0.35
CHUNKS_BOUND: Final = 0.8
PACE_BOUND: Final = 0.98
"""Of the pace at which the engine speaks: less would add up over a stream."""
MEMORY_BOUND_BYTES: Final = 70 * 10**6
SWAPS: Final = {0.0: 9, 0.4: 9, 2.3: 5}
"""How many are measured for each load in seconds."""
SWAP_BOUND_MS: Final = 60.0

BARE: Final = f"""\
engines:
  simulated: {{command: ["{sys.executable}", -m, benchmarks.bare_engine]}}
"""
SIMULATED: Final = """\
engines:
  simulated: {{load_seconds: {load_s}, time_to_first_token_ms: 0, inter_token_ms: 0}}
"""


def measure() -> list[Row]:
    with TemporaryDirectory() as folder:
        rows = _proxied(Path(folder))
    for load_s, count in SWAPS.items():
        with TemporaryDirectory() as folder:
            rows.append(_swapped(Path(folder), load_s, count))
    return rows


# --- a proxy ----------------------------------------------------------------------------------------------


def _proxied(folder: Path) -> list[Row]:
    with gateway(folder, BARE) as at:
        completed_s(at.port, AGENTS[0])
        idle_bytes = psutil.Process(at.pid).memory_info().rss
        with nginx(folder, at.engine_port) as beside:
            ports = {"engine": at.engine_port, "gateway": at.port} | ({"nginx": beside} if beside else {})
            rows = [
                _latency(_asked("latency", ports)),
                _share(
                    "requests/s at 16 connections", _asked("rate", ports), RATE_BOUND, "{:,.0f} requests/s"
                ),
                _share("chunks/s over 8 streams", _asked("chunks", ports), CHUNKS_BOUND, "{:,.0f} chunks/s"),
            ]
        pace_hz = _asked("pace", {"gateway": at.port, "engine": at.engine_port})[0]
        used_bytes = psutil.Process(at.pid).memory_info().rss
    most_bytes = max(idle_bytes, used_bytes)
    return [
        *rows,
        Row(
            what=f"gateway: slowest of {PACE_STREAMS} streams of {PACE_HZ:.0f} chunks/s",
            figure=f"{pace_hz['gateway']:.2f} chunks/s",
            yardstick=f"the engine itself: {pace_hz['engine']:.2f} chunks/s",
            bound=f"≥ {PACE_BOUND * PACE_HZ:.0f}",
            kept=pace_hz["gateway"] >= PACE_BOUND * PACE_HZ,
        ),
        Row(
            what="gateway: memory (RSS) with an agent on the card, nothing asked",
            figure=f"{idle_bytes / 10**6:.0f} MB",
            yardstick=f"after all of the above: {used_bytes / 10**6:.0f} MB",
            bound=f"≤ {MEMORY_BOUND_BYTES / 10**6:.0f} MB",
            kept=most_bytes <= MEMORY_BOUND_BYTES,
        ),
    ]


def _asked(mode: str, ports: Mapping[str, int]) -> Rounds:
    """What the client measured, round by round and port by port."""
    plan = json.dumps({"mode": mode, "ports": ports, "rounds": ROUNDS[mode]})
    argv = [sys.executable, "-m", "benchmarks.load_client", plan]
    answer: Rounds = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)
    return answer


def _latency(rounds: Rounds) -> Row:
    ours_ms = statistics.median(each["gateway"] - each["engine"] for each in rounds) * 1000
    what, bound = "gateway: added to one request over one connection (p50)", f"≤ {LATENCY_BOUND} ×"
    if "nginx" not in rounds[0]:
        return _skipped(what, f"{ours_ms:.2f} ms", bound)
    nginx_ms = statistics.median(each["nginx"] - each["engine"] for each in rounds) * 1000
    times = ours_ms / nginx_ms  # of medians: what nginx adds is near nothing in some rounds
    return Row(
        what=what,
        figure=f"{times:.1f} × ({ours_ms:.2f} ms)",
        yardstick=f"nginx adds {nginx_ms:.2f} ms",
        bound=bound,
        kept=times <= LATENCY_BOUND,
    )


def _share(what: str, rounds: Rounds, least: float, unit: str) -> Row:
    ours = unit.format(statistics.median(each["gateway"] for each in rounds))
    if "nginx" not in rounds[0]:
        return _skipped(f"gateway: {what}", ours, f"≥ {least} ×")
    share = statistics.median(each["gateway"] / each["nginx"] for each in rounds)
    beside = unit.format(statistics.median(each["nginx"] for each in rounds))
    engine = unit.format(statistics.median(each["engine"] for each in rounds))
    return Row(
        what=f"gateway: {what}",
        figure=f"{share:.2f} × ({ours})",
        yardstick=f"nginx: {beside}; the engine itself: {engine}",
        bound=f"≥ {least} ×",
        kept=share >= least,
    )


def _skipped(what: str, figure: str, bound: str) -> Row:
    return Row(
        what=what, figure=figure, yardstick="skipped: nginx is not installed", bound=f"({bound})", kept=True
    )


# --- swaps ------------------------------------------------------------------------------------------------


def _swapped(folder: Path, load_s: float, count: int) -> Row:
    engines = SIMULATED.format(load_s=load_s)
    beyond_s = []
    with gateway(folder, engines) as at, by_hand(folder / "by-hand", engines) as loaded_s:
        completed_s(at.port, AGENTS[0])
        for number in range(count):
            load = loaded_s()
            beyond_s.append(completed_s(at.port, AGENTS[(number + 1) % 2]) - load)
    ours_ms = statistics.median(beyond_s) * 1000
    return Row(
        what="gateway: a request that swaps, beyond the engine's load",
        figure=f"{ours_ms:.0f} ms",
        yardstick=f"same argv by hand, load of {load_s} s",
        bound=f"≤ {SWAP_BOUND_MS:.0f} ms",
        kept=ours_ms <= SWAP_BOUND_MS,
    )
