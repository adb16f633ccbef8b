"""Compose documents for any machine: the reference card, nothing measured or downloaded. To keep in a repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_manager.checkpoints.disk import facts_of, hub_cache_from
from agent_manager.checkpoints.known import known_facts
from agent_manager.compose import REFERENCE, render, revision_variable, to_yaml
from agent_manager.engines.base import Source
from agent_manager.engines.registry import engine_named
from agent_manager.errors import CheckpointUnusable
from agent_manager.gpu.simulated import TOTAL_BYTES
from agent_manager.swap.prepare import fit_of

if TYPE_CHECKING:
    from agent_manager.catalog.agents import Agent, Model
    from agent_manager.checkpoints.facts import Facts
    from agent_manager.compose import Document
    from agent_manager.engines.base import Engine
    from agent_manager.swap.host import Host

REFERENCE_CARD_BYTES = TOTAL_BYTES
"""15.47 GiB: what CUDA gives of a 16 GB RTX card."""
DEFAULT_ENGINE = "vllm"


def reference_file(host: Host, agent: Agent) -> str:
    """The compose file of an agent, with a word on how to use it.

    Raises DoesNotFit, UsageError for an engine without an image, CheckpointUnusable for a model of which nothing
    is known before it is pulled.
    """
    document = reference_document(host, agent)
    name = agent.name
    needs = ["the checkpoint in the Hub cache"] if agent.model.repo else ["the model's folder"]
    if agent.model.repo and agent.model.revision is None:
        needs.append(f"{revision_variable(name)}, its commit, in the environment or in .env")
    lines = (
        f"Written by 'agent-manager compose {name}'; change the catalog, not this file.",
        "Planned for a card of 15.47 GiB with nothing measured; 'agent-manager launch' plans for the card it finds.",
        f"By hand: docker compose -f {name}.yaml up -d",
        f"That needs {' and '.join(needs)}.",
    )
    return "".join(f"# {line}\n" for line in lines) + to_yaml(document)


def reference_document(host: Host, agent: Agent) -> Document:
    """The document itself; raises as `reference_file` does."""
    engine = engine_named(host.engine or host.catalog.engine or DEFAULT_ENGINE, host.state)
    settings, model = host.catalog.engines[engine.name], agent.model
    fit = fit_of(agent, engine, settings, REFERENCE_CARD_BYTES, _facts(host, model, engine))
    source = (
        Source(model=str(model.path))
        if model.path
        else Source(model=str(model.repo), revision=model.revision)
    )
    return render(agent, fit, source, settings, engine, REFERENCE)


def _facts(host: Host, model: Model, engine: Engine) -> Facts | None:
    """Public figures come first, so that the file is the same wherever it is written."""
    facts = known_facts(model.repo) if model.repo else None
    if facts is None and not engine.simulated:
        facts = facts_of(model, hub_cache=hub_cache_from(host.environ))
        if facts is None:
            raise CheckpointUnusable(
                f"model {model.name}: nothing is known of it before it is on disk",
                hint="launch an agent that uses it once, which pulls it",
                where=f"models.{model.name}",
            )
    return facts
