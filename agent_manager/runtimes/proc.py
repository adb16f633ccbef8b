"""What Linux says of processes, read from /proc: who they are and which instance they belong to.

The shim imports this before it starts an engine, so it needs nothing but `os`, and not even `typing`.
Linux only (pidfd: 5.3 or newer).
"""

from __future__ import annotations

import os
import time

INSTANCE_VARIABLE = "AGENT_MANAGER_INSTANCE"
"""In the environment of every process of an instance: its id. The proof that a process is ours."""
SHIM_VARIABLE = "AGENT_MANAGER_SHIM"
"""In the environment of a shim, which is not part of its instance: the instance's id."""
STATE_VARIABLE = "AGENT_MANAGER_STATE_DIR"
"""In both: the state folder they belong to, without links. Ids of two state folders never mix."""

_LOOKS = 2
_LOOK_AGAIN_S = 0.002
_SETTLE_S = 1.0  # far more than executing a program takes; a process may have no environment for good
_CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Identity:
    """One process for good: a pid, and the clock tick it was started at, which a later owner of the pid lacks."""

    __slots__ = ("pid", "started_ticks")

    def __init__(self, pid: int, started_ticks: int) -> None:
        self.pid = pid
        self.started_ticks = started_ticks


def identify(pid: int) -> Identity | None:
    """The process that has `pid` now, a zombie included; None when there is none."""
    fields = _stat(pid)
    return Identity(pid, int(fields[19])) if fields else None


def environment(pid: int) -> list[bytes]:
    """What `pid` was started with, as `NAME=value`; empty for zombies, the kernel's and other users' processes."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - pathlib costs the shim 5 ms
            content = file.read()
    except OSError:
        return []
    return content.split(b"\0") if content else []


def marks(variable: str, instance_id: str, root: str) -> tuple[bytes, bytes]:
    """The two entries that a process of this instance (or its shim, by `variable`) has in its environment."""
    return os.fsencode(f"{variable}={instance_id}"), os.fsencode(f"{STATE_VARIABLE}={root}")


def carries(pid: int, wanted: tuple[bytes, bytes]) -> bool:
    """Whether the environment of `pid` has both entries."""
    entries = environment(pid)
    return wanted[0] in entries and wanted[1] in entries


def all_pids() -> list[int]:
    """Every process there is just now."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - pathlib is slow to import


def marked(instance_id: str, root: str) -> frozenset[int]:
    """The processes of one instance, as one look finds them. About 6 µs for each process of the machine."""
    wanted = marks(INSTANCE_VARIABLE, instance_id, root)
    return frozenset(pid for pid in all_pids() if carries(pid, wanted))


def living(instance_id: str, root: str, session: int) -> frozenset[int]:
    """The processes of one instance; empty only when nothing of it is left. `session`: that of its shim, or 0.

    One look can miss a process that was just forked while its parent ended, and one that is being executed has
    no environment for a moment. So it takes two empty looks, and none of the session being executed. Blocks for
    2 ms when there is nothing, at most for a second.
    """
    until = time.monotonic() + _SETTLE_S
    empty_looks = 0
    while empty_looks < _LOOKS:
        if found := marked(instance_id, root):
            return found
        settled = not session or time.monotonic() >= until or not _executing(session)
        empty_looks = empty_looks + 1 if settled else 0
        if empty_looks < _LOOKS:
            time.sleep(_LOOK_AGAIN_S)
    return frozenset()


def settle(pid: int) -> None:
    """Wait until the environment of a process that was just spawned can be read, or it has ended."""
    until = time.monotonic() + _SETTLE_S
    while not environment(pid) and not _ended(_stat(pid)) and time.monotonic() < until:
        time.sleep(_LOOK_AGAIN_S / 10)


def _executing(session: int) -> bool:
    for pid in all_pids():
        fields = _stat(pid)
        in_session = not _ended(fields) and int(fields[3]) == session
        if in_session and not environment(pid) and not _ended(_stat(pid)):
            return True
    return False


def _ended(fields: list[bytes]) -> bool:
    return not fields or fields[0] in (b"Z", b"X")


def marked_by_instance(root: str) -> dict[str, frozenset[int]]:
    """The living processes of every instance of a state folder, in one look."""
    found: dict[str, set[int]] = {}
    state = os.fsencode(f"{STATE_VARIABLE}={root}")
    prefix = os.fsencode(f"{INSTANCE_VARIABLE}=")
    for pid in all_pids():
        entries = environment(pid)
        if state in entries:
            for entry in entries:
                if entry.startswith(prefix):
                    found.setdefault(os.fsdecode(entry[len(prefix) :]), set()).add(pid)
    return {instance_id: frozenset(pids) for instance_id, pids in found.items()}


def open_if(pid: int, wanted: tuple[bytes, bytes], *, started_ticks: int | None = None) -> int | None:
    """A pidfd of `pid` if it is the process meant, else None. The caller closes it.

    The pidfd is opened before the proof is read: were the pid to change hands in between, the pidfd would be
    of the dead one, and signalling it would reach nobody.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    identity = identify(pid)
    ours = identity is not None and started_ticks in (None, identity.started_ticks) and carries(pid, wanted)
    if ours:
        return pidfd
    os.close(pidfd)
    return None


def send(
    pid: int, signal_number: int, wanted: tuple[bytes, bytes], *, started_ticks: int | None = None
) -> bool:
    """Signal `pid` if it is the process meant; False when it is not, or has ended."""
    from signal import pidfd_send_signal  # noqa: PLC0415 - costs 2 ms, and no engine is waiting for it here

    pidfd = open_if(pid, wanted, started_ticks=started_ticks)
    if pidfd is None:
        return False
    try:
        pidfd_send_signal(pidfd, signal_number)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


def cpu_seconds(pid: int) -> float:
    """CPU time of `pid` and of its children that ended (user and system); 0 when it is gone."""
    fields = _stat(pid)
    return sum(int(ticks) for ticks in fields[11:15]) / _CLOCK_TICKS_PER_S


def disk_bytes(pid: int) -> int:
    """What `pid` has read from and written to storage, page cache excluded; 0 when it is gone or hidden."""
    total = 0
    try:
        with open(f"/proc/{pid}/io", "rb") as file:  # noqa: PTH123 - as above
            for line in file:
                name, _, value = line.partition(b":")
                if name in (b"read_bytes", b"write_bytes"):
                    total += int(value)
    except OSError:
        return total
    return total


def _stat(pid: int) -> list[bytes]:
    # Fields of /proc/<pid>/stat from the third on (proc_pid_stat(5)); the second, the name, may hold anything.
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - as above
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []
