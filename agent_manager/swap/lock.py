"""One owner per card: an advisory lock on `<state>/cards/<card>/lock`, and who holds it for others to read.

The kernel frees the lock when its holder dies, however it dies; `owner.json` is then stale and is recognised
as such by the process that wrote it being gone. Reading never locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.errors import CardBusy
from agent_manager.json_text import from_json, to_json
from agent_manager.state import ensure, unusable, write_atomically
from agent_manager.swap.notices import Owner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent_manager.state import StateDir

POLL_S = 0.1
OPERATION = "operation"
GATEWAY = "gateway"


class _Record(Struct, frozen=True, kw_only=True):
    """`start_ticks` tells the owner from a later process with its number; see `_start_ticks`."""

    owner: Owner
    start_ticks: int | None


class CardLock:
    """The lock of one card, held. Others read from it who holds it and what is being done."""

    def __init__(self, folder: Path, verb: str, kind: str) -> None:
        self._path = folder / "owner.json"
        self._owner = Owner(pid=os.getpid(), kind=kind, verb=verb)
        self._start_ticks = _start_ticks(self._owner.pid)

    def tell(self, step: str | None = None, agent: str | None = None) -> None:
        """Say what is being done now. Raises OSError when it cannot be written."""
        owner = replace(self._owner, step=step, agent=agent)
        record = _Record(owner=owner, start_ticks=self._start_ticks)
        write_atomically(self._path, to_json(record))

    def forget(self) -> None:
        """Leave no word behind."""
        with contextlib.suppress(OSError):
            self._path.unlink()


@contextlib.asynccontextmanager
async def own_card(
    state: StateDir,
    card: str,
    *,
    verb: str,
    kind: str = OPERATION,
    wait_s: float = 0.0,
    unannounced: bool = False,
) -> AsyncIterator[CardLock]:
    """Hold the card's lock, waiting up to `wait_s` for it.

    `kind`: an operation that ends by itself, or a gateway. Raises CardBusy naming who holds it, StateUnusable when
    the folder cannot be written. `unannounced`: hold it even if the disk is too full to say who does, for what only
    gives things back.
    """
    folder = ensure(state.card(card))
    descriptor = _open(folder / "lock")
    try:
        await _acquire(descriptor, state, card, wait_s)
        lock = CardLock(folder, verb, kind)
        try:
            lock.tell()
        except OSError as error:
            if not unannounced:
                raise unusable(folder, error) from error
        try:
            yield lock
        finally:
            lock.forget()
    finally:
        os.close(descriptor)


def read_owner(state: StateDir, card: str) -> Owner | None:
    """Who owns the card, None when nobody does. Reads only; a file left by a dead process is nobody."""
    try:
        record = from_json((state.card(card) / "owner.json").read_bytes(), _Record)
    except (OSError, ValueError):
        return None
    started = _start_ticks(record.owner.pid)
    return record.owner if started is not None and started == record.start_ticks else None


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unusable(path, error) from error


async def _acquire(descriptor: int, state: StateDir, card: str, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _busy(state, card) from None
            await asyncio.sleep(POLL_S)
        except OSError as error:
            raise unusable(state.card(card) / "lock", error) from error
        else:
            return


def _busy(state: StateDir, card: str) -> CardBusy:
    owner = read_owner(state, card)
    who = f"'{owner.verb}' (pid {owner.pid})" if owner else "another process"
    hint = "wait for it to finish, or give --wait 60 to wait up to a minute"
    if owner and owner.kind == GATEWAY:
        hint = f"it swaps by itself when an agent is asked for; 'kill {owner.pid}' ends it"
    return CardBusy(f"card {card} is owned by {who}", hint=hint, where=card)


def _start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (proc(5), stat field 22): tells a reused pid."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123 - pathlib costs more than the read
            return int(stat.read().rpartition(b") ")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
