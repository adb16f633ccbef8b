"""One client's connection: aiohttp's, with a time for heads, plain words for what is no HTTP, and a way out.

aiohttp waits for a head as long as for the next request, answers what it cannot read with the line in question, and
logs it: a key may stand there.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from agent_manager.gateway.replies import error_body, refusal
from agent_manager.gateway.tickets import RefusedError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

IDLE_S: Final = 75.0
"""How long a client's connection may idle between requests: nginx's default."""
HEAD_TIMEOUT_S: Final = 10.0
"""How long a request's head may take, from its first byte; a new connection's from its beginning."""
LARGEST_HEADER_BYTES: Final = 8 << 10
"""Of the first line, and of each header."""
HEADERS: Final = 64

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


class PageRequest(web.BaseRequest):
    """A request that a web page may have sent: `shown` are the headers that let the page read the answer."""

    shown: Mapping[str, str]

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.update(self.shown)


class Guest(web.RequestHandler):
    """One client. `host` is told when it comes and goes."""

    def __init__(self, server: web.Server, host: Host) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_S,
            access_log=None,  # type: ignore[arg-type] # aiohttp's way to say: none
            max_line_size=LARGEST_HEADER_BYTES,
            max_field_size=LARGEST_HEADER_BYTES,
            max_headers=HEADERS,
            auto_decompress=False,
        )
        self._host = host
        self._wire: asyncio.Transport | None = None
        self._head_began: float | None = None
        self._heard = False

    def leave(self) -> None:
        """Hang up when the running request is over; at once when there is none."""
        idle = self._waiter is not None and not self._waiter.done()
        self.close()
        if idle:
            self.force_close()

    def cut(self) -> None:
        """Hang up now; what answers it is cancelled."""
        if self._wire is not None:
            self._wire.abort()

    def head_came(self) -> None:
        """A head is complete, or is known to be wrong."""
        self._heard = False
        self._head_began = None

    def hurry(self) -> None:
        """Hang up if a head has taken too long."""
        if self._waiter is None or self._waiter.done() or self._wire is None:
            return  # a request runs
        if self._head_began is None or self._loop.time() - self._head_began < HEAD_TIMEOUT_S:
            return
        if self._heard:
            message = f"the headers did not come within {HEAD_TIMEOUT_S:.0f} s"
            self._wire.write(_bare(RefusedError(408, "headers_timeout", message)))
        self.force_close()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it in, or turn it away."""
        self._wire = cast("asyncio.Transport", transport)
        refused = self._host.refusal_of()
        if refused is not None:
            self._wire.write(_bare(refused))
            self._wire.close()
            self.force_close()
            return
        self._host.came(self)
        self._head_began = self._loop.time()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head or of a body. A head's time begins with its first."""
        if data and self._waiter is not None:
            self._heard = True
            if self._head_began is None:
                self._head_began = self._loop.time()
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It counts until what answers it has ended."""
        self._wire = None
        answering = self._task_handler
        super().connection_lost(exc)
        if answering is None or answering.done():
            self._host.went(self)
        else:
            answering.add_done_callback(lambda _: self._host.went(self))

    # --- aiohttp ------------------------------------------------------------------------------------------

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Send the rest of an answer. One that would follow a part of another is not begun: hanging up says more."""
        if request.writer.output_size and not resp.prepared:
            raise ConnectionResetError("part of another answer has been sent")
        return super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it repeats what was sent
    ) -> web.StreamResponse:
        """What is no HTTP, or an error of ours. Neither the answer nor the log says what was sent."""
        if status == HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(exc, ConnectionError):
            self.log_exception(exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("part of an answer has been sent")
        if isinstance(exc, LineTooLong):
            text = f"a line of the headers is longer than {LARGEST_HEADER_BYTES} bytes"
            error = RefusedError(431, "headers_too_large", text)
        elif status < HTTPStatus.INTERNAL_SERVER_ERROR:
            error = RefusedError(status, "invalid_http", "this is not HTTP as it should be")
        else:
            error = RefusedError(status, "internal_error", "the gateway failed; its log says where")
        response = refusal(error)
        response.force_close()
        return response

    def log_exception(self, *_: object, exc_info: BaseException | None = None, **__: object) -> None:
        """Log what kind of error of ours it was and where, not its text: that may be a client's."""
        trace = exc_info.__traceback__ if exc_info is not None else None
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
        _log.error("a request failed: %s%s", type(exc_info).__name__, where)


def _bare(error: RefusedError) -> bytes:
    """An answer to a client that is not listened to."""
    body = error_body(error)
    retry = f"Retry-After: {error.retry_after_s}\r\n" if error.retry_after_s is not None else ""
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nContent-Type: application/json\r\n"
        f"{retry}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
