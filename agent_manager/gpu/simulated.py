"""The simulated card: memory that simulated engines share, kept as files that live and die with them.

    <state>/cards/SIM-0/claims/
      .lock              held while somebody claims: two engines must not both see the same free memory
      <name>-<random>    one claim: "<bytes> <pid> <name>", locked (flock) by its engine for life

The kernel drops a lock with its last open descriptor, so memory comes back after SIGKILL too, and a lock is
seen through a bind mount. A claim whose lock nobody holds is stale: readers skip it, the next claimer
removes it.

Whether a lock is held is asked with a shared lock that does not wait. It cannot disturb anybody: an engine
takes its exclusive lock on a file without a visible name, and everyone else only ever asks for shared ones.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from agent_manager.gpu.base import GIB, Card, MemoryHolder
from agent_manager.state import ensure, unusable

if TYPE_CHECKING:
    from pathlib import Path

CARD_ID = "SIM-0"
CARD_NAME = "Simulated 16 GB card"
TOTAL_BYTES = int(15.47 * GIB)
"""What CUDA gives of a 16 GB RTX card."""

_CLAIMS = "claims"
_LOCK = ".lock"
_UNNAMED = ".new-"
_RECORD_BYTES = 512
_MODE = 0o644
"""Claims hold no secret; an engine that runs as root in a container is read by the user outside."""


class NotEnoughMemory(Exception):
    """The card has only `free_bytes` left."""

    def __init__(self, free_bytes: int) -> None:
        super().__init__(f"{free_bytes} bytes are free")
        self.free_bytes = free_bytes


class SimulatedProbe(Struct, frozen=True):
    """Reads the simulated card whose folder is `card_dir`. Takes no lock that could make a claimer wait."""

    card_dir: Path

    def read(self) -> Card:
        """The card now: free is the total less all claims whose lock is held. Raises StateUnusable."""
        holders = _holders(self.card_dir / _CLAIMS)
        used_bytes = sum(holder.used_bytes or 0 for holder in holders)
        return Card(
            id=CARD_ID,
            name=CARD_NAME,
            total_bytes=TOTAL_BYTES,
            free_bytes=TOTAL_BYTES - used_bytes,
            simulated=True,
            holders=holders,
        )


def claim(card_dir: Path, name: str, wanted_bytes: int) -> Claim:
    """Take `wanted_bytes` of the card for this process, under `name`.

    Waits for another claim under way, a few milliseconds. Raises NotEnoughMemory, StateUnusable.
    """
    claims = ensure(card_dir / _CLAIMS)
    with _Claiming(claims):
        _remove_stale(claims)
        free_bytes = SimulatedProbe(card_dir).read().free_bytes
        if wanted_bytes > free_bytes:
            raise NotEnoughMemory(free_bytes)
        return Claim(card_dir, name, wanted_bytes)


class Claim:
    """Memory of the card that is held until `release`, or until every process that inherited it is gone."""

    def __init__(self, card_dir: Path, name: str, claimed_bytes: int) -> None:
        """Write, lock, then show the claim; only `claim` does this, under the claims' lock."""
        suffix = os.urandom(4).hex()
        claims = card_dir / _CLAIMS
        self._card_dir = card_dir
        self._name = name
        self._pid = os.getpid()
        self._path = claims / f"{name}-{suffix}"
        self.claimed_bytes = claimed_bytes
        unnamed = claims / f"{_UNNAMED}{suffix}"
        try:
            self._descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL, _MODE)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            self._write()
            unnamed.rename(self._path)
        except OSError as error:
            raise unusable(self._path, error) from error

    def resize(self, wanted_bytes: int) -> None:
        """Hold `wanted_bytes` from now on. Raises NotEnoughMemory (and keeps what it has), StateUnusable."""
        with _Claiming(self._card_dir / _CLAIMS):
            free_bytes = SimulatedProbe(self._card_dir).read().free_bytes
            if wanted_bytes - self.claimed_bytes > free_bytes:
                raise NotEnoughMemory(free_bytes)
            self.claimed_bytes = wanted_bytes
            self._write()

    def attribute_to(self, pid: int) -> None:
        """Name `pid`, a child that inherited the claim, as its holder."""
        self._pid = pid
        self._write()

    def release(self) -> None:
        """Give the memory back."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _write(self) -> None:
        # Always the same length, in one write: a reader never sees half of one record and half of another.
        record = f"{self.claimed_bytes:020d} {self._pid:010d} {self._name}\n"
        os.pwrite(self._descriptor, record.encode(), 0)


class _Claiming:
    """Held by whoever looks for free memory and takes it."""

    def __init__(self, claims: Path) -> None:
        self._path = claims / _LOCK

    def __enter__(self) -> None:
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CREAT, _MODE)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise unusable(self._path, error) from error

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _holders(claims: Path) -> tuple[MemoryHolder, ...]:
    try:
        paths = sorted(path for path in claims.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise unusable(claims, error) from error
    holders = (_holder(path) for path in paths)
    return tuple(holder for holder in holders if holder is not None)


def _holder(path: Path) -> MemoryHolder | None:
    """Who holds the claim at `path`; None when nobody does, or when it is no claim."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(path, error) from error
    try:
        if not _is_locked(descriptor):
            return None
        used, pid, name = os.pread(descriptor, _RECORD_BYTES, 0).decode(errors="replace").split(maxsplit=2)
        return MemoryHolder(pid=int(pid), name=name.strip(), used_bytes=int(used))
    except ValueError:
        return None
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _remove_stale(claims: Path) -> None:
    """Remove claims of engines that are gone, and files of claimers that died before they showed theirs."""
    for path in claims.iterdir():
        if path.name == _LOCK:
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        if path.name.startswith(_UNNAMED) or not _is_locked(descriptor):
            path.unlink(missing_ok=True)
        os.close(descriptor)
