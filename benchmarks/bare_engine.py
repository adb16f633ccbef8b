"""An engine that costs next to nothing: what remains is what stands before it. `python -m benchmarks.bare_engine`.

asyncio and httptools, nothing else. It takes the arguments of `vllm serve` and reads two of them. A completion is
answered from memory; with `"stream": true`, by `chunks` events: as fast as they are taken, or, with `pace_hz`, all
streams in step, as an engine does that computes a token of every sequence at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from typing import Final, cast

import httptools

_DELTA: Final = (
    b'{"id":"chatcmpl-0","object":"chat.completion.chunk","choices":[{"delta":{"content":"hello "}}]}'
)
EVENT: Final = b"data: " + _DELTA + b"\n\n"
"""Every event of a stream, and its length is how a client counts them."""
_FRAME: Final = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
_AT_ONCE: Final = 16
"""Chunks in one write when there is no pace."""
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_COMPLETION: Final = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "hello " * 40}, "text": "hello"}
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 40, "total_tokens": 49},
    }
).encode()


def _answer(body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)


class _Beat:
    """One clock for all paced streams."""

    def __init__(self) -> None:
        self._streams: dict[_Connection, int] = {}
        self._task: asyncio.Task[None] | None = None

    def join(self, stream: _Connection, chunks: int, pace_hz: float) -> None:
        self._streams[stream] = chunks
        if self._task is None:
            self._task = asyncio.create_task(self._run(1 / pace_hz))

    def leave(self, stream: _Connection) -> None:
        self._streams.pop(stream, None)

    async def _run(self, every_s: float) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while self._streams:
            due_s += every_s
            await asyncio.sleep(due_s - loop.time())
            for stream, left in tuple(self._streams.items()):
                if left == 1:
                    self.leave(stream)
                    stream.say(_FRAME + b"0\r\n\r\n")
                else:
                    self._streams[stream] = left - 1
                    stream.say(_FRAME)
        self._task = None


class _Connection(asyncio.Protocol):
    def __init__(self, name: str, beat: _Beat) -> None:
        self._models = _answer(json.dumps({"object": "list", "data": [{"id": name}]}).encode())
        self._completion = _answer(_COMPLETION)
        self._beat = beat
        self._writable = asyncio.Event()
        self._writable.set()
        self._talking: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpRequestParser(self)
        self._target, self._body = b"", b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._beat.leave(self)
        if self._talking is not None:
            self._talking.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        target, body = self._target, self._body
        self._target, self._body = b"", b""
        kept = self._parser.should_keep_alive()
        if target == b"/v1/models":
            self.say(self._models)
        elif target == b"/metrics":
            self.say(_answer(b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n", b"text/plain"))
        elif b'"stream": true' in body:
            self._stream(json.loads(body))
        else:
            self.say(self._completion)
        if not kept:
            self._transport.close()

    def _stream(self, asked: dict[str, float]) -> None:
        self.say(_STREAM_HEAD)
        if asked["pace_hz"]:
            self._beat.join(self, int(asked["chunks"]), asked["pace_hz"])
        else:
            self._talking = asyncio.create_task(self._pour(int(asked["chunks"])))

    async def _pour(self, chunks: int) -> None:
        for _ in range(chunks // _AT_ONCE):
            self.say(_FRAME * _AT_ONCE)
            await self._writable.wait()
            await asyncio.sleep(0)
        self.say(b"0\r\n\r\n")

    def say(self, data: bytes) -> None:
        self._transport.write(data)


async def _serve(name: str, port: int) -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    beat = _Beat()
    server = await loop.create_server(lambda: _Connection(name, beat), "127.0.0.1", port, backlog=512)
    print("Application startup complete.", flush=True)
    async with server:
        await over.wait()


def main(argv: list[str]) -> None:
    name, port = (argv[argv.index(option) + 1] for option in ("--served-model-name", "--port"))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(name, int(port)))


if __name__ == "__main__":
    main(sys.argv)
