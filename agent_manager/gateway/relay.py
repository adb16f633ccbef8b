"""Passing a request to an engine and its answer back, piece by piece, as it comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web
from multidict import CIMultiDict

from agent_manager.gateway.replies import EVENT_STREAM, error_event
from agent_manager.gateway.tickets import RefusedError
from agent_manager.gateway.upstream import UpstreamGoneError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent_manager.gateway.renaming import Renaming
    from agent_manager.gateway.upstream import Answer, Header, Upstream

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110, section 7.6.1, and what clients made up; they are about one connection."""
_OURS: Final = _HOP_BY_HOP | {
    b"accept-encoding",  # an engine does not compress, and must not begin to
    b"authorization",  # the gateway's key is not the engine's business
    b"content-length",
    b"cookie",
    b"expect",
    b"host",
    b"origin",
    b"x-api-key",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """A request as an engine gets it."""

    method: str
    target: str
    headers: tuple[Header, ...]
    body: bytes


def engine_headers(raw: Iterable[Header]) -> tuple[Header, ...]:
    """A client's headers, without what is between it and us."""
    kept: list[Header] = []
    named: set[bytes] = set()
    for header in raw:
        name = header[0].lower()
        if name not in _OURS:
            kept.append(header)
        elif name == b"connection":
            named.update(word.strip().lower() for word in header[1].split(b","))
    return tuple(each for each in kept if each[0].lower() not in named) if named else tuple(kept)


async def ask(upstream: Upstream, errand: Errand) -> Answer:
    """Send it; returns when the head of the answer is there. Raises UpstreamGoneError."""
    return await upstream.send(
        errand.method.encode(), errand.target.encode("ascii"), errand.headers, errand.body
    )


async def pass_on(
    request: web.BaseRequest, answer: Answer, more: Mapping[str, str], renaming: Renaming | None = None
) -> tuple[web.StreamResponse, int]:
    """The engine's answer as it is, status, headers and body, with `more` headers; and its status.

    Only the name in it may be another (`renaming`). An answer that breaks off ends an event stream with an error
    event, and any other in the middle.
    """
    headers = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in answer.headers
        if name.lower() not in _HOP_BY_HOP and name.lower() != b"content-length"
    ]
    headers += more.items()
    if answer.complete:  # short answers, which are most: one write
        body = await answer.piece()
        if renaming is not None:
            body = renaming.feed(body) + renaming.end()
        return web.Response(status=answer.status, body=body, headers=CIMultiDict(headers)), answer.status
    response = web.StreamResponse(status=answer.status, headers=CIMultiDict(headers))
    length = next((value for name, value in answer.headers if name.lower() == b"content-length"), None)
    if length is not None and renaming is None:
        response.content_length = int(length)
    await response.prepare(request)
    await body_into(response, answer, renaming)
    return response, answer.status


async def body_into(response: web.StreamResponse, answer: Answer, renaming: Renaming | None = None) -> None:
    """Copy what comes. An event stream that breaks off is ended with an error event; another one raises."""
    try:
        while piece := await answer.piece():
            if passed := renaming.feed(piece) if renaming else piece:
                await response.write(passed)
        if renaming and (passed := renaming.end()):
            await response.write(passed)
    except UpstreamGoneError as gone:
        if not response.content_type.startswith(EVENT_STREAM):
            raise
        await response.write(error_event(broken_off(gone)))
    await response.write_eof()


def broken_off(gone: UpstreamGoneError) -> RefusedError:
    """What a client is told of an engine that went away."""
    return RefusedError(502, "engine_gone", f"{gone}; 'agent-manager logs' says why", retry_after_s=5)
