"""logs: the engine's log; still there after it failed."""

from __future__ import annotations

import sys
from datetime import datetime  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated

import typer

from agent_manager.cli import complete
from agent_manager.cli.values import moment, tail_lines
from agent_manager.errors import Interrupted

if TYPE_CHECKING:
    from agent_manager.cli.invocation import Invocation
    from agent_manager.runtimes.base import LogLine
    from agent_manager.swap.host import Host

EXAMPLES = """
agent-manager logs dev --tail 50
agent-manager logs dev -f --since 10m
"""


def run(
    ctx: typer.Context,
    agent: Annotated[
        str, typer.Argument(metavar="AGENT", help="An agent of the catalog.", autocompletion=complete.agents)
    ],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the engine ends.")] = False,
    tail: Annotated[
        int | None,
        typer.Option(metavar="N", parser=tail_lines, help="Only the last lines: a number, or all."),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(metavar="T", parser=moment, help="Only from then: a time, or 10m, 2h ago."),
    ] = None,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="Put the time before each line.")
    ] = False,
) -> None:
    """Print the engine's log: of the one that runs, else of the last one, however it ended."""
    from agent_manager.swap.status import agent_logs  # noqa: PLC0415 - not for --help and completion

    invocation: Invocation = ctx.obj

    async def copy(host: Host) -> None:
        async for line in agent_logs(host, agent, tail=tail, since=since, follow=follow):
            _write(line, invocation, timestamps=timestamps)
            if follow:
                sys.stdout.flush()

    try:
        invocation.read(copy)
    except Interrupted as interrupted:
        raise typer.Exit(interrupted.exit_code) from None


def _write(line: LogLine, invocation: Invocation, *, timestamps: bool) -> None:
    if invocation.output.json:
        invocation.output.json_line(line)
    else:
        stamp = line.at.isoformat(timespec="milliseconds") + " " if timestamps else ""
        invocation.output.result(stamp + line.text)
