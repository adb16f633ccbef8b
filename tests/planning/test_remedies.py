from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent_manager.catalog.load import load_catalog
from agent_manager.checkpoints.facts import Facts, Origin, Unsupported
from agent_manager.checkpoints.known import KNOWN
from agent_manager.gpu.base import GIB
from agent_manager.planning.base import Budget, Demand, Fit, Remedy, Shortfall
from agent_manager.planning.cards import SIZES_GIB, usable_bytes
from agent_manager.planning.remedies import applied
from agent_manager.planning.vram import plan

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CARD_16_GB = usable_bytes(16 * GIB)
CODER_14B = KNOWN["Qwen/Qwen2.5-Coder-14B-Instruct-AWQ"]
CODER_32B = KNOWN["Qwen/Qwen2.5-Coder-32B-Instruct-AWQ"]
QWEN25_7B = KNOWN["Qwen/Qwen2.5-7B-Instruct-AWQ"]
QWEN35_9B = KNOWN["RedHatAI/Qwen3.5-9B-quantized.w4a16"]
CATALOG: Mapping[str, Facts] = MappingProxyType(
    {
        "coder-32b": CODER_32B,
        "coder-14b": CODER_14B,
        "coder-7b": KNOWN["Qwen/Qwen2.5-Coder-7B-Instruct-AWQ"],
        "hybrid-9b": QWEN35_9B,
        "tiny": KNOWN["Qwen/Qwen2.5-0.5B-Instruct-AWQ"],
    }
)


def demand(facts: Facts | None, context: int = 8192, **changes: Any) -> Demand:  # noqa: ANN401 - fields of Demand
    return replace(Demand(agent="dev", context=context, sequences=4, facts=facts), **changes)


def shortfall(
    asked: Demand, total_bytes: int = CARD_16_GB, alternatives: Mapping[str, Facts] = MappingProxyType({})
) -> Shortfall:
    answer = plan(asked, total_bytes, alternatives=alternatives)
    assert isinstance(answer, Shortfall), answer
    return answer


def changes_of(answer: Shortfall) -> list[dict[str, str | int]]:
    return [dict(option.changes) for option in answer.options]


class TestWhatIsOffered:
    def test_settings_that_keep_the_context_are_enough(self) -> None:
        answer = shortfall(demand(CODER_14B, 32_768), alternatives=CATALOG)
        assert changes_of(answer) == [{"kv_cache_dtype": "fp8"}, {"context": 16_384}]
        assert answer.advice == ()

    def test_the_32b_wish(self) -> None:
        """No setting makes it fit: other models, offloading with its price, larger cards, and how large it may be."""
        answer = shortfall(demand(CODER_32B), alternatives=CATALOG)
        assert changes_of(answer) == [
            {"model": "hybrid-9b"},
            {"model": "coder-14b"},
            {"cpu_offload": "8GiB"},
            {"kv_cache_dtype": "fp8"},
            {},
        ]
        assert [option.fit.card_total_bytes for option in answer.options[3:]] == [
            usable_bytes(24 * GIB),
            usable_bytes(32 * GIB),
        ]
        assert "1.5 to 2.9 tokens/s" in answer.options[2].text
        assert answer.advice == ("a smaller model: about 10.53 GiB of weights fit beside this KV cache",)

    def test_another_model_with_fp8(self) -> None:
        answer = shortfall(demand(CODER_32B, 32_768), alternatives={"coder-14b": CODER_14B})
        assert {"model": "coder-14b", "kv_cache_dtype": "fp8"} in changes_of(answer)

    def test_only_the_same_family(self) -> None:
        assert not isinstance(CODER_14B.shape, Unsupported)
        stranger = replace(CODER_14B, shape=replace(CODER_14B.shape, architecture="LlamaForCausalLM"))
        answer = shortfall(demand(CODER_32B), alternatives={"stranger": stranger, "itself": CODER_32B})
        assert not any("model" in changes for changes in changes_of(answer))

    def test_a_larger_model_whose_kv_cache_is_smaller(self) -> None:
        answer = shortfall(
            demand(CODER_14B, 32_768, kv_cache_dtype="fp8"), 14 * GIB, {"hybrid-9b": QWEN35_9B}
        )
        assert QWEN35_9B.weights_bytes > CODER_14B.weights_bytes
        assert {"model": "hybrid-9b"} in changes_of(answer)

    def test_offloading_where_weights_are_not_all_that_is_too_much(self) -> None:
        answer = shortfall(demand(CODER_32B, 32_768), 12 * GIB)
        assert {"sequences": 1, "kv_cache_dtype": "fp8", "cpu_offload": "14GiB"} in changes_of(answer)

    def test_fewer_sequences(self) -> None:
        answer = shortfall(demand(QWEN25_7B, 32_768, sequences=256), 10 * GIB)
        assert any(set(changes) == {"sequences"} for changes in changes_of(answer))

    def test_a_context_beyond_the_model_is_cut_with_whatever_else(self) -> None:
        answer = shortfall(demand(CODER_14B, 65_536))
        assert changes_of(answer)[0] == {"context": 32_768, "kv_cache_dtype": "fp8"}

    def test_several_settings_at_once_where_one_does_not_do(self) -> None:
        answer = shortfall(demand(CODER_14B, 32_768, utilization=0.5))
        assert changes_of(answer) == [
            {"gpu_memory_utilization": "auto", "sequences": 1, "kv_cache_dtype": "fp8"}
        ]

    def test_a_larger_kv_cache_on_the_cpu(self) -> None:
        asked = demand(QWEN25_7B, 32_768, budget=Budget.DECLARED, kv_cache_bytes=GIB)
        assert changes_of(shortfall(asked, 16 * GIB))[0] == {"engines.vllm-cpu.kv_cache": "2GiB"}

    def test_an_unknown_architecture_has_no_remedy_in_settings(self) -> None:
        shape = Unsupported(
            architecture="NewForCausalLM", reason="the memory of NewForCausalLM cannot be planned"
        )
        facts = Facts(shape=shape, weights_bytes=GIB, disk_bytes=GIB, origin=Origin.DISK)
        answer = shortfall(demand(facts), alternatives=CATALOG)
        assert answer.options == ()
        assert answer.remedies == ("use a checkpoint whose memory can be planned",)


