"""The owner's door: a socket that only this user may open, where the command line asks for launch, stop and reload.

HTTP on `owner.sock` beside the card's lock. An operation is answered by lines of JSON, each sent as it is known:
`{"notice": …}` any number of times, then `{"result": …}` or `{"error": …}`. The client is swap/remote.py.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Final, Self

from aiohttp import web

from agent_manager.errors import AgentManagerError, Interrupted
from agent_manager.json_text import to_json
from agent_manager.state import unusable
from agent_manager.swap.controller import as_error
from agent_manager.swap.notices import StopResult
from agent_manager.swap.remote import Failure, Line, short_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from types import TracebackType

    from msgspec import Struct

    from agent_manager.gateway.keeper import Keeper
    from agent_manager.gateway.steward import Steward
    from agent_manager.swap.notices import LaunchResult, Listener, Notice, ReloadResult

    Work = Callable[[dict[str, Any], Listener], Awaitable[Struct]]

_LAST_WORDS_S: Final = 2.0
"""How long a client may take to read how its operation ended, when the gateway ends."""


class Control:
    """Answers on one socket. Use it as a context manager, inside the card's lock."""

    def __init__(self, path: Path, steward: Steward, keeper: Keeper) -> None:
        self._path = path
        self._steward = steward
        self._keeper = keeper
        self._tasks: dict[str, asyncio.Task[Struct]] = {}
        self._closing = False
        app = web.Application()
        app.add_routes(
            [
                web.get("/queues", self._queues),
                web.post("/launch", self._door(self._launch)),
                web.post("/stop", self._door(self._stop)),
                web.post("/reload", self._door(self._reload)),
                web.post("/interrupt", self._interrupt),
            ]
        )
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=_LAST_WORDS_S
        )

    async def __aenter__(self) -> Self:
        """Listen; the socket that a killed gateway left goes. Raises StateUnusable."""
        await self._runner.setup()
        try:
            await web.SockSite(self._runner, _bound(self._path)).start()
        except OSError as error:
            await self._runner.cleanup()
            raise unusable(self._path, error) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give up what is not done, and listen no more."""
        self.refuse()
        for task in self._tasks.values():
            task.cancel()
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)

    def refuse(self) -> None:
        """Take on nothing more, and give up what has not begun to change anything."""
        self._closing = True
        for wish in tuple(self._tasks):
            self._give_up(wish)

    # --- operations ---------------------------------------------------------------------------------------

    async def _launch(self, asked: dict[str, Any], listener: Listener) -> LaunchResult:
        return await self._steward.launch(
            asked["wish"],
            asked["agent"],
            listener=listener,
            pull=asked["pull"],
            drain_timeout_s=asked["drain_timeout_s"],
            again=asked["again"],
        )

    async def _stop(self, asked: dict[str, Any], listener: Listener) -> StopResult:
        stopped = await self._steward.stop(
            asked["wish"], asked["agents"], listener=listener, drain_timeout_s=asked["drain_timeout_s"]
        )
        return StopResult(stopped=stopped)

    async def _reload(self, _: dict[str, Any], listener: Listener) -> ReloadResult:
        return await self._steward.reload(listener)

    async def _queues(self, _: web.Request) -> web.Response:
        return web.Response(text=to_json(self._steward.queues()), content_type="application/json")

    async def _interrupt(self, request: web.Request) -> web.Response:
        wish = (await request.json())["wish"]
        if not self._keeper.wishes.interrupt(wish):
            self._give_up(wish)
        return web.json_response({})

    def _give_up(self, wish: str) -> None:
        """End an operation that waits or prepares; one that the card is being changed for goes on."""
        task = self._tasks.get(wish)
        if task is not None and not self._keeper.wishes.asked(wish):
            task.cancel()

    # --- how an operation is answered ---------------------------------------------------------------------

    def _door(self, work: Work) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            asked = await request.json()
            if self._closing or asked["wish"] in self._tasks:
                return web.Response(status=503)
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await response.prepare(request)
            said: asyncio.Queue[Notice | None] = asyncio.Queue()
            task = asyncio.ensure_future(work(asked, said.put_nowait))
            self._tasks[asked["wish"]] = task
            task.add_done_callback(lambda _: self._over(asked["wish"], said))
            try:
                while (notice := await said.get()) is not None:
                    await _write(response, Line(notice=notice))
                await _write(response, self._ending(task))
            finally:
                self._give_up(asked["wish"])  # its client went away
            return response

        return answer

    def _ending(self, task: asyncio.Task[Struct]) -> Line[Struct]:
        """The last line of an operation that is over."""
        if task.cancelled():
            why = "the gateway is ending" if self._closing else "nothing was changed"
            return Line(error=Failure.of(Interrupted(f"interrupted: {why}")))
        error = task.exception()
        if error is None:
            return Line(result=task.result())
        return Line(error=Failure.of(error if isinstance(error, AgentManagerError) else as_error(error)))

    def _over(self, wish: str, said: asyncio.Queue[Notice | None]) -> None:
        task = self._tasks.pop(wish)
        if not task.cancelled():
            task.exception()  # seen, also when its client went away
        said.put_nowait(None)


async def _write(response: web.StreamResponse, line: Line[Struct]) -> None:
    await response.write(to_json(line).encode() + b"\n")


def _bound(path: Path) -> socket.socket:
    """A socket at `path` for this user alone. Raises OSError."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(path) as short:
            sock.bind(short)
        path.chmod(0o600)
    except OSError:
        sock.close()
        raise
    return sock
