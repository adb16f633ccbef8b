from __future__ import annotations

import pytest

from agent_manager.checkpoints.facts import (
    Facts,
    Origin,
    Shape,
    Unsupported,
    facts_from,
    idle_bytes,
    parse_config,
    resident_bytes,
    rotary_cache_bytes,
)
from agent_manager.checkpoints.headers import Tensor
from agent_manager.checkpoints.known import KNOWN, known_facts
from agent_manager.checkpoints.quantization import Quantization
from agent_manager.errors import CheckpointUnusable
from tests.checkpoints.synthetic import Dense, dense, linear, plain, qwen35_9b

GIB = 1 << 30

QWEN25_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "max_position_embeddings": 32_768,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "sliding_window": 131_072,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 152_064,
    "quantization_config": {"bits": 4, "group_size": 128, "quant_method": "awq", "version": "gemm"},
}
QWEN35_9B = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "tie_word_embeddings": False,
    "vision_config": {"depth": 27},
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 128, "strategy": "group"}}
        },
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    },
    "text_config": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 248_320,
        "max_position_embeddings": 262_144,
        "full_attention_interval": 4,
        "linear_num_value_heads": 32,
        "linear_num_key_heads": 16,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "rope_parameters": {"partial_rotary_factor": 0.25, "mrope_section": [11, 11, 10]},
    },
}

QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "max_position_embeddings": 40_960,
    "num_attention_heads": 32,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "tie_word_embeddings": False,
    "vocab_size": 151_936,
    "quantization_config": {"bits": 4, "group_size": 128, "quant_method": "gptq", "desc_act": False},
}


def shape_of(config: dict[str, object]) -> Shape:
    shape = parse_config(config, where="config.json")
    assert isinstance(shape, Shape), shape
    return shape


