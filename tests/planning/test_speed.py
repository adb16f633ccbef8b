from __future__ import annotations

import pytest

from agent_manager.checkpoints.known import KNOWN
from agent_manager.gpu.base import GIB
from agent_manager.planning.base import Demand, Fit
from agent_manager.planning.speed import Speed, card_bandwidth, expected_tokens_per_s
from agent_manager.planning.vram import plan

QWEN3_14B = "Qwen/Qwen3-14B-AWQ"


def speed(repo: str, bandwidth_gb_per_s: int, *, offload_gib: int = 0, card_gib: float = 47.0) -> Speed:
    facts = KNOWN[repo]
    asked = Demand(
        agent="dev",
        context=8192,
        sequences=1,
        kv_cache_dtype="fp8",
        eager=True,
        cpu_offload_bytes=offload_gib * GIB,
        facts=facts,
    )
    fit = plan(asked, int(card_gib * GIB))
    assert isinstance(fit, Fit)
    found = expected_tokens_per_s(facts, fit, bandwidth_gb_per_s * 1e9)
    assert found is not None
    return found


@pytest.mark.parametrize(("bandwidth", "low", "high"), [(448, 33, 40), (288, 21, 26)])
def test_a_14b_model_on_published_cards(bandwidth: int, low: int, high: int) -> None:
    found = speed(QWEN3_14B, bandwidth)
    assert round(found.low) == low
    assert round(found.high) == high


def test_what_offloading_costs() -> None:
    """The 32B pair with 8 GiB in host memory: 1.5 to 3 tokens/s."""
    found = speed("Qwen/Qwen2.5-32B-Instruct-AWQ", 448, offload_gib=8, card_gib=15.47)
    assert found.low == pytest.approx(1.4, abs=0.1)
    assert found.high == pytest.approx(2.7, abs=0.1)


def test_a_mixture_of_experts_reads_those_it_uses() -> None:
    found = speed("Qwen/Qwen3-30B-A3B-GPTQ-Int4", 936)
    whole_bytes = KNOWN["Qwen/Qwen3-30B-A3B-GPTQ-Int4"].weights_bytes
    assert found.high > 5 * 0.9 * 936e9 / whole_bytes


def test_offloaded_experts_are_read_as_seldom() -> None:
    repo = "Qwen/Qwen3-30B-A3B-GPTQ-Int4"
    slowest = 13e9 / (KNOWN[repo].active_bytes / KNOWN[repo].weights_bytes * 4 * GIB)
    assert speed(repo, 10**6, offload_gib=4).low == pytest.approx(slowest, rel=0.01)


def test_an_offload_larger_than_the_layers_costs_what_left_the_card() -> None:
    facts = KNOWN[QWEN3_14B]
    all_layers = speed(QWEN3_14B, 10**6, offload_gib=64)
    assert all_layers.low > 13e9 / facts.weights_bytes


def test_nothing_known() -> None:
    fit = plan(Demand(agent="dev", context=8192, sequences=1), 16 * GIB)
    assert isinstance(fit, Fit)
    assert expected_tokens_per_s(KNOWN[QWEN3_14B], fit, 448e9) is None


@pytest.mark.parametrize(
    ("name", "bandwidth"),
    [
        ("NVIDIA GeForce RTX 5060 Ti", 448e9),
        ("NVIDIA GeForce RTX 4060 Ti", 288e9),
        ("NVIDIA RTX A4000", 448e9),
        ("NVIDIA L4", 300e9),
        ("Tesla T4", 320e9),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("simulated", None),
    ],
)
def test_bandwidth_by_name(name: str, bandwidth: float | None) -> None:
    assert card_bandwidth(name) == bandwidth
