"""The gateway's life: prepare the agents, own the card, open the doors, and go as it came.

It begins like a launch: what cannot be served is told, leftovers are removed, an engine that runs is adopted,
unless it holds an agent's door itself. It ends in order: doors closed, running requests finished, engines stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from aiohttp import web

from agent_manager.diagnosis.patterns import diagnose
from agent_manager.errors import AgentManagerError, HostNotReady, UsageError
from agent_manager.gateway.counts import Counts
from agent_manager.gateway.front import Front
from agent_manager.gateway.guard import Guard
from agent_manager.gateway.keeper import Keeper
from agent_manager.gateway.routing import Names
from agent_manager.runtimes.kept_logs import kept_logs, read_kept
from agent_manager.runtimes.ports import require_free
from agent_manager.swap import events as ev
from agent_manager.swap.controller import Controller, as_error, occupant_of
from agent_manager.swap.desk import Desk
from agent_manager.swap.history import StartHistory
from agent_manager.swap.lock import own_card
from agent_manager.swap.machine import State, following
from agent_manager.swap.notices import Remark
from agent_manager.swap.observe import LOG_LINES, find
from agent_manager.swap.operations import newcomer_of
from agent_manager.swap.prepare import prepare
from agent_manager.swap.schedule import Settings
from agent_manager.swap.takeover import take_over

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from agent_manager.catalog.agents import Catalog, Gateway
    from agent_manager.swap.host import Host
    from agent_manager.swap.lock import CardLock
    from agent_manager.swap.notices import Listener, Notice
    from agent_manager.swap.prepare import Prepared
    from agent_manager.swap.takeover import Takeover

DRAIN_TIMEOUT_S: Final = 300.0
"""How long requests that run may still take when another agent's turn has come."""
CLOSING_S: Final = 30.0
"""How long they may take when the gateway ends."""
CLIENT_IDLE_S: Final = 75.0
"""How long a client's connection may idle: nginx's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """Where the gateway listens: `port` for all, and each agent's own."""

    host: str
    port: int
    agents: Mapping[str, int]
    simulated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crew:
    """The agents that can be served, and why the others cannot."""

    ready: Mapping[str, Prepared]
    absent: Mapping[str, AgentManagerError]

    @property
    def any(self) -> Prepared:
        """One of them: engine and card are the same for all."""
        return next(iter(self.ready.values()))


async def serve(
    host: Host, *, listener: Listener, opened: Callable[[Doors], None], wait_s: float = 0.0
) -> None:
    """Serve until interrupted; `opened` is called once clients can come.

    Raises what keeps every agent from being served, CardBusy, PortInUse, and UsageError for a key that is not where
    the catalog says.
    """
    host = replace(host, behind_gateway=True)
    settings = host.catalog.gateway
    guard = Guard(key=_key(settings, host.environ), origins=frozenset(settings.origins))
    crew = await _crew(host, listener)
    doors = Doors(
        host=settings.host,
        port=settings.port,
        agents={name: agent.port for name, agent in host.catalog.agents.items()},
        simulated=crew.any.engine.simulated,
    )
    async with own_card(host.state, crew.any.card.id, verb="serve", kind="gateway", wait_s=wait_s) as lock:
        counts = Counts()
        keeper, first = await _keeper(host, crew, lock, counts, listener)
        front = Front(
            names=_names(host.catalog),
            doorkeeper=keeper,
            guard=guard,
            counts=counts,
            include_usage=settings.include_usage,
        )
        await _keep(host, keeper, first, doors, front, opened)


async def _keep(
    host: Host,
    keeper: Keeper,
    first: ev.Event | ev.AwaitReady | None,
    doors: Doors,
    front: Front,
    opened: Callable[[Doors], None],
) -> None:
    interrupted = asyncio.Event()
    host.interrupts.subscribe(interrupted.set)
    keeping = asyncio.create_task(keeper.run(first))
    waiting = asyncio.create_task(interrupted.wait())
    try:
        async with _open(doors, front):
            opened(doors)
            await asyncio.wait((keeping, waiting), return_when=asyncio.FIRST_COMPLETED)
            keeper.close()
        host.interrupts.subscribe(None)  # a second interrupt ends it at once
        if not keeping.done():
            await keeper.leave(CLOSING_S)
        else:
            keeping.result()
    finally:
        host.interrupts.subscribe(None)
        front.close()
        for task in (keeping, waiting):
            task.cancel()
        await asyncio.gather(keeping, waiting, return_exceptions=True)


@contextlib.asynccontextmanager
async def _open(doors: Doors, front: Front) -> AsyncIterator[None]:
    """Listen on every port; leaving closes them and lets what runs finish. Raises PortInUse."""
    listening: dict[int, str | None] = {doors.port: None}
    listening |= {port: name for name, port in doors.agents.items()}
    runners: list[web.ServerRunner] = []
    try:
        for port, agent in listening.items():
            require_free(port)
            server = web.Server(front.door(agent), handler_cancellation=True, keepalive_timeout=CLIENT_IDLE_S)
            runner = web.ServerRunner(server, shutdown_timeout=CLOSING_S)
            runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, doors.host, port).start()
        yield
    finally:
        await asyncio.gather(*(runner.cleanup() for runner in runners))


def _names(catalog: Catalog) -> Names:
    agents = catalog.agents
    return Names(agents.values(), {alias: agent.name for agent in agents.values() for alias in agent.aliases})


