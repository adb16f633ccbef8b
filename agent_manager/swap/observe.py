"""Reading back what is on a card: runtimes say what runs, the engines' own answers and logs say how it is."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from msgspec import Struct

from agent_manager.engines.base import READY
from agent_manager.engines.client import EngineClient
from agent_manager.errors import AgentManagerError
from agent_manager.runtimes.base import InstanceState
from agent_manager.swap.takeover import Found, Life

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from agent_manager.engines.base import Phase
    from agent_manager.runtimes.base import Instance, Runtime

LOG_LINES = 400
LOOKS = 3
"""How often an engine that was ready must fail to answer before it counts as broken and may be killed."""


class Observed(Struct, frozen=True, kw_only=True):
    """An instance, how it is, and for one that does not serve the last phase of its load and its last lines."""

    instance: Instance
    life: Life
    phase: Phase | None = None
    tail: tuple[str, ...] = ()


async def instances(runtimes: Mapping[str, Runtime]) -> tuple[tuple[Instance, ...], tuple[str, ...]]:
    """All instances of all runtimes, oldest first, and a note for each runtime that did not answer."""
    found: list[Instance] = []
    notes: list[str] = []
    for name, runtime in runtimes.items():
        try:
            found += await runtime.list()
        except AgentManagerError as error:
            notes.append(f"runtime {name} does not answer: {error.message}")
    return tuple(found), tuple(notes)


async def observe(runtime: Runtime, instance: Instance) -> Observed:
    """How an instance is, by one health request and, where that fails, its log. Changes nothing."""
    if instance.state is not InstanceState.RUNNING:
        tail = await _tail(runtime, instance)
        return Observed(instance=instance, life=Life.OVER, tail=tail)
    if await EngineClient(instance.spec.engine_port).health():
        return Observed(instance=instance, life=Life.SERVING)
    from agent_manager.engines.phases import PhaseTracker  # noqa: PLC0415 - its patterns, only for one that is silent

    tail = await _tail(runtime, instance)
    tracker = PhaseTracker()
    for line in tail:
        tracker.feed(line)
    was_ready = tracker.phase is not None and tracker.phase.name == READY
    life = Life.BROKEN if was_ready else Life.LOADING
    return Observed(instance=instance, life=life, phase=tracker.phase, tail=tail)


async def find(runtimes: Mapping[str, Runtime], card: str, wanted: Collection[str] = ()) -> tuple[Found, ...]:
    """What is on `card`, oldest first; `wanted` are the fingerprints of engines that may stay there."""
    everything, _ = await instances(runtimes)
    mine = [instance for instance in everything if instance.spec.card == card]
    observed = await asyncio.gather(*(_observe_well(runtimes[each.runtime], each) for each in mine))
    return tuple(
        Found(instance=each.instance, life=each.life, wanted=each.instance.spec.fingerprint in wanted)
        for each in observed
    )


async def _observe_well(runtime: Runtime, instance: Instance) -> Observed:
    # A long prompt can keep a busy engine from answering for seconds; killing it would lose its requests.
    seen = await observe(runtime, instance)
    for _ in range(LOOKS - 1):
        if seen.life is not Life.BROKEN:
            break
        seen = await observe(runtime, instance)
    return seen


async def _tail(runtime: Runtime, instance: Instance) -> tuple[str, ...]:
    lines: list[str] = []
    with contextlib.suppress(AgentManagerError):  # it may be removed while we look
        async with contextlib.aclosing(runtime.logs(instance.spec.id, tail=LOG_LINES)) as log:
            lines = [line.text async for line in log]
    return tuple(lines)
