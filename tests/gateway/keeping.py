"""A keeper with a card of its own: engines in memory that answer HTTP, agents po and dev."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from agent_manager.catalog.agents import Agent, Catalog, Model
from agent_manager.gateway.counts import Counts
from agent_manager.gateway.keeper import Bounds, Keeper
from agent_manager.gateway.watchman import Rounds
from agent_manager.gpu.simulated import CARD_ID, SimulatedProbe
from agent_manager.runtimes.base import Instance, InstanceSpec, InstanceState
from agent_manager.swap import events as ev
from agent_manager.swap.card import Stage, State
from agent_manager.swap.controller import Newcomer, occupant_of
from agent_manager.swap.desk import Desk
from agent_manager.swap.history import StartHistory
from agent_manager.swap.host import Host
from agent_manager.swap.keep import LastingController
from agent_manager.swap.lock import own_card
from agent_manager.swap.notices import Remark
from agent_manager.swap.schedule import Settings
from tests.swap.engines import Manners

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from agent_manager.gateway.tickets import Granted, Ticket
    from agent_manager.gpu.base import Card
    from agent_manager.runtimes.base import Exit
    from agent_manager.state import StateDir
    from agent_manager.swap.notices import Notice
    from tests.swap.engines import ServingRuntime

    Begin = Callable[..., AbstractAsyncContextManager["Keep"]]

CLAIM_BYTES = 1 << 30
LIMIT_S = 20.0
NEVER_S = 3600.0
QUIET = Rounds(every_s=NEVER_S, answer_s=5.0, gone_s=5.0)
"""A watchman who looks once."""
WATCHFUL = Bounds(rounds=Rounds(every_s=0.02, answer_s=0.5, gone_s=0.3))
KILLED = 137


@dataclass
class Memory:
    """The card's memory; `taken`: all of it, by somebody else."""

    probe: SimulatedProbe
    taken: bool = False

    def read(self) -> Card:
        card = self.probe.read()
        return replace(card, free_bytes=0) if self.taken else card


@dataclass
class Keep:
    """A keeper at work."""

    keeper: Keeper
    controller: LastingController
    runtime: ServingRuntime
    counts: Counts
    memory: Memory
    notices: list[Notice] = field(default_factory=list)

    @property
    def card(self) -> State:
        return self.keeper.state

    async def granted(self, agent: str) -> tuple[Ticket, Granted]:
        """Ask, and wait for the turn."""
        ticket = self.keeper.ask(agent)
        async with asyncio.timeout(LIMIT_S):
            return ticket, await ticket.granted()

    async def served(self, agent: str) -> None:
        """A request that is over as soon as it has its turn."""
        ticket, _ = await self.granted(agent)
        ticket.close()

    async def heard(self) -> None:
        """Wait until everything that was told so far has been heard."""
        for _ in range(2):  # when the second one, which means nothing, is taken, the first has been heard
            self.controller.tell(ev.Cancelled(request_id="nobody"))
            await until(self.controller._events.empty, "events are heard")  # noqa: SLF001 - the queue is its own

    async def emptied(self) -> None:
        """Wait until nobody is on the card, nor coming."""
        await until(lambda: self.card.resident is None and self.card.swap is None, "the card is empty")

    def swaps(self) -> dict[tuple[str, str], int]:
        """How many swaps were counted, by agent and result."""
        return {
            (sample.labels["agent"], sample.labels["result"]): int(sample.value)
            for metric in self.counts.swaps.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }

    def warnings(self) -> list[str]:
        return [each.message for each in self.notices if isinstance(each, Remark) and each.warning]

    async def no_trace(self) -> None:
        """Nothing of any request is left."""
        await until(
            lambda: not self.card.waiting and not self.card.in_flight and not any_at(self.keeper),
            "nothing of a request is left",
        )


def any_at(keeper: Keeper) -> bool:
    return any(each.running or each.waiting for each in keeper.agents())


def spec_of(agent: Agent) -> InstanceSpec:
    return InstanceSpec(
        id=f"{agent.name}-0000",
        agent=agent.name,
        engine="simulated",
        model=agent.model.name,
        card=CARD_ID,
        claim_bytes=CLAIM_BYTES,
        argv=("engine",),
        engine_port=agent.engine_port,
        agent_port=None,
    )


