"""rm: delete a model's files from the Hub cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct

from agent_manager.cli import complete
from agent_manager.cli.confirm import ask, can_ask
from agent_manager.cli.models import COMMIT_DIGITS
from agent_manager.cli.output import gib
from agent_manager.errors import OperationFailed, UsageError

if TYPE_CHECKING:
    from agent_manager.checkpoints.store import Removal
    from agent_manager.cli.invocation import Invocation
    from agent_manager.swap.host import Host

EXAMPLES = """
agent-manager rm qwen2.5-7b-awq
agent-manager rm qwen2.5-7b-awq --yes  # in a script
"""


class Removed(Struct, frozen=True, kw_only=True):
    """What was deleted. `kept_revisions` are other commits of the repository, which are still there."""

    model: str
    repo: str
    revision: str | None
    freed_bytes: int
    kept_revisions: tuple[str, ...]


def run(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model of the catalog.", autocompletion=complete.models)
    ],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model's files from the Hub cache. The catalog stays as it is: a launch or a pull fetches it again.

    Other commits of its repository stay, with every file they need. Folders of your own are never deleted.
    """
    from agent_manager.swap import keeping  # noqa: PLC0415 - not for --help and completion

    invocation: Invocation = ctx.obj
    output = invocation.output
    host = invocation.host()
    removal = invocation.perform(
        lambda host, listener: keeping.plan_removal(
            host, keeping.model_named(host.catalog, model), listener=listener
        )
    )
    if not yes:
        if not can_ask(output):
            raise UsageError(
                f"rm would delete {_told(removal)}, and nobody is there to ask",
                hint=f"agent-manager rm {removal.model} --yes",
            )
        if not ask(f"delete {_told(removal)}?{_users(host, removal)}"):
            raise OperationFailed("nothing was deleted")
    invocation.perform(lambda _, __: keeping.remove(removal))
    removed = Removed(
        model=removal.model,
        repo=removal.repo,
        revision=removal.revision,
        freed_bytes=removal.freed_bytes,
        kept_revisions=removal.kept_revisions,
    )
    if output.json:
        output.document(removed)
        return
    output.success(f"deleted {removal.model}: {gib(removal.freed_bytes)} freed")
    if removal.kept_revisions:
        others = ", ".join(revision[:COMMIT_DIGITS] for revision in removal.kept_revisions)
        output.note(f"other commits of {removal.repo} stay: {others}")


def _told(removal: Removal) -> str:
    at = f" at {removal.revision[:COMMIT_DIGITS]}" if removal.revision else ""
    return f"{removal.repo}{at}, {gib(removal.freed_bytes)}"


def _users(host: Host, removal: Removal) -> str:
    agents = [name for name, agent in host.catalog.agents.items() if agent.model.repo == removal.repo]
    return f" it is the model of {', '.join(agents)}" if agents else ""
