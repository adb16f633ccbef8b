"""How an agent's memory adds up on a card: a fit, every byte accounted for, or a shortfall with what would fit.

    budget = share of the card = resident weights + overhead + KV cache         (Budget.SHARE)
    budget = resident weights + overhead + KV cache of a declared size          (Budget.DECLARED)

Pure arithmetic. The constants are measurements of vLLM 0.30 to 0.32; each says which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent_manager.checkpoints.facts import Facts, Origin, Shape, Unsupported
from agent_manager.gpu.base import GIB
from agent_manager.planning.base import Budget, Demand, Fit, Shortfall

if TYPE_CHECKING:
    from collections.abc import Iterator

START_MARGIN_BYTES: Final = GIB // 2
"""Free memory an engine needs beyond its share to start: it makes its CUDA context before it looks."""
DESKTOP_BYTES: Final = 7 * GIB // 10
"""What a desktop on the same card holds, at most (0.5-0.7 GiB seen); auto leaves that much alone."""
MOST_AUTO_PERCENT: Final = 92
"""The share auto never exceeds: vLLM's own default."""

_COLD_START_BYTES: Final = GIB // 4
"""Overhead beyond one copy of the embedding table: 0.2-0.3 GiB in published cold starts."""
_EAGER_OVERHEAD_BYTES: Final = 7 * GIB // 10
"""Overhead without compilation: 0.3-0.7 GiB seen."""
_HOST_OVERHEAD_BYTES: Final = 2 * GIB
"""vLLM on the CPU beside weights and KV cache: three Python processes with torch. 0.32.0 was seen to hold 1.4 GiB
at rest; loading takes more."""

