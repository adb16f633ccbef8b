"""The HTTP front between real clients and an engine on the wire; a doorkeeper that does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from agent_manager.catalog.agents import Agent, Model
from agent_manager.gateway import front, messages
from agent_manager.gateway.counts import Counts
from agent_manager.gateway.doors import Doors
from agent_manager.gateway.front import Front
from agent_manager.gateway.guard import Guard
from agent_manager.gateway.routing import Names
from agent_manager.gateway.tickets import AgentNow, Granted, RefusedError, Whereabouts
from agent_manager.swap.notices import AgentState

from .wire import STREAM_END, STREAM_HEAD, Heard, Wire, answer, chunk, engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

LIMIT_S = 10.0
CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "dev", "messages": [{"role": "user", "content": "hello"}]}


@dataclass
class Ticket:
    agent: str
    turn: asyncio.Future[Granted] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def waits(self) -> bool:
        return not self.turn.done()

    async def granted(self) -> Granted:
        return await asyncio.shield(self.turn)

    async def unanswered(self) -> None:
        await asyncio.sleep(0)

    def whereabouts(self) -> Whereabouts:
        return Whereabouts(position=2, doing="loading po", expected_s=20.4)

    def close(self) -> None:
        self.closed.set()


@dataclass
class Door:
    """A doorkeeper: grants `port` at once, or when the test says so."""

    port: int | None = None
    tickets: list[Ticket] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    full: RefusedError | None = None
    unloads: int = 0

    def ask(self, agent: str) -> Ticket:
        if self.full:
            raise self.full
        ticket = Ticket(agent)
        if self.port is not None:
            ticket.turn.set_result(Granted(port=self.port))
        self.tickets.append(ticket)
        self.asked.set()
        return ticket

    def agents(self) -> tuple[AgentNow, ...]:
        states = {"dev": AgentState.READY, "po": AgentState.ABSENT}
        return tuple(
            AgentNow(name=name, model="Qwen/Small", aliases=(), state=state, port=8001, running=0, waiting=0)
            for name, state in states.items()
        )

    def unload(self) -> None:
        self.unloads += 1


@dataclass
class Gate:
    """The front with its common port and dev's, and a client of both."""

    door: Door
    counts: Counts
    client: aiohttp.ClientSession
    common: str
    dev: str


@contextlib.asynccontextmanager
async def gate(
    port: int | None = None, *, guard: Guard | None = None, usage: bool = False
) -> AsyncIterator[Gate]:
    door, counts = Door(port), Counts()
    model = Model(name="small", repo="Qwen/Small")
    agents = [Agent(name=name, model=model, port=1, context=1, sequences=1) for name in ("dev", "po")]
    made = Front(
        names=Names(agents, {"coder": "dev"}),
        manners={},
        doorkeeper=door,
        guard=guard or Guard(),
        counts=counts,
        include_usage=usage,
    )
    ports = _free_port(), _free_port()
    timeout = aiohttp.ClientTimeout(total=LIMIT_S)
    async with Doors("127.0.0.1", made) as doors, aiohttp.ClientSession(timeout=timeout) as client:
        await doors.turn_to(dict(zip(ports, (None, "dev"), strict=True)))
        yield Gate(door, counts, client, *(f"http://127.0.0.1:{each}" for each in ports))
    made.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def echo(wire: Wire, heard: Heard) -> None:
    """Answer with what was heard."""
    said = {"line": heard.line, "headers": heard.headers, "body": json.loads(heard.body or b"null")}
    await wire.say(answer(json.dumps(said).encode()))


def streaming(*texts: str, end: bytes = STREAM_END) -> Callable[[Wire, Heard], Awaitable[None]]:
    async def talk(wire: Wire, _: Heard) -> None:
        await wire.say(STREAM_HEAD, *(chunk(f"data: {text}\n\n".encode()) for text in texts), end)
        if not end:
            wire.writer.close()

    return talk