def _key(settings: Gateway, environ: Mapping[str, str]) -> str | None:
    """The key that clients must show. Raises UsageError when it is not where the catalog says."""
    if settings.api_key_env is not None:
        key, where = environ.get(settings.api_key_env, ""), f"${settings.api_key_env}"
    elif settings.api_key_file is not None:
        where = str(settings.api_key_file)
        try:
            key = settings.api_key_file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the gateway's key cannot be read from {where}: {error}", where=where) from None
    else:
        return None
    if not key.strip():
        raise UsageError(
            f"the gateway's key is to be in {where}, and nothing is there",
            hint="put a long random text there, such as that of 'openssl rand -hex 32'",
            where=where,
        )
    return key.strip()


async def _crew(host: Host, listener: Listener) -> _Crew:
    """Raises what keeps the first agent from being served when none can be."""
    ready: dict[str, Prepared] = {}
    absent: dict[str, AgentManagerError] = {}
    for name in host.catalog.agents:
        try:
            ready[name] = await prepare(host, name, pull=False, listener=listener)
        except HostNotReady:
            raise
        except AgentManagerError as error:
            absent[name] = error
            listener(Remark(message=f"{name} cannot be served: {error.message}", warning=True))
    if not ready:
        raise next(iter(absent.values()))
    return _Crew(ready=ready, absent=absent)


async def _keeper(
    host: Host, crew: _Crew, lock: CardLock, counts: Counts, listener: Listener
) -> tuple[Keeper, ev.Event | ev.AwaitReady | None]:
    """The keeper with what was found on the card, and what it begins with."""
    newcomers = {name: newcomer_of(host, ready) for name, ready in crew.ready.items()}
    wanted = frozenset(newcomer.spec.fingerprint for newcomer in newcomers.values())
    found = await find(host.runtimes, crew.any.card.id, wanted)
    keepers: list[Keeper] = []

    def tell(notice: Notice) -> None:
        keepers[0].notice(notice) if keepers else listener(notice)

    controller = Controller(
        host=host,
        runtimes=host.runtimes,
        probe=crew.any.probe,
        lock=lock,
        history=StartHistory(host.state),
        listener=tell,
        newcomers=newcomers,
        known={each.instance.spec.id: each.instance for each in found},
    )
    state, first = await _opening(host, crew, take_over(found), controller, listener)
    keeper = Keeper(
        agents=host.catalog.agents,
        newcomers=newcomers,
        absent=crew.absent,
        controller=controller,
        counts=counts,
        state=state,
        listener=listener,
        cause_of=partial(_cause_of, host),
    )
    keepers.append(keeper)
    return keeper, first


def _cause_of(host: Host, agent: str) -> str:
    """Why its engine ended by itself, from the log that was kept."""
    kept = kept_logs(host.state.kept_logs(agent))
    tail = [line.text for line in read_kept(kept[0], tail=LOG_LINES, since=None)] if kept else []
    found = diagnose(tail, exit_code=None, out_of_host_memory=False, stop_requested=False)
    why = found.cause if found else "its engine ended by itself"
    return f"{agent}: {why}; see 'agent-manager logs {agent}'"


async def _opening(
    host: Host, crew: _Crew, taken: Takeover, controller: Controller, listener: Listener
) -> tuple[State, ev.Event | ev.AwaitReady | None]:
    """Where the machine begins. Leftovers are removed, and an engine that holds an agent's own door."""
    for leftover in taken.leftovers:
        await controller.discard(leftover.instance)
    total_bytes, desk = crew.any.card.total_bytes, _desk(host, crew)
    preload = host.catalog.gateway.preload
    if taken.loading is not None:
        arriving = occupant_of(taken.loading.instance.spec)
        leaving = occupant_of(taken.kept.instance.spec) if taken.kept else None
        state = following(total_bytes=total_bytes, arriving=arriving, leaving=leaving)
        return replace(state, desk=desk), ev.AwaitReady(occupant=arriving, restoring=False)
    state = State(total_bytes=total_bytes, desk=desk, drain_timeout_s=DRAIN_TIMEOUT_S)
    if taken.resident is not None:
        agent = taken.resident.instance.spec.agent
        state = replace(state, resident=occupant_of(taken.resident.instance.spec))
        if taken.resident.wanted:
            listener(Remark(message=f"{agent} is on the card and stays"))
        else:
            cause = (
                "it holds its port itself"
                if taken.resident.instance.spec.agent_port
                else "the catalog changed"
            )
            listener(Remark(message=f"{agent} is started anew: {cause}"))
            outcome = await controller.run(state, ev.Wanted(goal=None, drain_timeout_s=DRAIN_TIMEOUT_S))
            if outcome.result is not ev.Result.DONE:
                raise as_error(outcome.reason)
            state = replace(state, resident=None)
            preload = preload or agent
    goal = _goal(crew, preload)
    return state, ev.Wanted(goal=goal) if goal else None


def _desk(host: Host, crew: _Crew) -> Desk:
    settings = host.catalog.gateway
    agents = host.catalog.agents.values()
    starts = StartHistory(host.state)
    took_s = {name: starts.last(ready.spec) for name, ready in crew.ready.items()}
    return Desk(
        settings=Settings(
            max_wait_s=settings.max_wait_s,
            keep_alive_s=settings.keep_alive_s,
            keep_alive_of_s={
                each.name: each.keep_alive_s for each in agents if each.keep_alive_s is not None
            },
        ),
        default=_goal(crew, settings.default),
        swap_cost_s={name: start.seconds for name, start in took_s.items() if start is not None},
    )


def _goal(crew: _Crew, agent: str | None) -> ev.Goal | None:
    ready = crew.ready.get(agent or "")
    return ev.Goal(agent=ready.agent.name, claim_bytes=ready.spec.claim_bytes) if ready else None
