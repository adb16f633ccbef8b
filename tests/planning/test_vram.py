from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent_manager.checkpoints.facts import Facts, Origin, Shape, Unsupported
from agent_manager.checkpoints.known import KNOWN
from agent_manager.gpu.base import GIB
from agent_manager.planning.base import Budget, Demand, Fit, Measured, Shortfall
from agent_manager.planning.layout import kv_tokens
from agent_manager.planning.vram import START_MARGIN_BYTES, auto_utilization, plan

CARD_16_GB = int(15.47 * GIB)
RTX_3090 = int(23.56 * GIB)

QWEN3_14B = KNOWN["Qwen/Qwen3-14B-AWQ"]
CODER_14B = KNOWN["Qwen/Qwen2.5-Coder-14B-Instruct-AWQ"]
QWEN25_7B = KNOWN["Qwen/Qwen2.5-7B-Instruct-AWQ"]
QWEN25_32B = KNOWN["Qwen/Qwen2.5-32B-Instruct-AWQ"]
QWEN3_30B = KNOWN["Qwen/Qwen3-30B-A3B-GPTQ-Int4"]
QWEN35_9B = KNOWN["RedHatAI/Qwen3.5-9B-quantized.w4a16"]


def demand(facts: Facts | None, context: int = 8192, **changes: Any) -> Demand:  # noqa: ANN401 - fields of Demand
    plain = Demand(agent="dev", context=context, sequences=4, facts=facts)
    return replace(plain, **changes)


def fit(asked: Demand, total_bytes: int = CARD_16_GB) -> Fit:
    answer = plan(asked, total_bytes)
    assert isinstance(answer, Fit), answer
    return answer


def shortfall(asked: Demand, total_bytes: int = CARD_16_GB) -> Shortfall:
    answer = plan(asked, total_bytes)
    assert isinstance(answer, Shortfall), answer
    return answer


class TestPublishedLogs:
    """vLLM 0.30 on an RTX 3090, context 8192, 16 sequences: "Available KV cache memory" and "GPU KV cache size"."""

    @pytest.mark.parametrize(
        ("facts", "utilization", "kv_gib", "tokens"),
        [
            pytest.param(QWEN3_14B, 0.90, 10.11, 66_224, id="Qwen3-14B-AWQ"),
            pytest.param(QWEN25_32B, 0.95, 2.52, 10_336, id="Qwen2.5-32B-Instruct-AWQ"),
            pytest.param(
                replace(QWEN35_9B, weights_bytes=int(16.80 * GIB)), 0.90, 2.28, 52_503, id="Qwen3.5-9B-bf16"
            ),
        ],
    )
    def test_room_and_tokens(self, facts: Facts, utilization: float, kv_gib: float, tokens: int) -> None:
        answer = fit(demand(facts, utilization=utilization, sequences=16), RTX_3090)
        assert answer.kv_cache_bytes is not None
        assert answer.kv_tokens is not None
        assert answer.kv_cache_bytes / GIB == pytest.approx(kv_gib, abs=0.1)
        tokens_given_logged_room = answer.kv_tokens * kv_gib * GIB / answer.kv_cache_bytes
        assert tokens_given_logged_room == pytest.approx(tokens, rel=0.01)

    @pytest.mark.parametrize(
        ("facts", "kv_gib", "tokens"),
        [(QWEN3_14B, 10.11, 66_224), (QWEN25_32B, 2.52, 10_336), (QWEN35_9B, 2.28, 52_503)],
    )
    def test_tokens_that_the_logged_memory_holds(self, facts: Facts, kv_gib: float, tokens: int) -> None:
        assert kv_tokens(round(kv_gib * GIB), facts, context=8192) == pytest.approx(tokens, rel=0.005)

    def test_a_mixture_of_experts_on_24_gb(self) -> None:
        """Its overhead is 0.4-0.7 GiB over one embedding table of 0.58 GiB."""
        answer = fit(demand(QWEN3_30B, utilization=0.9, sequences=16), RTX_3090)
        assert answer.overhead_bytes is not None
        assert 0.98 <= answer.overhead_bytes / GIB <= 1.28
        assert answer.kv_tokens == kv_tokens(answer.kv_cache_bytes or 0, QWEN3_30B, context=8192)

    def test_a_hybrid_takes_whole_pages(self) -> None:
        """2.28 GiB are 141 pages of 528 tokens; a request of 8192 tokens takes 16 and 6 of state."""
        answer = fit(demand(QWEN35_9B))
        assert answer.kv_cache_bytes is not None
        assert answer.kv_cache_bytes % (528 * 32_768) == 0
        assert answer.concurrency == answer.kv_cache_bytes / (528 * 32_768) / 22


