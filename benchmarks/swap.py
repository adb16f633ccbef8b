"""What a swap costs beyond the engine's own load.

The yardstick of each swap is the same engine, with the same argv and environment, started by hand in the same
run: from its spawn to its first `/health` 200. What remains of the swap is ours: draining and stopping the one
that leaves, waiting for the memory, the shim, noticing that the engine is up, one completion, removing the
record. The engine answers its first token at once here, since that time is the engine's.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent_manager.catalog.load import load_catalog
from agent_manager.gpu.simulated import SimulatedProbe
from agent_manager.runtimes.process import ProcessRuntime
from agent_manager.state import StateDir
from agent_manager.swap.host import Host
from agent_manager.swap.operations import launch, stop
from agent_manager.swap.prepare import prepare
from benchmarks.http import free_port, loaded_by_hand_s
from benchmarks.table import Row, seconds_of

if TYPE_CHECKING:
    from agent_manager.runtimes.base import InstanceSpec

LOADS_S = (0.0, 0.4, 2.3)
RUNS = 5
CONTROLLER_BOUND_MS = 100.0
COMMAND_BOUND = 60.0

CATALOG = """\
version: 1
engine: simulated
engines:
  simulated: {{load_seconds: {load_s}, time_to_first_token_ms: 0, inter_token_ms: 0}}
models:
  small: {{repo: Qwen/Qwen2.5-7B-Instruct-AWQ}}
agents:
  po: {{model: small, port: {po}, context: 4k, sequences: 4}}
  dev: {{model: small, port: {dev}, context: 4k, sequences: 4}}
"""


def measure() -> list[Row]:
    rows: list[Row] = []
    for load_s in LOADS_S:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "models.yaml"
            path.write_text(CATALOG.format(load_s=load_s, po=free_port(), dev=free_port()))
            rows += _swap_rows(path, StateDir(Path(folder) / "state"), load_s)
    return rows


def _swap_rows(path: Path, state: StateDir, load_s: float) -> list[Row]:
    catalog = load_catalog(path, environ={})
    host = Host(
        state=state,
        catalog=catalog,
        runtimes={"process": ProcessRuntime(state)},
        probe=lambda _: SimulatedProbe(state.card("SIM-0")),
        environ=dict(os.environ),
    )
    inside, whole, empty = [], [], []
    for _ in range(RUNS):
        load = _by_hand(host)
        inside.append(asyncio.run(_swap(host)) - load)
        load = _by_hand(host)
        whole.append(_command(path, state, "po") - load)
        empty.append(seconds_of([sys.executable, "-c", "pass"], os.environ))
    asyncio.run(stop(host, [], listener=lambda _: None, everything=True))
    unit = statistics.median(empty)
    ours_ms, multiples = statistics.median(inside) * 1000, statistics.median(whole) / unit
    yardstick = f"same argv by hand, load of {load_s} s"
    return [
        Row(
            what="swap in the controller, beyond the load",
            figure=f"{ours_ms:.0f} ms",
            yardstick=yardstick,
            bound=f"≤ {CONTROLLER_BOUND_MS:.0f} ms",
            kept=ours_ms <= CONTROLLER_BOUND_MS,
        ),
        Row(
            what="`agent-manager launch`, beyond the load",
            figure=f"{multiples:.1f} ×",
            yardstick=f"`python -c pass` ({unit * 1000:.1f} ms); {yardstick}",
            bound=f"≤ {COMMAND_BOUND:.0f} ×",
            kept=multiples <= COMMAND_BOUND,
        ),
    ]


async def _swap(host: Host) -> float:
    """Seconds that `launch dev` takes while po serves."""
    await launch(host, "po", listener=lambda _: None)
    began = time.perf_counter()
    await launch(host, "dev", listener=lambda _: None)
    return time.perf_counter() - began


def _command(path: Path, state: StateDir, agent: str) -> float:
    """Seconds that the whole command takes, with the other agent serving."""
    environ = {**os.environ, "AGENT_MANAGER_STATE_DIR": str(state.root), "AGENT_MANAGER_CATALOG": str(path)}
    program = str(Path(sys.executable).with_name("agent-manager"))
    other = "dev" if agent == "po" else "po"
    seconds_of([program, "launch", other], environ)
    return seconds_of([program, "launch", agent], environ)


async def _plan(host: Host) -> InstanceSpec:
    """The engine that a launch of dev would start, with the card empty."""
    await stop(host, [], listener=lambda _: None, everything=True)
    ready = await prepare(host, "dev", pull=False, listener=lambda _: None)
    return replace(ready.spec, id="by-hand")


def _by_hand(host: Host) -> float:
    """Seconds from the spawn of the engine to its first `/health` 200, without agent-manager."""
    return loaded_by_hand_s(asyncio.run(_plan(host)))
