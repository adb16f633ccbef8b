"""Looking after checkpoints that are on disk: verifying them, fetching again what is broken, deleting them."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent_manager.catalog.values import did_you_mean, shown
from agent_manager.checkpoints import store, verify
from agent_manager.checkpoints.disk import NO_WEIGHTS, hub_cache_from
from agent_manager.errors import Interrupted, OperationFailed, UsageError
from agent_manager.runtimes.base import InstanceState
from agent_manager.swap import pulling
from agent_manager.swap.notices import ReadProgress, Remark, Step, StepBegan
from agent_manager.swap.observe import instances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_manager.catalog.agents import Catalog, Model
    from agent_manager.checkpoints.store import Removal
    from agent_manager.checkpoints.verify import ModelCheck, VerifyProgress
    from agent_manager.swap.host import Host
    from agent_manager.swap.notices import Listener


def models_named(catalog: Catalog, names: Sequence[str]) -> tuple[Model, ...]:
    """The models of these names, each once; an agent's name is that of its model. All of them without names.

    Raises UsageError, with the nearest name there is.
    """
    found: dict[str, Model] = {}
    for name in names or catalog.models:
        model = catalog.models.get(name) or (catalog.agents[name].model if name in catalog.agents else None)
        if model is None:
            raise UsageError(
                f"no model or agent named '{shown(name)}' in {catalog.source}",
                hint=did_you_mean(name, {**catalog.models, **catalog.agents}),
                where="models",
            )
        found[model.name] = model
    return tuple(found.values())


def model_named(catalog: Catalog, name: str) -> Model:
    """The model of that name. Raises UsageError, with the nearest name there is, or with the model of an agent."""
    if name in catalog.models:
        return catalog.models[name]
    hint = did_you_mean(name, catalog.models)
    if name in catalog.agents:
        hint = f"{name} is an agent; its model is {catalog.agents[name].model.name}"
    raise UsageError(f"no model named '{shown(name)}' in {catalog.source}", hint=hint, where="models")


async def verify_models(
    host: Host, models: Sequence[Model], *, listener: Listener, only: frozenset[str] | None = None
) -> tuple[ModelCheck, ...]:
    """Read every file of these models and compare it; with `only`, the files of these names. Changes nothing."""
    subject, given_up = _subject(models), threading.Event()
    listener(StepBegan(step=Step.VERIFYING, agent=subject))

    def tell(now: VerifyProgress) -> None:
        if given_up.is_set():
            raise Interrupted(f"the check of {subject} was given up")
        listener(ReadProgress(subject=subject, done_bytes=now.done_bytes, total_bytes=now.total_bytes))

    cache = hub_cache_from(host.environ)
    try:
        return await asyncio.to_thread(verify.verify, models, hub_cache=cache, on_progress=tell, only=only)
    except asyncio.CancelledError:
        given_up.set()  # a thread cannot be cancelled: it ends itself at its next word
        raise


async def repair(host: Host, checks: Sequence[ModelCheck], *, listener: Listener) -> tuple[ModelCheck, ...]:
    """Fetch again what is corrupt or missing, and nothing else; the checks as they are then.

    A corrupt file stays until its replacement is here and verified. Raises DownloadFailed.
    """
    return tuple([await _repaired(host, check, listener) for check in checks])


async def _repaired(host: Host, check: ModelCheck, listener: Listener) -> ModelCheck:
    model, names = host.catalog.models[check.name], frozenset(file.name for file in check.broken)
    if model.repo is None or not names:
        return check
    pinned, only = replace(model, revision=check.revision), None if NO_WEIGHTS in names else names
    await pulling.fetch(host, pinned, listener=listener, only=only)
    (seen,) = await verify_models(host, [model], listener=listener, only=names)
    return verify.again(check, seen.files)


async def plan_removal(host: Host, model: Model, *, listener: Listener) -> Removal:
    """What deleting a model would delete; changes nothing.

    Raises UsageError for a `path:` model, OperationFailed when nothing of it is here or an engine serves it.
    """
    removal = await asyncio.to_thread(store.plan_removal, model, hub_cache=hub_cache_from(host.environ))
    await _refuse_served(host, model, listener)
    if not removal.paths:
        at = f" at {removal.revision[:12]}" if removal.revision else ""
        others = f"; other commits of it are here: {', '.join(removal.kept_revisions)}"
        raise OperationFailed(
            f"nothing of {removal.repo}{at} is on disk{others if removal.kept_revisions else ''}",
            hint="agent-manager models lists what is",
            where=f"models.{model.name}",
        )
    return removal


async def remove(removal: Removal) -> None:
    """Delete what the plan names. Raises OperationFailed while it is being downloaded, or where the disk refuses."""
    await asyncio.to_thread(store.remove, removal)


async def _refuse_served(host: Host, model: Model, listener: Listener) -> None:
    found, notes = await instances(host.runtimes)
    for note in notes:
        listener(Remark(message=note, warning=True))
    same = {each.name for each in host.catalog.models.values() if each.repo == model.repo} | {model.name}
    for instance in found:
        if instance.state is InstanceState.RUNNING and instance.spec.model in same:
            agent = instance.spec.agent
            raise OperationFailed(
                f"{agent} serves {instance.spec.model} now: nothing was deleted",
                hint=f"stop it first: agent-manager stop {agent}",
                where=f"agents.{agent}",
            )


def _subject(models: Sequence[Model]) -> str:
    return models[0].name if len(models) == 1 else "all models"