class TestTheDefaultTrioOnA16GbCard:
    @pytest.mark.parametrize(
        ("facts", "context", "dtype"),
        [(QWEN3_14B, 32_768, "fp8"), (CODER_14B, 32_768, "fp8"), (QWEN25_7B, 16_384, "auto")],
        ids=["architect", "dev", "po"],
    )
    def test_fits_beside_a_desktop(self, facts: Facts, context: int, dtype: str) -> None:
        answer = fit(demand(facts, context, kv_cache_dtype=dtype))
        assert answer.utilization == 0.92
        assert answer.concurrency is not None
        assert answer.concurrency >= 1
        assert answer.start_bytes + int(0.7 * GIB) <= CARD_16_GB

    def test_two_agents_on_the_hybrid(self) -> None:
        answer = fit(demand(QWEN35_9B, 65_536))
        assert answer.kv_tokens is not None
        assert answer.kv_tokens == pytest.approx(80_000, rel=0.02)
        assert answer.language_model_only

    def test_the_offloaded_32b_pair(self) -> None:
        answer = fit(demand(QWEN25_32B, kv_cache_dtype="fp8", cpu_offload_bytes=8 * GIB, eager=True))
        assert answer.weights_bytes == QWEN25_32B.weights_bytes - 8 * GIB
        assert answer.cpu_offload_bytes == 8 * GIB


class TestShortfalls:
    def test_says_what_is_needed_what_there_is_and_what_fits(self) -> None:
        answer = shortfall(demand(CODER_14B, 32_768))
        assert answer.message == (
            "32768 tokens need 17.08 GiB (weights 9.38 GiB, overhead 1.70 GiB, KV cache 6.00 GiB), "
            "the card gives 14.23 GiB (0.92 of 15.47 GiB): 2.85 GiB short"
        )
        assert answer.missing_bytes == pytest.approx(2.85 * GIB, rel=0.01)
        assert answer.remedies[:2] == ("kv_cache_dtype: fp8", "context: 16384")

    def test_the_context_it_offers_is_the_longest(self) -> None:
        asked = demand(CODER_14B, 32_768)
        assert "context: 16384" in shortfall(asked).remedies
        fit(replace(asked, context=16_384))
        shortfall(replace(asked, context=16_384 + 1024))

    def test_a_32b_model_is_too_large_by_its_weights_alone(self) -> None:
        answer = shortfall(demand(QWEN25_32B))
        assert "weights 18.14 GiB" in answer.message
        assert answer.remedies[1:3] == ("a card of 24 GB, with kv_cache_dtype: fp8", "a card of 32 GB")
        assert any(remedy.startswith("cpu_offload: 8GiB") for remedy in answer.remedies)
        assert any("10.53 GiB of weights fit" in remedy for remedy in answer.remedies)

    def test_fp8_and_a_shorter_context_together(self) -> None:
        answer = shortfall(demand(CODER_14B, 32_768), int(14 * GIB))
        assert "context: 17408 with kv_cache_dtype: fp8" in answer.remedies
        assert "kv_cache_dtype: fp8" not in answer.remedies

    def test_a_share_that_cannot_start(self) -> None:
        answer = shortfall(demand(QWEN25_7B, utilization=0.98))
        assert "0.98 needs 15.66 GiB free to start" in answer.message
        assert answer.remedies == ("gpu_memory_utilization: auto",)

    def test_a_small_share(self) -> None:
        answer = shortfall(demand(QWEN3_14B, 32_768, kv_cache_dtype="fp8", utilization=0.8))
        assert answer.remedies[0] == "gpu_memory_utilization: auto"

    def test_a_context_beyond_the_model(self) -> None:
        answer = shortfall(demand(QWEN25_7B, 131_072))
        assert answer.message == "131072 tokens exceed the model's own limit of 32768"
        assert answer.remedies == ("context: 32768",)

    def test_an_architecture_nobody_planned_for(self) -> None:
        shape = Unsupported(
            architecture="NewForCausalLM", reason="the memory of NewForCausalLM cannot be planned yet"
        )
        facts = Facts(shape=shape, weights_bytes=GIB, disk_bytes=GIB, origin=Origin.DISK)
        answer = shortfall(demand(facts))
        assert "NewForCausalLM" in answer.message
        assert answer.missing_bytes == 0

    def test_a_card_too_small_for_anything(self) -> None:
        answer = shortfall(demand(None), GIB)
        assert answer.missing_bytes > 0
        assert answer.remedies == ("a card of 8 GB",)


