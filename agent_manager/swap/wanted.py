"""From a name on the command line to what is to be planned: an agent, a model of the catalog, or any repository."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.catalog.agents import Agent, Model
from agent_manager.catalog.load import DEFAULT_SEQUENCES
from agent_manager.catalog.values import RefusedError, did_you_mean, parse_repo, shown
from agent_manager.checkpoints.disk import Checkpoint, facts_of, facts_on_disk, hub_cache_from, locate
from agent_manager.checkpoints.known import known_facts
from agent_manager.errors import AgentManagerError, AgentUnknown, CheckpointUnusable, UsageError
from agent_manager.planning.base import Budget

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_manager.catalog.agents import Catalog
    from agent_manager.checkpoints.facts import Facts
    from agent_manager.swap.host import Host

DEFAULT_CONTEXT: Final = 32_768
DEFAULT_KV_CACHE_DTYPE: Final = "fp8"
"""A model by itself is planned as an agent with these, as the packaged catalog's 14B agents have them."""

_GGUF: Final = re.compile(r"(?i)(?<![a-z0-9])gguf(?![a-z0-9])")


class Wanted(Struct, frozen=True, kw_only=True):
    """An agent to plan. `declared` is False for a model by itself, which gets the settings above."""

    agent: Agent
    declared: bool


class Known(Struct, frozen=True, kw_only=True):
    """What is known of a model before it is started.

    `revision` is the commit that is on disk, `download_bytes` what a pull would fetch. `reason` says why nothing is
    known, or why no engine can load it where `unusable`, and `hint` what to do.
    """

    facts: Facts | None = None
    revision: str | None = None
    download_bytes: int | None = None
    note: str | None = None
    reason: str | None = None
    hint: str | None = None
    unusable: bool = False


def wanted_of(catalog: Catalog, name: str, budget: Budget) -> Wanted:
    """The agent of that name, else one made for the model or the repository of that name.

    A repository that is in the catalog is planned at the catalog's commit. Raises AgentUnknown or UsageError.
    """
    if name in catalog.agents:
        return Wanted(agent=catalog.agents[name], declared=True)
    model = catalog.models.get(name)
    if model is None and "/" in name:
        repo = _repo(name)
        model = next(
            (each for each in catalog.models.values() if each.repo == repo), Model(name=repo, repo=repo)
        )
    if model is None:
        raise AgentUnknown(
            f"no agent or model named '{shown(name)}' in {catalog.source}",
            hint=did_you_mean(name, [*catalog.agents, *catalog.models]),
            where="agents",
        )
    agent = Agent(
        name=name,
        model=model,
        port=0,  # it is planned, never started
        context=DEFAULT_CONTEXT,
        sequences=DEFAULT_SEQUENCES,
        kv_cache_dtype=DEFAULT_KV_CACHE_DTYPE if budget is Budget.SHARE else "auto",
    )
    return Wanted(agent=agent, declared=False)


async def known_of(host: Host, model: Model, *, ask_hub: bool) -> Known:
    """What is known of a model: from this disk, else as published, else (with `ask_hub`) from the Hub's headers.

    Blocks for as long as the Hub takes to answer; raises nothing, what went wrong is the `reason`.
    """
    try:
        place = await asyncio.to_thread(locate, model, hub_cache=hub_cache_from(host.environ))
        if isinstance(place, Checkpoint):
            facts = await asyncio.to_thread(facts_on_disk, place.folder)
            return Known(facts=facts, revision=place.revision, download_bytes=0)
    except AgentManagerError as error:
        return Known(reason=error.message, hint=error.hint)
    published = known_facts(str(model.repo))
    if published is not None:
        return Known(facts=published, download_bytes=published.disk_bytes)
    return await _asked_of_hub(str(model.repo), model.revision) if ask_hub else Known()


def alternatives(host: Host) -> Mapping[str, Facts]:
    """The catalog's models of which something is known here, by name. Reads a few small files of each."""
    cache, found = hub_cache_from(host.environ), {}
    for model in host.catalog.models.values():
        try:
            facts = facts_of(model, hub_cache=cache)
        except AgentManagerError:
            continue
        if facts is not None:
            found[model.name] = facts
    return found


async def _asked_of_hub(repo: str, revision: str | None) -> Known:
    from agent_manager.checkpoints.remote import inspect  # noqa: PLC0415 - its library is slow to import

    try:
        found = await asyncio.to_thread(inspect, repo, revision=revision)
    except CheckpointUnusable as error:
        return Known(reason=error.message, hint=error.hint, unusable=True)
    except AgentManagerError as error:
        return _gguf(repo) if _GGUF.search(repo) else Known(reason=error.message, hint=error.hint)
    note = None if revision else f"its newest commit is {found.commit[:12]}"
    return Known(facts=found.facts, download_bytes=found.download_bytes, note=note)


def _gguf(repo: str) -> Known:
    """What a repository's name says, where the Hub does not."""
    other = re.sub(r"(?i)[-_.]gguf$", "-AWQ", repo)
    return Known(
        reason="vLLM does not load GGUF files",
        hint=f"the same model for vLLM: {other}" if known_facts(other) else "choose AWQ, GPTQ or FP8 weights",
        unusable=True,
    )


def _repo(name: str) -> str:
    try:
        return parse_repo(name)
    except RefusedError as error:
        raise UsageError(error.message, hint=error.hint) from None
