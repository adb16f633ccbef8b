"""The card that is planned for: the one in this machine, one of a size that was asked for, or the reference card."""

from __future__ import annotations

import asyncio
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.engines.base import CardKind
from agent_manager.errors import NoGpu, UsageError
from agent_manager.gpu.base import GIB
from agent_manager.planning.cards import usable_bytes
from agent_manager.planning.speed import card_bandwidth

if TYPE_CHECKING:
    from agent_manager.engines.base import Engine
    from agent_manager.gpu.base import Card, GpuFacts, MemoryHolder
    from agent_manager.swap.host import Host

REFERENCE_GB: Final = 16
_SOLD_AS: Final = {
    8: ("RTX 4060", "RTX 5060"),
    12: ("RTX 3060", "RTX 4070"),
    16: ("RTX 4060 Ti", "RTX 5060 Ti"),
    24: ("RTX 3090", "RTX 4090"),
}
"""Common cards of a size: the slowest memory and the fastest of those that people buy for this."""

_SIZE: Final = re.compile(r"(\d{1,7}(?:\.\d{1,3})?) ?(GiB|GB|G|MiB|MB)?", re.ASCII | re.IGNORECASE)
_LEAST_BYTES: Final = GIB
_MOST_BYTES: Final = 1024 * GIB


class CardOrigin(StrEnum):
    """Why this card is planned for."""

    HERE = "here"
    ASKED = "asked"
    REFERENCE = "reference"
    """There is no card here and none was asked for: a 16 GB card."""


class PlannedCard(Struct, frozen=True, kw_only=True):
    """The card that is planned for. `total_bytes` is what CUDA gives of it.

    `card` is the one in this machine, as read just now, and `gpu` what else it and its driver are; None for a size
    alone, and for what is no GPU. `sold_gb` is the size such a card is
    sold with, where one was named. `bandwidth_bytes_per_s`: of its memory, the least and the most it may be; None
    where that is not known. `examples`: the products those two are from, empty for the card itself. `note` says
    what a person should know about the choice.
    """

    name: str
    origin: CardOrigin
    total_bytes: int
    card: Card | None = None
    gpu: GpuFacts | None = None
    sold_gb: int | None = None
    bandwidth_bytes_per_s: tuple[float, float] | None = None
    examples: tuple[str, ...] = ()
    note: str | None = None

    @property
    def free_bytes(self) -> int | None:
        """What is free now; None for a size alone."""
        return self.card.free_bytes if self.card else None

    @property
    def holders(self) -> tuple[MemoryHolder, ...]:
        """Who uses it now."""
        return self.card.holders if self.card else ()

    @property
    def simulated(self) -> bool:
        """Whether it is the simulated card."""
        return self.card is not None and self.card.simulated


def card_of_size(text: str) -> PlannedCard:
    """A card by its size: a whole `16GiB` or `16GB` is one sold as 16 GB, `15.47GiB` or `15841MiB` what CUDA has.

    Of a card sold as N GB, CUDA sees less (planning/cards.py). Raises UsageError for what is no size between 1 and
    1024 GiB.
    """
    found = _SIZE.fullmatch(text.strip())
    number, unit = (float(found[1]), (found[2] or "GB").lower()) if found else (0.0, "")
    scale = {"mib": 1 << 20, "mb": 10**6, "gb": 10**9}.get(unit, GIB)
    sold = unit.startswith("g") and number.is_integer()
    size_bytes = round(number * (GIB if sold else scale))
    if not _LEAST_BYTES <= size_bytes <= _MOST_BYTES:
        raise UsageError(
            f"'{text}' is not the size of a card",
            hint="write 16GiB for a card sold as 16 GB, or what CUDA has of it, such as 15.47GiB",
            where="--gpu",
        )
    return _sold(int(number), CardOrigin.ASKED) if sold else _exact(size_bytes)


def _exact(size_bytes: int) -> PlannedCard:
    return PlannedCard(
        name=f"a card of {size_bytes / GIB:.2f} GiB", origin=CardOrigin.ASKED, total_bytes=size_bytes
    )


def _sold(size_gb: int, origin: CardOrigin, note: str | None = None) -> PlannedCard:
    examples = _SOLD_AS.get(size_gb, ())
    speeds = [speed for name in examples if (speed := card_bandwidth(name))]
    return PlannedCard(
        name=f"a card of {size_gb} GB",
        origin=origin,
        total_bytes=usable_bytes(size_gb * GIB),
        sold_gb=size_gb,
        bandwidth_bytes_per_s=(min(speeds), max(speeds)) if speeds else None,
        examples=examples,
        note=note,
    )


async def choose_card(host: Host, engine: Engine, asked: PlannedCard | None) -> PlannedCard:
    """The card to plan for: `asked`, else the engine's in this machine, else the reference card, which `note` says.

    Raises HostNotReady when the host's memory or the simulated card cannot be read; UsageError when a size is asked
    for and the engine runs on the CPU.
    """
    if asked is not None:
        if engine.card_kind is CardKind.CPU:
            raise UsageError(
                f"--gpu says how large a GPU is, and {engine.name} runs in this host's memory",
                hint="leave --gpu out, or choose --engine vllm",
                where="--gpu",
            )
        return asked
    try:
        card = await asyncio.to_thread(host.probe(engine.card_kind).read)
    except NoGpu as error:
        return _sold(REFERENCE_GB, CardOrigin.REFERENCE, note=error.message)
    gpu = await asyncio.to_thread(_gpu, host) if engine.card_kind is CardKind.GPU else None
    speed = card_bandwidth(card.name)
    return PlannedCard(
        name=card.name,
        origin=CardOrigin.HERE,
        total_bytes=card.total_bytes,
        card=card,
        gpu=gpu,
        bandwidth_bytes_per_s=(speed, speed) if speed else None,
    )


def _gpu(host: Host) -> GpuFacts | None:
    """What the driver says of the GPU beside its memory; None when it does not."""
    from agent_manager.gpu.nvml import SELECTOR_VARIABLE, read_facts  # noqa: PLC0415 - only where there is a GPU

    try:
        return read_facts(host.environ.get(SELECTOR_VARIABLE))
    except NoGpu:
        return None
