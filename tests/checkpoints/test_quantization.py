from __future__ import annotations

from typing import Any

import pytest

from agent_manager.checkpoints.quantization import (
    Quantization,
    declares_fp8_kv_cache,
    quantization_of,
)


def compressed(weights: dict[str, Any], activations: dict[str, Any] | None = None) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("config", "expected", "label"),
    [
        (
            {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
            Quantization(method="awq", bits=4, group_size=128),
            "awq 4-bit g128",
        ),
        (
            {"quant_method": "awq", "w_bit": 4, "q_group_size": 64},
            Quantization(method="awq", bits=4, group_size=64),
            "awq 4-bit g64",
        ),
        (
            {"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": False},
            Quantization(method="gptq", bits=8),
            "gptq 8-bit",
        ),
        (
            {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
            Quantization(method="fp8", bits=8, group_size=128, floating=True, activation_bits=8),
            "fp8",
        ),
        (
            compressed({"num_bits": 4, "type": "int", "group_size": 128, "strategy": "group"}),
            Quantization(method="compressed-tensors", bits=4, group_size=128),
            "compressed-tensors 4-bit g128",
        ),
        (
            compressed(
                {"num_bits": 8, "type": "float", "group_size": None}, {"num_bits": 8, "type": "float"}
            ),
            Quantization(method="compressed-tensors", bits=8, floating=True, activation_bits=8),
            "compressed-tensors fp8",
        ),
        (
            compressed({"num_bits": 4, "type": "float", "group_size": 16}, {"num_bits": 4, "type": "float"}),
            Quantization(
                method="compressed-tensors", bits=4, group_size=16, floating=True, activation_bits=4
            ),
            "compressed-tensors nvfp4",
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            Quantization(method="modelopt", bits=4, group_size=16, floating=True, activation_bits=4),
            "modelopt nvfp4",
        ),
        ({"quant_method": "bitsandbytes"}, Quantization(method="bitsandbytes"), "bitsandbytes"),
        (
            {"quant_method": "compressed-tensors"},
            Quantization(method="compressed-tensors"),
            "compressed-tensors",
        ),
    ],
)
def test_what_a_config_declares(config: dict[str, object], expected: Quantization, label: str) -> None:
    found = quantization_of(config)
    assert found == expected
    assert found is not None
    assert found.label == label


@pytest.mark.parametrize("config", [{}, {"quant_method": None}, {"bits": 4}])
def test_weights_as_trained(config: dict[str, object]) -> None:
    assert quantization_of(config) is None


@pytest.mark.parametrize(
    ("config", "declared"),
    [
        ({"kv_cache_scheme": {"num_bits": 8, "type": "float"}}, True),
        ({"kv_cache_scheme": {"num_bits": 8, "type": "int"}}, False),
        ({"kv_cache_scheme": None}, False),
        ({"kv_cache_quant_algo": "FP8"}, True),
        ({}, False),
    ],
)
def test_an_fp8_kv_cache(config: dict[str, object], declared: bool) -> None:  # noqa: FBT001 - a column of the table
    assert declares_fp8_kv_cache(config) is declared
