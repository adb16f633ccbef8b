"""One client's connection: requests in, over httptools, and their answers out, one after another.

A leg of our own, as to the engines: a general server spends on each request twice what all of ours takes. The
parser is llhttp, as in Node. Added here is what keeps a client from costing more than it should: a time for each
part of a request, bounds on what is taken in, and that it hears why before it is hung up on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from enum import Enum, auto
from pathlib import Path
from typing import Final, Protocol, cast

import httptools

from agent_manager.gateway import messages
from agent_manager.gateway.exchange import Exchange
from agent_manager.gateway.messages import (
    FRAMING,
    Header,
    Request,
    body_too_large,
    head_too_large,
    understood,
)
from agent_manager.gateway.replies import refuse
from agent_manager.gateway.tickets import RefusedError

IDLE_S: Final = 75.0
"""How long a client's connection may idle between requests: nginx's default."""
HEAD_TIMEOUT_S: Final = 10.0
"""How long a request's head may take, from its first byte; a new connection's from its beginning."""
BODY_TIMEOUT_S: Final = 60.0
"""How long a request with a body may take, from its first byte."""
LINGER_S: Final = 5.0
"""How long a client that was refused may go on sending: hung up on at once, it might lose the answer."""

_log = logging.getLogger(__name__)


class Host(Protocol):
    """Whose guest a connection is."""

    def refusal_of(self) -> RefusedError | None:
        """Why nobody more is taken now, if so."""
        ...

    def came(self, guest: Guest) -> None:
        """It is there."""
        ...

    def went(self, guest: Guest) -> None:
        """It hung up, and what answered it has ended."""
        ...

    def admit(self, request: Request) -> None:
        """Look at a request whose body has not been read. Raises RefusedError, and the body is not."""
        ...

    def shown_to(self, request: Request) -> tuple[Header, ...]:
        """Headers that every answer to this request has."""
        ...

    async def answer(self, request: Request, exchange: Exchange) -> None:
        """Answer it to its end. May raise RefusedError as long as nothing was sent."""
        ...


class _Phase(Enum):
    """What is expected of the client."""

    HEAD = auto()
    BODY = auto()
    NOTHING = auto()
    """What it still sends is not looked at."""


class Guest(asyncio.Protocol):
    """One client. `host` is told when it comes and goes."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpRequestParser | None = None
        self._phase = _Phase.HEAD
        self._since_s = self._loop.time()
        self._unmoved_bytes = 0
        self._moved = False
        self._served = False
        self._upgrades = False
        self._target = b""
        self._raw: list[Header] = []
        self._request: Request | None = None
        self._body: bytes | bytearray = b""
        self._queue: deque[tuple[Request | RefusedError, Exchange]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._leaving = False
        self._refused = False
        self._writable: asyncio.Future[None] | None = None

    # --- what the host does -------------------------------------------------------------------------------

    def leave(self) -> None:
        """Hang up when what was asked is answered; at once when nothing was."""
        self._leaving = True
        if self._task is None and self._phase is not _Phase.BODY:
            self._hang_up()

    def cut(self) -> None:
        """Hang up now; what answers it is cancelled."""
        if self._transport is not None:
            self._transport.abort()

    def hurry(self) -> None:
        """Hang up if it has taken too long for what is expected of it."""
        if self._task is not None:
            return
        waited_s = self._loop.time() - self._since_s
        if self._phase is _Phase.NOTHING:
            # Who does not read its answer is the kernel's to cut off.
            if waited_s >= LINGER_S and self._transport and not self._transport.get_write_buffer_size():
                self.cut()
        elif self._phase is _Phase.BODY:
            if waited_s >= BODY_TIMEOUT_S:
                text = f"the body did not come within {BODY_TIMEOUT_S:.0f} s"
                self._refuse(RefusedError(408, "body_timeout", text), self._request)
        elif self._unmoved_bytes:
            if waited_s >= HEAD_TIMEOUT_S:
                text = f"the headers did not come within {HEAD_TIMEOUT_S:.0f} s"
                self._refuse(RefusedError(408, "headers_timeout", text))
        elif waited_s >= (IDLE_S if self._served else HEAD_TIMEOUT_S):
            self._hang_up()

    # --- what an exchange does ----------------------------------------------------------------------------

    @property
    def ending(self) -> bool:
        """Whether the exchange that is answered now is the last; see Connection."""
        return self._leaving and not self._queue

    def send(self, data: bytes) -> None:
        """Send it; see Connection."""
        if self._transport is not None:
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the client has taken most; see Connection."""
        if self._writable is not None:
            await self._writable

    # --- asyncio.Protocol ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it in, or turn it away."""
        self._transport = cast("asyncio.Transport", transport)
        refused = self._host.refusal_of()
        if refused is not None:
            refuse(Exchange(self, None, last=True), refused)
            self._transport.close()
            return
        self._parser = httptools.HttpRequestParser(self)
        self._host.came(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head or of a body, or of several of them."""
        if self._phase is _Phase.NOTHING or self._parser is None:
            return
        if self._phase is _Phase.HEAD and not self._unmoved_bytes:
            self._since_s = self._loop.time()
        self._moved = False
        try:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            self._refuse(_failed(error.__context__ or error))
        except httptools.HttpParserError:
            self._refuse(RefusedError(400, "invalid_http", "this is not HTTP as it should be"))
        self._unmoved_bytes = 0 if self._moved else self._unmoved_bytes + len(data)
        if self._unmoved_bytes > messages.LARGEST_HEAD_BYTES:
            self._refuse(head_too_large())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """It counts until what answers it has ended."""
        self._transport = self._parser = None
        self._phase = _Phase.NOTHING
        self._queue.clear()
        self.resume_writing()
        if self._task is None:
            self._host.went(self)
        else:
            self._task.add_done_callback(lambda _: self._host.went(self))
            self._task.cancel()

    def pause_writing(self) -> None:
        """Its client reads slowly."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """It has caught up."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- httptools ----------------------------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer behind a body."""
        if self._phase is _Phase.HEAD:
            self._raw.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is there; its body may be wanted."""
        parser = self._parser
        if self._phase is not _Phase.HEAD or parser is None:
            return
        self._moved = True
        request: Request | None = None
        try:
            version = parser.get_http_version()
            request = understood(parser.get_method().decode("ascii"), self._target, version, self._raw)
            self._host.admit(request)
        except RefusedError as error:
            self._refuse(error, request)
            return
        finally:
            self._target, self._raw = b"", []
        self._request, self._phase = request, _Phase.BODY
        self._upgrades = parser.should_upgrade()
        if "expect" in request.headers and request.headers["expect"].lower() == "100-continue":
            self._go_on(request)

    def _go_on(self, request: Request) -> None:
        """Its client waits for this before it sends the body; not for long, so it can be left out."""
        if self._task is None and not request.old:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, piece: bytes) -> None:
        """A part of the body."""
        if self._phase is not _Phase.BODY:
            return
        self._moved = True
        if not self._body:
            self._body = piece
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += piece
        if len(self._body) > messages.LARGEST_BODY_BYTES:
            self._refuse(body_too_large(), self._request)

    def on_message_complete(self) -> None:
        """All of a request is there."""
        request, parser = self._request, self._parser
        if self._phase is not _Phase.BODY or request is None or parser is None or self._upgrades:
            return
        self._moved = True
        request.body, self._body, self._request = bytes(self._body), b"", None
        last = request.old or not parser.should_keep_alive()
        self._phase = _Phase.NOTHING if last else _Phase.HEAD
        self._enqueue(request, Exchange(self, request, last=last, more=self._host.shown_to(request)))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Nobody gets another protocol here: the request is answered as if it had not asked, and is the last.

        The parser hands back what follows such a head, the body too; another one reads that.
        """
        if self._request is None:
            return
        lines = b"".join(b"%b: %b\r\n" % header for header in self._request.raw if header[0] in FRAMING)
        self._upgrades = False
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(b"POST / HTTP/1.1\r\nConnection: close\r\n" + lines + b"\r\n" + rest)

    # --- one after another --------------------------------------------------------------------------------

    def _refuse(self, error: RefusedError, request: Request | None = None) -> None:
        """Answer with that after what was asked before, and read no more."""
        if self._phase is not _Phase.NOTHING:
            self._phase, self._request, self._body, self._refused = _Phase.NOTHING, None, b"", True
            more = self._host.shown_to(request) if request is not None else ()
            self._enqueue(error, Exchange(self, request, last=True, more=more))

    def _enqueue(self, asked: Request | RefusedError, exchange: Exchange) -> None:
        self._queue.append((asked, exchange))
        if self._task is None:
            self._task = self._loop.create_task(self._answer_all())
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()  # who sends the next before the answer can wait for it

    async def _answer_all(self) -> None:
        last = False
        while self._queue and not last:
            asked, exchange = self._queue.popleft()
            await self._answer(asked, exchange)
            last = exchange.last
        self._task = None
        self._served, self._since_s = True, self._loop.time()
        if self._transport is None or self._transport.is_closing():
            return
        if last or self._leaving:
            self._hang_up()
        else:
            self._transport.resume_reading()

    async def _answer(self, asked: Request | RefusedError, exchange: Exchange) -> None:
        if isinstance(asked, RefusedError):
            refuse(exchange, asked)
            return
        try:
            await self._host.answer(asked, exchange)
        except RefusedError as error:
            refuse(exchange, error)
        except Exception as error:  # noqa: BLE001 - the top of a task
            exchange.last = True
            refuse(exchange, _failed(error))
        if not exchange.ended:
            self.cut()  # what was sent is not all, and must not look so

    def _hang_up(self) -> None:
        """No more answers. A client that was refused in the middle of what it sends gets the time to read why."""
        if self._transport is None:
            return
        if self._refused and not self._leaving:
            self._transport.write_eof()
            self._transport.resume_reading()
        else:
            self._transport.close()


def _failed(error: BaseException) -> RefusedError:
    """An error of ours. The log says what kind it was and where, not its text: that may be a client's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    _log.error("a request failed: %s%s", type(error).__name__, where)
    return RefusedError(500, "internal_error", "the gateway failed; its log says where")
