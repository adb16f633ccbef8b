"""The gateway that owns a card, asked over its socket: what a person wants is done there, and told as it goes on.

HTTP on `<state>/cards/<card>/owner.sock`, which only this user may open. An operation is answered by lines of
JSON: notices as they come, then its result or its error. The client speaks HTTP/1.0, where an answer simply ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from msgspec import Struct

from agent_manager import errors
from agent_manager.errors import AgentManagerError, CardBusy, CatalogInvalid, OperationFailed, Problem
from agent_manager.json_text import from_json, to_json
from agent_manager.swap.lock import GATEWAY, read_owner
from agent_manager.swap.notices import LaunchResult, Notice, ReloadResult, StopResult

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence
    from pathlib import Path

    from agent_manager.state import StateDir
    from agent_manager.swap.host import Interrupts
    from agent_manager.swap.notices import Listener

_T = TypeVar("_T")

SOCKET: Final = "owner.sock"
LONGEST_LINE_BYTES: Final = 1 << 20
"""A notice of a pull names each of its files."""
ASK_TIMEOUT_S: Final = 2.0
"""For what is answered at once: a status must not hang on a gateway that does."""
_HTTP_OK: Final = 200


class Queue(Struct, frozen=True, kw_only=True):
    """An agent's requests at the gateway. `trouble`: why the gateway does not serve it now; None: it does."""

    running: int
    waiting: int
    trouble: str | None


class Failure(Struct, frozen=True, kw_only=True):
    """An error on its way: the class, what it says, and the problems of a catalog."""

    kind: str
    message: str
    hint: str | None
    where: str | None
    problems: tuple[Problem, ...] = ()

    @classmethod
    def of(cls, error: AgentManagerError) -> Failure:
        """What is to be sent of an error."""
        return cls(
            kind=type(error).__name__,
            message=error.message,
            hint=error.hint,
            where=error.where,
            problems=error.problems if isinstance(error, CatalogInvalid) else (),
        )

    def error(self) -> AgentManagerError:
        """The error, of its own class again."""
        if self.problems:
            return CatalogInvalid(self.problems)
        kind = getattr(errors, self.kind, OperationFailed)
        error: AgentManagerError = kind(self.message, hint=self.hint, where=self.where)
        return error


class Line(Struct, Generic[_T], frozen=True, kw_only=True, omit_defaults=True):
    """A line of an operation's answer: a notice, or, as the last one, its result or its error."""

    notice: Notice | None = None
    result: _T | None = None
    error: Failure | None = None


