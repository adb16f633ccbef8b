"""HTTP for the bytes of large files: ranges of a file, from wherever the Hub sends us, for as long as it takes.

huggingface_hub fetches each file in one stream that another process cannot continue, and hf-xet keeps no partial
file either. So the bytes are asked for here, in pieces; the Hub's library says where, as whom, and what a refusal
means. Nothing here knows of disks but through `Partial`.
"""

from __future__ import annotations

import asyncio
import re
import time
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from msgspec import Struct, field
from yarl import URL

from agent_manager.checkpoints.fetching.patience import GO_ON, PASSING, Patience, asked_s
from agent_manager.errors import DownloadFailed

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine, Mapping
    from typing import Any

    from agent_manager.checkpoints.fetching.partial import Partial, Piece
    from agent_manager.checkpoints.fetching.progress import RemarkListener

LARGE_REQUESTS: Final = 8
"""At once, over all files: as many as the library's own. They take turns by file, so that a file comes in order."""
SMALL_REQUESTS: Final = 32
"""At once, of less than a MiB: enough to hide latency."""
SMALL_BYTES: Final = 1 << 20

_MOST_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_READ_BYTES: Final = 1 << 18
_TOTAL: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")


class Origin(Struct, frozen=True, kw_only=True):
    """The Hub, as its library knows it.

    `headers` say who asks, and go to the Hub alone. `tls` reads whom it trusts, which takes a while. `refusal` puts
    an answer (status, headers, address) in words.
    """

    url_of: Callable[[str], str]
    headers: Mapping[str, str]
    tls: Callable[[], ssl.SSLContext]
    refusal: Callable[[int, Mapping[str, str], str], DownloadFailed]


class Remote(Struct, kw_only=True):
    """A file on its way. `location` is where the Hub sends us for it, a signed address that expires."""

    name: str
    size_bytes: int
    url: str
    location: str | None = None
    direct: bool = False
    """The Hub gives it out itself."""
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def found(self) -> bool:
        """Whether it is known who gives it out."""
        return self.direct or self.location is not None


