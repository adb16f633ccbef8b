"""The global options: declared once, accepted before or after every verb, overridden by nothing but themselves.

An option beats its environment variable, which beats the catalog.
"""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agent_manager import __version__
from agent_manager.cli import complete
from agent_manager.cli.invocation import Choice, Invocation
from agent_manager.cli.output import Output
from agent_manager.errors import NotYet

if TYPE_CHECKING:
    from collections.abc import Sequence

EngineName = Literal["vllm", "vllm-cpu", "simulated"]
RuntimeName = Literal["docker", "process"]


def _version(value: bool) -> None:  # noqa: FBT001 - typer calls it with the flag's value
    if value:
        sys.stdout.write(f"agent-manager {__version__}\n")
        raise typer.Exit


def declare(  # noqa: PLR0913 - the global options of the contract, one parameter each
    ctx: typer.Context,
    *,
    catalog: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            envvar="AGENT_MANAGER_CATALOG",
            show_envvar=False,
            help="The catalog, models.yaml.",
        ),
    ] = None,
    engine: Annotated[
        EngineName | None,
        typer.Option(
            envvar="AGENT_MANAGER_ENGINE",
            show_envvar=False,
            metavar="NAME",
            help="What serves the model: vllm, vllm-cpu or simulated.",
        ),
    ] = None,
    runtime: Annotated[
        RuntimeName | None,
        typer.Option(
            envvar="AGENT_MANAGER_RUNTIME",
            show_envvar=False,
            metavar="NAME",
            help="Where the engine runs: docker or process.",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="AGENT_MANAGER_PROFILE",
            show_envvar=False,
            help="A profile of the catalog, laid over its agents.",
            autocompletion=complete.profiles,
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="The result as one JSON document; errors too.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show where an error came from.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours; so does $NO_COLOR.")] = False,
    version: Annotated[  # noqa: ARG001 - answered by its callback
        bool, typer.Option("--version", "-V", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
    gpu_stats: Annotated[  # noqa: ARG001 - the verb is put in its place before this is read
        bool, typer.Option("--gpu-stats", help="The same as the verb gpu-stats.")
    ] = False,
) -> None:
    """Several AI agents on one GPU: plan what fits, swap engines on the card, talk OpenAI to each."""
    if ctx.invoked_subcommand is None:
        sys.stdout.write(ctx.get_help())
        raise typer.Exit
    ctx.obj = Invocation(
        choice=Choice(catalog=catalog, engine=engine, runtime=runtime, profile=profile),
        output=Output(json=json, quiet=quiet, verbose=verbose, no_color=no_color),
        build_host=ctx.obj,
    )


def not_yet(verb: str) -> NotYet:
    """The answer to a verb of the contract that is not there yet."""
    return NotYet(f"'{verb}' is not built yet", hint="agent-manager --help lists what is")


def output_of(arguments: Sequence[str]) -> Output:
    """How to print, read off a command line that could not be understood."""
    ours = set(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    return Output(
        json="--json" in ours,
        quiet=not ours.isdisjoint(("-q", "--quiet")),
        verbose=not ours.isdisjoint(("-v", "--verbose", "-qv", "-vq")),
        no_color="--no-color" in ours,
    )
