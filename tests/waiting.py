"""Waiting for what a test expects, with an end."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_S = 0.01


async def until(condition: Callable[[], Any], what: str, *, patience_s: float) -> None:
    """Wait for a condition, which may be awaitable; fail the test when it does not come true."""
    deadline = time.monotonic() + patience_s
    while True:
        held = condition()
        if asyncio.iscoroutine(held):
            held = await held
        if held:
            return
        assert time.monotonic() < deadline, f"{what}: still not after {patience_s:.0f} s"
        await asyncio.sleep(POLL_S)
