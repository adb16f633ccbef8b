"""The machine around the engines, read for `doctor`: system, disks, ports, leftovers. Changes nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent_manager.diagnosis.facts import Disk, Leftovers, LostEngine, PortFacts, SystemFacts
from agent_manager.errors import HostNotReady
from agent_manager.gpu.host import host_memory
from agent_manager.gpu.simulated import SimulatedProbe
from agent_manager.runtimes import proc
from agent_manager.runtimes.ports import LOOPBACK, port_holder
from agent_manager.runtimes.records import UnreadableError, records
from agent_manager.state import unusable
from agent_manager.swap.lock import read_owner

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from agent_manager.catalog.agents import Agent
    from agent_manager.state import StateDir

_NVIDIA: Final = "0x10de"
_DISPLAY_CLASS: Final = "0x03"
"""PCI vendor and base class (PCI Code and ID Assignment: 03 is a display controller)."""
_PID: Final = re.compile(r"\(pid (\d+)\)$")


def system_facts(root: Path = Path("/")) -> SystemFacts:
    """What this machine is. Reads a few small files below `root`."""
    uname, release = os.uname(), _os_release(root)
    memory_bytes: int | None = None
    free_memory_bytes: int | None = None
    with contextlib.suppress(HostNotReady):
        memory_bytes, free_memory_bytes = host_memory(root)
    wsl = "microsoft" in _text(root / "proc/sys/kernel/osrelease").lower()
    return SystemFacts(
        name=release.get("PRETTY_NAME", uname.sysname),
        families=frozenset([release.get("ID", ""), *release.get("ID_LIKE", "").split()]) - {""},
        kernel=f"{uname.sysname} {uname.release}",
        machine=uname.machine,
        python=platform.python_version(),
        memory_bytes=memory_bytes,
        free_memory_bytes=free_memory_bytes,
        systemd=(root / "run/systemd/system").is_dir(),
        wsl=wsl,
        wsl_library=wsl and (root / "usr/lib/wsl/lib/libnvidia-ml.so.1").exists(),
        nvidia_card=_nvidia_card(root),
        toolkit=shutil.which("nvidia-ctk") is not None,
    )


def disk_of(folder: Path) -> Disk:
    """The disk that `folder` is or would be on. Raises OSError where even its root cannot be looked at."""
    existing = next(each for each in (folder, *folder.parents) if _exists(each))
    return Disk(
        folder=folder,
        existing=existing,
        free_bytes=shutil.disk_usage(existing).free,
        writable=existing.is_dir() and os.access(existing, os.W_OK | os.X_OK),
        device=existing.stat().st_dev,
    )


def port_facts(
    agents: Iterable[Agent], ours: Collection[int], published: Mapping[int, str]
) -> tuple[PortFacts, ...]:
    """Who has each port that the agents need. `ours` are those of our running instances.

    `published` are ports that containers have: some get their traffic without anybody listening.
    """
    wanted = [(port, agent.name) for agent in agents for port in (agent.port, agent.engine_port)]
    return tuple(_port(port, agent, ours, published) for port, agent in wanted)


def leftovers(state: StateDir, ended: Iterable[str]) -> Leftovers:
    """What earlier runs left in the state folder; `ended` are the agents whose instances ended by themselves.

    Blocks for a look at /proc and at some files. Raises StateUnusable.
    """
    try:
        logs = [path.stat().st_size for path in (state.root / "logs").glob("*/*.log")]
        harmless = sum(1 for _ in _harmless(state))
    except OSError as error:
        raise unusable(state.root, error) from error
    return Leftovers(
        lost=tuple(_lost(state)),
        ended=tuple(sorted(ended)),
        harmless=harmless,
        kept_logs=len(logs),
        kept_logs_bytes=sum(logs),
    )


def _os_release(root: Path) -> dict[str, str]:
    """os-release(5): names and values, some of them in quotes."""
    lines = (_text(root / "etc/os-release") or _text(root / "usr/lib/os-release")).splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}


def _nvidia_card(root: Path) -> bool | None:
    """Whether an NVIDIA display controller is on the PCI bus; None where there is no such bus to look at."""
    devices = root / "sys/bus/pci/devices"
    try:
        found = list(devices.iterdir())
    except OSError:
        return None
    return any(
        _text(each / "vendor").strip() == _NVIDIA and _text(each / "class").startswith(_DISPLAY_CLASS)
        for each in found
    )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True


def _port(port: int, agent: str, ours: Collection[int], published: Mapping[int, str]) -> PortFacts:
    if port in ours:
        return PortFacts(port=port, agent=agent, holder="its own engine", ours=True)
    container = published.get(port)
    if container is not None:
        return PortFacts(port=port, agent=agent, holder=f"container {container}", container=container)
    if _is_free(port):
        return PortFacts(port=port, agent=agent)
    holder = port_holder(port) or "somebody who cannot be named"
    pid = _PID.search(holder)
    return PortFacts(port=port, agent=agent, holder=holder, pid=int(pid[1]) if pid else None)


def _is_free(port: int) -> bool:
    """Whether one could listen there. The port is taken for an instant, and nobody is listened to."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((LOOPBACK, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
        return True


def _lost(state: StateDir) -> Iterator[LostEngine]:
    """Instances that no list shows: their record cannot be read, or is gone while they run."""
    root = os.path.realpath(state.root)
    living = proc.marked_by_instance(root)
    known = set()
    for record in records(state.instances):
        known.add(record.id)
        pids = tuple(sorted(living.get(record.id, ())))
        try:
            whole = record.spec() is not None
        except UnreadableError:
            yield LostEngine(instance=record.id, folder=record.folder, pids=pids)
        else:
            if not whole and pids:
                yield LostEngine(instance=record.id, folder=record.folder, pids=pids)
    for instance in sorted(living.keys() - known):
        if pids := tuple(
            sorted(proc.marked(instance, root))
        ):  # else it ended and was removed while we looked
            yield LostEngine(instance=instance, folder=None, pids=pids)


def _harmless(state: StateDir) -> Iterator[Path]:
    """Files of processes that are gone, which the next operation clears."""
    for owner in state.cards.glob("*/owner.json"):
        if read_owner(state, owner.parent.name) is None:
            yield owner
    for claims in state.cards.glob("*/claims"):
        held = len(SimulatedProbe(claims.parent).read().holders)
        yield from [path for path in claims.iterdir() if not path.name.startswith(".")][held:]
    for half in (".new-*", ".removed-*"):
        yield from state.instances.glob(half)
