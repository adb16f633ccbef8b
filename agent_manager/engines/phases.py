"""What a line of vLLM's log says: how far the load is, and the figures it measured. Patterns as of vLLM 0.32.

A line may carry any prefix (`(EngineCore pid=107) INFO 11-20 15:42:01 [file.py:12]`) and, from a progress bar,
several states separated by carriage returns. Any phase may be missing: vLLM on the CPU prints fewer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_manager.engines.base import Phase
from agent_manager.gpu.base import GIB

if TYPE_CHECKING:
    from collections.abc import Iterable

READY = "ready"
"""The name of the last phase."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFigures:
    """What an engine measured of itself while it loaded; None where its log does not say.

    `weights_bytes`: on the card once loaded. `kv_cache_bytes`: what was left for the KV cache, negative when
    nothing was. `concurrency`: requests of the full context at once. `init_s`: profile, KV cache and warm-up.
    """

    weights_bytes: int | None = None
    kv_cache_bytes: int | None = None
    kv_tokens: int | None = None
    concurrency: float | None = None
    graphs_bytes: int | None = None
    init_s: float | None = None


def load_figures(lines: Iterable[str]) -> LoadFigures:
    """The figures in an engine's log. Where the log holds several loads, those of the last."""
    found: dict[str, str] = {}
    for line in lines:
        for name, pattern in _FIGURES:
            if match := pattern.search(line):
                found[name] = match[1]
    tokens, concurrency, init_s = (found.get(name) for name in ("tokens", "concurrency", "init"))
    return LoadFigures(
        weights_bytes=_bytes(found.get("weights")),
        kv_cache_bytes=_bytes(found.get("kv_cache")),
        kv_tokens=None if tokens is None else int(tokens.replace(",", "")),
        concurrency=None if concurrency is None else float(concurrency),
        graphs_bytes=_bytes(found.get("graphs")),
        init_s=None if init_s is None else float(init_s),
    )


_FIGURES = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("weights", r"Model loading took (\d+\.?\d*) GiB"),
        ("kv_cache", r"Available KV cache memory: (-?\d+\.?\d*) GiB"),
        ("kv_cache", r"Explicitly set \((\d+\.?\d*)/[\d.]+\) GiB for KV cache"),
        ("tokens", r"\w KV cache size: (\d[\d,]*) tokens"),
        ("concurrency", r"Maximum concurrency for [\d,]+ tokens per request: (\d+\.?\d*)x"),
        ("graphs", r"Graph capturing finished in \d+ secs, took (-?\d+\.?\d*) GiB"),
        ("init", r"init engine \(profile, create kv cache, warmup model\) took (\d+\.?\d*)"),
    )
)


def _bytes(gib: str | None) -> int | None:
    return None if gib is None else round(float(gib) * GIB)
