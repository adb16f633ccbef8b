"""stop: take agents off the card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agent_manager.cli import complete
from agent_manager.cli.launch import DrainTimeout, Wait  # noqa: TC001 - typer reads annotations at run time
from agent_manager.errors import UsageError

if TYPE_CHECKING:
    from agent_manager.cli.invocation import Invocation

EXAMPLES = """
agent-manager stop  # whatever is on the card
agent-manager stop dev --drain-timeout 2m
"""


def run(
    ctx: typer.Context,
    agents: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="AGENT", help="Agents; without any, what is on the card.", autocompletion=complete.agents
        ),
    ] = None,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="All there is; it is fine when there is nothing.")
    ] = False,
    drain_timeout: DrainTimeout = 60.0,
    wait: Wait = 0.0,
) -> None:
    """Take agents off the card: let requests under way finish, stop the engine, free the memory.

    Under a gateway, the next request brings an agent back.
    """
    from agent_manager.swap import operations  # noqa: PLC0415 - not for --help and completion

    invocation: Invocation = ctx.obj
    if agents and everything:
        raise UsageError("agents and --all exclude each other", hint="name the agents, or give --all alone")
    result = invocation.perform(
        lambda host, listener: operations.stop(
            host,
            agents or (),
            listener=listener,
            everything=everything,
            drain_timeout_s=drain_timeout,
            wait_s=wait,
        )
    )
    if invocation.output.json:
        invocation.output.document(result)
    elif result.stopped:
        invocation.output.success(f"stopped {', '.join(result.stopped)}")
    else:
        invocation.output.success("nothing was running")
