"""What the front asks of whoever owns the card: a place in the queue, and word when it is one's turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from agent_manager.swap.notices import AgentState


class RefusedError(Exception):
    """A request will not be served. `status` is HTTP's, `kind` a word for programs, `retry_after_s` a hint."""

    def __init__(self, status: int, kind: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s


class Granted(Struct, frozen=True, kw_only=True):
    """The engine on 127.0.0.1:`port` takes the request. `swap` says which swap it waited for, as `po -> dev`."""

    port: int
    swap: str | None = None


class Whereabouts(Struct, frozen=True, kw_only=True):
    """Where a waiting request is: how many wait before it, what happens on the card, and for how long still.

    `expected_s` None: nothing was measured yet.
    """

    position: int
    doing: str
    expected_s: float | None


class AgentNow(Struct, frozen=True, kw_only=True):
    """An agent as the gateway shows it."""

    name: str
    model: str
    aliases: tuple[str, ...]
    state: AgentState
    port: int
    running: int
    waiting: int


class Ticket(Protocol):
    """One request's place. Close it whatever happens: a client that goes away leaves no trace."""

    @property
    def waits(self) -> bool:
        """Whether it was neither granted nor refused yet; if not, `granted` does not wait."""
        ...

    async def granted(self) -> Granted:
        """Wait for one's turn; may be awaited again after it was cancelled. Raises RefusedError."""
        ...

    async def unanswered(self) -> None:
        """The engine hung up before it answered: return once it is known whether it is there. Then ask again."""
        ...

    def whereabouts(self) -> Whereabouts:
        """Where it is now."""
        ...

    def close(self) -> None:
        """The request is over, or its client is gone. Never blocks; more than once is once."""
        ...


class Doorkeeper(Protocol):
    """Hands out tickets."""

    def ask(self, agent: str) -> Ticket:
        """A place in the queue for that agent. Raises RefusedError when there is none."""
        ...

    def agents(self) -> tuple[AgentNow, ...]:
        """All agents of the catalog as they are now."""
        ...

    def unload(self) -> None:
        """Take the resident off the card once its requests are over. Returns at once."""
        ...
