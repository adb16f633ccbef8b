"""The way to an engine: connections are kept, answers come piece by piece, ends are told apart."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from agent_manager.gateway.upstream import PIECES_HELD, Upstream, UpstreamGoneError

from .wire import STREAM_END, STREAM_HEAD, Engine, Heard, Wire, answer, chunk, engine

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_S = 10.0


async def whole(upstream: Upstream, body: bytes = b"") -> tuple[int, bytes]:
    async with asyncio.timeout(LIMIT_S), await upstream.send(b"POST", b"/v1/x", (), body) as said:
        text = b""
        while piece := await said.piece():
            text += piece
        return said.status, text


async def asked_three_times(upstream: Upstream) -> None:
    """Each is answered with what was sent."""
    answers = [await whole(upstream, b"%d" % number) for number in range(3)]
    assert answers == [(200, b"0"), (200, b"1"), (200, b"2")]


@contextlib.contextmanager
def way_to(served: Engine) -> Iterator[Upstream]:
    upstream = Upstream(served.port)
    yield upstream
    upstream.close()


async def test_a_request_arrives_as_it_was_sent() -> None:
    async def talk(wire: Wire, _: Heard) -> None:
        await wire.say(answer(b"yes", status="418 I'm a teapot", headers="X-Who: me"))

    async with engine(talk) as served:
        with way_to(served) as upstream:
            async with await upstream.send(b"PUT", b"/v1/x?y=1", [(b"X-A", b"b")], b"hello") as said:
                assert (said.status, await said.piece()) == (418, b"yes")
                assert (b"x-who", b"me") in said.headers
    (heard,) = served.heard
    assert heard.line == "PUT /v1/x?y=1 HTTP/1.1"
    assert heard.body == b"hello"
    assert heard.headers == {"host": f"127.0.0.1:{served.port}", "x-a": "b", "content-length": "5"}


async def test_a_connection_is_used_again_after_its_answer_was_read() -> None:
    async def talk(wire: Wire, heard: Heard) -> None:
        await wire.say(STREAM_HEAD, chunk(heard.body), STREAM_END)

    async with engine(talk) as served:
        with way_to(served) as upstream:
            await asked_three_times(upstream)
    assert served.connections == 1


async def test_an_answer_that_is_left_early_hangs_up() -> None:
    left = asyncio.Event()

    async def talk(wire: Wire, _: Heard) -> None:
        await wire.say(STREAM_HEAD, chunk(b"first"))
        await wire.until_gone()
        left.set()

    async with engine(talk) as served, asyncio.timeout(LIMIT_S):
        with way_to(served) as upstream:
            async with await upstream.send(b"POST", b"/", (), b"") as said:
                assert await said.piece() == b"first"
            await left.wait()


async def test_cancelling_before_the_answer_hangs_up() -> None:
    heard, left = asyncio.Event(), asyncio.Event()

    async def talk(wire: Wire, _: Heard) -> None:
        heard.set()
        await wire.until_gone()
        left.set()

    async with engine(talk) as served, asyncio.timeout(LIMIT_S):
        with way_to(served) as upstream:
            asking = asyncio.create_task(whole(upstream))
            await heard.wait()
            asking.cancel()
            await left.wait()
            with pytest.raises(asyncio.CancelledError):
                await asking


async def test_a_kept_connection_that_the_engine_closed_is_replaced() -> None:
    async def talk(wire: Wire, _: Heard) -> None:
        await wire.say(answer(b"once"))
        wire.writer.close()

    async with engine(talk) as served:
        with way_to(served) as upstream:
            for _ in range(3):
                assert await whole(upstream) == (200, b"once")
    assert served.connections == 3


async def test_an_engine_that_never_answers_can_be_asked_again_and_one_that_broke_off_cannot() -> None:
    async def talk(wire: Wire, heard: Heard) -> None:
        if heard.body:
            await wire.say(STREAM_HEAD, chunk(b"half of it"))
        wire.writer.close()

    async with engine(talk) as served:
        with way_to(served) as upstream:
            with pytest.raises(UpstreamGoneError) as before:
                await whole(upstream)
            with pytest.raises(UpstreamGoneError) as during:
                await whole(upstream, b"stream")
    assert not before.value.began
    assert during.value.began
    with pytest.raises(UpstreamGoneError, match=f"nobody answers on port {served.port}"):
        await whole(upstream)


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async def talk(wire: Wire, _: Heard) -> None:
        await wire.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n", b"until ", b"the end")
        wire.writer.close()

    async with engine(talk) as served:
        with way_to(served) as upstream:
            assert await whole(upstream) == (200, b"until the end")


@pytest.mark.parametrize("nonsense", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000])
async def test_what_is_no_answer_is_an_engine_that_is_gone(nonsense: bytes) -> None:
    async def talk(wire: Wire, _: Heard) -> None:
        await wire.say(nonsense)
        await wire.until_gone()

    async with engine(talk) as served:
        with way_to(served) as upstream, pytest.raises(UpstreamGoneError):
            await whole(upstream)


async def test_an_engine_waits_for_a_client_that_reads_slowly() -> None:
    sent = 0

    async def talk(wire: Wire, heard: Heard) -> None:
        nonlocal sent
        await wire.say(STREAM_HEAD + heard.body)
        for _ in range(20_000):
            await wire.say(chunk(b"x" * 4096))
            sent += 1
        await wire.say(STREAM_END)

    async with engine(talk) as served, asyncio.timeout(LIMIT_S * 3):
        with way_to(served) as upstream:
            async with await upstream.send(b"POST", b"/", (), b"") as said:
                before = -1
                while sent != before:  # until it cannot send any more
                    before = sent
                    await asyncio.sleep(0.2)
                assert PIECES_HELD < sent < 20_000
                total = 0
                while piece := await said.piece():
                    total += len(piece)
                assert total == 20_000 * 4096


async def test_what_nobody_asked_for_is_no_answer() -> None:
    asked = 0

    async def talk(wire: Wire, heard: Heard) -> None:
        nonlocal asked
        asked += 1
        unasked = answer(b"unasked") if asked == 1 else b""
        await wire.say(answer(heard.body) + unasked)

    async with engine(talk) as served:
        with way_to(served) as upstream:
            await asked_three_times(upstream)
    assert served.connections == 2


async def test_trailers_are_no_headers() -> None:
    async def talk(wire: Wire, _: Heard) -> None:
        await wire.say(STREAM_HEAD, chunk(b"a"), b"0\r\nX-Trailer: a\r\n\r\n")

    async with engine(talk) as served:
        with way_to(served) as upstream:
            async with asyncio.timeout(LIMIT_S), await upstream.send(b"POST", b"/v1/x", (), b"") as said:
                while await said.piece():
                    pass
                assert [name for name, _ in said.headers] == [b"content-type", b"transfer-encoding"]
