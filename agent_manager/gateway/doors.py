"""The gateway's ports: listening, how many clients each takes, and closing in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from agent_manager.errors import HostNotReady
from agent_manager.gateway.guest import HEAD_TIMEOUT_S, Guest
from agent_manager.gateway.tickets import RefusedError
from agent_manager.runtimes.ports import in_use

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from agent_manager.gateway.exchange import Exchange
    from agent_manager.gateway.messages import Header, Request

STALLED_S: Final = 300.0
"""How long a client may read nothing of its answer while more of it waits."""
CONNECTIONS: Final = 2000
"""How many clients one door takes at once, where the limit on open files allows it."""
OPEN_FILES: Final = 65_536
"""What the soft limit is raised to where it is lower, which it commonly is: 1,024. vLLM raises it to the same."""
_FILES_OF_OURS: Final = 256
"""Open files that are no connection: logs, locks, engines' pipes."""
_BACKLOG: Final = 512
_CUT_S: Final = 5.0
"""How long a handler may take to end once its client has been cut off."""


class Answerer(Protocol):
    """What answers behind the doors."""

    def admit(self, request: Request) -> None:
        """Look at a request whose body has not been read. Raises RefusedError, and the body is not."""
        ...

    def shown_to(self, request: Request) -> tuple[Header, ...]:
        """Headers that every answer to this request has."""
        ...

    async def answer(self, request: Request, exchange: Exchange, agent: str | None) -> None:
        """Answer what came to the door of that agent, or to the common one (None). May raise RefusedError."""
        ...


class Doors:
    """All ports of the gateway. Use as a context manager, or close it: no port is left open."""

    def __init__(self, host: str, answerer: Answerer) -> None:
        """`host`: an address and no other, or `localhost` for the loopback of both kinds.

        127.0.0.1 does not stand for ::1: without a gateway an agent's port is on 127.0.0.1 alone too, whichever
        runtime publishes it, and clients that try ::1 first go on to it.
        """
        self._host = host
        self._answerer = answerer
        self._doors: dict[int, _Door] = {}

    @property
    def ports(self) -> dict[int, str | None]:
        """The ports that are open, and whose they are."""
        return {port: door.agent for port, door in self._doors.items()}

    async def turn_to(self, ports: Mapping[int, str | None], *, within_s: float = 0.0) -> None:
        """Have exactly these ports open: open what is new, then close what is no more, see `close`.

        A port that stays keeps its connections; the next request on each goes to the agent it has now.
        Raises PortInUse and HostNotReady; nothing has changed then.
        """
        made: dict[int, _Door] = {}
        try:
            share = _connections_each(len(ports))
            for port in ports.keys() - self._doors.keys():
                made[port] = _Door(self._answerer, share, await _listen(self._host, port))
        except BaseException:
            for door in made.values():
                door.shut()
            raise
        gone = [self._doors.pop(port) for port in self._doors.keys() - ports.keys()]
        self._doors |= made
        for port, agent in ports.items():
            self._doors[port].agent = agent
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


class _Door:
    """One port: whose it is, and who is there. The Host of its guests."""

    def __init__(self, answerer: Answerer, most: int, sockets: list[socket.socket]) -> None:
        self.agent: str | None = None
        self.admit = answerer.admit
        self.shown_to = answerer.shown_to
        self._answerer = answerer
        self._most = most
        self._sockets = sockets
        self._listeners: list[asyncio.Server] = []
        self._guests: set[Guest] = set()
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._closing = False
        self._round: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._listeners = [
            await loop.create_server(lambda: Guest(self), sock=each, backlog=_BACKLOG)
            for each in self._sockets
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

    # --- Host ---------------------------------------------------------------------------------------------

    async def answer(self, request: Request, exchange: Exchange) -> None:
        await self._answerer.answer(request, exchange, self.agent)

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
