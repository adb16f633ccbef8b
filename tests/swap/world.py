"""A world for the swap machine: what may happen, one method each. Who plays it (hypothesis, a script) decides.

Every method that does something delivers one event, and `Referee` checks everything. What a controller promises
the machine, the world keeps:

- an abandoned wait reports nothing, not even when it had ended already and its event was on the way;
- an instance's exit is not reported any more once a `Stop` of it has been asked for;
- the time of the last `Wake` is told when it comes.
"""

from __future__ import annotations

from msgspec.structs import replace

from agent_manager.swap.events import (
    Arrived,
    AwaitMemory,
    AwaitReady,
    Cancelled,
    Drain,
    Drained,
    DrainExpired,
    Due,
    Event,
    Exited,
    Finished,
    Goal,
    Interrupted,
    LoadFailed,
    MemoryFree,
    MemoryHeld,
    Occupant,
    Ready,
    Renewed,
    Request,
    Result,
    Start,
    StartAgain,
    Started,
    StartFailed,
    Stop,
    StopFailed,
    Stopped,
    Wanted,
)

from .referee import Referee, refusal
from .trip import CLAIMS, Engine, Fate


class World(Referee):
    """Users, clients, engines and the card, as they may be."""

    # --- what users and clients do ------------------------------------------------------------------------

    def want(self, agent: str | None, *, drain_timeout_s: float, replace_same: bool) -> None:
        """Somebody wants the card to have an agent, None: to be empty. Who is not served cannot be wanted."""
        if agent is not None and agent not in self.served:
            return
        goal = Goal(agent=agent, claim_bytes=CLAIMS[agent]) if agent is not None else None
        self._deliver(Wanted(goal=goal, drain_timeout_s=drain_timeout_s, replace_same=replace_same))

    def arrive(self, agent: str) -> None:
        """A request; one for who is not served is refused before it gets here."""
        if agent not in self.served:
            return
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

    def renew(self, gone: str | None, changed: set[str]) -> None:
        """From now on all are served but for one, some of them with other settings."""
        self.served = CLAIMS.keys() - {gone}
        for agent in changed:
            self.changes[agent] += 1
        self.current = frozenset(map(self.fingerprint, self.served))
        trip = self.trip
        if trip is not None and trip.goal and trip.goal.agent not in self.served:
            trip.met(Result.INTERRUPTED)
        renewed = Renewed(
            settings=self.state.desk.settings,
            group_of={},
            default=None,
            claims={agent: CLAIMS[agent] for agent in self.served},
            refusals={gone: refusal(gone)} if gone else {},
            current=self.current,
        )
        self._deliver(renewed)

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
                self._stopped(occupant)
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

    def _stopped(self, occupant: Occupant) -> None:
        self.in_flight.clear()
        if occupant == self._trip.previous:
            self._trip.leaving_stopped = True
        self._deliver(Stopped(instance_id=occupant.instance_id))

    def _fail_stop(self, engine: Engine, reason: str) -> None:
        if not engine.running:
            self._stopped(engine.occupant)
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

    # --- letting it come to rest --------------------------------------------------------------------------

    def come_to_rest(self) -> None:
        """From now on all goes well and nobody asks for more: it settles soon, and nothing is left open."""
        agents = {self.agent_of[id_] for id_ in self._waiting}
        limit = 12 + 6 * len(agents) + len(self.cancellable) + len(self.late_finishes) + len(self.unreported)
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
