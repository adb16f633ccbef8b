"""Whether an instance of the process runtime lives: its records, checked against the processes there are."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from msgspec import Struct

from agent_manager.runtimes import proc
from agent_manager.runtimes.base import Exit, InstanceState
from agent_manager.runtimes.records import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from agent_manager.runtimes.records import End, Record, Run

UNSEEN_END = "nobody saw it end: its shim was killed, or the machine restarted"


class Seen(Struct, frozen=True, kw_only=True):
    """What became of an instance. `run` is None before its first start, and when its record is broken.

    `shim_lives`: the end, when it comes, will be recorded without us.
    """

    state: InstanceState
    run: Run | None = None
    exit: Exit | None = None
    shim_lives: bool = False

    @property
    def started_at(self) -> datetime | None:
        """When its latest start was."""
        return self.run.started_at if self.run else None


class Liveness:
    """Looks at and signals the processes of one state folder's instances; `root` is that folder without links."""

    def __init__(self, root: str) -> None:
        self._root = root

    def see(self, record: Record, processes: Callable[[str], frozenset[int]] | None = None) -> Seen:
        """The state of an instance. Blocks for a look at /proc at most; raises StateUnusable.

        `processes` gives the processes of an id, where the caller has looked already.
        """
        run, broken = _run(record)
        if run is None and not broken:
            end = _end(record)  # a start may have failed before there was a shim
            return (
                Seen(state=InstanceState.EXITED, exit=end.exit) if end else Seen(state=InstanceState.CREATED)
            )
        ended = self._recorded_end(record, run)
        if ended is None and run is not None and self.shim_lives(record.id, run):
            return Seen(state=InstanceState.RUNNING, run=run, shim_lives=True)
        if ended is None and (processes(record.id) if processes else self.processes(record.id, run)):
            return Seen(state=InstanceState.RUNNING, run=run)
        # A shim that ended between our looks has left its record by now.
        ended = ended or self._recorded_end(record, run)
        if ended is None:
            ended = Exit(code=None, requested=record.stop_requested(run), reason=UNSEEN_END)
        return Seen(state=InstanceState.EXITED, run=run, exit=ended)

    def processes(self, instance_id: str, run: Run | None) -> frozenset[int]:
        """The living processes of an instance; empty only when there are none. Blocks (see `proc.living`)."""
        return proc.living(instance_id, self._root, run.shim.pid if run else 0)

    def all_processes(self) -> dict[str, frozenset[int]]:
        """The processes of every instance, as one look finds them."""
        return proc.marked_by_instance(self._root)

    def shim_lives(self, instance_id: str, run: Run) -> bool:
        """Whether the shim of this start is alive."""
        pidfd = self._open_shim(instance_id, run)
        if pidfd is None:
            return False
        os.close(pidfd)
        return True

    def terminate(self, instance_id: str, run: Run | None) -> bool:
        """SIGTERM to the engine's main process; False when it is dead or unknown, whatever lives on."""
        if run is None or run.engine is None:
            return False
        wanted = proc.marks(proc.INSTANCE_VARIABLE, instance_id, self._root)
        return proc.send(run.engine.pid, signal.SIGTERM, wanted, started_ticks=run.engine.started_ticks)

    def kill(self, instance_id: str, run: Run | None) -> frozenset[int]:
        """SIGKILL to every process of an instance; who that was."""
        wanted = proc.marks(proc.INSTANCE_VARIABLE, instance_id, self._root)
        found = self.processes(instance_id, run)
        for pid in found:
            proc.send(pid, signal.SIGKILL, wanted)
        return found

    def kill_shim(self, instance_id: str, run: Run) -> None:
        """SIGKILL to a shim that does not end although its engine has."""
        wanted = proc.marks(proc.SHIM_VARIABLE, instance_id, self._root)
        proc.send(run.shim.pid, signal.SIGKILL, wanted, started_ticks=run.shim.started_ticks)

    async def ended(self, instance_id: str, seen: Seen, *, timeout_s: float | None) -> bool:
        """Return as soon as what was seen running may have changed, or after `timeout_s`; whether it may have.

        That is when its shim has ended, or one of its processes where there is no shim.
        """
        if seen.shim_lives and seen.run:
            return await _first_end([self._open_shim(instance_id, seen.run)], timeout_s)
        wanted = proc.marks(proc.INSTANCE_VARIABLE, instance_id, self._root)
        found = await asyncio.to_thread(self.processes, instance_id, seen.run)
        return await _first_end([proc.open_if(pid, wanted) for pid in found], timeout_s)

    def _open_shim(self, instance_id: str, run: Run) -> int | None:
        wanted = proc.marks(proc.SHIM_VARIABLE, instance_id, self._root)
        return proc.open_if(run.shim.pid, wanted, started_ticks=run.shim.started_ticks)

    def _recorded_end(self, record: Record, run: Run | None) -> Exit | None:
        end = _end(record)
        if end is None or (run is not None and end.number < run.number):
            return None
        # Without a readable start there is no telling which start this was the end of.
        if run is None and self.processes(record.id, None):
            return None
        return end.exit


def _run(record: Record) -> tuple[Run | None, bool]:
    try:
        return record.run(), False
    except UnreadableError:
        return None, True


def _end(record: Record) -> End | None:
    try:
        return record.end()
    except UnreadableError:
        return None


async def _first_end(pidfds: Iterable[int | None], timeout_s: float | None) -> bool:
    # A pidfd becomes readable when its process ends. Closes them. False after `timeout_s`.
    opened = [pidfd for pidfd in pidfds if pidfd is not None]
    if not opened:
        return True
    loop = asyncio.get_running_loop()
    first = asyncio.Event()
    try:
        for pidfd in opened:
            loop.add_reader(pidfd, first.set)
        async with asyncio.timeout(timeout_s):
            return await first.wait()
    except TimeoutError:
        return False
    finally:
        for pidfd in opened:
            loop.remove_reader(pidfd)
            os.close(pidfd)
