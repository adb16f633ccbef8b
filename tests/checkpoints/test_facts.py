from __future__ import annotations

import json

import pytest

from agent_manager.checkpoints.facts import (
    MAX_HEADER_BYTES,
    Origin,
    Shape,
    Tensor,
    Unsupported,
    facts_from,
    header_length,
    parse_config,
    parse_header,
    resident_bytes,
    rotary_cache_bytes,
)
from agent_manager.checkpoints.known import KNOWN, known_facts
from agent_manager.errors import CheckpointUnusable

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
        assert rotary_cache_bytes(QWEN35_9B, shape) == 1 << 27

    def test_layer_types_count_before_the_interval(self) -> None:
        text = {**QWEN35_9B["text_config"], "layer_types": ["linear_attention", "full_attention"] * 16}  # type: ignore[dict-item]
        assert shape_of({**QWEN35_9B, "text_config": text}).attention_layers == 16

    def test_older_configs_leave_out_kv_heads(self) -> None:
        config = {**QWEN25_7B, "architectures": ["LlamaForCausalLM"], "num_key_value_heads": None}
        assert shape_of(config).kv_heads == 28

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"architectures": ["GptOssForCausalLM"]}, "GptOssForCausalLM"),
            ({"architectures": ["Qwen3MoeForCausalLM"]}, "Qwen3MoeForCausalLM"),
            ({"num_experts": 128}, "mixture-of-experts"),
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
        loaded = [Tensor(name="model.layers.0.mlp.up_proj.qweight", size_bytes=600)]
        dropped = ("model.layers.0.mlp.up_proj.g_idx", "model.visual.patch_embed.weight", "mtp.fc.weight")
        tensors = [*loaded, *(Tensor(name=name, size_bytes=10_000) for name in dropped)]
        assert resident_bytes(tensors, tied=False) == 606

    def test_a_tied_output_head_is_not_loaded_again(self) -> None:
        tensors = [
            Tensor(name="model.embed_tokens.weight", size_bytes=100),
            Tensor(name="lm_head.weight", size_bytes=100),
        ]
        assert resident_bytes(tensors, tied=True) == 101
        assert resident_bytes(tensors, tied=False) == 202

    def test_the_rotary_table_is_added(self) -> None:
        tensors = [Tensor(name="model.norm.weight", size_bytes=100)]
        facts = facts_from(QWEN25_7B, tensors, disk_bytes=1000, origin=Origin.DISK, where="config.json")
        assert facts.weights_bytes == 101 + 32_768 * 128 * 2
        assert (facts.disk_bytes, facts.origin) == (1000, "disk")

    def test_an_unsupported_model_still_has_weights(self) -> None:
        config = {"architectures": ["NewForCausalLM"]}
        tensors = [Tensor(name="a", size_bytes=100)]
        facts = facts_from(config, tensors, disk_bytes=1000, origin=Origin.DISK, where="config.json")
        assert facts.weights_bytes == 101
        assert isinstance(facts.shape, Unsupported)

    def test_awq_tensors_of_a_14b_model_give_the_logged_weights(self) -> None:
        """4-bit with groups of 128: half a byte a weight, and per group a 4-bit zero and a 16-bit scale."""
        hidden, mlp, kv, layers, vocab = 5120, 17_408, 1024, 40, 151_936
        weights = layers * hidden * (2 * hidden + 2 * kv + 3 * mlp)
        tensors = [
            Tensor(name="layers.qweight", size_bytes=weights // 2),
            Tensor(name="layers.qzeros", size_bytes=weights // 128 // 2),
            Tensor(name="layers.scales", size_bytes=weights // 128 * 2),
            Tensor(name="model.embed_tokens.weight", size_bytes=vocab * hidden * 2),
            Tensor(name="lm_head.weight", size_bytes=vocab * hidden * 2),
        ]
        known = KNOWN["Qwen/Qwen3-14B-AWQ"]
        assert resident_bytes(tensors, tied=False) == pytest.approx(known.weights_bytes, rel=0.01)


def header(text: str, data_bytes: int = 0) -> tuple[bytes, int]:
    encoded = text.encode()
    return encoded, 8 + len(encoded) + data_bytes


class TestSafetensors:
    def test_reads_names_and_sizes(self) -> None:
        entries = {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]},
        }
        data, file_bytes = header(json.dumps(entries), 8)
        assert header_length(len(data).to_bytes(8, "little"), file_bytes=file_bytes, where="w") == len(data)
        assert parse_header(data, file_bytes=file_bytes, where="w") == (Tensor(name="a", size_bytes=8),)

    @pytest.mark.parametrize(
        ("prefix", "file_bytes"),
        [
            (b"", 0),
            (b"\x10\0\0", 3),
            ((0).to_bytes(8, "little"), 100),
            ((93).to_bytes(8, "little"), 100),
            ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), 10**12),
            (b"version ", 130),
        ],
        ids=["empty", "short", "no header", "beyond the file", "too large", "a Git LFS pointer"],
    )
    def test_a_length_that_cannot_be(self, prefix: bytes, file_bytes: int) -> None:
        with pytest.raises(CheckpointUnusable, match=r"^w: ") as caught:
            header_length(prefix, file_bytes=file_bytes, where="w")
        assert caught.value.hint

    @pytest.mark.parametrize(
        "text",
        [
            "not json",
            "[]",
            '{"a": 1}',
            '{"a": {"dtype": "F16"}}',
            '{"a": {"data_offsets": [8, 0]}}',
            '{"a": {"data_offsets": ["0", "8"]}}',
        ],
    )
    def test_a_header_that_is_not_one(self, text: str) -> None:
        data, file_bytes = header(text, 8)
        with pytest.raises(CheckpointUnusable, match=r"^w: its header"):
            parse_header(data, file_bytes=file_bytes, where="w")

    def test_not_text(self) -> None:
        with pytest.raises(CheckpointUnusable, match="not JSON"):
            parse_header(b"\xff\xfe\x00", file_bytes=11, where="w")

    def test_a_truncated_file(self) -> None:
        data, file_bytes = header('{"a": {"data_offsets": [0, 8]}}', 7)
        with pytest.raises(CheckpointUnusable, match="its header says"):
            parse_header(data, file_bytes=file_bytes, where="w")


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
    tensors = [Tensor(name="model", size_bytes=2 * parameters)]
    weights_bytes = resident_bytes(tensors, tied=True) + rotary_cache_bytes({}, shape)
    assert KNOWN[repo].weights_bytes == pytest.approx(weights_bytes, rel=0.005)
