"""What `gpu-stats` knows of one moment: the card, the agents on it, the last swaps. Values only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from datetime import datetime

    from agent_manager.engines.metrics import Traffic
    from agent_manager.gpu.base import GpuSample
    from agent_manager.swap.history import SwapSample
    from agent_manager.swap.notices import AgentState


class AgentSample(Struct, frozen=True, kw_only=True):
    """One agent that is on a card, or coming or leaving. `shared_with` are those that its engine serves beside it.

    `used_bytes` is what its processes hold of the card; None where the driver does not say (WSL2), and then
    `claim_bytes`, what it was given at its start, is the best there is. `phase` and `phase_percent` while it
    loads. `concurrency` is how many requests of the full `context` fit at once. `traffic` None: no answer yet.
    """

    name: str
    state: AgentState
    engine: str
    runtime: str
    model: str
    port: int
    pids: tuple[int, ...]
    used_bytes: int | None
    claim_bytes: int | None
    phase: str | None = None
    phase_percent: int | None = None
    context: int | None = None
    concurrency: float | None = None
    traffic: Traffic | None = None
    shared_with: tuple[str, ...] = ()

    @property
    def names(self) -> str:
        """All agents that its engine serves: `architect+dev`."""
        return "+".join((self.name, *self.shared_with))


class StatsSample(Struct, frozen=True, kw_only=True):
    """One moment. `gpu` is None when the card cannot be read now, and a note says why.

    `processes` of the GPU that belong to no agent are told by their absence from every agent's `pids`.
    `swaps` are the last ones, newest first.
    """

    at: datetime
    gpu: GpuSample | None
    agents: tuple[AgentSample, ...]
    swaps: tuple[SwapSample, ...]
    notes: tuple[str, ...] = ()
