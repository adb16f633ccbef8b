"""What the gateway counts, for Prometheus. One registry of its own; no label comes from a client."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_WAITS_S: Final = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600)


class Counts:
    """The counters of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answered: dict[tuple[str, int], Counter] = {}
        self._queued: dict[str, Histogram] = {}
        self.requests = Counter(
            "agent_manager_requests_total",
            "Requests answered, by agent and status",
            ("agent", "status"),
            registry=self.registry,
        )
        self.queue = Histogram(
            "agent_manager_queue_seconds",
            "How long requests waited for their agent to be on the card",
            ("agent",),
            buckets=_WAITS_S,
            registry=self.registry,
        )
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
        counter = self._answered.get((agent, status))  # finding it by its labels takes longer than counting
        if counter is None:
            counter = self._answered[agent, status] = self.requests.labels(agent, status)
        counter.inc()

    def queued(self, agent: str, waited_s: float) -> None:
        """A request waited so long for its agent."""
        histogram = self._queued.get(agent)
        if histogram is None:
            histogram = self._queued[agent] = self.queue.labels(agent)
        histogram.observe(waited_s)

    def page(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)
