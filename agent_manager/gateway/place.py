"""A request's place at the keeper's, and what the card looks like from there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent_manager.gateway.tickets import Granted, RefusedError
from agent_manager.swap.card import Stage
from agent_manager.swap.notices import AgentState

if TYPE_CHECKING:
    from agent_manager.gateway.keeper import Keeper
    from agent_manager.gateway.tickets import Whereabouts
    from agent_manager.swap.card import State
    from agent_manager.swap.events import Occupant


class Place:
    """A Ticket of the keeper's. `swap` is the one it waits for; `by` who took it, once it was granted."""

    __slots__ = ("_answer", "_asked_s", "_keeper", "_longest_wait_s", "_turn", "agent", "by", "id", "swap")

    def __init__(self, keeper: Keeper, id_: str, agent: str, asked_s: float, longest_wait_s: float) -> None:
        self.id = id_
        self.agent = agent
        self.swap: str | None = None
        self.by: Occupant | None = None
        self._keeper = keeper
        self._asked_s = asked_s
        self._longest_wait_s = longest_wait_s
        self._answer: Granted | RefusedError | None = None
        self._turn: asyncio.Future[Granted | RefusedError] | None = None  # most are granted before they wait

    @property
    def waits(self) -> bool:
        """Whether its turn is still to come; see Ticket."""
        return self._answer is None

    async def granted(self) -> Granted:
        """Wait for the turn; see Ticket."""
        answer = self._answer or await self._answered()
        if isinstance(answer, RefusedError):
            raise answer
        return answer

    async def _answered(self) -> Granted | RefusedError:
        if self._turn is None:
            self._turn = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout_at(self._asked_s + self._longest_wait_s):
                return await asyncio.shield(self._turn)
        except TimeoutError:
            message = f"{self.agent} did not come onto the card within {self._longest_wait_s:.0f} s"
            raise RefusedError(503, "waited_too_long", message, retry_after_s=5) from None

    def grant(self, by: Occupant, port: int) -> None:
        """Its turn has come."""
        self.by = by
        self._reply(Granted(port=port, swap=self.swap))

    def refuse(self, error: RefusedError) -> None:
        """It will not be served."""
        self._reply(error)

    def _reply(self, answer: Granted | RefusedError) -> None:
        self._answer = answer
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(answer)

    def whereabouts(self) -> Whereabouts:
        """Where it is; see Ticket."""
        return self._keeper.whereabouts(self)

    async def unanswered(self) -> None:
        """It was hung up on; see Ticket."""
        await self._keeper.unanswered(self)

    def close(self) -> None:
        """Over; see Ticket."""
        if self._turn is not None:
            self._turn.cancel()
        self._keeper.closed(self)


def swap_for(state: State, agent: str) -> str | None:
    """The swap that a request for `agent` waits for now, as `po -> dev`; None when it is there."""
    resident, swap, shared = state.resident, state.swap, state.desk.shared
    if resident is not None and swap is None and shared(resident.agent, agent):
        return None
    left = swap.leaving if swap else resident
    return f"{left.agent} -> {agent}" if left and not shared(left.agent, agent) else f"-> {agent}"


def state_of(state: State, agent: str, *, failed: bool) -> AgentState:
    """How an agent is, seen from the card; `failed`: it is not tried now, once it is not there."""
    swap, shared = state.swap, state.desk.shared
    if swap and swap.leaving and shared(swap.leaving.agent, agent) and not swap.restoring:
        if swap.stage is Stage.DRAINING:
            return AgentState.DRAINING
        if swap.stage is Stage.STOPPING:
            return AgentState.STOPPING
    if state.resident and shared(state.resident.agent, agent):
        return AgentState.FAILED if state.stuck else AgentState.READY
    coming = swap.leaving.agent if swap and swap.restoring and swap.leaving else None
    coming = coming or (swap.goal.agent if swap and swap.goal else None)
    if shared(coming, agent):
        return AgentState.STARTING
    return AgentState.FAILED if failed else AgentState.ABSENT