class PassingError(Exception):
    """Something that may go by. `asked_s`: the server said how long to wait."""

    def __init__(self, reason: str, *, asked_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.asked_s = asked_s


class RangesIgnoredError(Exception):
    """Asked for a part, the server (or a proxy before it) sends the whole."""


class Client:
    """Fetches pieces of files. Used inside `async with`, by one download."""

    def __init__(self, origin: Origin, patience: Patience, say: RemarkListener) -> None:
        self._origin = origin
        self._patience = patience
        self._say = say
        self._large = asyncio.Semaphore(LARGE_REQUESTS)
        self._small = asyncio.Semaphore(SMALL_REQUESTS)
        self._not_before = 0.0
        self._tls = lru_cache(maxsize=1)(origin.tls)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=patience.stall_s, sock_read=patience.stall_s
            ),
            auto_decompress=False,
            read_bufsize=_READ_BYTES,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    def remote(self, name: str, size_bytes: int) -> Remote:
        """A file of the repository, not asked for yet."""
        return Remote(name=name, size_bytes=size_bytes, url=self._origin.url_of(name))

    async def fetch(self, remote: Remote, partial: Partial, arrived: Callable[[], None]) -> None:
        """Bring what is missing of a file. `arrived` is called after each chunk.

        Raises DownloadFailed when patience is at its end or trying again cannot help; OSError for the disk.
        """
        missing = [piece for piece in partial.pieces if not piece.complete]
        try:
            await together(*(self._piece(remote, partial, piece, arrived) for piece in missing))
        except RangesIgnoredError:
            self._say(f"{remote.name}: ranges are ignored on the way here: fetching it as a whole")
            await self._patiently(
                remote,
                lambda: self._whole(remote, partial, arrived),
                lambda: partial.done_bytes,
                remote.size_bytes,
            )

    async def _piece(
        self, remote: Remote, partial: Partial, piece: Piece, arrived: Callable[[], None]
    ) -> None:
        await self._patiently(
            remote,
            lambda: self._rest_of(remote, partial, piece, arrived),
            lambda: piece.done_bytes,
            piece.size_bytes,
        )

    async def _patiently(
        self,
        remote: Remote,
        attempt: Callable[[], Coroutine[Any, Any, None]],
        done_bytes: Callable[[], int],
        size_bytes: int,
    ) -> None:
        """Attempt it until all is done, again and again as long as bytes come."""
        failures, slots = 0, self._small if size_bytes < SMALL_BYTES else self._large
        while done_bytes() < size_bytes:
            before = done_bytes()
            try:
                async with slots:
                    await self._wait_as_asked()
                    await attempt()
            except PassingError as trouble:
                failures = 1 if done_bytes() > before else failures + 1
                await self._pause(remote, trouble, failures)

    async def _wait_as_asked(self) -> None:
        await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))

    async def _pause(self, remote: Remote, trouble: PassingError, failures: int) -> None:
        """Wait as long as was asked for, or as is fit. Raises DownloadFailed at the end of patience."""
        asked_s = trouble.asked_s
        if asked_s is not None and asked_s > self._patience.longest_asked_s:
            raise DownloadFailed(
                f"{trouble.reason}, and asks to wait {asked_s:.0f} s",
                hint="run the command again then: what is here is kept; logged in, the Hub allows more",
                where=remote.name,
            )
        if failures >= self._patience.tries:
            raise DownloadFailed(f"{trouble.reason}, {failures} times", hint=GO_ON, where=remote.name)
        if asked_s is not None:
            self._say(f"{trouble.reason}: waiting {asked_s:.0f} s, as it asks")
            self._not_before = max(self._not_before, time.monotonic() + asked_s)
            return
        pause_s = self._patience.pause_before(failures)
        self._say(f"{trouble.reason}: trying again in {pause_s:.0f} s")
        await asyncio.sleep(pause_s)

    async def _rest_of(
        self, remote: Remote, partial: Partial, piece: Piece, arrived: Callable[[], None]
    ) -> None:
        """One request for what is missing of a piece. Raises PassingError unless all of it came."""
        whole = piece.next == 0 and piece.stop == remote.size_bytes
        span = {} if whole else {"Range": f"bytes={piece.next}-{piece.stop - 1}"}
        with _passing(remote, self._patience):
            async with await self._get(remote, span) as response:
                if response.status == HTTPStatus.OK and not whole:
                    raise RangesIgnoredError
                _check_size(remote, response, piece.next)
                async for chunk in response.content.iter_any():
                    partial.write(piece, chunk[: piece.stop - piece.next])
                    arrived()
                    if piece.complete:
                        return
        raise PassingError(f"{remote.name}: the connection ended too early")

    async def _whole(self, remote: Remote, partial: Partial, arrived: Callable[[], None]) -> None:
        """One request for the whole file, of which only what is missing is written."""
        with _passing(remote, self._patience):
            async with await self._get(remote, {}) as response:
                _check_size(remote, response, 0)
                offset = 0
                async for chunk in response.content.iter_any():
                    _fill_in(partial, offset, chunk)
                    offset += len(chunk)
                    arrived()
                    if offset >= remote.size_bytes:
                        return
        raise PassingError(f"{remote.name}: the connection ended too early")

    async def _get(self, remote: Remote, span: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Ask for (a part of) a file, where the Hub said it is; the first to ask finds that out for all."""
        if not remote.found:
            async with remote.asking:
                if not remote.found:
                    return await self._accepted(remote, span)
        return await self._accepted(remote, span)

    async def _accepted(self, remote: Remote, span: Mapping[str, str]) -> aiohttp.ClientResponse:
        response = await self._follow(remote, span)
        if response.status in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
            remote.direct = remote.location is None
            return response
        response.close()
        if response.status in PASSING:
            who = urlsplit(str(response.url)).hostname if remote.location else "the Hub"
            raise PassingError(
                f"{who} answered {response.status} for {remote.name}", asked_s=asked_s(response.headers)
            )
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _other_size(remote, None)
        if remote.location is not None:
            remote.location = None
            raise PassingError(f"{remote.name}: its signed address is no longer good ({response.status})")
        raise self._origin.refusal(response.status, response.headers, remote.url)

    async def _follow(self, remote: Remote, span: Mapping[str, str]) -> aiohttp.ClientResponse:
        """The answer behind all redirects. Who we are is told to the Hub alone."""
        url = remote.location or remote.url
        for _ in range(_MOST_REDIRECTS):
            # Compressed on the way, offsets would count other bytes than the file's.
            headers = {"Accept-Encoding": "identity", **span}
            if _host_of(url) == _host_of(remote.url):
                headers |= self._origin.headers
            # A signed address is taken as it is: written in another way, its signature would not be right.
            response = await self._session.get(
                URL(url, encoded=True),
                headers=headers,
                allow_redirects=False,
                proxy=_proxy_for(url),
                ssl=self._tls() if url.startswith("https:") else True,
            )
            if response.status not in _REDIRECTS:
                return response
            response.release()
            url = urljoin(url, response.headers.get("Location", ""))
            if _host_of(url) != _host_of(remote.url):
                remote.location = url
        raise PassingError(f"{remote.name}: the Hub sends us on without an end")


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Do all of it at once; the first failure ends the rest, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


class _passing:  # noqa: N801 - a context manager, used as a function
    """What a network does, as PassingError. What the disk does stays as it is."""

    def __init__(self, remote: Remote, patience: Patience) -> None:
        self._remote = remote
        self._patience = patience

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        name = self._remote.name
        match error:
            case aiohttp.ClientConnectorError():
                raise PassingError(f"{error.host} cannot be reached for {name}") from error
            case TimeoutError():
                raise PassingError(f"{name}: no byte for {self._patience.stall_s:.0f} s") from error
            case aiohttp.ClientError() | ConnectionError():
                raise PassingError(f"{name}: the connection broke") from error
            case _:
                return


def _fill_in(partial: Partial, offset: int, chunk: bytes) -> None:
    """Write those bytes of a chunk at `offset` that are missing."""
    end = offset + len(chunk)
    for piece in partial.pieces:
        if offset <= piece.next < min(end, piece.stop):
            partial.write(piece, chunk[piece.next - offset : piece.stop - offset])


def _check_size(remote: Remote, response: aiohttp.ClientResponse, start: int) -> None:
    """Raises DownloadFailed when the server has another file than the one that was listed."""
    if response.status == HTTPStatus.OK:
        if response.content_length not in {None, remote.size_bytes}:
            raise _other_size(remote, response.content_length)
        return
    said = _TOTAL.match(response.headers.get("Content-Range", ""))
    if said is None or int(said[1]) != start:
        raise PassingError(f"{remote.name}: the server sends another part than it was asked for")
    if int(said[2]) != remote.size_bytes:
        raise _other_size(remote, int(said[2]))


def _other_size(remote: Remote, size_bytes: int | None) -> DownloadFailed:
    has = "a shorter file" if size_bytes is None else f"{size_bytes} bytes"
    return DownloadFailed(
        f"{remote.name}: the Hub lists {remote.size_bytes} bytes and sends {has}",
        hint="a proxy or mirror in between may be out of date: check HF_ENDPOINT and HTTPS_PROXY, then try again",
        where=remote.url,
    )


def _host_of(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for an address, as everywhere: HTTPS_PROXY, HTTP_PROXY, NO_PROXY."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy is None or proxy_bypass(parts.hostname or ""):
        return None
    return proxy
