"""plan: what fits a card and why, before anything is fetched or started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agent_manager.cli import complete

if TYPE_CHECKING:
    from agent_manager.cli.invocation import Invocation

EXAMPLES = """
agent-manager plan  # every agent, on this machine's card
agent-manager plan --profile long-context --gpu 12GiB
agent-manager plan Qwen/Qwen2.5-32B-Instruct-AWQ  # any repository
"""


def run(
    ctx: typer.Context,
    agents: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="AGENT|MODEL|ORG/REPO",
            help="Agents or models of the catalog, or Hub repositories; without any, every agent.",
            autocompletion=complete.agents,
        ),
    ] = None,
    *,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="SIZE",
            help="Another card: 16GiB is one sold as 16 GB (15.47 GiB to CUDA), 15.47GiB just that.",
        ),
    ] = None,
) -> None:
    """Show what fits the card and why: memory, context, speed, download, and what would make the rest fit.

    Touches nothing and needs no GPU. Exit code 3 when something does not fit.
    """
    from agent_manager.cli import plan_view  # noqa: PLC0415 - not for --help and completion
    from agent_manager.swap.outlook import look_ahead  # noqa: PLC0415 - likewise
    from agent_manager.swap.planned_card import card_of_size  # noqa: PLC0415 - likewise

    invocation: Invocation = ctx.obj
    asked = card_of_size(gpu) if gpu is not None else None
    outlook = invocation.read(lambda host: look_ahead(host, agents or (), asked=asked))
    if invocation.output.json:
        invocation.output.document(plan_view.document(outlook))
    else:
        plan_view.show(outlook, invocation.output)
    failure = plan_view.failure(outlook)
    if failure is not None:
        raise failure
