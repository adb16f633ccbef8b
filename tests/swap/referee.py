"""Who performs the swap machine's effects as a controller does, and objects to what must not be.

It knows which instances run and hold memory, which requests are under way, and what an honest swap would have
come to (`Trip`), from what happened and never from the machine's own fields. What happens is `world.py`'s.
"""

from __future__ import annotations

from typing import Self, TypeAlias

from msgspec.structs import replace

from agent_manager.swap.card import State, following
from agent_manager.swap.events import (
    Abandon,
    AwaitMemory,
    AwaitReady,
    Drain,
    Effect,
    Event,
    Finish,
    Goal,
    Grant,
    Occupant,
    Outcome,
    Reject,
    Remove,
    Result,
    Start,
    StartAgain,
    Stop,
    Wake,
    Wanted,
)
from agent_manager.swap.machine import step

from .trip import CARD_BYTES, CLAIMS, Engine, Fate, Trip

Slow: TypeAlias = Drain | Stop | AwaitMemory | Start | StartAgain | AwaitReady
WAITS = (Drain, AwaitMemory, AwaitReady)


class Referee:
    """A card with a machine that owns it; `_deliver` tells it an event and checks everything."""

    def __init__(self) -> None:
        self.state = State(total_bytes=CARD_BYTES)
        self.engines: dict[str, Engine] = {}
        self.removed: set[str] = set()
        self.requests: dict[str, Fate] = {}
        self.agent_of: dict[str, str] = {}
        self.served = set(CLAIMS)
        self.changes = dict.fromkeys(CLAIMS, 0)
        self.current: frozenset[str] | None = None
        self.in_flight: set[str] = set()
        self.late_finishes: list[str] = []
        self.room_for: str | None = None
        self.pending: Slow | None = None
        self.trip: Trip | None = None
        self.now_s = 0.0
        self.wake_s: float | None = None
        self.steps = 0
        self.objected = False

    @classmethod
    def taken_over(cls, agent: str, leaving: str | None) -> Self:
        """A card on which somebody else's newcomer still loads, and `leaving` was stopped for it."""
        taken = cls()
        arriving = taken._spawn(agent).occupant
        previous = None
        if leaving is not None:
            stopped = taken._spawn(leaving)
            stopped.running = False
            previous = stopped.occupant
        taken.state = following(total_bytes=CARD_BYTES, arriving=arriving, leaving=previous)
        goal = Goal(agent=agent, claim_bytes=arriving.claim_bytes)
        taken.trip = Trip(goal=goal, previous=previous, leaving_stopped=True)
        taken.pending = AwaitReady(occupant=arriving, restoring=False)
        taken._check()
        return taken

    # --- the card -----------------------------------------------------------------------------------------

    @property
    def running_bytes(self) -> int:
        return sum(engine.occupant.claim_bytes for engine in self.engines.values() if engine.running)

    @property
    def serving(self) -> list[str]:
        return sorted(id_ for engine in self.engines.values() for id_ in engine.serving)

    @property
    def cancellable(self) -> list[str]:
        waiting = [id_ for id_, fate in self.requests.items() if fate is Fate.WAITING]
        return sorted([*waiting, *self.serving])

    @property
    def _agents_that_serve(self) -> set[str]:
        if self.pending:
            return set()
        ready = [each.occupant for each in self.engines.values() if each.ready and not each.stuck]
        return {each.agent for each in ready if not self.is_outdated(each)} & self.served

    def fingerprint(self, agent: str) -> str:
        """Of an engine with the settings that the agent has now."""
        return f"{agent}, changed {self.changes[agent]} times"

    def is_outdated(self, occupant: Occupant) -> bool:
        """Whether it has settings of earlier."""
        return self.current is not None and occupant.fingerprint not in self.current

    @property
    def _trip(self) -> Trip:
        assert self.trip is not None, "a slow effect outside a swap"
        return self.trip

    def _is_being_stopped(self, instance_id: str) -> bool:
        return isinstance(self.pending, Stop) and self.pending.occupant.instance_id == instance_id

    def _ended(self) -> Slow:
        assert self.pending is not None
        effect, self.pending = self.pending, None
        return effect

    def _spawn(self, agent: str) -> Engine:
        id_ = f"{agent}-{len(self.engines) + len(self.removed)}-{self.steps}"
        occupant = Occupant(
            instance_id=id_, agent=agent, claim_bytes=CLAIMS[agent], fingerprint=self.fingerprint(agent)
        )
        assert id_ not in self.engines
        engine = self.engines[id_] = Engine(occupant=occupant)
        return engine

    def _halt(self, engine: Engine) -> None:
        engine.running = engine.ready = engine.stuck = False
        self.late_finishes += sorted(engine.serving)
        engine.serving.clear()

    def _end_service(self, request_id: str) -> None:
        for engine in self.engines.values():
            engine.serving.discard(request_id)

    # --- delivering events and performing effects ---------------------------------------------------------

    def _deliver(self, event: Event) -> tuple[Effect, ...]:
        before, self.objected = self.state, True  # until all has been checked
        self.steps += 1
        self.state, effects = step(before, event, self.now_s)
        assert step(before, event, self.now_s) == (self.state, effects), "the same step twice differs"
        ends = [effect.outcome for effect in effects if isinstance(effect, Finish)]
        if isinstance(event, Wanted):
            self._check_answer(event, before, ends)
        else:
            assert len(ends) <= 1, "a step ended more than one swap"
            assert all(end.result is not Result.BUSY for end in ends), "nobody had asked"
        for effect in effects:
            self._perform(effect, asked=event if isinstance(event, Wanted) else None)
        self._watch(event)
        self._check()
        self.objected = False
        return effects

    def _check_answer(self, event: Wanted, before: State, ends: list[Outcome]) -> None:
        """A Wanted is answered at once, or begins the swap whose end is its answer."""
        if self.trip is not None:
            assert [end.result for end in ends] == [Result.BUSY]
            assert self.state == replace(before, now_s=self.now_s)
        elif ends:
            [end] = ends
            assert (end.goal, end.resident) == (event.goal, before.resident)
            assert self.state == replace(before, now_s=self.now_s)
        else:
            assert self.state.swap is not None
            assert self.state.swap.goal == event.goal

    def _watch(self, event: Event) -> None:
        """Note that a swap has begun: a user's, or one that waiting requests need."""
        if self.state.swap is None or self.trip is not None:
            return
        goal = self.state.swap.goal
        engines = [engine.occupant for engine in self.engines.values()]
        assert len(engines) <= 1
        previous = engines[0] if engines else None
        if goal is not None and not isinstance(event, Wanted):
            assert any(self.agent_of[id_] == goal.agent for id_ in self._waiting), "nobody asked for that"
        elif not isinstance(event, Wanted):
            assert previous is not None
            assert self.is_outdated(previous), "nobody asked for an empty card"
            assert not self.in_flight, "it has still to do"
        self.trip = Trip(goal=goal, previous=previous)

    def _perform(self, effect: Effect, *, asked: Wanted | None) -> None:
        match effect:
            case Drain() | Stop() | AwaitMemory() | Start() | StartAgain() | AwaitReady():
                assert self.pending is None, f"{effect} while {self.pending} is under way"
                self._begin(effect)
                self.pending = effect
            case Abandon():
                assert self.pending is None or isinstance(self.pending, WAITS), "that cannot be given up"
                self.pending = None
            case Remove(instance_id=id_):
                assert id_ in self.engines, f"{id_} was removed twice"
                engine = self.engines.pop(id_)
                assert not engine.running, f"{id_} was removed while it runs"
                assert not engine.serving
                self.removed.add(id_)
            case Grant(request_id=id_):
                self._grant(id_)
            case Wake(at_s=at_s):
                self.wake_s = at_s
            case Reject(request_id=id_, reason=reason):
                agent = self.agent_of[id_]
                assert self.requests[id_] is Fate.WAITING, f"{id_} had ended already"
                assert agent not in self._agents_that_serve, f"{id_} could have been granted"
                assert (reason == refusal(agent)) is (agent not in self.served)
                self.requests[id_] = Fate.REJECTED
            case Finish(outcome=outcome):
                self._end(outcome, asked=asked)

    def _begin(self, effect: Slow) -> None:
        match effect:
            case Stop(occupant=occupant):
                engine = self.engines[occupant.instance_id]
                cut = bool(engine.serving) and not (self.trip and self.trip.drain_expired)
                assert not cut, f"{occupant.instance_id} is stopped under its requests"
                engine.exit_unreported = False
            case AwaitMemory(agent=agent, claim_bytes=claim_bytes, restoring=restoring):
                assert self.running_bytes == 0, "memory is waited for that one of ours holds"
                assert claim_bytes == CLAIMS[agent]
                self.room_for = agent
                if restoring:
                    previous = self._trip.previous
                    assert previous is not None
                    assert not self.is_outdated(previous), "it is put back with settings of earlier"
                    self._trip.put_back = True
            case Start(agent=agent):
                assert agent == self.room_for
                self._spawn(agent)
            case StartAgain(occupant=occupant):
                engine = self.engines[occupant.instance_id]
                assert not engine.running
                assert engine.occupant == occupant
                assert occupant.agent == self.room_for
                engine.running = True
            case Drain(occupant=occupant) | AwaitReady(occupant=occupant):
                assert self.engines[occupant.instance_id].occupant == occupant

    def _grant(self, request_id: str) -> None:
        assert self.requests[request_id] is Fate.WAITING, f"{request_id} had ended already"
        assert self.pending is None, "granted while a swap is under way"
        assert self.trip is None, "granted while the resident drains"
        [engine] = self.engines.values()
        assert engine.occupant.agent == self.agent_of[request_id]
        assert not self.is_outdated(engine.occupant), f"{request_id} was granted to settings of earlier"
        self.requests[request_id] = Fate.GRANTED
        self.in_flight.add(request_id)
        if engine.running:
            assert engine.ready, f"{request_id} was granted to an engine that answers nobody"
            assert not engine.stuck, f"{request_id} was granted to an engine that was to be stopped"
            engine.serving.add(request_id)
        else:
            self.late_finishes.append(request_id)

    def _end(self, outcome: Outcome, *, asked: Wanted | None) -> None:
        if asked is not None:
            return
        assert self.pending is None, "a swap ended with something under way"
        previous = self._trip.previous
        self._trip.check(outcome, outdated=previous is not None and self.is_outdated(previous))
        self.trip = None

    # --- what holds after every step ----------------------------------------------------------------------

    @property
    def _waiting(self) -> list[str]:
        return [id_ for id_, fate in self.requests.items() if fate is Fate.WAITING]

    def _check(self) -> None:
        running = [engine for engine in self.engines.values() if engine.running]
        assert len(running) <= 1, "two engines on one card"
        assert self.running_bytes <= self.state.claimed_bytes <= CARD_BYTES
        assert [request.id for request in self.state.waiting] == self._waiting
        assert {self.agent_of[id_] for id_ in self._waiting} <= self.served, "they wait in vain"
        assert self.state.in_flight == self.in_flight
        assert set(self.serving) <= self.in_flight
        assert len(self.engines) <= 2
        if self.state.swap is None:
            self._check_settled()
        else:
            assert self.trip is not None
            assert self.pending is not None or self.serving or self.late_finishes, (
                "the swap waits for nothing"
            )

    def _check_settled(self) -> None:
        assert self.trip is None
        assert self.pending is None
        if self.state.waiting:
            assert self.state.serving not in {request.agent for request in self.state.waiting}
            assert self.state.serving is not None, "they wait for nothing"
            assert self.wake_s is not None, "nobody will look after those who wait"
            assert self.wake_s > self.now_s
        if self.state.resident and not self.state.stuck and not self.in_flight:
            assert not self.is_outdated(self.state.resident), "nobody takes it off the card"
        on_record = [engine.occupant for engine in self.engines.values()]
        assert on_record == ([self.state.resident] if self.state.resident else [])


def refusal(agent: str) -> str:
    """What is told of an agent that is not served any more."""
    return f"{agent} is gone"
