"""The HTTP front: checks a request, finds its agent, waits for its turn, passes it through.

JSON and model are checked before anything waits. A client that waits for a stream hears comments after
`KEEP_ALIVE_AFTER_S`, and errors as events from then on; everybody else gets status and headers when there is an
answer. Whatever happens to a request, its ticket is closed.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from agent_manager.gateway import relay
from agent_manager.gateway.counts import CONTENT_TYPE
from agent_manager.gateway.renaming import Renaming
from agent_manager.gateway.replies import EVENT_STREAM, error_event, keep_alive, refuse, say
from agent_manager.gateway.routing import Own, ToAgent, route
from agent_manager.gateway.tickets import RefusedError
from agent_manager.gateway.upstream import Upstream, UpstreamGoneError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_manager.gateway.counts import Counts
    from agent_manager.gateway.exchange import Exchange
    from agent_manager.gateway.guard import Guard
    from agent_manager.gateway.manners import Manners
    from agent_manager.gateway.messages import Header, Request
    from agent_manager.gateway.routing import Names
    from agent_manager.gateway.tickets import AgentNow, Doorkeeper, Granted, Ticket
    from agent_manager.gateway.upstream import Answer

KEEP_ALIVE_AFTER_S: Final = 15.0
KEEP_ALIVE_EVERY_S: Final = 15.0
"""Node's clients drop a stream that is silent for 300 s, proxies after 60."""
TRIES: Final = 3
"""How often a request is sent that no engine began to answer, before its client is told."""

