"""What is asked of the planner and what it answers."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_manager.checkpoints.facts import Facts


class Budget(StrEnum):
    """How a card's memory is given to an engine."""

    SHARE = "share"
    """A share of the card's total (`--gpu-memory-utilization`); the KV cache gets what is left of it."""
    DECLARED = "declared"
    """The KV cache has a declared size (vLLM on the CPU: VLLM_CPU_KVCACHE_SPACE)."""


class Measured(Struct, frozen=True, kw_only=True):
    """What an engine's own log said of one checkpoint on one card, and the settings it ran with.

    Figures, None where the log did not say: `weights_bytes` ("Model loading took"), `kv_cache_bytes` ("Available
    KV cache memory"), `kv_tokens` ("KV cache size"), `graph_bytes` ("Graph capturing finished ... took").
    Settings of that run: `card_total_bytes` as the planner was given it, `utilization` as it was passed, and the
    agent's own. The planner uses a figure only where the settings that decide it are the same; whoever hands this
    over answers for its being the same checkpoint, image and card.
    """

    weights_bytes: int | None = None
    kv_cache_bytes: int | None = None
    kv_tokens: int | None = None
    graph_bytes: int | None = None
    card_total_bytes: int | None = None
    utilization: float | None = None
    context: int | None = None
    sequences: int | None = None
    kv_cache_dtype: str = "auto"
    cpu_offload_bytes: int = 0
    eager: bool = False


class Demand(Struct, frozen=True, kw_only=True):
    """What an agent asks of a card.

    `context` and `sequences` are `--max-model-len` and `--max-num-seqs`. `utilization` None means auto.
    `facts` None means that nothing is known of the checkpoint yet; the simulated engine alone may run so.
    `kv_cache_bytes` is for Budget.DECLARED only. `measured` is from an earlier run of this checkpoint on this card.
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
    measured: Measured | None = None


class Fit(Struct, frozen=True, kw_only=True):
    """Settings that hold on the card. Bytes; None where nothing is known of the checkpoint.

    weights + overhead + kv_cache = budget, to the byte. `weights_bytes` is what stays on the card, less than
    the model's own when some is offloaded. `kv_cache_bytes` is whole blocks; for Budget.SHARE what is left over
    of the last one counts as overhead. `concurrency` is how many requests of the full context the KV cache
    holds at once. `start_bytes` must be free before the engine is started. `language_model_only`: the figures
    hold only when the engine leaves the checkpoint's vision tower out (`--language-model-only`).
    `graph_bytes` are CUDA graphs, which come on top of the budget; known only when measured.
    `measured` names those of these fields that an earlier run said; the others are derived.
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
    graph_bytes: int | None = None
    language_model_only: bool = False
    measured: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


class Remedy(Struct, frozen=True, kw_only=True):
    """A change that makes an agent fit, tried: `fit` is what the planner then answers. `text` says it in one line.

    `changes` are fields of the agent in the catalog with the values to write there (`context: 16384`,
    `cpu_offload: "8GiB"`, `model: qwen3-8b-awq`; `engines.vllm-cpu.kv_cache: "2GiB"` is no field of the agent).
    When `fit.card_total_bytes` is not the card asked about, it takes that card, and perhaps changes too.
    """

    text: str
    changes: Mapping[str, str | int]
    fit: Fit


class Shortfall(Struct, frozen=True, kw_only=True):
    """Why the agent cannot run as declared, in one line, and what would make it fit.

    `options` are changes that were tried and fit, the mildest first; `advice` is what else may help, in words.
    `missing_bytes` is 0 when it is not memory that is missing.
    """

    agent: str
    message: str
    missing_bytes: int
    options: tuple[Remedy, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def remedies(self) -> tuple[str, ...]:
        """Options and advice, each in one line."""
        return (*(option.text for option in self.options), *self.advice)
