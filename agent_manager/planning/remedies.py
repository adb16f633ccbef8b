"""What would make an agent fit: changes to its catalog entry, each tried before it is named. Pure.

The mildest come first: settings that cost nothing, then fp8, a shorter context, another model of the family, weights
in host memory, and at last another card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.checkpoints.facts import Facts, Shape
from agent_manager.gpu.base import GIB
from agent_manager.planning.base import Budget, Demand, Fit, Remedy, Shortfall
from agent_manager.planning.cards import SIZES_GIB, usable_bytes
from agent_manager.planning.layout import element_bytes
from agent_manager.planning.speed import expected_tokens_per_s
from agent_manager.planning.words import gib

Attempt: TypeAlias = Callable[[Demand, int], Fit | Shortfall]
"""The planner itself, without remedies."""
Changes: TypeAlias = Mapping[str, str | int]
"""Fields of the catalog to the values to write there."""

CPU_KV_CACHE: Final = "engines.vllm-cpu.kv_cache"
_CONTEXT_STEP: Final = 1024
_MOST_ALTERNATIVES: Final = 2
_LARGEST_HOST_GIB: Final = 192
_FP8: Final[Changes] = {"kv_cache_dtype": "fp8"}


def applied(demand: Demand, changes: Changes, alternatives: Mapping[str, Facts]) -> Demand:
    """The demand after these changes to the catalog. Raises KeyError for a model that is not an alternative."""
    for field, value in changes.items():
        match field, value:
            case "context", int():
                demand = replace(demand, context=value)
            case "sequences", int():
                demand = replace(demand, sequences=value)
            case "kv_cache_dtype", str():
                demand = replace(demand, kv_cache_dtype=value)
            case "gpu_memory_utilization", "auto":
                demand = replace(demand, utilization=None)
            case "cpu_offload", str():
                demand = replace(demand, cpu_offload_bytes=_size_bytes(value))
            case "engines.vllm-cpu.kv_cache", str():
                demand = replace(demand, kv_cache_bytes=_size_bytes(value))
            case "model", str():
                demand = replace(demand, facts=alternatives[value], measured=None)
            case _:
                raise ValueError(f"the planner knows no change '{field}: {value}'")
    return demand


def with_remedies(
    shortfall: Shortfall,
    demand: Demand,
    total_bytes: int,
    alternatives: Mapping[str, Facts],
    attempt: Attempt,
) -> Shortfall:
    """The shortfall with the changes that make `demand` fit: at least one, if any size of card would do."""
    search = _Search(demand=demand, total_bytes=total_bytes, alternatives=alternatives, attempt=attempt)
    settings = tuple(search.settings())
    wanted = search.base.get("context", demand.context)
    if any(remedy.fit.max_model_len == wanted for remedy in settings):
        return replace(shortfall, options=settings)
    others = (*search.other_models(), *search.offload())
    if settings:
        return replace(shortfall, options=(*settings, *others))
    return replace(
        shortfall, options=(*others, *search.larger_cards()), advice=tuple(search.smaller_weights())
    )


class _Search(Struct, frozen=True, kw_only=True):
    """Looks for changes to one demand on one card."""

    demand: Demand
    total_bytes: int
    alternatives: Mapping[str, Facts]
    attempt: Attempt

    @property
    def base(self) -> Changes:
        """A context beyond the model's own limit has to be cut to it, whatever else is done."""
        facts = self.demand.facts
        if facts is None or not isinstance(facts.shape, Shape):
            return {}
        limit = facts.shape.max_position_embeddings
        return {"context": limit} if self.demand.context > limit else {}

    def settings(self) -> Iterator[Remedy]:
        """Settings of the agent alone; several at once only where one does not do."""
        base = self.base
        found = [*self._tried(base)] if base else []
        if found:
            yield from found
            return
        found = [*self._single(base)]
        if not any("kv_cache_dtype" in remedy.changes for remedy in found) and self._can_halve():
            longest = self._longest_context({**base, **_FP8})
            if longest > max((remedy.fit.max_model_len for remedy in found), default=0):
                found += self._tried({**base, "context": longest, **_FP8})
        if not found:
            most = {**base, **self._all_small()}
            found = [*self._tried(most)] or [*self._shortened(most)]
        yield from found

    def other_models(self) -> Iterator[Remedy]:
        """The largest models of the same family that fit as this agent is declared, or with fp8."""
        facts = self.demand.facts
        if facts is None:
            return
        family = _family(facts)
        named = sorted(self.alternatives.items(), key=lambda item: item[1].weights_bytes, reverse=True)
        found: list[Remedy] = []
        for name, other in named:
            if other == facts or _family(other) != family:
                continue
            change: Changes = {"model": name}
            found += [*self._tried(change)] or [*self._tried({**change, **_FP8})]
            if len(found) == _MOST_ALTERNATIVES:
                break
        yield from found

    def offload(self) -> Iterator[Remedy]:
        """The fewest whole GiB of weights in host memory that make it fit, at best with nothing else changed."""
        facts = self.demand.facts
        if facts is None or self.demand.budget is not Budget.SHARE:
            return
        base = self.base
        first = self.demand.cpu_offload_bytes // GIB + 1
        for more in ({}, self._all_small()):
            for size_gib in range(first, facts.weights_bytes // GIB + 2):
                changes = {**base, **more, "cpu_offload": f"{size_gib}GiB"}
                found = [*self._tried(changes, price=_price(facts))]
                if found:
                    yield from found
                    return

    def larger_cards(self) -> Iterator[Remedy]:
        """The smallest card, or host, that would do as declared; before it a smaller one that takes fp8 too."""
        if self.demand.budget is Budget.SHARE:
            sizes = [(f"a card of {size} GB", usable_bytes(size * GIB)) for size in SIZES_GIB]
        else:
            least = self.total_bytes // GIB + 1
            sizes = [(f"a host with {size} GiB", size * GIB) for size in range(least, _LARGEST_HOST_GIB + 1)]
        larger = [(text, size_bytes) for text, size_bytes in sizes if size_bytes > self.total_bytes]
        found: list[Remedy] = []
        for changes in ({}, _FP8 if self._can_halve() else {}, self._all_small()):
            smallest = next(self._on_cards(larger, {**self.base, **changes}), None)
            if smallest and all(
                smallest.fit.card_total_bytes < other.fit.card_total_bytes for other in found
            ):
                found.insert(0, smallest)
        yield from found

    def smaller_weights(self) -> Iterator[str]:
        """How large a model may be for this KV cache on this card."""
        facts = self.demand.facts
        if facts is None or self.demand.budget is not Budget.SHARE:
            return
        weightless = replace(facts, weights_bytes=0, idle_bytes=0)
        lighter = replace(self.demand, facts=weightless, measured=None, cpu_offload_bytes=0)
        answer = self.attempt(lighter, self.total_bytes)
        if isinstance(answer, Fit) and answer.kv_cache_bytes is not None and answer.concurrency:
            spare_bytes = answer.kv_cache_bytes - math.ceil(answer.kv_cache_bytes / answer.concurrency)
            yield f"a smaller model: about {gib(spare_bytes)} of weights fit beside this KV cache"

    def _on_cards(self, cards: list[tuple[str, int]], changes: Changes) -> Iterator[Remedy]:
        asked = applied(self.demand, changes, self.alternatives)
        for text, size_bytes in cards:
            answer = self.attempt(asked, size_bytes)
            if isinstance(answer, Fit):
                also = f", with {_written(changes)}" if changes else ""
                yield Remedy(text=text + also, changes=changes, fit=answer)

    def _single(self, base: Changes) -> Iterator[Remedy]:
        """One change at a time, beside what the model itself asks for."""
        demand = self.demand
        if demand.budget is Budget.DECLARED:
            yield from self._larger_cache(base)
        if demand.utilization is not None:
            yield from self._tried({**base, "gpu_memory_utilization": "auto"})
        fewer = self._most_sequences(base)
        if fewer:
            yield from self._tried({**base, "sequences": fewer})
        if self._can_halve():
            yield from self._tried({**base, **_FP8})
        yield from self._shortened(base)

    def _shortened(self, changes: Changes) -> Iterator[Remedy]:
        longest = self._longest_context(changes)
        if longest and longest != changes.get("context"):
            yield from self._tried({**changes, "context": longest})

    def _larger_cache(self, base: Changes) -> Iterator[Remedy]:
        for size_gib in range(1, self.total_bytes // GIB + 1):
            found = [*self._tried({**base, CPU_KV_CACHE: f"{size_gib}GiB"})]
            if found:
                yield from found
                return

    def _all_small(self) -> Changes:
        """Everything that saves memory and keeps model and context; on the CPU, a cache for one whole request."""
        if self.demand.budget is Budget.DECLARED:
            largest = replace(self, total_bytes=_LARGEST_HOST_GIB * GIB)
            return next((remedy.changes for remedy in largest._larger_cache(self.base)), {})  # noqa: SLF001 - its own
        small: dict[str, str | int] = {}
        if self.demand.utilization is not None:
            small["gpu_memory_utilization"] = "auto"
        if self.demand.sequences > 1:
            small["sequences"] = 1
        return {**small, **_FP8} if self._can_halve() else small

    def _can_halve(self) -> bool:
        """Whether fp8 would make the KV cache smaller."""
        demand = self.demand
        if demand.budget is not Budget.SHARE or demand.facts is None:
            return False
        shape = demand.facts.shape
        return isinstance(shape, Shape) and element_bytes(demand.kv_cache_dtype, shape) > 1

    def _longest_context(self, changes: Changes) -> int:
        """The longest context that fits, at most the one asked for, in steps of 1024; 0 when there is none."""
        asked = applied(self.demand, changes, self.alternatives).context
        steps = _most(
            asked // _CONTEXT_STEP, lambda count: self._fits({**changes, "context": count * _CONTEXT_STEP})
        )
        return steps * _CONTEXT_STEP

    def _most_sequences(self, changes: Changes) -> int:
        return _most(self.demand.sequences - 1, lambda count: self._fits({**changes, "sequences": count}))

    def _fits(self, changes: Changes) -> bool:
        asked = applied(self.demand, changes, self.alternatives)
        return isinstance(self.attempt(asked, self.total_bytes), Fit)

    def _tried(self, changes: Changes, *, price: Callable[[Fit], str] | None = None) -> Iterator[Remedy]:
        """The remedy, if these changes make it fit."""
        answer = self.attempt(applied(self.demand, changes, self.alternatives), self.total_bytes)
        if isinstance(answer, Fit):
            text = _written(changes) + (price(answer) if price else "")
            yield Remedy(text=text, changes=changes, fit=answer)


def _price(facts: Facts) -> Callable[[Fit], str]:
    """What offloading costs, in words: the card's own time left out, so the speed is the most there can be."""

    def words(fit: Fit) -> str:
        speed = expected_tokens_per_s(facts, fit, math.inf)
        if speed is None:
            return " (keeps weights in host memory: very slow)"
        return f" (weights in host memory, over PCIe for each token: {speed.low:.1f} to {speed.high:.1f} tokens/s)"

    return words


def _written(changes: Changes) -> str:
    """`context: 17408 with kv_cache_dtype: fp8`."""
    words = [
        f"kv_cache: {value} under engines.vllm-cpu" if field == CPU_KV_CACHE else f"{field}: {value}"
        for field, value in changes.items()
    ]
    first, *others = words
    return f"{first} with {', '.join(others)}" if others else first


def _family(facts: Facts) -> str:
    """`Qwen` for Qwen2ForCausalLM, Qwen3MoeForCausalLM and Qwen3_5ForConditionalGeneration alike."""
    name = facts.shape.architecture
    return name[: next((place for place, letter in enumerate(name) if letter.isdigit()), len(name))]


def _most(largest: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `largest` for which it still fits, 0 when none does; fewer always fit too."""
    least, most = 0, largest
    while least < most:
        middle = (least + most + 1) // 2
        if fits(middle):
            least = middle
        else:
            most = middle - 1
    return least


def _size_bytes(text: str) -> int:
    return int(text.removesuffix("GiB")) * GIB
