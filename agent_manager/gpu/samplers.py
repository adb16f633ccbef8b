"""The sampler of a card, by the card's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from agent_manager.gpu import host, simulated
from agent_manager.gpu.base import GpuSample
from agent_manager.gpu.nvml import NvmlSampler

if TYPE_CHECKING:
    from agent_manager.gpu.base import GpuProbe, GpuSampler
    from agent_manager.state import StateDir


class MemorySampler(Struct, frozen=True):
    """Samples a card that has nothing but memory: what `probe` reads, and no reading of a GPU."""

    probe: GpuProbe

    def sample(self) -> GpuSample:
        """The card now. Raises what its probe raises."""
        card = self.probe.read()
        return GpuSample(
            index=0,
            uuid=card.id,
            name=card.name,
            total_bytes=card.total_bytes,
            free_bytes=card.free_bytes,
            processes=card.holders,
            simulated=card.simulated,
        )

    def others(self) -> tuple[str, ...]:
        """None: there is one of its kind."""
        return ()

    def close(self) -> None:
        """Nothing is held open."""


def sampler_of(card: str | None, state: StateDir) -> GpuSampler:
    """The sampler of SIM-0, of CPU-0, or of the GPU with that index or UUID; None is the first GPU."""
    match card:
        case simulated.CARD_ID:
            return MemorySampler(simulated.SimulatedProbe(state.card(simulated.CARD_ID)))
        case host.CARD_ID:
            return MemorySampler(host.HostMemoryProbe())
        case _:
            return NvmlSampler(card)
