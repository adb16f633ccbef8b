"""What the gateway counts, for Prometheus. One registry of its own; no label comes from a client.

What every request adds to is kept as plain numbers, and made into metrics when somebody reads them: the counters
of prometheus_client take locks, a twentieth of what a request costs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_WAITS_S: Final = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Counts:
    """The counters of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = _Requests()
        self.registry.register(self._requests)
        self.swaps = Counter(
            "agent_manager_swaps_total",
            "Swaps that were wanted, by the agent that came and how they ended",
            ("agent", "result"),
            registry=self.registry,
        )
        self.swap = Histogram(
            "agent_manager_swap_seconds",
            "How long swaps took, from the decision until the agent was ready",
            ("agent",),
            buckets=_WAITS_S,
            registry=self.registry,
        )
        self.open = 0
        Gauge(
            "agent_manager_requests_open", "Requests that are not answered yet", registry=self.registry
        ).set_function(lambda: self.open)

    def answered(self, agent: str, status: int) -> None:
        """A request was answered; `agent` is "" where none was asked for."""
        self._requests.answered[agent, status] += 1

    def queued(self, agent: str, waited_s: float) -> None:
        """A request waited so long for its agent."""
        waits = self._requests.waits.get(agent)
        if waits is None:
            waits = self._requests.waits[agent] = _Waits()
        waits.add(waited_s)

    def page(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)


class _Waits:
    """How long requests waited: how many fell between which two of `_WAITS_S`, and the sum."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_WAITS_S) + 1)
        self.sum_s = 0.0

    def add(self, waited_s: float) -> None:
        self._counts[bisect_left(_WAITS_S, waited_s)] += 1
        self.sum_s += waited_s

    def buckets(self) -> list[tuple[str, float]]:
        """How many waited at most so long, as Prometheus has it."""
        bounds = (*(str(bound) for bound in _WAITS_S), "+Inf")
        return list(zip(bounds, accumulate(self._counts), strict=True))


class _Requests(Collector):
    """What requests add to."""

    def __init__(self) -> None:
        self.answered: Tally[tuple[str, int]] = Tally()
        self.waits: dict[str, _Waits] = {}

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        answered = CounterMetricFamily(
            "agent_manager_requests_total",
            "Requests answered, by agent and status",
            labels=("agent", "status"),
        )
        for (agent, status), count in self.answered.items():
            answered.add_metric((agent, str(status)), count)
        yield answered
        queue = HistogramMetricFamily(
            "agent_manager_queue_seconds",
            "How long requests waited for their agent to be on the card",
            labels=("agent",),
        )
        for agent, waits in self.waits.items():
            queue.add_metric((agent,), waits.buckets(), waits.sum_s)
        yield queue
