"""The controller: performs what the swap machine decides, and reports back what came of it.

The only code that starts, stops or removes instances. It runs inside the card's lock. Each slow effect is one
task that ends in one event; an effect that goes wrong in a way nobody foresaw ends in its failure event, so
that the machine can undo the swap all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.errors import AgentManagerError, OperationFailed
from agent_manager.runtimes.base import Instance, InstanceState
from agent_manager.runtimes.kept_logs import keep_log
from agent_manager.swap import events as ev
from agent_manager.swap.machine import step
from agent_manager.swap.notices import Remark, Step, StepBegan
from agent_manager.swap.waits import drained, until_free

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from agent_manager.gpu.base import GpuProbe
    from agent_manager.planning.base import Measured
    from agent_manager.runtimes.base import InstanceSpec, Runtime
    from agent_manager.swap.card import State
    from agent_manager.swap.history import StartHistory
    from agent_manager.swap.host import Host
    from agent_manager.swap.lock import CardLock
    from agent_manager.swap.notices import Listener

STOP_GRACE_S = 45.0
"""vLLM gets `--shutdown-timeout 30` to finish what it has; the rest is for its workers to end."""
MEMORY_TIMEOUT_S = 60.0
STALL_TIMEOUT_S = 900.0


class Newcomer(Struct, frozen=True, kw_only=True):
    """An agent that can be put on the card: its spec, whose id is still open, and the name of its runtime.

    `start_bytes` must be free before it starts. `measured` is told what its log said of its memory, once it is
    ready.
    """

    spec: InstanceSpec
    runtime: str
    start_bytes: int
    stall_timeout_s: float = STALL_TIMEOUT_S
    measured: Callable[[Measured], None] | None = None


class Controller:
    """Takes one card through one swap; `keep.py` goes on from there.

    `newcomers` are the agents that may be wanted, by name. `known` are the instances found on the card, by id.
    """

    def __init__(  # noqa: PLR0913 - everything it acts on, said once
        self,
        *,
        host: Host,
        runtimes: Mapping[str, Runtime],
        probe: GpuProbe,
        lock: CardLock,
        history: StartHistory,
        listener: Listener,
        newcomers: Mapping[str, Newcomer] | None = None,
        memory_timeout_s: float = MEMORY_TIMEOUT_S,
        known: Mapping[str, Instance] | None = None,
    ) -> None:
        self._host = host
        self._runtimes = runtimes
        self._probe = probe
        self._lock = lock
        self._history = history
        self._listener = listener
        self._newcomers = dict(newcomers or {})
        self._memory_timeout_s = memory_timeout_s
        self._known = dict(known or {})
        self._events: asyncio.Queue[tuple[asyncio.Task[None] | None, ev.Event]] = asyncio.Queue()
        self._slow: asyncio.Task[None] | None = None
        self._spawned_at: dict[str, float] = {}
        self.ready_after_s: float | None = None

    async def run(self, state: State, first: ev.Event | ev.AwaitReady) -> ev.Outcome:
        """Perform the swap that `first` begins and return how it ended.

        `first` is an event, or the load to follow when an unfinished swap is taken over.
        """
        self._host.interrupts.subscribe(self._interrupted)
        try:
            if isinstance(first, ev.AwaitReady):
                await self._perform(first)
            else:
                self.tell(first)
            while True:
                source, event = await self._events.get()
                if source is not None and source is not self._slow:
                    continue  # the result of a wait that was given up in the meantime
                state, effects = step(state, event)
                for effect in effects:
                    await self._perform(effect)
                    if isinstance(effect, ev.Finish):
                        return effect.outcome
        finally:
            self._host.interrupts.subscribe(None)
            await self._abandon()

    def tell(self, event: ev.Event) -> None:
        """Something happened. Never blocks."""
        self._events.put_nowait((None, event))

    async def discard(self, instance: Instance) -> None:
        """Kill and remove what an earlier operation left behind; its log is kept. Blocks until it is gone."""
        runtime = self._runtimes[instance.runtime]
        self._known[instance.spec.id] = instance
        await runtime.stop(instance.spec.id, grace_s=0)
        await self._remove(instance.spec.id)

    def _interrupted(self) -> None:
        self.tell(ev.Interrupted())

    # --- effects ------------------------------------------------------------------------------------------

    async def _perform(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Drain(occupant=occupant):
                self._begin(Step.DRAINING, occupant.agent)
                expired = ev.DrainExpired(instance_id=occupant.instance_id)
                self._spawn(partial(self._drain, effect), lambda _: expired)
            case ev.Stop(occupant=occupant):
                self._begin(Step.STOPPING, occupant.agent)
                id_ = occupant.instance_id
                self._spawn(
                    partial(self._stop, effect), lambda error: ev.StopFailed(instance_id=id_, reason=error)
                )
            case ev.AwaitMemory():
                self._spawn(partial(self._await_memory, effect), lambda error: ev.MemoryHeld(reason=error))
            case ev.Start(agent=agent):
                spec = self._new_instance(agent)
                self._begin(Step.STARTING, spec.agent)
                self._spawn(
                    partial(self._start, spec),
                    lambda error: ev.StartFailed(reason=error, instance_id=spec.id),
                )
            case ev.StartAgain(occupant=occupant):
                self._begin(Step.STARTING, occupant.agent, restoring=True)
                self._spawn(partial(self._start_again, occupant), lambda error: ev.StartFailed(reason=error))
            case ev.AwaitReady(occupant=occupant):
                id_ = occupant.instance_id
                failed = lambda error: ev.LoadFailed(instance_id=id_, reason=error)  # noqa: E731 - one line of many
                self._spawn(partial(self._await_ready, effect), failed)
            case ev.Remove(instance_id=instance_id):
                await self._remove(instance_id)
            case ev.Abandon():
                await self._abandon()
            case ev.Finish() | ev.Grant() | ev.Reject() | ev.Wake():
                pass  # `run` returns the outcome; the rest is for requests, which reach the machine through `keep`

    def _spawn(
        self, work: Callable[[], Awaitable[ev.Event]], failed: Callable[[Exception], ev.Event]
    ) -> None:
        async def guarded() -> None:
            try:
                event = await work()
            except Exception as error:  # noqa: BLE001 - the top of a task: it becomes the failure event
                event = failed(error)
            self._events.put_nowait((asyncio.current_task(), event))

        self._slow = asyncio.create_task(guarded())

    async def _abandon(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._slow
            self._slow = None

    def _begin(
        self, what: Step, agent: str, *, expected_s: float | None = None, restoring: bool = False
    ) -> None:
        # For others to read; a full disk must not fail a swap.
        with contextlib.suppress(OSError):
            self._lock.tell(what.value, agent)
        self._listener(StepBegan(step=what, agent=agent, expected_s=expected_s, restoring=restoring))

    async def _drain(self, effect: ev.Drain) -> ev.Event:
        id_ = effect.occupant.instance_id

        def say(text: str) -> None:
            self._listener(Remark(message=text))

        if await drained(self._runtime(id_), self._spec(id_), timeout_s=effect.timeout_s, say=say):
            return ev.Drained(instance_id=id_)
        return ev.DrainExpired(instance_id=id_)

    async def _stop(self, effect: ev.Stop) -> ev.Event:
        id_ = effect.occupant.instance_id
        await self._runtime(id_).stop(id_, grace_s=0 if effect.at_once else STOP_GRACE_S)
        return ev.Stopped(instance_id=id_)

    async def _await_memory(self, effect: ev.AwaitMemory) -> ev.Event:
        needed = effect.claim_bytes if effect.restoring else self._newcomers[effect.agent].start_bytes

        def begun(held: str) -> None:
            self._begin(Step.WAITING_FOR_MEMORY, effect.agent, restoring=effect.restoring)
            self._listener(Remark(message=held))

        timeout_s = self._memory_timeout_s
        await until_free(self._probe, effect.agent, needed, timeout_s=timeout_s, begun=begun)
        return ev.MemoryFree()

    def _new_instance(self, agent: str) -> InstanceSpec:
        spec = self._newcomers[agent].spec  # of its group: another agent of that may be its first
        return replace(spec, id=f"{spec.agent}-{secrets.token_hex(4)}")

    async def _start(self, spec: InstanceSpec) -> ev.Event:
        runtime = self._runtimes[self._newcomers[spec.agent].runtime]
        await runtime.create(spec)
        self._known[spec.id] = Instance(spec=spec, runtime=runtime.name, state=InstanceState.CREATED)
        await runtime.start(spec.id)
        self._spawned_at[spec.id] = time.monotonic()
        return ev.Started(occupant=occupant_of(spec))

    async def _start_again(self, occupant: ev.Occupant) -> ev.Event:
        await self._runtime(occupant.instance_id).start(occupant.instance_id)
        self._spawned_at[occupant.instance_id] = time.monotonic()
        return ev.Started(occupant=occupant)

    async def _await_ready(self, effect: ev.AwaitReady) -> ev.Event:
        # Both read logs with many patterns, which are made while the engine loads, not before it is started.
        from agent_manager.engines.figures import FigureReader  # noqa: PLC0415 - as said
        from agent_manager.swap.readiness import LoadWatch  # noqa: PLC0415 - likewise

        spec = self._spec(effect.occupant.instance_id)
        last = self._history.last(spec)
        expected_s = last.seconds if last else None
        self._begin(Step.LOADING, spec.agent, expected_s=expected_s, restoring=effect.restoring)
        newcomer = self._newcomers.get(spec.agent)
        measured = newcomer.measured if newcomer and not effect.restoring else None
        figures = FigureReader() if measured else None
        watch = LoadWatch(
            self._runtime(spec.id),
            spec,
            listener=self._listener,
            stall_timeout_s=newcomer.stall_timeout_s if newcomer else STALL_TIMEOUT_S,
            figures=figures,
        )
        await watch.until_ready()
        if measured and figures and figures.measured:
            measured(figures.measured)
        spawned_at = self._spawned_at.get(spec.id)
        if spawned_at is not None:
            self.ready_after_s = time.monotonic() - spawned_at
            self._history.record(spec, self.ready_after_s)
        return ev.Ready(instance_id=spec.id)

    async def _remove(self, instance_id: str) -> None:
        """Keep the log, then forget the instance. What cannot be done is said and left to the next operation."""
        instance = self._known.pop(instance_id, None)
        if instance is None:
            return  # it was never recorded
        runtime = self._runtimes[instance.runtime]
        try:
            for agent in instance.spec.agents:
                await keep_log(runtime, instance_id, self._host.state.kept_logs(agent))
        except AgentManagerError as error:
            self._warn(f"the log of {instance.spec.agent} is not kept: {error.message}")
        try:
            await runtime.remove(instance_id)
        except AgentManagerError as error:
            self._warn(f"{instance_id} is not removed: {error.message}")

    def _warn(self, message: str) -> None:
        self._listener(Remark(message=message, warning=True))

    def _runtime(self, instance_id: str) -> Runtime:
        return self._runtimes[self._known[instance_id].runtime]

    def _spec(self, instance_id: str) -> InstanceSpec:
        return self._known[instance_id].spec


def occupant_of(spec: InstanceSpec) -> ev.Occupant:
    """An instance, as the machine sees it."""
    return ev.Occupant(
        instance_id=spec.id,
        agent=spec.agent,
        claim_bytes=spec.claim_bytes,
        fingerprint=spec.fingerprint,
    )


def as_error(reason: object) -> AgentManagerError:
    """What an effect reported, as an error to show."""
    if isinstance(reason, AgentManagerError):
        return reason
    if isinstance(reason, str):  # the machine's own words
        return OperationFailed(reason)
    failed = OperationFailed(
        f"internal error: {type(reason).__name__}: {reason}",
        hint="run it again with -v and report what it says",
    )
    failed.__cause__ = reason if isinstance(reason, BaseException) else None
    return failed
