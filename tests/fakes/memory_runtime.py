"""A runtime in memory, as strict as a real one: `tests/contract` holds it to the same promises.

Its engines do what they are told: at once by a Behaviour, later by `say` and `exit`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent_manager.errors import EngineMissing, NotRunning, OperationFailed, PortInUse
from agent_manager.runtimes.base import (
    NEVER_STARTED,
    Activity,
    Exit,
    Instance,
    InstanceSpec,
    InstanceState,
    LogLine,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from agent_manager.runtimes.base import Fetching

_KILLED = 137


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What an engine does once started.

    It writes `lines`, then ends with `exits` unless that is None. On SIGTERM it writes `farewell` and ends with
    `on_sigterm`, or ignores it when that is None. `missing`: there is no such program.
    """

    lines: tuple[str, ...] = ()
    exits: int | None = None
    on_sigterm: int | None = 143
    farewell: tuple[str, ...] = ()
    missing: bool = False


@dataclass(slots=True, kw_only=True)
class _Held:
    spec: InstanceSpec
    state: InstanceState = InstanceState.CREATED
    started_at: datetime | None = None
    exit: Exit | None = None
    requested: bool = False
    lines: list[LogLine] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class MemoryRuntime:
    """Runs nothing. `behaviours` by agent's name; `occupied` maps a port to who listens there.

    `calls` lists what was asked for in order, as `("start", "dev-0a1b2c3d")`; `used` is what `activity` says.
    """

    name = "process"

    def __init__(
        self,
        behaviours: Mapping[str, Behaviour] | None = None,
        *,
        occupied: Mapping[int, str] | None = None,
        name: str = "process",
    ) -> None:
        self.name = name
        self.behaviours = dict(behaviours or {})
        self.occupied = dict(occupied or {})
        self.used: dict[str, Activity] = {}
        self.calls: list[tuple[str, str]] = []
        self._held: dict[str, _Held] = {}

    def say(self, instance_id: str, text: str) -> None:
        """Let the engine write a line."""
        held = self._running(instance_id)
        held.lines.append(LogLine(at=datetime.now(UTC), text=text))
        held.notify()

    def exit(self, instance_id: str, code: int | None, *, out_of_host_memory: bool = False) -> None:
        """Let the engine end. `code` None: nobody saw it."""
        held = self._running(instance_id)
        held.state = InstanceState.EXITED
        held.exit = Exit(
            code=code,
            requested=held.requested,
            out_of_host_memory=out_of_host_memory,
            reason="nobody saw it end" if code is None else None,
        )
        held.notify()

    async def container_engine(self) -> None:
        pass

    async def provide(self, spec: InstanceSpec, *, fetch: bool, tell: Callable[[Fetching], None]) -> None:
        del fetch, tell  # nothing here is ever missing
        self.calls.append(("provide", spec.id))

    async def create(self, spec: InstanceSpec) -> None:
        await self._called("create", spec.id)
        if spec.id in self._held:
            raise OperationFailed(f"instance '{spec.id}' exists already")
        self._held[spec.id] = _Held(spec=spec)

    async def start(self, instance_id: str) -> None:
        await self._called("start", instance_id)
        held = self._get(instance_id)
        if held.state is InstanceState.RUNNING:
            raise OperationFailed(f"instance '{instance_id}' is running already", where=instance_id)
        behaviour = self.behaviours.get(held.spec.agent, Behaviour())
        try:
            self._require_startable(held.spec, behaviour)
        except (EngineMissing, PortInUse) as error:
            held.state, held.exit = InstanceState.EXITED, Exit(code=None, reason=error.message)
            raise
        held.state, held.started_at = InstanceState.RUNNING, datetime.now(UTC)
        held.exit, held.requested = None, False
        for line in behaviour.lines:
            self.say(instance_id, line)
        if behaviour.exits is not None:
            self.exit(instance_id, behaviour.exits)

    async def stop(self, instance_id: str, *, grace_s: float) -> Exit:
        await self._called("stop", instance_id)
        held = self._get(instance_id)
        if held.state is InstanceState.RUNNING:
            held.requested = True
            await self._end(held, grace_s)
        if held.exit is None:
            return NEVER_STARTED
        return held.exit

    async def wait(self, instance_id: str) -> Exit:
        await self._called("wait", instance_id)
        held = self._get(instance_id)
        while held.state is InstanceState.RUNNING:
            await held.changed.wait()
        return held.exit or NEVER_STARTED

    async def remove(self, instance_id: str) -> None:
        await self._called("remove", instance_id)
        if self._get(instance_id).state is InstanceState.RUNNING:
            raise OperationFailed(
                f"instance '{instance_id}' is running", hint="stop it first", where=instance_id
            )
        del self._held[instance_id]

    async def list(self) -> tuple[Instance, ...]:
        await asyncio.sleep(0)
        return tuple(
            Instance(
                spec=held.spec,
                runtime=self.name,
                state=held.state,
                started_at=held.started_at,
                exit=held.exit if held.state is InstanceState.EXITED else None,
            )
            for held in self._held.values()
        )

    async def logs(
        self,
        instance_id: str,
        *,
        tail: int | None = None,
        since: datetime | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[LogLine, None]:
        held = self._get(instance_id)
        at = 0 if tail is None else max(0, len(held.lines) - tail)
        while True:
            running, changed = held.state is InstanceState.RUNNING, held.changed
            for line in held.lines[at:]:
                at += 1
                if since is None or line.at >= since:
                    yield line
            if not (follow and running):
                return
            if at == len(held.lines):
                await changed.wait()

    async def pids(self, instance_id: str) -> frozenset[int]:
        await asyncio.sleep(0)
        running = self._get(instance_id).state is InstanceState.RUNNING
        # No process has such a pid: /proc/sys/kernel/pid_max ends at 2**22.
        return frozenset({2**22 + 1 + list(self._held).index(instance_id)}) if running else frozenset()

    async def activity(self, instance_id: str) -> Activity:
        await asyncio.sleep(0)
        self._get(instance_id)
        return self.used.get(instance_id, Activity(cpu_seconds=0.0, disk_bytes=0))

    async def _called(self, what: str, instance_id: str) -> None:
        self.calls.append((what, instance_id))
        await asyncio.sleep(0)  # others run in between, as with a real one

    async def _end(self, held: _Held, grace_s: float) -> None:
        behaviour = self.behaviours.get(held.spec.agent, Behaviour())
        if grace_s > 0:
            if behaviour.on_sigterm is not None:
                for line in behaviour.farewell:
                    self.say(held.spec.id, line)
                self.exit(held.spec.id, behaviour.on_sigterm)
                return
            try:
                async with asyncio.timeout(grace_s):
                    while held.state is InstanceState.RUNNING:
                        await held.changed.wait()
            except TimeoutError:
                pass
        if held.state is InstanceState.RUNNING:
            self.exit(held.spec.id, _KILLED)

    def _get(self, instance_id: str) -> _Held:
        try:
            return self._held[instance_id]
        except KeyError:
            raise NotRunning(f"no instance '{instance_id}'", where=instance_id) from None

    def _running(self, instance_id: str) -> _Held:
        held = self._get(instance_id)
        assert held.state is InstanceState.RUNNING, f"{instance_id} is {held.state}: it cannot do anything"
        return held

    def _require_startable(self, spec: InstanceSpec, behaviour: Behaviour) -> None:
        if behaviour.missing:
            raise EngineMissing(f"program '{spec.argv[0]}' was not found on PATH", where=spec.argv[0])
        taken = dict(self.occupied)
        for other in self._held.values():
            if other.state is InstanceState.RUNNING:
                taken |= dict.fromkeys(_ports(other.spec), f"agent-manager's instance {other.spec.id}")
        for port in _ports(spec):
            if port in taken:
                raise PortInUse(f"port {port} is in use by {taken[port]}", where=f"port {port}")


def _ports(spec: InstanceSpec) -> tuple[int, ...]:
    return (spec.engine_port,) if spec.agent_port is None else (spec.engine_port, spec.agent_port)
