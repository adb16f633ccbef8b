"""The engine's figures, in Prometheus' text format under vLLM's names, buckets and labels."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_INTER_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class Histogram(Struct):
    """How often a duration, in seconds, fell between two of `bounds_s`."""

    bounds_s: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum_s: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds_s) + 1)

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        place = next((i for i, bound_s in enumerate(self.bounds_s) if seconds <= bound_s), len(self.bounds_s))
        self.counts[place] += 1
        self.sum_s += seconds


class Gauges(Struct):
    """How things are now. `kv_cache_usage` is a share, 0 to 1."""

    running: int
    waiting: int
    kv_cache_usage: float
    asleep: bool


class Metrics(Struct):
    """What has happened since the start."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    first_token: Histogram = field(default_factory=lambda: Histogram(_FIRST_TOKEN_S))
    inter_token: Histogram = field(default_factory=lambda: Histogram(_INTER_TOKEN_S))
    request: Histogram = field(default_factory=lambda: Histogram(_REQUEST_S))
    queue: Histogram = field(default_factory=lambda: Histogram(_REQUEST_S))

    def render(self, model_name: str, now: Gauges) -> str:
        """The text that `/metrics` answers."""
        escaped = model_name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        labels = f'engine="0",model_name="{escaped}"'
        return "\n".join([*_gauges(now, labels), *self._counters(labels), *self._histograms(labels), ""])

    def _counters(self, labels: str) -> Iterator[str]:
        for name, text, value in (
            ("prompt_tokens", "Number of prefill tokens processed.", self.prompt_tokens),
            ("generation_tokens", "Number of generation tokens processed.", self.generation_tokens),
            ("prefix_cache_queries", "Prefix cache queries, in tokens.", self.prompt_tokens),
            ("prefix_cache_hits", "Prefix cache hits, in tokens.", 0),
            ("num_preemptions", "Cumulative number of preemptions.", 0),
        ):
            yield from _head(f"{name}_total", "counter", text)
            yield f"vllm:{name}_total{{{labels}}} {float(value)}"
        yield from _head("request_success_total", "counter", "Count of successfully processed requests.")
        for reason in FINISH_REASONS:
            count = float(self.finished[reason])
            yield f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {count}'

    def _histograms(self, labels: str) -> Iterator[str]:
        for name, text, histogram in (
            ("time_to_first_token_seconds", "Time to first token in seconds.", self.first_token),
            ("inter_token_latency_seconds", "Inter-token latency in seconds.", self.inter_token),
            ("e2e_request_latency_seconds", "End-to-end request latency in seconds.", self.request),
            ("request_queue_time_seconds", "Time spent waiting, in seconds.", self.queue),
        ):
            yield from _head(name, "histogram", text)
            bounds = [*(str(bound_s) for bound_s in histogram.bounds_s), "+Inf"]
            for bound, count in zip(bounds, accumulate(histogram.counts), strict=True):
                yield f'vllm:{name}_bucket{{{labels},le="{bound}"}} {float(count)}'
            yield f"vllm:{name}_count{{{labels}}} {float(sum(histogram.counts))}"
            yield f"vllm:{name}_sum{{{labels}}} {histogram.sum_s}"


def _gauges(now: Gauges, labels: str) -> Iterator[str]:
    for name, text, value in (
        ("num_requests_running", "Number of requests in model execution batches.", now.running),
        ("num_requests_waiting", "Number of requests waiting to be processed.", now.waiting),
        ("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", now.kv_cache_usage),
    ):
        yield from _head(name, "gauge", text)
        yield f"vllm:{name}{{{labels}}} {float(value)}"
    yield from _head("engine_sleep_state", "gauge", "1 for the state the engine is in.")
    for state, on in (("awake", not now.asleep), ("weights_offloaded", now.asleep), ("discard_all", False)):
        yield f'vllm:engine_sleep_state{{{labels},sleep_state="{state}"}} {float(on)}'


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP vllm:{name} {text}", f"# TYPE vllm:{name} {kind}"
