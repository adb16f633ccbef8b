"""verify: every byte of the checkpoints on disk against what it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agent_manager.cli import complete
from agent_manager.cli.confirm import ask, can_ask
from agent_manager.cli.models import COMMIT_DIGITS
from agent_manager.cli.output import Cell, gib
from agent_manager.errors import CheckpointUnusable

if TYPE_CHECKING:
    from agent_manager.checkpoints.verify import ModelCheck
    from agent_manager.cli.invocation import Invocation
    from agent_manager.cli.output import Output

EXAMPLES = """
agent-manager verify  # every model of the catalog that is on disk
agent-manager verify dev --repair  # dev's model; fetch again what is corrupt or missing
"""

STYLES = {"intact": "green", "corrupt": "red", "incomplete": "red", "unverifiable": "yellow", "absent": "dim"}


def run(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="AGENT|MODEL",
            help="Agents or models; without any, what is on disk.",
            autocompletion=complete.agents_and_models,
        ),
    ] = None,
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch what is corrupt or missing again, without asking.")
    ] = False,
) -> None:
    """Compare every file on disk with its digest, offline. Fails when one is corrupt or missing.

    Nothing is deleted: a corrupt file stays until its replacement is here and verified.
    """
    from agent_manager.swap import keeping  # noqa: PLC0415 - not for --help and completion

    invocation: Invocation = ctx.obj
    output = invocation.output
    checks = invocation.perform(
        lambda host, listener: keeping.verify_models(
            host, keeping.models_named(host.catalog, names or ()), listener=listener
        )
    )
    broken = sum(len(check.broken) for check in checks if check.repo)
    asks = bool(broken) and not repair and can_ask(output)
    if asks:
        print_checks(checks, output, named=bool(names))
    if broken and (repair or (asks and ask(f"fetch {_files(broken)} again?"))):
        checks = invocation.perform(lambda host, listener: keeping.repair(host, checks, listener=listener))
        asks = False
    if output.json:
        output.document({"models": checks})
    elif not asks:
        print_checks(checks, output, named=bool(names))
    _require_sound(checks, named=bool(names))


def print_checks(checks: tuple[ModelCheck, ...], output: Output, *, named: bool) -> None:
    """A table of the models that are here, then every file that is not as it should be."""
    here = [check for check in checks if check.state != "absent"]
    if here:
        output.table(("MODEL", "REVISION", "CHECKED", "FILES", "STATE"), [_cells(check) for check in here])
    for check in here:
        for file in check.broken:
            reason = f": {file.reason}" if file.reason else ""
            output.result(f"{check.name}: {file.name} is {file.state}{reason}")
        if check.state == "unverifiable":
            output.note(
                f"{check.name}: lengths and headers agree, but there are no digests to compare its content with"
            )
    absent = [check.name for check in checks if check.state == "absent"]
    if absent and not named:
        output.note(f"not on disk: {', '.join(absent)}")


def _cells(check: ModelCheck) -> tuple[Cell | str, ...]:
    return (
        Cell(check.name, "bold"),
        (check.revision or "")[:COMMIT_DIGITS],
        gib(check.checked_bytes) if check.checked_bytes else "",
        str(len(check.files)),
        Cell(f"{check.state}, repaired" if check.repaired else check.state, STYLES[check.state]),
    )


def _require_sound(checks: tuple[ModelCheck, ...], *, named: bool) -> None:
    """Raises CheckpointUnusable for what is corrupt or missing, and for what was named and is not here."""
    from agent_manager.checkpoints.disk import shortened  # noqa: PLC0415 - not for --help and completion

    bad = [check for check in checks if check.broken or (check.reason and (named or check.state != "absent"))]
    if not bad:
        return
    first, more = bad[0], f", and {len(bad) - 1} more" if len(bad) > 1 else ""
    where, names = f"models.{first.name}", " ".join(check.name for check in bad)
    names_of_first = shortened(tuple(file.name for file in first.broken))
    what = f"corrupt or missing: {names_of_first}" if first.broken else str(first.reason)
    if first.path and first.state == "absent":
        hint = "correct its path in the catalog, or put the model's files there"
    elif all(check.state == "absent" for check in bad):
        hint = f"agent-manager pull {names} fetches it"
    elif any(check.repo for check in bad):
        hint = f"agent-manager verify {names} --repair fetches just what is broken"
    else:
        hint = "copy what is named to its folder again"
    raise CheckpointUnusable(f"{first.name}: {what}{more}", hint=hint, where=where)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
