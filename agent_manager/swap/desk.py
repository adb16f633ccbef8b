"""The desk: requests on their way to the card, and what the policy has to know of the past. Pure.

Who waits and who runs; since when the resident serves, how requests follow each other, what swaps took. It turns
what happened into the view that `schedule.decide` wants, and what was decided into a goal for the machine.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.swap.events import Goal
from agent_manager.swap.rhythm import Rhythm
from agent_manager.swap.schedule import Resident, Settings, View, Waiting, decide

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent_manager.swap.events import Renewed, Request
    from agent_manager.swap.schedule import Decision


_NOTHING_KNOWN = Rhythm()


class Waiter(Waiting, frozen=True, kw_only=True):
    """A request that waits, as the policy sees it."""

    request: Request


class Desk(Struct, frozen=True):
    """`waiting` are requests not granted yet, oldest first; `running` those granted to the resident.

    `group_of` says which agents share one instance: agent → any one name for them all; who is not in it is a
    group of its own. `default` comes back when the resident has been idle for its keep-alive. `swap_cost_s` is
    what the last swap to a group took; whoever makes a desk may fill in what is known from earlier. All times
    are of the one clock that is handed to `machine.step`.
    """

    settings: Settings = Settings()
    group_of: Mapping[str, str] = MappingProxyType({})
    default: Goal | None = None
    waiting: tuple[Waiter, ...] = ()
    running: tuple[Request, ...] = ()
    since_s: float = 0.0
    last_request_s: float | None = None
    rhythms: Mapping[str, Rhythm] = MappingProxyType({})
    swap_cost_s: Mapping[str, float] = MappingProxyType({})

    def group(self, agent: str) -> str:
        """The group of an agent."""
        return self.group_of.get(agent, agent)

    def shared(self, one: str | None, other: str | None) -> bool:
        """Whether the two agents are served by one instance; nobody (None) shares with nobody."""
        if one is None or other is None:
            return False
        return one == other or self.group(one) == self.group(other)

    def arrived(self, request: Request, now_s: float, *, granted: bool = False) -> Desk:
        """A request joins those who wait, or those who run if it is granted at once."""
        group = self.group(request.agent)
        rhythms, before = self.rhythms, self.rhythms.get(group, _NOTHING_KNOWN)
        if (rhythm := before.asked(now_s)) is not before:
            rhythms = {**rhythms, group: rhythm}
        if granted:
            return replace(self, running=(*self.running, request), last_request_s=now_s, rhythms=rhythms)
        waiter = Waiter(request=request, group=group, arrived_s=now_s)
        return replace(self, waiting=(*self.waiting, waiter), rhythms=rhythms)

    def granted(self, serving: str | None, now_s: float) -> tuple[Desk, tuple[Request, ...]]:
        """What the resident can take runs from now on: the desk, and the requests."""
        group = None if serving is None else self.group(serving)
        mine = tuple(waiter.request for waiter in self.waiting if waiter.group == group)
        if not mine:
            return self, ()
        others = tuple(waiter for waiter in self.waiting if waiter.group != group)
        running = (*self.running, *mine)
        return replace(self, waiting=others, running=running, last_request_s=now_s), mine

    def ended(self, request_id: str, now_s: float) -> Desk:
        """A request is over, or its client went away. The same desk if nobody knows it (any more)."""
        for place, request in enumerate(self.running):
            if request.id == request_id:
                running = self.running[:place] + self.running[place + 1 :]
                return _quieted(replace(self, running=running, last_request_s=now_s), (request,), now_s)
        for place, waiter in enumerate(self.waiting):
            if waiter.request.id == request_id:
                waiting = self.waiting[:place] + self.waiting[place + 1 :]
                return _quieted(replace(self, waiting=waiting), (waiter.request,), now_s)
        return self

    def cut(self, now_s: float) -> Desk:
        """The instance is gone, and what ran in it is over."""
        return _quieted(replace(self, running=()), self.running, now_s)

    def refused(self, agent: str, now_s: float) -> tuple[Desk, tuple[Request, ...]]:
        """Nobody will serve those who wait for this agent: the desk without them, and the requests."""
        group = self.group(agent)
        those = tuple(waiter.request for waiter in self.waiting if waiter.group == group)
        others = tuple(waiter for waiter in self.waiting if waiter.group != group)
        return _quieted(replace(self, waiting=others), those, now_s), those

    def renewed(self, event: Renewed, now_s: float) -> tuple[Desk, tuple[Request, ...]]:
        """Other settings: the desk with them, and the requests for agents that are not served any more."""
        stay = tuple(waiter for waiter in self.waiting if waiter.request.agent in event.claims)
        gone = tuple(waiter.request for waiter in self.waiting if waiter.request.agent not in event.claims)
        desk = _quieted(replace(self, waiting=stay), gone, now_s)
        desk = replace(desk, settings=event.settings, group_of=event.group_of, default=event.default)
        waiting = tuple(_anew(waiter, desk, event.claims) for waiter in stay)
        return replace(desk, waiting=waiting), gone

    def took_over(self, agent: str, now_s: float, swap_cost_s: float | None) -> Desk:
        """The agent is on the card and serves; `swap_cost_s` is what that took, None if it says nothing."""
        costs_s = self.swap_cost_s
        if swap_cost_s is not None:
            costs_s = {**costs_s, self.group(agent): swap_cost_s}
        return replace(self, since_s=now_s, last_request_s=None, swap_cost_s=costs_s)

    def decide(self, now_s: float, serving: str | None, card_bytes: int) -> Decision:
        """What the policy wants, while no swap is under way."""
        default = self.default if self.default and self.default.claim_bytes <= card_bytes else None
        view = View(
            now_s=now_s,
            resident=self._resident(serving),
            waiting=self.waiting,
            swap_cost_s=self.swap_cost_s,
            default=self.group(default.agent) if default else None,
        )
        return decide(view, self.settings)

    def goal(self, group: str) -> Goal:
        """The agent of that group that brings it onto the card: the longest waiter's, or the default."""
        for waiter in self.waiting:
            if waiter.group == group:
                return Goal(agent=waiter.request.agent, claim_bytes=waiter.request.claim_bytes)
        if self.default is None:
            raise AssertionError(f"nobody asked for {group}")
        return self.default

    def _resident(self, serving: str | None) -> Resident | None:
        if serving is None:
            return None
        group = self.group(serving)
        return Resident(
            group=group,
            since_s=self.since_s,
            running=len(self.running),
            last_request_s=self.last_request_s,
            gaps_s=self.rhythms.get(group, _NOTHING_KNOWN).gaps_s,
        )


def _anew(waiter: Waiter, desk: Desk, claims: Mapping[str, int]) -> Waiter:
    """The waiter with the group and the claim that its agent has now."""
    agent = waiter.request.agent
    return replace(
        waiter, group=desk.group(agent), request=replace(waiter.request, claim_bytes=claims[agent])
    )


def _quieted(desk: Desk, ended: Iterable[Request], now_s: float) -> Desk:
    """Those groups of the requests that have nothing to do any more are quiet from now on."""
    quiet: dict[str, Rhythm] = {}
    for request in ended:
        group = desk.group(request.agent)
        if not _has_work(desk, group):
            quiet[group] = desk.rhythms.get(group, _NOTHING_KNOWN).quiet(now_s)
    return replace(desk, rhythms={**desk.rhythms, **quiet}) if quiet else desk


def _has_work(desk: Desk, group: str) -> bool:
    for request in desk.running:  # mostly the first one does: all that run are the resident's
        if desk.group(request.agent) == group:
            return True
    return any(waiter.group == group for waiter in desk.waiting)
