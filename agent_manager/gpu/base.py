"""What the rest of the program knows of a card: its name, its memory, and who holds it."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

GIB = 1 << 30


class MemoryHolder(Struct, frozen=True, kw_only=True):
    """A process that holds memory of a card. `used_bytes` is None where the driver does not say."""

    pid: int
    name: str
    used_bytes: int | None


class Card(Struct, frozen=True, kw_only=True):
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


class GpuSample(Struct, frozen=True, kw_only=True):
    """Everything a GPU says of itself at one moment; None is a reading it does not support.

    `total_bytes` and `free_bytes` are counted as in Card; both are None where the memory is not the card's own.
    `processes` is by pid. Percents are 0-100.
    `throttle_reasons` are NVML's clock event reasons in words, empty when the clocks run free;
    `performance_state` is 0 (fastest) to 15.
    """

    index: int
    uuid: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    utilization_pct: int | None = None
    memory_utilization_pct: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    fan_pct: int | None = None
    performance_state: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    processes: tuple[MemoryHolder, ...] = ()
    simulated: bool = False

    @property
    def used_bytes(self) -> int | None:
        """What is taken, by whomever."""
        if self.total_bytes is None or self.free_bytes is None:
            return None
        return self.total_bytes - self.free_bytes


class GpuSampler(Protocol):
    """Samples one GPU again and again, through one session. Never changes anything."""

    def sample(self) -> GpuSample:
        """The GPU now; bounded, some tens of microseconds. Raises HostNotReady (NoGpu for a GPU).

        After an error the next call opens the session anew: a driver that comes back is read again.
        """
        ...

    def others(self) -> tuple[str, ...]:
        """The host's other cards as `1 (NVIDIA RTX A4000)`, as the session found them; empty without one."""
        ...

    def close(self) -> None:
        """End the session. Never raises."""
        ...


class GpuProbe(Protocol):
    """Reads one card. Never changes anything."""

    def read(self) -> Card:
        """Read the card now; bounded, at most a few milliseconds. Raises HostNotReady (NoGpu for a GPU)."""
        ...


class GpuFacts(Struct, frozen=True, kw_only=True):
    """What a GPU and its driver are, beside their memory; None is what the driver does not tell.

    `driver_version` such as `580.95.05`; `cuda_version` the newest CUDA the driver runs, `compute_capability` the
    GPU's, both as (major, minor). `drawing` are the processes of a desktop on it.
    """

    driver_version: str
    cuda_version: tuple[int, int] | None = None
    compute_capability: tuple[int, int] | None = None
    display_active: bool | None = None
    drawing: tuple[MemoryHolder, ...] = ()
