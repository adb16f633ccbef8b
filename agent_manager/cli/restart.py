"""restart: stop an agent and launch it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agent_manager.cli import complete
from agent_manager.cli.launch import DrainTimeout, Wait, print_launched

if TYPE_CHECKING:
    from agent_manager.cli.invocation import Invocation

EXAMPLES = """
agent-manager restart dev
agent-manager restart dev --drain-timeout 0  # does not wait for requests under way
"""


def run(
    ctx: typer.Context,
    agent: Annotated[
        str, typer.Argument(metavar="AGENT", help="An agent of the catalog.", autocompletion=complete.agents)
    ],
    *,
    drain_timeout: DrainTimeout = 60.0,
    wait: Wait = 0.0,
) -> None:
    """Stop an agent and launch it again; the way to make a change of the catalog take effect.

    Under a gateway, 'agent-manager reload' is that way.
    """
    from agent_manager.swap import operations  # noqa: PLC0415 - not for --help and completion

    invocation: Invocation = ctx.obj
    result = invocation.perform(
        lambda host, listener: operations.restart(
            host, agent, listener=listener, drain_timeout_s=drain_timeout, wait_s=wait
        )
    )
    print_launched(result, invocation.output)
