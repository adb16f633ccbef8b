"""The verbs: a table, a group that imports a verb when it is asked for, and help that says what each takes."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from agent_manager.cli.hoist import NOTHING, Known, as_verb, hoist
from agent_manager.cli.options import not_yet
from agent_manager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typer._click import Command, Context, HelpFormatter, Parameter

VERBS = {
    "launch": "Put an agent on the card, swapping out what is there",
    "stop": "Take agents off the card",
    "restart": "Stop an agent and launch it again",
    "status": "Every agent, the card and who owns it (also: ps)",
    "logs": "The engine's log; still there after it failed",
    "gpu-stats": "The card, live: memory, load, heat, speed (also: --gpu-stats)",
    "chat": "Talk to an agent, streaming",
    "env": "Print OPENAI_BASE_URL and friends, to eval",
    "plan": "What fits the card and why, before anything is fetched",
    "models": "The catalog's checkpoints and the disk they use",
    "pull": "Fetch checkpoints, going on where an earlier pull stopped",
    "verify": "Check every byte of the checkpoints on disk",
    "rm": "Delete a model's files from the Hub cache",
    "serve": "The gateway: one door for all agents, swapping as requests come",
    "reload": "Have the gateway read its catalog anew",
    "compose": "Write the compose file of each agent",
    "doctor": "Is this host ready; what to type where it is not",
}
"""Each is `run` in the module of its name, with `_` for `-`."""

ALIASES = {"ps": "status"}
PLANNED = ("init",)


class Verb(TyperCommand):
    """A verb. It takes the global options too: they are moved before it parses, and shown in its help."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        """Its own parameters, and the global options while a shell asks for completions."""
        own = super().get_params(ctx)
        if ctx.parent is None or not ctx.resilient_parsing:
            return own
        return own + ctx.parent.command.params

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002 - printed, not formatted
        """Print the help, formatted."""
        from agent_manager.cli.help import print_help  # noqa: PLC0415 - rich, only for help

        sections = {"Options": super().get_params(ctx)}
        if ctx.parent is not None:
            sections["Global options"] = [each for each in ctx.parent.command.params if each.expose_value]
        print_help(self, ctx, sections)


class VerbGroup(TyperGroup):
    """The program: global options wherever they stand, verbs imported when invoked."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Move the global options before the verb, then parse. Raises UsageError."""

        def of_verb(name: str) -> Known:
            command = self.get_command(ctx, name)
            return _known(command.params) if command else NOTHING

        arguments = hoist(
            as_verb(args), everywhere=_known(self.params), of_verb=of_verb, strict=not ctx.resilient_parsing
        )
        return super().parse_args(ctx, arguments)

    def list_commands(self, ctx: Context) -> list[str]:  # noqa: ARG002 - typer's signature
        """The verbs' names, in the order of a person's day."""
        return list(VERBS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:  # noqa: ARG002 - typer's signature
        """The verb of that name or alias, imported now; None when there is none."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in VERBS:
            return None
        if name not in self.commands:
            module = import_module(f"agent_manager.cli.{name.replace('-', '_')}")
            program = typer.Typer(add_completion=False, rich_markup_mode=None)
            program.command(name, cls=Verb, short_help=VERBS[name], epilog=module.EXAMPLES)(module.run)
            self.commands[name] = typer.main.get_command(program)
        return self.commands[name]

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """The verb and its arguments. Raises NotYet for one of the contract, UsageError for any other word."""
        word = args[0]
        if ctx.resilient_parsing or self.get_command(ctx, word):
            return super().resolve_command(ctx, args)
        if word in PLANNED:
            raise not_yet(word)
        if word.startswith("-"):
            raise UsageError(f"no such option: {word}", hint="agent-manager --help lists the options")
        near = difflib.get_close_matches(word, (*VERBS, *ALIASES), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"verbs are: {', '.join(VERBS)}"
        raise UsageError(f"no verb named '{word}'", hint=hint)

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002 - printed, not formatted
        """Print the help, formatted."""
        from agent_manager.cli.help import print_help  # noqa: PLC0415 - rich, only for help

        print_help(self, ctx, {"Options": self.get_params(ctx)}, verbs=VERBS)


def _known(params: Iterable[Parameter]) -> Known:
    flags: set[str] = set()
    valued: set[str] = set()
    for param in params:
        if isinstance(param, TyperOption):
            (flags if param.is_flag or param.count else valued).update((*param.opts, *param.secondary_opts))
    return Known(flags=frozenset(flags), valued=frozenset(valued))