@contextlib.contextmanager
def short_path(socket: Path) -> Iterator[str]:
    """The socket under a path that fits its address, which takes 107 bytes; valid inside the block.

    Raises OSError when its folder cannot be opened.
    """
    folder = os.open(socket.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{socket.name}"
    finally:
        os.close(folder)


def gateways(state: StateDir) -> dict[str, Gateway]:
    """The gateways that run here, by the card each owns. Reads only."""
    try:
        cards = sorted(folder.name for folder in state.cards.iterdir())
    except OSError:
        return {}  # nothing was ever run here
    found: dict[str, Gateway] = {}
    for card in cards:
        owner = read_owner(state, card)
        if owner is not None and owner.kind == GATEWAY:
            found[card] = Gateway(state.card(card) / SOCKET, card=card, pid=owner.pid)
    return found


class Gateway:
    """One gateway. Its operations raise what the same ones raise without a gateway, and CardBusy while it begins."""

    def __init__(self, socket: Path, *, card: str, pid: int) -> None:
        self._socket = socket
        self.card = card
        self.pid = pid

    async def launch(
        self,
        agent: str,
        *,
        listener: Listener,
        interrupts: Interrupts,
        pull: bool,
        drain_timeout_s: float,
        again: bool,
    ) -> LaunchResult:
        """Have `agent` on the card; see operations.launch."""
        asked = {"agent": agent, "pull": pull, "drain_timeout_s": drain_timeout_s, "again": again}
        return await self._perform("/launch", asked, Line[LaunchResult], listener, interrupts)

    async def stop(
        self, agents: Sequence[str], *, listener: Listener, interrupts: Interrupts, drain_timeout_s: float
    ) -> tuple[str, ...]:
        """Take these agents, or whoever is there, off the card; those that were."""
        asked = {"agents": list(agents), "drain_timeout_s": drain_timeout_s}
        return (await self._perform("/stop", asked, Line[StopResult], listener, interrupts)).stopped

    async def reload(self, *, listener: Listener, interrupts: Interrupts) -> ReloadResult:
        """Have the gateway read its catalog anew. Raises CatalogInvalid, and then nothing has changed."""
        return await self._perform("/reload", {}, Line[ReloadResult], listener, interrupts)

    async def queues(self) -> dict[str, Queue] | None:
        """The requests of each agent; None when the gateway does not say so within ASK_TIMEOUT_S."""
        try:
            async with (
                asyncio.timeout(ASK_TIMEOUT_S),
                contextlib.aclosing(self._lines("GET", "/queues", dict[str, Queue])) as lines,
            ):
                async for line in lines:
                    return line
        except (TimeoutError, AgentManagerError):
            return None
        return None

    # --- how it is said -----------------------------------------------------------------------------------

    async def _perform(
        self,
        path: str,
        asked: dict[str, object],
        kind: type[Line[_T]],
        listener: Listener,
        interrupts: Interrupts,
    ) -> _T:
        """Ask, pass on what is told, and return the result. Each interrupt is passed on to the gateway."""
        wish = secrets.token_hex(8)
        telling: set[asyncio.Task[None]] = set()

        def interrupt() -> None:
            telling.add(asyncio.ensure_future(self._interrupt(wish)))

        interrupts.subscribe(interrupt)
        try:
            async with contextlib.aclosing(self._lines("POST", path, kind, {**asked, "wish": wish})) as lines:
                async for line in lines:
                    if line.notice is not None:
                        listener(line.notice)
                    elif line.error is not None:
                        raise line.error.error()
                    elif line.result is not None:
                        return line.result
            raise OperationFailed(
                f"the gateway (pid {self.pid}) ended before it was done",
                hint="'agent-manager status' shows what is on the card",
            )
        finally:
            interrupts.subscribe(None)
            await asyncio.gather(*telling)

    async def _interrupt(self, wish: str) -> None:
        with contextlib.suppress(AgentManagerError):  # it is over, or its answer says what became of it
            async with contextlib.aclosing(
                self._lines("POST", "/interrupt", dict[str, object], {"wish": wish})
            ) as lines:
                async for _ in lines:
                    pass

    async def _lines(
        self, method: str, path: str, kind: type[_T], body: dict[str, object] | None = None
    ) -> AsyncGenerator[_T]:
        """The lines of one answer, each a `kind`. Raises CardBusy when nobody answers."""
        reader, writer = await self._connected()
        try:
            said = to_json(body or {}).encode()
            head = f"{method} {path} HTTP/1.0\r\nHost: owner\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(said)}\r\n\r\n".encode() + said)
            status = int((await reader.readline()).split()[1])
            while (await reader.readline()).strip():
                pass
            if status != _HTTP_OK:
                raise self._elsewhere()
            while line := await reader.readline():
                yield from_json(line, kind)
        except (OSError, ValueError, IndexError) as error:
            raise OperationFailed(
                f"the gateway (pid {self.pid}) broke off: {type(error).__name__}",
                hint="'agent-manager status' shows what is on the card",
            ) from error
        finally:
            writer.transport.abort()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            with short_path(self._socket) as path:
                return await asyncio.open_unix_connection(path, limit=LONGEST_LINE_BYTES)
        except OSError:
            raise self._elsewhere() from None

    def _elsewhere(self) -> CardBusy:
        return CardBusy(
            f"card {self.card} is owned by a gateway (pid {self.pid}) that is starting or ending",
            hint="try again in a moment",
            where=self.card,
        )