_BLOCK_TOKENS: Final = {Budget.SHARE: 16, Budget.DECLARED: 128}
"""vLLM's default block, on a GPU and on the CPU (vllm/platforms/cpu.py)."""
_ELEMENT_BYTES: Final = {"bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
_CONTEXT_STEP: Final = 1024
_LARGEST_CARD_GIB: Final = 192


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How the KV cache is cut: pages of `page_bytes`, each of `page_tokens`; a request takes `fixed_pages` more."""

    page_tokens: int
    page_bytes: int
    fixed_pages: int = 0

    def pages(self, tokens: int) -> int:
        """What a request of that many tokens takes."""
        return -(-tokens // self.page_tokens) + self.fixed_pages


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """Memory given to the engine, and what must be free for it to start."""

    utilization: float | None
    budget_bytes: int
    start_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """A checkpoint whose dimensions are known."""

    facts: Facts
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What one request of the full context would take."""

    weights_bytes: int
    overhead_bytes: int
    kv_cache_bytes: int

    @property
    def needed_bytes(self) -> int:
        return self.weights_bytes + self.overhead_bytes + self.kv_cache_bytes


def plan(demand: Demand, card_total_bytes: int) -> Fit | Shortfall:
    """Whether an agent fits a card of that size, as declared. Pure.

    `card_total_bytes` is what CUDA sees (Card.total_bytes). Raises ValueError for a KV dtype it does not know.
    """
    answer = _attempt(demand, card_total_bytes)
    if isinstance(answer, Fit):
        return answer
    return replace(answer, remedies=answer.remedies or tuple(_remedies(demand, card_total_bytes)))


def auto_utilization(card_total_bytes: int) -> float | None:
    """The share `auto` takes: whole percents, at most 92, leaving the start margin and a desktop's memory free.

    15.47 GiB, a 16 GB card, gives 0.92. None when the card is too small for any share.
    """
    percent = (card_total_bytes - START_MARGIN_BYTES - DESKTOP_BYTES) * 100 // max(card_total_bytes, 1)
    return min(percent, MOST_AUTO_PERCENT) / 100 if percent > 0 else None


def _attempt(demand: Demand, total_bytes: int) -> Fit | Shortfall:
    """The plan, without remedies that take further planning to find."""
    facts = demand.facts
    shape = facts.shape if facts else None
    if isinstance(shape, Unsupported):
        return _shortfall(demand, shape.reason, 0, "use a checkpoint whose memory can be planned")
    if shape and demand.context > shape.max_position_embeddings:
        limit = shape.max_position_embeddings
        return _shortfall(demand, f"{demand.context} tokens exceed the model's own limit of {limit}", 0)
    room = _share(demand, total_bytes) if demand.budget is Budget.SHARE else _declared(demand, total_bytes)
    if isinstance(room, Shortfall):
        return room
    if facts is None or shape is None:
        note = "what the model takes is not known until it is pulled"
        return _fit(demand, total_bytes, room, notes=(note,))
    return _fill(demand, total_bytes, room, _Model(facts=facts, shape=shape))


def _share(demand: Demand, total_bytes: int) -> _Room | Shortfall:
    """The engine gets a share of the card: ceil(total x utilization), as vLLM computes it."""
    utilization = demand.utilization or auto_utilization(total_bytes)
    if utilization is None:
        least = START_MARGIN_BYTES + DESKTOP_BYTES
        message = f"the card has {gib(total_bytes)}, an engine needs more than {gib(least)} to start at all"
        return _shortfall(demand, message, least - total_bytes + 1, "use a larger card")
    budget_bytes = math.ceil(total_bytes * utilization)
    start_bytes = budget_bytes + START_MARGIN_BYTES
    if start_bytes > total_bytes:
        message = (
            f"gpu_memory_utilization {utilization:g} needs {gib(start_bytes)} free to start "
            f"({gib(START_MARGIN_BYTES)} of it for the CUDA context), the card has {gib(total_bytes)}"
        )
        return _shortfall(demand, message, start_bytes - total_bytes)
    return _Room(utilization=utilization, budget_bytes=budget_bytes, start_bytes=start_bytes)


def _declared(demand: Demand, total_bytes: int) -> _Room | Shortfall:
    """The KV cache has a size of its own; weights and processes come on top."""
    if demand.kv_cache_bytes is None:
        raise ValueError(f"{demand.agent}: a declared budget needs the size of its KV cache")
    weights_bytes = demand.facts.weights_bytes if demand.facts else 0
    budget_bytes = weights_bytes + _HOST_OVERHEAD_BYTES + demand.kv_cache_bytes
    if budget_bytes > total_bytes:
        message = (
            f"a KV cache of {gib(demand.kv_cache_bytes)}, weights of {gib(weights_bytes)} and "
            f"{gib(_HOST_OVERHEAD_BYTES)} for the processes are {gib(budget_bytes)}, "
            f"this host has {gib(total_bytes)}"
        )
        return _shortfall(demand, message, budget_bytes - total_bytes)
    return _Room(utilization=None, budget_bytes=budget_bytes, start_bytes=budget_bytes)


def _fill(demand: Demand, total_bytes: int, room: _Room, model: _Model) -> Fit | Shortfall:
    """Give the KV cache what is left, in whole pages; at least one request of the full context must fit."""
    declared = demand.budget is Budget.DECLARED
    weights_bytes = model.facts.weights_bytes - (0 if declared else _offloaded_bytes(demand, model))
    overhead_bytes = _HOST_OVERHEAD_BYTES if declared else _overhead_bytes(demand, model.shape)
    left_bytes = room.budget_bytes - weights_bytes - overhead_bytes
    layout = _layout(demand, model.shape)
    request_pages = layout.pages(demand.context)
    pages = left_bytes // layout.page_bytes
    if pages < request_pages:
        parts = _Parts(
            weights_bytes=weights_bytes,
            overhead_bytes=overhead_bytes,
            kv_cache_bytes=request_pages * layout.page_bytes,
        )
        return _too_small(demand, total_bytes, room, parts)
    kv_cache_bytes = left_bytes if declared else pages * layout.page_bytes
    return replace(
        _fit(demand, total_bytes, room, notes=tuple(_notes(demand, model))),
        weights_bytes=weights_bytes,
        overhead_bytes=room.budget_bytes - weights_bytes - kv_cache_bytes,
        kv_cache_bytes=kv_cache_bytes,
        kv_tokens=pages * demand.context // request_pages,
        concurrency=pages / request_pages,
        language_model_only=model.shape.vision,
    )


def _fit(demand: Demand, total_bytes: int, room: _Room, *, notes: tuple[str, ...]) -> Fit:
    return Fit(
        agent=demand.agent,
        max_model_len=demand.context,
        max_num_seqs=demand.sequences,
        kv_cache_dtype=demand.kv_cache_dtype,
        utilization=room.utilization,
        card_total_bytes=total_bytes,
        budget_bytes=room.budget_bytes,
        start_bytes=room.start_bytes,
        weights_bytes=None,
        overhead_bytes=None,
        kv_cache_bytes=demand.kv_cache_bytes,
        kv_tokens=None,
        concurrency=None,
        cpu_offload_bytes=demand.cpu_offload_bytes,
        notes=notes,
    )


def _notes(demand: Demand, model: _Model) -> Iterator[str]:
    if model.facts.origin is Origin.KNOWN:
        yield "figures of the published checkpoint; its files are not here yet"
    if demand.budget is Budget.SHARE and demand.cpu_offload_bytes > _offloaded_bytes(demand, model):
        yield f"only {gib(_offloaded_bytes(demand, model))} of the weights can leave the card"
    if model.shape.vision:
        yield "planned without the checkpoint's vision tower"


def _overhead_bytes(demand: Demand, shape: Shape) -> int:
    """Everything but weights and KV at a cold start: one copy of the embedding table and 0.25 GiB.

    It reproduces the published logs of Qwen3-14B-AWQ and Qwen2.5-32B-AWQ within 0.05 GiB.
    """
    cold_bytes = shape.embedding_bytes + _COLD_START_BYTES
    return min(cold_bytes, _EAGER_OVERHEAD_BYTES) if demand.eager else cold_bytes


def _offloaded_bytes(demand: Demand, model: _Model) -> int:
    """What leaves the card: layers only, never the embedding table or the output head."""
    tables = 1 if model.shape.tie_word_embeddings else 2
    layers_bytes = max(0, model.facts.weights_bytes - tables * model.shape.embedding_bytes)
    return min(demand.cpu_offload_bytes, layers_bytes)


def _layout(demand: Demand, shape: Shape) -> _Layout:
    """How vLLM pages this model's KV cache.

    A hybrid's page is made large enough that one layer's page holds one layer's state; a sequence takes two pages
    of state for each group of as many linear layers as there are attention layers.
    """
    element_bytes = _element_bytes(demand.kv_cache_dtype, shape)
    token_bytes = shape.kv_bytes_per_token(element_bytes)
    block = _BLOCK_TOKENS[demand.budget]
    if not shape.linear_layers:
        return _Layout(page_tokens=block, page_bytes=block * token_bytes)
    layer_token_bytes = token_bytes // shape.attention_layers
    page_tokens = -(-shape.linear_state_bytes // (layer_token_bytes * block)) * block
    groups = -(-shape.linear_layers // shape.attention_layers)
    return _Layout(page_tokens=page_tokens, page_bytes=page_tokens * token_bytes, fixed_pages=2 * groups)


def _element_bytes(kv_cache_dtype: str, shape: Shape) -> int:
    if kv_cache_dtype == "auto":
        return 1 if shape.fp8_kv_cache else 2
    try:
        return _ELEMENT_BYTES[kv_cache_dtype]
    except KeyError:
        raise ValueError(f"kv_cache_dtype '{kv_cache_dtype}' is not one the planner knows") from None


def _too_small(demand: Demand, total_bytes: int, room: _Room, parts: _Parts) -> Shortfall:
    missing_bytes = parts.needed_bytes - room.budget_bytes
    if demand.budget is Budget.DECLARED:
        message = (
            f"{demand.context} tokens need {gib(parts.kv_cache_bytes)} of KV cache, "
            f"engines.vllm-cpu.kv_cache gives {gib(demand.kv_cache_bytes or 0)}: {gib(missing_bytes)} short"
        )
    else:
        message = (
            f"{demand.context} tokens need {gib(parts.needed_bytes)} (weights {gib(parts.weights_bytes)}, "
            f"overhead {gib(parts.overhead_bytes)}, KV cache {gib(parts.kv_cache_bytes)}), the card gives "
            f"{gib(room.budget_bytes)} ({room.utilization:g} of {gib(total_bytes)}): {gib(missing_bytes)} short"
        )
    return _shortfall(demand, message, missing_bytes)


def _shortfall(demand: Demand, message: str, missing_bytes: int, *remedies: str) -> Shortfall:
    return Shortfall(agent=demand.agent, message=message, missing_bytes=missing_bytes, remedies=remedies)


def _remedies(demand: Demand, total_bytes: int) -> Iterator[str]:
    """Changes to the catalog that make it fit, each tried; when none does, how much card or model it would take."""
    fits = False
    for text, candidate in _candidates(demand, total_bytes):
        if isinstance(_attempt(candidate, total_bytes), Fit):
            fits = True
            yield text
    offload_bytes = _least_offload_bytes(demand, total_bytes)
    if offload_bytes is not None:
        yield f"cpu_offload: {offload_bytes // GIB}GiB (keeps weights in host memory: very slow)"
    if not fits:
        yield from _larger(demand, total_bytes)


def _candidates(demand: Demand, total_bytes: int) -> Iterator[tuple[str, Demand]]:
    if demand.budget is Budget.DECLARED:
        for size_gib in range(1, total_bytes // GIB + 1):
            candidate = replace(demand, kv_cache_bytes=size_gib * GIB)
            if isinstance(_attempt(candidate, total_bytes), Fit):
                yield f"kv_cache: {size_gib}GiB under engines.vllm-cpu", candidate
                break
    if demand.utilization is not None:
        yield "gpu_memory_utilization: auto", replace(demand, utilization=None)
    fp8 = replace(demand, kv_cache_dtype="fp8")
    worthwhile = demand.budget is Budget.SHARE and not demand.kv_cache_dtype.startswith("fp8")
    if worthwhile:
        yield "kv_cache_dtype: fp8", fp8
    context = _longest_context(demand, total_bytes)
    if context:
        yield f"context: {context}", replace(demand, context=context)
    fp8_context = _longest_context(fp8, total_bytes) if worthwhile else 0
    if context < fp8_context < demand.context:
        yield f"context: {fp8_context} with kv_cache_dtype: fp8", replace(fp8, context=fp8_context)


def _longest_context(demand: Demand, total_bytes: int) -> int:
    """The longest context that fits, at most the one asked for, in steps of 1024; 0 when there is none."""
    shortest, longest = 0, demand.context // _CONTEXT_STEP
    while shortest < longest:
        middle = (shortest + longest + 1) // 2
        if isinstance(_attempt(replace(demand, context=middle * _CONTEXT_STEP), total_bytes), Fit):
            shortest = middle
        else:
            longest = middle - 1
    return shortest * _CONTEXT_STEP


def _least_offload_bytes(demand: Demand, total_bytes: int) -> int | None:
    """The smallest offload that makes it fit, in whole GiB above what is asked for; None when none does."""
    weights_bytes = demand.facts.weights_bytes if demand.facts and demand.budget is Budget.SHARE else 0
    for offload_bytes in range((demand.cpu_offload_bytes // GIB + 1) * GIB, weights_bytes + GIB, GIB):
        if isinstance(_attempt(replace(demand, cpu_offload_bytes=offload_bytes), total_bytes), Fit):
            return offload_bytes
    return None


def _larger(demand: Demand, total_bytes: int) -> Iterator[str]:
    """What it would take when no setting helps."""
    for size_gib in range(total_bytes // GIB + 1, _LARGEST_CARD_GIB + 1):
        if isinstance(_attempt(demand, size_gib * GIB), Fit):
            yield f"a {'card' if demand.budget is Budget.SHARE else 'host'} with {size_gib} GiB"
            break
    if demand.facts is not None and demand.budget is Budget.SHARE:
        lighter = replace(demand, facts=replace(demand.facts, weights_bytes=0))
        answer = _attempt(lighter, total_bytes)
        if isinstance(answer, Fit) and answer.kv_cache_bytes is not None and answer.concurrency:
            spare_bytes = answer.kv_cache_bytes - math.ceil(answer.kv_cache_bytes / answer.concurrency)
            yield f"a smaller model: about {gib(spare_bytes)} of weights fit beside this KV cache"


def gib(size_bytes: int) -> str:
    """`9.38 GiB`; below a tenth of a GiB, `51 MiB`."""
    if abs(size_bytes) < GIB // 10:
        return f"{-(-size_bytes // (1 << 20))} MiB"
    return f"{size_bytes / GIB:.2f} GiB"