class TestSettings:
    def test_auto_leaves_more_of_a_small_card(self) -> None:
        assert auto_utilization(CARD_16_GB) == 0.92
        assert auto_utilization(80 * GIB) == 0.92
        assert auto_utilization(8 * GIB) == 0.85
        assert auto_utilization(GIB) is None

    def test_a_declared_share_is_obeyed(self) -> None:
        answer = fit(demand(QWEN25_7B, utilization=0.6))
        assert answer.utilization == 0.6
        assert answer.budget_bytes == math.ceil(CARD_16_GB * 0.6)

    def test_eager_takes_less_overhead(self) -> None:
        compiled, eager = fit(demand(QWEN3_14B)), fit(demand(QWEN3_14B, eager=True))
        assert compiled.kv_tokens is not None
        assert eager.kv_tokens is not None
        assert eager.kv_tokens > compiled.kv_tokens

    def test_many_sequences_take_room_to_sample(self) -> None:
        few, many = fit(demand(QWEN25_7B, sequences=16)), fit(demand(QWEN25_7B, sequences=256))
        assert few.overhead_bytes is not None
        assert many.overhead_bytes is not None
        assert (many.overhead_bytes - few.overhead_bytes) / GIB == pytest.approx(0.82, abs=0.01)

    def test_a_hybrid_needs_a_page_for_each_sequence(self) -> None:
        """Unless it runs eagerly: vLLM refuses while it captures CUDA graphs."""
        answer = shortfall(demand(QWEN35_9B, sequences=200, utilization=0.85))
        assert answer.message.startswith("200 sequences need ")
        fit(demand(QWEN35_9B, sequences=200, utilization=0.85, eager=True))

    def test_auto_obeys_a_checkpoint_that_declares_fp8(self) -> None:
        assert isinstance(CODER_14B.shape, Shape)
        declaring = replace(CODER_14B, shape=replace(CODER_14B.shape, fp8_kv_cache=True))
        assert fit(demand(declaring)).kv_tokens == fit(demand(CODER_14B, kv_cache_dtype="fp8")).kv_tokens

    def test_only_layers_can_leave_the_card(self) -> None:
        answer = fit(demand(QWEN25_7B, cpu_offload_bytes=64 * GIB))
        assert isinstance(QWEN25_7B.shape, Shape)
        assert answer.weights_bytes == 2 * QWEN25_7B.shape.embedding_bytes
        assert any("can leave the card" in note for note in answer.notes)

    def test_an_unknown_kv_dtype_is_a_mistake_of_the_program(self) -> None:
        with pytest.raises(ValueError, match="int3"):
            plan(demand(QWEN25_7B, kv_cache_dtype="int3"), CARD_16_GB)

    def test_nothing_known_yet(self) -> None:
        answer = fit(demand(None))
        assert answer.budget_bytes == math.ceil(CARD_16_GB * 0.92)
        assert (answer.weights_bytes, answer.overhead_bytes, answer.kv_cache_bytes, answer.kv_tokens) == (
            None,
        ) * 4
        assert answer.notes == ("what the model takes is not known until it is pulled",)


