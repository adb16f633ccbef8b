"""Asks several servers for the same, in short turns, and says how long each took. `python -m benchmarks.load_client`.

One client for all of them, in a process of its own: asyncio and httptools. Its argument is a plan as JSON: `mode`,
the `ports` by name, `rounds`; it prints, as JSON, for each round each name's figure. Modes:

- `latency`: median seconds of one request, over one connection; all are asked in turns, request by request;
- `rate`: requests a second, over 16 connections;
- `chunks`: events a second, over 8 streams as fast as they come;
- `pace`: of 256 streams of 50 events a second, the slowest one's events a second.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any, Final, cast

import httptools

from benchmarks.bare_engine import EVENT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

MODEL: Final = "dev"
LATENCY_REQUESTS: Final = 150
RATE_CONNECTIONS: Final = 16
RATE_S: Final = 0.4
CHUNK_STREAMS: Final = 8
CHUNKS: Final = 4_000
PACE_STREAMS: Final = 256
PACE_HZ: Final = 50.0
PACE_CHUNKS: Final = 200
TIMEOUT_S: Final = 60.0


def request(port: int, **more: object) -> bytes:
    """A chat as an OpenAI client sends it."""
    asked = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You are a careful engineer. Answer in few words."},
            {"role": "user", "content": "What does a proxy cost? " * 8},
        ],
        "temperature": 0.2,
        **more,
    }
    body = json.dumps(asked).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: application/json\r\n"
        f"User-Agent: benchmark\r\nAuthorization: Bearer none\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One exchange at a time; `first_s` and `last_s` are when its answer's body began and ended."""

    def __init__(self) -> None:
        self._done: asyncio.Future[int] | None = None
        self._body_bytes = 0
        self._parser = httptools.HttpResponseParser(self)
        self.first_s = self.last_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server hung up"))

    def on_message_begin(self) -> None:
        self.first_s, self._body_bytes = 0.0, 0

    def on_body(self, body: bytes) -> None:
        self.first_s = self.first_s or time.perf_counter()
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        self.last_s = time.perf_counter()
        if self._done is None or self._parser.get_status_code() != 200:
            raise AssertionError(f"status {self._parser.get_status_code()}")
        self._done.set_result(self._body_bytes)
        self._parser = httptools.HttpResponseParser(self)

    async def ask(self, asked: bytes) -> int:
        """The length of the answer's body."""
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(asked)
        return await self._done


async def connect(port: int, count: int) -> list[Connection]:
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(count)]


async def latency(ports: Mapping[str, int]) -> dict[str, float]:
    took_s: dict[str, list[float]] = {name: [] for name in ports}
    turns = [(name, request(port), (await connect(port, 1))[0]) for name, port in ports.items()]
    for number in range(LATENCY_REQUESTS):
        for name, asked, connection in turns if number % 2 else reversed(turns):
            began_s = time.perf_counter()
            await connection.ask(asked)
            took_s[name].append(time.perf_counter() - began_s)
    for _, _, connection in turns:
        connection.transport.close()
    return {name: statistics.median(each) for name, each in took_s.items()}


async def rate(port: int) -> float:
    asked = request(port)
    connections = await connect(port, RATE_CONNECTIONS)
    began_s = time.perf_counter()

    async def go_on(connection: Connection) -> int:
        count = 0
        while time.perf_counter() - began_s < RATE_S:
            await connection.ask(asked)
            count += 1
        return count

    counts = await asyncio.gather(*(go_on(connection) for connection in connections))
    took_s = time.perf_counter() - began_s
    for connection in connections:
        connection.transport.close()
    return sum(counts) / took_s


async def chunks(port: int) -> float:
    connections = await connect(port, CHUNK_STREAMS)
    began_s = time.perf_counter()
    await _streams(connections, port, CHUNKS, 0.0)
    return CHUNK_STREAMS * CHUNKS / (time.perf_counter() - began_s)


async def pace(port: int) -> float:
    connections = await connect(port, PACE_STREAMS)
    await _streams(connections, port, PACE_CHUNKS, PACE_HZ)
    return min((PACE_CHUNKS - 1) / (each.last_s - each.first_s) for each in connections)


async def _streams(connections: list[Connection], port: int, count: int, pace_hz: float) -> None:
    asked = request(port, stream=True, chunks=count, pace_hz=pace_hz)
    got_bytes = await asyncio.gather(*(each.ask(asked) for each in connections))
    for connection in connections:
        connection.transport.close()
    if set(got_bytes) != {count * len(EVENT)}:
        raise AssertionError(f"events were lost: {set(got_bytes)}")


MODES: Final[dict[str, Callable[[int], Awaitable[float]]]] = {
    "rate": rate,
    "chunks": chunks,
    "pace": pace,
}


async def run(plan: dict[str, Any]) -> list[dict[str, float]]:
    ports, rounds = plan["ports"], plan["rounds"]
    async with asyncio.timeout(TIMEOUT_S):
        if plan["mode"] == "latency":
            return [await latency(ports) for _ in range(rounds)]
        measured = MODES[plan["mode"]]
        # In turn forwards and backwards: who comes after whom makes a difference, too.
        orders = [list(ports.items()), list(reversed(ports.items()))]
        return [{name: await measured(port) for name, port in orders[n % 2]} for n in range(rounds)]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.loads(sys.argv[1])))))
