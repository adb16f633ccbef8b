"""Help, formatted: usage, verbs or arguments, options, examples. Half the start-up time of typer's own."""

from __future__ import annotations

import inspect
import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperArgument, TyperOption

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typer._click import Command, Context, Parameter

WIDTH = 110
"""As wide as a line of text can be and still be read."""


def print_help(
    command: Command,
    ctx: Context,
    sections: Mapping[str, Sequence[Parameter]],
    *,
    verbs: Mapping[str, str] | None = None,
) -> None:
    """Print the help of a verb, or of the program with its `verbs` (name to one line), on stdout.

    `sections`: options by heading. The epilog holds examples, one on each line.
    """
    console = _console()
    console.print(Text.assemble(("Usage: ", "yellow"), (_usage(command, ctx), "bold")))
    console.print()
    paragraphs = inspect.cleandoc(command.help or "").partition("\f")[0].split("\n\n")
    # A docstring's lines are as long as the source's; the terminal has its own width.
    console.print(Text("\n\n".join(" ".join(each.split()) for each in paragraphs)))
    if verbs:
        _panel(
            console, "Verbs", [(Text(name, "bold cyan"), Text(), Text(line)) for name, line in verbs.items()]
        )
    arguments = [param for param in command.params if isinstance(param, TyperArgument)]
    _panel(console, "Arguments", [_argument(param) for param in arguments])
    for title, params in sections.items():
        options = [param for param in params if isinstance(param, TyperOption) and not param.hidden]
        _panel(console, title, [_option(param, ctx) for param in options])
    if command.epilog:
        console.print(Text("Examples", "yellow"))
        for line in inspect.cleandoc(command.epilog).splitlines():
            example, _, remark = line.partition("  #")
            console.print(Text.assemble("  ", example, (remark and f"  #{remark}", "dim")), soft_wrap=True)


def _console() -> Console:
    colourless = "--no-color" in sys.argv or bool(os.environ.get("NO_COLOR"))
    console = Console(highlight=False, force_terminal=sys.stdout.isatty())
    return Console(
        highlight=False,
        force_terminal=sys.stdout.isatty(),
        color_system=None if colourless else "auto",
        width=min(console.width, WIDTH),
    )


def _usage(command: Command, ctx: Context) -> str:
    arguments = [_name(param) for param in command.params if isinstance(param, TyperArgument)]
    words = arguments if ctx.parent else ["VERB", "…"]
    return " ".join((ctx.command_path, "[OPTIONS]", *words))


def _name(param: TyperArgument) -> str:
    name = param.display_name_raw + ("" if param.nargs == 1 else "…")
    return name if param.required else f"[{name}]"


def _panel(console: Console, title: str, rows: Sequence[tuple[Text, Text, Text]]) -> None:
    if not rows:
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(Panel(table, title=title, title_align="left", border_style="dim"))


def _argument(param: TyperArgument) -> tuple[Text, Text, Text]:
    return Text(_name(param), "bold cyan"), Text(), Text(param.help or "")


def _option(param: TyperOption, ctx: Context) -> tuple[Text, Text, Text]:
    names = ", ".join(sorted((*param.opts, *param.secondary_opts), key=len))
    value = "" if param.is_flag else param.metavar or param.display_type(ctx).strip("<>")
    text = Text(param.help or "")
    if isinstance(param.show_default, str):
        text.append(f" [default: {param.show_default}]", "dim")
    if isinstance(param.envvar, str):
        text.append(f" [${param.envvar}]", "dim")
    return Text(names, "bold cyan"), Text(value, "yellow"), text
