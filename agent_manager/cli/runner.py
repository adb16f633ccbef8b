"""Runs one use case on one event loop, and hands it Ctrl-C as a value."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from agent_manager.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

    from agent_manager.swap.host import Interrupts

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(
    use_case: Coroutine[Any, Any, T],
    interrupts: Interrupts,
    *,
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> T:
    """Run it to its end and return its result. `new_loop` makes another kind of loop than asyncio's own.

    SIGINT, SIGTERM and SIGHUP fire `interrupts`; when nobody listens there, the use case is cancelled and
    Interrupted is raised. A signal that this process was told to ignore (nohup) stays ignored.
    """
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_interruptible(use_case, interrupts))


async def _interruptible(use_case: Coroutine[Any, Any, T], interrupts: Interrupts) -> T:
    task = asyncio.ensure_future(use_case)
    interrupted = False

    def on_signal() -> None:
        nonlocal interrupted
        if not interrupts.fire():
            interrupted = True
            task.cancel()

    with _signals(on_signal):
        try:
            return await task
        except asyncio.CancelledError:
            if interrupted:
                raise Interrupted("interrupted") from None
            raise


@contextmanager
def _signals(handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in taken:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