_STREAM_HEADERS: Final = ((b"Content-Type", EVENT_STREAM), (b"Cache-Control", b"no-cache"))
_STREAMS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Where `stream_options` means something."""


class Asked(Struct, kw_only=True):
    """A request that was understood: whose it is, and what the engine gets."""

    agent: str
    errand: relay.Errand
    streams: bool


class Front:
    """Answers requests on all ports of the gateway."""

    def __init__(
        self,
        *,
        names: Names,
        manners: Mapping[str, Manners],
        doorkeeper: Doorkeeper,
        guard: Guard,
        counts: Counts,
        include_usage: bool,
    ) -> None:
        self._names = names
        self._manners = manners
        self._doorkeeper = doorkeeper
        self._guard = guard
        self._counts = counts
        self._include_usage = include_usage
        self._upstreams: dict[int, Upstream] = {}

    def admit(self, request: Request) -> None:
        """Whether its client may talk to the gateway at all; see Answerer."""
        open_to_all = request.path == "/health" or _is_preflight(request)
        try:
            self._guard.check(request.headers, open_to_all=open_to_all)
        except RefusedError as error:
            self._counts.answered("", error.status)
            raise

    def shown_to(self, request: Request) -> tuple[Header, ...]:
        """What lets a page read the answer; see Answerer."""
        return self._guard.shown_to(request.headers)

    async def answer(self, request: Request, exchange: Exchange, agent: str | None) -> None:
        """Answer what came to the door of that agent, or to the common one (None); see Answerer."""
        self._counts.open += 1
        try:
            await self._answer(request, exchange, agent)
        except RefusedError as error:
            self._counts.answered(agent or "", error.status)
            refuse(exchange, error)
        finally:
            self._counts.open -= 1

    def renew(
        self, *, names: Names, manners: Mapping[str, Manners], guard: Guard, include_usage: bool
    ) -> None:
        """Take these from the next request on."""
        self._names, self._manners, self._guard, self._include_usage = names, manners, guard, include_usage

    def close(self) -> None:
        """Hang up on all engines."""
        for upstream in self._upstreams.values():
            upstream.close()

    async def _answer(self, request: Request, exchange: Exchange, door: str | None) -> None:
        if _is_preflight(request):
            exchange.answer(204, self._guard.preflight(request.headers), b"")
            return
        match route(request.method, request.path, door=door):
            case Own(path=own, name=name):
                self._own(exchange, own, name)
            case ToAgent() as to:
                await self._served(exchange, self._understood(request, to))

    def _understood(self, request: Request, to: ToAgent) -> Asked:
        agent = self._names.agent(to.agent) if to.agent is not None else None
        streams, body = False, request.body
        if body and "json" in request.headers.get("content-type", ""):
            document = _document(body)
            if agent is None:
                named = document.get("model")
                if not isinstance(named, str):
                    raise RefusedError(400, "model_missing", "the body names no model")
                agent = self._names.agent(named)
            streams = document.get("stream") is True
            changed = self._completed(document, agent, to.path)
            if changed != document:
                body = json.dumps(changed).encode()
        elif agent is None:
            raise RefusedError(400, "model_missing", "name the model in a JSON body")
        errand = relay.Errand(
            method=request.method,
            target=f"{to.path}?{request.query}" if request.query else to.path,
            headers=relay.engine_headers(request.raw),
            body=body,
        )
        return Asked(agent=agent, errand=errand, streams=streams)

    def _completed(self, document: dict[str, Any], agent: str, path: str) -> dict[str, Any]:
        """The request as its engine gets it; `document` itself when nothing is another."""
        changed = document
        named = document.get("model")
        if named is not None and named != agent:
            changed = {**changed, "model": agent}
        if self._include_usage and path in _STREAMS and document.get("stream") is True:
            options = document.get("stream_options")
            usage = {"include_usage": True} | (options if isinstance(options, dict) else {})
            changed = {**changed, "stream_options": usage}
        if agent in self._manners:
            changed = self._manners[agent].complete(changed, path)
        return changed

    async def _served(self, exchange: Exchange, asked: Asked) -> None:
        """Wait for its turn and pass it through; again, where the engine went before it began to answer."""
        waiting = _Waiting(exchange, asked.streams)
        began = time.monotonic()
        left = TRIES
        while True:
            left -= 1
            ticket = self._doorkeeper.ask(asked.agent)
            try:
                granted = await waiting.until_granted(ticket)
                waited_s = time.monotonic() - began
                self._counts.queued(asked.agent, waited_s)
                async with await relay.ask(self._upstream(granted.port), asked.errand) as answer:
                    headers = _of_waiting(granted, waited_s)
                    await waiting.pass_on(answer, headers, self._renaming(asked.agent))
            except UpstreamGoneError as gone:
                if gone.began or not left:
                    await self._refused(waiting, asked.agent, relay.broken_off(gone))
                    return
                await ticket.unanswered()
            except RefusedError as error:
                await self._refused(waiting, asked.agent, error)
                return
            else:
                self._counts.answered(asked.agent, answer.status)
                return
            finally:
                ticket.close()

    async def _refused(self, waiting: _Waiting, agent: str, error: RefusedError) -> None:
        self._counts.answered(agent, error.status)
        await waiting.refused(error)

    def _renaming(self, agent: str) -> Renaming | None:
        manners = self._manners.get(agent)
        if manners is None or manners.served_as == agent:
            return None
        return Renaming(manners.served_as, agent)

    def _upstream(self, port: int) -> Upstream:
        upstream = self._upstreams.get(port)
        if upstream is None:
            upstream = self._upstreams[port] = Upstream(port)
        return upstream

    # --- what the gateway answers itself ------------------------------------------------------------------

    def _own(self, exchange: Exchange, path: str, name: str | None) -> None:
        match path:
            case "/health":
                say(exchange, {"status": "ok"})
            case "/metrics":
                exchange.answer(200, [(b"Content-Type", CONTENT_TYPE.encode())], self._counts.page())
            case "/unload":
                self._doorkeeper.unload()
                say(exchange, {"status": "unloading"}, status=202)
            case "/running":
                present = [each for each in self._doorkeeper.agents() if each.state != "absent"]
                say(exchange, {"running": [_model(each) for each in present]})
            case _:
                self._models(exchange, name)

    def _models(self, exchange: Exchange, name: str | None) -> None:
        models = [_model(each) for each in self._doorkeeper.agents()]
        if name is None:
            say(exchange, {"object": "list", "data": models})
        else:
            agent = self._names.agent(name)
            say(exchange, next(each for each in models if each["id"] == agent))


class _Waiting:
    """A client while it waits, and what it has been sent meanwhile."""

    def __init__(self, exchange: Exchange, streams: bool) -> None:  # noqa: FBT001 - one fact of one request
        self._exchange = exchange
        self._streams = streams
        self._hears = False

    async def until_granted(self, ticket: Ticket) -> Granted:
        """Wait for the turn; a client of a stream hears comments. Raises RefusedError."""
        if not self._streams or not ticket.waits:
            return await ticket.granted()
        patience_s = KEEP_ALIVE_AFTER_S
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    return await ticket.granted()
            except TimeoutError:
                if not self._hears:
                    self._hears = True
                    self._exchange.begin(200, _STREAM_HEADERS)
                await self._exchange.write(keep_alive(ticket.whereabouts()))
                patience_s = KEEP_ALIVE_EVERY_S

    async def pass_on(self, answer: Answer, more: list[Header], renaming: Renaming | None) -> None:
        """The engine's answer. In a stream that was begun, an answer that is no stream is an error event."""
        if not self._hears:
            await relay.pass_on(self._exchange, answer, more, renaming)
        elif answer.status == 200:  # noqa: PLR2004 - HTTP's OK
            await relay.body_into(self._exchange, answer, renaming)
        else:
            whole = b""
            while piece := await answer.piece():
                whole += piece
            await self._exchange.write(b"data: " + b" ".join(whole.splitlines()) + b"\n\n")
            self._exchange.end()

    async def refused(self, error: RefusedError) -> None:
        """Tell it, as an answer or as an event; who has part of an engine's answer is hung up on."""
        if not self._exchange.began:
            refuse(self._exchange, error)
        elif self._hears:
            await self._exchange.write(error_event(error))
            self._exchange.end()


def _is_preflight(request: Request) -> bool:
    """Whether a browser asks what a page may send."""
    return request.method == "OPTIONS" and "origin" in request.headers


def _document(body: bytes) -> dict[str, Any]:
    try:
        # It is UTF-8 (RFC 8259, section 8.1); looking for what else it might be takes longer than decoding it.
        document = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise RefusedError(400, "invalid_json", "the body is not a JSON object")
    return document


def _of_waiting(granted: Granted, waited_s: float) -> list[Header]:
    if granted.swap is None:
        return []
    return [
        (b"X-Agent-Manager-Waited-Ms", b"%d" % round(waited_s * 1000)),
        (b"X-Agent-Manager-Swap", granted.swap.encode()),
    ]


def _model(agent: AgentNow) -> dict[str, object]:
    return {
        "id": agent.name,
        "object": "model",
        "created": 0,
        "owned_by": "agent-manager",
        "root": agent.model,
        "aliases": list(agent.aliases),
        "state": agent.state.value,
        "port": agent.port,
        "running": agent.running,
        "waiting": agent.waiting,
    }
