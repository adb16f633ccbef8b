"""A world for the swap machine: it performs the effects as a controller does, and objects to what must not be.

It knows which instances run and hold memory, which requests are under way, and what an honest swap would have
come to (`Trip`), from what happened and never from the machine's own fields. Who plays it (hypothesis, a script)
decides what happens next. What a controller promises the machine, the world keeps:

- an abandoned wait reports nothing, not even when it had ended already and its event was on the way;
- an instance's exit is not reported any more once a `Stop` of it has been asked for;
- the time of the last `Wake` is told when it comes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

from agent_manager.swap.card import State, following
from agent_manager.swap.events import (
    Abandon,
    Arrived,
    AwaitMemory,
    AwaitReady,
    Cancelled,
    Drain,
    Drained,
    DrainExpired,
    Due,
    Effect,
    Event,
    Exited,
    Finish,
    Finished,
    Goal,
    Grant,
    Interrupted,
    LoadFailed,
    MemoryFree,
    MemoryHeld,
    Occupant,
    Outcome,
    Ready,
    Reject,
    Remove,
    Request,
    Result,
    Start,
    StartAgain,
    Started,
    StartFailed,
    Stop,
    StopFailed,
    Stopped,
    Wake,
    Wanted,
)
from agent_manager.swap.machine import step

Slow: TypeAlias = Drain | Stop | AwaitMemory | Start | StartAgain | AwaitReady
SLOW = (Drain, Stop, AwaitMemory, Start, StartAgain, AwaitReady)
WAITS = (Drain, AwaitMemory, AwaitReady)

CARD_BYTES = 16
CLAIMS = {"po": 6, "dev": 10, "architect": 16, "giant": 17}


class Fate(StrEnum):
    """What became of a request."""

    WAITING = "waiting"
    GRANTED = "granted"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


@dataclass(kw_only=True)
class Engine:
    """An instance as it really is; `serving` are the requests that run in it."""

    occupant: Occupant
    running: bool = True
    ready: bool = False
    stuck: bool = False
    exit_unreported: bool = False
    serving: set[str] = field(default_factory=set)


@dataclass(kw_only=True)
class Trip:
    """What a swap has met so far, and so how it has to end.

    `trouble` is the outcome that is to be told: the first thing that went wrong, or the first interrupt.
    """

    goal: Goal | None
    previous: Occupant | None
    trouble: tuple[Result, object | None] | None = None
    leaving_stopped: bool = False
    drain_expired: bool = False
    emptied: bool = False
    lost: bool = False
    stuck: Occupant | None = None

    def met(self, result: Result, reason: object | None = None) -> None:
        self.trouble = self.trouble or (result, reason)

    def check(self, outcome: Outcome) -> None:
        """Raises AssertionError unless `outcome` is how this swap had to end."""
        result, reason = self.trouble or (Result.DONE, None)
        assert (outcome.goal, outcome.result, outcome.reason) == (self.goal, result, reason)
        if self.stuck is not None:
            assert outcome.resident == self.stuck
        elif result is Result.DONE and self.goal is not None:
            assert outcome.resident is not None
            assert outcome.resident.agent == self.goal.agent
        elif result is Result.DONE or self.emptied or self.lost:
            assert outcome.resident is None
        else:
            assert outcome.resident == self.previous


class World:
    """A card with a machine that owns it. Every method that does something delivers one event and checks all."""

    def __init__(self) -> None:
        self.state = State(total_bytes=CARD_BYTES)
        self.engines: dict[str, Engine] = {}
        self.removed: set[str] = set()
        self.requests: dict[str, Fate] = {}
        self.agent_of: dict[str, str] = {}
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
    def taken_over(cls, agent: str, leaving: str | None) -> World:
        """A world in which somebody else's newcomer still loads, and `leaving` was stopped for it."""
        world = cls()
        arriving = world._spawn(agent).occupant
        previous = None
        if leaving is not None:
            stopped = world._spawn(leaving)
            stopped.running = False
            previous = stopped.occupant
        world.state = following(total_bytes=CARD_BYTES, arriving=arriving, leaving=previous)
        goal = Goal(agent=agent, claim_bytes=arriving.claim_bytes)
        world.trip = Trip(goal=goal, previous=previous, leaving_stopped=True)
        world.pending = AwaitReady(occupant=arriving, restoring=False)
        world._check()
        return world

    # --- what users and clients do ------------------------------------------------------------------------

    def want(self, agent: str | None, *, drain_timeout_s: float, replace_same: bool) -> None:
        goal = Goal(agent=agent, claim_bytes=CLAIMS[agent]) if agent is not None else None
        self._deliver(Wanted(goal=goal, drain_timeout_s=drain_timeout_s, replace_same=replace_same))

    def arrive(self, agent: str) -> None:
        id_ = f"r{len(self.requests)}"
        self.requests[id_] = Fate.WAITING
        self.agent_of[id_] = agent
        self._deliver(Arrived(request=Request(id=id_, agent=agent, claim_bytes=CLAIMS[agent])))

    def finish(self, request_id: str) -> None:
        self._end_service(request_id)
        self.in_flight.discard(request_id)
        self._deliver(Finished(request_id=request_id))

    def cancel(self, request_id: str) -> None:
        if self.requests[request_id] is Fate.WAITING:
            self.requests[request_id] = Fate.CANCELLED
        self._end_service(request_id)
        self.in_flight.discard(request_id)
        self._deliver(Cancelled(request_id=request_id))

    def interrupt(self) -> None:
        trip = self._trip
        if trip.trouble is not None:
            trip.emptied = trip.goal is not None
        elif trip.goal is not None or not isinstance(self.pending, Stop):
            trip.met(Result.INTERRUPTED)
        self._deliver(Interrupted())

    # --- how slow effects end -----------------------------------------------------------------------------

    def succeed(self, *, times: int) -> None:
        """The pending effect ends well, and so do those that follow, `times` of them at most."""
        for _ in range(times):
            if self.pending is not None:
                self._succeed()

    def _succeed(self) -> None:
        match self._ended():
            case Drain(occupant=occupant):
                self._deliver(Drained(instance_id=occupant.instance_id))
            case Stop(occupant=occupant):
                self._halt(self.engines[occupant.instance_id])
                self.in_flight.clear()
                self._deliver(Stopped(instance_id=occupant.instance_id))
            case AwaitMemory():
                self._deliver(MemoryFree())
            case Start(agent=agent):
                [newcomer] = [e for e in self.engines.values() if e.running and e.occupant.agent == agent]
                self._deliver(Started(occupant=newcomer.occupant))
            case StartAgain(occupant=occupant):
                self._deliver(Started(occupant=occupant))
            case AwaitReady(occupant=occupant):
                self.engines[occupant.instance_id].ready = True
                self._deliver(Ready(instance_id=occupant.instance_id))

    def fail(self, *, leaves_something: bool) -> None:
        """The pending effect ends badly; `leaves_something`: a record, or a process that still runs."""
        effect = self._ended()
        reason = f"trouble {self.steps}"
        if isinstance(effect, Drain):
            self._trip.drain_expired = True
            self._deliver(DrainExpired(instance_id=effect.occupant.instance_id))
        elif isinstance(effect, Stop):
            self._fail_stop(self.engines[effect.occupant.instance_id], reason)
        elif isinstance(effect, AwaitMemory):
            self._failed(reason, restoring=effect.restoring)
            self._deliver(MemoryHeld(reason=reason))
        elif isinstance(effect, AwaitReady):
            self._failed(reason, restoring=effect.restoring)
            self.engines[effect.occupant.instance_id].running = leaves_something
            self._deliver(LoadFailed(instance_id=effect.occupant.instance_id, reason=reason))
        else:
            self._fail_start(effect, reason, leaves_something=leaves_something)

    def expire(self) -> None:
        """The drain time is over although the engine had reported that it was idle."""
        assert self.wake_s is not None, "nobody would tell that the drain time is over"
        self.pass_time(max(0.0, self.wake_s - self.now_s))
        assert isinstance(self.pending, Stop)

    @property
    def may_expire(self) -> bool:
        """Whether a drain reported idle, and the machine still waits for requests it knows of."""
        return self.trip is not None and self.pending is None

    def _fail_stop(self, engine: Engine, reason: str) -> None:
        if not engine.running:
            self.in_flight.clear()
            self._deliver(Stopped(instance_id=engine.occupant.instance_id))
            return
        engine.stuck = True
        trip = self._trip
        trip.stuck = engine.occupant
        if engine.occupant == trip.previous and not trip.leaving_stopped:
            trip.trouble = (Result.FAILED, reason)
        else:
            # What could not be discarded is a failure even to somebody who interrupted.
            told = trip.trouble[1] if trip.trouble else None
            trip.trouble = (Result.FAILED, reason if told is None else told)
        self._deliver(StopFailed(instance_id=engine.occupant.instance_id, reason=reason))

    def _fail_start(self, effect: Start | StartAgain, reason: str, *, leaves_something: bool) -> None:
        self._failed(reason, restoring=isinstance(effect, StartAgain))
        if isinstance(effect, StartAgain):
            engine = self.engines[effect.occupant.instance_id]
        else:
            [engine] = [e for e in self.engines.values() if e.running and e.occupant.agent == effect.agent]
        engine.running = False
        id_ = engine.occupant.instance_id
        if isinstance(effect, Start) and not leaves_something:
            del self.engines[id_]
            self._deliver(StartFailed(reason=reason))
        else:
            self._deliver(StartFailed(reason=reason, instance_id=id_))

    def _failed(self, reason: str, *, restoring: bool) -> None:
        self._trip.met(Result.FAILED, reason)
        if restoring:
            self._trip.lost = True

    def pass_time(self, seconds: float) -> None:
        """The clock goes on, and tells if it was asked to."""
        self.now_s += seconds
        if self.wake_s is None or self.now_s < self.wake_s:
            return
        self.wake_s = None
        if self.may_expire:
            self._trip.drain_expired = True
        self._deliver(Due())

    # --- accidents ----------------------------------------------------------------------------------------

    @property
    def mortal(self) -> list[str]:
        """Instances whose exit somebody would notice as such: the ready ones, and those that would not stop."""
        return [
            id_ for id_, engine in self.engines.items() if engine.running and (engine.ready or engine.stuck)
        ]

    def die(self, instance_id: str) -> None:
        """An engine ends by itself; nobody has noticed yet."""
        engine = self.engines[instance_id]
        self._halt(engine)
        engine.exit_unreported = not self._is_being_stopped(instance_id)

    @property
    def unreported(self) -> list[str]:
        return [id_ for id_, engine in self.engines.items() if engine.exit_unreported]

    def report_exit(self, instance_id: str) -> None:
        self.engines[instance_id].exit_unreported = False
        self.in_flight.clear()
        trip = self.trip
        if trip is not None and trip.previous and trip.previous.instance_id == instance_id:
            trip.lost = True
        self._deliver(Exited(instance_id=instance_id))

    def report_finish(self) -> None:
        """A request that was cut with its engine is reported as over, late."""
        late = self.late_finishes.pop(0)
        self.in_flight.discard(late)
        self._deliver(Finished(request_id=late))

    def stale(self, event: Event) -> None:
        """An event that belongs to nothing: the machine does nothing about it."""
        before = replace(self.state, now_s=self.now_s)
        effects = self._deliver(event)
        assert (self.state, effects) == (before, ())

    def stale_events(self) -> list[Event]:
        """Events that the world could still deliver late, or never had a reason to."""
        events: list[Event] = [Finished(request_id="nobody"), Cancelled(request_id="nobody")]
        if self.trip is None:
            events.append(Interrupted())
        elif self.wake_s is None or self.now_s < self.wake_s:
            events.append(Due())
        if not isinstance(self.pending, AwaitMemory):
            events += [MemoryFree(), MemoryHeld(reason="late")]
        if not isinstance(self.pending, Start | StartAgain):
            ghost = Occupant(instance_id="ghost", agent="po", claim_bytes=CLAIMS["po"])
            events += [Started(occupant=ghost), StartFailed(reason="late")]
        for id_ in ["ghost", *sorted(self.removed)[-2:], *self.engines]:
            events += self._stale_about(id_)
        return events

    def _stale_about(self, id_: str) -> list[Event]:
        pending = self.pending
        of_id = isinstance(pending, Drain | Stop | AwaitReady) and pending.occupant.instance_id == id_
        serves_or_drains = id_ in self.engines and (pending is None or isinstance(pending, Drain))
        events: list[Event] = []
        if not serves_or_drains:
            events += [Exited(instance_id=id_), Drained(instance_id=id_), DrainExpired(instance_id=id_)]
        if not (of_id and isinstance(pending, Stop)):
            events += [Stopped(instance_id=id_), StopFailed(instance_id=id_, reason="late")]
        if not (of_id and isinstance(pending, AwaitReady)):
            events += [Ready(instance_id=id_), LoadFailed(instance_id=id_, reason="late")]
        return events

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
        engines = self.engines.values()
        return {each.occupant.agent for each in engines if each.ready and not each.stuck and not self.pending}

    @property
    def _trip(self) -> Trip:
        assert self.trip is not None, "a slow effect outside a swap"
        return self.trip

    @property
    def _previous(self) -> Occupant:
        assert self._trip.previous is not None
        return self._trip.previous

    def _is_being_stopped(self, instance_id: str) -> bool:
        return isinstance(self.pending, Stop) and self.pending.occupant.instance_id == instance_id

    def _ended(self) -> Slow:
        assert self.pending is not None
        effect, self.pending = self.pending, None
        return effect

    def _spawn(self, agent: str) -> Engine:
        id_ = f"{agent}-{len(self.engines) + len(self.removed)}-{self.steps}"
        engine = Engine(occupant=Occupant(instance_id=id_, agent=agent, claim_bytes=CLAIMS[agent]))
        assert id_ not in self.engines
        self.engines[id_] = engine
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
        if not isinstance(event, Wanted):
            assert goal is not None
            assert any(self.agent_of[id_] == goal.agent for id_ in self._waiting), "nobody asked for that"
        engines = [engine.occupant for engine in self.engines.values()]
        assert len(engines) <= 1
        self.trip = Trip(goal=goal, previous=engines[0] if engines else None)

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
            case Reject(request_id=id_):
                assert self.requests[id_] is Fate.WAITING, f"{id_} had ended already"
                assert self.agent_of[id_] not in self._agents_that_serve, f"{id_} could have been granted"
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
            case AwaitMemory(agent=agent, claim_bytes=claim_bytes):
                assert self.running_bytes == 0, "memory is waited for that one of ours holds"
                assert claim_bytes == CLAIMS[agent]
                self.room_for = agent
                if self.trip is not None:
                    self.trip.leaving_stopped = True
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
        self._trip.check(outcome)
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
        on_record = [engine.occupant for engine in self.engines.values()]
        assert on_record == ([self.state.resident] if self.state.resident else [])

    # --- letting it come to rest --------------------------------------------------------------------------

    def come_to_rest(self) -> None:
        """From now on all goes well and nobody asks for more: it settles soon, and nothing is left open."""
        agents = {self.agent_of[id_] for id_ in self._waiting}
        limit = 8 + 6 * len(agents) + len(self.cancellable) + len(self.late_finishes) + len(self.unreported)
        begun = self.steps
        while self._something_to_do():
            assert self.steps - begun < limit, "it does not settle"
            self._do_one_thing()
        assert self.state.swap is None
        assert Fate.WAITING not in self.requests.values()
        assert self.state.in_flight == frozenset()
        self._check()

    def _something_to_do(self) -> bool:
        return bool(
            self.pending or self.serving or self.late_finishes or self.unreported or self.state.waiting
        )

    def _do_one_thing(self) -> None:
        if self.late_finishes:
            self.report_finish()
        elif self.unreported:
            self.report_exit(self.unreported[0])
        elif self.serving:
            self.finish(self.serving[0])
        elif self.pending:
            self._succeed()
        else:
            assert self.wake_s is not None
            self.pass_time(self.wake_s - self.now_s)
