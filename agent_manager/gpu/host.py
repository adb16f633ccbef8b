"""The host's own memory as a card, for vLLM on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.errors import HostNotReady
from agent_manager.gpu.base import Card

if TYPE_CHECKING:
    from collections.abc import Iterator

CARD_ID: Final = "CPU-0"
CARD_NAME: Final = "Host memory"

_KIB: Final = 1024


class HostMemoryProbe(Struct, frozen=True):
    """Reads what this host, or the cgroup of this process if that is less, has and has free.

    On a host with several memory nodes it is the smallest node that counts: vLLM on the CPU stays on one
    (vllm/utils/cpu_resource_utils.py of 0.32, whose sum of what is available is used here too).

    `root` is where `proc` and `sys` are.
    """

    root: Path = Path("/")

    def read(self) -> Card:
        """The host's memory now; who holds it is not listed. Raises HostNotReady where /proc cannot be read."""
        total_bytes, free_bytes = host_memory(self.root)
        for node_total_bytes, node_free_bytes in _nodes(self.root):
            total_bytes = min(total_bytes, node_total_bytes)
            free_bytes = min(free_bytes, node_free_bytes)
        return Card(id=CARD_ID, name=CARD_NAME, total_bytes=total_bytes, free_bytes=free_bytes)


def host_memory(root: Path = Path("/")) -> tuple[int, int]:
    """What this host, or this process's cgroup if that is less, has and has free, in bytes, over all memory nodes.

    Raises HostNotReady where /proc cannot be read.
    """
    total_bytes, free_bytes = _meminfo(root / "proc/meminfo")
    for folder in _cgroups(root):
        limit_bytes = _number(folder / "memory.max")
        if limit_bytes is None or limit_bytes >= total_bytes:
            continue
        unused_bytes = limit_bytes - (_number(folder / "memory.current") or 0) + _reclaimable_bytes(folder)
        total_bytes, free_bytes = limit_bytes, max(0, min(free_bytes, unused_bytes, limit_bytes))
    return total_bytes, free_bytes


def _meminfo(path: Path) -> tuple[int, int]:
    """MemTotal and MemAvailable, in bytes (proc(5): the file counts in KiB)."""
    try:
        lines = path.read_text("utf-8").splitlines()
        fields = {
            name: int(rest.split()[0]) * _KIB for name, _, rest in (line.partition(":") for line in lines)
        }
        return fields["MemTotal"], fields["MemAvailable"]
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise HostNotReady(
            f"{path}: the host's memory cannot be read",
            hint="this needs Linux with /proc mounted",
            where=str(path),
        ) from error


def _nodes(root: Path) -> Iterator[tuple[int, int]]:
    """Total and available bytes of each memory node; lines read `Node 0 MemTotal: 97421888 kB`."""
    for path in sorted((root / "sys/devices/system/node").glob("node*/meminfo")):
        try:
            words = [line.split() for line in path.read_text("utf-8").splitlines()]
            fields = {word[2].rstrip(":"): int(word[3]) * _KIB for word in words}
            available = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
            total_bytes, free_bytes = fields["MemTotal"], sum(fields[name] for name in available)
        except (OSError, ValueError, IndexError, KeyError):
            continue
        if total_bytes:
            yield total_bytes, free_bytes


def _cgroups(root: Path) -> tuple[Path, ...]:
    """This process's cgroup (version 2) and those above it; a limit on any of them counts."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return ()
    names = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    if not names:
        return ()
    mount = root / "sys/fs/cgroup"
    here = mount / names[0]
    return tuple(folder for folder in (here, *here.parents) if folder.is_relative_to(mount))


def _number(path: Path) -> int | None:
    """The number in a cgroup file; None for `max` and where there is no such file."""
    try:
        text = path.read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _reclaimable_bytes(folder: Path) -> int:
    """Page cache that the kernel gives up when memory is asked for; it counts as used in `memory.current`."""
    try:
        lines = (folder / "memory.stat").read_text("utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
