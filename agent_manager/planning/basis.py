"""What a plan adds up: weights, overhead and the KV cache's layout, measured where an earlier run said, else derived.

Pure. The constants are measurements of vLLM 0.30 to 0.32; each says which.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.gpu.base import GIB
from agent_manager.planning.base import Budget, Measured
from agent_manager.planning.layout import Layout, layout_of

if TYPE_CHECKING:
    from agent_manager.checkpoints.facts import Facts, Shape
    from agent_manager.planning.base import Demand

_COLD_START_BYTES: Final = GIB // 4
"""Overhead beyond one copy of the embedding table: 0.2-0.3 GiB in published cold starts, dense and hybrid."""
_MOE_COLD_START_BYTES: Final = 11 * GIB // 20
"""The same for mixtures of experts: 0.4-0.7 GiB."""
_EAGER_OVERHEAD_BYTES: Final = 7 * GIB // 10
"""Overhead without compilation: 0.3-0.7 GiB seen."""
_SAMPLER_BYTES: Final = 24
"""For each sequence and vocabulary entry: logits, sorted, their indices, probabilities and sums, in 32-bit (the
sampler of vLLM 0.32). What 16 sequences take is within the overhead seen; more come on top."""
_SAMPLED_SEQUENCES: Final = 16
HOST_OVERHEAD_BYTES: Final = 2 * GIB
"""vLLM on the CPU beside weights and KV cache: three Python processes with torch. 0.32.0 was seen to hold 1.4 GiB
at rest; loading takes more."""


class Basis(Struct, frozen=True, kw_only=True):
    """What an agent takes before its KV cache, and how that is cut.

    `weights_bytes` stay on the card, `offloaded_bytes` do not. `least_pages` are needed to start at all. `measured`
    names the fields of Fit that rest on an earlier run.
    """

    weights_bytes: int
    offloaded_bytes: int
    overhead_bytes: int
    layout: Layout
    least_pages: int
    measured: frozenset[str] = frozenset()


def basis_of(demand: Demand, facts: Facts, shape: Shape) -> Basis:
    """What the plan of `demand` adds up. `shape` is that of `facts`. Raises ValueError for an unknown KV dtype."""
    layout = layout_of(shape, demand.kv_cache_dtype, demand.budget)
    request_pages = layout.pages(demand.context)
    if demand.budget is Budget.DECLARED:
        return Basis(
            weights_bytes=facts.weights_bytes,
            offloaded_bytes=0,
            overhead_bytes=HOST_OVERHEAD_BYTES,
            layout=layout,
            least_pages=request_pages,
        )
    total_bytes = _all_weights(demand, facts)
    offloaded_bytes = min(demand.cpu_offload_bytes, _layers_bytes(total_bytes, shape))
    estimate = Basis(
        weights_bytes=total_bytes - offloaded_bytes,
        offloaded_bytes=offloaded_bytes,
        overhead_bytes=_overhead_bytes(demand, shape),
        layout=layout,
        least_pages=max(request_pages, _state_sequences(demand, shape)),
    )
    return estimate if demand.measured is None else _corrected(estimate, demand, demand.measured)


def _all_weights(demand: Demand, facts: Facts) -> int:
    """The whole model, with what will be offloaded."""
    measured = demand.measured
    if measured is None or measured.weights_bytes is None:
        return facts.weights_bytes
    return measured.weights_bytes + measured.cpu_offload_bytes


def _layers_bytes(total_bytes: int, shape: Shape) -> int:
    """What can leave the card: layers, never the embedding table or the output head."""
    tables = 1 if shape.tie_word_embeddings else 2
    return max(0, total_bytes - tables * shape.embedding_bytes)


def _overhead_bytes(demand: Demand, shape: Shape) -> int:
    """Everything but weights and KV at a cold start: one copy of the embedding table and some more.

    It reproduces the published logs of Qwen3-14B-AWQ, Qwen2.5-32B-AWQ and Qwen3.5-9B within 0.05 GiB.
    """
    cold_bytes = shape.embedding_bytes + (_MOE_COLD_START_BYTES if shape.experts else _COLD_START_BYTES)
    if demand.eager:
        cold_bytes = min(cold_bytes, _EAGER_OVERHEAD_BYTES)
    return cold_bytes + max(0, demand.sequences - _SAMPLED_SEQUENCES) * shape.vocab_size * _SAMPLER_BYTES


def _state_sequences(demand: Demand, shape: Shape) -> int:
    """A hybrid whose CUDA graphs are captured refuses to start with fewer pages than sequences.

    vLLM 0.32: "max_num_seqs (...) exceeds available Mamba cache blocks" (vllm/config/compilation.py).
    """
    return demand.sequences if shape.linear_layers and not demand.eager else 0


def _corrected(estimate: Basis, demand: Demand, measured: Measured) -> Basis:
    """The estimate with what an earlier run said, as far as its settings were these."""
    basis = estimate
    if measured.weights_bytes is not None and measured.cpu_offload_bytes == demand.cpu_offload_bytes:
        basis = replace(
            basis, weights_bytes=measured.weights_bytes, measured=basis.measured | {"weights_bytes"}
        )
    overhead_bytes = _measured_overhead(demand, measured)
    if overhead_bytes is not None:
        basis = replace(basis, overhead_bytes=overhead_bytes, measured=basis.measured | {"overhead_bytes"})
    layout = _measured_layout(basis.layout, demand, measured)
    if layout is not None:
        pages = max(layout.pages(demand.context), basis.least_pages)
        basis = replace(basis, layout=layout, least_pages=pages, measured=basis.measured | {"kv_tokens"})
    if measured.graph_bytes is not None and measured.eager == demand.eager:
        basis = replace(basis, measured=basis.measured | {"graph_bytes"})
    return basis


def _measured_overhead(demand: Demand, measured: Measured) -> int | None:
    """Budget less weights less KV cache of a run with as many sequences or more, compiled or not as now."""
    match measured:
        case Measured(
            weights_bytes=int(weights_bytes),
            kv_cache_bytes=int(kv_cache_bytes),
            card_total_bytes=int(total_bytes),
            utilization=float(utilization),
        ):
            overhead_bytes = math.ceil(total_bytes * utilization) - weights_bytes - kv_cache_bytes
        case _:
            return None
    alike = measured.eager == demand.eager and demand.sequences <= (measured.sequences or demand.sequences)
    return overhead_bytes if alike and overhead_bytes >= 0 else None


def _measured_layout(layout: Layout, demand: Demand, measured: Measured) -> Layout | None:
    """The same pages, of the size that the log's bytes and tokens give; None when it ran with other settings.

    None too when that is far from what the model's dimensions say: such a record is damaged.
    """
    alike = measured.context == demand.context and measured.kv_cache_dtype == demand.kv_cache_dtype
    if not alike or not measured.kv_tokens or not measured.kv_cache_bytes:
        return None
    pages = -(-measured.kv_tokens * layout.pages(demand.context) // demand.context)
    page_bytes = measured.kv_cache_bytes // pages
    believable = layout.page_bytes // 2 <= page_bytes <= 2 * layout.page_bytes
    return replace(layout, page_bytes=page_bytes) if believable else None
