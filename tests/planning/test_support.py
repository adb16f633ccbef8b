from __future__ import annotations

import pytest
from msgspec.structs import replace

from agent_manager.checkpoints.facts import Facts, Origin, Shape, Unsupported
from agent_manager.checkpoints.known import KNOWN
from agent_manager.checkpoints.quantization import Quantization
from agent_manager.planning.support import Capability, caveat, unsupported

AWQ = KNOWN["Qwen/Qwen3-14B-AWQ"]
FP8 = Quantization(method="fp8", bits=8, group_size=128, floating=True, activation_bits=8)
NVFP4 = Quantization(method="modelopt", bits=4, group_size=16, floating=True, activation_bits=4)
MODELOPT_FP8 = Quantization(method="modelopt", bits=8, floating=True, activation_bits=8)


def stored(quantization: Quantization | None, *, fp8_kv_cache: bool = False) -> Facts:
    assert isinstance(AWQ.shape, Shape)
    return replace(AWQ, shape=replace(AWQ.shape, quantization=quantization, fp8_kv_cache=fp8_kv_cache))


@pytest.mark.parametrize("quantization", [None, FP8, NVFP4, Quantization(method="gptq", bits=4)])
@pytest.mark.parametrize("capability", [(7, 5), (8, 6), (8, 9), (12, 0)])
def test_runs(quantization: Quantization | None, capability: Capability) -> None:
    assert unsupported(stored(quantization), capability, "580.65.06") is None


@pytest.mark.parametrize(
    ("facts", "capability", "driver", "dtype", "words"),
    [
        (AWQ, (8, 9), "570.133.07", "auto", "driver is 570.133.07, the engine's CUDA 13 needs 580"),
        (AWQ, (7, 0), "580.1", "auto", "compute capability 7.0, the engine needs 7.5"),
        (stored(MODELOPT_FP8), (7, 5), None, "auto", "modelopt fp8 weights need compute capability 8.0"),
        (AWQ, (7, 5), None, "fp8", "fp8 KV cache needs compute capability 8.0"),
        (stored(None, fp8_kv_cache=True), (7, 5), None, "auto", "fp8 KV cache needs"),
        (
            stored(Quantization(method="exl2")),
            None,
            None,
            "auto",
            "does not know the quantization method 'exl2'",
        ),
    ],
)
def test_does_not_run(
    facts: Facts, capability: Capability | None, driver: str | None, dtype: str, words: str
) -> None:
    found = unsupported(facts, capability, driver, kv_cache_dtype=dtype)
    assert found is not None
    assert words in found.message
    assert found.hint


def test_what_is_not_known_is_not_held_against_it() -> None:
    assert unsupported(stored(MODELOPT_FP8), None, None, kv_cache_dtype="fp8") is None
    assert unsupported(AWQ, (8, 9), "a driver without a number") is None


def test_an_older_cuda_takes_an_older_driver() -> None:
    assert unsupported(AWQ, (8, 9), "570.133.07", cuda=12) is None


def test_an_architecture_nobody_planned_for_is_not_judged() -> None:
    shape = Unsupported(architecture="NewForCausalLM", reason="unknown")
    facts = Facts(shape=shape, weights_bytes=1, disk_bytes=1, origin=Origin.DISK)
    assert unsupported(facts, (7, 5), "580.1", kv_cache_dtype="fp8") is None
    assert caveat(facts, (7, 5)) is None


@pytest.mark.parametrize(
    ("quantization", "capability", "words"),
    [
        (FP8, (8, 6), "native from 8.9"),
        (NVFP4, (8, 9), "native from 10.0"),
        (FP8, (8, 9), None),
        (NVFP4, (12, 0), None),
        (None, (7, 5), None),
        (FP8, None, None),
    ],
)
def test_weights_that_are_unpacked(
    quantization: Quantization | None, capability: Capability | None, words: str | None
) -> None:
    found = caveat(stored(quantization), capability)
    assert (words is None and found is None) or (words is not None and words in (found or ""))
