"""The card and the agents on it, moment by moment, for `gpu-stats`. Reads only; never locks, never repairs.

A sample never waits long for an engine or a runtime: what they say is fetched beside it, and one that is slow to
answer is shown as it was last seen.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.errors import HostNotReady
from agent_manager.gpu import samplers
from agent_manager.gpu.host import CARD_ID as CPU
from agent_manager.gpu.nvml import SELECTOR_VARIABLE
from agent_manager.gpu.simulated import CARD_ID as SIMULATED
from agent_manager.runtimes.base import InstanceState
from agent_manager.swap.history import SwapHistory
from agent_manager.swap.lock import read_owner
from agent_manager.swap.observe import instances
from agent_manager.swap.stats import StatsSample

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

    from agent_manager.gpu.base import GpuSample, GpuSampler
    from agent_manager.runtimes.base import Instance, Runtime
    from agent_manager.swap.follow import Followed
    from agent_manager.swap.history import SwapSample
    from agent_manager.swap.host import Host
    from agent_manager.swap.notices import Owner
    from agent_manager.swap.stats import AgentSample

LOOK_PERIOD_S: Final = 2.0
"""How often runtimes are asked what runs, unless the card's processes or its owner's step changed."""
ASK_PERIOD_S: Final = 0.45
"""How often engines are asked at most; vLLM's /metrics takes it some milliseconds."""
PATIENCE_S: Final = 0.25
"""How long a sample waits for engines and runtimes, the first one excepted."""

_NO_GPU: Final = (SIMULATED, CPU)


