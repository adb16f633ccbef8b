"""SIGHUP: the catalog is read anew, unless the terminal is gone that the gateway was started in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_manager.gateway.steward import Steward
    from agent_manager.swap.host import Interrupts


@contextlib.contextmanager
def hang_ups(interrupts: Interrupts, steward: Steward) -> Iterator[None]:
    """Reload at each SIGHUP inside the block; what is wrong with the catalog is told, and changes nothing.

    A terminal that is closed sends the same signal, which then is an interrupt. For the main thread only.
    """
    had_terminal = _has_terminal()
    reloads: set[asyncio.Task[None]] = set()

    def on_signal() -> None:
        if had_terminal and not _has_terminal():
            interrupts.fire()
            return
        reload = asyncio.ensure_future(steward.reload_alone())
        reloads.add(reload)
        reload.add_done_callback(reloads.discard)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, on_signal)
    try:
        yield
    finally:
        # Not removed: its default is to end this process, which is about to end in order.
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        for reload in reloads:
            reload.cancel()


def _has_terminal() -> bool:
    """Whether this process has a terminal that controls it, and that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
