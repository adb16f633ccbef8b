"""What an engine says of itself on /metrics, and what two readings say of the time between them.

Prometheus' text format, read by one compiled expression that looks at the wanted lines only: 0.3 ms for vLLM's
page of 600 lines. prometheus_client's parser takes 40 times that and 13 MB, and `gpu-stats` reads a page a second
with 15 ms and 60 MB for everything.
"""

from __future__ import annotations

import math
import re
from typing import TypeAlias

from msgspec import Struct

Histogram: TypeAlias = tuple[tuple[float, float], ...]
"""(upper bound in seconds, how many were at most that), by rising bound; the last bound is infinite."""

_GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
_COUNTERS = ("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits")
_HISTOGRAMS = ("time_to_first_token_seconds", "inter_token_latency_seconds")
_WANTED = "|".join(
    (*_GAUGES, *(f"{name}_total" for name in _COUNTERS), *(f"{name}_bucket" for name in _HISTOGRAMS))
)
_QUOTED = r'"(?:[^"\\\n]|\\.)*"'
_LINE = re.compile(rf'^vllm:({_WANTED})(?:\{{((?:[^"}}\n]|{_QUOTED})*)\}})?[ \t]+(\S+)', re.MULTILINE)
_LABEL = re.compile(rf"(\w+)=({_QUOTED})")


class Reading(Struct, frozen=True, kw_only=True):
    """One page, summed over its engine cores (`kv_cache_usage`, 0-1, is their mean). None: the page lacks it.

    Tokens, queries and hits are counted since the engine's start; histograms too, empty when the page lacks them.
    """

    running: int
    waiting: int
    kv_cache_usage: float | None = None
    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    prefix_cache_queries: float | None = None
    prefix_cache_hits: float | None = None
    time_to_first_token: Histogram = ()
    inter_token_latency: Histogram = ()


class Traffic(Struct, frozen=True, kw_only=True):
    """What an engine did between two readings; None where nothing of the kind happened or it does not tell.

    Requests are counts now. Tokens are per second over the interval, 0.0 for an idle one. Latencies are medians
    over the interval, from the engine's histograms, in seconds. `kv_cache_usage` and `prefix_cache_hit_rate` are
    0-1.
    """

    running: int
    waiting: int
    prompt_tokens_per_s: float | None = None
    generation_tokens_per_s: float | None = None
    time_to_first_token_s: float | None = None
    inter_token_latency_s: float | None = None
    kv_cache_usage: float | None = None
    prefix_cache_hit_rate: float | None = None


def parse(text: str) -> Reading | None:
    """Read a page; None when it does not say how many requests run and wait, which every engine does."""
    values: dict[str, list[float]] = {}
    buckets: dict[str, dict[float, float]] = {name: {} for name in _HISTOGRAMS}
    for name, labels, number in _LINE.findall(text):
        value = _number(number)
        if value is None or not math.isfinite(value):
            continue
        if not name.endswith("_bucket"):
            values.setdefault(name, []).append(value)
        elif (bound := _number(dict(_LABEL.findall(labels)).get("le", "").strip('"'))) is not None:
            counts = buckets[name.removesuffix("_bucket")]
            counts[bound] = counts.get(bound, 0.0) + value
    running, waiting, usage = (values.get(name) for name in _GAUGES)
    if not running or not waiting:
        return None
    totals = {name: sum(found) for name in _COUNTERS if (found := values.get(f"{name}_total"))}
    return Reading(
        running=int(sum(running)),
        waiting=int(sum(waiting)),
        kv_cache_usage=sum(usage) / len(usage) if usage else None,
        **totals,
        time_to_first_token=tuple(sorted(buckets[_HISTOGRAMS[0]].items())),
        inter_token_latency=tuple(sorted(buckets[_HISTOGRAMS[1]].items())),
    )


def traffic(before: Reading | None, after: Reading, elapsed_s: float) -> Traffic:
    """What happened in the `elapsed_s` seconds between two readings of one engine.

    Without a reading before, or when the engine started anew since, there are no rates and no latencies. The
    share of prefix cache hits is then, and when nothing was looked up, the one since the engine's start.
    """
    if before is None or elapsed_s <= 0 or _restarted(before, after):
        return Traffic(
            running=after.running,
            waiting=after.waiting,
            kv_cache_usage=after.kv_cache_usage,
            prefix_cache_hit_rate=_hit_rate(None, after),
        )
    return Traffic(
        running=after.running,
        waiting=after.waiting,
        kv_cache_usage=after.kv_cache_usage,
        prefix_cache_hit_rate=_hit_rate(before, after),
        prompt_tokens_per_s=_rate(before.prompt_tokens, after.prompt_tokens, elapsed_s),
        generation_tokens_per_s=_rate(before.generation_tokens, after.generation_tokens, elapsed_s),
        time_to_first_token_s=_median(before.time_to_first_token, after.time_to_first_token),
        inter_token_latency_s=_median(before.inter_token_latency, after.inter_token_latency),
    )


def quantile(share: float, buckets: Histogram) -> float | None:
    """The value below which `share` (0-1) of the observations lie; None for no observations.

    As Prometheus' histogram_quantile: linear within a bucket, the first of which begins at 0, and the highest
    finite bound for what lies above it (https://prometheus.io/docs/prometheus/latest/querying/functions/).
    """
    if not buckets or buckets[-1][1] <= 0:
        return None
    rank = share * buckets[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            break
        lower, below = bound, count
    if math.isinf(bound) or count <= below:
        return lower
    return lower + (bound - lower) * (rank - below) / (count - below)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _restarted(before: Reading, after: Reading) -> bool:
    """Whether a count went backwards, which within one life of an engine none does."""
    counts = [(getattr(before, name), getattr(after, name)) for name in _COUNTERS]
    for then, now in (
        (before.time_to_first_token, after.time_to_first_token),
        (before.inter_token_latency, after.inter_token_latency),
    ):
        counts += [(then[-1][1], now[-1][1])] if then and now else []
    return any(then is not None and now is not None and now < then for then, now in counts)


def _rate(then: float | None, now: float | None, elapsed_s: float) -> float | None:
    return None if then is None or now is None else (now - then) / elapsed_s


def _median(then: Histogram, now: Histogram) -> float | None:
    """Of what was observed between the two; None for nothing, and for two with other bounds."""
    if len(then) != len(now) or any(a[0] != b[0] for a, b in zip(then, now, strict=True)):
        return None
    return quantile(
        0.5, tuple((bound, count - old) for (_, old), (bound, count) in zip(then, now, strict=True))
    )


def _hit_rate(before: Reading | None, after: Reading) -> float | None:
    queries, hits = after.prefix_cache_queries, after.prefix_cache_hits
    if queries is None or hits is None or queries <= 0:
        return None
    if (
        before is not None
        and before.prefix_cache_queries is not None
        and before.prefix_cache_hits is not None
    ):
        asked = queries - before.prefix_cache_queries
        if asked > 0:
            return (hits - before.prefix_cache_hits) / asked
    return hits / queries
