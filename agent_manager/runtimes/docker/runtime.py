"""The docker runtime: each instance is a container. What runs is read back from labels (records.py).

A container is created from its compose document, as that lies in the state folder; `docker compose -f` on that
file makes the same one. The newest instance of an agent has the name the document says; the one it replaces is
renamed, since it stays until the new one is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from agent_manager.compose import parse, project_of, to_yaml
from agent_manager.errors import (
    AgentManagerError,
    DockerNotReady,
    EngineMissing,
    HostNotReady,
    NotRunning,
    OperationFailed,
    PortInUse,
    StateUnusable,
)
from agent_manager.runtimes.base import NEVER_STARTED, Activity, Exit, Instance, InstanceState
from agent_manager.runtimes.docker.body import creation
from agent_manager.runtimes.docker.client import ConflictError, DockerClient, GoneError
from agent_manager.runtimes.docker.endpoint import find_endpoint
from agent_manager.runtimes.docker.images import ROOM_BYTES, Tally, require_room
from agent_manager.runtimes.docker.loglines import LogLines
from agent_manager.runtimes.docker.records import (
    INSTANCE_LABEL,
    RUNTIME,
    STATE_LABEL,
    Note,
    Notes,
    aside,
    document_of,
    instance_of,
    moment,
    ports_of,
    publishing,
    spec_of,
)
from agent_manager.runtimes.ports import in_use, require_free
from agent_manager.runtimes.records import locked
from agent_manager.runtimes.threads import streaming, to_the_end
from agent_manager.state import ensure, unusable, write_atomically

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
    from datetime import datetime

    from agent_manager.runtimes.base import Fetching, InstanceSpec, LogLine
    from agent_manager.state import StateDir

_log = logging.getLogger(__name__)

_LOOK_AGAIN_S: Final = 1.0
"""An end wakes us; this is for one that was missed while Docker was being asked."""
_KILL_TIMEOUT_S: Final = 30.0


class DockerRuntime:
    """Runs instances as containers of the Docker that `environ` names: DOCKER_HOST, or a context.

    Several of these, in one or more processes, may share a state folder. `room_bytes` must be free before an image
    is fetched.
    """

    name = RUNTIME

    def __init__(
        self, state: StateDir, *, environ: Mapping[str, str] | None = None, room_bytes: int = ROOM_BYTES
    ) -> None:
        """Touches nothing; Docker is looked for when it is needed."""
        self._root = os.path.realpath(state.root)
        self._documents = state.compose
        self._notes = Notes(state.containers)
        self._environ = os.environ if environ is None else environ
        self._room_bytes = room_bytes
        self._made: DockerClient | None = None
        self._containers: dict[str, str] = {}  # by instance; a hint, the container's labels decide

    def close(self) -> None:
        """Close the connections to Docker."""
        if self._made is not None:
            self._made.close()

    async def container_engine(self) -> int:
        """Docker's major version; see Runtime."""
        version = await asyncio.to_thread(lambda: self._docker.version()["Version"])
        major = str(version).partition(".")[0]
        return int(major) if major.isdecimal() else 0

    async def provide(self, spec: InstanceSpec, *, fetch: bool, tell: Callable[[Fetching], None]) -> None:
        """Make sure of the image, the name and the ports; see Runtime."""
        image = await asyncio.to_thread(self._check, spec)
        if image is None:
            return
        if not fetch:
            raise EngineMissing(
                f"the image {image} is not here",
                hint=f"launch without --no-pull fetches it, and so does: docker pull {image}",
                where=f"engines.{spec.engine}.image",
            )
        info = await asyncio.to_thread(self._docker.info)
        require_room(image, str(info["DockerRootDir"]), self._room_bytes)
        tally = Tally(image)
        async with streaming(lambda: self._docker.pull(image)) as items:
            while (said := await items.next()) is not None:
                if (now := tally.add(said)) is not None:
                    tell(now)

    async def create(self, spec: InstanceSpec) -> None:
        """Write its compose document and create its container from that; see Runtime."""
        await to_the_end(self._create, spec)

    async def start(self, instance_id: str) -> None:
        """Start its container; see Runtime."""
        await to_the_end(self._start, instance_id)

    async def stop(self, instance_id: str, *, grace_s: float) -> Exit:
        """End it; see Runtime. SIGTERM goes to Docker's init, which hands it on; SIGKILL ends all there is."""
        instance, seen = await self._look(instance_id)
        if instance.state is InstanceState.CREATED:
            return NEVER_STARTED
        if instance.exit is not None:
            return instance.exit
        with contextlib.suppress(StateUnusable):  # a full disk is no reason to go on running
            self._notes.write(instance_id, Note(started_at=seen["State"]["StartedAt"], stop_requested=True))
        if grace_s > 0 and await self._signal(seen["Id"], "SIGTERM"):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    return replace(await self.wait(instance_id), requested=True)
        await self._signal(seen["Id"], "SIGKILL")
        try:
            async with asyncio.timeout(_KILL_TIMEOUT_S):
                return replace(await self.wait(instance_id), requested=True)
        except TimeoutError:
            named = ", ".join(map(str, sorted(await self.pids(instance_id)))) or "what is in it"
            raise OperationFailed(
                f"instance '{instance_id}' does not end: {named} survived SIGKILL for {_KILL_TIMEOUT_S:.0f} s",
                hint="a process in the kernel's hands ends with what it waits for: a disk, a GPU driver",
                where=instance_id,
            ) from None

    async def wait(self, instance_id: str) -> Exit:
        """Wait for its end; see Runtime."""
        since_s = int(time.time()) - 1
        instance, seen = await self._look(instance_id)
        if instance.state is InstanceState.CREATED:
            return NEVER_STARTED
        async with streaming(lambda: self._docker.ends(seen["Id"], since_s=since_s)) as ends:
            while instance.exit is None:
                with contextlib.suppress(TimeoutError):
                    if await asyncio.wait_for(ends.next(), _LOOK_AGAIN_S) is None:
                        await asyncio.sleep(
                            _LOOK_AGAIN_S
                        )  # Docker went, perhaps to come back with it running
                instance, _ = await self._look(instance_id)
        return instance.exit

    async def remove(self, instance_id: str) -> None:
        """Remove its container and with it the log; see Runtime."""
        await to_the_end(self._remove, instance_id)

    async def list(self) -> tuple[Instance, ...]:
        """All instances of this state folder; see Runtime. Nothing, where Docker cannot be and never was used.

        Raises DockerNotReady when Docker was used from here and does not answer now.
        """
        return await asyncio.to_thread(self._list)

    async def logs(
        self,
        instance_id: str,
        *,
        tail: int | None = None,
        since: datetime | None = None,
        follow: bool = False,
    ) -> AsyncGenerator[LogLine, None]:
        """Its output, standard output and error as they came; see Runtime. At most 30 MB are kept."""
        instance, seen = await self._look(instance_id)
        if instance.state is InstanceState.CREATED:
            return
        lines = LogLines(since=since)
        since_s = None if since is None else since.timestamp()
        async with streaming(
            lambda: self._docker.log(seen["Id"], tail=tail, since_s=since_s, follow=follow)
        ) as pieces:
            with contextlib.suppress(GoneError):  # removed since we looked, and its log with it
                while (piece := await pieces.next()) is not None:
                    for line in lines.feed(piece):
                        yield line
        for line in lines.finish():
            yield line

    async def pids(self, instance_id: str) -> frozenset[int]:
        """Its processes, Docker's init left out; see Runtime. They are those of Docker's host."""
        _, seen = await self._look(instance_id)
        try:
            processes = await asyncio.to_thread(self._docker.processes, seen["Id"])
        except (ConflictError, GoneError):  # it does not run
            return frozenset()
        init = {seen["State"]["Pid"]} if seen["HostConfig"].get("Init") else set()
        return frozenset(processes) - init

    async def activity(self, instance_id: str) -> Activity:
        """What its control group used since it started; see Runtime."""
        _, seen = await self._look(instance_id)
        try:
            usage = await asyncio.to_thread(self._docker.usage, seen["Id"])
        except GoneError:
            return Activity(cpu_seconds=0.0, disk_bytes=0)
        disk = (usage.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ()
        return Activity(
            cpu_seconds=usage["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
            disk_bytes=sum(int(each["value"]) for each in disk if each["op"].lower() in ("read", "write")),
        )

    # --- blocking ---------------------------------------------------------------------------------------------

    @property
    def _docker(self) -> DockerClient:
        if self._made is None:
            self._made = DockerClient(find_endpoint(self._environ))
        return self._made

    async def _look(self, instance_id: str) -> tuple[Instance, dict[str, Any]]:
        return await asyncio.to_thread(self._see, instance_id)

    def _see(self, instance_id: str) -> tuple[Instance, dict[str, Any]]:
        seen = self._inspect(self._containers.get(instance_id)) or self._inspect(self._find(instance_id))
        spec = spec_of(seen["Config"]["Labels"]) if seen is not None else None
        if seen is not None and spec is not None:
            self._containers[instance_id] = seen["Id"]
            return instance_of(spec, seen, self._notes.read(instance_id)), seen
        raise NotRunning(
            f"no instance '{instance_id}'",
            hint="agent-manager status shows what there is",
            where=instance_id,
        )

    def _find(self, instance_id: str) -> str | None:
        """The container of an instance of ours."""
        labels = {INSTANCE_LABEL: instance_id, STATE_LABEL: self._root}
        return next((str(each["Id"]) for each in self._docker.containers(labels)), None)

    def _inspect(self, container: str | None) -> dict[str, Any] | None:
        """All about it; None when there is none, or none any more."""
        with contextlib.suppress(GoneError):
            return self._docker.inspect(container) if container else None
        return None

    def _list(self) -> tuple[Instance, ...]:
        if not self._documents.is_dir() and not self._is_usable():
            return ()
        found: list[tuple[datetime, Instance]] = []
        for summary in self._docker.containers({STATE_LABEL: self._root}):
            spec = spec_of(summary["Labels"])
            if spec is None:
                _log.warning("skipping container %s: its labels cannot be read", summary["Id"])
                continue
            with contextlib.suppress(GoneError):  # it was removed meanwhile
                seen = self._docker.inspect(summary["Id"])
                found.append((moment(seen["Created"]), instance_of(spec, seen, self._notes.read(spec.id))))
        found.sort(key=lambda each: (each[0], each[1].spec.id))
        return tuple(instance for _, instance in found)

    def _is_usable(self) -> bool:
        try:
            self._docker.endpoint.require_usable()
        except DockerNotReady:
            return False
        return True

    async def _signal(self, container: str, signal: str) -> bool:
        """False when it does not run any more."""
        try:
            await asyncio.to_thread(self._docker.signal, container, signal)
        except (ConflictError, GoneError):
            return False
        return True

    def _check(self, spec: InstanceSpec) -> str | None:
        """Who else has its name or its ports is named; then the image, if it is not here."""
        there = self._docker.containers()
        self._require_name_ours(spec.agent, there)
        theirs = [each for each in there if not self._is_ours(each)]
        for port in ports_of(spec):
            if (others := publishing(port, theirs)) is not None:
                raise in_use(port, others)
        (service,) = (spec.document or {})["services"].values()
        image = str(service["image"]).replace("$$", "$")
        return None if self._docker.has_image(image) else image

    def _is_ours(self, summary: Mapping[str, Any]) -> bool:
        return bool((summary.get("Labels") or {}).get(STATE_LABEL) == self._root)

    def _require_name_ours(self, agent: str, there: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
        """The one of these containers that has the agent's name. Raises HostNotReady when it is somebody else's."""
        name = project_of(agent)
        before = next((each for each in there if f"/{name}" in (each.get("Names") or ())), None)
        if before is None:
            return None
        labels: dict[str, str] = before.get("Labels") or {}
        if self._is_ours(before) and spec_of(labels) is not None:
            return before
        other = labels.get(STATE_LABEL)
        whose = f"belongs to {other}" if other else "was not started by agent-manager"
        raise HostNotReady(
            f"the container {name} ({before['Image']}, {before['State']}) {whose}",
            hint=f"it is left alone: 'docker rm -f {name}' removes it, 'docker rename {name} NAME' keeps it",
            where=name,
        )

    def _create(self, spec: InstanceSpec) -> None:
        with locked(ensure(self._notes.folder)):
            there = self._docker.containers()
            if any(self._is_ours(each) and each["Labels"].get(INSTANCE_LABEL) == spec.id for each in there):
                raise OperationFailed(f"instance '{spec.id}' exists already")
            file = ensure(self._documents) / f"{spec.agent}.yaml"
            text = to_yaml(document_of(spec, self._root))
            try:
                write_atomically(file, text)
            except OSError as error:
                raise unusable(file, error) from error
            before = self._require_name_ours(spec.agent, there)
            self._notes.forget(spec.id)
            try:
                if before is not None:
                    self._docker.rename(before["Id"], aside(before))
                self._containers[spec.id] = self._docker.create(creation(parse(text), file))
            except (ConflictError, GoneError) as error:
                raise OperationFailed(f"Docker did not create {spec.id}: {error}", where=spec.id) from error

    def _start(self, instance_id: str) -> None:
        with locked(ensure(self._notes.folder)):
            instance, seen = self._see(instance_id)
            if instance.state is InstanceState.RUNNING:
                raise OperationFailed(f"instance '{instance_id}' is running already", where=instance_id)
            self._notes.forget(instance_id)
            self._take_name(instance, seen)
            try:
                for port in ports_of(instance.spec):
                    self._require_free(port)
                self._start_container(instance, seen)
            except AgentManagerError as error:
                note = Note(started_at=seen["State"]["StartedAt"], never_ran=error.message)
                with contextlib.suppress(StateUnusable):
                    self._notes.write(instance_id, note)
                raise

    def _start_container(self, instance: Instance, seen: Mapping[str, Any]) -> None:
        try:
            self._docker.start(seen["Id"])
        except PortInUse as error:
            # Taken since we looked, or by something that does not listen: Docker's own words name no one.
            port = int(str(error.where).removeprefix("port ")) if error.where else instance.spec.engine_port
            raise in_use(port, publishing(port, self._docker.containers())) from error
        except (ConflictError, GoneError) as error:
            raise OperationFailed(f"Docker did not start {instance.spec.id}: {error}") from error

    def _take_name(self, instance: Instance, seen: Mapping[str, Any]) -> None:
        """An instance that is put back has the agent's name again, where that is free."""
        name = project_of(instance.spec.agent)
        if seen["Name"] != f"/{name}":
            with contextlib.suppress(ConflictError, GoneError):
                self._docker.rename(seen["Id"], name)

    def _require_free(self, port: int) -> None:
        try:
            require_free(port)
        except PortInUse as error:
            container = publishing(port, self._docker.containers())
            raise (in_use(port, container) if container else error) from None

    def _remove(self, instance_id: str) -> None:
        with locked(ensure(self._notes.folder)):
            instance, seen = self._see(instance_id)
            running = OperationFailed(
                f"instance '{instance_id}' is running", hint="stop it first", where=instance_id
            )
            if instance.state is InstanceState.RUNNING:
                raise running
            try:
                self._docker.remove(seen["Id"])
            except ConflictError as error:
                raise running from error
            except GoneError:
                pass  # somebody was faster
            self._containers.pop(instance_id, None)
            self._notes.forget(instance_id)
