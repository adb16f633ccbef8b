"""The keeper: owns the card while the gateway runs, and hands out its tickets.

One swap machine decides, one controller performs; requests reach the machine as events, and its grants come back
as tickets. Whoever asks never touches the card, and everything about a request that is over is forgotten at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from typing import TYPE_CHECKING, Final

from agent_manager.engines.client import EngineClient
from agent_manager.errors import AgentManagerError
from agent_manager.gateway.tickets import AgentNow, Granted, RefusedError, Whereabouts
from agent_manager.gateway.trust import Trust
from agent_manager.swap import events as ev
from agent_manager.swap.controller import as_error
from agent_manager.swap.machine import Stage, State
from agent_manager.swap.notices import AgentState, LoadProgress, StepBegan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_manager.catalog.agents import Agent
    from agent_manager.gateway.counts import Counts
    from agent_manager.swap.controller import Controller, Newcomer
    from agent_manager.swap.notices import Listener, Notice

MOST_WAITING: Final = 256
"""Requests that wait for one agent; more are told to come again."""
MOST_RUNNING: Final = 256
"""Requests that run in one agent; an engine queues beyond its sequences, and this is queue enough."""
LONGEST_WAIT_S: Final = 1800.0
"""Past this a waiting request is given up: swaps take minutes at most, so something is wrong."""
CANARY_AFTER_S: Final = 60.0
"""How long nothing may have run in the resident before it is asked for a word; /health misses a hung engine."""
CANARY_TIMEOUT_S: Final = 30.0
RETRY_S: Final = 5
_NOBODY: Final = ev.Wanted(goal=None, drain_timeout_s=1.0)
"""Empties the card when the gateway ends; what had to finish has."""


class Keeper:
    """A Doorkeeper. `newcomers` are the agents that can be started, `absent` why the others cannot.

    `cause_of` says why an agent's engine ended by itself, once its log is kept.
    """

    def __init__(  # noqa: PLR0913 - everything it keeps, said once
        self,
        *,
        agents: Mapping[str, Agent],
        newcomers: Mapping[str, Newcomer],
        absent: Mapping[str, AgentManagerError],
        controller: Controller,
        counts: Counts,
        state: State,
        listener: Listener,
        cause_of: Callable[[str], str],
    ) -> None:
        self._agents = agents
        self._newcomers = newcomers
        self._absent = absent
        self._controller = controller
        self._counts = counts
        self._state = state
        self._listener = listener
        self._cause_of = cause_of
        self._trust = Trust()
        self._tickets: dict[str, _Ticket] = {}
        self._numbers = itertools.count(1)
        self._doing = "nothing"
        self._loading_since_s: float | None = None
        self._expected_s: float | None = None
        self._swap_began_s: float | None = None
        self._closing = False
        self._emptied: asyncio.Event | None = None
        self._quiet = asyncio.Event()
        self._quiet.set()

    # --- Doorkeeper ---------------------------------------------------------------------------------------

    def ask(self, agent: str) -> _Ticket:
        """A place in the queue; see Doorkeeper. Raises RefusedError."""
        if self._closing:
            raise RefusedError(503, "closing", "the gateway is ending", retry_after_s=RETRY_S)
        error = self._absent.get(agent)
        if error is not None:
            raise _refused(agent, error.message, error.hint)
        paused = self._trust.paused(agent, time.monotonic())
        if paused is not None:
            raise RefusedError(503, "agent_failed", paused[0], retry_after_s=round(paused[1]) + 1)
        mine = [ticket for ticket in self._tickets.values() if ticket.agent == agent]
        waiting = sum(not ticket.turn.done() for ticket in mine)
        if waiting >= MOST_WAITING or len(mine) - waiting >= MOST_RUNNING:
            raise RefusedError(
                429, "queue_full", f"{len(mine)} requests are at {agent}", retry_after_s=RETRY_S
            )
        ticket = _Ticket(self, f"request-{next(self._numbers)}", agent)
        self._tickets[ticket.id] = ticket
        self._quiet.clear()
        claim_bytes = self._newcomers[agent].spec.claim_bytes
        request = ev.Request(id=ticket.id, agent=agent, claim_bytes=claim_bytes)
        self._controller.tell(ev.Arrived(request=request))
        return ticket

    def agents(self) -> tuple[AgentNow, ...]:
        """All agents of the catalog; see Doorkeeper."""
        return tuple(
            AgentNow(
                name=name,
                model=agent.model.repo or agent.model.name,
                aliases=agent.aliases,
                state=self._state_of(name),
                port=agent.port,
                running=sum(t.agent == name and t.turn.done() for t in self._tickets.values()),
                waiting=sum(t.agent == name and not t.turn.done() for t in self._tickets.values()),
            )
            for name, agent in self._agents.items()
        )

    def unload(self) -> None:
        """Empty the card once its requests are over; see Doorkeeper. Whoever waits brings the next agent."""
        self._controller.tell(ev.Wanted(goal=None, drain_timeout_s=self._state.drain_timeout_s))

    # --- running ------------------------------------------------------------------------------------------

    async def run(self, first: ev.Event | ev.AwaitReady | None) -> None:
        """Keep the card until cancelled; `first` is what to begin with. Raises what is a mistake of ours."""
        canary = asyncio.create_task(self._watch())
        try:
            await self._controller.keep(self._state, first, self._hear)
        finally:
            canary.cancel()
            await asyncio.gather(canary, return_exceptions=True)

    async def leave(self, finish_s: float) -> None:
        """Let running requests finish for at most `finish_s`, then empty the card. After `close`, beside `run`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), finish_s)
        self._emptied = asyncio.Event()
        if self._state.swap is not None:
            for _ in range(2):  # the first would put back the one that left
                self._controller.tell(ev.Interrupted())
        else:
            self._controller.tell(_NOBODY)
        await self._emptied.wait()

    def close(self) -> None:
        """Take no more requests, and tell those that wait."""
        self._closing = True
        for ticket in tuple(self._tickets.values()):
            if not ticket.turn.done():
                ending = RefusedError(503, "closing", "the gateway is ending", retry_after_s=RETRY_S)
                ticket.turn.set_exception(ending)

    @property
    def state(self) -> State:
        """The card as it is now."""
        return self._state

    def notice(self, notice: Notice) -> None:
        """What the controller tells, for those who wait and for whoever listens."""
        match notice:
            case StepBegan(step=step, agent=agent, expected_s=expected_s):
                self._doing = f"{step.value} {agent}"
                self._expected_s = expected_s
                self._loading_since_s = time.monotonic() if expected_s is not None else None
            case LoadProgress(agent=agent, phase=phase):
                self._doing = f"loading {agent}: {phase.name}"
        self._listener(notice)

    def _hear(self, state: State, effect: ev.Effect) -> None:
        """What the machine decided, after it was performed."""
        before, self._state = self._state, state
        now_s = time.monotonic()
        match effect:
            case ev.Remove(instance_id=id_) if before.resident and before.resident.instance_id == id_:
                agent = before.resident.agent
                self._trust.failed(agent, self._cause_of(agent), now_s)
            case ev.Drain() | ev.AwaitMemory() if self._swap_began_s is None:
                self._swap_began_s = now_s
            case ev.Grant(request_id=request_id):
                self._grant(request_id)
            case ev.Reject(request_id=request_id, reason=reason):
                self._reject(request_id, reason)
            case ev.Finish(outcome=outcome):
                self._finished(outcome, now_s)

    def _grant(self, request_id: str) -> None:
        ticket, resident = self._tickets.get(request_id), self._state.resident
        if ticket is None or ticket.turn.done() or resident is None:
            return
        port = self._agents[resident.agent].engine_port
        ticket.turn.set_result(Granted(port=port, swap=ticket.swap))

    def _reject(self, request_id: str, reason: object) -> None:
        ticket = self._tickets.get(request_id)
        if ticket is not None and not ticket.turn.done():
            error = as_error(reason)
            ticket.turn.set_exception(_refused(ticket.agent, error.message, error.hint))

    def _finished(self, outcome: ev.Outcome, now_s: float) -> None:
        agent = outcome.goal.agent if outcome.goal else ""
        self._counts.swaps.labels(agent, outcome.result.value).inc()
        took_s = now_s - self._swap_began_s if self._swap_began_s is not None else 0.0
        self._swap_began_s, self._doing = None, "nothing"
        if self._emptied is not None and outcome.result is not ev.Result.BUSY:
            stays = self._state.resident is not None and not self._state.stuck
            self._controller.tell(_NOBODY) if stays else self._emptied.set()
        if outcome.goal is None:
            return
        if outcome.result is ev.Result.DONE:
            self._counts.swap.labels(agent).observe(took_s)
            self._trust.ready(agent, now_s)
        elif outcome.result is ev.Result.FAILED:
            self._trust.failed(agent, as_error(outcome.reason).message, now_s)

    async def _watch(self) -> None:
        """Ask a resident that idles for a word; one that cannot say it is ended, and starts again when asked for."""
        while True:
            await asyncio.sleep(CANARY_AFTER_S)
            resident = self._state.resident
            if resident is None or self._tickets or self._state.swap is not None:
                continue
            client = EngineClient(self._agents[resident.agent].engine_port)
            try:
                await client.complete_once(resident.agent, timeout_s=CANARY_TIMEOUT_S)
            except AgentManagerError:
                if self._state.resident == resident and self._state.swap is None:
                    await self._controller.kill(resident)

    # --- tickets ------------------------------------------------------------------------------------------

    def closed(self, ticket: _Ticket) -> None:
        """A request is over; nothing of it stays."""
        if self._tickets.pop(ticket.id, None) is not None:
            self._controller.tell(ev.Finished(request_id=ticket.id))
        if not self._tickets:
            self._quiet.set()

    def whereabouts(self, ticket: _Ticket) -> Whereabouts:
        """Where a waiting request is."""
        before = itertools.takewhile(lambda each: each.id != ticket.id, self._state.waiting)
        left_s = None
        if self._expected_s is not None and self._loading_since_s is not None:
            left_s = max(0.0, self._expected_s - (time.monotonic() - self._loading_since_s))
        return Whereabouts(position=sum(1 for _ in before), doing=self._doing, expected_s=left_s)

    def swap_for(self, agent: str) -> str | None:
        """The swap that a request for `agent` waits for now, as `po -> dev`; None when it is there."""
        resident, swap = self._state.resident, self._state.swap
        if resident is not None and swap is None and resident.agent == agent:
            return None
        left = swap.leaving if swap else resident
        return f"{left.agent} -> {agent}" if left and left.agent != agent else f"-> {agent}"

    def _state_of(self, name: str) -> AgentState:
        state = self._state
        swap = state.swap
        if swap and swap.leaving and swap.leaving.agent == name and not swap.restoring:
            if swap.stage is Stage.DRAINING:
                return AgentState.DRAINING
            if swap.stage is Stage.STOPPING:
                return AgentState.STOPPING
        if state.resident and state.resident.agent == name:
            return AgentState.FAILED if state.stuck else AgentState.READY
        coming = swap.leaving.agent if swap and swap.restoring and swap.leaving else None
        coming = coming or (swap.goal.agent if swap and swap.goal else None)
        if coming == name:
            return AgentState.STARTING
        failed = name in self._absent or self._trust.paused(name, time.monotonic()) is not None
        return AgentState.FAILED if failed else AgentState.ABSENT