class TestConfig:
    def test_a_dense_model(self) -> None:
        shape = shape_of(QWEN25_7B)
        known = KNOWN["Qwen/Qwen2.5-7B-Instruct-AWQ"]
        assert shape == known.shape
        assert shape.kv_bytes_per_token(2) == 57_344

    def test_a_hybrid_model(self) -> None:
        shape = shape_of(QWEN35_9B)
        assert (shape.attention_layers, shape.linear_layers) == (8, 24)
        assert shape.kv_bytes_per_token(2) == 32_768
        assert shape.linear_state_bytes == 2_146_304
        assert shape.vision
        assert shape.fp8_kv_cache
        assert shape.quantization == Quantization(method="compressed-tensors", bits=4, group_size=128)
        assert rotary_cache_bytes(QWEN35_9B, shape) == 1 << 27

    def test_layer_types_count_before_the_interval(self) -> None:
        text = {**QWEN35_9B["text_config"], "layer_types": ["linear_attention", "full_attention"] * 16}  # type: ignore[dict-item]
        assert shape_of({**QWEN35_9B, "text_config": text}).attention_layers == 16

    def test_a_mixture_of_experts(self) -> None:
        shape = shape_of(QWEN3_30B_A3B)
        assert (shape.experts, shape.active_experts, shape.linear_layers) == (128, 8, 0)
        assert shape == KNOWN["Qwen/Qwen3-30B-A3B-GPTQ-Int4"].shape

    def test_a_hybrid_mixture_of_experts(self) -> None:
        text = {**QWEN35_9B["text_config"], "num_experts": 256, "num_experts_per_tok": 8}  # type: ignore[dict-item]
        config = {**QWEN35_9B, "architectures": ["Qwen3_5MoeForConditionalGeneration"], "text_config": text}
        shape = shape_of(config)
        assert (shape.experts, shape.active_experts, shape.linear_layers) == (256, 8, 24)
        assert shape.linear_state_bytes == 2_146_304

    def test_qwen3_next_keeps_its_state_in_the_models_own_type(self) -> None:
        text = {**QWEN35_9B["text_config"], "num_experts": 512, "num_experts_per_tok": 10}  # type: ignore[dict-item]
        shape = shape_of({**text, "architectures": ["Qwen3NextForCausalLM"], "mamba_ssm_dtype": "float32"})
        assert shape.linear_state_bytes == 2_146_304 - 32 * 128 * 128 * 2

    def test_qwen35_keeps_its_state_in_the_type_it_names(self) -> None:
        text = {**QWEN35_9B["text_config"], "mamba_ssm_dtype": "bfloat16"}  # type: ignore[dict-item]
        shape = shape_of({**QWEN35_9B, "text_config": text})
        assert shape.linear_state_bytes == 2_146_304 - 32 * 128 * 128 * 2

    def test_a_text_only_hybrid_has_a_plain_rotary_table(self) -> None:
        config: dict[str, object] = {
            **QWEN35_9B["text_config"],  # type: ignore[dict-item]
            "architectures": ["Qwen3_5ForCausalLM"],
        }
        assert rotary_cache_bytes(config, shape_of(config)) == 1 << 25

    @pytest.mark.parametrize(
        ("rope", "longest"),
        [
            ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}, 131_072),
            ({"type": "yarn", "factor": 4.0}, 131_072),
            ({"rope_type": "default"}, 32_768),
            ({"rope_type": "llama3", "factor": 8.0}, 32_768),
        ],
    )
    def test_yarn_makes_the_context_longer(self, rope: dict[str, object], longest: int) -> None:
        assert shape_of({**QWEN25_7B, "rope_scaling": rope}).max_position_embeddings == longest

    def test_older_configs_leave_out_kv_heads(self) -> None:
        config = {**QWEN25_7B, "architectures": ["LlamaForCausalLM"], "num_key_value_heads": None}
        assert shape_of(config).kv_heads == 28

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"architectures": ["GptOssForCausalLM"]}, "GptOssForCausalLM"),
            ({"num_experts": 128}, "mixture of experts"),
            ({"use_sliding_window": True}, "sliding window"),
            ({"layer_types": ["full_attention", "sliding_attention"]}, "more than one kind"),
        ],
    )
    def test_what_cannot_be_planned_is_said(self, changes: dict[str, object], words: str) -> None:
        answer = parse_config({**QWEN25_7B, **changes}, where="config.json")
        assert isinstance(answer, Unsupported)
        assert words in answer.reason

    @pytest.mark.parametrize("value", [None, "many", -1, 0, 2.5, True])
    def test_a_missing_or_odd_number_names_its_key(self, value: object) -> None:
        with pytest.raises(CheckpointUnusable, match=r"x/config\.json: num_hidden_layers"):
            parse_config({**QWEN25_7B, "num_hidden_layers": value}, where="x/config.json")

    @pytest.mark.parametrize("names", [None, [], "Qwen2ForCausalLM", [7]])
    def test_no_architecture(self, names: object) -> None:
        with pytest.raises(CheckpointUnusable, match="architectures"):
            parse_config({"architectures": names}, where="config.json")


