"""What every test gets: a state folder of its own, ports that are free, and a check that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import settings

from agent_manager.catalog.agents import ENGINE_PORT_OFFSET
from agent_manager.runtimes import proc
from agent_manager.state import StateDir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Whoever runs the tests in the background may have them ignore Ctrl-C and hang-ups, which programs inherit.
for _number, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)

# A deadline is a timing assertion, and the machine may be busy.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

_PREFIX = "AGENT_MANAGER_"
_PORTS = range(20_000, 32_000)
"""Below those the system gives to outgoing connections, one of which could take a port before its test does."""
_ENDING_S = 10.0  # a shim that recorded the end is a moment from its own


class FreePort(Protocol):
    """Gives an agent port; it and its engine port are free, and no two calls of a test give the same."""

    def __call__(self) -> int: ...


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """Where a Docker answers, as DOCKER_HOST says it: the user's, else one that is started for the tests."""
    from tests.docker.daemon import docker_daemon  # noqa: PLC0415 - most runs have no Docker and need none

    with docker_daemon() as host:
        yield host


@pytest.fixture(scope="session")
def docker_images(docker_host: str) -> None:
    """The images of tests/docker/images.py, in that Docker."""
    from tests.docker.daemon import default_folder  # noqa: PLC0415 - likewise
    from tests.docker.images import build_images  # noqa: PLC0415 - likewise

    build_images(docker_host, default_folder().parent)


@pytest.fixture(scope="session")
def ports(request: pytest.FixtureRequest) -> range:
    """Agent ports of this test process. Each xdist worker has its own, and their engine ports with them."""
    worker: dict[str, str | int] = getattr(
        request.config, "workerinput", {"workerid": "gw0", "workercount": 1}
    )
    share = len(_PORTS) // int(worker["workercount"])
    first = _PORTS.start + share * int(str(worker["workerid"]).removeprefix("gw"))
    return range(first, first + share - ENGINE_PORT_OFFSET)


@pytest.fixture
def free_port(ports: range) -> FreePort:
    given: set[int] = set()

    def find() -> int:
        for _ in range(1000):
            port = random.choice(ports)  # noqa: S311 - no secret
            both = {port, port + ENGINE_PORT_OFFSET}
            if not both & given and all(_is_free(each) for each in both):
                given.update(both)
                return port
        raise AssertionError("no free ports")

    return find


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # The environment of whoever runs the tests is none of theirs; theirs is none of the next test's.
    outside = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_PREFIX)}
    yield
    leaked = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_PREFIX)}
    os.environ.update(outside)
    left = _processes_left(os.path.realpath(tmp_path_factory.getbasetemp()))
    assert not leaked, f"the test left environment variables behind: {leaked}"
    assert not left, f"the test left processes behind (killed now): {left}"


def kill_engines(state: Path) -> None:
    """End every engine of a state folder; their shims end with them."""
    for pids in proc.marked_by_instance(os.path.realpath(state)).values():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _processes_left(below: str) -> list[str]:
    # Engines and shims whose state folder is below `below`: of this run, not of another one on this machine.
    deadline = time.monotonic() + _ENDING_S
    while (left := _ours(below)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [f"{pid}: {mark}" for pid, mark in left.items()]


def _ours(below: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for pid in proc.all_pids():
        entries = dict(entry.partition(b"=")[::2] for entry in proc.environment(pid))
        state = os.fsdecode(entries.get(proc.STATE_VARIABLE.encode(), b""))
        if not state.startswith(f"{below}/") or pid == os.getpid():
            continue
        for variable in (proc.INSTANCE_VARIABLE, proc.SHIM_VARIABLE):
            if variable.encode() in entries:
                found[pid] = f"{variable}={os.fsdecode(entries[variable.encode()])}"
    return found


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
            sock.listen()
        except OSError:
            return False
    return True
