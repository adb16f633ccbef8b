"""The steward: does what the owner of the gateway asks for, while requests go on.

Launch and stop are wishes to the swap machine, which it hears between two swaps. A reload prepares the new catalog
beside the old one and takes it in one go, or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from agent_manager.catalog.load import load_catalog
from agent_manager.errors import AgentManagerError, AgentUnknown, CatalogInvalid, UsageError
from agent_manager.gateway.crew import Crew, gather, guard_of, names_of, ports_of
from agent_manager.gateway.manners import manners_of
from agent_manager.swap import events as ev
from agent_manager.swap.history import StartHistory
from agent_manager.swap.notices import LaunchResult, ReloadResult, Remark
from agent_manager.swap.operations import undone
from agent_manager.swap.prepare import prepare
from agent_manager.swap.remote import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent_manager.catalog.agents import Catalog
    from agent_manager.gateway.doors import Doors
    from agent_manager.gateway.front import Front
    from agent_manager.gateway.guard import Guard
    from agent_manager.gateway.keeper import Keeper
    from agent_manager.swap.host import Host
    from agent_manager.swap.notices import Listener, Notice

LAST_REQUESTS_S: Final = 300.0
"""How long requests on a port that is no more may still take."""


class Ears:
    """Who is told what happens on the card: always `first`, others for a while."""

    def __init__(self, first: Listener) -> None:
        self.first = first
        self._listeners = [first]

    def tell(self, notice: Notice) -> None:
        """Tell all of them."""
        for listener in tuple(self._listeners):
            listener(notice)

    @contextlib.contextmanager
    def also(self, listener: Listener) -> Iterator[None]:
        """Tell this one, too, until the block ends."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)


