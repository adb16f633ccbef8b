"""The HTTP front: checks a request, finds its agent, waits for its turn, passes it through.

JSON and model are checked before anything waits. A client that waits for a stream hears comments after
`KEEP_ALIVE_AFTER_S`, and errors as events from then on; everybody else gets status and headers when there is an
answer. Whatever happens to a request, its ticket is closed.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from agent_manager.gateway import relay
from agent_manager.gateway.counts import CONTENT_TYPE
from agent_manager.gateway.renaming import Renaming
from agent_manager.gateway.replies import EVENT_STREAM, error_event, keep_alive, refusal
from agent_manager.gateway.routing import Own, ToAgent, route
from agent_manager.gateway.tickets import RefusedError
from agent_manager.gateway.upstream import Upstream, UpstreamGoneError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from agent_manager.gateway.counts import Counts
    from agent_manager.gateway.guard import Guard
    from agent_manager.gateway.manners import Manners
    from agent_manager.gateway.routing import Names
    from agent_manager.gateway.tickets import AgentNow, Doorkeeper, Granted, Ticket
    from agent_manager.gateway.upstream import Answer

KEEP_ALIVE_AFTER_S: Final = 15.0
KEEP_ALIVE_EVERY_S: Final = 15.0
"""Node's clients drop a stream that is silent for 300 s, proxies after 60."""
BODY_TIMEOUT_S: Final = 60.0
LARGEST_BODY_BYTES: Final = 64 << 20
"""A conversation with pictures in it."""
TRIES: Final = 3
"""How often a request is sent that no engine began to answer, before its client is told."""

