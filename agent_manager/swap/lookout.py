"""The lookout: tells when the one that serves ends by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from agent_manager.errors import AgentManagerError, NotRunning
from agent_manager.swap import events as ev

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent_manager.runtimes.base import Exit

LOOK_AGAIN_S: Final = 1.0
"""A runtime that does not answer (Docker is being restarted) is asked again after this."""


class Lookout:
    """Watches one resident at a time. `ended` waits for the end of one, `tell` takes the event."""

    def __init__(
        self, ended: Callable[[ev.Occupant], Awaitable[Exit]], tell: Callable[[ev.Event], None]
    ) -> None:
        self._ended = ended
        self._tell = tell
        self._resident: ev.Occupant | None = None
        self._task: asyncio.Task[None] | None = None
        self.last: Exit | None = None
        """How the last one ended that did so by itself; None when nobody saw it."""

    def follow(self, resident: ev.Occupant | None) -> None:
        """Watch this one from now on, None nobody."""
        if resident == self._resident:
            return
        self._resident = resident
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._wait(resident)) if resident else None

    async def _wait(self, resident: ev.Occupant) -> None:
        self.last = await self._end_of(resident)
        self._tell(ev.Exited(instance_id=resident.instance_id))

    async def _end_of(self, resident: ev.Occupant) -> Exit | None:
        while True:
            try:
                return await self._ended(resident)
            except NotRunning:
                return None
            except AgentManagerError:
                await asyncio.sleep(LOOK_AGAIN_S)
