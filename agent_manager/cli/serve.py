"""serve: the gateway, one door for all agents."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from agent_manager.cli.invocation import Invocation
    from agent_manager.cli.output import Output
    from agent_manager.gateway.serve import Doors

EXAMPLES = """
agent-manager serve
agent-manager --engine simulated serve  # no GPU needed
curl localhost:8080/v1/models
"""


def run(
    ctx: typer.Context,
    *,
    wait: Annotated[
        float, typer.Option(metavar="S", min=0, help="Wait so long for the card if somebody owns it.")
    ] = 0.0,
) -> None:
    """Serve all agents: requests decide who is on the card, and wait while it is swapped.

    Each agent's port leads to that agent; on the common port the request's model does. Ctrl-C finishes what runs,
    then takes the agent off the card.
    """
    from agent_manager.gateway.serve import serve  # noqa: PLC0415 - aiohttp; not for --help

    invocation: Invocation = ctx.obj
    invocation.perform(
        lambda host, listener: serve(
            host, listener=listener, opened=partial(_tell, invocation.output), wait_s=wait
        )
    )


def _tell(output: Output, doors: Doors) -> None:
    """Where clients go, now that they can."""
    if output.json:
        output.json_line(doors)
        return
    shown = f"[{doors.host}]" if ":" in doors.host else doors.host
    lines = [f"gateway    http://{shown}:{doors.port}/v1   the request's model decides"]
    lines += [f"{name:<10} http://{shown}:{port}/v1" for name, port in doors.agents.items()]
    output.result("\n".join(lines))
