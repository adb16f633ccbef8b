"""How vLLM cuts its KV cache, and so how many tokens a number of bytes holds. Pure.

The cache is pages that every request shares. A dense model's page is a block of 16 tokens over all layers. In a
hybrid, a block is made large enough that one attention layer's page holds one linear layer's state; the linear
layers form groups of as many layers as there are attention layers, and a request takes two pages of state for each
group (vLLM's prefix caching keeps the one before the last).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.checkpoints.facts import Shape
from agent_manager.planning.base import Budget

if TYPE_CHECKING:
    from agent_manager.checkpoints.facts import Facts

BLOCK_TOKENS: Final = {Budget.SHARE: 16, Budget.DECLARED: 128}
"""vLLM's default block, on a GPU and on the CPU (vllm/platforms/cpu.py)."""
_ELEMENT_BYTES: Final = {"bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
_STATE_PAGES: Final = 2


class Layout(Struct, frozen=True, kw_only=True):
    """Pages of `page_bytes`, each of `page_tokens`; a request takes `fixed_pages` more, whatever its length."""

    page_tokens: int
    page_bytes: int
    fixed_pages: int = 0

    def pages(self, tokens: int) -> int:
        """What a request of that many tokens takes."""
        return -(-tokens // self.page_tokens) + self.fixed_pages

    def tokens(self, pages: int, context: int) -> int:
        """What vLLM calls the size of that many pages: requests of the full context, times the context."""
        return pages * context // self.pages(context)


def layout_of(shape: Shape, kv_cache_dtype: str, budget: Budget = Budget.SHARE) -> Layout:
    """How vLLM pages this model's KV cache. Raises ValueError for a KV dtype it does not know."""
    token_bytes = shape.kv_bytes_per_token(element_bytes(kv_cache_dtype, shape))
    block = BLOCK_TOKENS[budget]
    if not shape.linear_layers:
        return Layout(page_tokens=block, page_bytes=block * token_bytes)
    layer_token_bytes = token_bytes // shape.attention_layers
    page_tokens = -(-shape.linear_state_bytes // (layer_token_bytes * block)) * block
    groups = -(-shape.linear_layers // shape.attention_layers)
    return Layout(
        page_tokens=page_tokens, page_bytes=page_tokens * token_bytes, fixed_pages=_STATE_PAGES * groups
    )


def kv_tokens(kv_cache_bytes: int, facts: Facts, *, context: int, kv_cache_dtype: str = "auto") -> int | None:
    """The tokens that a GPU's KV cache of that size holds, as vLLM's log counts them ("GPU KV cache size").

    None for a model whose KV layout is not known.
    """
    if not isinstance(facts.shape, Shape):
        return None
    layout = layout_of(facts.shape, kv_cache_dtype)
    return layout.tokens(kv_cache_bytes // layout.page_bytes, context)


def element_bytes(kv_cache_dtype: str, shape: Shape) -> int:
    """Bytes of one element. `auto` is 16-bit, or what the checkpoint declares. Raises ValueError if unknown."""
    if kv_cache_dtype == "auto":
        return 1 if shape.fp8_kv_cache else 2
    try:
        return _ELEMENT_BYTES[kv_cache_dtype]
    except KeyError:
        raise ValueError(f"kv_cache_dtype '{kv_cache_dtype}' is not one the planner knows") from None
