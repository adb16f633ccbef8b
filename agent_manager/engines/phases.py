"""What a line of vLLM's log says: how far the load is. Patterns as of vLLM 0.32.

A line may carry any prefix (`(EngineCore pid=107) INFO 11-20 15:42:01 [file.py:12]`) and, from a progress bar,
several states separated by carriage returns. Any phase may be missing: vLLM on the CPU prints fewer.
"""

from __future__ import annotations

import re

from agent_manager.engines.base import READY, Phase

_TABLE = tuple(
    (re.compile(pattern), order, name)
    for order, (pattern, name) in enumerate(
        (
            (r"vLLM server version", "starting vLLM"),
            (r"Initializing a V1 LLM engine", "starting the engine"),
            (r"Starting to load model", "loading weights"),
            (r"Time spent downloading weights for", "loading weights"),
            (r"Loading \w+ checkpoint shards:\s+(\d+)% Completed", "loading weights"),
            (r"Loading weights took [\d.]+ seconds", "weights loaded"),
            (r"Model loading took [\d.]+ GiB", "weights loaded"),
            (r"Warming up model for the compilation", "compiling"),
            (r"Dynamo bytecode transform time|Directly load AOT compilation from path", "compiling"),
            (r"torch\.compile (?:takes|took) [\d.]+ s in total|Warming up done", "measuring memory"),
            (r"Available KV cache memory: -?[\d.]+ GiB", "making the KV cache"),
            (r"\w KV cache size: [\d,]+ tokens", "making the KV cache"),
            (r"Capturing CUDA graphs.*?:\s+(\d+)%", "capturing CUDA graphs"),
            (r"Graph capturing finished in \d+ secs", "warming up"),
            (r"init engine \(profile, create kv cache, warmup model\) took [\d.]+", "starting the server"),
            (r"Application startup complete", READY),
        ),
        start=1,
    )
)


def phase_of(line: str) -> Phase | None:
    """The phase that `line` announces, if it announces one; the last one, if several."""
    for pattern, order, name in reversed(_TABLE):
        found = pattern.findall(line)
        if found:
            percent = int(found[-1]) if pattern.groups else None
            return Phase(order=order, name=name, percent=percent)
    return None


class PhaseTracker:
    """The phase of one load, which never goes back."""

    def __init__(self) -> None:
        self.phase: Phase | None = None

    def feed(self, line: str) -> Phase | None:
        """The new phase, when `line` brings the load further; else None."""
        found = phase_of(line)
        if found is None or (self.phase is not None and _place(found) <= _place(self.phase)):
            return None
        self.phase = found
        return found


def _place(phase: Phase) -> tuple[int, int]:
    return (phase.order, -1 if phase.percent is None else phase.percent)
