"""What a checkpoint's `config.json` and safetensors headers say: its KV layout, and its bytes once loaded.

Pure: nothing here touches the disk. An architecture whose memory this program cannot account for is
`Unsupported`: said so, never guessed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.checkpoints.quantization import (
    Quantization,
    declares_fp8_kv_cache,
    mapping,
    quantization_of,
)
from agent_manager.errors import CheckpointUnusable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent_manager.checkpoints.headers import Tensor

DENSE: Final = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
"""Full attention in every layer, one KV head size."""
MOE: Final = frozenset({"Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"})
"""The same attention, with experts for a feed-forward layer."""
HYBRID: Final = frozenset({"Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"})
"""Gated DeltaNet layers beside full attention: only the latter hold KV for each token."""
HYBRID_MOE: Final = frozenset(
    {"Qwen3NextForCausalLM", "Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"}
)
"""Both."""
PLANNED: Final = DENSE | MOE | HYBRID | HYBRID_MOE
"""Every architecture whose memory can be planned."""

_STATE_ELEMENT_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
_CONV_ELEMENT_BYTES: Final = 2
_DEFAULT_FULL_ATTENTION_INTERVAL: Final = 4
_DEFAULT_HYBRID_ROTARY_SHARE: Final = 0.25
_ROTARY_ELEMENT_BYTES: Final = 2
_MULTIMODAL_ROTARY_FACTOR: Final = 4
_NOT_LOADED_PREFIXES: Final = ("visual.", "model.visual.", "mtp.", "model.mtp.")
_EXPERTS: Final = ".mlp.experts."
_AS_TRAINED_DTYPES: Final = frozenset({"BF16", "F16", "F32"})
_SLACK_DIVISOR: Final = 100


class Origin(StrEnum):
    """Where facts come from."""

    DISK = "disk"
    HUB = "hub"
    KNOWN = "known"


class Shape(Struct, frozen=True, kw_only=True):
    """The dimensions of a language model that decide how much memory its KV cache takes.

    `attention_layers` of the `layers` hold KV for each token; the others (of a hybrid) keep
    `linear_state_bytes` for each sequence. `fp8_kv_cache`: the checkpoint itself declares an fp8 KV cache,
    which `auto` obeys. `vision`: a vision tower is in the files; the figures are for the language model alone.
    `max_position_embeddings` is the longest context, with what the config's rope scaling adds. `experts` is how
    many each layer has (0: it is no mixture of experts), `active_experts` how many a token uses.
    """

    architecture: str
    layers: int
    attention_layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    quantization: Quantization | None = None
    fp8_kv_cache: bool = False
    linear_state_bytes: int = 0
    vision: bool = False
    experts: int = 0
    active_experts: int = 0

    @property
    def linear_layers(self) -> int:
        """Layers that keep a state for each sequence instead of KV for each token."""
        return self.layers - self.attention_layers

    @property
    def embedding_bytes(self) -> int:
        """One copy of the embedding table, in 16-bit."""
        return self.vocab_size * self.hidden_size * 2

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """KV of one token, with elements of `element_bytes`: layers x heads x (key and value) x size."""
        return self.attention_layers * self.kv_heads * 2 * self.head_dim * element_bytes


class Unsupported(Struct, frozen=True, kw_only=True):
    """An architecture whose memory cannot be accounted for yet, and why."""

    architecture: str
    reason: str


class Facts(Struct, frozen=True, kw_only=True):
    """A checkpoint in numbers. `weights_bytes`: resident once loaded; `disk_bytes`: its files.

    `idle_bytes` of the weights are not read while one token is decoded: the experts it does not use.
    """

    shape: Shape | Unsupported
    weights_bytes: int
    disk_bytes: int
    origin: Origin
    idle_bytes: int = 0

    @property
    def active_bytes(self) -> int:
        """What decoding one token reads of the weights: all of them, or those outside idle experts."""
        return self.weights_bytes - self.idle_bytes


def facts_from(
    config: Mapping[str, object], tensors: Iterable[Tensor], *, disk_bytes: int, origin: Origin, where: str
) -> Facts:
    """Put a checkpoint's facts together. `where` names the config in errors. Raises CheckpointUnusable."""
    shape = parse_config(config, where=where)
    tensors = tuple(tensors)
    if isinstance(shape, Unsupported):
        weights_bytes = resident_bytes(tensors, tied=False)
        return Facts(shape=shape, weights_bytes=weights_bytes, disk_bytes=disk_bytes, origin=origin)
    resident = resident_bytes(tensors, tied=shape.tie_word_embeddings)
    return Facts(
        shape=shape,
        weights_bytes=resident + rotary_cache_bytes(config, shape),
        disk_bytes=disk_bytes,
        origin=origin,
        idle_bytes=idle_bytes(tensors, shape),
    )