class TestWhoAnswers:
    @pytest.mark.parametrize("name", ["dev", "coder", "Qwen/Small"])
    async def test_the_model_decides_and_is_sent_as_the_agents_name(self, name: str) -> None:
        async with engine(echo) as served, gate(served.port) as at:
            async with at.client.post(at.common + CHAT, json={**HELLO, "model": name}) as said:
                heard = await said.json()
            assert heard["body"] == HELLO
            assert heard["line"] == f"POST {CHAT} HTTP/1.1"
            assert [ticket.agent for ticket in at.door.tickets] == ["dev"]

    async def test_on_an_agents_port_the_port_decides(self) -> None:
        async with (
            engine(echo) as served,
            gate(served.port) as at,
            at.client.post(at.dev + CHAT, json={**HELLO, "model": "gpt-4"}) as said,
        ):
            assert (await said.json())["body"] == HELLO

    async def test_a_body_that_needs_no_change_arrives_byte_by_byte(self) -> None:
        raw = b'{"model" : "dev",  "x":1.50}'
        async with engine(echo) as served, gate(served.port) as at:
            await at.client.post(at.dev + CHAT, data=raw, headers={"Content-Type": "application/json"})
        assert served.heard[0].body == raw

    async def test_keys_and_cookies_stay_here(self) -> None:
        headers = {"Authorization": "Bearer x", "x-api-key": "x", "Cookie": "a=b", "X-Request-Id": "7",
                   "Connection": "X-Hop", "X-Hop": "1"}  # fmt: skip
        async with engine(echo) as served, gate(served.port) as at:
            await at.client.post(at.common + CHAT, json=HELLO, headers=headers)
        sent = served.heard[0].headers
        assert sent["x-request-id"] == "7"
        assert not sent.keys() & {"authorization", "x-api-key", "cookie", "x-hop", "origin", "connection"}

    async def test_an_engines_error_passes_as_it_is(self) -> None:
        async def talk(wire: Wire, _: Heard) -> None:
            await wire.say(answer(b'{"error": "too long"}', status="400 Bad Request"))

        async with (
            engine(talk) as served,
            gate(served.port) as at,
            at.client.post(at.common + CHAT, json=HELLO) as said,
        ):
            assert (said.status, await said.read()) == (400, b'{"error": "too long"}')

    async def test_usage_is_asked_for_in_streams_when_the_catalog_says_so(self) -> None:
        async with engine(echo) as served, gate(served.port, usage=True) as at:
            await at.client.post(at.common + CHAT, json=HELLO)
            await at.client.post(at.common + CHAT, json={**HELLO, "stream": True})
            own = {**HELLO, "stream": True, "stream_options": {"include_usage": False}}
            await at.client.post(at.common + CHAT, json=own)
        asked = [json.loads(heard.body).get("stream_options") for heard in served.heard]
        assert asked == [None, {"include_usage": True}, {"include_usage": False}]


class TestBeforeAnythingWaits:
    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            (b"{", 400, "invalid_json"),
            (b"[" * 100_000, 400, "invalid_json"),
            (b"[]", 400, "invalid_json"),
            (b"{}", 400, "model_missing"),
            (b'{"model": 7}', 400, "model_missing"),
            (b'{"model": "gpt-4"}', 404, "model_not_found"),
            (b"", 400, "model_missing"),
        ],
    )
    async def test_a_bad_request_is_answered_in_openais_shape(
        self, body: bytes, status: int, code: str
    ) -> None:
        async with gate() as at:
            headers = {"Content-Type": "application/json"}
            async with at.client.post(at.common + CHAT, data=body, headers=headers) as said:
                error = (await said.json())["error"]
            assert (said.status, error["code"], error["source"]) == (status, code, "agent-manager")
            assert at.door.tickets == []

    async def test_a_body_can_be_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(messages, "LARGEST_BODY_BYTES", 1000)
        async with gate() as at, at.client.post(at.common + CHAT, json={"model": "x" * 1000}) as said:
            assert said.status == 413

    async def test_a_page_is_refused(self) -> None:
        async with (
            gate() as at,
            at.client.post(at.common + CHAT, json=HELLO, headers={"Origin": "http://evil"}) as said,
        ):
            assert (said.status, (await said.json())["error"]["code"]) == (403, "origin_refused")

    async def test_a_full_queue_says_when_to_come_again(self) -> None:
        async with gate() as at:
            at.door.full = RefusedError(429, "queue_full", "64 requests wait already", retry_after_s=30)
            async with at.client.post(at.common + CHAT, json=HELLO) as said:
                assert (said.status, said.headers["Retry-After"]) == (429, "30")


