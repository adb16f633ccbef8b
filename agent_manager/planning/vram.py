"""How an agent's memory adds up on a card: a fit, every byte accounted for, or a shortfall with what would fit.

    budget = share of the card = resident weights + overhead + KV cache         (Budget.SHARE)
    budget = resident weights + overhead + KV cache of a declared size          (Budget.DECLARED)

Pure arithmetic.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.checkpoints.facts import Facts, Origin, Shape, Unsupported
from agent_manager.gpu.base import GIB
from agent_manager.planning.base import Budget, Demand, Fit, Shortfall
from agent_manager.planning.basis import HOST_OVERHEAD_BYTES, Basis, basis_of
from agent_manager.planning.words import gib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

START_MARGIN_BYTES: Final = GIB // 2
"""Free memory an engine needs beyond its share to start: it makes its CUDA context before it looks."""
DESKTOP_BYTES: Final = 7 * GIB // 10
"""What a desktop on the same card holds, at most (0.5-0.7 GiB seen); auto leaves that much alone."""
MOST_AUTO_PERCENT: Final = 92
"""The share auto never exceeds: vLLM's own default."""

_NO_OTHERS: Final[Mapping[str, Facts]] = MappingProxyType({})


class _Room(Struct, frozen=True, kw_only=True):
    """Memory given to the engine, and what must be free for it to start."""

    utilization: float | None
    budget_bytes: int
    start_bytes: int


def plan(
    demand: Demand, card_total_bytes: int, *, alternatives: Mapping[str, Facts] = _NO_OTHERS
) -> Fit | Shortfall:
    """Whether an agent fits a card of that size, as declared. Pure.

    `card_total_bytes` is what CUDA sees (Card.total_bytes). `alternatives` are the catalog's models by name; a
    shortfall offers those of the same family that would fit. Raises ValueError for a KV dtype it does not know.
    """
    answer = attempt(demand, card_total_bytes)
    if isinstance(answer, Fit) or answer.advice:
        return answer
    from agent_manager.planning.remedies import with_remedies  # noqa: PLC0415 - only for what does not fit

    return with_remedies(answer, demand, card_total_bytes, alternatives, attempt)


def auto_utilization(card_total_bytes: int) -> float | None:
    """The share `auto` takes: whole percents, at most 92, leaving the start margin and a desktop's memory free.

    15.47 GiB, a 16 GB card, gives 0.92. None when the card is too small for any share.
    """
    percent = (card_total_bytes - START_MARGIN_BYTES - DESKTOP_BYTES) * 100 // max(card_total_bytes, 1)
    return min(percent, MOST_AUTO_PERCENT) / 100 if percent > 0 else None


def attempt(demand: Demand, total_bytes: int) -> Fit | Shortfall:
    """The plan as `plan` makes it, without the remedies that take further planning to find."""
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
    return _fill(demand, total_bytes, room, facts, shape)


def _share(demand: Demand, total_bytes: int) -> _Room | Shortfall:
    """The engine gets a share of the card: ceil(total x utilization), as vLLM computes it."""
    utilization = demand.utilization or auto_utilization(total_bytes)
    if utilization is None:
        least = START_MARGIN_BYTES + DESKTOP_BYTES
        message = f"the card has {gib(total_bytes)}, an engine needs more than {gib(least)} to start at all"
        return _shortfall(demand, message, least - total_bytes + 1)
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
    budget_bytes = weights_bytes + HOST_OVERHEAD_BYTES + demand.kv_cache_bytes
    if budget_bytes > total_bytes:
        message = (
            f"a KV cache of {gib(demand.kv_cache_bytes)}, weights of {gib(weights_bytes)} and "
            f"{gib(HOST_OVERHEAD_BYTES)} for the processes are {gib(budget_bytes)}, "
            f"this host has {gib(total_bytes)}"
        )
        return _shortfall(demand, message, budget_bytes - total_bytes)
    return _Room(utilization=None, budget_bytes=budget_bytes, start_bytes=budget_bytes)


