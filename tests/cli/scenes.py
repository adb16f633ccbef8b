"""Moments of a card that never was: the same ones each time, for screens that are compared with stored ones."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from agent_manager.engines.metrics import Traffic
from agent_manager.gpu.base import GIB, GpuSample, MemoryHolder
from agent_manager.swap.history import SwapSample
from agent_manager.swap.notices import AgentState
from agent_manager.swap.stats import AgentSample, StatsSample

BEGAN = datetime(2026, 3, 4, 14, 0, 0, tzinfo=UTC)
STEP_S = 5
LONG_S = 600
"""Longer than what a graph shows at 120 columns."""
GPU = GpuSample(
    index=0,
    uuid="GPU-5f2c",
    name="NVIDIA GeForce RTX 4080 SUPER",
    total_bytes=int(15.47 * GIB),
    free_bytes=int(2.5 * GIB),
    utilization_pct=87,
    memory_utilization_pct=43,
    temperature_c=67,
    power_w=285.4,
    power_limit_w=320.0,
    sm_clock_mhz=2610,
    memory_clock_mhz=11501,
    fan_pct=45,
    performance_state=2,
    throttle_reasons=("software power cap",),
    processes=(
        MemoryHolder(pid=4711, name="VLLM::EngineCore", used_bytes=int(11.92 * GIB)),
        MemoryHolder(pid=1203, name="/usr/lib/xorg/Xorg", used_bytes=96 << 20),
        MemoryHolder(pid=88417, name="/usr/lib/firefox/fire\x1bfox", used_bytes=402 << 20),
    ),
)
DEV = AgentSample(
    name="dev",
    state=AgentState.READY,
    engine="vllm",
    runtime="docker",
    model="qwen2.5-coder-14b-awq",
    port=8001,
    pids=(4711,),
    used_bytes=int(11.92 * GIB),
    claim_bytes=int(13.6 * GIB),
    context=32768,
    concurrency=4.21,
    traffic=Traffic(
        running=2,
        waiting=1,
        prompt_tokens_per_s=512.0,
        generation_tokens_per_s=86.2,
        time_to_first_token_s=0.21,
        inter_token_latency_s=0.0117,
        kv_cache_usage=0.34,
        prefix_cache_hit_rate=0.61,
    ),
)
PO = AgentSample(
    name="po",
    state=AgentState.STARTING,
    engine="vllm",
    runtime="process",
    model="qwen2.5-7b-awq",
    port=8002,
    pids=(4801,),
    used_bytes=None,
    claim_bytes=int(0.5 * GIB),
    phase="loading weights",
    phase_percent=60,
)
SWAPS = (
    SwapSample(at=BEGAN - timedelta(minutes=2), arrived="dev", left="po", seconds=47.5),
    SwapSample(at=BEGAN - timedelta(minutes=31), arrived="po", left="architect", seconds=38.0),
    SwapSample(at=BEGAN - timedelta(hours=3), arrived="architect", left=None, seconds=125.0),
    SwapSample(at=BEGAN - timedelta(days=1), arrived="dev", left="architect", seconds=51.0),
)


def busy(second: int) -> StatsSample:
    """Dev serves while po loads, with waves in every reading."""
    wave = math.sin(second / 9)
    assert DEV.traffic is not None
    return StatsSample(
        at=BEGAN + timedelta(seconds=second),
        gpu=replace(
            GPU,
            free_bytes=int((2.5 + math.sin(second / 40)) * GIB),
            utilization_pct=round(50 + 45 * wave),
            temperature_c=round(60 + 15 * math.sin(second / 60)),
            power_w=200 + 100 * wave,
        ),
        agents=(
            replace(
                DEV, traffic=replace(DEV.traffic, generation_tokens_per_s=60 + 60 * math.sin(second / 15))
            ),
            PO,
        ),
        swaps=SWAPS,
        notes=("docker does not answer: its containers are not shown",) if second % 2 else (),
    )


def idle(second: int) -> StatsSample:
    """Nothing is on the card, and it is simulated: it has memory and nothing else."""
    gpu = GpuSample(
        index=0,
        uuid="SIM-0",
        name="Simulated 16 GB card",
        total_bytes=int(15.47 * GIB),
        free_bytes=int(15.47 * GIB),
        simulated=True,
    )
    return StatsSample(at=BEGAN + timedelta(seconds=second), gpu=gpu, agents=(), swaps=())


def lost(second: int) -> StatsSample:
    """A card that worked for a while and then fell off the bus, under the agent."""
    sample = busy(second)
    if second < LONG_S - 60:
        return sample
    return replace(
        sample, gpu=None, notes=("GPU 0 is lost: reboot, or reset it with nvidia-smi --gpu-reset",)
    )


def unified(second: int) -> StatsSample:
    """A card that shares the host's memory, and an engine that has not answered yet."""
    gpu = replace(GPU, total_bytes=None, free_bytes=None, fan_pct=None, throttle_reasons=(), processes=())
    agents = (replace(DEV, used_bytes=None, claim_bytes=None, traffic=None, concurrency=None),)
    return replace(busy(second), gpu=gpu, agents=agents)


SCENES = {"busy": busy, "idle": idle, "lost": lost, "unified": unified}
