"""doctor: is this host ready; each finding with its evidence and what to type."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

import typer

from agent_manager.cli.output import printable
from agent_manager.errors import CatalogInvalid, HostNotReady

if TYPE_CHECKING:
    from agent_manager.cli.invocation import Invocation
    from agent_manager.cli.output import Output
    from agent_manager.diagnosis.doctor import Report
    from agent_manager.diagnosis.finding import Finding
    from agent_manager.errors import Problem
    from agent_manager.swap.host import Host

EXAMPLES = """
agent-manager doctor  # for vLLM on this machine's GPU
agent-manager doctor --engine simulated
agent-manager doctor --json
"""

MARKS = {
    "ok": ("✓", "+", "green"),
    "warning": ("!", "!", "yellow"),
    "blocked": ("✗", "x", "bold red"),
    "skipped": ("-", "-", "dim"),
}
"""By state: the mark, the mark where output is not Unicode, the style."""
ARROWS = ("→", "->")
CHECK_WIDTH = 18
STATE_WIDTH = 7
WIDEST = 120


def run(ctx: typer.Context) -> None:
    """Say whether this host is ready, and what to type where it is not. Changes nothing.

    Judged for vLLM in Docker, unless --engine, --runtime or the catalog say otherwise. Exit code 4 when something
    blocks.
    """
    from agent_manager.cli.runner import run as run_to_the_end  # noqa: PLC0415 - asyncio; not for --help
    from agent_manager.swap.checkup import checkup  # noqa: PLC0415 - not for --help and completion

    invocation: Invocation = ctx.obj
    host, problems = _host(invocation)
    report = run_to_the_end(checkup(host, problems=problems), host.interrupts)
    if invocation.output.json:
        invocation.output.document(
            {"ready": report.ready, "for": report.purpose, "findings": report.findings}
        )
    else:
        show(report, invocation.output)
    if not report.ready:
        raise typer.Exit(HostNotReady.exit_code)


def show(report: Report, output: Output) -> None:
    """The findings by group, and the verdict in the last line."""
    for group in report.groups:
        output.result(output.styled(group.name, "bold"))
        for finding in group.findings:
            _print(finding, output)
        output.result("")
    output.result(_verdict(report, output))


def _host(invocation: Invocation) -> tuple[Host, tuple[Problem, ...]]:
    """This machine; with a catalog that cannot be used, its problems, and the packaged catalog in its place."""
    from msgspec.structs import replace  # noqa: PLC0415 - not for --help and completion

    from agent_manager.catalog.load import packaged_catalog  # noqa: PLC0415 - likewise

    try:
        return invocation.host(), ()
    except CatalogInvalid as error:
        choice = replace(invocation.choice, catalog=packaged_catalog(), profile=None)
        return replace(invocation, choice=choice).host(), error.problems


def _print(finding: Finding, output: Output) -> None:
    mark, plain_mark, style = MARKS[finding.state]
    unicode = _is_unicode()
    mark = mark if unicode else plain_mark
    label = output.styled(f"{mark} {finding.state.value:<{STATE_WIDTH}}", style)
    indent = " " * (2 + 2 + STATE_WIDTH + 1 + CHECK_WIDTH + 1)
    first, *rest = _folded(printable(finding.evidence), len(indent))
    output.result(f"  {label} {finding.check:<{CHECK_WIDTH}} {first}")
    for line in rest:
        output.result(indent + line)
    if finding.remedy is not None:
        # Never folded: it is there to be copied.
        output.result(f"{indent}{output.styled(ARROWS[not unicode], 'cyan')} {printable(finding.remedy)}")


def _folded(text: str, indent: int) -> list[str]:
    """The text in lines that fit a terminal; one line where it goes anywhere else."""
    if not sys.stdout.isatty():
        return [text]
    columns = min(shutil.get_terminal_size().columns, WIDEST)
    return textwrap.wrap(text, max(20, columns - indent), break_on_hyphens=False) or [""]


def _verdict(report: Report, output: Output) -> str:
    blocking = [finding.check for finding in report.findings if finding.state == "blocked"]
    warnings = sum(finding.state == "warning" for finding in report.findings)
    note = {0: "", 1: "; 1 warning"}.get(warnings, f"; {warnings} warnings")
    if report.ready:
        return output.styled(f"ready for {report.purpose}{note}", "green")
    names = ", ".join(dict.fromkeys(blocking))
    return output.styled(f"not ready for {report.purpose}: {names}{note}", "bold red")


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")
