"""Looks at this host for `doctor`: every part at once, each within its own time. Changes nothing.

What may hang (a Docker that does not answer, a driver, a network) is asked in threads that nobody waits for at the
end; only the container that tries the GPU is always waited for, and removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.checkpoints.disk import Missing, facts_of, hub_cache_from, locate
from agent_manager.checkpoints.known import known_facts
from agent_manager.diagnosis.doctor import judge
from agent_manager.diagnosis.facts import (
    AgentNeed,
    CardFacts,
    CatalogFacts,
    HostFacts,
    HubFacts,
    MissingModel,
    ModelFacts,
    Trouble,
    Wanted,
)
from agent_manager.engines.base import CardKind
from agent_manager.engines.registry import engine_named
from agent_manager.errors import AgentManagerError, CheckpointUnusable, DoesNotFit
from agent_manager.planning.support import caveat, unsupported
from agent_manager.runtimes.base import InstanceState
from agent_manager.swap.docker_checkup import DockerLook, look_at_docker
from agent_manager.swap.lock import GATEWAY, read_owner
from agent_manager.swap.prepare import fit_of
from agent_manager.swap.reference import DEFAULT_ENGINE
from agent_manager.swap.surroundings import disk_of, leftovers, port_facts, system_facts
from agent_manager.swap.within import within

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_manager.catalog.agents import Agent, Catalog, Model
    from agent_manager.diagnosis.doctor import Report
    from agent_manager.diagnosis.facts import Leftovers, PortFacts
    from agent_manager.engines.base import Engine
    from agent_manager.errors import Problem
    from agent_manager.gpu.base import GpuFacts
    from agent_manager.runtimes.base import Runtime
    from agent_manager.swap.host import Host

_HUB_S: Final = 5.0
_PROCESS: Final = "process"


class _Ours(Struct, frozen=True, kw_only=True):
    """Our instances: the ports and the processes of those that run, the agents of those that ended by themselves."""

    ports: frozenset[int] = frozenset()
    pids: frozenset[int] = frozenset()
    ended: frozenset[str] = frozenset()


async def checkup(host: Host, *, problems: tuple[Problem, ...] = ()) -> Report:
    """Look at everything and judge it; bounded by some ten seconds. Raises UsageError for an unknown engine.

    `problems` are those of the user's catalog, when `host` had to be built from the packaged one.
    """
    return judge(await look(host, problems=problems))


async def look(host: Host, *, problems: tuple[Problem, ...] = (), root: Path = Path("/")) -> HostFacts:
    """The facts of this host; `root` is where its /proc, /etc and /sys are. Raises as `checkup` does."""
    engine = engine_named(host.engine or host.catalog.engine or DEFAULT_ENGINE, host.state)
    wanted = _wanted(host, engine)
    async with asyncio.TaskGroup() as group:
        system = group.create_task(asyncio.to_thread(system_facts, root))
        state = group.create_task(asyncio.to_thread(disk_of, host.state.root))
        docker = group.create_task(look_at_docker(host, wanted))
        processes = group.create_task(_processes(host.runtimes.get(_PROCESS)))
        card = group.create_task(within("the card", partial(_card, host, engine)))
        models = group.create_task(within("the Hub cache", partial(_models, host)))
        hub = group.create_task(_hub(wanted))
        ours = group.create_task(_together(docker, processes))
        ports = group.create_task(_ports(host, docker, ours))
        left = group.create_task(_leftovers(host, ours))
    return HostFacts(
        wanted=wanted,
        catalog=_catalog(host.catalog, problems),
        system=system.result(),
        state=state.result(),
        docker=docker.result().facts,
        trial=docker.result().trial,
        card=_card_with(card.result(), ours.result()),
        models=models.result(),
        hub=hub.result(),
        ports=ports.result(),
        leftovers=left.result(),
    )


def _wanted(host: Host, engine: Engine) -> Wanted:
    settings = host.catalog.engines[engine.name]
    program = settings.command[0] if settings.command else None if engine.simulated else "vllm"
    path = host.environ.get("PATH")
    return Wanted(
        engine=engine.name,
        runtime=host.runtime or host.catalog.runtime or engine.default_runtime,
        needs_gpu=engine.card_kind is CardKind.GPU,
        simulated=engine.simulated,
        image=settings.image,
        program=program,
        program_found=program is None or shutil.which(program, path=path) is not None,
    )


def _catalog(catalog: Catalog, problems: tuple[Problem, ...]) -> CatalogFacts:
    return CatalogFacts(
        source=str(catalog.source),
        profile=catalog.profile,
        agents=len(catalog.agents),
        models=len(catalog.models),
        problems=problems,
    )


async def _processes(runtime: Runtime | None) -> _Ours | Trouble:
    """Our instances that are processes of this host."""
    if runtime is None:
        return _Ours()
    try:
        instances = await runtime.list()
        running = [each for each in instances if each.state is InstanceState.RUNNING]
        pids = [await runtime.pids(each.spec.id) for each in running]
    except AgentManagerError as error:
        return Trouble(message=error.message, hint=error.hint)
    ports = (port for each in running for port in (each.spec.engine_port, each.spec.agent_port) if port)
    ended = (each.spec.agent for each in instances if each.exit is not None and not each.exit.requested)
    return _Ours(ports=frozenset(ports), pids=frozenset().union(*pids), ended=frozenset(ended))


async def _together(docker: asyncio.Task[DockerLook], processes: asyncio.Task[_Ours | Trouble]) -> _Ours:
    """Those that are processes and those that are containers; a part that cannot be read is told elsewhere."""
    here, boxes = await processes, (await docker).containers
    found = _Ours() if isinstance(here, Trouble) else here
    specs = [each.spec for each in boxes if each.running and each.spec]
    ports = (port for spec in specs for port in (spec.engine_port, spec.agent_port) if port)
    return _Ours(
        ports=found.ports | frozenset(ports),
        pids=found.pids.union(*(each.pids for each in boxes)),
        ended=found.ended | frozenset(each.spec.agent for each in boxes if each.ended and each.spec),
    )


async def _ports(
    host: Host, docker: asyncio.Task[DockerLook], ours: asyncio.Task[_Ours]
) -> tuple[PortFacts, ...] | Trouble:
    agents = tuple(host.catalog.agents.values())
    mine = (await ours).ports | _gateway_ports(host)
    look = partial(port_facts, agents, mine, (await docker).published)
    return await within("the ports", look)


def _gateway_ports(host: Host) -> frozenset[int]:
    """The agents' ports, while a gateway of ours listens there."""
    with contextlib.suppress(OSError):  # nothing was ever run here
        owners = (read_owner(host.state, folder.name) for folder in host.state.cards.iterdir())
        if any(owner and owner.kind == GATEWAY for owner in owners):
            return frozenset(agent.port for agent in host.catalog.agents.values())
    return frozenset()


