"""gpu-stats: the card and the agents on it, live, once, as JSON, as CSV; a recorded session as a picture."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated

import typer

from agent_manager.cli.values import duration_s
from agent_manager.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent_manager.cli.invocation import Invocation
    from agent_manager.cli.output import Output
    from agent_manager.cli.stats_record import Recorder
    from agent_manager.gpu.base import GpuSample
    from agent_manager.swap.host import Host
    from agent_manager.swap.stats import StatsSample

EXAMPLES = """
agent-manager gpu-stats
agent-manager gpu-stats --once
agent-manager gpu-stats --json --count 10
agent-manager gpu-stats --csv session.csv
agent-manager gpu-stats --plot session.svg --from session.csv
"""

SHORTEST_S = 0.1


def interval(text: str | float) -> float:
    """Seconds between samples, from `0.5`, `2s` or `1m`. Raises ValueError for anything else, or too little."""
    seconds = duration_s(text)
    if seconds < SHORTEST_S:
        raise ValueError(f"'{text}' is less than {SHORTEST_S} s")
    return seconds


def run(
    ctx: typer.Context,
    *,
    interval_s: Annotated[
        float, typer.Option("--interval", metavar="S", parser=interval, help="Seconds between two samples.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One table, and no more.")] = False,
    count: Annotated[int | None, typer.Option(metavar="N", min=1, help="Stop after so many samples.")] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Record the samples as well; adds to a recording.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a recorded session: .svg or .png.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="The recording to draw.")
    ] = None,
) -> None:
    """Show the card, live: how full, how hot, how busy; which agents are on it and how fast they answer."""
    invocation: Invocation = ctx.obj
    if plot or source:
        _plot(plot, source)
        return
    from agent_manager.swap.watch import watch  # noqa: PLC0415 - asyncio; not for --help and completion

    async def show(host: Host) -> None:
        samples = watch(host, interval_s=interval_s, count=1 if once else count)
        async with contextlib.aclosing(samples):
            # Before anything is drawn or opened: without a card this is an error like any other.
            first = await anext(samples)
            with _recording(csv) as recorder:
                rest = _from(first, samples, recorder)
                await _show(rest, first, invocation.output, interval_s=interval_s, once=once)

    try:
        invocation.read(show)
    except Interrupted as interrupted:
        raise typer.Exit(interrupted.exit_code) from None


def document(sample: StatsSample) -> dict[str, object]:
    """The sample under the names of the contract."""
    return {
        "time": sample.at,
        "gpu": sample.gpu and _gpu(sample.gpu, sample),
        "agents": sample.agents,
        "swaps": sample.swaps,
        "notes": sample.notes,
    }


def _gpu(gpu: GpuSample, sample: StatsSample) -> dict[str, object]:
    agent_of = {pid: agent.name for agent in sample.agents for pid in agent.pids}
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "simulated": gpu.simulated,
        "total_bytes": gpu.total_bytes,
        "used_bytes": gpu.used_bytes,
        "free_bytes": gpu.free_bytes,
        "utilization_pct": gpu.utilization_pct,
        "memory_utilization_pct": gpu.memory_utilization_pct,
        "temperature_c": gpu.temperature_c,
        "power_w": gpu.power_w,
        "power_limit_w": gpu.power_limit_w,
        "sm_clock_mhz": gpu.sm_clock_mhz,
        "memory_clock_mhz": gpu.memory_clock_mhz,
        "fan_pct": gpu.fan_pct,
        "performance_state": gpu.performance_state,
        "throttle_reasons": gpu.throttle_reasons,
        "processes": [
            {
                "pid": process.pid,
                "name": process.name,
                "used_bytes": process.used_bytes,
                "agent": agent_of.get(process.pid),
            }
            for process in gpu.processes
        ],
    }


async def _show(
    samples: AsyncGenerator[StatsSample, None],
    first: StatsSample,
    output: Output,
    *,
    interval_s: float,
    once: bool,
) -> None:
    if output.json:
        async for sample in samples:
            output.json_line(document(sample))
        return
    if not once and not output.quiet and sys.stdout.isatty() and sys.stdin.isatty():
        from agent_manager.cli.stats_view import show  # noqa: PLC0415 - rich; only for a terminal

        simulated = first.gpu is not None and first.gpu.simulated
        await show(samples, output=output, simulated=simulated, interval_s=interval_s)
        return
    from agent_manager.cli import stats_table  # noqa: PLC0415 - not for --help and --json

    notes: tuple[str, ...] = ()
    async for sample in samples:
        for note in sample.notes:
            if note not in notes:
                output.note(note)
        notes = sample.notes
        if once:
            stats_table.print_table(sample, output)
        elif not output.quiet:
            output.result(stats_table.line(sample))
            sys.stdout.flush()


async def _from(
    first: StatsSample, samples: AsyncGenerator[StatsSample, None], recorder: Recorder | None
) -> AsyncGenerator[StatsSample, None]:
    """All samples, each of them recorded before it is shown."""
    if recorder is not None:
        recorder.write(first)
    yield first
    async for sample in samples:
        if recorder is not None:
            recorder.write(sample)
        yield sample


def _recording(path: Path | None) -> contextlib.AbstractContextManager[Recorder | None]:
    if path is None:
        return contextlib.nullcontext()
    from agent_manager.cli.stats_record import Recorder  # noqa: PLC0415 - only for --csv

    return Recorder(path)


def _plot(picture: Path | None, recording: Path | None) -> None:
    if picture is None or recording is None:
        raise UsageError("--plot and --from go together", hint="gpu-stats --plot FILE.svg --from FILE.csv")
    from agent_manager.cli.stats_plot import plot  # noqa: PLC0415 - only for --plot

    plot(recording, picture)