class _Ticket:
    """A Ticket of the keeper's."""

    def __init__(self, keeper: Keeper, id_: str, agent: str) -> None:
        self.id = id_
        self.agent = agent
        self.swap = keeper.swap_for(agent)
        self.turn: asyncio.Future[Granted] = asyncio.get_running_loop().create_future()
        self._keeper = keeper
        self._asked_s = time.monotonic()

    async def granted(self) -> Granted:
        """Wait for the turn; see Ticket."""
        try:
            async with asyncio.timeout_at(self._asked_s + LONGEST_WAIT_S):
                return await asyncio.shield(self.turn)
        except TimeoutError:
            message = f"{self.agent} did not come onto the card within {LONGEST_WAIT_S / 60:.0f} minutes"
            raise RefusedError(503, "waited_too_long", message, retry_after_s=RETRY_S) from None

    def whereabouts(self) -> Whereabouts:
        """Where it is; see Ticket."""
        return self._keeper.whereabouts(self)

    def close(self) -> None:
        """Over; see Ticket."""
        self.turn.cancel()
        if self.turn.done() and not self.turn.cancelled():
            self.turn.exception()  # seen, whoever did not wait for it
        self._keeper.closed(self)


def _refused(agent: str, message: str, hint: str | None) -> RefusedError:
    told = f"{agent} cannot be served: {message}" + (f" ({hint})" if hint else "")
    return RefusedError(503, "agent_failed", told, retry_after_s=RETRY_S)
