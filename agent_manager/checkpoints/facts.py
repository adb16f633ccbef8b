"""What a checkpoint's `config.json` and safetensors headers say: its KV layout, and its bytes once loaded.

Pure: nothing here touches the disk. An architecture whose memory this program cannot account for is
`Unsupported`: said so, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from agent_manager.errors import CheckpointUnusable

if TYPE_CHECKING:
    from collections.abc import Iterable

DENSE: Final = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
"""Full attention in every layer, one KV head size."""
HYBRID: Final = frozenset({"Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"})
"""Gated DeltaNet layers beside full attention: only the latter hold KV for each token."""

HEADER_LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 100_000_000
"""The limit of the safetensors library itself (safetensors/src/tensor.rs, MAX_HEADER_SIZE)."""

_LINEAR_STATE_ELEMENT_BYTES: Final = 4
_CONV_ELEMENT_BYTES: Final = 2
_DEFAULT_FULL_ATTENTION_INTERVAL: Final = 4
_ROTARY_ELEMENT_BYTES: Final = 2
_MULTIMODAL_ROTARY_FACTOR: Final = 4
_NOT_LOADED_PREFIXES: Final = ("visual.", "model.visual.", "mtp.", "model.mtp.")


class Origin(StrEnum):
    """Where facts come from."""

    DISK = "disk"
    KNOWN = "known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The dimensions of a language model that decide how much memory its KV cache takes.

    `attention_layers` of the `layers` hold KV for each token; the others (of a hybrid) keep
    `linear_state_bytes` for each sequence. `fp8_kv_cache`: the checkpoint itself declares an fp8 KV cache,
    which `auto` obeys. `vision`: a vision tower is in the files; the figures are for the language model alone.
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
    quantization: str | None = None
    fp8_kv_cache: bool = False
    linear_state_bytes: int = 0
    vision: bool = False

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupported:
    """An architecture whose memory cannot be accounted for yet, and why."""

    architecture: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A checkpoint in numbers. `weights_bytes`: resident once loaded; `disk_bytes`: its files."""

    shape: Shape | Unsupported
    weights_bytes: int
    disk_bytes: int
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One entry of a safetensors header."""

    name: str
    size_bytes: int


def facts_from(
    config: Mapping[str, object], tensors: Iterable[Tensor], *, disk_bytes: int, origin: Origin, where: str
) -> Facts:
    """Put a checkpoint's facts together. `where` names the config in errors. Raises CheckpointUnusable."""
    shape = parse_config(config, where=where)
    if isinstance(shape, Unsupported):
        weights_bytes = resident_bytes(tensors, tied=False)
    else:
        weights_bytes = resident_bytes(tensors, tied=shape.tie_word_embeddings) + rotary_cache_bytes(
            config, shape
        )
    return Facts(shape=shape, weights_bytes=weights_bytes, disk_bytes=disk_bytes, origin=origin)


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
    hybrid = architecture in HYBRID
    return Shape(
        architecture=architecture,
        layers=layers,
        attention_layers=_full_attention_layers(text, layers, where) if hybrid else layers,
        kv_heads=_count(text, "num_key_value_heads", where, default=heads),
        head_dim=_count(text, "head_dim", where, default=None if hybrid else hidden_size // heads),
        hidden_size=hidden_size,
        vocab_size=_count(text, "vocab_size", where),
        max_position_embeddings=_count(text, "max_position_embeddings", where),
        tie_word_embeddings=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        quantization=_quantization(config, text),
        fp8_kv_cache=_declares_fp8_kv_cache(config, text),
        linear_state_bytes=_linear_state_bytes(text, where) if hybrid else 0,
        vision=_mapping(config.get("vision_config")) is not None,
    )


def header_length(prefix: bytes, *, file_bytes: int, where: str) -> int:
    """The length of the JSON header that the first eight bytes of a safetensors file announce.

    Raises CheckpointUnusable, naming `where`, when it cannot be right for a file of `file_bytes`.
    """
    length = int.from_bytes(prefix, "little")
    if len(prefix) < HEADER_LENGTH_BYTES or not 0 < length <= min(
        file_bytes - HEADER_LENGTH_BYTES, MAX_HEADER_BYTES
    ):
        raise _corrupt(where, "its header is not that of a safetensors file")
    return length


def parse_header(header: bytes, *, file_bytes: int, where: str) -> tuple[Tensor, ...]:
    """The tensors that a safetensors header lists; `header` is the JSON behind the first eight bytes.

    Raises CheckpointUnusable, naming `where`, when it is corrupt or the file is shorter than its tensors.
    """
    try:
        entries = json.loads(header)
    except ValueError as error:
        raise _corrupt(where, "its header is not JSON") from error
    if not isinstance(entries, dict):
        raise _corrupt(where, "its header is not a table of tensors")
    tensors = []
    end_bytes = 0
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        first, last = _offsets(entry, where)
        end_bytes = max(end_bytes, last)
        tensors.append(Tensor(name=name, size_bytes=last - first))
    expected_bytes = HEADER_LENGTH_BYTES + len(header) + end_bytes
    if file_bytes != expected_bytes:
        raise _corrupt(where, f"it has {file_bytes} bytes, its header says {expected_bytes}")
    return tuple(tensors)


def resident_bytes(tensors: Iterable[Tensor], *, tied: bool) -> int:
    """What these take on the card: the language model's tensors, and 1 % for the allocator's whole blocks.

    Not loaded: vision tower, MTP head, `g_idx`, and the output head of a model whose embeddings are tied.
    """
    total_bytes = sum(tensor.size_bytes for tensor in tensors if _is_loaded(tensor.name, tied=tied))
    return total_bytes + total_bytes // 100


def rotary_cache_bytes(config: Mapping[str, object], shape: Shape) -> int:
    """The rotary table: positions x rotary size x 2 bytes, four times that for multimodal rope."""
    text = _text_config(config)
    rope = _mapping(text.get("rope_parameters")) or _mapping(text.get("rope_scaling")) or {}
    share = rope.get("partial_rotary_factor", text.get("partial_rotary_factor"))
    rotary_dim = int(shape.head_dim * share) if isinstance(share, int | float) else shape.head_dim
    factor = _MULTIMODAL_ROTARY_FACTOR if "mrope_section" in rope else 1
    return shape.max_position_embeddings * rotary_dim * _ROTARY_ELEMENT_BYTES * factor


def _is_loaded(name: str, *, tied: bool) -> bool:
    if name.startswith(_NOT_LOADED_PREFIXES) or name.endswith(".g_idx"):
        return False
    return not (tied and name.startswith("lm_head."))


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
    return _mapping(config.get("text_config")) or config


def _unsupported_reason(architecture: str, text: Mapping[str, object]) -> str | None:
    if architecture not in DENSE | HYBRID:
        known = ", ".join(sorted(DENSE | HYBRID))
        return f"the memory of {architecture} cannot be planned yet; those that can: {known}"
    if any(text.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        return f"the memory of mixture-of-experts models such as this {architecture} cannot be planned yet"
    if text.get("sliding_window") is not None and text.get("use_sliding_window", True):
        return f"the KV cache of {architecture} with a sliding window cannot be planned yet"
    if architecture in DENSE and set(_layer_types(text)) - {"full_attention"}:
        return f"the KV cache of {architecture} with more than one kind of attention cannot be planned yet"
    return None


def _layer_types(text: Mapping[str, object]) -> list[object]:
    types = text.get("layer_types")
    return types if isinstance(types, list) else []


def _full_attention_layers(text: Mapping[str, object], layers: int, where: str) -> int:
    types = _layer_types(text)
    if types:
        return types.count("full_attention")
    return layers // _count(text, "full_attention_interval", where, default=_DEFAULT_FULL_ATTENTION_INTERVAL)


def _linear_state_bytes(text: Mapping[str, object], where: str) -> int:
    """What one Gated DeltaNet layer keeps for a sequence: recurrent state and its convolution's tail."""
    value_heads = _count(text, "linear_num_value_heads", where)
    key_heads = _count(text, "linear_num_key_heads", where)
    key_dim = _count(text, "linear_key_head_dim", where)
    value_dim = _count(text, "linear_value_head_dim", where)
    tail = _count(text, "linear_conv_kernel_dim", where) - 1
    recurrent_bytes = value_heads * value_dim * key_dim * _LINEAR_STATE_ELEMENT_BYTES
    channels = 2 * key_heads * key_dim + value_heads * value_dim
    return recurrent_bytes + channels * tail * _CONV_ELEMENT_BYTES


def _quantization(config: Mapping[str, object], text: Mapping[str, object]) -> str | None:
    method = _quantization_config(config, text).get("quant_method")
    return method if isinstance(method, str) else None


def _declares_fp8_kv_cache(config: Mapping[str, object], text: Mapping[str, object]) -> bool:
    scheme = _mapping(_quantization_config(config, text).get("kv_cache_scheme")) or {}
    return scheme.get("num_bits") == 8 and scheme.get("type") == "float"  # noqa: PLR2004 - eight bits are a byte


def _quantization_config(config: Mapping[str, object], text: Mapping[str, object]) -> Mapping[str, object]:
    return _mapping(config.get("quantization_config")) or _mapping(text.get("quantization_config")) or {}


def _offsets(entry: object, where: str) -> tuple[int, int]:
    match entry:
        case {"data_offsets": [int(first), int(last)]} if 0 <= first <= last:
            return first, last
        case _:
            raise _corrupt(where, "its header has a tensor without valid offsets")


def _mapping(value: object) -> Mapping[str, object] | None:
    return value if isinstance(value, Mapping) else None


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


def _corrupt(where: str, reason: str) -> CheckpointUnusable:
    return CheckpointUnusable(
        f"{where}: {reason}",
        hint="the file is damaged or incomplete; delete it and fetch it again",
        where=where,
    )
