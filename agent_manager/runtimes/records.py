"""The process runtime's records: one folder for each instance, read as they are, written at once or not at all.

    <state>/instances/<id>/
      spec.json         what to start, and since when it is known
      shim.json         the latest start: its number, when, which shim, which engine process
      exit.json         how a start ended; it counts if it is of the latest start
      stop-requested    the number of the start that was told to stop
      engine.log[.1]    its output

State is derived from these and checked against the processes there are; nothing here is ever repaired by
reading it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct

from agent_manager.errors import NotRunning, OperationFailed
from agent_manager.json_text import from_json, to_json
from agent_manager.runtimes import handover, proc
from agent_manager.runtimes.base import Exit, InstanceSpec
from agent_manager.state import ensure, unusable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPEC_RECORD = "spec.json"
STOP_MARKER = "stop-requested"
_HALF_MADE = ".new-"
_HALF_REMOVED = ".removed-"
_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")
_T = TypeVar("_T")


class Run(Struct, frozen=True, kw_only=True):
    """One start of an instance, as its shim recorded it. `engine` is None until the engine was spawned."""

    number: int
    started_at: datetime
    shim: proc.Identity
    engine: proc.Identity | None


class End(Struct, frozen=True, kw_only=True):
    """How start `number` ended."""

    number: int
    exit: Exit


class _Specified(Struct, frozen=True, kw_only=True):
    created_ns: int
    spec: InstanceSpec


class _Started(Struct, frozen=True, kw_only=True):
    """Written by the shim; an `engine_pid` of 0 stands for none."""

    run: int
    started_at: float
    shim_pid: int
    shim_ticks: int
    engine_pid: int
    engine_ticks: int


class _Ended(Struct, frozen=True, kw_only=True):
    """Written by the shim, or in its place."""

    run: int
    code: int | None
    ended_at: float
    out_of_host_memory: bool
    reason: str | None


class UnreadableError(ValueError):
    """A record that is not one. Caught in this room; nobody else sees it."""


class Record:
    """One instance's folder. Reading gives None for what is not there; UnreadableError for what is broken."""

    def __init__(self, instances: Path, instance_id: str) -> None:
        """Raises NotRunning for what cannot be an id."""
        if not _ID.fullmatch(instance_id):
            raise _unknown(instance_id)
        self.id = instance_id
        self.folder = instances / instance_id

    def require(self) -> None:
        """Raises NotRunning when there is no such instance."""
        if not self.folder.is_dir():
            raise _unknown(self.id)

    def spec(self) -> tuple[InstanceSpec, int] | None:
        """What to start, and when it was created (nanoseconds since 1970)."""
        found = self._read(SPEC_RECORD, _Specified)
        return (found.spec, found.created_ns) if found else None

    def run(self) -> Run | None:
        """The latest start; None before the first."""
        found = self._read(handover.SHIM_RECORD, _Started)
        if found is None:
            return None
        try:
            started_at = datetime.fromtimestamp(found.started_at, UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise UnreadableError(self.folder / handover.SHIM_RECORD) from error
        return Run(
            number=found.run,
            started_at=started_at,
            shim=proc.Identity(found.shim_pid, found.shim_ticks),
            engine=proc.Identity(found.engine_pid, found.engine_ticks) if found.engine_pid else None,
        )

    def end(self) -> End | None:
        """How a start ended; the latest one only if the numbers agree."""
        found = self._read(handover.EXIT_RECORD, _Ended)
        if found is None:
            return None
        exit_ = Exit(
            code=found.code,
            requested=self._stop_requested(found.run),
            out_of_host_memory=found.out_of_host_memory,
            reason=found.reason,
        )
        return End(number=found.run, exit=exit_)

    def latest_number(self) -> int:
        """The number of the latest start known of; 0 when there was none."""
        try:
            run = self.run()
        except UnreadableError:
            run = None
        return max(run.number if run else 0, self.latest_end())

    def latest_end(self) -> int:
        """The number of the latest start whose end is recorded; 0 when none is."""
        try:
            end = self.end()
        except UnreadableError:
            return 0
        return end.number if end else 0

    def stop_requested(self, run: Run | None) -> bool:
        """Whether `request_stop` was called for this start."""
        return run is not None and self._stop_requested(run.number)

    def request_stop(self, run: Run) -> None:
        """Note that this start was told to stop. Raises StateUnusable."""
        self._write(STOP_MARKER, str(run.number).encode())

    def write_end(self, number: int, exit_: Exit) -> None:
        """Record how a start ended, in place of a shim that cannot. Raises StateUnusable."""
        ended = _Ended(
            run=number,
            code=exit_.code,
            ended_at=time.time(),
            out_of_host_memory=exit_.out_of_host_memory,
            reason=exit_.reason,
        )
        self._write(handover.EXIT_RECORD, to_json(ended).encode())

    def create(self, spec: InstanceSpec) -> None:
        """Make the folder, whole. Raises OperationFailed when it is there already, StateUnusable.

        Only under `locked`: what others left half made or half removed is theirs no more, and goes.
        """
        instances = ensure(self.folder.parent)
        for left in (*instances.glob(f"{_HALF_MADE}*"), *instances.glob(f"{_HALF_REMOVED}*")):
            shutil.rmtree(left, ignore_errors=True)
        made = instances / f"{_HALF_MADE}{self.id}"
        record = to_json(_Specified(created_ns=time.time_ns(), spec=spec), indent=1).encode()
        try:
            made.mkdir(mode=0o700)
            handover.write_atomically(f"{made}/{SPEC_RECORD}", record)
            if self.folder.exists():
                raise OperationFailed(f"instance '{self.id}' exists already")
            made.rename(self.folder)
        except OSError as error:
            raise unusable(self.folder, error) from error
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def remove(self) -> None:
        """Take the folder away: at once for who lists, then its files. Only under `locked`; raises StateUnusable."""
        doomed = self.folder.parent / f"{_HALF_REMOVED}{self.id}-{time.time_ns()}"
        try:
            self.folder.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise unusable(self.folder, error) from error

    def _stop_requested(self, number: int) -> bool:
        try:
            return int((self.folder / STOP_MARKER).read_text(encoding="ascii")) == number
        except (OSError, ValueError):
            return False

    def _read(self, name: str, kind: type[_T]) -> _T | None:
        path = self.folder / name
        try:
            return from_json(path.read_bytes(), kind)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise UnreadableError(path) from error

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        try:
            handover.write_atomically(str(path), content)
        except OSError as error:
            raise unusable(path, error) from error


@contextlib.contextmanager
def locked(instances: Path) -> Iterator[None]:
    """Be the only one who creates, starts or removes here, for some milliseconds. Blocks; raises StateUnusable."""
    path = ensure(instances) / ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unusable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def records(instances: Path) -> tuple[Record, ...]:
    """Every instance there is a folder for, in no order. Raises StateUnusable when that cannot be told."""
    try:
        entries = list(os.scandir(instances))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise unusable(instances, error) from error
    return tuple(
        Record(instances, entry.name) for entry in entries if _ID.fullmatch(entry.name) and entry.is_dir()
    )


def _unknown(instance_id: str) -> NotRunning:
    return NotRunning(
        f"no instance '{instance_id}'", hint="agent-manager status shows what there is", where=instance_id
    )
