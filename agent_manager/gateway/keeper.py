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

from msgspec import Struct, field
from msgspec.structs import replace

from agent_manager.errors import AgentManagerError, EngineKilled
from agent_manager.gateway.place import Place, state_of, swap_for
from agent_manager.gateway.tickets import AgentNow, RefusedError, Whereabouts
from agent_manager.gateway.trust import Trust
from agent_manager.gateway.watchman import Rounds, Watchman
from agent_manager.gateway.wishes import Wishes
from agent_manager.swap import events as ev
from agent_manager.swap.card import Stage, State
from agent_manager.swap.controller import STALL_TIMEOUT_S, as_error
from agent_manager.swap.notices import LoadProgress, Remark, StepBegan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_manager.catalog.agents import Agent
    from agent_manager.gateway.counts import Counts
    from agent_manager.runtimes.base import Exit
    from agent_manager.swap.controller import Newcomer
    from agent_manager.swap.desk import Desk
    from agent_manager.swap.keep import LastingController
    from agent_manager.swap.notices import Listener, Notice

RETRY_S: Final = 5
_NOBODY: Final = ev.Wanted(goal=None, drain_timeout_s=1.0)
"""Empties the card when the gateway ends; what had to finish has."""


class Bounds(Struct, frozen=True, kw_only=True):
    """How much the keeper takes on.

    `most_waiting` and `most_running` requests for one agent; more are told to come again (an engine queues beyond
    its sequences). Past `longest_wait_s` a waiting request is given up: swaps take minutes, so something is wrong.
    """

    most_waiting: int = 1024
    most_running: int = 1024
    longest_wait_s: float = 1800.0
    rounds: Rounds = field(default_factory=Rounds)


