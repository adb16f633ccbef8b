from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest

from agent_manager.errors import HostNotReady
from agent_manager.gpu.base import GIB
from agent_manager.gpu.host import HostMemoryProbe

if TYPE_CHECKING:
    from pathlib import Path

MEMINFO = f"""MemTotal:       {16 * GIB // 1024} kB
MemFree:        {2 * GIB // 1024} kB
MemAvailable:   {10 * GIB // 1024} kB
HugePages_Total:       0
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO, "utf-8")
    (tmp_path / "proc/self/cgroup").write_text("0::/user/job\n", "utf-8")
    (tmp_path / "sys/fs/cgroup/user/job").mkdir(parents=True)
    return tmp_path


def limit(folder: Path, *, most: str, current_bytes: int = 0, inactive_file_bytes: int = 0) -> None:
    (folder / "memory.max").write_text(f"{most}\n", "utf-8")
    (folder / "memory.current").write_text(f"{current_bytes}\n", "utf-8")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive_file_bytes}\nslab 3\n", "utf-8")


def test_this_host() -> None:
    card = HostMemoryProbe().read()
    assert card.id == "CPU-0"
    assert 0 < card.total_bytes <= psutil.virtual_memory().total
    assert 0 < card.free_bytes < card.total_bytes
    assert card.holders == ()


def test_total_and_available(root: Path) -> None:
    card = HostMemoryProbe(root).read()
    assert (card.total_bytes, card.free_bytes) == (16 * GIB, 10 * GIB)


def test_a_limit_of_the_cgroup(root: Path) -> None:
    job = root / "sys/fs/cgroup/user/job"
    limit(job, most=str(4 * GIB), current_bytes=3 * GIB, inactive_file_bytes=GIB // 2)
    card = HostMemoryProbe(root).read()
    assert (card.total_bytes, card.free_bytes) == (4 * GIB, GIB + GIB // 2)


def test_a_limit_further_up(root: Path) -> None:
    limit(root / "sys/fs/cgroup/user/job", most="max", current_bytes=3 * GIB)
    limit(root / "sys/fs/cgroup/user", most=str(8 * GIB), current_bytes=9 * GIB)
    card = HostMemoryProbe(root).read()
    assert (card.total_bytes, card.free_bytes) == (8 * GIB, 0)


def test_a_limit_above_what_the_host_has(root: Path) -> None:
    limit(root / "sys/fs/cgroup/user/job", most=str(64 * GIB))
    assert HostMemoryProbe(root).read().total_bytes == 16 * GIB


def test_no_cgroups(root: Path) -> None:
    (root / "proc/self/cgroup").unlink()
    assert HostMemoryProbe(root).read().total_bytes == 16 * GIB


@pytest.mark.parametrize("text", ["", "MemTotal: many kB\n", "MemTotal: 1 kB\n", "MemTotal:\n"])
def test_no_meminfo(root: Path, text: str) -> None:
    (root / "proc/meminfo").write_text(text, "utf-8")
    with pytest.raises(HostNotReady, match="meminfo") as caught:
        HostMemoryProbe(root).read()
    assert caught.value.hint


def test_the_smallest_memory_node_counts(root: Path) -> None:
    for number, (total, free) in enumerate(((8 * GIB, 3 * GIB), (6 * GIB, 5 * GIB), (0, 0))):
        folder = root / f"sys/devices/system/node/node{number}"
        folder.mkdir(parents=True)
        rows = {
            "MemTotal": total,
            "MemFree": free,
            "Active(file)": GIB,
            "Inactive(file)": 0,
            "SReclaimable": 0,
        }
        lines = [f"Node {number} {name}: {size_bytes // 1024} kB\n" for name, size_bytes in rows.items()]
        (folder / "meminfo").write_text("".join(lines), "utf-8")

    card = HostMemoryProbe(root).read()

    assert card.total_bytes == 6 * GIB
    assert card.free_bytes == 4 * GIB
