"""The same engines for every runtime: as Python scripts for real ones, as behaviours for the one in memory."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from agent_manager.catalog.agents import ENGINE_PORT_OFFSET
from agent_manager.compose import PORT, project_of
from agent_manager.runtimes.base import InstanceSpec
from agent_manager.runtimes.docker.runtime import DockerRuntime
from agent_manager.runtimes.process import ProcessRuntime
from tests.docker.images import BASE, PYTHON
from tests.fakes.memory_runtime import Behaviour, MemoryRuntime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_manager.runtimes.base import Runtime
    from agent_manager.state import StateDir
    from tests.conftest import FreePort

READY = "print('ready', flush=True)\n"
SLEEP = "import time\nwhile True: time.sleep(60)\n"
SCRIPTS = {
    "serves": READY + SLEEP,
    "polite": (
        "import signal, sys\n"
        "def bye(*_):\n    print('bye', flush=True)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, bye)\n" + READY + SLEEP
    ),
    "stubborn": "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + SLEEP,
    "talks": "for n in range(10): print('line', n, flush=True)\n" + SLEEP,
    "fails": "import sys\nprint('one')\nprint('two', flush=True)\nsys.exit(3)\n",
    "kills-itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
}
BEHAVIOURS = {
    "serves": Behaviour(lines=("ready",)),
    "polite": Behaviour(lines=("ready",), on_sigterm=0, farewell=("bye",)),
    "stubborn": Behaviour(lines=("ready",), on_sigterm=None),
    "talks": Behaviour(lines=tuple(f"line {n}" for n in range(10))),
    "fails": Behaviour(lines=("one", "two"), exits=3),
    "kills-itself": Behaviour(exits=137),
    "missing": Behaviour(missing=True),
}
MISSING = "no-such-engine-program"


def argv(script: str) -> tuple[str, ...]:
    """The command line of a small engine. Nothing is imported that it does not ask for: it starts fast."""
    return (sys.executable, "-I", "-S", "-c", script)


@contextlib.contextmanager
def listening(port: int) -> Iterator[str]:
    """This very process listens on a port; gives how it is named."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", port))
        sock.listen()
        yield f"(pid {os.getpid()})"


class Kit(Protocol):
    """A runtime and the world around it."""

    runtime: Runtime

    def spec(self, kind: str, *, number: int = 0, port: int | None = None) -> InstanceSpec:
        """A new instance of an engine of this kind, on a free agent port unless one is given."""
        ...

    def occupy(self, port: int) -> contextlib.AbstractContextManager[str]:
        """Let somebody else listen on `port`; gives who."""
        ...


class _Specs:
    def __init__(self, free_port: FreePort) -> None:
        self._free_port = free_port

    def spec(self, kind: str, *, number: int = 0, port: int | None = None) -> InstanceSpec:
        agent_port = port or self._free_port()
        return InstanceSpec(
            id=f"{kind}-{number:08x}",
            agent=kind,
            engine="simulated",
            model="tiny",
            card="SIM-0",
            claim_bytes=1 << 30,
            argv=(MISSING,) if kind == "missing" else argv(SCRIPTS[kind]),
            env={"GREETING": "hello"},
            engine_port=agent_port + ENGINE_PORT_OFFSET,
            agent_port=agent_port,
        )


class ProcessKit(_Specs):
    """Real processes, real ports."""

    def __init__(self, state: StateDir, free_port: FreePort) -> None:
        super().__init__(free_port)
        self.runtime: Runtime = ProcessRuntime(state)

    @contextlib.contextmanager
    def occupy(self, port: int) -> Iterator[str]:
        with listening(port) as holder:
            yield holder


class DockerKit(_Specs):
    """Real containers: the engines run in an image that has Python and nothing else."""

    def __init__(self, state: StateDir, free_port: FreePort, host: str) -> None:
        super().__init__(free_port)
        self._mark = secrets.token_hex(3)
        self.docker = DockerRuntime(state, environ={"DOCKER_HOST": host})
        self.runtime: Runtime = self.docker

    def spec(self, kind: str, *, number: int = 0, port: int | None = None) -> InstanceSpec:
        bare = super().spec(kind, number=number, port=port)
        # A container is named after its agent, and other tests use this Docker too.
        agent = f"{kind}-{self._mark}"
        bare = replace(bare, agent=agent, id=f"{agent}-{number:08x}")
        command = bare.argv if kind == "missing" else (PYTHON, *bare.argv[1:])
        service = {
            "container_name": project_of(bare.agent),
            "image": BASE,
            "command": [word.replace("$", "$$") for word in command],
            "environment": dict(bare.env),
            "ports": [f"127.0.0.1:{port}:{PORT}" for port in (bare.engine_port, bare.agent_port)],
            # Docker's init starts first, and says itself that there is no such program: too late for `start`.
            "init": kind != "missing",
            "network_mode": "bridge",
            "restart": "no",
        }
        document = {"name": project_of(bare.agent), "services": {bare.agent: service}}
        return replace(bare, argv=command, document=document)

    @contextlib.contextmanager
    def occupy(self, port: int) -> Iterator[str]:
        with listening(port) as holder:
            yield holder


class MemoryKit(_Specs):
    """Nothing real."""

    def __init__(self, free_port: FreePort) -> None:
        super().__init__(free_port)
        self.memory = MemoryRuntime(BEHAVIOURS)
        self.runtime: Runtime = self.memory

    @contextlib.contextmanager
    def occupy(self, port: int) -> Iterator[str]:
        self.memory.occupied[port] = "somebody (pid 7)"
        yield "(pid 7)"
        del self.memory.occupied[port]
