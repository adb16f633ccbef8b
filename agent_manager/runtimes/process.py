"""The process runtime: each instance is a process on this host, under a shim that outlives us. Linux only.

Nothing is remembered here. Records (records.py) say what should be, /proc (liveness.py) what is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent_manager.errors import EngineFailed, HostNotReady, OperationFailed, StateUnusable
from agent_manager.runtimes import handover, proc
from agent_manager.runtimes.base import NEVER_STARTED, Activity, Exit, Instance, InstanceState, LogLine
from agent_manager.runtimes.launch import launch
from agent_manager.runtimes.liveness import UNSEEN_END, Liveness, Seen
from agent_manager.runtimes.logfile import LogReader, stamped
from agent_manager.runtimes.records import Record, UnreadableError, locked, records
from agent_manager.runtimes.threads import to_the_end

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from agent_manager.runtimes.base import Fetching, InstanceSpec
    from agent_manager.runtimes.records import Run
    from agent_manager.state import StateDir

_log = logging.getLogger(__name__)

_FOLLOW_S = 0.05  # how often a followed log is looked at
_LOOK_AGAIN_S = 1.0  # the end of a process wakes us; this is for ends that wake nobody
_KILL_AGAIN_S = 0.5  # processes forked while their parents were killed
_KILL_TIMEOUT_S = 30.0  # after that something in the kernel holds them
_SHIM_TIMEOUT_S = 5.0  # to record the end of a killed engine


class ProcessRuntime:
    """Runs instances as processes of this user. `host_env` is what engines inherit from: `os.environ` unless given.

    Several of these, in one or more processes, may share a state folder.
    """

    name = "process"

    def __init__(self, state: StateDir, *, host_env: Mapping[str, str] | None = None) -> None:
        """Touches nothing."""
        self._instances = state.instances
        self._root = os.path.realpath(state.root)
        self._host_env = os.environ if host_env is None else host_env
        self._live = Liveness(self._root)

    async def container_engine(self) -> None:
        """There are no containers here; see Runtime."""

    async def provide(self, spec: InstanceSpec, *, fetch: bool, tell: Callable[[Fetching], None]) -> None:
        """Nothing to do; see Runtime. An engine that is not installed is missed when it is started."""

    async def create(self, spec: InstanceSpec) -> None:
        """Record an instance; see Runtime. Nothing of the host's environment is written down."""
        await to_the_end(self._create, spec)

    async def start(self, instance_id: str) -> None:
        """Start it under a new shim; see Runtime. It was executed when this returns, after some 30 ms."""
        await to_the_end(self._start, instance_id)

    async def stop(self, instance_id: str, *, grace_s: float) -> Exit:
        """End it; see Runtime. SIGTERM goes to the engine's main process, SIGKILL to every process."""
        record = self._record(instance_id)
        seen = await asyncio.to_thread(self._settled, record)
        if seen.state is InstanceState.CREATED:
            return NEVER_STARTED
        if seen.exit is not None:
            return seen.exit
        if seen.run is not None:
            with contextlib.suppress(StateUnusable):  # a full disk is no reason to go on running
                record.request_stop(seen.run)
        if grace_s > 0 and self._live.terminate(instance_id, seen.run):
            ended = await self._until_ended(record, timeout_s=grace_s)
            if ended is not None:
                return replace(ended, requested=True)
        return replace(await self._kill(record, seen.run), requested=True)

    async def wait(self, instance_id: str) -> Exit:
        """Wait for its end; see Runtime."""
        record = self._record(instance_id)
        seen = await asyncio.to_thread(self._settled, record)
        if seen.state is InstanceState.CREATED:
            return NEVER_STARTED
        while (ended := await self._until_ended(record, timeout_s=_LOOK_AGAIN_S)) is None:
            pass
        return ended

    async def remove(self, instance_id: str) -> None:
        """Forget it; see Runtime. Works on broken records too."""
        await to_the_end(self._remove, instance_id)

    async def list(self) -> tuple[Instance, ...]:
        """All instances; see Runtime. A record that cannot be read is skipped, with a warning in our own log."""
        return await asyncio.to_thread(self._list)

    async def logs(
        self,
        instance_id: str,
        *,
        tail: int | None = None,
        since: datetime | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[LogLine, None]:
        """Its output; see Runtime. At most 32 MiB are kept. A followed log is looked at every 50 ms."""
        record = self._record(instance_id)
        reader = LogReader(record.folder, tail=tail, since=since)
        try:
            seen, look_at = None, 0.0
            while True:
                # Look first, read then: what was written before the end is read in any case.
                if follow and time.monotonic() >= look_at:
                    seen = await asyncio.to_thread(self._live.see, record)
                    look_at = time.monotonic() + _LOOK_AGAIN_S
                while (lines := reader.read()) is not None:
                    for line in lines:
                        yield line
                    await asyncio.sleep(0)
                if seen is None or seen.state is not InstanceState.RUNNING:
                    break
                if await self._live.ended(instance_id, seen, timeout_s=_FOLLOW_S):
                    look_at = 0.0
            for line in reader.finish():
                yield line
        finally:
            reader.close()

    async def pids(self, instance_id: str) -> frozenset[int]:
        """Its processes; see Runtime. The shim is not one of them."""
        record = self._record(instance_id)
        return await asyncio.to_thread(proc.marked, record.id, self._root)

    async def activity(self, instance_id: str) -> Activity:
        """What its processes used, ended children included; see Runtime. The page cache is not disk traffic."""
        pids = await self.pids(instance_id)
        return Activity(
            cpu_seconds=sum(proc.cpu_seconds(pid) for pid in pids),
            disk_bytes=sum(proc.disk_bytes(pid) for pid in pids),
        )

    def _record(self, instance_id: str) -> Record:
        record = Record(self._instances, instance_id)
        record.require()
        return record

    def _settled(self, record: Record) -> Seen:
        # What it is once a start under way has come to its end.
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(StateUnusable):  # a folder that cannot be written cannot be started in
                stack.enter_context(locked(self._instances))
            return self._live.see(record)

    def _create(self, spec: InstanceSpec) -> None:
        with locked(self._instances):
            Record(self._instances, spec.id).create(spec)

    def _start(self, instance_id: str) -> None:
        with locked(self._instances):
            record = self._record(instance_id)
            spec = _spec(record)
            seen = self._live.see(record)
            if seen.state is InstanceState.RUNNING:
                raise OperationFailed(f"instance '{instance_id}' is running already", where=instance_id)
            run = max(time.time_ns(), record.latest_number() + 1)
            try:
                launch(spec, record.folder, run=run, root=self._root, host_env=self._host_env)
            except (HostNotReady, EngineFailed) as error:
                with contextlib.suppress(StateUnusable):
                    record.write_end(run, Exit(code=None, reason=error.message))
                raise

    def _remove(self, instance_id: str) -> None:
        with locked(self._instances):
            record = self._record(instance_id)
            if self._live.see(record).state is InstanceState.RUNNING:
                raise OperationFailed(
                    f"instance '{instance_id}' is running", hint="stop it first", where=instance_id
                )
            record.remove()

    def _list(self) -> tuple[Instance, ...]:
        looked: dict[str, frozenset[int]] | None = None

        def processes(instance_id: str) -> frozenset[int]:
            nonlocal looked
            if looked is None:
                looked = self._live.all_processes()
            return looked.get(instance_id, frozenset())

        found: list[tuple[int, Instance]] = []
        for record in records(self._instances):
            try:
                read = record.spec()
                seen = self._live.see(record, processes)
            except (UnreadableError, StateUnusable) as error:
                _log.warning("skipping a record that cannot be read: %s", error)
                continue
            if read is not None:  # else it is being removed
                found.append((read[1], _instance(read[0], seen)))
        found.sort(key=lambda each: (each[0], each[1].spec.id))
        return tuple(instance for _, instance in found)

    async def _until_ended(self, record: Record, *, timeout_s: float) -> Exit | None:
        # How it ended, in the record as well; None when it is still there after `timeout_s`.
        deadline = time.monotonic() + timeout_s
        while True:
            seen = await asyncio.to_thread(self._live.see, record)
            if seen.exit is not None:
                await asyncio.to_thread(_record_unseen, record, seen)
                return seen.exit
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            await self._live.ended(record.id, seen, timeout_s=min(left_s, _LOOK_AGAIN_S))

    async def _kill(self, record: Record, run: Run | None) -> Exit:
        started = time.monotonic()
        while True:
            killed = await asyncio.to_thread(self._live.kill, record.id, run)
            ended = await self._until_ended(record, timeout_s=_KILL_AGAIN_S)
            if ended is not None:
                return ended
            waited_s = time.monotonic() - started
            if not killed and run is not None and waited_s > _SHIM_TIMEOUT_S:
                self._live.kill_shim(record.id, run)
            if waited_s > _KILL_TIMEOUT_S:
                named = ", ".join(str(pid) for pid in sorted(killed)) or "its shim"
                raise OperationFailed(
                    f"instance '{record.id}' does not end: {named} survived SIGKILL for {waited_s:.0f} s",
                    hint="a process in the kernel's hands ends with what it waits for: a disk, a GPU driver",
                    where=record.id,
                )


def _instance(spec: InstanceSpec, seen: Seen) -> Instance:
    return Instance(
        spec=spec,
        runtime=ProcessRuntime.name,
        state=seen.state,
        started_at=seen.started_at,
        exit=seen.exit,
    )


def _spec(record: Record) -> InstanceSpec:
    try:
        read = record.spec()
    except UnreadableError:
        read = None
    if read is None:
        raise StateUnusable(
            f"{record.folder}: the record of this instance is broken",
            hint="remove the folder, then launch the agent again",
            where=str(record.folder),
        )
    return read[0]


def _record_unseen(record: Record, seen: Seen) -> None:
    # In place of a shim that was killed: the end we found, and in the log that output is missing.
    if seen.run is None or seen.exit is None or seen.exit.reason != UNSEEN_END:
        return
    if record.latest_end() == seen.run.number:
        return
    with contextlib.suppress(StateUnusable):
        record.write_end(seen.run.number, seen.exit)
    note = LogLine(at=datetime.now(UTC), text=f"agent-manager: {UNSEEN_END}; output was lost")
    with contextlib.suppress(OSError), (record.folder / handover.LOG).open("a", encoding="utf-8") as log:
        log.write(stamped(note))
