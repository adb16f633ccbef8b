"""Facts of well-known checkpoints, so that planning works before anything was downloaded.

Dimensions are those of the repositories' public `config.json`. `weights_bytes` is what vLLM's log says it
loaded ("Model loading took ... GiB") or, where no log is published, the tensors' bytes plus 1 %. `disk_bytes`
is the size of the weight files as the repository shows it. Facts read from the disk come before these.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from agent_manager.checkpoints.facts import Facts, Origin, Shape
from agent_manager.checkpoints.quantization import Quantization

if TYPE_CHECKING:
    from collections.abc import Mapping

_GIB: Final = 1 << 30
_MB: Final = 10**6


def _known(shape: Shape, *, weights_gib: float, disk_mb: int, idle_bytes: int = 0) -> Facts:
    return Facts(
        shape=shape,
        weights_bytes=round(weights_gib * _GIB),
        disk_bytes=disk_mb * _MB,
        origin=Origin.KNOWN,
        idle_bytes=idle_bytes,
    )


def _bf16(shape: Shape) -> Shape:
    return replace(shape, quantization=None)


_AWQ: Final = Quantization(method="awq", bits=4, group_size=128)

_QWEN25_05B: Final = Shape(
    architecture="Qwen2ForCausalLM",
    layers=24,
    attention_layers=24,
    kv_heads=2,
    head_dim=64,
    hidden_size=896,
    vocab_size=151_936,
    max_position_embeddings=32_768,
    tie_word_embeddings=True,
    quantization=_AWQ,
)
_QWEN25_15B: Final = replace(_QWEN25_05B, layers=28, attention_layers=28, head_dim=128, hidden_size=1536)
_QWEN25_7B: Final = Shape(
    architecture="Qwen2ForCausalLM",
    layers=28,
    attention_layers=28,
    kv_heads=4,
    head_dim=128,
    hidden_size=3584,
    vocab_size=152_064,
    max_position_embeddings=32_768,
    tie_word_embeddings=False,
    quantization=_AWQ,
)
_QWEN25_14B: Final = replace(_QWEN25_7B, layers=48, attention_layers=48, kv_heads=8, hidden_size=5120)
_QWEN25_32B: Final = replace(_QWEN25_14B, layers=64, attention_layers=64)
_QWEN3_8B: Final = Shape(
    architecture="Qwen3ForCausalLM",
    layers=36,
    attention_layers=36,
    kv_heads=8,
    head_dim=128,
    hidden_size=4096,
    vocab_size=151_936,
    max_position_embeddings=40_960,
    tie_word_embeddings=False,
    quantization=_AWQ,
)
_QWEN3_17B: Final = replace(
    _QWEN3_8B, layers=28, attention_layers=28, hidden_size=2048, tie_word_embeddings=True
)
_QWEN3_4B: Final = replace(_QWEN3_8B, hidden_size=2560, tie_word_embeddings=True)
_QWEN3_14B: Final = replace(_QWEN3_8B, layers=40, attention_layers=40, hidden_size=5120)
_QWEN3_30B_A3B: Final = replace(
    _QWEN3_8B,
    architecture="Qwen3MoeForCausalLM",
    layers=48,
    attention_layers=48,
    kv_heads=4,
    hidden_size=2048,
    quantization=Quantization(method="gptq", bits=4, group_size=128),
    experts=128,
    active_experts=8,
)
_QWEN3_30B_A3B_IDLE_BYTES: Final = round(48 * 120 * 3 * 2048 * 768 * (4 + (16 + 4) / 128) / 8)
"""Of each layer's 128 experts 120: three matrices of 2048 x 768, 4-bit, with a scale and a zero for 128 weights."""
_QWEN35_9B: Final = Shape(
    architecture="Qwen3_5ForConditionalGeneration",
    layers=32,
    attention_layers=8,
    kv_heads=4,
    head_dim=256,
    hidden_size=4096,
    vocab_size=248_320,
    max_position_embeddings=262_144,
    tie_word_embeddings=False,
    quantization=Quantization(method="compressed-tensors", bits=4, group_size=128),
    linear_state_bytes=32 * 128 * 128 * 4 + (2 * 16 * 128 + 32 * 128) * 3 * 2,
    vision=True,
)

KNOWN: Final[Mapping[str, Facts]] = MappingProxyType(
    {
        "Qwen/Qwen2.5-0.5B-Instruct": _known(_bf16(_QWEN25_05B), weights_gib=0.93, disk_mb=988),
        "Qwen/Qwen2.5-0.5B-Instruct-AWQ": _known(_QWEN25_05B, weights_gib=0.43, disk_mb=460),
        "Qwen/Qwen2.5-Coder-1.5B-Instruct": _known(_bf16(_QWEN25_15B), weights_gib=2.91, disk_mb=3087),
        "Qwen/Qwen2.5-7B-Instruct-AWQ": _known(_QWEN25_7B, weights_gib=5.23, disk_mb=5570),
        "Qwen/Qwen2.5-Coder-7B-Instruct-AWQ": _known(_QWEN25_7B, weights_gib=5.23, disk_mb=5570),
        "Qwen/Qwen2.5-14B-Instruct-AWQ": _known(_QWEN25_14B, weights_gib=9.38, disk_mb=9980),
        "Qwen/Qwen2.5-Coder-14B-Instruct-AWQ": _known(_QWEN25_14B, weights_gib=9.38, disk_mb=9980),
        "Qwen/Qwen2.5-32B-Instruct-AWQ": _known(_QWEN25_32B, weights_gib=18.14, disk_mb=19_330),
        "Qwen/Qwen2.5-Coder-32B-Instruct-AWQ": _known(_QWEN25_32B, weights_gib=18.14, disk_mb=19_330),
        "Qwen/Qwen3-1.7B": _known(_bf16(_QWEN3_17B), weights_gib=3.25, disk_mb=4063),
        "Qwen/Qwen3-4B-AWQ": _known(_QWEN3_4B, weights_gib=2.50, disk_mb=2670),
        "Qwen/Qwen3-8B-AWQ": _known(_QWEN3_8B, weights_gib=5.71, disk_mb=6100),
        "Qwen/Qwen3-14B-AWQ": _known(_QWEN3_14B, weights_gib=9.44, disk_mb=9980),
        "Qwen/Qwen3-30B-A3B-GPTQ-Int4": _known(
            _QWEN3_30B_A3B, weights_gib=15.77, disk_mb=16_900, idle_bytes=_QWEN3_30B_A3B_IDLE_BYTES
        ),
        "RedHatAI/Qwen3.5-9B-quantized.w4a16": _known(_QWEN35_9B, weights_gib=9.48, disk_mb=11_440),
    }
)
"""Keyed by Hub repository."""


def known_facts(repo: str) -> Facts | None:
    """The facts of a well-known repository, or None."""
    return KNOWN.get(repo)
