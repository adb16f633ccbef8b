"""What the sampler reads beside what nvidia-smi says of the same card, for machines that have one."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_manager.gpu.nvml import NvmlSampler

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_manager.gpu.base import GpuSample

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Reading:
    """A column of nvidia-smi and the same of a sample; what lies within `tolerance` is equal.

    nvidia-smi rounds memory to MiB. What changes from one moment to the next is asked before and after the sample
    and may lie anywhere between the two, and `tolerance` beyond.
    """

    column: str
    ours: Callable[[GpuSample], str | float | None]
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class Compared:
    """One reading: what nvidia-smi said before and after, what we read, and whether that is the same."""

    column: str
    theirs: list[str]
    ours: str | float | None
    equal: bool


def _mib(value_bytes: int | None) -> float | None:
    return None if value_bytes is None else value_bytes / MIB


READINGS = (
    Reading("index", lambda sample: sample.index),
    Reading("uuid", lambda sample: sample.uuid),
    Reading("name", lambda sample: sample.name),
    Reading("memory.used", lambda sample: _mib(sample.used_bytes), 2),
    Reading("memory.free", lambda sample: _mib(sample.free_bytes), 2),
    Reading("utilization.gpu", lambda sample: sample.utilization_pct, 5),
    Reading("utilization.memory", lambda sample: sample.memory_utilization_pct, 5),
    Reading("temperature.gpu", lambda sample: sample.temperature_c, 1),
    Reading("power.draw", lambda sample: sample.power_w, 5),
    Reading("enforced.power.limit", lambda sample: sample.power_limit_w, 0.01),
    Reading("clocks.sm", lambda sample: sample.sm_clock_mhz, 30),
    Reading("clocks.mem", lambda sample: sample.memory_clock_mhz, 30),
    Reading("fan.speed", lambda sample: sample.fan_pct, 1),
    Reading(
        "pstate", lambda sample: None if sample.performance_state is None else f"P{sample.performance_state}"
    ),
)


def available() -> bool:
    """Whether there is an nvidia-smi that sees a card."""
    program = shutil.which("nvidia-smi")
    return (
        program is not None
        and subprocess.run([program, "-L"], check=False, capture_output=True).returncode == 0
    )


def compare() -> list[Compared]:
    """Every reading of the first card, ours between two of nvidia-smi's."""
    sampler = NvmlSampler()
    try:
        sampler.sample()
        before, sample, after = _ask(), sampler.sample(), _ask()
    finally:
        sampler.close()
    compared = []
    for reading, *theirs in zip(READINGS, before, after, strict=True):
        ours = reading.ours(sample)
        compared.append(Compared(reading.column, theirs, ours, _equal(ours, theirs, reading.tolerance)))
    return compared


def _ask() -> list[str]:
    columns = ",".join(reading.column for reading in READINGS)
    done = subprocess.run(
        ["nvidia-smi", "--id=0", f"--query-gpu={columns}", "--format=csv,noheader,nounits"],  # noqa: S607 - the user's
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.stdout.strip().split(", ")


def _equal(ours: str | float | None, theirs: list[str], tolerance: float) -> bool:
    if ours is None:
        return all(each.startswith("[") for each in theirs)  # [N/A], [Not Supported]
    if isinstance(ours, str):
        return ours in theirs
    try:
        numbers = [float(each) for each in theirs]
    except ValueError:
        return False
    return min(numbers) - tolerance <= ours <= max(numbers) + tolerance