class TestWaiting:
    async def test_what_waited_for_a_swap_is_told_in_headers(self) -> None:
        async with engine(echo) as served, gate() as at:
            asking = asyncio.create_task(at.client.post(at.common + CHAT, json=HELLO))
            await at.door.asked.wait()
            at.door.tickets[0].turn.set_result(Granted(port=served.port, swap="po -> dev"))
            said = await asking
            assert said.headers["X-Agent-Manager-Swap"] == "po -> dev"
            assert int(said.headers["X-Agent-Manager-Waited-Ms"]) >= 0
            assert at.door.tickets[0].closed.is_set()

    async def test_a_stream_hears_comments_and_then_its_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(front, "KEEP_ALIVE_AFTER_S", 0.05)
        monkeypatch.setattr(front, "KEEP_ALIVE_EVERY_S", 0.05)
        async with (
            engine(streaming("one", "[DONE]")) as served,
            gate() as at,
            at.client.post(at.common + CHAT, json={**HELLO, "stream": True}) as said,
        ):
            comment = await said.content.readuntil(b"\n\n")
            assert comment == b": agent-manager: loading po, 2 before you, about 20 s\n\n"
            at.door.tickets[0].turn.set_result(Granted(port=served.port))
            lines = (await said.read()).split(b"\n\n")
        assert [line for line in lines if line and not line.startswith(b":")] == [
            b"data: one",
            b"data: [DONE]",
        ]

    async def test_after_a_comment_errors_come_as_events(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(front, "KEEP_ALIVE_AFTER_S", 0.05)

        async def talk(wire: Wire, _: Heard) -> None:
            await wire.say(answer(b'{"error":\n "of the engine"}', status="400 Bad Request"))

        async with engine(talk) as served, gate() as at:
            for outcome in (Granted(port=served.port), RefusedError(503, "agent_failed", "po did not start")):
                at.door.tickets.clear()
                async with at.client.post(at.common + CHAT, json={**HELLO, "stream": True}) as said:
                    assert said.status == 200
                    await said.content.readline()
                    turn = at.door.tickets[0].turn
                    turn.set_result(outcome) if isinstance(outcome, Granted) else turn.set_exception(outcome)
                    event = (await said.read()).strip().splitlines()[-1]
                assert json.loads(event.removeprefix(b"data: "))["error"] is not None

    async def test_a_client_that_goes_away_leaves_the_queue(self) -> None:
        async with gate() as at:
            asking = asyncio.create_task(at.client.post(at.common + CHAT, json=HELLO))
            await at.door.asked.wait()
            asking.cancel()
            async with asyncio.timeout(LIMIT_S):
                await at.door.tickets[0].closed.wait()


class TestStreams:
    async def test_pieces_pass_as_they_come(self) -> None:
        more = asyncio.Event()

        async def talk(wire: Wire, _: Heard) -> None:
            await wire.say(STREAM_HEAD, chunk(b"data: one\n\n"))
            await more.wait()
            await wire.say(chunk(b"data: two\n\n"), STREAM_END)

        async with (
            engine(talk) as served,
            gate(served.port) as at,
            at.client.post(at.common + CHAT, json={**HELLO, "stream": True}) as said,
        ):
            assert said.headers["Content-Type"] == "text/event-stream"
            assert await said.content.readuntil(b"\n\n") == b"data: one\n\n"
            more.set()
            assert await said.read() == b"data: two\n\n"

    async def test_a_client_that_goes_away_is_cancelled_in_the_engine_at_once(self) -> None:
        left = asyncio.Event()

        async def talk(wire: Wire, _: Heard) -> None:
            await wire.say(STREAM_HEAD, chunk(b"data: one\n\n"))
            await wire.until_gone()
            left.set()

        async with engine(talk) as served, gate(served.port) as at, asyncio.timeout(LIMIT_S):
            said = await at.client.post(at.common + CHAT, json={**HELLO, "stream": True})
            await said.content.readuntil(b"\n\n")
            said.close()
            await left.wait()
            await at.door.tickets[0].closed.wait()

    async def test_an_engine_that_breaks_off_ends_in_an_error_event(self) -> None:
        async with (
            engine(streaming("one", end=b"")) as served,
            gate(served.port) as at,
            at.client.post(at.common + CHAT, json={**HELLO, "stream": True}) as said,
        ):
            events = (await said.text()).strip().split("\n\n")
        assert events[0] == "data: one"
        assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == "engine_gone"

    async def test_an_engine_that_dies_before_it_answers_costs_a_wait_not_an_error(self) -> None:
        async def dies(wire: Wire, _: Heard) -> None:
            wire.writer.close()

        async with engine(dies) as dead, engine(echo) as served, gate() as at:
            asking = asyncio.create_task(at.client.post(at.common + CHAT, json=HELLO))
            await at.door.asked.wait()
            at.door.port = served.port
            at.door.tickets[0].turn.set_result(Granted(port=dead.port))
            said = await asking
            assert (await said.json())["body"] == HELLO
            assert [ticket.closed.is_set() for ticket in at.door.tickets] == [True, True]

    async def test_an_engine_that_always_dies_is_told(self) -> None:
        async def dies(wire: Wire, _: Heard) -> None:
            wire.writer.close()

        async with engine(dies) as dead, gate(dead.port) as at:
            async with at.client.post(at.common + CHAT, json=HELLO) as said:
                assert (said.status, (await said.json())["error"]["code"]) == (502, "engine_gone")
            assert len(at.door.tickets) == front.TRIES


class TestItsOwn:
    async def test_models_are_all_listed_with_their_state(self) -> None:
        async with gate() as at:
            async with at.client.get(at.dev + "/v1/models") as said:
                models = (await said.json())["data"]
            async with at.client.get(at.common + "/v1/models/coder") as said:
                assert (await said.json())["id"] == "dev"
        assert [(each["id"], each["state"]) for each in models] == [("dev", "ready"), ("po", "absent")]

    async def test_running_and_unload(self) -> None:
        async with gate() as at:
            async with at.client.get(at.common + "/running") as said:
                assert [each["id"] for each in (await said.json())["running"]] == ["dev"]
            async with at.client.post(at.common + "/unload") as said:
                assert said.status == 202
            assert at.door.unloads == 1

    async def test_what_was_answered_is_counted(self) -> None:
        async with engine(echo) as served, gate(served.port) as at:
            await at.client.post(at.common + CHAT, json=HELLO)
            await at.client.post(at.common + CHAT, data=b"{")
            async with at.client.get(at.common + "/metrics") as said:
                page = await said.text()
        assert 'agent_manager_requests_total{agent="dev",status="200"} 1.0' in page
        assert 'agent_manager_queue_seconds_count{agent="dev"} 1.0' in page

    async def test_a_key_is_asked_for_but_not_by_health(self) -> None:
        async with gate(guard=Guard(key="secret")) as at:
            async with at.client.get(at.common + "/v1/models") as said:
                assert said.status == 401
            async with at.client.get(at.common + "/health") as said:
                assert said.status == 200
