"""Shows a scene in the live view: `show.py SCENE [--no-color] [--simulated] [--crash]`."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from agent_manager.cli.output import Output
from agent_manager.cli.runner import run
from agent_manager.cli.stats_view import show
from agent_manager.errors import Interrupted, OperationFailed
from agent_manager.swap.host import Interrupts
from tests.cli.scenes import LONG_S, SCENES, STEP_S

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent_manager.swap.stats import StatsSample


async def samples(scene: str, *, crash: bool) -> AsyncGenerator[StatsSample, None]:
    """All moments of a scene at once, and then none for ever."""
    try:
        for second in range(0, LONG_S, STEP_S):
            yield SCENES[scene](second)
        if crash:
            raise OperationFailed("the samples broke")
        await asyncio.Event().wait()
    finally:
        sys.stderr.write("samples closed\n")


def main(scene: str, *options: str) -> None:
    """Run it as a verb does."""
    view = show(
        samples(scene, crash="--crash" in options),
        output=Output(no_color="--no-color" in options),
        simulated="--simulated" in options,
        interval_s=STEP_S,
    )
    try:
        run(view, Interrupts())
    except Interrupted as interrupted:
        print("interrupted")  # noqa: T201 - the result
        raise SystemExit(interrupted.exit_code) from None
    print("left")  # noqa: T201 - the result


if __name__ == "__main__":
    main(*sys.argv[1:])