_STREAMS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Where `stream_options` means something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
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

    def door(self, agent: str | None) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        """What answers on the port of an agent, or on the common one (None)."""

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            self._counts.open += 1
            try:
                return await self._answer(request, agent)
            except RefusedError as error:
                self._counts.answered(agent or "", error.status)
                return refusal(error)
            finally:
                self._counts.open -= 1

        return answer

    def renew(
        self, *, names: Names, manners: Mapping[str, Manners], guard: Guard, include_usage: bool
    ) -> None:
        """Take these from the next request on."""
        self._names, self._manners, self._guard, self._include_usage = names, manners, guard, include_usage

    def close(self) -> None:
        """Hang up on all engines."""
        for upstream in self._upstreams.values():
            upstream.close()

    async def _answer(self, request: web.BaseRequest, door: str | None) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        self._guard.check(request.headers, open_to_all=path == "/health")
        match route(request.method, path, door=door):
            case Own(path=own, name=name):
                return self._own(own, name)
            case ToAgent() as to:
                asked = await self._understood(request, to)
                return await self._served(request, asked)

    async def _understood(self, request: web.BaseRequest, to: ToAgent) -> Asked:
        agent = self._names.agent(to.agent) if to.agent is not None else None
        body = await _body(request)
        query = request.raw_path.partition("?")[2]
        errand = relay.Errand(
            method=request.method,
            target=f"{to.path}?{query}" if query else to.path,
            headers=relay.engine_headers(request.raw_headers),
            body=body,
        )
        if not body or "json" not in request.content_type:
            if agent is None:
                raise RefusedError(400, "model_missing", "name the model in a JSON body")
            return Asked(agent=agent, errand=errand, streams=False)
        document = _document(body)
        named = document.get("model")
        if agent is None:
            if not isinstance(named, str):
                raise RefusedError(400, "model_missing", "the body names no model")
            agent = self._names.agent(named)
        streams = document.get("stream") is True
        changed = dict(document)
        if named != agent and named is not None:
            changed["model"] = agent
        if streams and self._include_usage and to.path in _STREAMS:
            options = document.get("stream_options")
            changed["stream_options"] = {"include_usage": True} | (
                options if isinstance(options, dict) else {}
            )
        if agent in self._manners:
            changed = self._manners[agent].complete(changed, to.path)
        if changed != document:
            errand = replace(errand, body=json.dumps(changed).encode())
        return Asked(agent=agent, errand=errand, streams=streams)

    async def _served(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        """Wait for its turn and pass it through; again, where the engine went before it began to answer."""
        waiting = _Waiting(request, asked.streams)
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
                    renaming = self._renaming(asked.agent)
                    response, status = await waiting.pass_on(answer, headers, renaming)
                self._counts.answered(asked.agent, status)
                return response  # noqa: TRY300 - it is the answer
            except UpstreamGoneError as gone:
                if gone.began or not left:
                    return await waiting.refused(relay.broken_off(gone))
                await ticket.unanswered()
            except RefusedError as error:
                return await waiting.refused(error)
            finally:
                ticket.close()

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

    def _own(self, path: str, name: str | None) -> web.Response:
        match path:
            case "/health":
                return web.json_response({"status": "ok"})
            case "/metrics":
                return web.Response(body=self._counts.page(), headers={"Content-Type": CONTENT_TYPE})
            case "/unload":
                self._doorkeeper.unload()
                return web.json_response({"status": "unloading"}, status=202)
            case "/running":
                present = [each for each in self._doorkeeper.agents() if each.state != "absent"]
                return web.json_response({"running": [_model(each) for each in present]})
        models = [_model(each) for each in self._doorkeeper.agents()]
        if name is None:
            return web.json_response({"object": "list", "data": models})
        agent = self._names.agent(name)
        return web.json_response(next(each for each in models if each["id"] == agent))


class _Waiting:
    """A client while it waits, and what it has been sent meanwhile."""

    def __init__(self, request: web.BaseRequest, streams: bool) -> None:  # noqa: FBT001 - one fact of one request
        self._request = request
        self._streams = streams
        self._response: web.StreamResponse | None = None

    async def until_granted(self, ticket: Ticket) -> Granted:
        """Wait for the turn; a client of a stream hears comments. Raises RefusedError."""
        if not self._streams:
            return await ticket.granted()
        patience_s = KEEP_ALIVE_AFTER_S
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    return await ticket.granted()
            except TimeoutError:
                response = await self._begun()
                await response.write(keep_alive(ticket.whereabouts()))
                patience_s = KEEP_ALIVE_EVERY_S

    async def pass_on(
        self, answer: Answer, more: dict[str, str], renaming: Renaming | None
    ) -> tuple[web.StreamResponse, int]:
        """The engine's answer. In a stream that was begun, an answer that is no stream is an error event."""
        if self._response is None:
            return await relay.pass_on(self._request, answer, more, renaming)
        if answer.status == 200:  # noqa: PLR2004 - HTTP's OK
            await relay.body_into(self._response, answer, renaming)
            return self._response, answer.status
        whole = b""
        while piece := await answer.piece():
            whole += piece
        await self._response.write(b"data: " + b" ".join(whole.splitlines()) + b"\n\n")
        await self._response.write_eof()
        return self._response, answer.status

    async def refused(self, error: RefusedError) -> web.StreamResponse:
        """Tell it, as a response or as an event."""
        if self._response is None:
            if self._request.transport is None:
                raise error
            return refusal(error)
        await self._response.write(error_event(error))
        await self._response.write_eof()
        return self._response

    async def _begun(self) -> web.StreamResponse:
        if self._response is None:
            headers = {"Content-Type": EVENT_STREAM, "Cache-Control": "no-cache"}
            self._response = web.StreamResponse(status=200, headers=headers)
            await self._response.prepare(self._request)
        return self._response


async def _body(request: web.BaseRequest) -> bytes:
    if request.content_length is not None and request.content_length > LARGEST_BODY_BYTES:
        raise _too_large()
    if (
        request.content_length is not None and request.content.is_eof()
    ):  # it came with the head, as nearly all do
        return request.content.read_nowait()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large() from None
    except TimeoutError:
        raise RefusedError(
            408, "body_timeout", f"the body did not come within {BODY_TIMEOUT_S:.0f} s"
        ) from None


def _too_large() -> RefusedError:
    return RefusedError(413, "body_too_large", f"a body may have {LARGEST_BODY_BYTES >> 20} MiB")


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise RefusedError(400, "invalid_json", "the body is not a JSON object")
    return document


def _of_waiting(granted: Granted, waited_s: float) -> dict[str, str]:
    if granted.swap is None:
        return {}
    return {
        "X-Agent-Manager-Waited-Ms": str(round(waited_s * 1000)),
        "X-Agent-Manager-Swap": granted.swap,
    }


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
