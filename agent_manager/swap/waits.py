"""The two waits of a swap that no runtime can do: until an engine has finished, until the card has room."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from agent_manager.engines.client import EngineClient
from agent_manager.errors import MemoryHeld

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_manager.gpu.base import Card, GpuProbe
    from agent_manager.runtimes.base import InstanceSpec, Runtime

MEMORY_POLL_S = 0.05
DRAIN_POLL_S = 0.05
SILENT_S = 30.0
"""An engine that does not tell for so long what it has is not waited for any more; it hangs."""


async def drained(
    runtime: Runtime, spec: InstanceSpec, *, timeout_s: float, say: Callable[[str], None]
) -> bool:
    """Wait until nothing runs or waits in the engine; False when it ended, went silent, or time was over before.

    `say` is told once what it still has.
    """
    client, heard_at = EngineClient(spec.engine_port), time.monotonic()
    deadline = heard_at + timeout_s
    ended = asyncio.ensure_future(runtime.wait(spec.id))
    told = False
    try:
        while not ended.done() and time.monotonic() < min(deadline, heard_at + SILENT_S):
            load = await client.load()
            if load is not None:
                heard_at = time.monotonic()
                count = load.running + load.waiting
                if count == 0:
                    return True
                if not told:
                    told = True
                    requests = "1 request" if count == 1 else f"{count} requests"
                    say(f"{spec.agent} finishes {requests} first")
            await asyncio.wait((ended,), timeout=DRAIN_POLL_S)
    finally:
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
    return False


async def until_free(
    probe: GpuProbe, agent: str, needed_bytes: int, *, timeout_s: float, begun: Callable[[str], None]
) -> None:
    """Wait until the card has so much memory free. Raises MemoryHeld, naming who holds it.

    `begun` is told who, once, when it is not there at once.
    """
    deadline, told = time.monotonic() + timeout_s, False
    while True:
        card = await asyncio.to_thread(probe.read)
        if card.free_bytes >= needed_bytes:
            return
        if time.monotonic() >= deadline:
            raise _memory_held(agent, needed_bytes, card)
        if not told:
            told = True
            begun(_who_holds(card))
        await asyncio.sleep(MEMORY_POLL_S)


def _who_holds(card: Card) -> str:
    holders = ", ".join(f"{holder.name} (pid {holder.pid})" for holder in card.holders) or "nobody who shows"
    return f"{card.free_bytes / 2**30:.2f} of {card.total_bytes / 2**30:.2f} GiB are free; held by {holders}"


def _memory_held(agent: str, needed_bytes: int, card: Card) -> MemoryHeld:
    return MemoryHeld(
        f"{agent} needs {needed_bytes / 2**30:.2f} GiB free on {card.id}: {_who_holds(card)}",
        hint="end what holds it, or lower gpu_memory_utilization and context in the catalog",
        where=f"agents.{agent}",
    )
