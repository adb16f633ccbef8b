"""pull: bring checkpoints here, going on where an earlier pull stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agent_manager.cli import complete
from agent_manager.cli.models import COMMIT_DIGITS
from agent_manager.cli.output import Cell, seconds
from agent_manager.cli.pull_progress import amount, pull_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_manager.catalog.agents import Catalog, Model
    from agent_manager.cli.invocation import Invocation
    from agent_manager.cli.output import Output
    from agent_manager.swap.pulling import Pulled, PullOutline

EXAMPLES = """
agent-manager pull  # the models of all agents
agent-manager pull dev --dry-run  # what would be fetched, and how much
agent-manager pull Qwen/Qwen3-4B  # any repository of the Hub
"""


def run(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="AGENT|MODEL|REPO",
            help="Agents, models or Org/Name; without any, the models of all agents.",
            autocompletion=complete.agents_and_models,
        ),
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be fetched; fetch nothing.")
    ] = False,
) -> None:
    """Fetch what an engine needs of a model into the Hub cache, verified; what is here is not fetched again.

    One that was cut off or killed goes on from where it was. An unpinned model is pinned to what it is now.
    """
    from agent_manager.cli.runner import run as run_loop  # noqa: PLC0415 - not for --help and completion
    from agent_manager.swap import pulling  # noqa: PLC0415 - likewise

    invocation: Invocation = ctx.obj
    host, output = invocation.host(), invocation.output
    models = _models(host.catalog, names or (), output)
    if dry_run:
        print_outline(run_loop(pulling.outline(host, models), host.interrupts), output)
        return
    with pull_progress(output) as listener:
        pulled = run_loop(pulling.pull_models(host, models, listener=listener), host.interrupts)
    print_pulled(pulled, output)


def _models(catalog: Catalog, names: Sequence[str], output: Output) -> list[Model]:
    """What is to be here, each once. A model in a folder is there already, which is said."""
    from agent_manager.swap import keeping, pulling  # noqa: PLC0415 - not for --help and completion

    chosen: dict[str, Model] = {}
    for name in names:
        model = pulling.repository(catalog, name) if "/" in name else keeping.models_named(catalog, [name])[0]
        chosen[model.name] = model
    models = list(chosen.values()) if names else list(pulling.agents_models(catalog))
    for model in models:
        if model.path is not None:
            output.note(f"{model.name} is in the folder {model.path}: there is nothing to pull")
    return [model for model in models if model.path is None]


def print_outline(outlines: Sequence[PullOutline], output: Output) -> None:
    """A table of the files of each model, with what would be fetched of each."""
    fetch_bytes = sum(each.fetch_bytes for each in outlines)
    if output.json:
        output.document({"models": outlines, "fetch_bytes": fetch_bytes})
        return
    rows: list[tuple[Cell | str, ...]] = []
    for each in outlines:
        revision = (each.revision or "")[:COMMIT_DIGITS]
        rows.append((Cell(each.name, "bold"), revision, amount(each.size_bytes), _fetches(each.fetch_bytes)))
        rows += [
            (f"  {file.name}", "", amount(file.size_bytes), _fetches(file.fetch_bytes)) for file in each.files
        ]
    if rows:
        output.table(("MODEL", "REVISION", "SIZE", "TO FETCH"), rows, flexible=("MODEL",))
    output.result(f"{amount(fetch_bytes)} to fetch")


def _fetches(size_bytes: int) -> Cell:
    return Cell(amount(size_bytes), "yellow") if size_bytes else Cell("here", "green")


def print_pulled(pulled: Sequence[Pulled], output: Output) -> None:
    """A line for each model: what came, and how long it took."""
    if output.json:
        output.document({"models": pulled, "fetched_bytes": sum(each.fetched_bytes for each in pulled)})
        return
    for each in pulled:
        at = f"{each.name} at {(each.revision or '')[:COMMIT_DIGITS]}"
        if each.took_s is None or not each.fetched_bytes:
            output.success(f"{at} was here already, {amount(each.size_bytes)}")
        else:
            output.success(
                f"{at} is here, {amount(each.size_bytes)}: "
                f"{amount(each.fetched_bytes)} fetched and verified in {seconds(each.took_s)}"
            )
