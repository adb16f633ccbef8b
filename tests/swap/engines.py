"""Engines in memory that answer HTTP on their real ports: what an engine does wrong is one field away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.fakes.memory_runtime import MemoryRuntime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_manager.runtimes.base import Instance, InstanceSpec
    from tests.fakes.memory_runtime import Behaviour

METRICS = 'vllm:num_requests_running{{engine="0"}} {}.0\nvllm:num_requests_waiting{{engine="0"}} 0.0\n'


@dataclass(kw_only=True)
class Manners:
    """How the engines of an agent answer, now; a test may change its mind.

    `serves_as`: under another name. `healthy`: what /health says. `completes`: False refuses every completion,
    and None dies of one. `requests`: those running; None: no metrics. `deaf_to_models`: how many requests for
    the names go unanswered first. `hangs`: completions are taken and never answered. `deaf`: nothing is answered.
    """

    serves_as: str | None = None
    healthy: bool = True
    completes: bool | None = True
    requests: int | None = 0
    deaf_to_models: int = 0
    hangs: bool = False
    deaf: bool = False


class ServingRuntime(MemoryRuntime):
    """A MemoryRuntime whose running engines listen on their engine ports.

    `fails` and `held` are keyed by what is called and for which agent, such as `("start", "dev")`: it raises
    that error, or waits for that event before it does anything.
    """

    def __init__(
        self,
        behaviours: Mapping[str, Behaviour] | None = None,
        *,
        manners: Mapping[str, Manners] | None = None,
    ) -> None:
        super().__init__(behaviours)
        self.manners = dict(manners or {})
        self.fails: dict[tuple[str, str], Exception] = {}
        self.held: dict[tuple[str, str], asyncio.Event] = {}
        self.completed: list[str] = []
        self._servers: dict[str, asyncio.Server] = {}

    async def start(self, instance_id: str) -> None:
        await super().start(instance_id)
        for instance in await self.list():
            if instance.spec.id == instance_id and await self.pids(instance_id):
                await self._listen(instance.spec)

    def exit(self, instance_id: str, code: int | None, *, out_of_host_memory: bool = False) -> None:
        super().exit(instance_id, code, out_of_host_memory=out_of_host_memory)
        if instance_id in self._servers:
            _close(self._servers.pop(instance_id))

    async def close(self) -> None:
        """End every engine."""
        for instance in await self.list():
            if await self.pids(instance.spec.id):
                self.exit(instance.spec.id, 137)

    async def running(self) -> list[str]:
        """The agents whose engines run."""
        return [each.spec.agent for each in await self.list() if await self.pids(each.spec.id)]

    async def only(self) -> Instance:
        """The one instance there is."""
        (instance,) = await self.list()
        return instance

    def started(self) -> list[str]:
        """The agents that were started, in order."""
        return [instance_id.rpartition("-")[0] for what, instance_id in self.calls if what == "start"]

    async def _called(self, what: str, instance_id: str) -> None:
        await super()._called(what, instance_id)
        key = (what, instance_id.rpartition("-")[0])
        if key in self.held:
            await self.held[key].wait()
        if key in self.fails:
            raise self.fails[key]

    async def _listen(self, spec: InstanceSpec) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                path, manners = head.split()[1].decode(), self.manners.get(spec.agent, Manners())
                if manners.deaf or (manners.hangs and path == "/v1/completions"):
                    await reader.read()  # until the other side has had enough
                status, body = self._answer(spec, path)
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
                await writer.drain()
            writer.close()

        self._servers[spec.id] = await asyncio.start_server(serve, "127.0.0.1", spec.engine_port)

    def _answer(self, spec: InstanceSpec, path: str) -> tuple[str, str]:
        manners = self.manners.get(spec.agent, Manners())
        ok, unavailable = "200 OK", ("503 Unavailable", "")
        match path:
            case "/health":
                return (ok, "") if manners.healthy else unavailable
            case "/metrics" if manners.requests is not None:
                return ok, METRICS.format(manners.requests)
            case "/v1/models" if manners.deaf_to_models:
                manners.deaf_to_models -= 1
            case "/v1/models":
                names = (manners.serves_as,) if manners.serves_as else spec.agents
                return ok, json.dumps({"data": [{"id": name} for name in names]})
            case "/v1/completions" if manners.completes:
                self.completed.append(spec.agent)
                return ok, json.dumps({"choices": [{"text": "Hi"}]})
            case "/v1/completions" if manners.completes is None:
                self.say(spec.id, "ValueError: the tokenizer has no vocabulary")
                self.exit(spec.id, 1)
                return "", ""
        return unavailable


def _close(server: asyncio.Server) -> None:
    # asyncio (3.11) loses a connection, and leaves it open, that was accepted just before its server is closed.
    loop = asyncio.get_running_loop()
    for sock in server.sockets:
        loop.remove_reader(sock.fileno())
    loop.call_soon(loop.call_soon, server.close)


def tasks() -> set[str]:
    """The names of the tasks there are, but for those in which engines of this file accept and answer."""
    serving = (ServingRuntime.__qualname__, "_accept_connection")
    names = {task.get_name(): getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()}
    return {name for name, doing in names.items() if not any(each in doing for each in serving)}
