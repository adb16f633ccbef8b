"""chat: talk to an agent, streaming."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from agent_manager.cli import complete
from agent_manager.cli.env import client_key
from agent_manager.errors import UsageError

if TYPE_CHECKING:
    from agent_manager.cli.invocation import Invocation
    from agent_manager.cli.output import Output

EXAMPLES = """
agent-manager chat dev "write a haiku"
git diff | agent-manager chat dev --system "review this" -
agent-manager chat dev  # a conversation; Ctrl-D ends it
"""


def run(
    ctx: typer.Context,
    agent: Annotated[
        str, typer.Argument(metavar="AGENT", help="An agent of the catalog.", autocompletion=complete.agents)
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to say; - or nothing reads it from a pipe."),
    ] = None,
    *,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The system prompt, instead of the agent's own.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most so many tokens.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", min=0.0, help="Instead of the agent's own.")
    ] = None,
) -> None:
    """Talk to an agent that is on the card; the answer is printed as it comes.

    Without a prompt, on a terminal, it is a conversation: Ctrl-C stops an answer, Ctrl-D ends it.
    """
    from agent_manager.cli.talk import Talk  # noqa: PLC0415 - not for --help and completion

    invocation: Invocation = ctx.obj
    catalog = invocation.host().catalog
    chosen, key = catalog.agent(agent), client_key(catalog.gateway, os.environ)
    text = _prompt(prompt or [], invocation.output)
    talk = Talk(
        chosen, invocation.output, key=key, system=system, max_tokens=max_tokens, temperature=temperature
    )
    if text is None:
        talk.converse()
    else:
        talk.once(text)


def _prompt(words: list[str], output: Output) -> str | None:
    """The prompt from the command line or the pipe; None for a conversation. Raises UsageError for none at all."""
    if words and words != ["-"]:
        return " ".join(words)
    if not words and sys.stdin.isatty():
        if sys.stdout.isatty() and not output.json:
            return None
        raise UsageError("there is no prompt", hint="give it as an argument, or through a pipe")
    text = sys.stdin.read().strip()
    if not text:
        raise UsageError("the prompt is empty", hint="give it as an argument, or through a pipe")
    return text
