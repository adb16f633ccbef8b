"""Passing a request to an engine and its answer back, piece by piece, as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.gateway.replies import error_event
from agent_manager.gateway.tickets import RefusedError
from agent_manager.gateway.upstream import UpstreamGoneError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_manager.gateway.exchange import Exchange
    from agent_manager.gateway.messages import Header
    from agent_manager.gateway.renaming import Renaming
    from agent_manager.gateway.upstream import Answer, Upstream

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
_ABOUT_THIS_LEG: Final = _HOP_BY_HOP | {b"content-length"}
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


class Errand(Struct, kw_only=True):
    """A request as an engine gets it."""

    method: str
    target: str
    headers: list[Header]
    body: bytes


def engine_headers(raw: Iterable[Header]) -> list[Header]:
    """A client's headers (names in lower case), without what is between it and us."""
    kept: list[Header] = []
    named: set[bytes] = set()
    for header in raw:
        if header[0] not in _OURS:
            kept.append(header)
        elif header[0] == b"connection":
            named.update(word.strip() for word in header[1].lower().split(b","))
    return [each for each in kept if each[0] not in named] if named else kept


async def ask(upstream: Upstream, errand: Errand) -> Answer:
    """Send it; returns when the head of the answer is there. Raises UpstreamGoneError."""
    return await upstream.send(
        errand.method.encode(), errand.target.encode("ascii"), errand.headers, errand.body
    )


async def pass_on(
    exchange: Exchange, answer: Answer, more: Iterable[Header], renaming: Renaming | None = None
) -> None:
    """The engine's answer as it is, status, headers and body, with `more` headers.

    Only the name in it may be another (`renaming`). An answer that breaks off ends an event stream with an error
    event, and any other in the middle.
    """
    headers = [header for header in answer.headers if header[0] not in _ABOUT_THIS_LEG]
    headers += more
    if answer.complete:  # short answers, which are most: one write
        body = await answer.piece()
        if renaming is not None:
            body = renaming.feed(body) + renaming.end()
        exchange.answer(answer.status, headers, body)
        return
    length = next((int(value) for name, value in answer.headers if name == b"content-length"), None)
    exchange.begin(answer.status, headers, length if renaming is None else None)
    await body_into(exchange, answer, renaming)


async def body_into(exchange: Exchange, answer: Answer, renaming: Renaming | None = None) -> None:
    """Copy what comes. An event stream that breaks off is ended with an error event; another one raises."""
    try:
        while piece := await answer.piece():
            if passed := renaming.feed(piece) if renaming else piece:
                await exchange.write(passed)
        if renaming and (passed := renaming.end()):
            await exchange.write(passed)
    except UpstreamGoneError as gone:
        if not answer.is_event_stream:
            raise
        await exchange.write(error_event(broken_off(gone)))
    exchange.end()


def broken_off(gone: UpstreamGoneError) -> RefusedError:
    """What a client is told of an engine that went away."""
    return RefusedError(502, "engine_gone", f"{gone}; 'agent-manager logs' says why", retry_after_s=5)