def parse_config(config: Mapping[str, object], *, where: str) -> Shape | Unsupported:
    """The dimensions that a `config.json` declares.

    Raises CheckpointUnusable, naming `where` and the key, when a dimension is missing or is not a number.
    """
    architecture = _architecture(config, where)
    text = _text_config(config)
    reason = _unsupported_reason(architecture, text)
    if reason:
        return Unsupported(architecture=architecture, reason=reason)
    layers = _count(text, "num_hidden_layers", where)
    heads = _count(text, "num_attention_heads", where)
    hidden_size = _count(text, "hidden_size", where)
    hybrid = architecture in HYBRID | HYBRID_MOE
    moe = architecture in MOE | HYBRID_MOE
    quantization = _quantization_config(config, text)
    return Shape(
        architecture=architecture,
        layers=layers,
        attention_layers=_full_attention_layers(text, layers, where) if hybrid else layers,
        kv_heads=_count(text, "num_key_value_heads", where, default=heads),
        head_dim=_count(text, "head_dim", where, default=None if hybrid else hidden_size // heads),
        hidden_size=hidden_size,
        vocab_size=_count(text, "vocab_size", where),
        max_position_embeddings=_longest_context(text, where),
        tie_word_embeddings=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        quantization=quantization_of(quantization),
        fp8_kv_cache=declares_fp8_kv_cache(quantization),
        linear_state_bytes=_linear_state_bytes(architecture, text, where) if hybrid else 0,
        vision=mapping(config.get("vision_config")) is not None,
        experts=_count(text, "num_experts", where) if moe else 0,
        active_experts=_count(text, "num_experts_per_tok", where) if moe else 0,
    )


def resident_bytes(tensors: Iterable[Tensor], *, tied: bool) -> int:
    """What these take on the card: the language model's tensors, and 1 % of the quantized ones.

    Not loaded: vision tower, MTP head, `g_idx`, and the output head of a model whose embeddings are tied. A
    32-bit weight is loaded in 16-bit. The allocator hands out whole 2 MiB; 16-bit weights are multiples of that,
    packed ones are not: published logs of AWQ, GPTQ and w4a16 checkpoints show 0.4 to 1.5 % more than their bytes.
    """
    total_bytes = packed_bytes = 0
    for tensor in tensors:
        if not _is_loaded(tensor.name, tied=tied):
            continue
        total_bytes += _loaded_bytes(tensor)
        if tensor.dtype not in _AS_TRAINED_DTYPES:
            packed_bytes += tensor.size_bytes
    return total_bytes + packed_bytes // _SLACK_DIVISOR


def idle_bytes(tensors: Iterable[Tensor], shape: Shape) -> int:
    """The bytes of those experts that one token does not use; a shared expert is always used."""
    if not shape.experts:
        return 0
    idle_experts = max(0, shape.experts - shape.active_experts)
    experts_bytes = sum(
        _loaded_bytes(tensor)
        for tensor in tensors
        if _EXPERTS in tensor.name and _is_loaded(tensor.name, tied=False)
    )
    return experts_bytes * idle_experts // shape.experts


def rotary_cache_bytes(config: Mapping[str, object], shape: Shape) -> int:
    """The rotary table: positions x rotary size x 2 bytes, four times that for multimodal rope."""
    text = _text_config(config)
    rope = _rope(text)
    share = rope.get("partial_rotary_factor", text.get("partial_rotary_factor"))
    if share is None and shape.linear_layers:
        share = _DEFAULT_HYBRID_ROTARY_SHARE
    rotary_dim = int(shape.head_dim * share) if isinstance(share, int | float) else shape.head_dim
    # A text-only Qwen3.5 inherits the key and does not use it (vllm/model_executor/models/config.py).
    multimodal = "mrope_section" in rope and shape.architecture.endswith("ForConditionalGeneration")
    factor = _MULTIMODAL_ROTARY_FACTOR if multimodal else 1
    return shape.max_position_embeddings * rotary_dim * _ROTARY_ELEMENT_BYTES * factor


def _is_loaded(name: str, *, tied: bool) -> bool:
    if name.startswith(_NOT_LOADED_PREFIXES) or name.endswith("g_idx"):
        return False
    return not (tied and name.startswith("lm_head."))


def _loaded_bytes(tensor: Tensor) -> int:
    if tensor.dtype == "F32" and tensor.name.endswith((".weight", ".bias")):
        return tensor.size_bytes // 2
    return tensor.size_bytes


def _architecture(config: Mapping[str, object], where: str) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointUnusable(
            f"{where}: architectures is missing",
            hint="the folder does not hold a model that an engine can load",
            where=where,
        )
    return names[0]


def _text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """A multimodal checkpoint keeps its language model's dimensions one level down."""
    return mapping(config.get("text_config")) or config


def _unsupported_reason(architecture: str, text: Mapping[str, object]) -> str | None:
    if architecture not in PLANNED:
        return f"the memory of {architecture} cannot be planned; those that can: {', '.join(sorted(PLANNED))}"
    experts = any(text.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    if experts and architecture in DENSE | HYBRID:
        return f"the memory of a mixture of experts that calls itself {architecture} cannot be planned"
    if text.get("sliding_window") is not None and text.get("use_sliding_window", True):
        return f"the KV cache of {architecture} with a sliding window cannot be planned"
    if architecture in DENSE | MOE and set(_layer_types(text)) - {"full_attention"}:
        return f"the KV cache of {architecture} with more than one kind of attention cannot be planned"
    return None


def _rope(text: Mapping[str, object]) -> Mapping[str, object]:
    return mapping(text.get("rope_parameters")) or mapping(text.get("rope_scaling")) or {}


def _longest_context(text: Mapping[str, object], where: str) -> int:
    """As vLLM derives it (`_get_and_verify_max_len`): YaRN multiplies the context it was trained with."""
    longest = _count(text, "max_position_embeddings", where)
    rope = _rope(text)
    factor, trained = rope.get("factor"), rope.get("original_max_position_embeddings", longest)
    if rope.get("rope_type", rope.get("type")) != "yarn" or not isinstance(trained, int):
        return longest
    return int(trained * factor) if isinstance(factor, int | float) and factor > 1 else longest


def _layer_types(text: Mapping[str, object]) -> list[object]:
    types = text.get("layer_types")
    return types if isinstance(types, list) else []


def _full_attention_layers(text: Mapping[str, object], layers: int, where: str) -> int:
    types = _layer_types(text)
    if types:
        return types.count("full_attention")
    return layers // _count(text, "full_attention_interval", where, default=_DEFAULT_FULL_ATTENTION_INTERVAL)


def _linear_state_bytes(architecture: str, text: Mapping[str, object], where: str) -> int:
    """What one Gated DeltaNet layer keeps for a sequence: recurrent state and its convolution's tail.

    Qwen3.5 keeps its recurrent state in the type its config names, 32-bit; vLLM gives Qwen3-Next the model's own.
    """
    named = "bfloat16" if architecture.startswith("Qwen3Next") else text.get("mamba_ssm_dtype")
    element_bytes = _STATE_ELEMENT_BYTES.get(str(named), 4)
    value_heads = _count(text, "linear_num_value_heads", where)
    key_heads = _count(text, "linear_num_key_heads", where)
    key_dim = _count(text, "linear_key_head_dim", where)
    value_dim = _count(text, "linear_value_head_dim", where)
    tail = _count(text, "linear_conv_kernel_dim", where) - 1
    recurrent_bytes = value_heads * value_dim * key_dim * element_bytes
    channels = 2 * key_heads * key_dim + value_heads * value_dim
    return recurrent_bytes + channels * tail * _CONV_ELEMENT_BYTES


def _quantization_config(config: Mapping[str, object], text: Mapping[str, object]) -> Mapping[str, object]:
    return mapping(config.get("quantization_config")) or mapping(text.get("quantization_config")) or {}


def _count(config: Mapping[str, object], key: str, where: str, *, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CheckpointUnusable(
            f"{where}: {key} is missing or not a positive whole number",
            hint="the file is damaged or not a language model's; fetch it again",
            where=where,
        )
    return value
