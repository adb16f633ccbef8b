"""The gateway's ports: listening, what a client may cost, and closing in order.

aiohttp's parser stands at each door. Added here is what keeps one client from harming the others: bounds on bodies
and connections, and on how long an answer waits to be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
from typing import TYPE_CHECKING, Any, Final, Self

from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11

from agent_manager.errors import HostNotReady
from agent_manager.gateway.guest import HEAD_TIMEOUT_S, Guest, PageRequest
from agent_manager.gateway.replies import refusal
from agent_manager.gateway.tickets import RefusedError
from agent_manager.runtimes.ports import in_use

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http import RawRequestMessage
    from aiohttp.streams import StreamReader

    from agent_manager.gateway.guard import Guard

    Answerer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

STALLED_S: Final = 300.0
"""How long a client may read nothing of its answer while more of it waits."""
CONNECTIONS: Final = 2000
"""How many clients one door takes at once, where the limit on open files allows it."""
LARGEST_BODY_BYTES: Final = 64 << 20
"""A conversation with pictures in it."""
_VERSIONS: Final = (HttpVersion11, HttpVersion10)
OPEN_FILES: Final = 65_536
"""What the soft limit is raised to where it is lower, which it commonly is: 1,024. vLLM raises it to the same."""
_FILES_OF_OURS: Final = 256
"""Open files that are no connection: logs, locks, engines' pipes."""
_BACKLOG: Final = 512
_CUT_S: Final = 5.0
"""How long a handler may take to end once its client has been cut off."""