@contextlib.asynccontextmanager
async def keeping(  # noqa: PLR0913 - what a test may want, by name
    state: StateDir,
    runtime: ServingRuntime,
    ports: Mapping[str, int],
    *,
    first: ev.Event | ev.AwaitReady | None = None,
    resident: str | None = None,
    default: str | None = None,
    bounds: Bounds | None = None,
    stall_s: float = NEVER_S,
    **settings: Any,  # noqa: ANN401 - those of Settings
) -> AsyncIterator[Keep]:
    """A keeper that runs; `resident` is on the card already."""
    agents, newcomers = _crew(runtime, ports, stall_s)
    known: dict[str, Instance] = {}
    if resident is not None:
        spec = newcomers[resident].spec
        await runtime.create(spec)
        await runtime.start(spec.id)
        known[spec.id] = Instance(spec=spec, runtime=runtime.name, state=InstanceState.RUNNING)
    notices: list[Notice] = []
    memory = Memory(SimulatedProbe(state.card(CARD_ID)))
    async with own_card(state, CARD_ID, verb="serve", kind="gateway") as lock:
        controller = LastingController(
            host=_host(state, runtime, agents),
            runtimes={runtime.name: runtime},
            probe=memory,
            lock=lock,
            history=StartHistory(state),
            listener=lambda notice: keeper.notice(notice),  # noqa: PLW0108 - it is made below
            newcomers=newcomers,
            known=known,
        )
        back = ev.Goal(agent=default, claim_bytes=CLAIM_BYTES) if default else None
        counts = Counts()
        keeper = Keeper(
            agents=agents,
            newcomers=newcomers,
            absent={},
            controller=controller,
            counts=counts,
            state=State(
                total_bytes=16 << 30,
                resident=occupant_of(newcomers[resident].spec) if resident else None,
                desk=Desk(
                    settings=Settings(**settings), default=back, swap_cost_s=dict.fromkeys(ports, 0.01)
                ),
                drain_timeout_s=LIMIT_S,
            ),
            listener=notices.append,
            cause_of=_cause,
            bounds=bounds or Bounds(rounds=QUIET),
        )
        work = asyncio.create_task(keeper.run(first))
        try:
            yield Keep(keeper, controller, runtime, counts, memory, notices)
            assert not work.done(), work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


def _crew(
    runtime: ServingRuntime, ports: Mapping[str, int], stall_s: float
) -> tuple[dict[str, Agent], dict[str, Newcomer]]:
    agents = {
        name: Agent(name=name, model=Model(name="small"), port=port, context=4096, sequences=4)
        for name, port in ports.items()
    }
    newcomers = {
        name: Newcomer(
            spec=spec_of(agent), runtime=runtime.name, start_bytes=CLAIM_BYTES, stall_timeout_s=stall_s
        )
        for name, agent in agents.items()
    }
    return agents, newcomers


def _host(state: StateDir, runtime: ServingRuntime, agents: Mapping[str, Agent]) -> Host:
    catalog = Catalog(
        source=Path("/models.yaml"),
        profile=None,
        profiles=(),
        engine=None,
        runtime=None,
        engines={},
        models={},
        agents=agents,
    )
    return Host(state=state, catalog=catalog, runtimes={runtime.name: runtime}, probe=lambda _: None)  # type: ignore[arg-type,return-value]


def _cause(agent: str, end: Exit | None) -> str:
    return f"{agent} ended with {end.code if end else 'nobody watching'}"


async def until(condition: Any, what: str) -> None:  # noqa: ANN401 - a condition, called
    """Wait for a condition; fail the test when it does not come true."""
    try:
        async with asyncio.timeout(LIMIT_S):
            while not condition():  # noqa: ASYNC110 - whatever it is, not only what sets an event
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"{what}: still not after {LIMIT_S:.0f} s") from None


def hold(runtime: ServingRuntime, what: str, agent: str) -> asyncio.Event:
    """Let this call wait until the event is set."""
    return runtime.held.setdefault((what, agent), asyncio.Event())


def reach(keep: Keep, stage: Stage) -> Callable[[], None]:
    """Make a swap from po to dev stay in that stage, until what is returned is called."""
    runtime = keep.runtime
    match stage:
        case Stage.DRAINING:
            busy = runtime.manners.setdefault("po", Manners(requests=1))
            return lambda: setattr(busy, "requests", 0)
        case Stage.STOPPING:
            return hold(runtime, "stop", "po").set
        case Stage.MAKING_ROOM:
            keep.memory.taken = True
            return lambda: setattr(keep.memory, "taken", False)
        case Stage.STARTING:
            return hold(runtime, "start", "dev").set
        case Stage.LOADING:
            manners = runtime.manners.setdefault("dev", Manners(healthy=False))
            return lambda: setattr(manners, "healthy", True)
        case Stage.DISCARDING:
            runtime.manners["dev"] = Manners(completes=False)
            return hold(runtime, "stop", "dev").set
