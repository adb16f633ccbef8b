"""Whether a GPU and its driver can run a checkpoint at all. Pure.

The figures are vLLM 0.32's own (`get_min_capability` of each quantization, the attention backends for the KV cache)
and NVIDIA's (CUDA 13 needs driver R580 and has no code for GPUs before Turing).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct

from agent_manager.checkpoints.facts import Shape

if TYPE_CHECKING:
    from agent_manager.checkpoints.facts import Facts
    from agent_manager.checkpoints.quantization import Quantization

Capability: TypeAlias = tuple[int, int]
"""A GPU's compute capability: (8, 9) for Ada, (12, 0) for the RTX 50 cards."""

IMAGE_CUDA: Final = 13
"""The CUDA release that the vLLM 0.32 image is built with."""
LEAST_DRIVER: Final = {12: 525, 13: 580}
"""CUDA's major release to the oldest driver branch that runs it; GeForce has no forward compatibility."""
LEAST_CAPABILITY: Final[Capability] = (7, 5)
"""The oldest GPUs that CUDA 13 compiles for, and that vLLM has AWQ, GPTQ, fp8 and NVFP4 kernels for (Marlin)."""
FP8_KV_CAPABILITY: Final[Capability] = (8, 0)
"""The oldest that FlashInfer serves; vLLM's other backends for an fp8 KV cache need 8.9."""
NATIVE_FP8: Final[Capability] = (8, 9)
NATIVE_FP4: Final[Capability] = (10, 0)
"""Before these, the weights are unpacked to 16-bit as they are used."""

_METHODS: Final = {
    "auto_awq": LEAST_CAPABILITY,
    "auto_gptq": LEAST_CAPABILITY,
    "auto-round": LEAST_CAPABILITY,
    "awq": LEAST_CAPABILITY,
    "awq_marlin": LEAST_CAPABILITY,
    "compressed-tensors": LEAST_CAPABILITY,
    "experts_int8": (8, 0),
    "fbgemm_fp8": (8, 0),
    "fp8": LEAST_CAPABILITY,
    "fp_quant": (10, 0),
    "gptq": LEAST_CAPABILITY,
    "gptq_marlin": LEAST_CAPABILITY,
    "gpt_oss_mxfp4": (8, 0),
    "inc": LEAST_CAPABILITY,
    "modelopt": (8, 0),
    "modelopt_fp4": LEAST_CAPABILITY,
    "moe_wna16": LEAST_CAPABILITY,
    "mxfp4": (8, 0),
    "quark": LEAST_CAPABILITY,
    "torchao": LEAST_CAPABILITY,
}


class Obstacle(Struct, frozen=True, kw_only=True):
    """Why it cannot run here, in one line, and what to do instead."""

    message: str
    hint: str


def unsupported(
    facts: Facts,
    capability: Capability | None,
    driver: str | None,
    *,
    kv_cache_dtype: str = "auto",
    cuda: int = IMAGE_CUDA,
) -> Obstacle | None:
    """The first thing that keeps this checkpoint from running on a GPU; None when nothing known does.

    `capability` and `driver` (`580.65.06`) None mean that they are not known, and are not held against it. `cuda`
    is the major release that the engine is built with. An unplanned architecture is the planner's to refuse.
    """
    found = _old_driver(driver, cuda)
    shape = facts.shape
    if found is not None or not isinstance(shape, Shape):
        return found
    if shape.quantization is not None and shape.quantization.method not in _METHODS:
        return Obstacle(
            message=f"vLLM does not know the quantization method '{shape.quantization.method}'",
            hint="choose a checkpoint in AWQ, GPTQ, compressed-tensors or FP8",
        )
    if capability is None:
        return None
    return _old_gpu(shape.quantization, capability) or _old_for_fp8_kv(shape, capability, kv_cache_dtype)


def caveat(facts: Facts, capability: Capability | None) -> str | None:
    """What runs, but not as the checkpoint is made for: fp8 and NVFP4 weights on a GPU without such arithmetic."""
    quantization = facts.shape.quantization if isinstance(facts.shape, Shape) else None
    if quantization is None or capability is None:
        return None
    if quantization.is_nvfp4 and capability < NATIVE_FP4:
        return _unpacked("NVFP4", capability, NATIVE_FP4)
    if quantization.is_fp8 and capability < NATIVE_FP8:
        return _unpacked("fp8", capability, NATIVE_FP8)
    return None


def _unpacked(kind: str, capability: Capability, native: Capability) -> str:
    return (
        f"{kind} weights are unpacked to 16-bit on this GPU (compute capability {_written(capability)}, "
        f"native from {_written(native)}): as small, not as fast"
    )


def _old_driver(driver: str | None, cuda: int) -> Obstacle | None:
    least = LEAST_DRIVER.get(cuda)
    branch = (driver or "").partition(".")[0]
    if least is None or not branch.isdigit() or int(branch) >= least:
        return None
    return Obstacle(
        message=f"the NVIDIA driver is {driver}, the engine's CUDA {cuda} needs {least} or newer",
        hint=f"install driver {least} or newer",
    )


def _old_gpu(quantization: Quantization | None, capability: Capability) -> Obstacle | None:
    if capability < LEAST_CAPABILITY:
        return Obstacle(
            message=f"this GPU has compute capability {_written(capability)}, the engine needs "
            f"{_written(LEAST_CAPABILITY)} or newer",
            hint="use a GPU of the RTX 20 series or newer",
        )
    if quantization is None:
        return None
    least = LEAST_CAPABILITY if quantization.is_nvfp4 else _METHODS[quantization.method]
    if capability >= least:
        return None
    return Obstacle(
        message=f"{quantization.label} weights need compute capability {_written(least)}, "
        f"this GPU has {_written(capability)}",
        hint="choose a checkpoint in AWQ or GPTQ",
    )


def _old_for_fp8_kv(shape: Shape, capability: Capability, kv_cache_dtype: str) -> Obstacle | None:
    fp8 = kv_cache_dtype.startswith("fp8") or (kv_cache_dtype == "auto" and shape.fp8_kv_cache)
    if not fp8 or capability >= FP8_KV_CAPABILITY:
        return None
    return Obstacle(
        message=f"an fp8 KV cache needs compute capability {_written(FP8_KV_CAPABILITY)}, "
        f"this GPU has {_written(capability)}",
        hint="set kv_cache_dtype: float16",
    )


def _written(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"