class Doors:
    """All ports of the gateway. Use as a context manager, or close it: no port is left open."""

    def __init__(self, host: str, answerer: Callable[[str | None], Answerer], guard: Guard) -> None:
        """`host`: an address and no other, or `localhost` for the loopback of both kinds.

        127.0.0.1 does not stand for ::1: without a gateway an agent's port is on 127.0.0.1 alone too, whichever
        runtime publishes it, and clients that try ::1 first go on to it.

        `answerer` makes what answers on an agent's port, or on the common one (None).
        """
        self._host = host
        self._answerer = answerer
        self._guard = guard
        self._doors: dict[int, _Door] = {}

    @property
    def ports(self) -> dict[int, str | None]:
        """The ports that are open, and whose they are."""
        return {port: door.agent for port, door in self._doors.items()}

    def renew(self, guard: Guard) -> None:
        """Take this guard from the next request on."""
        self._guard = guard
        for door in self._doors.values():
            door.renew(guard)

    async def turn_to(self, ports: Mapping[int, str | None], *, within_s: float = 0.0) -> None:
        """Have exactly these ports open: open what is new, then close what is no more, see `close`.

        A port that stays keeps its connections; the next request on each goes to the agent it has now.
        Raises PortInUse and HostNotReady; nothing has changed then.
        """
        made: dict[int, _Door] = {}
        try:
            share = _connections_each(len(ports))
            for port in ports.keys() - self._doors.keys():
                made[port] = _Door(self._guard, share, await _listen(self._host, port))
        except BaseException:
            for door in made.values():
                door.shut()
            raise
        gone = [self._doors.pop(port) for port in self._doors.keys() - ports.keys()]
        self._doors |= made
        for port, agent in ports.items():
            self._doors[port].lead_to(agent, self._answerer(agent))
        for door in made.values():
            await door.open()
        await asyncio.gather(*(door.close(within_s) for door in gone))

    async def close(self, within_s: float) -> None:
        """Close all: nobody new, idle connections hang up, running requests have `within_s`, then are cut off.

        Cancelling cuts them off now.
        """
        gone = tuple(self._doors.values())
        self._doors.clear()
        await asyncio.gather(*(door.close(within_s) for door in gone))

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut off whoever is still there."""
        await self.close(0.0)


def raise_file_limit() -> None:
    """Let this process have `OPEN_FILES` open, or as many as the host allows: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _connections_each(doors: int) -> int:
    """How many clients each door may take so that files are left for as many connections to engines."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS
    return min(CONNECTIONS, max(8, (soft - _FILES_OF_OURS) // 2 // max(1, doors)))


async def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on all addresses of `host`. Raises PortInUse, HostNotReady."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise HostNotReady(f"cannot listen on {host}: {error.strerror}", where="gateway.host") from error
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        try:
            sockets.append(_bound(family, address))
        except OSError as error:
            failure = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break  # a host without IPv6 may still name ::1 localhost; all else is in the way
    else:
        if sockets:
            return sockets
    for sock in sockets:
        sock.close()
    if failure is not None and failure.errno == errno.EADDRINUSE:
        raise in_use(port) from failure
    why = failure.strerror if failure is not None else "it has no address"
    raise HostNotReady(f"cannot listen on port {port} of {host}: {why}", where=f"port {port}") from failure


def _bound(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Connections of the agent that left linger for a minute; they must not keep the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it. The kernel cuts off who lets an answer lie, so that an engine does not hold it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(STALLED_S * 1000))
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)  # noqa: FBT003 - socket's
    except OSError:
        sock.close()
        raise
    return sock


class _Door(web.Server):
    """One port: whose it is, and who is there."""

    def __init__(self, guard: Guard, most: int, sockets: list[socket.socket]) -> None:
        super().__init__(self._answer, request_factory=self._request, handler_cancellation=True)
        self._most = most
        self._sockets = sockets
        self._listeners: list[asyncio.Server] = []
        self.renew(guard)
        self._guests: set[Guest] = set()
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._closing = False
        self._round: asyncio.TimerHandle | None = None
        self.agent: str | None = None
        self._answerer: Answerer

    def renew(self, guard: Guard) -> None:
        self.guard = guard

    def lead_to(self, agent: str | None, answerer: Answerer) -> None:
        self.agent = agent
        self._answerer = answerer

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._listeners = [
            await loop.create_server(self, sock=each, backlog=_BACKLOG) for each in self._sockets
        ]

    def shut(self) -> None:
        """Listen no more."""
        self._closing = True
        for listener in self._listeners:
            listener.close()
        for sock in self._sockets:
            sock.close()

    async def close(self, within_s: float) -> None:
        self.shut()
        await asyncio.sleep(0)  # what has been read begins
        for guest in tuple(self._guests):
            guest.leave()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._nobody.wait()
        finally:  # also when whoever waits for it has no more patience
            for guest in tuple(self._guests):
                guest.cut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CUT_S):
                await self._nobody.wait()

    def __call__(self) -> Guest:
        return Guest(self, self)

    # --- connections --------------------------------------------------------------------------------------

    def refusal_of(self) -> RefusedError | None:
        """Why nobody more is taken now, if so."""
        if self._closing:
            return RefusedError(503, "closing", "this gateway ends")
        if len(self._guests) >= self._most:
            message = f"{self._most} connections are open already"
            return RefusedError(503, "too_many_connections", message, retry_after_s=5)
        return None

    def came(self, guest: Guest) -> None:
        self._guests.add(guest)
        self._nobody.clear()
        if self._round is None:
            self._go_round()

    def _go_round(self) -> None:
        """Look after slow guests while there are any: one timer for all, as one per head costs it 6 us."""
        for guest in tuple(self._guests):
            guest.hurry()
        loop = asyncio.get_running_loop()
        self._round = loop.call_later(HEAD_TIMEOUT_S / 4, self._go_round) if self._guests else None

    def went(self, guest: Guest) -> None:
        self._guests.discard(guest)
        if not self._guests:
            self._nobody.set()
            if self._round is not None:
                self._round.cancel()
                self._round = None

    # --- requests -----------------------------------------------------------------------------------------

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        if isinstance(protocol, Guest):
            protocol.head_came()
        if message.upgrade:
            # Nobody gets another protocol here; what follows on this connection may be written in one.
            message = message._replace(should_close=True)
        of_page = bool(self.guard.origins) and "Origin" in message.headers
        request = (PageRequest if of_page else web.BaseRequest)(
            message, payload, protocol, writer, task, task.get_loop(), client_max_size=LARGEST_BODY_BYTES
        )
        if isinstance(request, PageRequest):
            request.shown = self.guard.shown_to(message.headers)
        return request

    def _answer(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """What answers it. No coroutine of its own: that would cost every request 3 us."""
        try:
            if request.method == "OPTIONS" and "Origin" in request.headers:
                self.guard.check(request.headers, open_to_all=True)
                return _said(web.Response(status=204, headers=self.guard.preflight(request.headers)))
            _check_form(request)
        except RefusedError as error:
            refused = refusal(error)
            refused.force_close()
            return _said(refused)
        if "Expect" in request.headers:
            return self._expected(request)
        return self._answerer(request)

    async def _expected(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers["Expect"].lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # nothing of the answer has been sent
        return await self._answerer(request)


async def _said(response: web.StreamResponse) -> web.StreamResponse:
    return response


def _check_form(request: web.BaseRequest) -> None:
    """What a request may not look like, wherever it leads: what an engine could read otherwise than we do.

    Raises RefusedError.
    """
    if request.version not in _VERSIONS:
        raise RefusedError(505, "wrong_http_version", "this gateway speaks HTTP/1.1")
    if not request.raw_path.isascii() or "#" in request.raw_path:
        raise RefusedError(400, "invalid_target", "a target is ASCII without '#'; write what is not as %XX")
    if request.body_exists and not _plainly_framed(request):
        raise RefusedError(501, "transfer_encoding", "the only transfer encoding is chunked, of HTTP/1.1")
    if "Content-Encoding" in request.headers:
        raise RefusedError(415, "encoded_body", "send the body as it is, without Content-Encoding")


def _plainly_framed(request: web.BaseRequest) -> bool:
    """By a length, or in chunks that are nothing else."""
    coding = request.headers.get("Transfer-Encoding")
    return coding is None or (coding.lower() == "chunked" and request.version == HttpVersion11)
