"""The way to one engine: HTTP/1.1 over loopback, connections kept, answers passed on piece by piece.

A leg of its own over httptools, the parser that uvicorn uses: half of what a general client costs per request is
spent on what a proxy must not do anyway (redirects, cookies, decompression, URL handling). Bodies are not looked
into and not decoded but for the transfer encoding.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final, Self

import httptools

from agent_manager.engines.base import LOOPBACK
from agent_manager.gateway.messages import FRAMING
from agent_manager.gateway.replies import EVENT_STREAM

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_manager.gateway.messages import Header

CONNECT_TIMEOUT_S: Final = 5.0
PIECES_HELD: Final = 64
"""How many pieces of an answer are held for a client that reads slowly, before the engine has to wait."""
IDLE_CONNECTIONS: Final = 64
LARGEST_HEAD_BYTES: Final = 64 << 10


class UpstreamGoneError(Exception):
    """The engine does not answer, or broke off. `began`: part of an answer had come, so it cannot be asked again."""

    def __init__(self, reason: str, *, began: bool) -> None:
        super().__init__(reason)
        self.began = began


class Upstream:
    """Connections to the engine on 127.0.0.1:`port`, shared by all requests to it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: deque[_Connection] = deque(maxlen=IDLE_CONNECTIONS)

    async def send(self, method: bytes, target: bytes, headers: Iterable[Header], body: bytes) -> Answer:
        """Send a request; returns when the head of its answer is there, however long that takes.

        `headers` without Host, Content-Length and what concerns the connection. Cancelling hangs up, which is how
        an engine learns that nobody waits any more. Raises UpstreamGoneError.
        """
        head = _head(method, target, self._port, headers, len(body))
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                try:
                    return await self._exchange(connection, head, body)
                except UpstreamGoneError as gone:
                    # An engine may close a connection that idles at the moment it is used again.
                    if gone.began or not connection.unanswered:
                        raise
        return await self._exchange(await self._connect(), head, body)

    def close(self) -> None:
        """Hang up what idles; what is under way goes on."""
        while self._idle:
            self._idle.pop().close()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(_Connection, LOOPBACK, self._port)
        except OSError as error:  # TimeoutError is one
            raise UpstreamGoneError(f"nobody answers on port {self._port}", began=False) from error
        return connection

    async def _exchange(self, connection: _Connection, head: bytes, body: bytes) -> Answer:
        answer = Answer(connection, self._idle)
        try:
            await connection.exchange(head, body)
        except BaseException:
            connection.close()
            raise
        return answer


class Answer:
    """An engine's answer: its head is here, its body comes. Use as a context manager; leaving it early hangs up."""

    def __init__(self, connection: _Connection, idle: deque[_Connection]) -> None:
        self._connection = connection
        self._idle = idle

    @property
    def status(self) -> int:
        """The status code."""
        return self._connection.status

    @property
    def headers(self) -> list[Header]:
        """Its headers, names in lower case."""
        return self._connection.headers

    @property
    def is_event_stream(self) -> bool:
        """Whether it is made of server-sent events."""
        return any(name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in self.headers)

    @property
    def complete(self) -> bool:
        """Whether all of it has come; `piece` returns at once then."""
        return self._connection.complete

    async def piece(self) -> bytes:
        """What came since the last piece, as one; b"" at its end. Raises UpstreamGoneError when it breaks off."""
        return await self._connection.piece()

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Keep the connection where all was read, else hang up."""
        if self._connection.reusable:
            self._idle.append(self._connection)
        else:
            self._connection.close()


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time. The parser calls the `on_` methods."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._lost: Exception | None = None
        self._paused = False
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._busy = False
        self._start()

    def _start(self) -> None:
        self._head_bytes = 0
        self.headers: list[Header] = []
        self.status = 0
        self.complete = False
        self.unanswered = True
        self._kept = False

    @property
    def usable(self) -> bool:
        return self._lost is None and self._transport is not None and not self._transport.is_closing()

    @property
    def reusable(self) -> bool:
        return self.complete and self.usable and not self._pieces and self._kept

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def exchange(self, head: bytes, body: bytes) -> None:
        if self._transport is None:
            raise AssertionError("not connected")
        self._start()
        self._busy = True
        self._transport.writelines((head, body)) if body else self._transport.write(head)
        while not self.status and not self._lost:
            await self._something()
        if not self.status:
            raise UpstreamGoneError(f"the engine hung up: {self._lost}", began=False)

    async def piece(self) -> bytes:
        while not self._pieces and not self.complete and not self._lost:
            await self._something()
        if self._pieces:
            said = b"".join(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
            self._pieces.clear()
            if self._paused and self.usable and self._transport is not None:
                self._paused = False
                self._transport.resume_reading()
            return said
        if not self.complete:
            raise UpstreamGoneError(f"the engine broke off: {self._lost}", began=True)
        return b""

    async def _something(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- asyncio.Protocol ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            self.close()  # nobody asked; it must not be taken for the next answer
            return
        self.unanswered = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lost = error
            self.close()
        else:
            self._head_bytes += 0 if self.status else len(data)
            if self._head_bytes > LARGEST_HEAD_BYTES:
                self._lost = ValueError("its headers are too long")
                self.close()
        if len(self._pieces) > PIECES_HELD and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.complete and self.status and not exc and not self._framed():
            # An answer without a length ends with its connection; any other has been cut short.
            with contextlib.suppress(httptools.HttpParserError):
                self._parser.feed_data(b"")
        self._lost = self._lost or exc or ConnectionError("connection closed")
        self._wake()

    def _framed(self) -> bool:
        return any(name in FRAMING for name, _ in self.headers)

    # --- httptools ----------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # behind the body they are trailers
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self.complete:
            self.close()  # two answers to one request
        elif status >= 200:  # noqa: PLR2004 - HTTP's first final answer; those below come before it
            self.status = status
        else:
            self.headers = []

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self.status and not self.complete:
            self.complete = True
            self._busy = False
            self._kept = self._parser.should_keep_alive()  # it forgets with the next byte


def _head(method: bytes, target: bytes, port: int, headers: Iterable[Header], length: int) -> bytes:
    lines = [b"%b %b HTTP/1.1\r\nHost: %b:%d\r\n" % (method, target, LOOPBACK.encode(), port)]
    lines += [b"%b: %b\r\n" % header for header in headers]
    if length or method == b"POST":
        lines.append(b"Content-Length: %d\r\n" % length)
    lines.append(b"\r\n")
    return b"".join(lines)
