"""Listening, what a client may cost, and closing in order: real sockets on all sides."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from agent_manager.errors import HostNotReady, PortInUse
from agent_manager.gateway import doors as module
from agent_manager.gateway import guest, messages
from agent_manager.gateway.doors import Doors
from agent_manager.gateway.guard import Guard

from .doorway import BODY, HOST, JSON, LIMIT_S, Doorway, Raw, answers, doorway, request
from .wire import STREAM_END, STREAM_HEAD, Heard, Wire, answer, chunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent_manager.gateway.exchange import Exchange
    from agent_manager.gateway.messages import Header, Request
    from tests.conftest import FreePort

SHORT_S = 0.2
HEALTH = request(b"/health", method=b"GET", body=b"")


class Saying:
    """Answers with the agent whose door it is."""

    def admit(self, request: Request) -> None:
        pass

    def shown_to(self, _: Request) -> tuple[Header, ...]:
        return ()

    async def answer(self, _: Request, exchange: Exchange, agent: str | None) -> None:
        exchange.answer(200, [], f"<{agent}>".encode())


async def asked(port: int, host: str = "127.0.0.1") -> bytes:
    raw = Raw(*await asyncio.open_connection(host, port))
    await raw.send(request(headers=b"Connection: close\r\n"))
    said = await raw.rest()
    raw.writer.close()
    return said.rpartition(b"\r\n\r\n")[2]


async def answered(raw: Raw) -> int:
    """The status of the next answer, once all of it is there."""
    async with asyncio.timeout(LIMIT_S):
        head = await raw.reader.readuntil(b"\r\n\r\n")
        length = next(
            line.partition(b":")[2] for line in head.split(b"\r\n") if line.startswith(b"Content-Length")
        )
        await raw.reader.readexactly(int(length))
    return answers(head)[0][0]


@contextlib.asynccontextmanager
async def talking(way: Doorway) -> AsyncIterator[Raw]:
    raw = await way.connect()
    try:
        yield raw
    finally:
        raw.writer.close()


class TestListening:
    async def test_each_port_leads_to_its_agent_and_to_another_when_told(self, free_port: FreePort) -> None:
        one, two, three = free_port(), free_port(), free_port()
        async with Doors("127.0.0.1", Saying()) as doors:
            await doors.turn_to({one: None, two: "dev"})
            assert [await asked(one), await asked(two)] == [b"<None>", b"<dev>"]
            await doors.turn_to({one: None, two: "po", three: "dev"})
            assert [await asked(two), await asked(three)] == [b"<po>", b"<dev>"]
            await doors.turn_to({three: None})
            assert (doors.ports, await asked(three)) == ({three: None}, b"<None>")
            with pytest.raises(ConnectionRefusedError):
                await asked(one)
        with pytest.raises(ConnectionRefusedError):
            await asked(three)

    async def test_a_port_keeps_its_connections_when_it_leads_elsewhere(self, free_port: FreePort) -> None:
        port = free_port()
        async with Doors("127.0.0.1", Saying()) as doors:
            raw: Raw | None = None
            said = []
            for agent in ("dev", "po"):
                await doors.turn_to({port: agent})
                raw = raw or Raw(*await asyncio.open_connection("127.0.0.1", port))
                await raw.send(request())
                said.append(await raw.reader.readuntil(b">"))
            assert raw is not None
            raw.writer.close()
        assert [text.rpartition(b"<")[2] for text in said] == [b"dev>", b"po>"]

    async def test_a_port_that_somebody_has_changes_nothing_and_says_who(self, free_port: FreePort) -> None:
        open_now, new = free_port(), free_port()
        with socket.create_server(("127.0.0.1", 0)) as theirs:
            taken = theirs.getsockname()[1]
            async with Doors("127.0.0.1", Saying()) as doors:
                await doors.turn_to({open_now: "dev"})
                with pytest.raises(PortInUse, match=rf"port {taken} is in use by .*\(pid {os.getpid()}\)"):
                    await doors.turn_to({new: "po", taken: None})
                assert (doors.ports, await asked(open_now)) == ({open_now: "dev"}, b"<dev>")
                with pytest.raises(ConnectionRefusedError):
                    await asked(new)

    async def test_an_address_that_is_not_ours_is_told(self, free_port: FreePort) -> None:
        async with Doors("192.0.2.1", Saying()) as doors:  # kept for documentation, RFC 5737
            with pytest.raises(HostNotReady, match="cannot listen on port"):
                await doors.turn_to({free_port(): None})

    async def test_localhost_is_every_loopback_there_is(self, free_port: FreePort) -> None:
        port = free_port()
        families = {each[0] for each in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)}
        async with Doors("localhost", Saying()) as doors:
            await doors.turn_to({port: None})
            assert await asked(port) == b"<None>"
            if socket.AF_INET6 in families and _has_ipv6():
                assert await asked(port, "::1") == b"<None>"


def _has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as sock:
        return sock.connect_ex(("::1", 9)) != errno.EADDRNOTAVAIL


class TestClosing:
    async def test_running_requests_finish_and_nobody_new_comes(self, free_port: FreePort) -> None:
        goes_on, running = asyncio.Event(), asyncio.Event()

        async def slow(wire: Wire, _: Heard) -> None:
            running.set()
            await goes_on.wait()
            await wire.say(answer(b"{}"))

        async with doorway(free_port(), talk=slow) as way, talking(way) as busy, talking(way) as idle:
            await idle.send(HEALTH)
            assert await answered(idle) == 200
            await busy.send(request())
            await running.wait()
            closing = asyncio.create_task(way.doors.close(LIMIT_S))
            assert await idle.rest() == b""
            with pytest.raises(ConnectionRefusedError):
                await way.connect()
            assert not closing.done()
            goes_on.set()
            assert [status for status, _ in answers(await busy.rest())] == [200]
            await closing

    @pytest.mark.parametrize("hurried", [False, True])
    async def test_what_does_not_end_in_time_is_cut_off(self, free_port: FreePort, *, hurried: bool) -> None:
        gone = asyncio.Event()

        async def endless(wire: Wire, _: Heard) -> None:
            await wire.say(STREAM_HEAD, chunk(b"data: one\n\n"))
            await wire.until_gone()
            gone.set()

        async with doorway(free_port(), talk=endless) as way, talking(way) as raw, asyncio.timeout(LIMIT_S):
            await raw.send(request())
            await raw.reader.readuntil(b"one")
            closing = asyncio.create_task(way.doors.close(LIMIT_S if hurried else SHORT_S))
            if hurried:
                await asyncio.sleep(SHORT_S)
                closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            assert STREAM_END not in await raw.rest()
            assert [ticket.closed.is_set() for ticket in way.keeper.tickets] == [True]
            await gone.wait()


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (guest, module):
        monkeypatch.setattr(each, "HEAD_TIMEOUT_S", SHORT_S)


class TestSlowClients:
    @pytest.mark.parametrize("sent", [b"POST /v1/comp", request()[:60]])
    async def test_a_head_that_does_not_end(
        self, free_port: FreePort, monkeypatch: pytest.MonkeyPatch, sent: bytes
    ) -> None:
        hurry(monkeypatch)
        async with doorway(free_port()) as way, talking(way) as raw:
            await raw.send(sent)
            ((status, text),) = answers(await raw.rest())
            assert (status, b'"code": "headers_timeout"' in text) == (408, True)
            assert way.engine.heard == []

    async def test_dripping_does_not_help(self, free_port: FreePort, monkeypatch: pytest.MonkeyPatch) -> None:
        hurry(monkeypatch)

        async def drip(raw: Raw) -> None:
            await raw.send(b"POST /v1/completions HTTP/1.1\r\n")
            while not raw.writer.is_closing():
                await raw.send(b"X-A: a\r\n")
                await asyncio.sleep(SHORT_S / 10)

        async with doorway(free_port()) as way, talking(way) as raw:
            dripping = asyncio.create_task(drip(raw))
            # Bytes that arrive after the end may reset the connection before the answer is read.
            assert [status for status, _ in answers(await raw.rest())] in ([408], [])
            dripping.cancel()

    async def test_a_second_head_has_a_time_of_its_own(
        self, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hurry(monkeypatch)
        async with doorway(free_port()) as way, talking(way) as raw:
            await raw.send(HEALTH)
            assert await answered(raw) == 200
            await asyncio.sleep(2 * SHORT_S)  # idle between requests is no slowness
            await raw.send(b"GET /heal")
            assert [status for status, _ in answers(await raw.rest())] == [408]

    async def test_a_connection_that_says_nothing_is_closed_without_a_word(
        self, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hurry(monkeypatch)
        async with doorway(free_port()) as way, talking(way) as raw:
            assert await raw.rest() == b""

    async def test_a_request_that_runs_is_not_hurried(
        self, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hurry(monkeypatch)

        async def slow(wire: Wire, _: Heard) -> None:
            await asyncio.sleep(2 * SHORT_S)
            await wire.say(answer(b"{}"))

        async with doorway(free_port(), talk=slow) as way, talking(way) as raw:
            whole = request()
            await raw.send(whole[:-10])
            await asyncio.sleep(2 * SHORT_S)
            await raw.send(whole[-10:])
            assert await answered(raw) == 200

    async def test_a_body_that_does_not_come(
        self, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hurry(monkeypatch)
        monkeypatch.setattr(guest, "BODY_TIMEOUT_S", SHORT_S)
        async with doorway(free_port()) as way, talking(way) as raw:
            await raw.send(request()[:-10])
            assert await answered(raw) == 408
            assert (way.keeper.tickets, way.engine.heard) == ([], [])

    async def test_who_does_not_read_is_cut_off_and_the_engine_is_free(
        self, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "STALLED_S", 1.0)
        freed = asyncio.Event()

        async def flood(wire: Wire, _: Heard) -> None:
            with contextlib.suppress(ConnectionError):
                await wire.say(STREAM_HEAD)
                while True:
                    await wire.say(chunk(b"data: " + b"a" * (1 << 16) + b"\n\n"))
            freed.set()

        async with doorway(free_port(), talk=flood) as way, asyncio.timeout(LIMIT_S):
            with socket.create_connection(("127.0.0.1", way.port)) as client:
                client.sendall(request())
                await freed.wait()
            (ticket,) = way.keeper.tickets
            await ticket.closed.wait()


class TestBounds:
    @pytest.mark.parametrize("chunked", [False, True])
    async def test_a_body_can_be_too_large(
        self, free_port: FreePort, monkeypatch: pytest.MonkeyPatch, *, chunked: bool
    ) -> None:
        most = 10_000
        monkeypatch.setattr(messages, "LARGEST_BODY_BYTES", most)
        head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + JSON
        body = b" " * most + BODY
        sent = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(body) if chunked else request(body=body)
        async with doorway(free_port()) as way, talking(way) as raw:
            await raw.send(sent)
            assert await answered(raw) == 413
            assert (way.keeper.tickets, way.engine.heard) == ([], [])

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_one_with_pictures_passes(self, free_port: FreePort, *, chunked: bool) -> None:
        body = BODY[:-1] + b" " * (3 << 20) + b"}"
        head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + JSON
        sent = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(body) + b"0\r\n\r\n"
        async with doorway(free_port()) as way:
            said = await way.say(sent if chunked else request(body=body))
            assert [status for status, _ in said] == [200]
            assert way.engine.heard[0].body == body

    async def test_who_asks_first_is_told_to_go_on(self, free_port: FreePort) -> None:
        async with doorway(free_port()) as way, talking(way) as raw:
            whole = request(headers=b"Expect: 100-continue\r\n")
            await raw.send(whole[: -len(BODY)])
            async with asyncio.timeout(LIMIT_S):
                assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await raw.send(BODY)
            assert await answered(raw) == 200
            assert "expect" not in way.engine.heard[0].headers

    async def test_connections_are_counted_and_freed(
        self, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "CONNECTIONS", 2)
        async with doorway(free_port()) as way, talking(way) as one:
            async with talking(way) as two:
                for each in (one, two):
                    await each.send(HEALTH)
                    assert await answered(each) == 200
                async with talking(way) as three:
                    ((status, text),) = answers(await three.rest())
                assert (status, b'"code": "too_many_connections"' in text) == (503, True)
                assert b"\r\nRetry-After: 5\r\n" in text
            async with asyncio.timeout(LIMIT_S):
                while await way.say(b""):  # turned away until the door has heard that one is gone
                    pass
            await one.send(HEALTH)
            assert await answered(one) == 200

    def test_the_limit_on_open_files_is_raised_and_shared(self) -> None:
        program = """if True:
            import resource
            from agent_manager.gateway import doors
            hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 4096)
            resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
            doors.raise_file_limit()
            print(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard), doors._connections_each(4) * 8 < hard)
        """
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert said.stdout.split() == ["True", "True"]


class TestErrorsOfOurs:
    async def test_neither_answer_nor_log_repeats_what_a_client_sent(
        self, free_port: FreePort, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Failing(Saying):
            async def answer(self, request: Request, *_: object) -> None:
                raise ValueError(request.body.decode())

        class FailingEarly(Saying):
            def admit(self, request: Request) -> None:
                raise KeyError(request.path + "hello")

        for answerer in (Failing(), FailingEarly()):
            port = free_port()
            async with Doors("127.0.0.1", answerer) as doors:
                await doors.turn_to({port: None})
                said = await asked(port)
            assert b'"code": "internal_error"' in said
            assert "hello" not in caplog.text + said.decode()
        assert "ValueError at test_doors.py:" in caplog.text
        assert "KeyError at test_doors.py:" in caplog.text

    @pytest.mark.parametrize(
        "sent",
        [
            b"POST / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sesame\x00\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: localhost\r\nAuthorization : Bearer sesame\r\n\r\n",
            b"sesame HTTP/1.1\r\n\r\n",
            b"POST /?sesame HTTP/7\r\n\r\n",
        ],
    )
    async def test_what_is_no_http_is_not_repeated(
        self, free_port: FreePort, caplog: pytest.LogCaptureFixture, sent: bytes
    ) -> None:
        caplog.set_level("DEBUG")
        async with doorway(free_port()) as way:
            ((status, text),) = await way.say(sent)
        assert (status, b"sesame" in text, "sesame" in caplog.text) == (400, False, False)


class TestPages:
    PAGE = "http://localhost:3000"
    GUARD = Guard(key="sesame", origins=frozenset({PAGE}))
    ORIGIN = f"Origin: {PAGE}\r\n".encode()

    async def test_a_page_that_is_named_may_ask_and_read(self, free_port: FreePort) -> None:
        preflight = (
            self.ORIGIN
            + b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization,x-a\r\n"
            b"Access-Control-Request-Private-Network: true\r\n"
        )
        key = b"Authorization: Bearer sesame\r\n"
        async with doorway(free_port(), guard=self.GUARD) as way:
            said = await way.say(
                request(method=b"OPTIONS", headers=preflight, body=b"")
                + request(headers=self.ORIGIN + key)
                + request(headers=self.ORIGIN)
            )
        assert [status for status, _ in said] == [204, 200, 401]
        allowed = f"\r\nAccess-Control-Allow-Origin: {self.PAGE}\r\n".encode()
        assert [allowed in text for _, text in said] == [True, True, True]
        assert b"\r\nAccess-Control-Allow-Headers: authorization,x-a\r\n" in said[0][1]
        assert b"\r\nAccess-Control-Allow-Private-Network: true\r\n" in said[0][1]
        assert len(way.engine.heard) == 1

    @pytest.mark.parametrize("guard", [Guard(), GUARD])
    async def test_no_other_page_hears_more_than_no(self, free_port: FreePort, guard: Guard) -> None:
        elsewhere = b"Origin: http://evil\r\n"
        async with doorway(free_port(), guard=guard) as way:
            said = await way.say(request(headers=elsewhere))
            said += await way.say(request(method=b"OPTIONS", headers=elsewhere, body=b""))
            assert [status for status, _ in said] == [403, 403]
            assert not [text for _, text in said if b"access-control" in text.lower()]
            assert way.engine.heard == []
