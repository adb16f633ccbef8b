"""What the rest of the program knows of a card: its name, its memory, and who holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryHolder:
    """A process that holds memory of a card. `used_bytes` is None where the driver does not say."""

    pid: int
    name: str
    used_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The memory that engines share, as read just now.

    `id` names it in the state folder: a GPU's UUID, `SIM-0` or `CPU-0`. `total_bytes` is what an engine can
    have at most (for a GPU: NVML's total less what the driver reserves), `free_bytes` what is free now.
    """

    id: str
    name: str
    total_bytes: int
    free_bytes: int
    simulated: bool = False
    holders: tuple[MemoryHolder, ...] = ()

    @property
    def used_bytes(self) -> int:
        """What is taken, by whomever."""
        return self.total_bytes - self.free_bytes


class GpuProbe(Protocol):
    """Reads one card. Never changes anything."""

    def read(self) -> Card:
        """Read the card now; bounded, at most a few milliseconds. Raises HostNotReady (NoGpu for a GPU)."""
        ...
