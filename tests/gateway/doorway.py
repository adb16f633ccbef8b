"""The real doors and front between raw sockets and an engine that remembers what it heard."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_manager.catalog.agents import Agent, Model
from agent_manager.gateway.counts import Counts
from agent_manager.gateway.doors import Doors
from agent_manager.gateway.front import Front
from agent_manager.gateway.guard import Guard
from agent_manager.gateway.routing import Names

from .test_front import Door, echo
from .wire import Engine, Heard, Wire, engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

LIMIT_S = 10.0
BODY = b'{"model": "dev", "prompt": "hello"}'
HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"


def request(
    target: bytes = b"/v1/completions",
    *,
    method: bytes = b"POST",
    version: bytes = b"HTTP/1.1",
    headers: bytes = b"",
    body: bytes = BODY,
) -> bytes:
    """One request with its length; `headers` are more lines."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"%b %b %b\r\n" % (method, target, version) + HOST + JSON + headers + length + b"\r\n" + body


GOODBYE = request(b"/health", method=b"GET", headers=b"Connection: close\r\n", body=b"")
FAREWELL = b'{"status": "ok"}'


@dataclass
class Doorway:
    """The common port, the engine behind it, and the doors themselves."""

    port: int
    engine: Engine
    doors: Doors
    keeper: Door

    async def connect(self) -> Raw:
        return Raw(*await asyncio.open_connection("127.0.0.1", self.port))

    async def say(self, data: bytes, *, goodbye: bytes = GOODBYE) -> list[tuple[int, bytes]]:
        """Send bytes, then a goodbye, and return the answers to them: status, and what follows it on the wire."""
        raw = await self.connect()
        try:
            await raw.send(data + goodbye)
            said = answers(await raw.rest())
        finally:
            raw.writer.close()
        return said[:-1] if said and said[-1][1].endswith(FAREWELL) else said


@dataclass
class Raw:
    """One connection of a client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def rest(self) -> bytes:
        """All that comes until the other side hangs up."""
        said = b""
        async with asyncio.timeout(LIMIT_S):
            with contextlib.suppress(ConnectionError):
                while piece := await self.reader.read(1 << 16):
                    said += piece
        return said


def answers(said: bytes) -> list[tuple[int, bytes]]:
    parts = re.split(rb"HTTP/\d\.\d (\d{3}) ", said)
    return [(int(status), text) for status, text in zip(parts[1::2], parts[2::2], strict=True)]


@contextlib.asynccontextmanager
async def doorway(
    port: int, *, guard: Guard | None = None, talk: Callable[[Wire, Heard], Awaitable[None]] = echo
) -> AsyncIterator[Doorway]:
    """Doors on `port`, for agents dev and po."""
    guard = guard or Guard()
    model = Model(name="small", repo="Qwen/Small")
    agents = [Agent(name=name, model=model, port=1, context=1, sequences=1) for name in ("dev", "po")]
    async with engine(talk) as served:
        keeper = Door(served.port)
        front = Front(
            names=Names(agents, {}),
            manners={},
            doorkeeper=keeper,
            guard=guard,
            counts=Counts(),
            include_usage=False,
        )
        try:
            async with Doors("127.0.0.1", front) as doors:
                await doors.turn_to({port: None})
                yield Doorway(port, served, doors, keeper)
        finally:
            front.close()
