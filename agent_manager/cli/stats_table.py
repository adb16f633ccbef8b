"""A sample of `gpu-stats` as text: the table of --once, and the line of a session that no terminal shows."""

from __future__ import annotations

import shutil
import sys
from itertools import accumulate
from typing import TYPE_CHECKING

from agent_manager.cli import stats_words as words
from agent_manager.cli.output import Cell

if TYPE_CHECKING:
    from agent_manager.cli.output import Output
    from agent_manager.gpu.base import GpuSample
    from agent_manager.swap.stats import AgentSample, StatsSample

SWAPS = 5
NO_RATES = ("IN/S", "OUT/S", "TTFT", "ITL")
"""They are of the time between two samples."""
PHASE_CELLS = 24
"""Room for what a loading agent is at."""


def print_table(sample: StatsSample, output: Output) -> None:
    """The card, the agents on it, what else is on it, the last swaps."""
    output.result(words.card(sample))
    gpu = sample.gpu
    if gpu is not None:
        if gpu.simulated:
            output.result(output.styled(words.ONLY_SIMULATED, "magenta"))
        output.result(f"memory {_memory(gpu)}")
        if any(reading is not None for reading in _readings(gpu)):
            said = words.readings(gpu)
            output.result("  ".join(said[:5]))
            output.result("  ".join(said[5:]))
    output.result("")
    _print_agents(sample, output)
    _print_others(sample, output)
    if sample.swaps:
        rows = [words.swap(swap, sample.at, "->") for swap in sample.swaps[:SWAPS]]
        output.result("")
        output.table(("SWAPPED", "AGENTS", "TOOK"), rows)


def line(sample: StatsSample) -> str:
    """The sample in one line."""
    said = [sample.at.astimezone().strftime("%H:%M:%S")]
    gpu = sample.gpu
    if gpu is None:
        said.append(words.card(sample))
    else:
        said += [_memory(gpu)]
        if any(reading is not None for reading in _readings(gpu)):
            said += [
                words.percent(gpu.utilization_pct),
                words.amount(gpu.temperature_c, "°C"),
                words.amount(gpu.power_w, "W"),
            ]
    return "  ".join([*said, *(_in_short(agent) for agent in sample.agents)])


def _in_short(agent: AgentSample) -> str:
    if agent.traffic is None:
        return f"{agent.name} {agent.state.value} {words.phase(agent)}".rstrip()
    traffic = agent.traffic
    return (
        f"{agent.name} {agent.state.value} {traffic.running}+{traffic.waiting} requests"
        f" {words.rate(traffic.prompt_tokens_per_s)} in/s {words.rate(traffic.generation_tokens_per_s)} out/s"
    )


def _memory(gpu: GpuSample) -> str:
    said = f"{words.size(gpu.used_bytes)} of {words.size(gpu.total_bytes)}"
    return f"{said} (simulated)" if gpu.simulated else said


def _readings(gpu: GpuSample) -> tuple[object, ...]:
    return (gpu.utilization_pct, gpu.temperature_c, gpu.power_w, gpu.sm_clock_mhz, gpu.performance_state)


def _print_agents(sample: StatsSample, output: Output) -> None:
    if not sample.agents:
        output.result(words.NOBODY)
        return
    loading = any(agent.phase for agent in sample.agents)
    columns = [column for column in words.COLUMNS if column.header not in NO_RATES]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - (PHASE_CELLS if loading else 0)
        ends = accumulate(column.width + 2 for column in columns)
        columns = [column for column, end in zip(columns, ends, strict=True) if end <= room]
    headers = [*(column.header for column in columns), *(["NOW"] if loading else [])]
    rows = [
        [*(column.text(agent) for column in columns), *([words.phase(agent)] if loading else [])]
        for agent in sample.agents
    ]
    output.table(headers, rows, flexible=("MODEL", "NOW"))


def _print_others(sample: StatsSample, output: Output) -> None:
    ours = {pid for agent in sample.agents for pid in agent.pids}
    others = [each for each in (sample.gpu.processes if sample.gpu else ()) if each.pid not in ours]
    if others:
        rows = [(str(each.pid), Cell(each.name), words.size(each.used_bytes)) for each in others]
        output.result("")
        output.table(("PID", "PROCESS", "MEMORY"), rows)