def _fill(demand: Demand, total_bytes: int, room: _Room, facts: Facts, shape: Shape) -> Fit | Shortfall:
    """Give the KV cache what is left, in whole pages; at least one request of the full context must fit."""
    basis = basis_of(demand, facts, shape)
    left_bytes = room.budget_bytes - basis.weights_bytes - basis.overhead_bytes
    layout = basis.layout
    pages = left_bytes // layout.page_bytes
    if pages < basis.least_pages:
        return _too_small(demand, total_bytes, room, basis)
    declared = demand.budget is Budget.DECLARED
    kv_cache_bytes = left_bytes if declared else pages * layout.page_bytes
    return replace(
        _fit(demand, total_bytes, room, notes=tuple(_notes(demand, facts, shape, basis))),
        weights_bytes=basis.weights_bytes,
        overhead_bytes=room.budget_bytes - basis.weights_bytes - kv_cache_bytes,
        kv_cache_bytes=kv_cache_bytes,
        kv_tokens=layout.tokens(pages, demand.context),
        concurrency=pages / layout.pages(demand.context),
        graph_bytes=demand.measured.graph_bytes
        if demand.measured and "graph_bytes" in basis.measured
        else None,
        language_model_only=shape.vision,
        measured=_measured_fields(demand, room, basis),
    )


def _measured_fields(demand: Demand, room: _Room, basis: Basis) -> frozenset[str]:
    """A KV cache counts as measured when its run had the same budget, weights and overhead to take it from."""
    ran = demand.measured
    if ran is None or ran.card_total_bytes is None or ran.utilization is None:
        return basis.measured - {"kv_tokens"}
    same = math.ceil(ran.card_total_bytes * ran.utilization) == room.budget_bytes
    if same and {"weights_bytes", "overhead_bytes"} <= basis.measured:
        return basis.measured | {"kv_cache_bytes"}
    return basis.measured - {"kv_tokens"}


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


def _notes(demand: Demand, facts: Facts, shape: Shape, basis: Basis) -> Iterator[str]:
    if facts.origin is Origin.KNOWN:
        yield "figures of the published checkpoint; its files are not here yet"
    elif facts.origin is Origin.HUB:
        yield "read from the Hub; its files are not here yet"
    if demand.budget is Budget.SHARE and demand.cpu_offload_bytes > basis.offloaded_bytes:
        yield f"only {gib(basis.offloaded_bytes)} of the weights can leave the card"
    if shape.vision:
        yield "planned without the checkpoint's vision tower"


def _too_small(demand: Demand, total_bytes: int, room: _Room, basis: Basis) -> Shortfall:
    request_pages = basis.layout.pages(demand.context)
    subject = (
        f"{demand.context} tokens" if basis.least_pages == request_pages else f"{demand.sequences} sequences"
    )
    kv_cache_bytes = basis.least_pages * basis.layout.page_bytes
    needed_bytes = basis.weights_bytes + basis.overhead_bytes + kv_cache_bytes
    missing_bytes = needed_bytes - room.budget_bytes
    if demand.budget is Budget.DECLARED:
        message = (
            f"{subject} need {gib(kv_cache_bytes)} of KV cache, "
            f"engines.vllm-cpu.kv_cache gives {gib(demand.kv_cache_bytes or 0)}: {gib(missing_bytes)} short"
        )
    else:
        message = (
            f"{subject} need {gib(needed_bytes)} (weights {gib(basis.weights_bytes)}, "
            f"overhead {gib(basis.overhead_bytes)}, KV cache {gib(kv_cache_bytes)}), the card gives "
            f"{gib(room.budget_bytes)} ({room.utilization:g} of {gib(total_bytes)}): {gib(missing_bytes)} short"
        )
    return _shortfall(demand, message, missing_bytes)


def _shortfall(demand: Demand, message: str, missing_bytes: int, *remedies: str) -> Shortfall:
    return Shortfall(agent=demand.agent, message=message, missing_bytes=missing_bytes, advice=remedies)