async def watch(
    host: Host,
    *,
    interval_s: float,
    count: int | None = None,
    sampler_of: Callable[[str | None], GpuSampler] | None = None,
) -> AsyncGenerator[StatsSample, None]:
    """A sample every `interval_s`, `count` of them or without end. Close it when leaving it early.

    The card is the one of the engine that was chosen, else the one that AGENT_MANAGER_GPU names, else the one our
    engines run on, else the first GPU; it stays the same. The first step raises HostNotReady (NoGpu) when it
    cannot be read; later that is a note of a sample without `gpu`, and the card is read again as soon as it can be.
    """
    sampler_of = sampler_of or partial(samplers.sampler_of, state=host.state)
    found, notes = await instances(host.runtimes)
    opened = _open(_candidates(host, found), sampler_of)
    watcher = _Watcher(host, opened, interval_s)
    watcher.take(found, notes)
    try:
        due, taken = time.monotonic(), 0
        while True:
            yield await watcher.sample()
            taken += 1
            if taken == count:
                return
            due = max(due + interval_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
    finally:
        await watcher.close()


def _candidates(host: Host, found: Sequence[Instance]) -> list[str | None]:
    """The cards that may be meant, best first; None is the first GPU."""
    cards = [each.spec.card for each in found if each.state is InstanceState.RUNNING]
    ours = [card for card in cards if card not in _NO_GPU]
    best = host.environ.get(SELECTOR_VARIABLE) or next(iter(ours), None)
    engine = host.engine or (None if ours else host.catalog.engine)
    if engine is not None:
        from agent_manager.engines.registry import engine_named  # noqa: PLC0415 - often nothing is chosen

        best = {"simulated": SIMULATED, "cpu": CPU}.get(engine_named(engine, host.state).card_kind, best)
    if host.engine is not None:
        return [best]
    return list(dict.fromkeys((best, *(card for card in cards if card in _NO_GPU))))


class _Opened(Struct, frozen=True, kw_only=True):
    """A card that can be read, its first sample, and why it is not the first choice, if that is another."""

    sampler: GpuSampler
    sample: GpuSample
    instead: str | None


def _open(candidates: Sequence[str | None], sampler_of: Callable[[str | None], GpuSampler]) -> _Opened:
    """The first card that can be read; blocks, NVML takes up to a second to begin.

    Raises HostNotReady, saying why the first choice cannot be read.
    """
    first_error: HostNotReady | None = None
    for card in candidates:
        sampler = sampler_of(card)
        try:
            sample = sampler.sample()
        except HostNotReady as error:
            sampler.close()
            first_error = first_error or error
        else:
            instead = first_error.message if first_error else None
            return _Opened(sampler=sampler, sample=sample, instead=instead)
    raise first_error or AssertionError("no card to choose from")


class _Watcher:
    """What is known from sample to sample."""

    def __init__(self, host: Host, opened: _Opened, interval_s: float) -> None:
        self._host = host
        self._sampler = opened.sampler
        self._card = opened.sample.uuid
        self._first: GpuSample | None = opened.sample
        self._instead = opened.instead
        self._patience_s: float | None = None
        self._next_patience_s = min(PATIENCE_S, interval_s / 2)
        self._signs: tuple[Owner | None, set[int] | None] | None = None
        self._followed: dict[str, Followed] = {}
        self._elsewhere: tuple[Instance, ...] = ()
        self._swaps: tuple[SwapSample, ...] = ()
        self._runtime_notes: tuple[str, ...] = ()
        self._looked_at = self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def sample(self) -> StatsSample:
        """The next one."""
        gpu, trouble = (self._first, None) if self._first else await asyncio.to_thread(self._read)
        self._first = None
        owner = read_owner(self._host.state, self._card)
        signs = (owner, {process.pid for process in gpu.processes} if gpu else None)
        if self._signs not in (None, signs):
            self._looked_at = float("-inf")
        self._signs = signs
        await self._ask()
        agents = tuple(each.sample(gpu, owner) for each in self._followed.values())
        return StatsSample(
            at=datetime.now(UTC),
            gpu=gpu,
            agents=agents,
            swaps=self._swaps,
            notes=(*((trouble,) if trouble else ()), *self._notes(agents, owner)),
        )

    def take(self, found: Sequence[Instance], notes: tuple[str, ...]) -> None:
        """What the runtimes say just now."""
        self._looked_at = time.monotonic()
        running = [each for each in found if each.state is InstanceState.RUNNING]
        ours = {f"{each.spec.id} {each.started_at}": each for each in running if each.spec.card == self._card}
        self._elsewhere = tuple(each for each in running if each.spec.card != self._card)
        self._followed = {
            key: self._followed.get(key) or _follow(self._host.runtimes[each.runtime], each)
            for key, each in ours.items()
        }
        self._swaps = SwapHistory(self._host.state, self._card).last()
        self._runtime_notes = notes

    async def close(self) -> None:
        """End what is under way. Never raises."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        self._sampler.close()

    def _read(self) -> tuple[GpuSample | None, str | None]:
        try:
            return self._sampler.sample(), None
        except HostNotReady as error:
            return None, f"{error.message}; it is read again when it is back"

    async def _ask(self) -> None:
        now = time.monotonic()
        if self._asking is None and now - self._asked_at >= ASK_PERIOD_S:
            self._asked_at = now
            self._asking = asyncio.create_task(self._refresh())
        if self._asking is None:
            return
        await asyncio.wait((self._asking,), timeout=self._patience_s)
        self._patience_s = self._next_patience_s
        if self._asking.done():
            self._asking.result()
            self._asking = None

    async def _refresh(self) -> None:
        """Ask the engines, and when it is time for that, the runtimes before them."""
        look = time.monotonic() - self._looked_at >= LOOK_PERIOD_S
        if look:
            self.take(*await instances(self._host.runtimes))
        await asyncio.gather(*(each.ask(thoroughly=look) for each in self._followed.values()))

    def _notes(self, agents: Sequence[AgentSample], owner: Owner | None) -> Iterator[str]:
        if self._instead is not None:
            yield f"{self._instead}; shown is {self._card}"
        if others := self._sampler.others():
            yield f"not shown: GPU {', '.join(others)}; {SELECTOR_VARIABLE} chooses"
        for instance in self._elsewhere:
            yield f"not shown: {instance.spec.agent} is on {instance.spec.card}"
        if owner and owner.step and owner.agent not in {each.name for each in agents}:
            yield f"{owner.verb} (pid {owner.pid}): {owner.step} {owner.agent or ''}".rstrip()
        yield from self._runtime_notes


def _follow(runtime: Runtime, instance: Instance) -> Followed:
    from agent_manager.swap.follow import Followed  # noqa: PLC0415 - not for a card that nothing of ours is on

    return Followed(runtime, instance)
