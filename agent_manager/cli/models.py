"""models: the catalog's checkpoints, whether they are on disk and how much they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer  # noqa: TC002 - typer reads annotations at run time
from msgspec import Struct

from agent_manager.cli.output import Cell, gib
from agent_manager.errors import CheckpointUnusable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agent_manager.catalog.agents import Catalog, Model
    from agent_manager.cli.invocation import Invocation

EXAMPLES = """
agent-manager models
agent-manager models --json
"""

COMMIT_DIGITS = 12


class ModelRow(Struct, frozen=True, kw_only=True):
    """A model of the catalog.

    `revision` is the commit it is or would be read at; `folder` and `size_bytes` are set when it is on disk,
    complete; else `reason` says what is missing, and `missing` names the files of it, if others are here.
    `disk_bytes` is what its repository takes, with other commits and with the `partial_bytes` of unfinished files.
    """

    name: str
    repo: str | None
    path: Path | None
    revision: str | None
    on_disk: bool
    folder: Path | None
    size_bytes: int | None
    agents: tuple[str, ...]
    reason: str | None
    missing: tuple[str, ...]
    disk_bytes: int
    partial_bytes: int


def run(ctx: typer.Context) -> None:
    """List the catalog's models: where they come from, whether they are on disk, which agents use them."""
    from agent_manager.checkpoints.disk import hub_cache_from  # noqa: PLC0415 - not for --help

    invocation: Invocation = ctx.obj
    host = invocation.host()
    cache = hub_cache_from(host.environ)
    rows = [look_up(model, host.catalog, host.environ) for model in host.catalog.models.values()]
    disk_bytes = sum({row.repo or row.path: row.disk_bytes for row in rows}.values())
    output = invocation.output
    if output.json:
        output.document({"models": rows, "disk_bytes": disk_bytes, "hub_cache": cache})
        return
    output.table(
        ("MODEL", "SOURCE", "REVISION", "ON DISK", "AGENTS"),
        [_cells(row) for row in rows],
        flexible=("SOURCE", "AGENTS"),
    )
    output.success(f"\n{gib(disk_bytes)} on disk; the Hub cache is {cache}")
    for row in rows:
        if row.reason and (row.path or row.missing):
            output.warning(row.reason if row.path else f"{row.name}: {row.reason}")


def look_up(model: Model, catalog: Catalog, environ: Mapping[str, str]) -> ModelRow:
    """What there is of a model on this machine. Reads a few small files."""
    from agent_manager.checkpoints.disk import Checkpoint, hub_cache_from, locate  # noqa: PLC0415 - not for --help
    from agent_manager.checkpoints.store import Usage, usage  # noqa: PLC0415 - likewise

    cache = hub_cache_from(environ)
    folder, size_bytes, reason, revision = None, None, None, model.revision
    missing: tuple[str, ...] = ()
    try:
        found = locate(model, hub_cache=cache)
    except CheckpointUnusable as error:
        reason = error.message
    else:
        revision = found.revision
        if isinstance(found, Checkpoint):
            folder, size_bytes = found.folder, found.size_bytes
        else:
            reason, missing = found.reason, found.files
    here = usage(model.repo, cache) if model.repo else Usage(disk_bytes=size_bytes or 0)
    return ModelRow(
        name=model.name,
        repo=model.repo,
        path=model.path,
        revision=revision,
        on_disk=folder is not None,
        folder=folder,
        size_bytes=size_bytes,
        agents=tuple(agent.name for agent in catalog.agents.values() if agent.model.name == model.name),
        reason=reason,
        missing=missing,
        disk_bytes=here.disk_bytes,
        partial_bytes=here.partial_bytes,
    )


def _cells(row: ModelRow) -> tuple[Cell | str, ...]:
    if row.size_bytes is not None:
        here = Cell(gib(row.size_bytes), "green")
    elif row.missing or row.partial_bytes:
        here = Cell(f"{gib(row.disk_bytes)}, incomplete", "yellow")
    else:
        here = Cell("no", "dim")
    source = row.repo or str(row.path)
    if row.revision:
        revision = Cell(row.revision[:COMMIT_DIGITS])
    else:
        revision = Cell("" if row.path else "not pinned yet", "dim")
    return Cell(row.name, "bold"), source, revision, here, ", ".join(row.agents)
