"""The Runtime protocol: where engines run, as the swap controller sees it.

Request (`InstanceSpec`), thing (`Instance`), state (`InstanceState`) and outcome (`Exit`) are separate types.
A runtime is the store: `list` reads back what is there, nothing is remembered elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping  # noqa: TC003 - msgspec reads the types of what it decodes
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from agent_manager.json_text import to_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from datetime import datetime


class InstanceSpec(Struct, frozen=True, kw_only=True):
    """All it takes to start an engine, and to start the same one again.

    `id` is `<agent>-<8 hex digits>`. `shared_with` are agents that it serves beside `agent`, under the gateway.
    `env` is added to the little that a runtime passes on by itself.
    The engine listens on 127.0.0.1:`engine_port`; the runtime publishes it on 127.0.0.1:`agent_port` as well,
    unless that is None (a gateway listens there). `claim_bytes` is the memory of the card it will take.
    `document` is the compose document of an engine that runs in a container, None for a process.
    """

    id: str
    agent: str
    engine: str
    shared_with: tuple[str, ...] = ()
    model: str
    card: str
    claim_bytes: int
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    engine_port: int
    agent_port: int | None
    document: Mapping[str, Any] | None = None

    @property
    def agents(self) -> tuple[str, ...]:
        """All agents that it serves."""
        return (self.agent, *self.shared_with)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything but the id: two specs with one fingerprint run the same engine."""
        return hashlib.sha256(to_json(replace(self, id=""), in_order=True).encode()).hexdigest()


class InstanceState(StrEnum):
    """What a runtime knows of an instance; whether it answers requests is not its business."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


class Exit(Struct, frozen=True, kw_only=True):
    """How an instance ended.

    `code` is None when nobody saw it (its shim was killed, the machine rebooted); killed by a signal, `code`
    is 128 + the signal. `requested` is True when `stop` had been called. `reason` is set when the engine never
    ran (port taken, program missing) or when its end was noticed late.
    """

    code: int | None
    requested: bool = False
    out_of_host_memory: bool = False
    reason: str | None = None


NEVER_STARTED = Exit(code=None, reason="it was never started")
"""What stopping or waiting for an instance gives that is CREATED."""


class Instance(Struct, frozen=True, kw_only=True):
    """One engine under a runtime. `exit` is set if and only if `state` is EXITED."""

    spec: InstanceSpec
    runtime: str
    state: InstanceState
    started_at: datetime | None = None
    exit: Exit | None = None


class LogLine(Struct, frozen=True, kw_only=True):
    """A line of an engine's output, without its newline, and when it was written (UTC)."""

    at: datetime
    text: str


class Activity(Struct, frozen=True, kw_only=True):
    """What an instance's processes have used so far; it grows while a load makes progress."""

    cpu_seconds: float
    disk_bytes: int


class Fetching(Struct, frozen=True, kw_only=True):
    """How far the fetching of what an engine runs from (`subject`, an image) is, as far as its size is known.

    `message` is set when something is worth a line of its own, such as a layer that is here.
    """

    subject: str
    done_bytes: int
    total_bytes: int
    message: str | None = None


class Runtime(Protocol):
    """Runs instances. Raises NotRunning for an id it does not have, StateUnusable or HostNotReady for its host.

    Cancelling an awaited call leaves the instance as it is; the next `list` tells how that is.
    """

    name: str

    async def container_engine(self) -> int | None:
        """The major version of what runs containers, such as 28; None where instances are processes.

        Raises HostNotReady when it cannot be reached.
        """
        ...

    async def provide(self, spec: InstanceSpec, *, fetch: bool, tell: Callable[[Fetching], None]) -> None:
        """Make sure that what `spec` runs from is here; disturbs nothing that runs, may take as long as a download.

        With `fetch` what is missing is fetched, and `tell` hears of it, in this thread. Raises EngineMissing for
        what is not here and is not or cannot be fetched, PortInUse or HostNotReady for what would not let it start.
        """
        ...

    async def create(self, spec: InstanceSpec) -> None:
        """Record an instance without starting it. Raises OperationFailed when the id exists."""
        ...

    async def start(self, instance_id: str) -> None:
        """Start it, or start it again after it exited (its log goes on). Returns once it was spawned.

        Raises EngineMissing (no such program) or PortInUse (naming who) before anything runs; the instance
        is then EXITED with the reason. Raises OperationFailed when it is already running.
        """
        ...

    async def stop(self, instance_id: str, *, grace_s: float) -> Exit:
        """SIGTERM, then after `grace_s` SIGKILL, to all it consists of; 0 kills at once.

        Returns when no process of it is left. Stopping what exited already returns how it ended; what was never
        started stays CREATED, and NEVER_STARTED is returned. Raises OperationFailed, naming them, when killed
        processes do not end.
        """
        ...

    async def wait(self, instance_id: str) -> Exit:
        """Wait until it has ended, workers included. NEVER_STARTED at once for what was never started."""
        ...

    async def remove(self, instance_id: str) -> None:
        """Forget an instance and its log. Raises OperationFailed while it runs."""
        ...

    async def list(self) -> tuple[Instance, ...]:
        """All instances, oldest first. Read-only: it repairs nothing and removes nothing."""
        ...

    def logs(
        self,
        instance_id: str,
        *,
        tail: int | None = None,
        since: datetime | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[LogLine, None]:
        """The engine's output, oldest first; with `follow` until the instance has ended.

        The last `tail` lines of what there is, those not older than `since`. One that has not been started has
        no output and does not wait for any. Close it (`contextlib.aclosing`) when leaving it early. NotRunning
        is raised by the first step.
        """
        ...

    async def pids(self, instance_id: str) -> frozenset[int]:
        """The processes it consists of, on this host."""
        ...

    async def activity(self, instance_id: str) -> Activity:
        """CPU time and disk traffic of all its processes so far."""
        ...