class Keeper:
    """A Doorkeeper. `newcomers` are the agents that can be started, `absent` why the others cannot.

    `cause_of` says why an agent's engine ended by itself, once its log is kept, from that and from how it ended.
    `swapped` is told of each swap that was done: who came, who left for it, how many seconds it took.
    """

    def __init__(  # noqa: PLR0913 - everything it keeps, said once
        self,
        *,
        agents: Mapping[str, Agent],
        newcomers: Mapping[str, Newcomer],
        absent: Mapping[str, AgentManagerError],
        controller: LastingController,
        counts: Counts,
        state: State,
        listener: Listener,
        cause_of: Callable[[str, Exit | None], str],
        swapped: Callable[[str, str | None, float], None] = lambda *_: None,
        bounds: Bounds | None = None,
    ) -> None:
        self._agents = agents
        self._newcomers = newcomers
        self._absent = absent
        self._controller = controller
        self._counts = counts
        self._start = state
        self._listener = listener
        self._cause_of = cause_of
        self._swapped = swapped
        self._bounds = bounds or Bounds()
        self._trust = Trust()
        self.wishes = Wishes(controller.tell)
        self._watchman = Watchman(
            controller=controller,
            resident=self._serving,
            busy=lambda: bool(self.state.in_flight),
            stall_s=self._stall_timeout_s,
            listener=listener,
            rounds=self._bounds.rounds,
        )
        self._tickets: dict[str, Place] = {}
        self._numbers = itertools.count(1)
        self._doing = "nothing"
        self._loading_since_s: float | None = None
        self._expected_s: float | None = None
        self._swap_began_s: float | None = None
        self._unloading = False
        self._closing = False
        self._emptied: asyncio.Event | None = None
        self._nobody = _NOBODY
        self._quiet, self._begun = asyncio.Event(), asyncio.Event()
        self._quiet.set()
        self._begun.set()

    # --- Doorkeeper ---------------------------------------------------------------------------------------

    def ask(self, agent: str) -> Place:
        """A place in the queue; see Doorkeeper. Raises RefusedError."""
        if self._closing:
            raise RefusedError(503, "closing", "the gateway is ending", retry_after_s=RETRY_S)
        error = self._absent.get(agent)
        if error is not None:
            raise _refused(agent, error.message, error.hint)
        now_s = time.monotonic()
        paused = self._trust.paused(self._group(agent), now_s)
        if paused is not None:
            raise RefusedError(503, "agent_failed", paused[0], retry_after_s=round(paused[1]) + 1)
        if len(self._tickets) >= min(self._bounds.most_waiting, self._bounds.most_running):
            self._check_room(agent)
        id_ = f"request-{next(self._numbers)}"
        ticket = Place(self, id_, agent, now_s, self._bounds.longest_wait_s)
        self._tickets[ticket.id] = ticket
        self._quiet.clear()
        self._queue(ticket)
        if ticket.waits:
            ticket.swap = swap_for(self.state, agent)
        return ticket

    def _check_room(self, agent: str) -> None:
        """Raises RefusedError. Counting is worth it only once there are many."""
        mine = [ticket for ticket in self._tickets.values() if ticket.agent == agent]
        waiting = sum(ticket.waits for ticket in mine)
        if waiting >= self._bounds.most_waiting or len(mine) - waiting >= self._bounds.most_running:
            raise RefusedError(
                429, "queue_full", f"{len(mine)} requests are at {agent}", retry_after_s=RETRY_S
            )

    def agents(self) -> tuple[AgentNow, ...]:
        """All agents of the catalog; see Doorkeeper."""
        return tuple(
            AgentNow(
                name=name,
                model=agent.model.repo or agent.model.name,
                aliases=agent.aliases,
                state=state_of(self.state, name, failed=self.trouble(name) is not None),
                port=agent.port,
                running=sum(t.agent == name and not t.waits for t in self._tickets.values()),
                waiting=sum(t.agent == name and t.waits for t in self._tickets.values()),
            )
            for name, agent in self._agents.items()
        )

    def unload(self) -> None:
        """Empty the card once its requests are over; see Doorkeeper. Whoever waits brings the next agent."""
        self._unloading = True  # until it is done: during a swap it has to be said again
        self._controller.tell(ev.Wanted(goal=None, drain_timeout_s=self.state.drain_timeout_s))

    # --- running ------------------------------------------------------------------------------------------

    async def run(self, first: ev.Event | ev.AwaitReady | None) -> None:
        """Keep the card until cancelled; `first` is what to begin with. Raises what is a mistake of ours."""
        now_s = time.monotonic()
        # Whoever is found on the card begins to idle now, and somebody has to look when its time is over.
        desk = replace(self._start.desk, since_s=now_s)
        self._controller.tell(ev.Due())
        keeping = self._controller.keep(replace(self._start, desk=desk, now_s=now_s), first, self._hear)
        tasks = (asyncio.create_task(keeping), asyncio.create_task(self._watchman.run()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def leave(self, finish_s: float, *, stop: bool = True) -> None:
        """Let running requests finish for at most `finish_s`, then empty the card. After `close`, beside `run`.

        Nothing is waited for when that is 0. Without `stop`, the engine that serves, loads or is being started is
        left as it is, for the next gateway to go on with.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), finish_s)
        if not stop:
            await self._begun.wait()  # a moment: a start that is cut off leaves an engine half made
            if self.state.swap is None or self.state.swap.stage is Stage.LOADING:
                return
        self._emptied = asyncio.Event()
        self._nobody = replace(_NOBODY, drain_timeout_s=min(finish_s, _NOBODY.drain_timeout_s))
        self._controller.tell(self._nobody)
        await self._emptied.wait()

    def close(self) -> None:
        """Take no more requests, and tell those that wait."""
        self._closing = True
        for ticket in tuple(self._tickets.values()):
            if ticket.waits:
                ticket.refuse(RefusedError(503, "closing", "the gateway is ending", retry_after_s=RETRY_S))

    @property
    def state(self) -> State:
        """The card as it is now."""
        return self._controller.state or self._start

    @property
    def resident_agents(self) -> tuple[str, ...]:
        """The agents of the engine that is on the card; none when it is empty, or being changed."""
        resident = self.state.resident
        return self._controller.spec_of(resident).agents if resident else ()

    # --- what a person wants ------------------------------------------------------------------------------

    def renew(
        self,
        *,
        agents: Mapping[str, Agent],
        newcomers: Mapping[str, Newcomer],
        absent: Mapping[str, AgentManagerError],
        desk: Desk,
    ) -> None:
        """Go on with other agents and the settings of `desk`; who failed is tried again.

        Requests for who is `absent` now are refused, and who was there before and is not any more has to be.
        """
        self._agents, self._absent = agents, absent
        self._newcomers = {**self._newcomers, **newcomers}  # of the resident, too, until it has left
        for agent in agents:
            if self._trust.paused(self._group(agent), time.monotonic()) is not None:
                self.forgive(agent)
        self._controller.renew(newcomers)
        renewed = ev.Renewed(
            settings=desk.settings,
            group_of=desk.group_of,
            default=desk.default,
            claims={name: each.spec.claim_bytes for name, each in newcomers.items()},
            refusals=absent,
            current=frozenset(each.spec.fingerprint for each in newcomers.values()),
        )
        self._controller.tell(renewed)

    def forgive(self, agent: str) -> None:
        """Try it again when it is asked for, whatever happened."""
        self._trust.forgiven(self._group(agent))

    def trouble(self, agent: str) -> str | None:
        """Why it is not served now; None when it is."""
        if agent in self._absent:
            return self._absent[agent].message
        paused = self._trust.paused(self._group(agent), time.monotonic())
        return paused[0] if paused else None

    def _stall_timeout_s(self) -> float:
        return min((each.stall_timeout_s for each in self._newcomers.values()), default=STALL_TIMEOUT_S)

    def _serving(self) -> ev.Occupant | None:
        """Who takes requests now."""
        state = self.state
        return state.resident if state.swap is None and not state.stuck else None

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

    def _hear(self, before: State, now: State, effect: ev.Effect) -> None:
        """What the machine decided, after it was performed."""
        starting = now.swap is not None and now.swap.stage is Stage.STARTING
        self._begun.clear() if starting else self._begun.set()
        match effect:
            case ev.Grant(request_id=request_id):
                self._grant(request_id, now.resident)
            case ev.Reject(request_id=request_id, reason=reason):
                self._reject(request_id, reason)
            case ev.Remove(instance_id=id_) if before.resident and before.resident.instance_id == id_:
                self._crashed(before.resident, time.monotonic())
            case ev.Drain() | ev.AwaitMemory() if self._swap_began_s is None:
                self._swap_began_s = time.monotonic()
            case ev.Finish(outcome=outcome):
                self._finished(before, outcome, time.monotonic())

    def _queue(self, ticket: Place) -> None:
        claim_bytes = self._newcomers[ticket.agent].spec.claim_bytes
        request = ev.Request(id=ticket.id, agent=ticket.agent, claim_bytes=claim_bytes)
        self._controller.tell(ev.Arrived(request=request))

    def _grant(self, request_id: str, resident: ev.Occupant | None) -> None:
        ticket = self._tickets.get(request_id)
        if ticket is not None and ticket.waits and resident is not None:
            ticket.grant(resident, self._controller.spec_of(resident).engine_port)

    def _reject(self, request_id: str, reason: object) -> None:
        ticket = self._tickets.get(request_id)
        if ticket is None or not ticket.waits:
            return
        paused = self._trust.paused(self._group(ticket.agent), time.monotonic())
        if isinstance(reason, EngineKilled) and paused is None:
            self._queue(ticket)  # it would have started
            return
        error = as_error(reason)
        retry_after_s = round(paused[1]) + 1 if paused else RETRY_S
        ticket.refuse(_refused(ticket.agent, error.message, error.hint, retry_after_s))

    def _crashed(self, resident: ev.Occupant, now_s: float) -> None:
        cause = self._watchman.why_ended(resident.instance_id)
        if cause is None:
            cause = self._cause_of(resident.agent, self._controller.last_end)
            self._listener(Remark(message=cause, warning=True))
        self._trust.failed(self._group(resident.agent), cause, now_s, by_itself=True)

    def _finished(self, before: State, outcome: ev.Outcome, now_s: float) -> None:
        self.wishes.finished(outcome)
        if self._emptied is not None:
            self._left(self._emptied, outcome)
        if outcome.result is ev.Result.BUSY:
            return
        if self._unloading:
            self._unloading = outcome.goal is not None
            if self._unloading:
                self.unload()
        if before.swap is None:
            return  # nothing had to be done
        took_s = now_s - self._swap_began_s if self._swap_began_s is not None else None
        self._swap_began_s, self._doing = None, "nothing"
        agent = outcome.goal.agent if outcome.goal else ""
        self._counts.swaps.labels(agent, outcome.result.value).inc()
        if outcome.goal is None:
            return
        if outcome.result is ev.Result.DONE:
            if took_s is not None:
                self._counts.swap.labels(agent).observe(took_s)
                left = before.swap.leaving.agent if before.swap.leaving else None
                self._swapped(agent, left, took_s)
            self._trust.ready(self._group(agent), now_s)
        elif outcome.result is ev.Result.FAILED:
            cause = as_error(outcome.reason).message
            self._warn(cause, outcome.wish)
            killed = isinstance(outcome.reason, EngineKilled)
            self._trust.failed(self._group(agent), cause, now_s, by_itself=killed)

    def _warn(self, cause: str, wish: str | None) -> None:
        if wish is None or not self.wishes.asked(wish):  # else whoever asked is told, and tells us
            self._listener(Remark(message=cause, warning=True))

    def _left(self, emptied: asyncio.Event, outcome: ev.Outcome) -> None:
        """The gateway is ending, and something has ended on the card."""
        state = self.state
        if outcome.result is ev.Result.BUSY:
            for _ in range(2):  # the first would put back the one that left
                self._controller.tell(ev.Interrupted())
        elif state.swap is None and (state.resident is None or state.stuck):
            emptied.set()
        else:
            self._controller.tell(self._nobody)

    # --- tickets ------------------------------------------------------------------------------------------

    def closed(self, ticket: Place) -> None:
        """A request is over; nothing of it stays."""
        if self._tickets.pop(ticket.id, None) is not None:
            self._controller.tell(ev.Finished(request_id=ticket.id))
        if not self._tickets:
            self._quiet.set()

    async def unanswered(self, ticket: Place) -> None:
        """The engine hung up on it; see Ticket."""
        if ticket.by is not None:
            await self._watchman.make_sure(ticket.by)

    def whereabouts(self, ticket: Place) -> Whereabouts:
        """Where a waiting request is."""
        before = itertools.takewhile(lambda each: each.id != ticket.id, self.state.waiting)
        left_s = None
        if self._expected_s is not None and self._loading_since_s is not None:
            left_s = max(0.0, self._expected_s - (time.monotonic() - self._loading_since_s))
        return Whereabouts(position=sum(1 for _ in before), doing=self._doing, expected_s=left_s)

    def _group(self, agent: str) -> str:
        """Agents that share an instance are trusted as one."""
        return self.state.desk.group(agent)


def _refused(agent: str, message: str, hint: str | None, retry_after_s: int = RETRY_S) -> RefusedError:
    told = f"{agent} cannot be served: {message}" + (f" ({hint})" if hint else "")
    return RefusedError(503, "agent_failed", told, retry_after_s=retry_after_s)
