"""What the shell offers after a tab. A catalog that cannot be read offers nothing and says nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer  # noqa: TC002 - typer reads annotations at run time

from agent_manager.errors import AgentManagerError

if TYPE_CHECKING:
    from agent_manager.catalog.agents import Catalog


def agents(ctx: typer.Context) -> list[tuple[str, str]]:
    """The catalog's agents, each with its model."""
    catalog = _catalog(ctx)
    return [(agent.name, agent.model.name) for agent in catalog.agents.values()] if catalog else []


def models(ctx: typer.Context) -> list[tuple[str, str]]:
    """The catalog's models, each with where it comes from."""
    catalog = _catalog(ctx)
    return (
        [(name, str(model.repo or model.path)) for name, model in catalog.models.items()] if catalog else []
    )


def agents_and_models(ctx: typer.Context) -> list[tuple[str, str]]:
    """The catalog's agents and models."""
    return agents(ctx) + models(ctx)


def profiles(ctx: typer.Context) -> list[str]:
    """The catalog's profiles."""
    catalog = _catalog(ctx, with_profile=False)
    return list(catalog.profiles) if catalog else []


def _catalog(ctx: typer.Context, *, with_profile: bool = True) -> Catalog | None:
    from agent_manager.cli.invocation import Choice, read_catalog  # noqa: PLC0415 - they import this module

    given = ctx.find_root().params
    profile = (given.get("profile") or os.environ.get("AGENT_MANAGER_PROFILE")) if with_profile else None
    try:
        return read_catalog(Choice(catalog=given.get("catalog"), profile=profile))
    except AgentManagerError:
        return None
