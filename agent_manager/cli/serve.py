"""serve: the gateway, one door for all agents."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from agent_manager.cli.invocation import Invocation
    from agent_manager.cli.output import Output
    from agent_manager.gateway.serve import Addresses

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

    Each agent's port leads to that agent; on the common port the request's model does.
    'agent-manager reload' and SIGHUP read the catalog anew. Ctrl-C finishes what runs,
    then takes the agent off the card; a second one does not wait.
    """
    from uvloop import new_event_loop  # noqa: PLC0415 - not for --help

    from agent_manager.gateway.serve import serve  # noqa: PLC0415 - likewise

    invocation: Invocation = ctx.obj
    invocation.perform(
        lambda host, listener: serve(
            host, listener=listener, opened=partial(_tell, invocation.output), wait_s=wait
        ),
        new_loop=new_event_loop,
    )


def _tell(output: Output, addresses: Addresses) -> None:
    """Where clients go, now that they can."""
    if output.json:
        output.json_line(addresses)
        return
    shown = f"[{addresses.host}]" if ":" in addresses.host else addresses.host
    lines = [f"gateway    http://{shown}:{addresses.port}/v1   the request's model decides"]
    lines += [f"{name:<10} http://{shown}:{port}/v1" for name, port in addresses.agents.items()]
    output.result("\n".join(lines))
    sys.stdout.flush()  # whoever waits for it reads a pipe, and no more comes for hours
