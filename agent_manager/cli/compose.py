"""compose: the compose file of each agent, to read, to keep, or to run by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct

from agent_manager.cli import complete
from agent_manager.errors import OperationFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_manager.cli.invocation import Invocation

EXAMPLES = """
agent-manager compose  # compose/<agent>.yaml for every agent
agent-manager compose dev --stdout
agent-manager compose --check  # exit 1 when a file is not what the catalog says now
"""


class ComposeFile(Struct, frozen=True, kw_only=True):
    """An agent's file. `changed`: what was there, if anything, was something else."""

    agent: str
    path: Path
    changed: bool


def run(
    ctx: typer.Context,
    agents: Annotated[
        list[str] | None,
        typer.Argument(metavar="AGENT", help="Agents; without any, all.", autocompletion=complete.agents),
    ] = None,
    *,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where the files are.")] = Path(
        "compose"
    ),
    stdout: Annotated[bool, typer.Option("--stdout", help="Print them instead.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail when a file is stale.")] = False,
) -> None:
    """Write the compose file of each agent, for a card of 15.47 GiB with nothing measured.

    Launching does not read them: it renders the same for the card it finds, into the state folder.
    """
    invocation: Invocation = ctx.obj
    if stdout and check:
        raise UsageError("--stdout and --check exclude each other", hint="give one of them")
    files = list(_rendered(invocation, agents or ()))
    if stdout:
        _print(invocation, files)
        return
    found = [
        (ComposeFile(agent=name, path=output / f"{name}.yaml", changed=_read(output, name) != text), text)
        for name, text in files
    ]
    changed = [(file, text) for file, text in found if file.changed]
    if check:
        _require_fresh([file for file, _ in changed])
    else:
        for file, text in changed:
            _write(file.path, text)
    _tell(invocation, [file for file, _ in found], check=check)


def _rendered(invocation: Invocation, names: tuple[str, ...] | list[str]) -> Iterator[tuple[str, str]]:
    from agent_manager.swap.reference import reference_file  # noqa: PLC0415 - not for --help and completion

    host = invocation.host()
    for name in names or host.catalog.agents:
        yield name, reference_file(host, host.catalog.agent(name))


def _print(invocation: Invocation, files: list[tuple[str, str]]) -> None:
    if invocation.output.json:
        from agent_manager.compose import parse  # noqa: PLC0415 - not for --help and completion

        invocation.output.document({name: parse(text) for name, text in files})
    else:
        invocation.output.result("---\n".join(text for _, text in files).rstrip("\n"))


def _require_fresh(stale: list[ComposeFile]) -> None:
    if stale:
        missing = [file.path for file in stale if not file.path.exists()]
        what = "is missing" if missing == [stale[0].path] else "is not what the catalog says now"
        more = f", and {len(stale) - 1} more" if len(stale) > 1 else ""
        raise OperationFailed(
            f"{stale[0].path} {what}{more}",
            hint="agent-manager compose writes it anew",
            where=str(stale[0].path),
        )


def _tell(invocation: Invocation, files: list[ComposeFile], *, check: bool) -> None:
    if invocation.output.json:
        invocation.output.document({"files": files})
        return
    for file in files:
        done = "up to date" if check or not file.changed else "written"
        invocation.output.success(f"{file.path} {done}")


def _read(folder: Path, name: str) -> str | None:
    try:
        return (folder / f"{name}.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OperationFailed(
            f"{path}: {error.strerror}", hint="--output names another folder", where=str(path)
        ) from error
