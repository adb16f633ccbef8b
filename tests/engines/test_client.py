"""Against real sockets: a server that sends exactly the bytes a test gives it, however broken."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from agent_manager.engines import client as engine_client
from agent_manager.engines.client import EngineClient, Load
from agent_manager.errors import EngineFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.conftest import FreePort

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="po"} 3.0
vllm:num_requests_running{engine="1",model_name="po"} 1.0
vllm:num_requests_waiting{engine="0",model_name="po"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="po",reason="capacity"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="po",reason="deferred"} 0.0
"""
"""As vLLM 0.32 writes them; the last two say again what the one before them says."""


class Server:
    """Answers every request with `reply`, and closes, unless `hold` keeps the connection open."""

    def __init__(self, reply: bytes, *, hold: bool) -> None:
        self.reply = reply
        self.hold = hold
        self.requests: list[bytes] = []
        self.port = 0
        self.dropped = asyncio.Event()
        self.received = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            self.requests.append(head + await reader.readexactly(length))
            self.received.set()
            writer.write(self.reply)
            await writer.drain()
            if self.hold:
                await reader.read()
                self.dropped.set()
        except ConnectionError:
            self.dropped.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(reply: bytes, *, hold: bool = False) -> AsyncIterator[Server]:
    script = Server(reply, hold=hold)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    script.port = server.sockets[0].getsockname()[1]
    try:
        yield script
    finally:
        server.close()
        await server.wait_closed()


def http(body: str | bytes, status: str = "200 OK") -> bytes:
    content = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


BROKEN = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "binary": bytes(range(256)) * 100,
    "a cut off head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "a cut off body": b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"data": [',
    "a cut off chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc",
    "a bad chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    "a bad status": b"HTTP/1.1 abc OK\r\n\r\n",
    "too many headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
    "an error": http("oops", "500 Internal Server Error"),
}


@pytest.mark.parametrize("reply", [pytest.param(raw, id=name) for name, raw in BROKEN.items()])
async def test_what_is_no_engine_is_an_answer_and_not_an_exception(reply: bytes) -> None:
    async with serving(reply) as server:
        client = EngineClient(server.port)

        assert await client.health() is False
        assert await client.models() == ()
        assert await client.load() is None
        with pytest.raises(EngineFailed, match="po "):
            await client.complete_once("po", timeout_s=10)


async def test_where_nobody_listens_the_answers_are_the_same(free_port: FreePort) -> None:
    client = EngineClient(free_port())

    assert await client.health() is False
    assert await client.models() == ()
    assert await client.load() is None
    with pytest.raises(EngineFailed, match="does not listen"):
        await client.complete_once("po", timeout_s=10)


async def test_health_is_200() -> None:
    async with serving(http("")) as server:
        assert await EngineClient(server.port).health() is True
        assert server.requests[0].startswith(b"GET /health HTTP/1.1\r\n")
    async with serving(http("", "503 Service Unavailable")) as server:
        assert await EngineClient(server.port).health() is False


async def test_models_are_named() -> None:
    body = json.dumps({"object": "list", "data": [{"id": "po"}, {"id": "po-2"}]})
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
        f"{len(part):x}\r\n{part}\r\n".encode() for part in (body[:9], body[9:], "")
    )
    for reply in (http(body), chunked):
        async with serving(reply) as server:
            assert await EngineClient(server.port).models() == ("po", "po-2")


@pytest.mark.parametrize(
    "body", ["[]", "null", '{"data": 3}', '{"data": [3, {"id": 4}, {}]}', '{"data": null}', "{", '"data"']
)
async def test_models_of_another_shape_are_none(body: str) -> None:
    async with serving(http(body)) as server:
        assert await EngineClient(server.port).models() == ()


async def test_the_load_is_summed_over_engine_cores_and_nothing_is_counted_twice() -> None:
    async with serving(http(METRICS)) as server:
        assert await EngineClient(server.port).load() == Load(running=4, waiting=2)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "vllm:num_requests_running 1.0\n",
        METRICS.replace("2.0", "e+e"),
        METRICS.replace("vllm:", "sglang:"),
    ],
)
async def test_a_load_that_is_not_told_is_not_zero(body: str) -> None:
    async with serving(http(body)) as server:
        assert await EngineClient(server.port).load() is None


async def test_metrics_without_labels_count_too() -> None:
    async with serving(http("vllm:num_requests_running 1\nvllm:num_requests_waiting 1e1\n")) as server:
        assert await EngineClient(server.port).load() == Load(running=1, waiting=10)


async def test_a_completion_asks_for_one_token_of_the_model() -> None:
    async with serving(http('{"choices": [{"text": "i"}]}')) as server:
        await EngineClient(server.port).complete_once("po", timeout_s=10)

    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\n")
    asked = json.loads(body)
    assert (asked["model"], asked["max_tokens"]) == ("po", 1)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            http('{"error": {"message": "The model `po`\\ndoes not exist."}}', "404 Not Found"),
            "The model `po` does not exist. (HTTP 404)",
        ),
        (http("<html>busy</html>", "503 Busy"), "<html>busy</html> (HTTP 503)"),
        (http("", "500 Oops"), "no reason given (HTTP 500)"),
        (http('{"choices": []}'), '{"choices": []} (HTTP 200)'),
        (http(b"\xff" * 5000, "500 Oops"), "� (HTTP 500)"),
    ],
)
async def test_a_refused_completion_is_told_in_the_engines_words(reply: bytes, words: str) -> None:
    async with serving(reply) as server:
        with pytest.raises(EngineFailed) as caught:
            await EngineClient(server.port).complete_once("po", timeout_s=10)

    assert caught.value.message.startswith("po refused a one-token completion: ")
    assert caught.value.message.endswith(words)
    assert len(caught.value.message) < 400
    assert caught.value.where == f"http://127.0.0.1:{server.port}"


async def test_an_engine_that_hangs_is_given_up_and_let_go() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\n", hold=True) as server:
        with pytest.raises(EngineFailed, match=r"within 0\.05 s"):
            await EngineClient(server.port).complete_once("po", timeout_s=0.05)
        await asyncio.wait_for(server.dropped.wait(), 10)


async def test_a_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_client, "PROBE_TIMEOUT_S", 0.05)
    async with serving(http(""), hold=True) as server:
        client = EngineClient(server.port)

        assert await client.health() is False
        assert await client.load() is None


async def test_a_huge_answer_is_not_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_client, "LARGEST_ANSWER_BYTES", 1 << 20)
    async with serving(http(METRICS + "#" * (2 << 20))) as server:
        assert await EngineClient(server.port).load() is None
    async with serving(http(METRICS + "#" * (1 << 19))) as server:
        assert await EngineClient(server.port).load() == Load(running=4, waiting=2)


@pytest.mark.parametrize(
    "call",
    [lambda client: client.complete_once("po", timeout_s=600), lambda client: client.health()],
    ids=["completion", "health"],
)
async def test_cancelling_ends_the_exchange_at_once(call: Callable[[EngineClient], object]) -> None:
    async with serving(b"", hold=True) as server:
        asking = asyncio.ensure_future(call(EngineClient(server.port)))  # type: ignore[call-overload] # a coroutine
        await asyncio.wait_for(server.received.wait(), 10)

        asking.cancel()

        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(server.dropped.wait(), 10)
