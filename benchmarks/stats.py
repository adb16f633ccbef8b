"""What a look at the card costs: one sample in this program, and `gpu-stats --once` as a whole.

The driver's library is the tests' stand-in, which answers at once: what is left is Python's part, ours and the
binding's (nvidia-ml-py). The yardstick of a sample are the same calls on the binding, made by hand in the same
process, both medians, of the least disturbed of some rounds; that of the command an empty Python program.

On a machine with an NVIDIA card, `compared` sets what is read beside what nvidia-smi says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.table import Row, ratio, seconds_of
from tests.gpu.nvidia_smi import available, compare
from tests.gpu.stub.build import build

ROUNDS, SAMPLES = 7, 500
SAMPLE_BOUND_US = 50.0
RUNS = 15
ONCE_BOUND = 30.0

MEASURE = f"""
import json, pynvml as nvml, statistics, time
from agent_manager.gpu.nvml import NvmlSampler

sampler = NvmlSampler()
sampler.sample()
handle = nvml.nvmlDeviceGetHandleByIndex(0)

def by_hand():
    nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
    nvml.nvmlDeviceGetUtilizationRates(handle)
    nvml.nvmlDeviceGetPowerUsage(handle)
    nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    nvml.nvmlDeviceGetPerformanceState(handle)
    nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
    nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
    nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)
    nvml.nvmlDeviceGetFanSpeed(handle)
    nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)
    nvml.nvmlDeviceGetComputeRunningProcesses(handle)

def timed(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began

def median_us(call):
    return statistics.median(timed(call) for _ in range({SAMPLES})) * 1e6

rounds = [(median_us(sampler.sample), median_us(by_hand)) for _ in range({ROUNDS})]
print(json.dumps([min(each) for each in zip(*rounds)]))
"""


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environ = {
            **os.environ,
            "LD_LIBRARY_PATH": str(build(folder)),
            "AGENT_MANAGER_STATE_DIR": str(folder / "state"),
        }
        rows = [_sample(environ), _once(environ), _once(environ, "--engine", "simulated")]
    return [*rows, *compared()]


def compared() -> list[Row]:
    """Every reading of a real card; none where there is no card."""
    if not available():
        return []
    return [
        Row(
            what=f"`{each.column}` of the card",
            figure=str(each.ours),
            yardstick=f"nvidia-smi: {' then '.join(dict.fromkeys(each.theirs))}",
            bound="equal within rounding",
            kept=each.equal,
        )
        for each in compare()
    ]


def _sample(environ: dict[str, str]) -> Row:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], env=environ, check=True, capture_output=True, text=True, timeout=60
    )
    ours_us, by_hand_us = json.loads(done.stdout)
    return Row(
        what="one sample of a GPU, 11 readings",
        figure=f"{ours_us:.0f} µs",
        yardstick=f"the same calls on the binding ({by_hand_us:.0f} µs)",
        bound=f"≤ {SAMPLE_BOUND_US:.0f} µs",
        kept=ours_us <= SAMPLE_BOUND_US,
    )


def _once(environ: dict[str, str], *options: str) -> Row:
    program = str(Path(sys.executable).with_name("agent-manager"))
    measured, unit = ratio(
        lambda: seconds_of([program, "gpu-stats", "--once", *options], environ),
        lambda: seconds_of([sys.executable, "-c", "pass"], environ),
        RUNS,
    )
    return Row(
        what=f"`agent-manager {' '.join(('gpu-stats', '--once', *options))}`",
        figure=f"{measured:.1f} ×",
        yardstick=f"`python -c pass` ({unit * 1000:.1f} ms)",
        bound=f"≤ {ONCE_BOUND:.0f} ×",
        kept=measured <= ONCE_BOUND,
    )
