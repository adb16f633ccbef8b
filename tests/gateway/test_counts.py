"""What is counted, read as Prometheus reads it."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent_manager.gateway.counts import Counts


def read(counts: Counts) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    page = counts.page().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_answers_are_counted_by_agent_and_status() -> None:
    counts = Counts()
    for agent, status in (("dev", 200), ("dev", 200), ("dev", 502), ("", 404)):
        counts.answered(agent, status)
    seen = read(counts)
    name = "agent_manager_requests_total"
    assert {labels: value for (sample, labels), value in seen.items() if sample == name} == {
        (("agent", "dev"), ("status", "200")): 2,
        (("agent", "dev"), ("status", "502")): 1,
        (("agent", ""), ("status", "404")): 1,
    }


def test_waits_fall_into_buckets_that_hold_all_shorter_ones() -> None:
    counts = Counts()
    for waited_s in (0.0, 0.01, 0.02, 45.0, 10_000.0):
        counts.queued("dev", waited_s)
    counts.queued("po", 1.5)
    seen = read(counts)
    name = "agent_manager_queue_seconds"
    dev = {
        dict(labels)["le"]: value
        for (sample, labels), value in seen.items()
        if sample == f"{name}_bucket" and ("agent", "dev") in labels
    }
    assert (dev["0.01"], dev["0.1"], dev["30.0"], dev["60.0"], dev["600.0"], dev["+Inf"]) == (
        2,
        3,
        3,
        4,
        4,
        5,
    )
    assert seen[f"{name}_count", (("agent", "dev"),)] == 5
    assert seen[f"{name}_sum", (("agent", "dev"),)] == pytest.approx(10_045.03)
    assert seen[f"{name}_count", (("agent", "po"),)] == 1


def test_nothing_is_there_before_anything_was_asked() -> None:
    assert read(Counts()) == {("agent_manager_requests_open", ()): 0}