async def _leftovers(host: Host, ours: asyncio.Task[_Ours]) -> Leftovers | Trouble:
    return await within("the state folder", partial(leftovers, host.state, (await ours).ended))


def _card(host: Host, engine: Engine) -> CardFacts:
    """The engine's card, and what each agent needs of it. Raises HostNotReady."""
    card = host.probe(engine.card_kind).read()
    gpu = _gpu(host.environ) if engine.card_kind is CardKind.GPU else None
    needs = (_need(host, engine, agent, card.total_bytes, gpu) for agent in host.catalog.agents.values())
    return CardFacts(card=card, gpu=gpu, needs=() if engine.simulated else tuple(needs))


def _gpu(environ: Mapping[str, str]) -> GpuFacts:
    from agent_manager.gpu.nvml import SELECTOR_VARIABLE, read_facts  # noqa: PLC0415 - only where there is a GPU

    return read_facts(environ.get(SELECTOR_VARIABLE))


def _need(host: Host, engine: Engine, agent: Agent, total_bytes: int, gpu: GpuFacts | None) -> AgentNeed:
    need = AgentNeed(agent=agent.name)
    try:
        facts = facts_of(agent.model, hub_cache=hub_cache_from(host.environ))
    except CheckpointUnusable:
        return need  # told with the models
    if facts is None:
        return need
    if gpu is not None:
        capability = gpu.compute_capability
        obstacle = unsupported(facts, capability, None, kv_cache_dtype=agent.kv_cache_dtype)
        need = replace(
            need, unsupported=obstacle.message if obstacle else None, slower=caveat(facts, capability)
        )
    try:
        fit = fit_of(agent, engine, host.catalog.engines[engine.name], total_bytes, facts)
    except DoesNotFit as error:
        return replace(need, shortfall=error.message)
    return replace(need, start_bytes=fit.start_bytes)


def _card_with(card: CardFacts | Trouble, ours: _Ours) -> CardFacts | Trouble:
    return card if isinstance(card, Trouble) else replace(card, ours=ours.pids)


def _models(host: Host) -> ModelFacts:
    """The checkpoints of the profile's agents, each once. Raises OSError."""
    cache = hub_cache_from(host.environ)
    agents = host.catalog.agents.values()
    complete, missing, unusable, sizes = 0, [], [], []
    for model in {agent.model.name: agent.model for agent in agents}.values():
        try:
            place = locate(model, hub_cache=cache)
        except CheckpointUnusable as error:
            unusable.append(Trouble(message=error.message, hint=error.hint))
            continue
        if isinstance(place, Missing):
            missing.append(_missing(model))
        else:
            complete += 1
            sizes.append(place.size_bytes)
    known = [each.size_bytes for each in missing if each.size_bytes is not None]
    return ModelFacts(
        disk=disk_of(cache),
        complete=complete,
        missing=tuple(missing),
        unusable=tuple(unusable),
        largest_bytes=max([*sizes, *known], default=None),
        offload_bytes=max((agent.cpu_offload_bytes for agent in agents), default=0),
    )


def _missing(model: Model) -> MissingModel:
    facts = known_facts(model.repo) if model.repo else None
    return MissingModel(name=model.name, size_bytes=None if facts is None else facts.disk_bytes)


async def _hub(wanted: Wanted) -> HubFacts | Trouble | str:
    if wanted.simulated:
        return f"not needed for {wanted.engine}"

    def ask() -> HubFacts | str:
        from agent_manager.checkpoints import hub  # noqa: PLC0415 - half a second, in this thread

        if hub.is_offline():
            return "HF_HUB_OFFLINE forbids asking the Hub"
        answer = hub.whoami(timeout_s=_HUB_S)
        return HubFacts(
            endpoint=answer.endpoint, token=answer.token, refused=answer.refused, user=answer.user
        )

    return await within("the Hub", ask)
