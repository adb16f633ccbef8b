"""A look at something that may hang, bounded: nobody waits for it longer than it may take."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from agent_manager.diagnosis.facts import Trouble
from agent_manager.errors import AgentManagerError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PART_S: Final = 8.0
"""How long a part of the host may take in all."""


async def within(what: str, look: Callable[[], T], limit_s: float = PART_S) -> T | Trouble:
    """What `look` returns, asked in a thread that is left behind when it takes longer, or when we are cancelled."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            return  # too late: nobody waits any more
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type] # without an error it is what `look` gave

    def run() -> None:
        result, error = None, None
        try:
            result = look()
        except Exception as raised:  # noqa: BLE001 - the top of a thread: it is raised where it is waited for
            error = raised
        with suppress(RuntimeError):  # the loop is over, and so is whoever wanted to know
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True, name=f"look at {what}").start()
    try:
        return await asyncio.wait_for(answer, limit_s)
    except TimeoutError:
        return Trouble(message=f"{what} did not answer within {limit_s:.0f} s")
    except AgentManagerError as error:
        return Trouble(message=error.message, hint=error.hint)
    except OSError as error:
        return Trouble(message=f"{what} cannot be read: {error.strerror or error}")
