"""The HTTP client of one engine on this host: is it alive, what does it serve, who is in it.

Standard library only, and asyncio all the way down: a call is over within its time however slowly the other side
drips, it ends at once when it is cancelled, and a port where nobody listens costs well under a millisecond.
"""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct

from agent_manager.errors import EngineFailed

if TYPE_CHECKING:
    from agent_manager.engines.metrics import Reading

HOST = "127.0.0.1"
PROBE_TIMEOUT_S = 2.0
"""A live engine answers its probes in milliseconds, but not while it holds Python's lock for a long prompt."""
LARGEST_ANSWER_BYTES = 8 << 20
"""vLLM's /metrics is 56 kB; anything that answers more than this is no engine."""


class Load(Struct, frozen=True, kw_only=True):
    """How many requests an engine has: `running` get tokens, `waiting` are queued."""

    running: int
    waiting: int


class _Answer(Struct, frozen=True):
    status: int
    body: bytes


class EngineClient:
    """Asks the engine that listens on 127.0.0.1:`port`. Keeps no connection open."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def health(self) -> bool:
        """Whether the engine says it is alive. It may still be unable to answer: see `complete_once`.

        vLLM goes on saying so after SIGTERM, while it refuses new requests.
        """
        answer = await self._get("/health")
        return answer is not None and answer.status == 200  # noqa: PLR2004 - HTTP's OK

    async def models(self) -> tuple[str, ...]:
        """The names it serves under; empty when it does not answer, or not as an engine does."""
        body = _json(await self._get("/v1/models"))
        entries = body.get("data") if isinstance(body, dict) else None
        if not isinstance(entries, list):
            return ()
        names = [entry.get("id") for entry in entries if isinstance(entry, dict)]
        return tuple(name for name in names if isinstance(name, str))

    async def load(self) -> Load | None:
        """The requests in it now, over all its engine cores; None when it does not tell."""
        reading = await self.metrics()
        return None if reading is None else Load(running=reading.running, waiting=reading.waiting)

    async def metrics(self) -> Reading | None:
        """What it says of itself on /metrics; None when it does not tell."""
        answer = await self._get("/metrics")
        if answer is None or answer.status != 200:  # noqa: PLR2004 - HTTP's OK
            return None
        from agent_manager.engines.metrics import parse  # noqa: PLC0415 - `status` reads none

        return parse(answer.body.decode("utf-8", "replace"))

    async def complete_once(self, model: str, *, timeout_s: float) -> None:
        """Let it generate one token, which proves that it serves; /health misses a hung decode.

        /v1/completions, since it needs no chat template. Raises EngineFailed with the engine's own words.
        """
        asked = json.dumps({"model": model, "prompt": "Hi", "max_tokens": 1, "temperature": 0}).encode()
        where = f"http://{HOST}:{self.port}"
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._request("POST", "/v1/completions", asked)
        except TimeoutError:
            raise EngineFailed(
                f"{model} did not answer a one-token completion within {timeout_s:g} s",
                hint=f"its log says more: agent-manager logs {model}",
                where=where,
            ) from None
        if answer is None:
            raise EngineFailed(
                f"{model} broke off a one-token completion, or does not listen any more",
                hint=f"its log says more: agent-manager logs {model}",
                where=where,
            )
        body = _json(answer)
        if not (isinstance(body, dict) and body.get("choices")):
            raise EngineFailed(
                f"{model} refused a one-token completion: {_words(answer, body)}",
                hint=f"its log says more: agent-manager logs {model}",
                where=where,
            )

    async def _get(self, path: str) -> _Answer | None:
        """The answer, or None when there is none within PROBE_TIMEOUT_S."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                return await self._request("GET", path)
        except TimeoutError:
            return None

    async def _request(self, method: str, path: str, body: bytes = b"") -> _Answer | None:
        """One exchange on a connection of its own; None for a refused or broken one, or what is not HTTP."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {HOST}:{self.port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        try:
            transport, exchange = await loop.create_connection(
                lambda: _Exchange(head.encode() + body, loop.create_future()), HOST, self.port
            )
        except OSError:
            return None
        try:
            raw = await exchange.answer
        finally:
            # abort, not close: the exchange is over, or given up, and nothing is worth waiting for.
            transport.abort()
        return None if raw is None else _parse(raw)


class _Exchange(asyncio.Protocol):
    """Says its piece, then listens until the other side closes.

    `answer` is all that came; None when the connection broke, or when that is more than an engine ever says. It
    never holds an exception: asyncio's streams do, and complain on stderr of one that nobody asked for, when a
    connection breaks (Docker's proxy resets those to an engine that loads) just as its reader is cancelled.
    """

    def __init__(self, said: bytes, answer: asyncio.Future[bytes | None]) -> None:
        self.answer = answer
        self._said = said
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._said)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > LARGEST_ANSWER_BYTES:
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(None if exc else bytes(self._received))

    def _end(self, answer: bytes | None) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


class _Received(io.BytesIO):
    """Received bytes in the place of the socket that http.client reads from."""

    def makefile(self, _mode: str) -> _Received:
        return self


def _parse(raw: bytes) -> _Answer | None:
    """Status and body of a whole HTTP response, chunked or not; None when it is cut off or not HTTP."""
    if b"\r\n\r\n" not in raw:  # http.client would take half a head for a whole one
        return None
    from http.client import HTTPException, HTTPResponse  # noqa: PLC0415 - `status` with nobody there needs none

    response = HTTPResponse(_Received(raw))  # type: ignore[arg-type] # it only ever calls makefile
    try:
        response.begin()
        return _Answer(response.status, response.read())
    except (HTTPException, ValueError):
        return None


def _json(answer: _Answer | None) -> Any:  # noqa: ANN401 - whatever JSON holds
    """The body as JSON; None when there is none."""
    if answer is None:
        return None
    try:
        return json.loads(answer.body)
    except ValueError:
        return None


def _words(answer: _Answer, body: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """What the engine says of an error: OpenAI's shape, else the beginning of whatever it sent."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    text = message if isinstance(message, str) else answer.body[:200].decode("utf-8", "replace")
    return f"{' '.join(text.split()) or 'no reason given'} (HTTP {answer.status})"
