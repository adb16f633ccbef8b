"""Traffic on the swap machine: requests over time, on a card that does what it is told and takes its time.

Nothing fails here and nobody interrupts (`world.py` plays that); what counts is who gets through, and when.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from agent_manager.swap.card import State
from agent_manager.swap.events import (
    Arrived,
    AwaitMemory,
    AwaitReady,
    Cancelled,
    Drain,
    Drained,
    Due,
    Effect,
    Event,
    Finish,
    Finished,
    Grant,
    MemoryFree,
    Occupant,
    Ready,
    Remove,
    Request,
    Start,
    Started,
    Stop,
    Stopped,
    Wake,
)
from agent_manager.swap.machine import step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent_manager.swap.desk import Desk


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request that will come; its client goes away after `leaves_after_s`, if it is not over by then."""

    agent: str
    arrives_s: float
    duration_s: float
    leaves_after_s: float | None = None


@dataclass(kw_only=True)
class Seen:
    """What the client of a request saw. `turns` are the other agents that waited or were loaded, plus one."""

    arrived_s: float
    turns: int
    granted_s: float | None = None
    ended_s: float | None = None


@dataclass
class Traffic:
    """Plays the requests to the end. Raises AssertionError as soon as the machine does what it must not."""

    asks: Sequence[Ask]
    swap_s: Mapping[str, float]
    desk: Desk
    now_s: float = 0.0
    seen: dict[str, Seen] = field(default_factory=dict)
    swaps: int = 0
    longest_drain_s: float = 0.0
    engine: Occupant | None = None
    ready: bool = False
    draining_since_s: float | None = None
    running: set[str] = field(default_factory=set)
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    planned: int = 0
    wakes: int = 0

    def play(self) -> State:
        self.state = State(total_bytes=1, desk=self.desk, drain_timeout_s=1e9)
        for number, ask in enumerate(self.asks):
            self._at(ask.arrives_s, partial(self._arrive, f"r{number}", ask))
        while self.events:
            self.now_s, _, happen = heapq.heappop(self.events)
            happen()
        assert all(seen.ended_s is not None for seen in self.seen.values()), "somebody still waits"
        assert (self.state.waiting, self.state.in_flight) == ((), frozenset())
        return self.state

    def _at(self, when_s: float, happen: Callable[[], None]) -> None:
        self.planned += 1
        heapq.heappush(self.events, (when_s, self.planned, happen))

    def _soon(self, event: Event) -> None:
        self._at(self.now_s, partial(self._deliver, event))

    # --- clients ------------------------------------------------------------------------------------------

    def _arrive(self, id_: str, ask: Ask) -> None:
        others = {self.desk.group(request.agent) for request in self.state.waiting}
        if self.state.swap and self.state.swap.goal:
            others.add(self.desk.group(self.state.swap.goal.agent))
        self.seen[id_] = Seen(arrived_s=self.now_s, turns=len(others - {self.desk.group(ask.agent)}) + 1)
        if ask.leaves_after_s is not None:
            self._at(self.now_s + ask.leaves_after_s, partial(self._leave, id_))
        self._deliver(Arrived(request=Request(id=id_, agent=ask.agent, claim_bytes=1)))

    def _leave(self, id_: str) -> None:
        self._over(id_, Cancelled(request_id=id_))

    def _over(self, id_: str, event: Event) -> None:
        if self.seen[id_].ended_s is not None:
            return
        self.seen[id_].ended_s = self.now_s
        self.running.discard(id_)
        self._deliver(event)
        self._see_whether_drained()

    # --- the card -----------------------------------------------------------------------------------------

    def _deliver(self, event: Event) -> None:
        self.state, effects = step(self.state, event, self.now_s)
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Grant(request_id=id_):
                self._grant(id_)
            case Drain():
                self.draining_since_s = self.now_s
                self._see_whether_drained()
            case Stop(occupant=occupant):
                assert not self.running, "requests were cut"
                self.engine, self.ready = None, False
                self._soon(Stopped(instance_id=occupant.instance_id))
            case AwaitMemory():
                self._soon(MemoryFree())
            case Start(agent=agent):
                self.swaps += 1
                self.engine = Occupant(instance_id=f"{agent}-{self.swaps}", agent=agent, claim_bytes=1)
                self._soon(Started(occupant=self.engine))
            case AwaitReady(occupant=occupant):
                self._at(self.now_s + self.swap_s[occupant.agent], partial(self._load, occupant))
            case Wake(at_s=at_s):
                assert at_s > self.now_s, "it would be woken at once, for ever"
                self.wakes += 1
                self._at(at_s, partial(self._wake, self.wakes))
            case Finish() | Remove():
                pass
            case _:
                raise AssertionError(f"{effect} in a world in which all goes well")

    def _grant(self, id_: str) -> None:
        ask, seen = self.asks[int(id_[1:])], self.seen[id_]
        assert seen.granted_s is None, f"{id_} was granted twice"
        assert seen.ended_s is None, f"{id_} was granted after its client had gone"
        assert self.ready, "granted to an engine that does not answer"
        assert self.draining_since_s is None, "granted while the resident drains"
        assert self.desk.shared(self.engine.agent if self.engine else None, ask.agent)
        seen.granted_s = self.now_s
        self.running.add(id_)
        self._at(self.now_s + ask.duration_s, partial(self._over, id_, Finished(request_id=id_)))

    def _load(self, occupant: Occupant) -> None:
        self.ready = True
        self._deliver(Ready(instance_id=occupant.instance_id))

    def _wake(self, number: int) -> None:
        if number == self.wakes:
            self._deliver(Due())

    def _see_whether_drained(self) -> None:
        if self.draining_since_s is None or self.running or self.engine is None:
            return
        self.longest_drain_s = max(self.longest_drain_s, self.now_s - self.draining_since_s)
        self.draining_since_s = None
        self._deliver(Drained(instance_id=self.engine.instance_id))
