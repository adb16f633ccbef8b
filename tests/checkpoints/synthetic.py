"""The headers of published checkpoints, tensor by tensor, as the tools that made them name and store them.

Dimensions are those of the public configs; those of Qwen3.5 are the defaults of transformers' Qwen3_5TextConfig.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_manager.checkpoints.headers import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP = 128


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A Qwen model with full attention. `stored` is how its linear layers are: see `linear`."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    stored: str
    head_dim: int = 128
    tied: bool = False
    bias: bool = False
    experts: int = 0


def linear(name: str, inputs: int, outputs: int, stored: str) -> Iterator[Tensor]:
    """A linear layer without bias, stored as AutoAWQ, AutoGPTQ, compressed-tensors or fp8 in blocks do, or plain."""
    groups, weights = inputs // GROUP, inputs * outputs
    match stored:
        case "awq" | "gptq":
            yield Tensor(name=f"{name}.qweight", size_bytes=weights // 2, dtype="I32")
            yield Tensor(name=f"{name}.qzeros", size_bytes=groups * outputs // 2, dtype="I32")
            yield Tensor(name=f"{name}.scales", size_bytes=groups * outputs * 2, dtype="F16")
            if stored == "gptq":
                yield Tensor(name=f"{name}.g_idx", size_bytes=inputs * 4, dtype="I32")
        case "w4a16":
            yield Tensor(name=f"{name}.weight_packed", size_bytes=weights // 2, dtype="I32")
            yield Tensor(name=f"{name}.weight_scale", size_bytes=groups * outputs * 2, dtype="BF16")
            yield Tensor(name=f"{name}.weight_shape", size_bytes=16, dtype="I64")
        case "fp8":
            yield Tensor(name=f"{name}.weight", size_bytes=weights, dtype="F8_E4M3")
            blocks = groups * -(-outputs // GROUP)
            yield Tensor(name=f"{name}.weight_scale_inv", size_bytes=blocks * 4, dtype="F32")
        case _:
            yield plain(f"{name}.weight", weights)


def plain(name: str, elements: int) -> Tensor:
    """A 16-bit tensor."""
    return Tensor(name=name, size_bytes=2 * elements, dtype="BF16")


def dense(model: Dense) -> Iterator[Tensor]:
    """Every tensor of a Qwen2.5 or Qwen3 checkpoint, a mixture of experts too."""
    yield plain("model.embed_tokens.weight", model.vocab * model.hidden)
    query, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    for number in range(model.layers):
        layer = f"model.layers.{number}"
        for name, outputs in (("q", query), ("k", kv), ("v", kv)):
            yield from linear(f"{layer}.self_attn.{name}_proj", model.hidden, outputs, model.stored)
            if model.bias:
                yield plain(f"{layer}.self_attn.{name}_proj.bias", outputs)
        yield from linear(f"{layer}.self_attn.o_proj", query, model.hidden, model.stored)
        yield plain(f"{layer}.input_layernorm.weight", model.hidden)
        yield plain(f"{layer}.post_attention_layernorm.weight", model.hidden)
        yield from experts(f"{layer}.mlp", model) if model.experts else feed_forward(f"{layer}.mlp", model)
    yield plain("model.norm.weight", model.hidden)
    if not model.tied:
        yield plain("lm_head.weight", model.vocab * model.hidden)


def feed_forward(name: str, model: Dense) -> Iterator[Tensor]:
    """Gate, up and down."""
    for part in ("gate", "up"):
        yield from linear(f"{name}.{part}_proj", model.hidden, model.mlp, model.stored)
    yield from linear(f"{name}.down_proj", model.mlp, model.hidden, model.stored)


def experts(name: str, model: Dense) -> Iterator[Tensor]:
    """A router and its experts."""
    yield plain(f"{name}.gate.weight", model.hidden * model.experts)
    for number in range(model.experts):
        yield from feed_forward(f"{name}.experts.{number}", model)


def qwen35_9b(stored: str) -> Iterator[Tensor]:
    """Qwen3.5-9B with its vision tower and MTP head; a quantized one keeps its linear attention in 16-bit."""
    hidden, mlp, layers, vocab = 4096, 12_288, 32, 248_320
    model = Dense(
        hidden=hidden, mlp=mlp, layers=layers, heads=16, kv_heads=4, vocab=vocab, stored=stored, head_dim=256
    )
    text = "model.language_model"
    yield plain(f"{text}.embed_tokens.weight", vocab * hidden)
    for number in range(layers):
        layer = f"{text}.layers.{number}"
        if number % 4 == 3:
            yield from full_attention(f"{layer}.self_attn", hidden, stored)
        else:
            yield from linear_attention(f"{layer}.linear_attn", hidden)
        yield from feed_forward(f"{layer}.mlp", model)
        yield plain(f"{layer}.input_layernorm.weight", hidden)
        yield plain(f"{layer}.post_attention_layernorm.weight", hidden)
    yield plain(f"{text}.norm.weight", hidden)
    yield plain("lm_head.weight", vocab * hidden)
    yield plain("model.visual.blocks.0.mlp.linear_fc1.weight", 450_000_000)
    yield from feed_forward("mtp.layers.0.mlp", model)
    yield plain("mtp.fc.weight", 2 * hidden * hidden)


def full_attention(name: str, hidden: int, stored: str) -> Iterator[Tensor]:
    """Sixteen heads of 256 whose queries carry a gate, four for keys and values."""
    yield from linear(f"{name}.q_proj", hidden, 8192, stored)
    yield from linear(f"{name}.k_proj", hidden, 1024, stored)
    yield from linear(f"{name}.v_proj", hidden, 1024, stored)
    yield from linear(f"{name}.o_proj", 4096, hidden, stored)


def linear_attention(name: str, hidden: int) -> Iterator[Tensor]:
    """Gated DeltaNet: 16 key heads and 32 value heads of 128."""
    yield plain(f"{name}.in_proj_qkv.weight", hidden * 8192)
    yield plain(f"{name}.in_proj_z.weight", hidden * 4096)
    yield plain(f"{name}.in_proj_a.weight", hidden * 32)
    yield plain(f"{name}.in_proj_b.weight", hidden * 32)
    yield plain(f"{name}.conv1d.weight", 8192 * 4)
    yield plain(f"{name}.out_proj.weight", 4096 * hidden)
    yield Tensor(name=f"{name}.A_log", size_bytes=32 * 4, dtype="F32")
    yield plain(f"{name}.dt_bias", 32)
