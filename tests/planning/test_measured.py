from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace

from agent_manager.checkpoints.known import KNOWN
from agent_manager.gpu.base import GIB
from agent_manager.planning.base import Demand, Fit, Measured, Shortfall
from agent_manager.planning.vram import plan

RTX_3090 = int(23.56 * GIB)
QWEN3_14B = KNOWN["Qwen/Qwen3-14B-AWQ"]
QWEN35_9B = KNOWN["RedHatAI/Qwen3.5-9B-quantized.w4a16"]

LOGGED_14B = Measured(
    weights_bytes=round(9.44 * GIB),
    kv_cache_bytes=round(10.11 * GIB),
    kv_tokens=66_224,
    graph_bytes=round(0.35 * GIB),
    card_total_bytes=RTX_3090,
    utilization=0.9,
    context=8192,
    sequences=16,
)
LOGGED_9B = replace(
    LOGGED_14B, weights_bytes=round(16.8 * GIB), kv_cache_bytes=round(2.28 * GIB), kv_tokens=52_503
)
EVERYTHING = {"weights_bytes", "overhead_bytes", "kv_cache_bytes", "kv_tokens", "graph_bytes"}


def fit(measured: Measured | None, total_bytes: int = RTX_3090, **changes: Any) -> Fit:  # noqa: ANN401 - fields of Demand
    plain = Demand(
        agent="dev", context=8192, sequences=16, utilization=0.9, facts=QWEN3_14B, measured=measured
    )
    answer = plan(replace(plain, **changes), total_bytes)
    assert isinstance(answer, Fit), answer
    return answer


@pytest.mark.parametrize(
    ("facts", "measured"), [(QWEN3_14B, LOGGED_14B), (QWEN35_9B, LOGGED_9B)], ids=["dense", "hybrid"]
)
def test_the_same_settings_give_the_log_again(facts: object, measured: Measured) -> None:
    answer = fit(measured, facts=facts)
    assert answer.measured == EVERYTHING
    assert answer.weights_bytes == measured.weights_bytes
    assert answer.kv_tokens == measured.kv_tokens
    assert answer.kv_cache_bytes == pytest.approx(measured.kv_cache_bytes, rel=1e-6)
    assert answer.graph_bytes == measured.graph_bytes
    assert (answer.weights_bytes or 0) + (answer.overhead_bytes or 0) + (answer.kv_cache_bytes or 0) == (
        answer.budget_bytes
    )


def test_nothing_is_called_measured_without_a_run() -> None:
    answer = fit(None)
    assert answer.measured == frozenset()
    assert answer.graph_bytes is None


def test_another_share_takes_the_overhead_that_was_seen() -> None:
    answer = fit(LOGGED_14B, utilization=0.8)
    assert answer.measured == {"weights_bytes", "overhead_bytes", "graph_bytes"}
    ran_bytes = math.ceil(RTX_3090 * 0.9) - round(9.44 * GIB) - round(10.11 * GIB)
    assert answer.overhead_bytes == pytest.approx(ran_bytes, abs=16 * 163_840)


def test_another_context_counts_tokens_anew() -> None:
    answer = fit(LOGGED_14B, context=4096)
    assert "kv_tokens" not in answer.measured
    assert answer.kv_tokens == pytest.approx(66_224, rel=0.005)


def test_another_kv_dtype_counts_tokens_anew() -> None:
    answer = fit(LOGGED_14B, kv_cache_dtype="fp8")
    assert "kv_tokens" not in answer.measured
    assert answer.kv_tokens == pytest.approx(2 * 66_224, rel=0.005)


@pytest.mark.parametrize("changes", [{"eager": True}, {"sequences": 17}])
def test_settings_that_change_the_overhead_make_it_an_estimate(changes: dict[str, Any]) -> None:
    answer = fit(LOGGED_14B, **changes)
    assert "overhead_bytes" not in answer.measured
    assert "kv_cache_bytes" not in answer.measured


def test_an_eager_run_measures_an_eager_one() -> None:
    assert fit(replace(LOGGED_14B, eager=True), eager=True).measured == EVERYTHING


def test_offloading_more_than_was_measured() -> None:
    answer = fit(LOGGED_14B, cpu_offload_bytes=2 * GIB)
    assert answer.weights_bytes == round(9.44 * GIB) - 2 * GIB
    assert "weights_bytes" not in answer.measured


def test_a_run_with_offloading_still_tells_the_whole_weights() -> None:
    ran = replace(LOGGED_14B, weights_bytes=round(7.44 * GIB), cpu_offload_bytes=2 * GIB)
    assert fit(ran).weights_bytes == round(7.44 * GIB) + 2 * GIB


def test_weights_alone() -> None:
    answer = fit(Measured(weights_bytes=9 * GIB))
    assert answer.weights_bytes == 9 * GIB
    assert answer.measured == {"weights_bytes"}


def test_figures_that_cannot_be_are_not_used() -> None:
    answer = fit(replace(LOGGED_14B, kv_cache_bytes=20 * GIB))
    assert "overhead_bytes" not in answer.measured
    assert "kv_cache_bytes" not in answer.measured


def test_tokens_that_cannot_be_are_not_used() -> None:
    answer = fit(replace(LOGGED_14B, kv_tokens=17))
    assert "kv_tokens" not in answer.measured
    assert answer.kv_tokens == pytest.approx(66_224, rel=0.005)


def test_another_model_is_not_measured_by_this_one() -> None:
    asked = Demand(agent="dev", context=8192, sequences=16, facts=QWEN3_14B, measured=LOGGED_14B)
    other = KNOWN["Qwen/Qwen3-8B-AWQ"]
    answer = plan(asked, 11 * GIB, alternatives={"other": other})
    assert isinstance(answer, Shortfall)
    offered = next(option for option in answer.options if "model" in option.changes)
    assert offered.fit.weights_bytes == other.weights_bytes
    assert offered.fit.measured == frozenset()
