"""launch: put an agent on the card, swapping out what is there."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from agent_manager.cli import complete
from agent_manager.cli.output import gib, seconds
from agent_manager.cli.values import duration_s
from agent_manager.errors import NotYet

if TYPE_CHECKING:
    from agent_manager.cli.invocation import Invocation
    from agent_manager.cli.output import Output
    from agent_manager.planning.base import Fit
    from agent_manager.swap.notices import LaunchPlan, LaunchResult

EXAMPLES = """
agent-manager launch dev
agent-manager launch dev --engine simulated  # no GPU needed
agent-manager launch dev --dry-run  # what would be done, and why
"""

Agents = Annotated[
    list[str],
    typer.Argument(metavar="AGENT", help="An agent of the catalog.", autocompletion=complete.agents),
]
DrainTimeout = Annotated[
    float,
    typer.Option(
        metavar="S",
        parser=duration_s,
        show_default="60 s",
        help="How long requests under way may take to finish; 0 does not wait.",
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        metavar="S", parser=duration_s, help="How long to wait for a card that another process owns."
    ),
]


def run(
    ctx: typer.Context,
    agents: Agents,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done; touch nothing.")
    ] = False,
    no_pull: Annotated[
        bool, typer.Option("--no-pull", help="Fail when the checkpoint is not on disk.")
    ] = False,
    drain_timeout: DrainTimeout = 60.0,
    wait: Wait = 0.0,
) -> None:
    """Put an agent on the card, swapping out what is there.

    Returns when the agent answered a completion. A launch that fails puts back what was there before.
    Under a gateway, it is the gateway that does it, with its own catalog.
    """
    from agent_manager.swap import operations  # noqa: PLC0415 - not for --help and completion

    invocation: Invocation = ctx.obj
    agent = only(agents)
    if dry_run:
        print_plan(invocation.read(lambda host: operations.plan_launch(host, agent)), invocation.output)
        return
    result = invocation.perform(
        lambda host, listener: operations.launch(
            host, agent, listener=listener, pull=not no_pull, drain_timeout_s=drain_timeout, wait_s=wait
        )
    )
    print_launched(result, invocation.output)


def only(agents: list[str]) -> str:
    """The one agent named. Raises NotYet for several."""
    if len(set(agents)) > 1:
        raise NotYet(
            "several agents at once are not built yet", hint=f"launch one: agent-manager launch {agents[0]}"
        )
    return agents[0]


def print_launched(result: LaunchResult, output: Output) -> None:
    """Where the agent is, and how to talk to it."""
    if output.json:
        output.document(result)
        return
    if result.already_running:
        output.success(f"{result.agent} was ready already")
    else:
        took = f" after {seconds(result.ready_after_s)}" if result.ready_after_s is not None else ""
        output.success(f"{output.styled(f'{result.agent} is ready', 'green')}{took}")
    engine = f"{result.engine} ({result.runtime})"
    if result.simulated:
        engine += ": its text is generated, there is no model"
    rows = {"address": result.base_url, "model": result.model, "engine": engine, "card": result.card}
    if result.replaced:
        rows["replaced"] = ", ".join(result.replaced)
    for name, value in rows.items():
        output.success(f"  {name:<9} {value}")
    output.success("")
    output.success(f"  agent-manager chat {result.agent}")
    output.success(f'  eval "$(agent-manager env {result.agent})"')


def print_plan(plan: LaunchPlan, output: Output) -> None:
    """What a launch would do, in order and why; how the agent fits; the engine's command."""
    if output.json:
        output.document(plan)
        return
    output.result(f"{plan.agent} on {plan.card}: {plan.engine} ({plan.runtime})")
    for number, step in enumerate(plan.steps, start=1):
        output.result(f"  {number}. {step.verb} {step.subject}: {step.cause}")
    if plan.fit is None:
        output.result("fit: not known before its checkpoint is here")
    else:
        _print_fit(plan.fit, output)
    if plan.argv:
        output.result(f"command:\n  {shlex.join(plan.argv)}")


def _print_fit(fit: Fit, output: Output) -> None:
    output.result("fit:")
    figures = {
        "card": fit.card_total_bytes,
        "budget": fit.budget_bytes,
        "weights": fit.weights_bytes,
        "overhead": fit.overhead_bytes,
        "kv cache": fit.kv_cache_bytes,
        "cpu offload": fit.cpu_offload_bytes or None,
        "free before it starts": fit.start_bytes,
    }
    for name, size_bytes in figures.items():
        if size_bytes is not None:
            output.result(f"  {name:<21} {gib(size_bytes):>10}")
    output.result(f"  {'context':<21} {fit.max_model_len} tokens, {fit.max_num_seqs} sequences")
    if fit.concurrency is not None:
        output.result(f"  {'full contexts at once':<21} {fit.concurrency:.1f}")
    for note in fit.notes:
        output.result(f"  {note}")
