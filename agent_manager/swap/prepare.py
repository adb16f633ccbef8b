"""From a name to an engine that can be started: choose engine, runtime and card, plan, make sure of the files.

Nothing here touches what runs. The order matters: the plan comes first, so that what cannot fit is said before
a byte is fetched or a request is disturbed.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.checkpoints.disk import Missing, facts_at, hub_cache_from, locate
from agent_manager.compose import command_line, here, render
from agent_manager.engines.base import CardKind, Source
from agent_manager.engines.registry import engine_named
from agent_manager.errors import CheckpointUnusable, DoesNotFit, NoGpu, UsageError
from agent_manager.planning.base import Demand, Fit, Shortfall
from agent_manager.planning.vram import plan
from agent_manager.runtimes.base import InstanceSpec
from agent_manager.swap.footprints import Footprints, setup_of
from agent_manager.swap.notices import PullProgress, Remark, Step, StepBegan

if TYPE_CHECKING:
    from pathlib import Path

    from agent_manager.catalog.agents import Agent, EngineSettings
    from agent_manager.checkpoints.facts import Facts
    from agent_manager.compose import Place
    from agent_manager.engines.base import Engine
    from agent_manager.gpu.base import Card, GpuProbe
    from agent_manager.planning.base import Measured
    from agent_manager.runtimes.base import Fetching, Runtime
    from agent_manager.swap.footprints import Setup
    from agent_manager.swap.host import Host
    from agent_manager.swap.notices import Listener


class Draft(Struct, frozen=True, kw_only=True):
    """What is settled about a launch before any file is fetched.

    `missing` is set while the checkpoint is not (all) on disk; `fit` is then an estimate from public figures, or
    None where nothing is known. The simulated engine needs no files. `setup` is what its figures hold for, once
    measured. `place` is this machine as a container sees it, None for a process.
    """

    agent: Agent
    engine: Engine
    settings: EngineSettings
    runtime: Runtime
    probe: GpuProbe
    card: Card
    fit: Fit | None
    source: Source
    setup: Setup
    missing: Missing | None
    place: Place | None
    behind_gateway: bool


class Prepared(Struct, frozen=True, kw_only=True):
    """What comes of a draft that fits: an engine that can be started.

    `spec.id` is still open: the controller gives one to each start.
    """

    draft: Draft
    fit: Fit
    spec: InstanceSpec


async def prepare(host: Host, name: str, *, pull: bool, listener: Listener) -> Prepared:
    """Make sure of everything that must be true before `name` goes on its card; pulls its checkpoint if `pull`.

    Behind a gateway, agents that can share an instance get one for them all. Fetches the engine's image too, where
    it runs in a container. Raises AgentUnknown, NoGpu, HostNotReady, DoesNotFit, CheckpointUnusable or
    DownloadFailed.
    """
    agent = host.catalog.joint(name) if host.behind_gateway else host.catalog.agent(name)
    drafted = await draft(host, agent)
    if drafted.missing is not None:
        if not pull:
            raise CheckpointUnusable(
                f"model {agent.model.name}: {drafted.missing.reason}",
                hint="launch without --no-pull fetches what is missing",
                where=f"models.{agent.model.name}",
            )
        from agent_manager.swap.pulling import fetch  # noqa: PLC0415 - most launches find their files

        agent = replace(agent, model=await fetch(host, agent.model, listener=listener))
        drafted = await draft(host, agent)
    if drafted.missing is not None or drafted.fit is None:
        reason = drafted.missing.reason if drafted.missing else "nothing is known of it"
        raise CheckpointUnusable(f"model {agent.model.name}: {reason}", where=f"models.{agent.model.name}")
    ready = finish(drafted, drafted.fit)
    await drafted.runtime.provide(ready.spec, fetch=pull, tell=_Fetched(listener).tell)
    return ready


async def draft(host: Host, agent: Agent) -> Draft:
    """Choose engine, runtime and card, look for the files and plan. Changes nothing, fetches nothing.

    Raises as `prepare` does.
    """
    engine, probe, card = await choose_engine(host)
    runtime = choose_runtime(host, engine)
    settings, model = host.catalog.engines[engine.name], agent.model
    cache = hub_cache_from(host.environ)
    place = await asyncio.to_thread(locate, model, hub_cache=cache)
    facts = await asyncio.to_thread(facts_at, place, model)
    missing = place if isinstance(place, Missing) and not engine.simulated else None
    revision = place.revision
    source = (
        Source(model=str(model.path))
        if model.path
        else Source(model=str(model.repo), revision=revision, hub_cache=str(cache))
    )
    setup = setup_of(agent, engine, settings, card, runtime=runtime.name, revision=revision, facts=facts)
    known = facts is not None or engine.simulated
    measured = Footprints(host.state).last(setup)
    fit = fit_of(agent, engine, settings, card.total_bytes, facts, measured) if known else None
    version = await runtime.container_engine()
    return Draft(
        agent=agent,
        engine=engine,
        settings=settings,
        runtime=runtime,
        probe=probe,
        card=card,
        fit=fit,
        source=source,
        setup=setup,
        missing=missing,
        place=None if version is None else _place(host, engine, card, cache, version),
        behind_gateway=host.behind_gateway,
    )


def finish(drafted: Draft, fit: Fit) -> Prepared:
    """The command and the instance that come of a draft that fits."""
    agent, engine, card = drafted.agent, drafted.engine, drafted.card
    document = None
    if drafted.place is None:
        command = engine.command(agent, fit, drafted.source, drafted.settings, port=agent.engine_port)
        argv, env = command.argv, {**command.env, **_pinned(engine, card)}
    else:
        document = render(agent, fit, drafted.source, drafted.settings, engine, drafted.place)
        argv, env = command_line(document), {}
    spec = InstanceSpec(
        id=agent.name,
        agent=agent.name,
        shared_with=agent.shared_with,
        engine=engine.name,
        model=agent.model.name,
        card=card.id,
        claim_bytes=fit.budget_bytes,
        argv=argv,
        env=env,
        engine_port=agent.engine_port,
        agent_port=None if drafted.behind_gateway else agent.port,
        document=document,
    )
    return Prepared(draft=drafted, fit=fit, spec=spec)


def _pinned(engine: Engine, card: Card) -> dict[str, str]:
    """The card that is planned and locked is the one that a process sees, whatever its number."""
    return {"CUDA_VISIBLE_DEVICES": card.id} if engine.card_kind is CardKind.GPU else {}


async def choose_engine(host: Host) -> tuple[Engine, GpuProbe, Card]:
    """The engine that was asked for, else the catalog's, else vLLM on the GPU of this machine; and its card.

    Raises NoGpu, naming the three choices, when nobody chose and there is no GPU: the simulated engine is never
    chosen silently. Raises UsageError for a name that is no engine.
    """
    chosen = host.engine or host.catalog.engine
    engine = engine_named(chosen or "vllm", host.state)
    probe = host.probe(engine.card_kind)
    try:
        return engine, probe, await asyncio.to_thread(probe.read)
    except NoGpu as error:
        if chosen is not None:
            raise
        raise NoGpu(
            f"no engine was chosen, and {error.message}",
            hint="choose: --engine vllm on a machine with an NVIDIA GPU; --engine vllm-cpu --profile cpu for "
            "small models on the CPU; --engine simulated to try every command without a model",
        ) from error


def choose_runtime(host: Host, engine: Engine) -> Runtime:
    """The runtime that was asked for, else the catalog's, else the engine's own. Raises UsageError."""
    name = host.runtime or host.catalog.runtime or engine.default_runtime
    runtime = host.runtimes.get(name)
    if runtime is not None:
        return runtime
    raise UsageError(f"no runtime named '{name}'", hint=f"runtimes are: {', '.join(host.runtimes)}")


def probe_of(host: Host, engine_name: str) -> GpuProbe:
    """The reader of the card that an engine of that name lives on."""
    return host.probe(engine_named(engine_name, host.state).card_kind)


def fit_of(
    agent: Agent,
    engine: Engine,
    settings: EngineSettings,
    total_bytes: int,
    facts: Facts | None,
    measured: Measured | None = None,
) -> Fit:
    """How the agent fits a card of `total_bytes`. Raises DoesNotFit, with what would make it fit."""
    answer = plan(demand_of(agent, engine, settings, facts, measured), total_bytes)
    if isinstance(answer, Shortfall):
        raise DoesNotFit(
            answer.message, hint="; or ".join(answer.remedies) or None, where=f"agents.{agent.name}"
        )
    return answer


def demand_of(
    agent: Agent, engine: Engine, settings: EngineSettings, facts: Facts | None, measured: Measured | None
) -> Demand:
    """What the agent asks of a card, for the planner."""
    return Demand(
        agent=agent.name,
        context=agent.context,
        sequences=agent.sequences,
        kv_cache_dtype=agent.kv_cache_dtype,
        utilization=agent.utilization,
        cpu_offload_bytes=agent.cpu_offload_bytes,
        eager=agent.eager,
        budget=engine.budget,
        kv_cache_bytes=settings.kv_cache_bytes,
        facts=facts,
        measured=measured,
    )


def _place(host: Host, engine: Engine, card: Card, hub_cache: Path, version: int) -> Place:
    """This machine, for the compose document of an engine on `card`."""
    simulated = host.state.card(card.id).absolute() if engine.simulated else None
    return here(
        hub_cache=hub_cache,
        gpu=card.id,
        card_dir=simulated,
        # What it claims of the card belongs to whoever owns the card's folder.
        user=f"{os.getuid()}:{os.getgid()}",
        docker_version=version,
        publish_agent=not host.behind_gateway,
    )


class _Fetched:
    """Tells of an image that is fetched, as of a checkpoint that is pulled."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._begun = False

    def tell(self, now: Fetching) -> None:
        if not self._begun:
            self._begun = True
            self._listener(StepBegan(step=Step.PULLING, agent=now.subject))
        self._listener(
            PullProgress(model=now.subject, done_bytes=now.done_bytes, total_bytes=now.total_bytes)
        )
        if now.message:
            self._listener(Remark(message=f"{now.subject}: {now.message}"))
