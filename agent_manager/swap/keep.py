"""A controller that goes on: swap after swap, as requests and the end of engines want it.

It is what the gateway has for as long as it owns the card; a verb of the command line makes one swap and is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from agent_manager.errors import NotRunning
from agent_manager.swap import events as ev
from agent_manager.swap.controller import Controller
from agent_manager.swap.lookout import Lookout
from agent_manager.swap.machine import step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_manager.runtimes.base import Exit, InstanceSpec
    from agent_manager.swap.card import State
    from agent_manager.swap.controller import Newcomer


class LastingController(Controller):
    """Takes one card through as many swaps as there are. `state` is the card as `keep` has it now."""

    state: State | None = None
    _hear: Callable[[State, State, ev.Effect], None] | None = None
    _wake: asyncio.TimerHandle | None = None
    _lookout: Lookout | None = None

    async def keep(
        self,
        state: State,
        first: ev.Event | ev.AwaitReady | None,
        hear: Callable[[State, State, ev.Effect], None],
    ) -> None:
        """Perform what the machine decides, swap after swap, until cancelled.

        `first` as in `run`; further events come through `tell`. `hear` is called with the state before, the state
        after, and each effect once it was performed; it must not block.
        """
        self.state = state
        lookout = self._lookout = Lookout(self._ended, self.tell)
        if isinstance(first, ev.AwaitReady):
            await self._perform(first)
        elif first is not None:
            self.tell(first)
        try:
            while True:
                self._hear = hear
                source, event = await self._events.get()
                self._hear = None
                if source is not None and source is not self._slow:
                    continue
                before = self.state
                state, effects = step(before, event, time.monotonic())
                self.state = state
                # An end that was asked for is no crash.
                lookout.follow(None if state.swap else state.resident)
                # Requests go on at once; removing what has left the card may take a second.
                for effect in sorted(effects, key=lambda each: not isinstance(each, ev.Grant | ev.Wake)):
                    self._hear = hear if isinstance(effect, ev.Remove) else None
                    await self._perform(effect)
                    if isinstance(effect, ev.Wake):
                        self._wake_at(effect.at_s)
                    elif isinstance(effect, ev.Finish):
                        with contextlib.suppress(OSError):
                            self._lock.tell()  # nothing is being done any more
                    hear(before, state, effect)
        finally:
            self._hear = None
            lookout.follow(None)
            if self._wake is not None:
                self._wake.cancel()
            await self._abandon()

    def _wake_at(self, at_s: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = asyncio.get_running_loop().call_at(at_s, self._due, at_s)

    def _due(self, at_s: float) -> None:
        # The event loop's clock is time.monotonic, but uvloop counts whole milliseconds, and may be early.
        if time.monotonic() < at_s:
            self._wake_at(at_s)
        else:
            self.tell(ev.Due())

    def tell(self, event: ev.Event) -> None:
        """Something happened: a request came or ended, somebody wants something. Never blocks."""
        if not self._settled(event):
            self._events.put_nowait((None, event))

    def _settled(self, event: ev.Event) -> bool:
        """Take the step of a request that changes nothing on the card, before `tell` returns.

        Most requests are such, and their way in and out is two trips through the event loop shorter for it.
        """
        hear, before = self._hear, self.state
        if hear is None or before is None or not self._events.empty():
            return False  # `keep` is busy, and events are taken in order
        if not isinstance(event, ev.Arrived | ev.Finished):
            return False
        state, effects = step(before, event, time.monotonic())
        for effect in effects:
            if not isinstance(effect, ev.Grant | ev.Wake):
                return False  # `keep` takes it again, and performs what comes of it
        if state.swap is not before.swap:
            return False
        self.state = state
        for effect in effects:
            if isinstance(effect, ev.Wake):
                self._wake_at(effect.at_s)
            hear(before, state, effect)
        return True

    @property
    def last_end(self) -> Exit | None:
        """How the last resident ended that did so by itself; None when nobody saw it."""
        return self._lookout.last if self._lookout else None

    def renew(self, newcomers: Mapping[str, Newcomer]) -> None:
        """Start these from now on. Those of earlier are kept, since a swap to one may be under way."""
        self._newcomers |= newcomers

    def spec_of(self, occupant: ev.Occupant) -> InstanceSpec:
        """What it was started as, which may be of an earlier catalog."""
        return self._spec(occupant.instance_id)

    async def kill(self, occupant: ev.Occupant) -> None:
        """End an instance that does not answer any more. Raises what the runtime raises."""
        if occupant.instance_id in self._known:
            await self._runtime(occupant.instance_id).stop(occupant.instance_id, grace_s=0)

    async def _ended(self, occupant: ev.Occupant) -> Exit:
        if occupant.instance_id not in self._known:
            raise NotRunning(f"no instance '{occupant.instance_id}'", where=occupant.instance_id)
        return await self._runtime(occupant.instance_id).wait(occupant.instance_id)
