"""What a person wants of the card while requests use it: told to the swap machine, one answer for each."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent_manager.swap import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable


class _Wish:
    """`answer`: what became of it, and what is set when the swap that was in its way is over."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[ev.Outcome, asyncio.Event]]
        self.answer = asyncio.get_running_loop().create_future()
        self.given_up = False


class Wishes:
    """`tell` takes events for the machine; whoever hears what that decides says so with `finished`."""

    def __init__(self, tell: Callable[[ev.Event], None]) -> None:
        self._tell = tell
        self._asked: dict[str, _Wish] = {}
        self._ended = asyncio.Event()

    async def ask(self, name: str, wanted: ev.Wanted) -> ev.Outcome:
        """Say what is wanted, and wait for what became of it.

        BUSY: another swap was under way, and is over now. One that was given up meanwhile is INTERRUPTED.
        """
        wish = self._asked[name] = _Wish()
        try:
            self._tell(replace(wanted, wish=name))
            outcome, ended = await wish.answer
        finally:
            del self._asked[name]
        if outcome.result is ev.Result.BUSY and wish.given_up:
            return replace(outcome, result=ev.Result.INTERRUPTED)
        if outcome.result is ev.Result.BUSY:
            await ended.wait()
        return outcome

    def asked(self, name: str) -> bool:
        """Whether the machine has that wish, and did not answer it yet."""
        return name in self._asked

    async def swap_ended(self) -> None:
        """Wait until the swap that is under way is over."""
        await self._ended.wait()

    def interrupt(self, name: str) -> bool:
        """Undo the swap of that wish; False when it has not begun one, or its end was told."""
        wish = self._asked.get(name)
        if wish is None:
            return False
        wish.given_up = True
        self._tell(ev.Interrupted(wish=name))
        return True

    def finished(self, outcome: ev.Outcome) -> None:
        """A swap has ended, or one was not begun."""
        wish = self._asked.get(outcome.wish or "")
        if wish is not None and not wish.answer.done():
            wish.answer.set_result((outcome, self._ended))
        if outcome.result is not ev.Result.BUSY:
            self._ended.set()
            self._ended = asyncio.Event()
