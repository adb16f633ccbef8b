"""What is asked of the planner and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_manager.checkpoints.facts import Facts


class Budget(StrEnum):
    """How a card's memory is given to an engine."""

    SHARE = "share"
    """A share of the card's total (`--gpu-memory-utilization`); the KV cache gets what is left of it."""
    DECLARED = "declared"
    """The KV cache has a declared size (vLLM on the CPU: VLLM_CPU_KVCACHE_SPACE)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What an agent asks of a card.

    `context` and `sequences` are `--max-model-len` and `--max-num-seqs`. `utilization` None means auto.
    `facts` None means that nothing is known of the checkpoint yet; the simulated engine alone may run so.
    `kv_cache_bytes` is for Budget.DECLARED only.
    """

    agent: str
    context: int
    sequences: int
    kv_cache_dtype: str = "auto"
    utilization: float | None = None
    cpu_offload_bytes: int = 0
    eager: bool = False
    budget: Budget = Budget.SHARE
    kv_cache_bytes: int | None = None
    facts: Facts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Settings that hold on the card. Bytes; None where nothing is known of the checkpoint.

    weights + overhead + kv_cache = budget, to the byte. `weights_bytes` is what stays on the card, less than
    the model's own when some is offloaded. `kv_cache_bytes` is whole blocks; for Budget.SHARE what is left over
    of the last one counts as overhead. `concurrency` is how many requests of the full context the KV cache
    holds at once. `start_bytes` must be free before the engine is started. `language_model_only`: the figures
    hold only when the engine leaves the checkpoint's vision tower out (`--language-model-only`).
    """

    agent: str
    max_model_len: int
    max_num_seqs: int
    kv_cache_dtype: str
    utilization: float | None
    card_total_bytes: int
    budget_bytes: int
    start_bytes: int
    weights_bytes: int | None
    overhead_bytes: int | None
    kv_cache_bytes: int | None
    kv_tokens: int | None
    concurrency: float | None
    cpu_offload_bytes: int = 0
    language_model_only: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """Why the agent cannot run as declared, in one line, and what would make it fit, each in one line."""

    agent: str
    message: str
    missing_bytes: int
    remedies: tuple[str, ...]
