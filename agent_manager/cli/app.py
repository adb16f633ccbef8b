"""The program: its adapters are built here, its errors become exit codes here, and nowhere else."""

from __future__ import annotations

import gc
import os
from functools import partial
from typing import TYPE_CHECKING

import typer

from agent_manager.cli import failure
from agent_manager.cli.group import VerbGroup
from agent_manager.cli.invocation import read_catalog
from agent_manager.cli.options import declare, output_of
from agent_manager.errors import AgentManagerError, UsageError
from agent_manager.state import StateDir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typer._click import Command

    from agent_manager.cli.invocation import Choice
    from agent_manager.engines.base import CardKind
    from agent_manager.gpu.base import GpuProbe
    from agent_manager.swap.host import Host

EXAMPLES = """
agent-manager --engine simulated launch dev  # no GPU needed
agent-manager chat dev "write a haiku"
agent-manager launch architect  # swaps: dev leaves the card
agent-manager status --json
"""

NAME = "agent-manager"
COMPLETION = "_AGENT_MANAGER_COMPLETE"
"""Set by the shell when it asks for completions; typer's name for it."""
UNEXPECTED = 1


def run(arguments: Sequence[str]) -> int:
    """Do what the command line says and return its exit code. Raises KeyboardInterrupt and BrokenPipeError."""
    output = output_of(arguments)
    try:
        return _invoke(list(arguments))
    except AgentManagerError as error:
        failure.report(error, output)
        return error.exit_code
    except typer.TyperException as error:
        failure.report(_usage_error(error), output)
        return UsageError.exit_code
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the top: no traceback ever reaches a user
        failure.report_internal(error, output)
        return UNEXPECTED


def _invoke(arguments: list[str]) -> int:
    """Run typer's command without its `main`, which would turn a closed pipe and Ctrl-C into its own exits."""
    program = _program()
    if COMPLETION in os.environ:
        program.main(args=arguments, prog_name=NAME)
    try:
        with program.make_context(NAME, arguments) as ctx:
            program.invoke(ctx)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _program() -> Command:
    program = typer.Typer(rich_markup_mode=None)
    program.callback(
        cls=VerbGroup,
        invoke_without_command=True,
        context_settings={"help_option_names": ["-h", "--help"], "obj": build_host},
        epilog=EXAMPLES,
    )(declare)
    return typer.main.get_command(program)


def _usage_error(error: typer.TyperException) -> UsageError:
    """A complaint of typer in our form: lowercase, one line, no period; the hint says where the options are."""
    near = getattr(error, "possibilities", None)
    words = " ".join((error.message if near else error.format_message()).split())
    words = words.rstrip(".").replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    path = context.command_path if context else NAME
    hint = f"did you mean '{near[0]}'?" if near else f"{path} --help shows what it takes"
    return UsageError(words[:1].lower() + words[1:], hint=hint)


def build_host(choice: Choice) -> Host:
    """This machine as the command line's choices see it. Raises CatalogInvalid and UsageError."""
    from agent_manager.runtimes.docker.runtime import DockerRuntime  # noqa: PLC0415 - not for --help and completion
    from agent_manager.runtimes.process import ProcessRuntime  # noqa: PLC0415 - likewise
    from agent_manager.swap.host import Host  # noqa: PLC0415 - likewise

    state = StateDir.from_environment()
    gc.freeze()  # what was imported stays, and need not be looked at again
    gc.enable()
    return Host(
        state=state,
        catalog=read_catalog(choice),
        runtimes={"process": ProcessRuntime(state), "docker": DockerRuntime(state)},
        probe=partial(_probe, state),
        engine=choice.engine,
        runtime=choice.runtime,
        environ=os.environ,
    )


def _probe(state: StateDir, kind: CardKind) -> GpuProbe:
    """The reader of a kind of card; a library is imported only for the card that needs it."""
    match kind:
        case "simulated":
            from agent_manager.gpu.simulated import CARD_ID, SimulatedProbe  # noqa: PLC0415 - only for this card

            return SimulatedProbe(state.card(CARD_ID))
        case "cpu":
            from agent_manager.gpu.host import HostMemoryProbe  # noqa: PLC0415 - only for this card

            return HostMemoryProbe()
        case _:
            from agent_manager.gpu.nvml import NvmlProbe  # noqa: PLC0415 - only for this card

            return NvmlProbe(os.environ.get("AGENT_MANAGER_GPU"))
