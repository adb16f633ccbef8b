"""The live view of a card: sample after sample on the whole terminal, until the user leaves."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from agent_manager.cli.screen import Screen
from agent_manager.cli.stats_layout import PLAIN, UNICODE, View
from agent_manager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent_manager.cli.output import Output
    from agent_manager.swap.stats import StatsSample


async def show(
    samples: AsyncGenerator[StatsSample, None], *, output: Output, simulated: bool, interval_s: float
) -> None:
    """Draw each sample until q or Esc is pressed, the samples end, or the terminal is gone; then close them.

    `simulated`: it is the simulated card that is shown, and its title says so. The terminal is given back as it
    was, whatever happens. Raises UsageError where there is no terminal, and what the samples raise.
    """
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        raise UsageError(
            "the live view needs a terminal", hint="print one table with --once, or samples with --json"
        )
    view = View(interval_s=interval_s, simulated=simulated)

    def redraw() -> None:
        screen.draw(view.lines(*screen.size))

    async def follow() -> None:
        async for sample in samples:
            view.take(sample)
            redraw()

    with Screen(output, redraw) as screen:
        view.glyphs = PLAIN if screen.plain else UNICODE
        redraw()
        tasks = [asyncio.ensure_future(follow()), asyncio.ensure_future(screen.left.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended, _ = await asyncio.gather(*tasks, return_exceptions=True)
            await samples.aclose()
    if isinstance(ended, Exception):
        raise ended
