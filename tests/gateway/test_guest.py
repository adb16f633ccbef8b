"""A client's connection, byte by byte: order, bounds, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from agent_manager.gateway import guest, messages

from .doorway import BODY, HOST, JSON, LIMIT_S, answers, doorway, request
from .wire import STREAM_END, STREAM_HEAD, Heard, Wire, answer, chunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import FreePort

    from .doorway import Doorway

HEAD = b"POST /v1/completions HTTP/1.1\r\n" + HOST + JSON
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
HEALTH = request(b"/health", method=b"GET", body=b"")


@pytest.fixture
async def way(free_port: FreePort) -> AsyncIterator[Doorway]:
    async with doorway(free_port()) as made:
        yield made


async def said_to(way: Doorway, *pieces: bytes) -> bytes:
    """What is answered to pieces that arrive one after another, until the gateway hangs up."""
    raw = await way.connect()
    try:
        for piece in pieces:
            await raw.send(piece)
            await asyncio.sleep(0)
        return await raw.rest()
    finally:
        raw.writer.close()


class TestOrder:
    async def test_answers_come_in_the_order_of_requests(self, free_port: FreePort) -> None:
        first_may_end, heard = asyncio.Event(), asyncio.Event()

        async def talk(wire: Wire, asked: Heard) -> None:
            heard.set()
            if b"slow" in asked.body:
                await first_may_end.wait()
            await wire.say(answer(asked.body))

        slow = request(body=b'{"model": "dev", "prompt": "slow"}')
        async with doorway(free_port(), talk=talk) as way:
            asking = asyncio.create_task(way.say(slow + request() + HEALTH))
            await heard.wait()
            first_may_end.set()
            said = await asking
        assert [status for status, _ in said] == [200, 200, 200]
        assert [text.partition(b"\r\n\r\n")[2] for _, text in said] == [
            b'{"model": "dev", "prompt": "slow"}',
            BODY,
            b'{"status": "ok"}',
        ]

    async def test_many_at_once_are_all_answered(self, way: Doorway) -> None:
        assert [status for status, _ in await way.say(HEALTH * 500)] == [200] * 500

    async def test_who_asked_twice_at_once_may_ask_again(self, way: Doorway) -> None:
        raw = await way.connect()
        async with asyncio.timeout(LIMIT_S):
            for _ in range(3):
                await raw.send(HEALTH + HEALTH)
                for _ in range(2):
                    await raw.reader.readuntil(b"}")
        raw.writer.close()

    async def test_what_was_asked_before_nonsense_is_answered(self, way: Doorway) -> None:
        said = await way.say(request() + b"nonsense\r\n\r\n" + request())
        assert [status for status, _ in said] == [200, 400]
        assert len(way.engine.heard) == 1

    async def test_a_request_may_come_a_byte_at_a_time(self, way: Doorway) -> None:
        last = request(headers=b"Connection: close\r\n")
        whole = await said_to(way, *(last[at : at + 1] for at in range(len(last))))
        assert [status for status, _ in answers(whole)] == [200]
        assert way.engine.heard[0].body == BODY


class TestBounds:
    @pytest.mark.parametrize(
        ("begins", "goes_on"),
        [
            (b"", b"\r\n"),
            (b"GET /", b"a"),
            (b"GET / HTTP/1.1\r\nX-A: ", b"a"),
            (HEAD + CHUNKED + b"1;", b"a"),
            (HEAD + CHUNKED + b"0\r\nX-A: ", b"a"),
        ],
        ids=["blank lines", "a target", "a header", "a chunk's extension", "a trailer"],
    )
    async def test_a_line_that_never_ends_is_refused(
        self, way: Doorway, begins: bytes, goes_on: bytes
    ) -> None:
        pieces = [goes_on * 4096] * (2 * messages.LARGEST_HEAD_BYTES // 4096)
        ((status, text),) = answers(await said_to(way, begins, *pieces))
        assert (status, b'"code": "headers_too_large"' in text) == (431, True)
        assert way.engine.heard == []

    async def test_many_lines_of_fair_length_are_too_much_together(self, way: Doorway) -> None:
        line = b"X-A: " + b"a" * (messages.LARGEST_HEAD_BYTES // 8) + b"\r\n"
        assert [status for status, _ in await way.say(request(headers=line * 7))] == [200]
        assert [status for status, _ in await way.say(request(headers=line * 8))] == [431]

    async def test_who_is_refused_while_it_sends_hears_why(self, way: Doorway) -> None:
        with socket.create_connection(("127.0.0.1", way.port)) as client:
            client.setblocking(False)  # noqa: FBT003 - socket's
            loop = asyncio.get_running_loop()
            length = messages.LARGEST_BODY_BYTES + 1
            await loop.sock_sendall(client, HEAD + b"Content-Length: %d\r\n\r\n" % length)
            async with asyncio.timeout(LIMIT_S):
                for _ in range(64):  # more than sockets hold: somebody has to take it
                    await loop.sock_sendall(client, b"a" * (1 << 18))
                said = await loop.sock_recv(client, 1 << 16)
        ((status, _),) = answers(said)
        assert status == 413

    async def test_who_goes_on_sending_is_cut_off(
        self, way: Doorway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(guest, "LINGER_S", 0.0)
        raw = await way.connect()
        await raw.send(b"nonsense\r\n\r\n")
        async with asyncio.timeout(LIMIT_S):
            with contextlib.suppress(ConnectionError):
                while True:
                    raw.writer.write(b"a")
                    await raw.writer.drain()
                    await asyncio.sleep(0.05)
        raw.writer.close()


class TestForm:
    async def test_head_is_get_without_a_body(self, way: Doorway) -> None:
        asked = request(b"/health", method=b"HEAD", headers=b"Connection: close\r\n", body=b"")
        said = await said_to(way, asked)
        assert said.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nContent-Length: 16\r\n" in said
        assert said.endswith(b"\r\n\r\n")

    async def test_an_answer_says_when_it_was_given_once(self, free_port: FreePort) -> None:
        dated = b"Sat, 21 Nov 2026 08:00:00 GMT"

        async def talk(wire: Wire, _: Heard) -> None:
            await wire.say(answer(b"{}", headers=f"Date: {dated.decode()}"))

        async with doorway(free_port(), talk=talk) as way:
            said = await way.say(request() + HEALTH)
        assert [text.lower().count(b"\r\ndate: ") for _, text in said] == [1, 1]
        assert [dated in text for _, text in said] == [True, False]

    async def test_an_answer_without_content_has_no_length(self, free_port: FreePort) -> None:
        async def talk(wire: Wire, _: Heard) -> None:
            await wire.say(b"HTTP/1.1 204 No Content\r\n\r\n")

        async with doorway(free_port(), talk=talk) as way:
            ((status, text),) = await way.say(request())
        assert (status, b"content-length" in text.lower()) == (204, False)

    async def test_a_stream_to_http_1_0_ends_with_its_connection(self, free_port: FreePort) -> None:
        async def talk(wire: Wire, _: Heard) -> None:
            await wire.say(STREAM_HEAD, chunk(b"data: one\n\n"))
            await asyncio.sleep(0.05)  # so that it is not all there at once
            await wire.say(chunk(b"data: two\n\n"), STREAM_END)

        async with doorway(free_port(), talk=talk) as way:
            said = await said_to(way, request(version=b"HTTP/1.0"))
        head, _, body = said.partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert body == b"data: one\n\ndata: two\n\n"

    async def test_a_body_in_chunks_passes_beside_an_upgrade(self, way: Doorway) -> None:
        upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
        whole = HEAD + upgrade + CHUNKED + chunk(BODY[:5]) + chunk(BODY[5:]) + b"0\r\n\r\n"
        for pieces in ([whole], [whole[:-20], whole[-20:]]):
            said = await said_to(way, *pieces)
            assert [status for status, _ in answers(said)] == [200]
        assert [heard.body for heard in way.engine.heard] == [BODY, BODY]

    async def test_a_broken_body_beside_an_upgrade_is_refused(self, way: Doorway) -> None:
        upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
        said = await said_to(way, HEAD + upgrade + CHUNKED + b"zz\r\n")
        assert [status for status, _ in answers(said)] == [400]
        assert way.engine.heard == []


class TestTheEnd:
    async def test_who_is_gone_before_the_answer_is_not_waited_for(self, free_port: FreePort) -> None:
        asked: asyncio.Queue[Heard] = asyncio.Queue()

        async def silent(wire: Wire, heard: Heard) -> None:
            asked.put_nowait(heard)
            await wire.until_gone()

        async with doorway(free_port(), talk=silent) as way:
            for waits in (True, False):
                with socket.create_connection(("127.0.0.1", way.port)) as client:
                    client.sendall(request())
                    if waits:
                        await asked.get()
            async with asyncio.timeout(LIMIT_S):
                await way.doors.close(LIMIT_S * 2)
            assert all(ticket.closed.is_set() for ticket in way.keeper.tickets)

    async def test_a_body_under_way_is_taken_and_answered_when_the_gateway_ends(self, way: Doorway) -> None:
        raw = await way.connect()
        await raw.send(HEALTH + request()[:-10])
        assert await raw.reader.readuntil(b"}")
        closing = asyncio.create_task(way.doors.close(LIMIT_S))
        await asyncio.sleep(0.05)
        await raw.send(request()[-10:])
        said = await raw.rest()
        raw.writer.close()
        await closing
        assert [status for status, _ in answers(said)] == [200]
        assert b"\r\nConnection: close\r\n" in said
