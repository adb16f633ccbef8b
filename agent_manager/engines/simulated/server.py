"""The HTTP server: vLLM's endpoints over the core, from listening to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import uuid
from typing import TYPE_CHECKING, Any

from aiohttp import web

from agent_manager.engines.simulated import log
from agent_manager.engines.simulated.api import (
    check_model,
    limit_tokens,
    read_chat,
    read_text,
    read_tokenize,
)
from agent_manager.engines.simulated.core import WAKE_TAGS, EngineDead, Job
from agent_manager.engines.simulated.fields import ApiError
from agent_manager.engines.simulated.generation import compose
from agent_manager.engines.simulated.loading import VERSION
from agent_manager.engines.simulated.metrics import CONTENT_TYPE
from agent_manager.engines.simulated.replies import ChatReply, Reply, TextReply
from agent_manager.engines.simulated.responses import ResponsesReply, read_responses
from agent_manager.engines.simulated.tokens import split_tokens, token_id
from agent_manager.gpu.simulated import NotEnoughMemory

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from agent_manager.engines.simulated.api import Ask
    from agent_manager.engines.simulated.core import Core
    from agent_manager.engines.simulated.options import Options
    from agent_manager.engines.simulated.settings import Settings

OWNER = "agent-manager-simulated"
FINGERPRINT = f"simulated-{VERSION}"
ERROR_HEADER = "X-Simulate-Error"
"""A completion request that carries it gets this HTTP status as an error."""

_MAX_BODY_BYTES = 64 << 20
_CLEANUP_S = 1.0
_ACCEPT_ROUNDS = 10


class Server:
    """The endpoints of one engine."""

    def __init__(self, core: Core, options: Options, settings: Settings) -> None:
        self._core = core
        self._options = options
        self._faults = settings.faults
        self._answered = 0
        self._with_sleep = options.sleep_mode and settings.dev_mode

    def application(self) -> web.Application:
        """What answers requests."""
        application = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[_shape_errors])
        application.on_response_prepare.append(self._log_access)
        application.add_routes(
            [
                web.get("/health", self._health),
                web.get("/version", self._version),
                web.get("/metrics", self._metrics),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._text),
                web.post("/v1/responses", self._responses),
                web.post("/tokenize", self._tokenize),
            ]
        )
        if self._with_sleep:
            application.add_routes(
                [
                    web.post("/sleep", self._sleep),
                    web.post("/wake_up", self._wake),
                    web.get("/is_sleeping", self._is_sleeping),
                ]
            )
        return application

    async def _log_access(self, request: web.Request, response: web.StreamResponse) -> None:
        if request.path not in self._options.quiet_paths:
            line = f"{request.method} {request.path_qs} HTTP/{request.version.major}.{request.version.minor}"
            log.access(f'{request.remote} - "{line}" {response.status} {response.reason}')

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    async def _metrics(self, _: web.Request) -> web.Response:
        text = self._core.metrics.render(self._options.names[0], self._core.gauges())
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _models(self, _: web.Request) -> web.Response:
        models = [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": OWNER,
                "root": self._options.model,
                "parent": None,
                "max_model_len": self._options.max_model_len,
            }
            for name in self._options.names
        ]
        return web.json_response({"object": "list", "data": models})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await _read_json(request)
        check_model(body, self._options)
        tokens = [token_id(token) for token in split_tokens(read_tokenize(body))]
        count = {"count": len(tokens), "max_model_len": self._options.max_model_len}
        return web.json_response({**count, "tokens": tokens, "token_strs": None})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, read_chat, ChatReply)

    async def _text(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, read_text, TextReply)

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, read_responses, ResponsesReply)

    async def _complete(
        self, request: web.Request, read: Callable[[Any, Options], Ask], reply_type: type[Reply]
    ) -> web.StreamResponse:
        body = await _read_json(request)
        self._fail_on_demand(request)
        check_model(body, self._options)
        ask = read(body, self._options)
        jobs = [
            Job(answer=compose(ask, prompt, index, limit), prompt_tokens=prompt.tokens)
            for prompt in ask.prompts
            for limit in [limit_tokens(ask, prompt, self._options)]
            for index in range(ask.n)
        ]
        if self._core.stopping:
            raise EngineDead
        request_id = request.headers.get("X-Request-Id") or uuid.uuid4().hex
        reply = reply_type(ask, jobs, body=body, request_id=request_id, fingerprint=FINGERPRINT)
        response = await (self._stream if ask.stream else self._collect)(request, reply, jobs)
        self._count_answer()
        return response

    async def _collect(self, request: web.Request, reply: Reply, jobs: list[Job]) -> web.StreamResponse:
        async with contextlib.aclosing(self._core.generate(jobs)) as steps:
            async for step in steps:
                reply.add(step)
        response = web.json_response(reply.document())
        await response.prepare(request)
        await response.write_eof()
        return response

    async def _stream(self, request: web.Request, reply: Reply, jobs: list[Job]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        try:
            async with contextlib.aclosing(self._core.generate(jobs)) as steps:
                for chunk in reply.opening():
                    await response.write(reply.frame(chunk))
                async for step in steps:
                    reply.add(step)
                    for chunk in reply.chunks(step):
                        await response.write(reply.frame(chunk))
            for chunk in reply.closing():
                await response.write(reply.frame(chunk))
        except EngineDead as error:
            # The status was sent long ago: all that is left is to say it in the stream, as vLLM does.
            await response.write(reply.frame(_dead(error).body()))
        await response.write_eof(reply.end)
        return response

    def _fail_on_demand(self, request: web.Request) -> None:
        asked = request.headers.get(ERROR_HEADER)
        if asked is not None and asked.isdigit() and 400 <= int(asked) < 600:  # noqa: PLR2004 - HTTP's error range
            raise ApiError(
                "an error was asked for", status=int(asked), kind="SimulatedError", param=ERROR_HEADER
            )
        if self._faults.lie_in_health:
            raise ApiError("the fault 'lie-in-health' was asked for", status=500, kind="InternalServerError")

    def _count_answer(self) -> None:
        self._answered += 1
        if self._answered == self._faults.crash_after:
            crash(f"the fault 'crash-after:{self._answered}' was asked for")

    async def _sleep(self, request: web.Request) -> web.Response:
        level = request.query.get("level", "1")
        if level != "1":
            raise ApiError(f"the simulated engine sleeps at level 1 only, got {level}", param="level")
        await self._core.sleep()
        return web.json_response({"status": "sleeping", "level": 1})

    async def _wake(self, request: web.Request) -> web.Response:
        tags = request.query.getall("tags", [])
        if not WAKE_TAGS.issuperset(tags):
            raise ApiError(f"tags must be of {', '.join(sorted(WAKE_TAGS))}", param="tags")
        try:
            awake = self._core.wake(frozenset(tags))
        except NotEnoughMemory as error:
            raise ApiError(
                f"CUDA Error: out of memory, {error}", status=500, kind="InternalServerError"
            ) from None
        return web.json_response({"status": "awake" if awake else "sleeping", "tags": tags or None})

    async def _is_sleeping(self, _: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": self._core.asleep})


async def serve(
    server: Server, core: Core, listener: socket.socket, options: Options, settings: Settings
) -> None:
    """Listen on the bound `listener`, say that it is ready, and serve until SIGTERM or SIGINT has been obeyed."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    if not settings.faults.ignore_sigterm:
        loop.add_signal_handler(signal.SIGTERM, stop.set)
    runner = web.AppRunner(
        server.application(), handler_cancellation=True, access_log=None, shutdown_timeout=_CLEANUP_S
    )
    await runner.setup()
    host, port = listener.getsockname()[:2]
    log.info(log.SERVER, "entry.py:140", f"Starting vLLM server on http://{host}:{port}")
    log.access(f"Started server process [{os.getpid()}]")
    log.access("Waiting for application startup.")
    await web.SockSite(runner, listener).start()
    log.access("Application startup complete.")
    if settings.faults.crash_after == 0:
        crash("the fault 'crash-after:0' was asked for")
    await stop.wait()
    await _stop(core, options.shutdown_timeout_s)
    await _stop_accepting(listener)
    await runner.cleanup()
    await asyncio.sleep(settings.faults.slow_stop_s)