def test_a_change_is_one_to_the_catalog(tmp_path: Path) -> None:
    """Written into the agent's entry, each reads back as what was tried."""
    changes: dict[str, str | int] = {
        "context": 16_384,
        "sequences": 2,
        "kv_cache_dtype": "fp8",
        "gpu_memory_utilization": "auto",
        "cpu_offload": "8GiB",
    }
    lines = "".join(f"    {field}: {value}\n" for field, value in changes.items())
    path = tmp_path / "models.yaml"
    path.write_text(
        f"version: 1\nmodels: {{m: {{repo: a/b}}}}\nagents:\n  dev:\n    model: m\n    port: 8001\n{lines}",
        "utf-8",
    )
    agent = load_catalog(path, environ={}, state_root=tmp_path).agents["dev"]
    asked = applied(demand(None, utilization=0.5), changes, {})
    assert (agent.context, agent.sequences, agent.kv_cache_dtype) == (
        asked.context,
        asked.sequences,
        asked.kv_cache_dtype,
    )
    assert (agent.utilization, agent.cpu_offload_bytes) == (asked.utilization, asked.cpu_offload_bytes)


def test_a_change_that_nobody_offers_is_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match="port: 1"):
        applied(demand(None), {"port": 1}, {})


def test_what_cuda_gives_of_a_card() -> None:
    assert usable_bytes(16 * GIB) == int(15.47 * GIB)
    assert usable_bytes(24 * GIB) == int(23.56 * GIB)
    given_bytes = [usable_bytes(size * GIB) for size in SIZES_GIB]
    assert given_bytes == sorted(given_bytes)


def _demand(**asked: Any) -> Demand:  # noqa: ANN401 - as Demand says; its types are not there to be looked at
    return Demand(agent="dev", **asked)


demands = st.builds(
    _demand,
    context=st.integers(min_value=1024, max_value=70_000),
    sequences=st.integers(min_value=1, max_value=300),
    kv_cache_dtype=st.sampled_from(["auto", "bfloat16", "fp8"]),
    utilization=st.none() | st.floats(min_value=0.01, max_value=1, allow_nan=False),
    cpu_offload_bytes=st.sampled_from([0, 4 * GIB]),
    eager=st.booleans(),
    facts=st.none() | st.sampled_from(sorted(KNOWN)).map(lambda repo: KNOWN[repo]),
)


def tried(option: Remedy, asked: Demand) -> Fit | Shortfall:
    return plan(applied(asked, option.changes, CATALOG), option.fit.card_total_bytes)


@given(asked=demands, total_bytes=st.integers(min_value=0, max_value=48 * GIB))
def test_a_shortfall_names_a_change_that_applied_fits(asked: Demand, total_bytes: int) -> None:
    answer = plan(asked, total_bytes, alternatives=CATALOG)
    assume(isinstance(answer, Shortfall))
    assert isinstance(answer, Shortfall)
    assert answer.options
    for option in answer.options:
        assert tried(option, asked) == option.fit
        assert option.changes or option.fit.card_total_bytes > total_bytes
        assert "\n" not in option.text
        assert all(str(value) in option.text for value in option.changes.values())


@given(
    asked=demands.map(
        lambda asked: replace(
            asked, budget=Budget.DECLARED, kv_cache_bytes=GIB, utilization=None, cpu_offload_bytes=0
        )
    ),
    total_bytes=st.integers(min_value=0, max_value=64 * GIB),
)
def test_on_the_cpu_too(asked: Demand, total_bytes: int) -> None:
    answer = plan(asked, total_bytes)
    assume(isinstance(answer, Shortfall))
    assert isinstance(answer, Shortfall)
    assert answer.options
    assert all(tried(option, asked) == option.fit for option in answer.options)