class TestWeights:
    def test_counts_what_is_loaded(self) -> None:
        loaded = [Tensor(name="model.layers.0.mlp.up_proj.qweight", size_bytes=600, dtype="I32")]
        dropped = ("model.layers.0.mlp.up_proj.g_idx", "model.visual.patch_embed.weight", "mtp.fc.weight")
        tensors = [*loaded, *(plain(name, 5000) for name in dropped)]
        assert resident_bytes(tensors, tied=False) == 606

    def test_a_tied_output_head_is_not_loaded_again(self) -> None:
        tensors = [plain("model.embed_tokens.weight", 50), plain("lm_head.weight", 50)]
        assert resident_bytes(tensors, tied=True) == 100
        assert resident_bytes(tensors, tied=False) == 200

    def test_a_32_bit_weight_is_loaded_in_16_bit(self) -> None:
        weight = Tensor(name="model.norm.weight", size_bytes=400, dtype="F32")
        scale = Tensor(name="model.layers.0.mlp.up_proj.weight_scale_inv", size_bytes=400, dtype="F32")
        assert resident_bytes([weight, scale], tied=False) == 600

    def test_the_rotary_table_is_added(self) -> None:
        facts = facts_from(
            QWEN25_7B,
            [plain("model.norm.weight", 50)],
            disk_bytes=1000,
            origin=Origin.DISK,
            where="config.json",
        )
        assert facts.weights_bytes == 100 + 32_768 * 128 * 2
        assert (facts.disk_bytes, facts.origin) == (1000, "disk")

    def test_an_unsupported_model_still_has_weights(self) -> None:
        config = {"architectures": ["NewForCausalLM"]}
        facts = facts_from(config, [plain("a", 50)], disk_bytes=1000, origin=Origin.DISK, where="config.json")
        assert facts.weights_bytes == 100
        assert isinstance(facts.shape, Unsupported)

    def test_fp8_takes_a_byte_a_weight(self) -> None:
        tensors = list(linear("model.layers.0.mlp.up_proj", 5120, 17_408, "fp8"))
        assert resident_bytes(tensors, tied=False) == pytest.approx(5120 * 17_408, rel=0.011)

    def test_experts_that_a_token_does_not_use_are_idle(self) -> None:
        tensors = [
            plain("model.layers.0.mlp.experts.0.up_proj.weight", 64),
            plain("model.layers.0.mlp.experts.1.up_proj.weight", 64),
            plain("model.layers.0.mlp.shared_expert.up_proj.weight", 64),
            Tensor(name="model.layers.0.mlp.experts.1.up_proj.g_idx", size_bytes=64, dtype="I32"),
        ]
        shape = shape_of(QWEN3_30B_A3B)
        assert idle_bytes(tensors, shape) == 256 * 120 // 128
        assert idle_bytes(tensors, shape_of(QWEN25_7B)) == 0


class TestPublishedWeights:
    """What vLLM's logs say it loaded ("Model loading took ... GiB"), from headers alone."""

    @pytest.mark.parametrize(
        ("model", "positions", "loaded_gib"),
        [
            pytest.param(
                Dense(
                    hidden=3584,
                    mlp=18_944,
                    layers=28,
                    heads=28,
                    kv_heads=4,
                    vocab=152_064,
                    stored="awq",
                    bias=True,
                ),
                32_768,
                5.23,
                id="Qwen2.5-7B-Instruct-AWQ",
            ),
            pytest.param(
                Dense(
                    hidden=5120,
                    mlp=13_824,
                    layers=48,
                    heads=40,
                    kv_heads=8,
                    vocab=152_064,
                    stored="awq",
                    bias=True,
                ),
                32_768,
                9.38,
                id="Qwen2.5-14B-Instruct-AWQ",
            ),
            pytest.param(
                Dense(
                    hidden=5120,
                    mlp=27_648,
                    layers=64,
                    heads=40,
                    kv_heads=8,
                    vocab=152_064,
                    stored="awq",
                    bias=True,
                ),
                32_768,
                18.14,
                id="Qwen2.5-32B-Instruct-AWQ",
            ),
            pytest.param(
                Dense(
                    hidden=2560,
                    mlp=9728,
                    layers=36,
                    heads=32,
                    kv_heads=8,
                    vocab=151_936,
                    stored="awq",
                    tied=True,
                ),
                40_960,
                2.50,
                id="Qwen3-4B-AWQ",
            ),
            pytest.param(
                Dense(hidden=4096, mlp=12_288, layers=36, heads=32, kv_heads=8, vocab=151_936, stored="awq"),
                40_960,
                5.71,
                id="Qwen3-8B-AWQ",
            ),
            pytest.param(
                Dense(hidden=5120, mlp=17_408, layers=40, heads=40, kv_heads=8, vocab=151_936, stored="awq"),
                40_960,
                9.44,
                id="Qwen3-14B-AWQ",
            ),
            pytest.param(
                Dense(
                    hidden=2048,
                    mlp=768,
                    layers=48,
                    heads=32,
                    kv_heads=4,
                    vocab=151_936,
                    stored="gptq",
                    experts=128,
                ),
                40_960,
                15.77,
                id="Qwen3-30B-A3B-GPTQ-Int4",
            ),
        ],
    )
    def test_full_attention(self, model: Dense, positions: int, loaded_gib: float) -> None:
        weights_bytes = resident_bytes(dense(model), tied=model.tied) + positions * model.head_dim * 2
        assert weights_bytes / GIB == pytest.approx(loaded_gib, rel=0.01)

    @pytest.mark.parametrize(("stored", "loaded_gib"), [("bf16", 16.80), ("w4a16", 9.48)])
    def test_the_language_model_of_a_hybrid(self, stored: str, loaded_gib: float) -> None:
        assert self.facts(QWEN35_9B, list(qwen35_9b(stored))).weights_bytes / GIB == pytest.approx(
            loaded_gib, rel=0.005
        )

    def test_a_token_uses_a_sixteenth_of_the_experts(self) -> None:
        model = Dense(
            hidden=2048, mlp=768, layers=48, heads=32, kv_heads=4, vocab=151_936, stored="gptq", experts=128
        )
        facts = self.facts(QWEN3_30B_A3B, list(dense(model)))
        assert facts.idle_bytes == KNOWN["Qwen/Qwen3-30B-A3B-GPTQ-Int4"].idle_bytes
        assert facts.active_bytes / GIB == pytest.approx(2.65, abs=0.05)

    def facts(self, config: dict[str, object], tensors: list[Tensor]) -> Facts:
        return facts_from(config, tensors, disk_bytes=1, origin=Origin.DISK, where="config.json")


