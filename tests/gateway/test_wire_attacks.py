"""Requests made to be read differently by two who read them. An engine hears what was allowed, once, or nothing."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from .doorway import BODY, HOST, JSON, LIMIT_S, Doorway, doorway, request
from .wire import Heard, Wire, chunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import FreePort

LINE = b"POST /v1/completions HTTP/1.1\r\n"
HIDDEN = b"POST /sleep HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
ENDED = b"0\r\n\r\n"
CHUNKED = chunk(BODY) + ENDED
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


@pytest.fixture
async def way(free_port: FreePort) -> AsyncIterator[Doorway]:
    async with doorway(free_port()) as made:
        yield made


def with_headers(headers: bytes, body: bytes = BODY) -> bytes:
    return LINE + HOST + JSON + headers + b"\r\n" + body


FRAMING = {
    "a length and chunks": with_headers(
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", ENDED + HIDDEN
    ),
    "chunks and a length": with_headers(
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", ENDED + HIDDEN
    ),
    "another coding": with_headers(b"Transfer-Encoding: xchunked\r\n", CHUNKED),
    "chunked is not last": with_headers(b"Transfer-Encoding: chunked, identity\r\n", CHUNKED),
    "two codings": with_headers(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKED),
    "chunked twice": with_headers(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", CHUNKED),
    "chunked, then identity": with_headers(
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", CHUNKED
    ),
    "identity and a length": with_headers(b"Transfer-Encoding: identity\r\n" + LENGTH),
    "a vertical tab before chunked": with_headers(b"Transfer-Encoding: \x0bchunked\r\n", CHUNKED),
    "a space before the colon": with_headers(b"Transfer-Encoding : chunked\r\n", CHUNKED),
    "a space before the name": with_headers(b" Transfer-Encoding: chunked\r\n", CHUNKED),
    "chunks in HTTP/1.0": with_headers(b"Transfer-Encoding: chunked\r\n", CHUNKED).replace(b"1.1", b"1.0"),
    "two lengths": with_headers(LENGTH + b"Content-Length: 0\r\n"),
    "the same length twice": with_headers(LENGTH + LENGTH),
    "a list of lengths": with_headers(LENGTH.replace(b"\r\n", b", 35\r\n")),
    "a signed length": with_headers(LENGTH.replace(b": ", b": +")),
    "a negative length": with_headers(b"Content-Length: -1\r\n"),
    "a length in hex": with_headers(b"Content-Length: 0x23\r\n"),
    "a length beyond all": with_headers(b"Content-Length: 99999999999999999999999\r\n"),
    "chunks that end in LF": with_headers(b"Transfer-Encoding: chunked\r\n", CHUNKED.replace(b"\r", b"")),
    "a chunk's size in 0x": with_headers(b"Transfer-Encoding: chunked\r\n", b"0x" + CHUNKED),
    "a signed chunk's size": with_headers(b"Transfer-Encoding: chunked\r\n", b"+" + CHUNKED),
    "a chunk's size beyond all": with_headers(b"Transfer-Encoding: chunked\r\n", b"f" * 17 + b"\r\n" + BODY),
    "a length behind the chunks": with_headers(
        b"Transfer-Encoding: chunked\r\n", chunk(BODY) + b"0\r\nContent-Length: 0\r\n\r\n"
    ),
    "a chunk longer than told": with_headers(b"Transfer-Encoding: chunked\r\n", b"1\r\n" + BODY + ENDED),
}
LINES = {
    "a folded header": request(headers=b"X-A: a\r\n b\r\n"),
    "a folded length": with_headers(b"Content-Length:\r\n 35\r\n"),
    "bare LF": request().replace(b"\r\n", b"\n"),
    "one bare LF": request(headers=b"X-A: a\nX-B: b\r\n"),
    "one bare CR": request(headers=b"X-A: a\rX-B: b\r\n"),
    "NUL in a value": request(headers=b"X-A: a\x00b\r\n"),
    "NUL in a name": request(headers=b"X\x00A: a\r\n"),
    "a header without a name": request(headers=b": a\r\n"),
    "no host": request().replace(HOST, b""),
    "two hosts": request(headers=b"Host: evil\r\n"),
    "HTTP/0.9": request(version=b"HTTP/0.9"),
    "HTTP/1.2": request(version=b"HTTP/1.2"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"POST /v1/completions\r\n" + HOST + JSON + LENGTH + b"\r\n" + BODY,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    "a method of its own": request(method=b"FOO"),
    "TRACE": request(method=b"TRACE"),
    "CONNECT": request(b"evil:80", method=b"CONNECT"),
    "CONNECT to a path": request(method=b"CONNECT"),
    "a compressed body": request(headers=b"Content-Encoding: gzip\r\n"),
    "a line too long": request(b"/v1/completions?" + b"a" * 9000),
    "a header too long": request(headers=b"X-A: " + b"a" * 9000 + b"\r\n"),
    "too many headers": request(headers=b"X-A: a\r\n" * 100),
}
TARGETS = [
    b"http://evil/v1/completions",
    b"http://localhost/sleep",
    b"http:///v1/completions",
    b"//evil/v1/completions",
    b"//sleep",
    b"/v1/../sleep",
    b"/v1/%2e%2e/sleep",
    b"/v1/%2E%2E%2fsleep",
    b"/v1/completions/../../sleep",
    b"/v1/completions/..%2f..%2fsleep",
    b"/v1/completions;/../sleep",
    b"/v1/completions%00",
    b"/v1/completions%0d%0a%0d%0aPOST%20/sleep",
    b"/upstream/dev/sleep",
    b"/upstream/dev/..;/sleep",
    b"/upstream/dev//sleep",
    b"/upstream/dev/v1/../sleep",
    b"/upstream/dev%2fsleep",
    b"/upstream/dev/./sleep",
    b"/upstream//sleep",
    b"/upstream/dev/metrics/../sleep",
    b"/v1/responses/../sleep",
    b"/v1/models/../../sleep",
    b"/sleep",
    b"/sleep?level=1",
    b"/SLEEP",
    b"/sl%65ep",
    b"/wake_up",
    b"/collective_rpc",
    b"/reset_prefix_cache",
    b"/v1/load_lora_adapter",
    b"\\sleep",
    b"/\\sleep",
    b"*",
    b"/v1/completions#/../sleep",
    b"/v1/completions?a#b",
    b"/v1/completions\xc3\xb6",
    b"/v1/completions?\xc3\xb6=\xff",
    b"/v1/completions x",
    b"/v1/completions\tx",
]


@pytest.mark.parametrize("what", [*FRAMING, *LINES])
async def test_what_two_could_read_differently_is_refused(way: Doorway, what: str) -> None:
    said = await way.say((FRAMING | LINES)[what])
    assert [400 <= status < 600 for status, _ in said] == [True]
    assert b'"source": "agent-manager"' in said[0][1]
    assert way.engine.heard == []
    assert all(ticket.closed.is_set() for ticket in way.keeper.tickets)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", [b"POST", b"GET"])
async def test_no_way_of_writing_leads_to_what_runs_an_engine(
    way: Doorway, target: bytes, method: bytes
) -> None:
    said = await way.say(request(target, method=method))
    assert [status in {400, 404, 405} for status, _ in said] == [True]
    assert b'"source": "agent-manager"' in said[0][1]
    assert way.engine.heard == []


async def test_after_what_was_refused_nothing_is_read(way: Doorway) -> None:
    for first in (FRAMING["a length and chunks"], LINES["CONNECT"], LINES["a folded header"]):
        assert len(await way.say(first + request())) == 1
    assert way.engine.heard == []


async def test_a_request_hidden_in_a_body_stays_a_body(way: Doorway) -> None:
    hidden = json.dumps({"model": "dev", "prompt": HIDDEN.decode()}).encode()
    said = await way.say(request(body=hidden) + request())
    assert [status for status, _ in said] == [200, 200]
    assert [heard.body for heard in way.engine.heard] == [hidden, BODY]


async def test_one_behind_another_is_a_request_of_its_own(way: Doorway) -> None:
    said = await way.say(request() + HIDDEN + request(b"/sleep"))
    assert [status for status, _ in said] == [200, 404, 404]
    assert [heard.line for heard in way.engine.heard] == ["POST /v1/completions HTTP/1.1"]


async def test_a_body_where_none_belongs_is_no_request(way: Doorway) -> None:
    said = await way.say(request(b"/v1/models", method=b"GET", body=request()))
    assert [status for status, _ in said] == [200]
    assert way.engine.heard == []


@pytest.mark.parametrize(
    "upgrade",
    [
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1Ng==\r\n",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
    ],
)
async def test_nobody_talks_another_protocol_behind_the_parser(way: Doorway, upgrade: bytes) -> None:
    said = await way.say(request(headers=upgrade) + HIDDEN)
    assert [status for status, _ in said] == [200]
    (heard,) = way.engine.heard
    assert heard.body == BODY
    assert not {"upgrade", "connection", "http2-settings"} & heard.headers.keys()


async def test_chunks_reach_an_engine_as_one_body_of_known_length(way: Doorway) -> None:
    pieces = b"".join(b"1;x=%d\r\n%c\r\n" % (index, byte) for index, byte in enumerate(BODY))
    ended = b"0\r\nX-Trailer: a\r\n\r\n"
    said = await way.say(with_headers(b"Transfer-Encoding: ChUnKeD\r\n", pieces + ended) + request())
    assert [status for status, _ in said] == [200, 200]
    assert [heard.body for heard in way.engine.heard] == [BODY, BODY]
    assert not [each for each in way.engine.heard if {"transfer-encoding", "x-trailer"} & each.headers.keys()]


async def test_headers_about_the_connection_stay_on_it(way: Doorway) -> None:
    headers = (
        b"Connection: close, X-Secret\r\nX-Secret: a\r\nKeep-Alive: 1\r\nProxy-Connection: a\r\nTE: trailers\r\n"
        b"Authorization: Bearer a\r\nX-Api-Key: a\r\nCookie: a\r\nX-Kept: \xff\r\n"
    )
    assert [status for status, _ in await way.say(request(headers=headers), goodbye=b"")] == [200]
    assert way.engine.heard[0].headers == {
        "host": f"127.0.0.1:{way.engine.port}",
        "content-type": "application/json",
        "x-kept": "\xff",
        "content-length": str(len(BODY)),
    }


async def test_http_1_0_is_served_and_hung_up(way: Doorway) -> None:
    raw = await way.connect()
    await raw.send(request(version=b"HTTP/1.0"))
    assert (await raw.rest()).startswith(b"HTTP/1.1 200 OK")
    raw.writer.close()


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"]
)
async def test_an_answer_that_breaks_off_is_not_ended_with_another(
    free_port: FreePort, framing: bytes
) -> None:
    async def breaks_off(wire: Wire, _: Heard) -> None:
        await wire.say(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + framing)
        wire.writer.close()

    async with doorway(free_port(), talk=breaks_off) as way, asyncio.timeout(LIMIT_S):
        raw = await way.connect()
        await raw.send(request())
        said = await raw.rest()
        raw.writer.close()
    assert said.count(b"HTTP/1.") == 1
    assert said.rstrip().endswith(b"{")