class Steward:
    """Acts on one gateway: its keeper, its front, its doors."""

    def __init__(
        self, *, host: Host, crew: Crew, keeper: Keeper, front: Front, doors: Doors, ears: Ears
    ) -> None:
        self._host = host
        self._crew = crew
        self._keeper = keeper
        self._front = front
        self._doors = doors
        self._ears = ears
        self._gone: dict[str, AgentManagerError] = {}
        self._renewing = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def launch(
        self, wish: str, agent: str, *, listener: Listener, pull: bool, drain_timeout_s: float, again: bool
    ) -> LaunchResult:
        """Have `agent` on the card, whatever became of it earlier; `again` starts it anew if it is there.

        Waits for a swap that is under way. Raises as operations.launch does.
        """
        if agent not in self._host.catalog.agents:
            raise AgentUnknown(
                f"the gateway's catalog has no agent '{agent[:100]}'",
                hint="'agent-manager reload' has the gateway read it anew",
                where="agents",
            )
        if agent in self._crew.absent:
            await self._recruit(agent, pull=pull, listener=listener)
        self._keeper.forgive(agent)
        wanted = ev.Wanted(goal=self._crew.goal(agent), drain_timeout_s=drain_timeout_s, replace_same=again)
        with self._ears.also(listener):
            while True:
                before = self._keeper.state.resident
                outcome = await self._keeper.wishes.ask(wish, wanted)
                if outcome.result is not ev.Result.BUSY:
                    break
        if outcome.result is not ev.Result.DONE or outcome.resident is None:
            raise self._undone(outcome, listener)
        return self._launched(agent, before, outcome.resident)

    async def stop(
        self, wish: str, agents: Sequence[str], *, listener: Listener, drain_timeout_s: float
    ) -> tuple[str, ...]:
        """Take these agents off the card, whoever is there when none is named; those that were.

        Waits for a swap that is under way. Requests bring them back. Raises as operations.stop does.
        """
        wanted = ev.Wanted(goal=None, drain_timeout_s=drain_timeout_s)
        with self._ears.also(listener):
            while True:
                while self._keeper.state.swap is not None:
                    await self._keeper.wishes.swap_ended()
                there = self._keeper.resident_agents
                if not there or (agents and not set(agents) & set(there)):
                    return ()
                outcome = await self._keeper.wishes.ask(wish, wanted)
                if outcome.result is ev.Result.DONE:
                    return there
                if outcome.result is not ev.Result.BUSY:
                    raise self._undone(outcome, listener)

    def queues(self) -> dict[str, Queue]:
        """The requests of each agent."""
        return {
            each.name: Queue(
                running=each.running, waiting=each.waiting, trouble=self._keeper.trouble(each.name)
            )
            for each in self._keeper.agents()
        }

    async def reload(self, listener: Listener) -> ReloadResult:
        """Read the catalog anew and go on with it. Raises what is wrong with it, and nothing has changed then."""
        async with self._renewing:
            host = replace(self._host, catalog=await asyncio.to_thread(self._read))
            crew = await gather(host, listener)
            if crew.any.spec.card != self._crew.any.spec.card:
                raise UsageError(
                    f"the catalog's engine runs on {crew.any.spec.card}, this gateway owns "
                    f"{self._crew.any.spec.card}",
                    hint="end 'agent-manager serve' and start it again",
                    where="engine",
                )
            guard = guard_of(host, listener)
            old = self._host.catalog.gateway.host
            if host.catalog.gateway.host != old:
                told = f"gateway.host is still {old}: another one takes a restart of 'agent-manager serve'"
                listener(Remark(message=told, warning=True))
            result = self._compared(host, crew)
            await asyncio.shield(self._take(host, crew, guard))
            self._ears.tell(Remark(message=f"{result.catalog} is taken"))
            return result

    async def reload_alone(self) -> None:
        """Reload, and tell whoever always listens how it went."""
        tell = self._ears.tell
        try:
            await self.reload(tell)
        except AgentManagerError as error:
            tell(Remark(message=f"the catalog is not taken: {error.message}", warning=True))
            for problem in error.problems if isinstance(error, CatalogInvalid) else ():
                tell(Remark(message=str(problem), warning=True))

    def _undone(self, outcome: ev.Outcome, listener: Listener) -> AgentManagerError:
        error = undone(outcome, listener)
        if outcome.result is ev.Result.FAILED:
            self._ears.first(Remark(message=error.message, warning=True))
        return error

    async def close(self) -> None:
        """Wait for nothing any more."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

    @property
    def ports(self) -> dict[int, str | None]:
        """Where the gateway listens now, and for whom."""
        return ports_of(self._host.catalog)

    @property
    def stops_at_exit(self) -> bool:
        """Whether the engine is stopped when the gateway ends."""
        return self._host.catalog.gateway.at_exit == "stop"

    # --- the catalog --------------------------------------------------------------------------------------

    def _read(self) -> Catalog:
        now = self._host.catalog
        return load_catalog(
            now.source, profile=now.profile, environ=self._host.environ, state_root=self._host.state.root
        )

    def _compared(self, host: Host, crew: Crew) -> ReloadResult:
        before, after = self._host.catalog.agents, host.catalog.agents
        fingerprints = [
            {name: ready.spec.fingerprint for name, ready in each.ready.items()}
            for each in (self._crew, crew)
        ]
        changed = [
            name
            for name in after
            if name in before
            and (before[name] != after[name] or fingerprints[0].get(name) != fingerprints[1].get(name))
        ]
        return ReloadResult(
            catalog=str(host.catalog.source),
            added=tuple(name for name in after if name not in before),
            removed=tuple(name for name in before if name not in after),
            changed=tuple(changed),
        )

    async def _take(self, host: Host, crew: Crew, guard: Guard) -> None:
        """Open what is new; then, between two requests, everything else. Raises PortInUse before anything changed."""
        ports = ports_of(host.catalog)
        await self._doors.turn_to(self._doors.ports | ports)
        names = [*self._host.catalog.agents, *self._gone]
        self._gone = {name: _removed(name) for name in names if name not in host.catalog.agents}
        self._renew(host, crew)
        settings = host.catalog.gateway
        self._front.renew(
            names=names_of(host.catalog),
            manners=manners_of(host.catalog),
            guard=guard,
            include_usage=settings.include_usage,
        )
        closing = asyncio.create_task(self._doors.turn_to(ports, within_s=LAST_REQUESTS_S))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _renew(self, host: Host, crew: Crew) -> None:
        self._host, self._crew = host, crew
        self._keeper.renew(
            agents=host.catalog.agents,
            newcomers=crew.newcomers(host),
            absent={**self._gone, **crew.absent},
            desk=crew.desk(host),
        )

    async def _recruit(self, agent: str, *, pull: bool, listener: Listener) -> None:
        """Make an agent ready that could not be served. Raises why it still cannot."""
        async with self._renewing:
            ready = await prepare(self._host, agent, pull=pull, listener=listener)
            absent = {name: why for name, why in self._crew.absent.items() if name not in ready.spec.agents}
            crew = Crew(ready={**self._crew.ready, **dict.fromkeys(ready.spec.agents, ready)}, absent=absent)
            self._renew(self._host, crew)

    def _launched(self, agent: str, before: ev.Occupant | None, now: ev.Occupant) -> LaunchResult:
        ready = self._crew.ready[agent]
        already = before is not None and before.instance_id == now.instance_id
        started = None if already else StartHistory(self._host.state).of_instance(now.instance_id)
        left = before.agent if before and before.agent != now.agent else None
        return LaunchResult(
            agent=agent,
            instance_id=now.instance_id,
            base_url=f"http://localhost:{self._host.catalog.agents[agent].port}/v1",
            engine=ready.spec.engine,
            runtime=ready.draft.runtime.name,
            model=ready.spec.model,
            card=ready.spec.card,
            simulated=ready.draft.engine.simulated,
            ready_after_s=started.seconds if started else None,
            replaced=(left,) if left else (),
            already_running=already,
        )


def _removed(agent: str) -> AgentUnknown:
    return AgentUnknown(f"{agent} is not in the catalog any more", where="agents")