def test_known_facts_are_for_repositories_in_the_table_only() -> None:
    assert known_facts("Qwen/Qwen3-14B-AWQ") is KNOWN["Qwen/Qwen3-14B-AWQ"]
    assert known_facts("Qwen/Qwen3-14B-AWQ-fork") is None


@pytest.mark.parametrize(
    ("repo", "kv_bytes"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct-AWQ", 12_288),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", 28_672),
        ("Qwen/Qwen3-1.7B", 114_688),
        ("Qwen/Qwen2.5-Coder-7B-Instruct-AWQ", 57_344),
        ("Qwen/Qwen2.5-14B-Instruct-AWQ", 196_608),
        ("Qwen/Qwen2.5-Coder-32B-Instruct-AWQ", 262_144),
        ("Qwen/Qwen3-4B-AWQ", 147_456),
        ("Qwen/Qwen3-8B-AWQ", 147_456),
        ("Qwen/Qwen3-14B-AWQ", 163_840),
        ("RedHatAI/Qwen3.5-9B-quantized.w4a16", 32_768),
    ],
)
def test_kv_bytes_of_well_known_checkpoints(repo: str, kv_bytes: int) -> None:
    shape = KNOWN[repo].shape
    assert isinstance(shape, Shape)
    assert shape.kv_bytes_per_token(2) == kv_bytes


@pytest.mark.parametrize(
    ("repo", "mlp", "heads", "qk_norm"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 4864, 14, False),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", 8960, 12, False),
        ("Qwen/Qwen3-1.7B", 6144, 16, True),
    ],
)
def test_weights_of_unquantized_checkpoints_follow_from_their_dimensions(
    repo: str,
    mlp: int,
    heads: int,
    qk_norm: bool,  # noqa: FBT001 - a column of the table
) -> None:
    shape = KNOWN[repo].shape
    assert isinstance(shape, Shape)
    hidden, query, kv = shape.hidden_size, heads * shape.head_dim, shape.kv_heads * shape.head_dim
    biases = 2 * shape.head_dim if qk_norm else query + 2 * kv
    layer = hidden * (2 * query + 2 * kv + 3 * mlp) + biases + 2 * hidden
    parameters = shape.layers * layer + shape.vocab_size * hidden + hidden
    weights_bytes = resident_bytes([plain("model", parameters)], tied=True) + rotary_cache_bytes({}, shape)
    assert KNOWN[repo].weights_bytes == pytest.approx(weights_bytes, rel=0.015)
