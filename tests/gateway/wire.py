"""An engine's end of the wire, byte by byte: what it was sent, and what it answers."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@dataclass
class Heard:
    """One request: its first line, its headers by lower-case name, its body."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Wire:
    """One connection to the engine; `gone` is set when the other side hung up."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def until_gone(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self.reader.read()
        self.gone.set()


@dataclass
class Engine:
    """Listens on `port`; each request it hears is answered by `talk`. `connections` counts those made."""

    port: int
    heard: list[Heard] = field(default_factory=list)
    connections: int = 0


def answer(body: bytes, *, status: str = "200 OK", headers: str = "Content-Type: application/json") -> bytes:
    """A whole answer."""
    return f"HTTP/1.1 {status}\r\n{headers}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def chunk(data: bytes) -> bytes:
    """A piece of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


@contextlib.asynccontextmanager
async def engine(talk: Callable[[Wire, Heard], Awaitable[None]]) -> AsyncIterator[Engine]:
    """An engine whose answers `talk` writes; it may hang up by closing the writer."""
    made: Engine
    talking: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.connections += 1
        talking.add(cast("asyncio.Task[None]", asyncio.current_task()))
        wire = Wire(reader, writer)
        try:
            while not writer.is_closing():
                heard = await _request(reader)
                made.heard.append(heard)
                await talk(wire, heard)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side hung up, or the test is over
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made = Engine(port=server.sockets[0].getsockname()[1])
    async with server:
        yield made
        for task in talking:
            task.cancel()
        await asyncio.gather(*talking, return_exceptions=True)


async def _request(reader: asyncio.StreamReader) -> Heard:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (each.partition(":") for each in head[1:] if each)
    }
    return Heard(head[0], headers, await reader.readexactly(int(headers.get("content-length", "0"))))