class TestOnTheCpu:
    def test_adds_weights_processes_and_the_declared_cache(self) -> None:
        answer = fit(demand(QWEN25_7B, budget=Budget.DECLARED, kv_cache_bytes=4 * GIB), 32 * GIB)
        assert answer.kv_cache_bytes == 4 * GIB
        assert answer.kv_tokens == 4 * GIB // (128 * 57_344) * 128
        assert answer.utilization is None
        assert answer.start_bytes == answer.budget_bytes == QWEN25_7B.weights_bytes + 6 * GIB

    def test_nothing_known_yet(self) -> None:
        answer = fit(demand(None, budget=Budget.DECLARED, kv_cache_bytes=4 * GIB), 32 * GIB)
        assert answer.kv_cache_bytes == 4 * GIB
        assert answer.weights_bytes is None

    def test_a_cache_too_small_for_the_context(self) -> None:
        answer = shortfall(demand(QWEN25_7B, 32_768, budget=Budget.DECLARED, kv_cache_bytes=GIB), 16 * GIB)
        assert answer.remedies == ("kv_cache: 2GiB under engines.vllm-cpu", "context: 18432")

    def test_a_host_too_small(self) -> None:
        answer = shortfall(demand(QWEN25_7B, budget=Budget.DECLARED, kv_cache_bytes=4 * GIB), 8 * GIB)
        assert answer.message.endswith("this host has 8.00 GiB")
        assert answer.remedies == (
            "a host with 9 GiB, with kv_cache: 1GiB under engines.vllm-cpu",
            "a host with 12 GiB",
        )


totals = st.integers(min_value=0, max_value=96 * GIB)
measurements = st.builds(
    Measured,
    weights_bytes=st.none() | st.integers(min_value=0, max_value=20 * GIB),
    kv_cache_bytes=st.none() | st.integers(min_value=0, max_value=20 * GIB),
    kv_tokens=st.none() | st.integers(min_value=0, max_value=500_000),
    graph_bytes=st.none() | st.integers(min_value=0, max_value=GIB),
    card_total_bytes=st.none() | totals,
    utilization=st.none() | st.floats(min_value=0.01, max_value=1, allow_nan=False),
    context=st.none() | st.sampled_from([4096, 8192]),
    sequences=st.none() | st.integers(min_value=1, max_value=64),
    kv_cache_dtype=st.sampled_from(["auto", "fp8"]),
    cpu_offload_bytes=st.sampled_from([0, 8 * GIB]),
    eager=st.booleans(),
)


def _demand(**asked: Any) -> Demand:  # noqa: ANN401 - as Demand says; its types are not there to be looked at
    return Demand(agent="dev", **asked)


demands = st.builds(
    _demand,
    context=st.sampled_from([4096, 8192]) | st.integers(min_value=1, max_value=40_960),
    sequences=st.integers(min_value=1, max_value=64),
    kv_cache_dtype=st.sampled_from(["auto", "bfloat16", "fp8"]),
    measured=st.none() | measurements,
    utilization=st.none() | st.floats(min_value=0.01, max_value=1, allow_nan=False),
    cpu_offload_bytes=st.integers(min_value=0, max_value=24 * GIB),
    eager=st.booleans(),
    facts=st.sampled_from(sorted(KNOWN)).map(lambda repo: KNOWN[repo]),
)


@given(asked=demands, total_bytes=totals)
def test_every_byte_is_accounted_for_and_the_card_holds_it(asked: Demand, total_bytes: int) -> None:
    answer = plan(asked, total_bytes)
    if isinstance(answer, Shortfall):
        assert answer.message
        return
    assert answer.weights_bytes is not None
    assert answer.overhead_bytes is not None
    assert answer.kv_cache_bytes is not None
    assert answer.weights_bytes + answer.overhead_bytes + answer.kv_cache_bytes == answer.budget_bytes
    assert min(answer.weights_bytes, answer.overhead_bytes, answer.kv_cache_bytes) >= 0
    assert answer.start_bytes == answer.budget_bytes + START_MARGIN_BYTES <= total_bytes
    assert answer.concurrency is not None
    assert answer.concurrency >= 1


@given(asked=demands, total_bytes=totals, more_bytes=totals)
def test_more_memory_never_holds_fewer_tokens(asked: Demand, total_bytes: int, more_bytes: int) -> None:
    smaller, larger = plan(asked, total_bytes), plan(asked, total_bytes + more_bytes)
    if isinstance(smaller, Fit):
        assert isinstance(larger, Fit)
        assert (larger.kv_tokens or 0) >= (smaller.kv_tokens or 0)
