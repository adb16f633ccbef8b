"""A state folder that is full, broken or in the way; a catalog that breaks while an agent serves."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
from typing import TYPE_CHECKING

import pytest

from tests.faults.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.conftest import Lab

_LAZY = 2
"""MNT_DETACH of umount2(2): shims have their folders there until they end."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The lab's state folder, on a disk of 1 MiB."""
    folder = tmp_path / "state"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=1m"):
        pytest.skip(f"a small disk cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    yield folder
    assert libc.umount2(os.fsencode(folder), _LAZY) == 0


def _fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size_bytes in (4096, 1):
            while True:
                with contextlib.suppress(OSError):
                    file.write(b"x" * size_bytes)
                    continue
                break
    return filler


def test_a_full_disk_stops_no_engine_and_starts_none(small_disk: Path, lab: Lab) -> None:
    lab.ok("launch", "po")
    before = lab.engines()
    filler = _fill(small_disk)
    done = lab.run("launch", "dev")
    assert done.code == 4
    assert os.strerror(errno.ENOSPC).lower() in done.err.lower()
    assert "hint:" in done.err
    assert lab.engines() == before
    assert lab.answers("po")
    assert lab.states() == {"po": "ready", "dev": "absent"}
    filler.unlink()
    lab.ok("launch", "dev")
    assert lab.agents_running() == ["dev"]
    lab.settled()


def test_on_a_full_disk_an_engine_can_be_stopped(small_disk: Path, lab: Lab) -> None:
    lab.ok("launch", "po")
    _fill(small_disk)
    lab.ok("stop", "po")
    assert lab.engines() == {}
    assert lab.states() == {"po": "absent", "dev": "absent"}
    lab.settled()


def test_a_disk_that_is_full_while_an_engine_logs_loses_lines_and_says_so(lab: Lab) -> None:
    lab.ok("launch", "po")
    (shim,) = lab.shims()
    log = next((lab.state / "instances").glob("po-*/engine.log"))
    unlimited = resource.prlimit(shim, resource.RLIMIT_FSIZE)
    resource.prlimit(
        shim, resource.RLIMIT_FSIZE, (log.stat().st_size, unlimited[1])
    )  # as good as a full disk
    assert lab.answers("po")
    lost = lab.ok("logs", "po")
    assert lab.answers("po")
    resource.prlimit(shim, resource.RLIMIT_FSIZE, unlimited)
    assert lab.answers("po")
    wait_until(lambda: "output were lost here" in log.read_text(), "the log says what is missing")
    assert lab.ok("logs", "po").startswith(lost)
    assert lab.states()["po"] == "ready"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"spec": {"id": 7}, "created_ns": 1}'])
def test_a_record_that_cannot_be_read_is_in_nobodys_way(lab: Lab, content: str) -> None:
    broken = lab.state / "instances" / "po-00000000"
    broken.mkdir(parents=True)
    (broken / "spec.json").write_text(content)
    assert lab.states() == {"po": "absent", "dev": "absent"}
    said = lab.run("status").err
    assert said == f"warning: skipping a record that cannot be read: {broken / 'spec.json'}\n"
    lab.ok("launch", "dev")
    lab.ok("stop", "--all")
    assert lab.engines() == {}


def test_an_engine_whose_start_record_is_broken_is_still_seen_and_stopped(lab: Lab) -> None:
    lab.ok("launch", "dev")
    next((lab.state / "instances").glob("dev-*/shim.json")).write_text("{")
    assert lab.states()["dev"] == "ready"
    lab.ok("launch", "po")
    assert lab.agents_running() == ["po"]
    lab.settled()


@pytest.mark.parametrize("broken", ["cards", "cards/SIM-0", "cards/SIM-0/lock", "instances"])
def test_something_else_where_our_folders_and_files_should_be(lab: Lab, broken: str) -> None:
    path = lab.state / broken
    path.parent.mkdir(parents=True)
    if path.name == "lock":
        path.mkdir()
    else:
        path.write_text("")
    done = lab.run("launch", "dev")
    assert done.code == 4
    assert str(path) in done.err
    assert "hint:" in done.err
    assert lab.engines() == {}
    assert lab.run("status").code == 0


def test_a_catalog_that_breaks_while_an_agent_serves(lab: Lab) -> None:
    lab.ok("launch", "po")
    lab.write("version: 1\nagents: [\n")
    for verb in (("status",), ("launch", "dev"), ("stop", "po")):
        done = lab.run(*verb)
        assert done.code == 2
        assert "models.yaml:" in done.err
    assert lab.answers("po")
    lab.catalog(load_s=1.0)
    launch = lab.begin_until("loading", "launch", "dev")
    lab.write("\0")  # what runs has read it already
    assert lab.end(launch).code == 0
    lab.catalog(load_s=1.0)
    assert lab.states() == {"po": "absent", "dev": "ready"}
    lab.settled()


def test_a_folder_whose_name_is_no_utf_8_is_one_like_others(lab: Lab) -> None:
    lab.folder = lab.folder / os.fsdecode(b"\xff")
    lab.folder.mkdir()
    lab.catalog()
    lab.ok("launch", "po")
    assert lab.states() == {"po": "ready", "dev": "absent"}
    lab.ok("launch", "dev")
    assert lab.states() == {"po": "absent", "dev": "ready"}
    lab.ok("stop")
