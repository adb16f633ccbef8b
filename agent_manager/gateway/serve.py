"""The gateway's life: prepare the agents, own the card, open the doors, and go as it came.

It begins like a launch: what cannot be served is told, leftovers are removed, an engine that runs is adopted,
unless it holds an agent's door itself. It ends in order: doors closed, running requests finished, engines stopped.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.diagnosis.patterns import diagnose
from agent_manager.gateway.control import Control
from agent_manager.gateway.counts import Counts
from agent_manager.gateway.crew import gather, guard_of, names_of
from agent_manager.gateway.doors import Doors, raise_file_limit
from agent_manager.gateway.front import Front
from agent_manager.gateway.hangups import hang_ups
from agent_manager.gateway.keeper import Keeper
from agent_manager.gateway.manners import manners_of
from agent_manager.gateway.steward import Ears, Steward
from agent_manager.runtimes.kept_logs import kept_logs, read_kept
from agent_manager.swap import events as ev
from agent_manager.swap.card import State, following
from agent_manager.swap.controller import as_error, occupant_of
from agent_manager.swap.history import StartHistory, remember_swap
from agent_manager.swap.keep import LastingController
from agent_manager.swap.lock import GATEWAY, own_card
from agent_manager.swap.notices import Remark
from agent_manager.swap.observe import LOG_LINES, find
from agent_manager.swap.remote import SOCKET
from agent_manager.swap.takeover import take_over

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_manager.gateway.crew import Crew
    from agent_manager.runtimes.base import Exit
    from agent_manager.swap.host import Host, Interrupts
    from agent_manager.swap.lock import CardLock
    from agent_manager.swap.notices import Listener, Notice
    from agent_manager.swap.takeover import Takeover

DRAIN_TIMEOUT_S: Final = 300.0
"""How long requests that run may still take when another agent's turn has come."""
CLOSING_S: Final = 30.0
"""How long they may take when the gateway ends."""


class Addresses(Struct, frozen=True, kw_only=True):
    """Where the gateway listens: `port` for all, and each agent's own."""

    host: str
    port: int
    agents: Mapping[str, int]
    simulated: bool


async def serve(
    host: Host, *, listener: Listener, opened: Callable[[Addresses], None], wait_s: float = 0.0
) -> None:
    """Serve until interrupted; `opened` is called once clients can come. A hang-up reads the catalog anew.

    Raises what keeps every agent from being served, CardBusy, PortInUse, and UsageError for a key that is not where
    the catalog says.
    """
    host, ears = replace(host, behind_gateway=True), Ears(listener)
    settings = host.catalog.gateway
    raise_file_limit()
    guard = guard_of(host, listener)
    crew = await gather(host, listener)
    card = crew.any.spec.card
    async with own_card(host.state, card, verb="serve", kind=GATEWAY, wait_s=wait_s) as lock:
        counts = Counts()
        keeper, first = await _keeper(host, crew, lock, counts, ears.tell)
        front = Front(
            names=names_of(host.catalog),
            manners=manners_of(host.catalog),
            doorkeeper=keeper,
            guard=guard,
            counts=counts,
            include_usage=settings.include_usage,
        )
        async with Doors(settings.host, front) as doors:
            steward = Steward(host=host, crew=crew, keeper=keeper, front=front, doors=doors, ears=ears)
            gateway = _Gateway(keeper=keeper, front=front, doors=doors, steward=steward)
            async with Control(host.state.card(card) / SOCKET, steward, keeper) as control:
                await gateway.keep(host.interrupts, first, control, lambda: opened(_addresses(host, crew)))


def _addresses(host: Host, crew: Crew) -> Addresses:
    settings = host.catalog.gateway
    return Addresses(
        host=settings.host,
        port=settings.port,
        agents={name: agent.port for name, agent in host.catalog.agents.items()},
        simulated=crew.any.draft.engine.simulated,
    )


