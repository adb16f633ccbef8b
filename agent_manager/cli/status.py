"""status: every agent of the catalog, the card and who owns it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer  # noqa: TC002 - typer reads annotations at run time

from agent_manager.cli.output import Cell, ago, gib

if TYPE_CHECKING:
    from agent_manager.cli.invocation import Invocation
    from agent_manager.cli.output import Output
    from agent_manager.swap.notices import AgentStatus, StatusReport

EXAMPLES = """
agent-manager status
agent-manager status --json
"""

STYLES = {
    "ready": "green",
    "starting": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "asleep": "blue",
    "failed": "red",
    "absent": "dim",
}


def run(ctx: typer.Context) -> None:
    """Show every agent: its state, engine, model and address; the card; who owns it. Changes nothing."""
    from agent_manager.swap import status  # noqa: PLC0415 - not for --help and completion

    invocation: Invocation = ctx.obj
    report = invocation.read(status.report)
    for note in report.notes:
        invocation.output.note(note)
    if invocation.output.json:
        invocation.output.document(document(report))
    else:
        print_report(report, invocation.output)


def document(report: StatusReport) -> dict[str, object]:
    """The report under the names of the contract."""
    card = report.card
    gpu = card and {
        "name": card.name,
        "uuid": card.id,
        "total_bytes": card.total_bytes,
        "used_bytes": card.used_bytes,
        "simulated": card.simulated,
    }
    return {"gpu": gpu, "owner": report.owner, "agents": report.agents, "notes": report.notes}


def print_report(report: StatusReport, output: Output) -> None:
    """The card, who owns it, and a table of the agents."""
    if report.card is not None:
        card = report.card
        output.result(f"{card.name}: {gib(card.used_bytes)} of {gib(card.total_bytes)} used")
    if report.owner is not None:
        owner = report.owner
        output.result(f"owned by {owner.kind} '{owner.verb}' (pid {owner.pid})")
    if report.card or report.owner:
        output.result("")
    now = any(_now(agent) for agent in report.agents)
    headers = ("AGENT", "STATE", "SINCE", "ENGINE", "MODEL", "MEMORY", "ADDRESS", *(("NOW",) if now else ()))
    first: dict[str | None, str] = {}
    rows = [
        _row(agent, first.setdefault(agent.instance_id, agent.name))[: len(headers)]
        for agent in report.agents
    ]
    output.table(headers, rows, flexible=("MODEL", "NOW"))


def _row(agent: AgentStatus, first: str) -> tuple[Cell | str, ...]:
    """`first` is who was shown first of those that share its engine: what that takes of the card is told once."""
    memory = gib(agent.claim_bytes) if agent.claim_bytes else ""
    return (
        Cell(agent.name, "bold"),
        Cell(agent.state.value, STYLES[agent.state]),
        ago(agent.started_at) if agent.started_at else "",
        agent.engine if agent.instance_id else "",
        agent.model,
        Cell(f"with {first}", "dim") if memory and first != agent.name else memory,
        agent.base_url or Cell(f"port {agent.port}", "dim"),
        _now(agent),
    )


def _now(agent: AgentStatus) -> str:
    """What it is at, or why it failed, and its requests at the gateway."""
    counts = {"run": agent.requests_running, "wait": agent.requests_waiting}
    requests = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return "; ".join(part for part in (agent.phase or agent.cause, requests) if part)
