"""The gateway that owns a card, asked over its socket: what a person wants is done there, and told as it goes on.

HTTP on `<state>/cards/<card>/owner.sock`, which only this user may open. An operation is answered by lines of
JSON: notices as they come, then its result or its error. The client speaks HTTP/1.0, where an answer simply ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from agent_manager import errors
from agent_manager.errors import AgentManagerError, CardBusy, CatalogInvalid, OperationFailed, Problem
from agent_manager.swap.lock import GATEWAY, read_owner
from agent_manager.swap.notices import (
    LaunchResult,
    LoadProgress,
    PullProgress,
    ReadProgress,
    ReloadResult,
    Remark,
    Step,
    StepBegan,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence
    from pathlib import Path

    from agent_manager.state import StateDir
    from agent_manager.swap.host import Interrupts
    from agent_manager.swap.notices import Listener, Notice

SOCKET: Final = "owner.sock"
LONGEST_LINE_BYTES: Final = 1 << 20
"""A notice of a pull names each of its files."""
ASK_TIMEOUT_S: Final = 2.0
"""For what is answered at once: a status must not hang on a gateway that does."""
_HTTP_OK: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """An agent's requests at the gateway. `trouble`: why the gateway does not serve it now; None: it does."""

    running: int
    waiting: int
    trouble: str | None


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
        result = await self._perform("/launch", asked, listener, interrupts)
        return LaunchResult(**{**result, "replaced": tuple(result["replaced"])})

    async def stop(
        self, agents: Sequence[str], *, listener: Listener, interrupts: Interrupts, drain_timeout_s: float
    ) -> tuple[str, ...]:
        """Take these agents, or whoever is there, off the card; those that were."""
        asked = {"agents": list(agents), "drain_timeout_s": drain_timeout_s}
        result = await self._perform("/stop", asked, listener, interrupts)
        return tuple(result["stopped"])

    async def reload(self, *, listener: Listener, interrupts: Interrupts) -> ReloadResult:
        """Have the gateway read its catalog anew. Raises CatalogInvalid, and then nothing has changed."""
        result = await self._perform("/reload", {}, listener, interrupts)
        lists = {name: tuple(result[name]) for name in ("added", "removed", "changed")}
        return ReloadResult(**{**result, **lists})

    async def queues(self) -> dict[str, Queue] | None:
        """The requests of each agent; None when the gateway does not say so within ASK_TIMEOUT_S."""
        try:
            async with (
                asyncio.timeout(ASK_TIMEOUT_S),
                contextlib.aclosing(self._lines("GET", "/queues")) as lines,
            ):
                async for line in lines:
                    return {name: Queue(**facts) for name, facts in line.items()}
        except (TimeoutError, AgentManagerError, TypeError):
            return None
        return None

    # --- how it is said -----------------------------------------------------------------------------------

    async def _perform(
        self, path: str, asked: dict[str, object], listener: Listener, interrupts: Interrupts
    ) -> dict[str, Any]:
        """Ask, pass on what is told, and return the result. Each interrupt is passed on to the gateway."""
        wish = secrets.token_hex(8)
        telling: set[asyncio.Task[None]] = set()

        def interrupt() -> None:
            telling.add(asyncio.ensure_future(self._interrupt(wish)))

        interrupts.subscribe(interrupt)
        try:
            async with contextlib.aclosing(self._lines("POST", path, {**asked, "wish": wish})) as lines:
                async for line in lines:
                    if "notice" in line:
                        listener(notice_from(line["notice"]))
                    elif "error" in line:
                        raise error_from(line["error"])
                    else:
                        result: dict[str, Any] = line["result"]
                        return result
            raise OperationFailed(
                f"the gateway (pid {self.pid}) ended before it was done",
                hint="'agent-manager status' shows what is on the card",
            )
        finally:
            interrupts.subscribe(None)
            await asyncio.gather(*telling)

    async def _interrupt(self, wish: str) -> None:
        with contextlib.suppress(AgentManagerError):  # it is over, or its answer says what became of it
            async with contextlib.aclosing(self._lines("POST", "/interrupt", {"wish": wish})) as lines:
                async for _ in lines:
                    pass

    async def _lines(
        self, method: str, path: str, body: dict[str, object] | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """The lines of one answer. Raises CardBusy when nobody answers."""
        reader, writer = await self._connected()
        try:
            said = json.dumps(body or {}).encode()
            head = f"{method} {path} HTTP/1.0\r\nHost: owner\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(said)}\r\n\r\n".encode() + said)
            status = int((await reader.readline()).split()[1])
            while (await reader.readline()).strip():
                pass
            if status != _HTTP_OK:
                raise self._elsewhere()
            while line := await reader.readline():
                yield json.loads(line)
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


# --- notices and errors as JSON ---------------------------------------------------------------------------

_NOTICES: Final = {
    kind.__name__: kind for kind in (StepBegan, LoadProgress, PullProgress, ReadProgress, Remark)
}


def facts_of_notice(notice: Notice) -> dict[str, object]:
    """A notice as JSON has it."""
    return {"kind": type(notice).__name__, **dataclasses.asdict(notice)}


def notice_from(facts: dict[str, Any]) -> Notice:
    """A notice that came as JSON. Raises KeyError, TypeError or ValueError for anything else."""
    kind = _NOTICES[facts.pop("kind")]
    if kind is StepBegan:
        facts["step"] = Step(facts["step"])
    elif kind is LoadProgress:
        from agent_manager.engines.base import Phase  # noqa: PLC0415 - a type until here

        facts["phase"] = Phase(**facts["phase"])
    elif kind is PullProgress:
        from agent_manager.checkpoints.fetching.progress import FileProgress  # noqa: PLC0415 - likewise

        facts["files"] = tuple(FileProgress(**each) for each in facts["files"])
    return kind(**facts)


def facts_of_error(error: AgentManagerError) -> dict[str, object]:
    """An error as JSON has it, with the problems of a catalog."""
    problems = error.problems if isinstance(error, CatalogInvalid) else ()
    return {
        "kind": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "where": error.where,
        "problems": [dataclasses.asdict(problem) for problem in problems],
    }


def error_from(facts: dict[str, Any]) -> AgentManagerError:
    """The error that came as JSON, of its own class again."""
    if facts["problems"]:
        return CatalogInvalid(tuple(Problem(**each) for each in facts["problems"]))
    kind = getattr(errors, facts["kind"], OperationFailed)
    error: AgentManagerError = kind(facts["message"], hint=facts["hint"], where=facts["where"])
    return error
