"""How a checkpoint's weights are stored, as its `quantization_config` says. Pure.

The keys are those of the tools that write it: AutoAWQ and AutoGPTQ (`bits`, `group_size`), compressed-tensors
(`config_groups`), fp8 (`weight_block_size`), ModelOpt (`quant_algo`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

_BYTE_BITS: Final = 8
_FP4_BITS: Final = 4
_NVFP4_GROUP: Final = 16
_MODELOPT: Final = {"FP8": (8, None), "NVFP4": (_FP4_BITS, _NVFP4_GROUP)}
"""ModelOpt's `quant_algo` to bits and group size."""


class Quantization(Struct, frozen=True, kw_only=True):
    """A quantization: `method` as vLLM knows it (awq, gptq, compressed-tensors, fp8, modelopt, ...).

    `bits` and `group_size` are those of a weight, None where the checkpoint does not say or has no groups (a scale
    for each channel or tensor). `floating`: the weights are small floats (fp8, NVFP4), not integers.
    `activation_bits`: activations are quantized too; None when the weights alone are.
    """

    method: str
    bits: int | None = None
    group_size: int | None = None
    floating: bool = False
    activation_bits: int | None = None

    @property
    def label(self) -> str:
        """`awq 4-bit g128`, `fp8`, `compressed-tensors fp8`, `compressed-tensors nvfp4`."""
        if self.method == "fp8":
            return "fp8"
        if self.bits is None:
            return self.method
        if self.is_nvfp4:
            return f"{self.method} nvfp4"
        if self.floating:
            return f"{self.method} fp{self.bits}"
        groups = f" g{self.group_size}" if self.group_size else ""
        return f"{self.method} {self.bits}-bit{groups}"

    @property
    def is_nvfp4(self) -> bool:
        """Four-bit floats in groups of 16, as NVIDIA writes them."""
        return self.floating and self.bits == _FP4_BITS and self.group_size == _NVFP4_GROUP

    @property
    def is_fp8(self) -> bool:
        """Weights of one byte, as floats."""
        return self.floating and self.bits == _BYTE_BITS


def quantization_of(config: Mapping[str, object]) -> Quantization | None:
    """What a `quantization_config` declares; None when the weights are as trained."""
    method = config.get("quant_method")
    if not isinstance(method, str):
        return None
    if method == "compressed-tensors":
        return _compressed_tensors(config)
    if method == "fp8":
        return Quantization(
            method=method,
            bits=_BYTE_BITS,
            group_size=_block(config),
            floating=True,
            activation_bits=_BYTE_BITS,
        )
    if method == "modelopt":
        algorithm = str(config.get("quant_algo", "")).upper()
        bits, group_size = _MODELOPT.get(algorithm, (None, None))
        return Quantization(
            method=method, bits=bits, group_size=group_size, floating=bits is not None, activation_bits=bits
        )
    bits = _whole(config.get("bits")) or _whole(config.get("w_bit"))
    group_size = _whole(config.get("group_size")) or _whole(config.get("q_group_size"))
    return Quantization(method=method, bits=bits, group_size=group_size)


def declares_fp8_kv_cache(config: Mapping[str, object]) -> bool:
    """Whether the checkpoint itself asks for an fp8 KV cache, which vLLM's `--kv-cache-dtype auto` obeys."""
    scheme = mapping(config.get("kv_cache_scheme")) or {}
    if scheme.get("num_bits") == _BYTE_BITS and scheme.get("type") == "float":
        return True
    return str(config.get("kv_cache_quant_algo", "")).upper() == "FP8"


def mapping(value: object) -> Mapping[str, object] | None:
    """`value` when it is a JSON object, else None."""
    return value if isinstance(value, Mapping) else None


def _compressed_tensors(config: Mapping[str, object]) -> Quantization:
    """The first group's scheme; where groups differ, the tensors themselves say what they take."""
    groups = mapping(config.get("config_groups")) or {}
    first = next((group for value in groups.values() if (group := mapping(value))), {})
    weights = mapping(first.get("weights")) or {}
    activations = mapping(first.get("input_activations")) or {}
    return Quantization(
        method="compressed-tensors",
        bits=_whole(weights.get("num_bits")),
        group_size=_whole(weights.get("group_size")),
        floating=weights.get("type") == "float",
        activation_bits=_whole(activations.get("num_bits")),
    )


def _block(config: Mapping[str, object]) -> int | None:
    match config.get("weight_block_size"):
        case [int(rows), *_]:
            return _whole(rows)
        case _:
            return None


def _whole(value: object) -> int | None:
    """A positive whole number, else None: -1 stands for a scale per channel."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
