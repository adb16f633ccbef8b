"""env: what points an OpenAI client at an agent, to eval."""

from __future__ import annotations

import contextlib
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from agent_manager.cli import complete
from agent_manager.errors import AgentManagerError
from agent_manager.swap.notices import AgentState

if TYPE_CHECKING:
    from agent_manager.catalog.agents import Agent
    from agent_manager.cli.invocation import Invocation

EXAMPLES = """
eval "$(agent-manager env dev)"
agent-manager env dev --json
"""

API_KEY = "unused"
"""Clients insist on one; no engine here asks for it."""


def run(
    ctx: typer.Context,
    agent: Annotated[
        str, typer.Argument(metavar="AGENT", help="An agent of the catalog.", autocompletion=complete.agents)
    ],
) -> None:
    """Print OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL for a shell to eval, whether it runs or not."""
    from agent_manager.swap import status  # noqa: PLC0415 - not for --help and completion

    invocation: Invocation = ctx.obj
    variables = environment(invocation.host().catalog.agent(agent))
    if invocation.output.json:
        invocation.output.document(variables)
    else:
        for name, value in variables.items():
            invocation.output.result(f"export {name}={shlex.quote(value)}")
    with contextlib.suppress(AgentManagerError):
        states = {each.name: each.state for each in invocation.read(status.report).agents}
        if states[agent] is not AgentState.READY:
            invocation.output.note(
                f"{agent} is {states[agent]}; 'agent-manager launch {agent}' puts it on the card"
            )


def environment(agent: Agent) -> dict[str, str]:
    """The variables that OpenAI clients read, for this agent; OPENAI_MODEL is for scripts."""
    return {"OPENAI_BASE_URL": base_url(agent), "OPENAI_API_KEY": API_KEY, "OPENAI_MODEL": agent.name}


def base_url(agent: Agent) -> str:
    """Where an OpenAI client finds the agent when it is on the card."""
    return f"http://localhost:{agent.port}/v1"