async def _stop(core: Core, timeout_s: int) -> None:
    """Refuse what is new; let the rest finish for `timeout_s`, and then end it with an error."""
    log.info(log.SERVER, "launcher.py:256", "[shutdown] API server: shutdown triggered")
    mode = "drain" if timeout_s else "abort"
    log.info(log.CORE, "core.py:1635", f"[shutdown] EngineCore: start mode={mode} timeout={timeout_s}s")
    core.stopping = True
    if not await core.drained(timeout_s):
        log.error(log.SERVER, "async_llm.py:770", f"EngineDeadError: {EngineDead()}")
        core.abort("error")
    log.info(
        log.CORE,
        "core.py:1670",
        "[shutdown] EngineCore: request processing complete; starting resource teardown",
    )


async def _stop_accepting(listener: socket.socket) -> None:
    """Take no more connections, and let those that were just taken come to life.

    asyncio (3.11) loses a connection that was accepted when its server is closed in the same moment: its client
    would wait for an answer until this process ends.
    """
    asyncio.get_running_loop().remove_reader(listener.fileno())
    for _ in range(_ACCEPT_ROUNDS):
        await asyncio.sleep(0)


def crash(cause: str) -> None:
    """Die at once, as an engine whose core met a fatal error."""
    log.error(log.CORE, "core.py:1512", "EngineCore encountered a fatal error.")
    log.error(log.CORE, "core.py:1512", f"Traceback (most recent call last):\nRuntimeError: {cause}")
    log.error(log.SERVER, "async_llm.py:770", f"EngineDeadError: {EngineDead()}")
    os._exit(1)


@web.middleware
async def _shape_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Give every refusal the shape that clients know."""
    try:
        return await handler(request)
    except ApiError as error:
        problem = error
    except EngineDead as error:
        problem = _dead(error)
    except web.HTTPException as error:
        problem = ApiError(error.reason, status=error.status, kind=error.reason)
    return web.json_response(problem.body(), status=problem.status)


def _dead(error: EngineDead) -> ApiError:
    return ApiError(str(error), status=500, kind="InternalServerError")


async def _read_json(request: web.Request) -> Any:  # noqa: ANN401 - any JSON value
    if request.content_type != "application/json":
        raise ApiError(
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
            kind="Bad Request",
        )
    text = await request.read()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"1 validation error:\n  body: JSON decode error: {error}"
        raise ApiError(message, kind="Bad Request", param="body") from None
