"""The picture of now: every agent of the catalog, the card, who owns it. Reads only; never locks, never repairs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent_manager.diagnosis.patterns import diagnose
from agent_manager.engines.registry import engine_named
from agent_manager.errors import AgentManagerError, NotRunning
from agent_manager.runtimes.base import InstanceState
from agent_manager.runtimes.kept_logs import kept_logs, read_kept
from agent_manager.swap.history import StartHistory
from agent_manager.swap.lock import read_owner
from agent_manager.swap.notices import AgentState, AgentStatus, Owner, StatusReport, Step
from agent_manager.swap.observe import Observed, instances, observe
from agent_manager.swap.prepare import probe_of
from agent_manager.swap.remote import gateways
from agent_manager.swap.takeover import Life

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from agent_manager.catalog.agents import Agent
    from agent_manager.runtimes.base import Instance, LogLine
    from agent_manager.swap.host import Host
    from agent_manager.swap.remote import Queue

_TRANSITIONS = {Step.DRAINING.value: AgentState.DRAINING, Step.STOPPING.value: AgentState.STOPPING}


async def report(host: Host) -> StatusReport:
    """Read everything now; bounded by one health request for each running instance."""
    found, notes = await instances(host.runtimes)
    shown = {name: _of_agent(name, found) for name in host.catalog.agents}
    # One instance may stand for several agents.
    present = list({instance.spec.id: instance for instance in shown.values() if instance}.values())
    observed = await asyncio.gather(
        *(observe(host.runtimes[instance.runtime], instance) for instance in present)
    )
    seen = {each.instance.spec.id: each for each in observed}
    by_agent = {name: seen[instance.spec.id] for name, instance in shown.items() if instance}
    running = [each for each in present if each.state is InstanceState.RUNNING]
    card, owner = None, None
    for instance in running[:1]:
        with contextlib.suppress(AgentManagerError):
            card = await asyncio.to_thread(probe_of(host, instance.spec.engine).read)
    for name in _cards(host, present):
        owner = owner or read_owner(host.state, name)
    history, queues = StartHistory(host.state), await _queues(host)
    agents = tuple(
        _at_gateway(_status(host, agent, by_agent.get(name), owner, history), queues.get(name))
        for name, agent in host.catalog.agents.items()
    )
    return StatusReport(card=card, owner=owner, agents=agents, notes=notes)


async def agent_logs(
    host: Host, agent: str, *, tail: int | None, since: datetime | None, follow: bool
) -> AsyncIterator[LogLine]:
    """The engine's log: of the instance that runs, else of the last one, else the newest that was kept.

    With `follow`, until that instance has ended. Raises AgentUnknown, or NotRunning when there never was one.
    """
    found, _ = await instances(host.runtimes)
    instance = _of_agent(agent, found)
    if instance is not None:
        runtime = host.runtimes[instance.runtime]
        lines = runtime.logs(instance.spec.id, tail=tail, since=since, follow=follow)
        async with contextlib.aclosing(lines):
            async for line in lines:
                yield line
        return
    host.catalog.agent(agent)
    kept = kept_logs(host.state.kept_logs(agent))
    if not kept:
        raise NotRunning(
            f"{agent} has never run here, so there is no log", hint=f"start it: agent-manager launch {agent}"
        )
    for line in read_kept(kept[0], tail=tail, since=since):
        yield line


def _of_agent(name: str, found: Sequence[Instance]) -> Instance | None:
    """The instance that stands for an agent: one that runs, else the newest."""
    mine = [instance for instance in found if name in instance.spec.agents]
    running = [instance for instance in mine if instance.state is InstanceState.RUNNING]
    return next(reversed(running or mine), None)


def _cards(host: Host, present: Sequence[Instance]) -> list[str]:
    """Cards that somebody may own: those with instances, and those that ever had an owner here."""
    names: list[str] = []
    with contextlib.suppress(OSError):  # nothing was ever run here, or it is another user's folder
        names = [folder.name for folder in host.state.cards.iterdir()]
    return sorted({instance.spec.card for instance in present} | set(names))


def _status(
    host: Host, agent: Agent, seen: Observed | None, owner: Owner | None, history: StartHistory
) -> AgentStatus:
    state, cause = _state(agent, seen, owner)
    if seen is None or state is AgentState.ABSENT:
        engine = host.engine or host.catalog.engine or "vllm"
        runtime = host.runtime or host.catalog.runtime or engine_named(engine, host.state).default_runtime
        return AgentStatus(
            name=agent.name,
            state=state,
            engine=engine,
            runtime=runtime,
            model=agent.model.name,
            port=agent.port,
            engine_port=agent.engine_port,
        )
    instance, spec = seen.instance, seen.instance.spec
    started = history.of_instance(spec.id)
    serving = state in {AgentState.READY, AgentState.DRAINING}
    return AgentStatus(
        name=agent.name,
        state=state,
        engine=spec.engine,
        runtime=instance.runtime,
        model=spec.model,
        port=spec.agent_port or agent.port,
        engine_port=spec.engine_port,
        base_url=f"http://localhost:{spec.agent_port}/v1" if serving and spec.agent_port else None,
        instance_id=spec.id,
        started_at=instance.started_at,
        ready_after_s=started.seconds if started else None,
        claim_bytes=None if state is AgentState.FAILED and seen.life is Life.OVER else spec.claim_bytes,
        phase=seen.phase.name if seen.phase and state is AgentState.STARTING else None,
        cause=cause,
    )


async def _queues(host: Host) -> dict[str, Queue]:
    """What the gateways that run here say of their agents."""
    told = await asyncio.gather(*(each.queues() for each in gateways(host.state).values()))
    return {name: queue for queues in told for name, queue in (queues or {}).items()}


def _at_gateway(status: AgentStatus, queue: Queue | None) -> AgentStatus:
    """The status under a gateway: it answers for every agent, on the card or not, and knows why it does not."""
    if queue is None:
        return status
    failed = queue.trouble is not None and status.state is AgentState.ABSENT
    return replace(
        status,
        state=AgentState.FAILED if failed else status.state,
        cause=queue.trouble if failed else status.cause,
        base_url=f"http://localhost:{status.port}/v1",
        requests_running=queue.running,
        requests_waiting=queue.waiting,
    )


def _state(agent: Agent, seen: Observed | None, owner: Owner | None) -> tuple[AgentState, str | None]:
    if seen is None:
        return AgentState.ABSENT, None
    if seen.life is Life.OVER:
        return _ended(agent, seen)
    if owner and owner.agent in seen.instance.spec.agents and owner.step in _TRANSITIONS:
        return _TRANSITIONS[owner.step], None
    if seen.life is Life.SERVING:
        # It may answer /health already while its launch still waits for a completion.
        checking = owner and owner.agent in seen.instance.spec.agents and owner.step == Step.LOADING.value
        return AgentState.STARTING if checking else AgentState.READY, None
    if seen.life is Life.BROKEN:
        return AgentState.FAILED, "it runs and does not answer; 'agent-manager restart' replaces it"
    return AgentState.STARTING, None


def _ended(agent: Agent, seen: Observed) -> tuple[AgentState, str | None]:
    end = seen.instance.exit
    if end is None or end.requested:
        return AgentState.ABSENT, None
    found = diagnose(
        seen.tail, exit_code=end.code, out_of_host_memory=end.out_of_host_memory, stop_requested=False
    )
    if found is not None:
        return AgentState.FAILED, found.cause
    return AgentState.FAILED, end.reason or f"{agent.name} ended with exit code {end.code}"