class _Gateway(Struct, frozen=True, kw_only=True):
    """What runs while the card is owned."""

    keeper: Keeper
    front: Front
    doors: Doors
    steward: Steward

    async def keep(
        self,
        interrupts: Interrupts,
        first: ev.Event | ev.AwaitReady | None,
        control: Control,
        opened: Callable[[], None],
    ) -> None:
        """Serve until interrupted, then end in order; a second interrupt cuts what still runs, a third everything."""
        interrupted = asyncio.Event()
        interrupts.subscribe(interrupted.set)
        keeping = asyncio.create_task(self.keeper.run(first))
        waiting = asyncio.create_task(interrupted.wait())
        tasks: list[asyncio.Task[Any]] = [keeping, waiting]
        try:
            with hang_ups(interrupts, self.steward):
                await self.doors.turn_to(self.steward.ports)
                opened()
                await asyncio.wait((keeping, waiting), return_when=asyncio.FIRST_COMPLETED)
            self.keeper.close()
            control.refuse()
            finished = await self._close_doors(interrupts)
            finish_s = CLOSING_S if finished else 0.0
            leaving = asyncio.create_task(self.keeper.leave(finish_s, stop=self.steward.stops_at_exit))
            tasks.append(leaving)
            await asyncio.wait((keeping, leaving), return_when=asyncio.FIRST_COMPLETED)
            (keeping if keeping.done() else leaving).result()
        finally:
            interrupts.subscribe(None)
            await self.steward.close()
            self.front.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _close_doors(self, interrupts: Interrupts) -> bool:
        """Let what runs finish, for CLOSING_S at most; False when somebody did not want to wait for that."""
        hurried = asyncio.Event()
        interrupts.subscribe(hurried.set)
        tasks = (asyncio.create_task(self.doors.close(CLOSING_S)), asyncio.create_task(hurried.wait()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            interrupts.subscribe(None)  # the next interrupt ends it at once
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return not hurried.is_set()


async def _keeper(
    host: Host, crew: Crew, lock: CardLock, counts: Counts, listener: Listener
) -> tuple[Keeper, ev.Event | ev.AwaitReady | None]:
    """The keeper with what was found on the card, and what it begins with."""
    newcomers = crew.newcomers(host)
    wanted = frozenset(newcomer.spec.fingerprint for newcomer in newcomers.values())
    found = await find(host.runtimes, crew.any.spec.card, wanted)
    keepers: list[Keeper] = []

    def tell(notice: Notice) -> None:
        keepers[0].notice(notice) if keepers else listener(notice)

    controller = LastingController(
        host=host,
        runtimes=host.runtimes,
        probe=crew.any.draft.probe,
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
        swapped=partial(remember_swap, host.state, crew.any.spec.card),
    )
    keepers.append(keeper)
    return keeper, first


def _cause_of(host: Host, agent: str, end: Exit | None) -> str:
    """Why its engine ended by itself, from the log that was kept."""
    kept = kept_logs(host.state.kept_logs(agent))
    tail = [line.text for line in read_kept(kept[0], tail=LOG_LINES, since=None)] if kept else []
    code, out_of_memory = (end.code, end.out_of_host_memory) if end else (None, False)
    found = diagnose(tail, exit_code=code, out_of_host_memory=out_of_memory)
    why = found.cause if found else "its engine ended by itself"
    return f"{agent}: {why}; see 'agent-manager logs {agent}'"


async def _opening(
    host: Host, crew: Crew, taken: Takeover, controller: LastingController, listener: Listener
) -> tuple[State, ev.Event | ev.AwaitReady | None]:
    """Where the machine begins. Leftovers are removed, and an engine that holds an agent's own door."""
    for leftover in taken.leftovers:
        await controller.discard(leftover.instance)
    total_bytes, desk = crew.any.draft.card.total_bytes, crew.desk(host)
    preload = host.catalog.gateway.preload
    if taken.loading is not None:
        arriving = occupant_of(taken.loading.instance.spec)
        leaving = occupant_of(taken.kept.instance.spec) if taken.kept else None
        state = following(
            total_bytes=total_bytes, arriving=arriving, leaving=leaving, drain_timeout_s=DRAIN_TIMEOUT_S
        )
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
    goal = crew.goal(preload)
    return state, ev.Wanted(goal=goal) if goal else None
