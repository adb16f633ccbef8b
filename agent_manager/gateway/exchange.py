"""A request and its answer, on a client's connection: at once, or piece by piece as an engine says it."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_manager.gateway.messages import Header, Request

_STATUS_LINES: Final = {
    each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus
}
_NO_BODY: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_END: Final = b"0\r\n\r\n"


class Connection(Protocol):
    """What an exchange needs of its client's connection."""

    @property
    def ending(self) -> bool:
        """Whether this exchange is its last, as far as it knows."""
        ...

    def send(self, data: bytes) -> None:
        """Send it when the client takes it. Never blocks; nobody hears of a client that is gone."""
        ...

    async def drained(self) -> None:
        """Wait until the client has taken most of what was sent."""
        ...


class Exchange:
    """An answer to be given: by `answer`, or by `begin`, `write` as often as needed, and `end`.

    `began`: part of it has been sent. `last`: no other one follows on this connection.
    """

    __slots__ = ("_chunked", "_connection", "_more", "_old", "_silent", "began", "ended", "last")

    def __init__(
        self, connection: Connection, request: Request | None, *, last: bool, more: tuple[Header, ...] = ()
    ) -> None:
        """`request` None: what came is none. `more` are headers that any answer to it has."""
        self.last = last
        self.began = False
        self.ended = False
        self._connection = connection
        self._more = more
        self._chunked = False
        self._old = request is not None and request.old
        self._silent = request is not None and request.method == "HEAD"

    def answer(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """Send the whole answer. `headers` without those of the body's length and of the connection."""
        if status in _NO_BODY:
            head = self._head(status, headers, b"")
        else:
            head = self._head(status, headers, b"Content-Length: %d\r\n" % len(body))
        self.began = self.ended = True
        self._connection.send(head if self._silent or not body else head + body)

    def begin(self, status: int, headers: Iterable[Header], length: int | None = None) -> None:
        """Send the head of an answer whose body, of `length` bytes if that is known, comes piece by piece."""
        if length is not None:
            framing = b"Content-Length: %d\r\n" % length
        elif self._old:
            self.last, framing = True, b""  # it ends with the connection
        else:
            self._chunked, framing = True, b"Transfer-Encoding: chunked\r\n"
        head = self._head(status, headers, framing)
        self.began = True
        self._connection.send(head)

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body that is not empty; waits while its client reads more slowly than that."""
        if not self._silent:
            self._connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
            await self._connection.drained()

    def end(self) -> None:
        """The body has been written."""
        self.ended = True
        if self._chunked and not self._silent:
            self._connection.send(_END)

    def _head(self, status: int, headers: Iterable[Header], framing: bytes) -> bytes:
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        dated = False
        for name, value in (*headers, *self._more):
            lines.append(b"%b: %b\r\n" % (name, value))
            dated = dated or name == b"date"
        if not dated:
            lines.append(b"Date: %b\r\n" % _date(int(time.time())))
        lines.append(framing)
        if self.last or self._connection.ending:
            self.last = True
            lines.append(b"Connection: close\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)


@lru_cache(maxsize=1)
def _date(now_s: int) -> bytes:
    """A time as HTTP writes it; made once a second."""
    return formatdate(now_s, usegmt=True).encode()
