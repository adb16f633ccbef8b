"""The watchman: notices an engine that is there and does not work, which its /health does not tell.

An engine that idles is asked for a word; one that has requests must get on with them, as its own count of tokens
shows. One that fails is ended: its next request starts it again.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.engines.client import EngineClient
from agent_manager.errors import AgentManagerError
from agent_manager.swap.notices import Remark
from agent_manager.swap.readiness import ANSWER_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_manager.swap.events import Occupant
    from agent_manager.swap.keep import LastingController
    from agent_manager.swap.notices import Listener

POLL_S: Final = 0.05
LOOKS: Final = 4
"""How often, at least, an engine is looked at before it counts as stalled."""


class Rounds(Struct, frozen=True, kw_only=True):
    """When the watchman looks, every `every_s`, and for how long he waits. A shorter stall timeout shortens them.

    `answer_s`: for a word, as long as for the first one after a load. `gone_s`: for an engine that hung up on a
    request, and does not listen any more, to be over; what is left of it is ended then.
    """

    every_s: float = 60.0
    answer_s: float = ANSWER_TIMEOUT_S
    gone_s: float = 15.0


class Watchman:
    """Looks after the resident. `resident` says who serves now, `busy` whether requests run in it.

    `stall_s` says how long an engine may have requests and not get on with them.
    """

    def __init__(
        self,
        *,
        controller: LastingController,
        resident: Callable[[], Occupant | None],
        busy: Callable[[], bool],
        stall_s: Callable[[], float],
        listener: Listener,
        rounds: Rounds,
    ) -> None:
        self._controller = controller
        self._resident = resident
        self._busy = busy
        self._stall_s = stall_s
        self._listener = listener
        self._rounds = rounds
        self._progress = _Progress()
        self._doubted: Occupant | None = None
        self._doubt: asyncio.Task[None] | None = None
        self._ended: dict[str, str] = {}

    async def run(self) -> None:
        """Look again and again until cancelled, at once to begin with: of one that was found nothing is known."""
        try:
            while True:
                resident = self._resident()
                if resident is not None:
                    await (self._look(resident) if self._busy() else self._ask(resident))
                await asyncio.sleep(min(self._rounds.every_s, self._stall_s() / LOOKS))
        finally:
            if self._doubt is not None:
                self._doubt.cancel()
                await asyncio.gather(self._doubt, return_exceptions=True)

    async def make_sure(self, occupant: Occupant) -> None:
        """It hung up on a request: return when it answers again, or when everybody knows that it is gone."""
        if self._doubt is None or self._doubt.done() or self._doubted != occupant:
            self._doubted, self._doubt = occupant, asyncio.create_task(self._until_sure(occupant))
        await asyncio.shield(self._doubt)

    def why_ended(self, instance_id: str) -> str | None:
        """Why we ended it; None when we did not."""
        return self._ended.pop(instance_id, None)

    async def _until_sure(self, occupant: Occupant) -> None:
        deadline = time.monotonic() + self._rounds.gone_s
        while self._resident() == occupant and not await self._client(occupant).health():
            if time.monotonic() >= deadline:
                await self._end(occupant, "does not listen any more")
                return
            await asyncio.sleep(POLL_S)

    async def _ask(self, resident: Occupant) -> None:
        try:
            timeout_s = min(self._rounds.answer_s, self._stall_s())
            await self._client(resident).complete_once(resident.agent, timeout_s=timeout_s)
        except AgentManagerError as error:
            await self._end(resident, error.message.removeprefix(f"{resident.agent} "))

    async def _look(self, resident: Occupant) -> None:
        client = self._client(resident)
        reading = await client.metrics()
        silent = reading is None and not await client.health()
        done = (reading.prompt_tokens, reading.generation_tokens) if reading else None
        idle = reading is not None and reading.running + reading.waiting == 0
        if idle or not (silent or reading):
            done = None  # nothing to get on with, or nothing that tells of it
        stalled_s = self._progress.stalled_s(resident, done, silent=silent)
        if stalled_s >= self._stall_s():
            await self._end(resident, f"did not get on with its requests for {stalled_s:.0f} s")

    async def _end(self, resident: Occupant, why: str) -> None:
        if self._resident() != resident:
            return
        self._ended[resident.instance_id] = f"{resident.agent} {why}"
        self._listener(Remark(message=f"{resident.agent} {why}, and is ended", warning=True))
        try:
            await self._controller.kill(resident)
        except AgentManagerError as error:
            self._listener(Remark(message=f"{resident.agent} is not ended: {error.message}", warning=True))

    def _client(self, occupant: Occupant) -> EngineClient:
        return EngineClient(self._controller.spec_of(occupant).engine_port)


class _Progress:
    """For how long one resident has had the same number of tokens."""

    def __init__(self) -> None:
        self._seen: tuple[object, ...] | None = None
        self._since_s = 0.0

    def stalled_s(self, resident: Occupant, done: tuple[float | None, ...] | None, *, silent: bool) -> float:
        """0 when something changed. `done` None: it has nothing to do, unless it is `silent`."""
        now_s, before = time.monotonic(), self._seen
        self._seen = (resident.instance_id, done, silent)
        if before != self._seen or (done is None and not silent):
            self._since_s = now_s
        return now_s - self._since_s
