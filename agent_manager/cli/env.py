"""env: what points an OpenAI client at an agent, to eval."""

from __future__ import annotations

import contextlib
import os
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from agent_manager.cli import complete
from agent_manager.errors import AgentManagerError
from agent_manager.swap.notices import AgentState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_manager.catalog.agents import Agent, Gateway
    from agent_manager.cli.invocation import Invocation

EXAMPLES = """
eval "$(agent-manager env dev)"
agent-manager env dev --json
"""

NO_KEY = "unused"
"""Clients insist on one; no engine here asks for it, only a gateway that has one."""


def run(
    ctx: typer.Context,
    agent: Annotated[
        str, typer.Argument(metavar="AGENT", help="An agent of the catalog.", autocompletion=complete.agents)
    ],
) -> None:
    """Print OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL for a shell to eval, whether it runs or not."""
    from agent_manager.swap import status  # noqa: PLC0415 - not for --help and completion

    invocation: Invocation = ctx.obj
    catalog = invocation.host().catalog
    chosen = catalog.agent(agent)
    if invocation.output.json:
        invocation.output.document(environment(chosen, client_key(catalog.gateway, os.environ)))
    else:
        lines = {name: shlex.quote(value) for name, value in environment(chosen, NO_KEY).items()}
        for name, value in (lines | _key_in_shell(catalog.gateway)).items():
            invocation.output.result(f"export {name}={value}")
    with contextlib.suppress(AgentManagerError):
        report = invocation.read(status.report)
        now = next(each for each in report.agents if each.name == agent)
        # Under a gateway a request brings it.
        if now.state is not AgentState.READY and now.base_url is None:
            invocation.output.note(
                f"{agent} is {now.state}; 'agent-manager launch {agent}' puts it on the card"
            )


def environment(agent: Agent, key: str) -> dict[str, str]:
    """The variables that OpenAI clients read, for this agent; OPENAI_MODEL is for scripts."""
    return {"OPENAI_BASE_URL": base_url(agent), "OPENAI_API_KEY": key, "OPENAI_MODEL": agent.name}


def client_key(gateway: Gateway, environ: Mapping[str, str]) -> str:
    """The key that a client shows: the gateway's, where the catalog names one and it can be read."""
    if gateway.api_key_env is not None:
        return environ.get(gateway.api_key_env) or NO_KEY
    if gateway.api_key_file is not None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return gateway.api_key_file.read_text("utf-8").strip() or NO_KEY
    return NO_KEY


def _key_in_shell(gateway: Gateway) -> dict[str, str]:
    """The same for a shell, which fetches it from where it is: the key itself is not printed."""
    if gateway.api_key_env is not None:
        return {"OPENAI_API_KEY": f'"${{{gateway.api_key_env}:-{NO_KEY}}}"'}
    if gateway.api_key_file is not None:
        return {"OPENAI_API_KEY": f'"$(cat {shlex.quote(str(gateway.api_key_file))})"'}
    return {}


def base_url(agent: Agent) -> str:
    """Where an OpenAI client finds the agent when it is on the card."""
    return f"http://localhost:{agent.port}/v1"
