"""The desk: requests on their way to the card, and what the policy has to know of the past. Pure.

Who waits and who runs; since when the resident serves, how requests follow each other, what swaps took. It turns
what happened into the view that `schedule.decide` wants, and what was decided into a goal for the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from agent_manager.swap.events import Goal, Request
from agent_manager.swap.rhythm import Rhythm
from agent_manager.swap.schedule import Resident, Settings, Stay, View, decide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent_manager.swap.events import Renewed
    from agent_manager.swap.schedule import Decision


_NOTHING_KNOWN = Rhythm()
_STAY = Stay()


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """`waiting` are requests not granted yet, oldest first; `running` those granted to the resident.

    `group_of` says which agents share one instance: agent → any one name for them all; who is not in it is a
    group of its own. `default` comes back when the resident has been idle for its keep-alive. `swap_cost_s` is
    what the last swap to a group took; whoever makes a desk may fill in what is known from earlier. All times
    are of the one clock that is handed to `machine.step`.
    """

    settings: Settings = field(default_factory=Settings)
    group_of: Mapping[str, str] = field(default_factory=dict)
    default: Goal | None = None
    waiting: tuple[Request, ...] = ()
    running: tuple[Request, ...] = ()
    since_s: float = 0.0
    last_request_s: float | None = None
    rhythms: Mapping[str, Rhythm] = field(default_factory=dict)
    swap_cost_s: Mapping[str, float] = field(default_factory=dict)

    def group(self, agent: str) -> str:
        """The group of an agent."""
        return self.group_of.get(agent, agent)

    def shared(self, one: str | None, other: str | None) -> bool:
        """Whether the two agents are served by one instance; nobody (None) shares with nobody."""
        return one is not None and other is not None and self.group(one) == self.group(other)

    def arrived(self, request: Request, now_s: float, *, granted: bool = False) -> Desk:
        """A request joins those who wait, or those who run if it is granted at once."""
        group = self.group(request.agent)
        stamped = Request(
            id=request.id,
            agent=request.agent,
            claim_bytes=request.claim_bytes,
            group=group,
            arrived_s=now_s,
        )
        rhythms, before = self.rhythms, self.rhythms.get(group, _NOTHING_KNOWN)
        if (rhythm := before.asked(now_s)) is not before:
            rhythms = {**rhythms, group: rhythm}
        if granted:
            return replace(self, running=(*self.running, stamped), last_request_s=now_s, rhythms=rhythms)
        return replace(self, waiting=(*self.waiting, stamped), rhythms=rhythms)

    def granted(self, serving: str | None, now_s: float) -> tuple[Desk, tuple[Request, ...]]:
        """What the resident can take runs from now on: the desk, and the requests."""
        group = None if serving is None else self.group(serving)
        mine = tuple(request for request in self.waiting if request.group == group)
        if not mine:
            return self, ()
        others = tuple(request for request in self.waiting if request.group != group)
        running = (*self.running, *mine)
        return replace(self, waiting=others, running=running, last_request_s=now_s), mine

    def ended(self, request_id: str, now_s: float) -> Desk:
        """A request is over, or its client went away. The same desk if nobody knows it (any more)."""
        for request in self.running:
            if request.id == request_id:
                running = tuple(other for other in self.running if other is not request)
                desk = replace(self, running=running, last_request_s=now_s)
                return _quieted(desk, (request,), now_s)
        for request in self.waiting:
            if request.id == request_id:
                waiting = tuple(other for other in self.waiting if other is not request)
                return _quieted(replace(self, waiting=waiting), (request,), now_s)
        return self

    def cut(self, now_s: float) -> Desk:
        """The instance is gone, and what ran in it is over."""
        return _quieted(replace(self, running=()), self.running, now_s)

    def refused(self, agent: str, now_s: float) -> tuple[Desk, tuple[Request, ...]]:
        """Nobody will serve those who wait for this agent: the desk without them, and the requests."""
        group = self.group(agent)
        those = tuple(request for request in self.waiting if request.group == group)
        others = tuple(request for request in self.waiting if request.group != group)
        return _quieted(replace(self, waiting=others), those, now_s), those

    def renewed(self, event: Renewed, now_s: float) -> tuple[Desk, tuple[Request, ...]]:
        """Other settings: the desk with them, and the requests for agents that are not served any more."""
        gone = tuple(request for request in self.waiting if request.agent not in event.claims)
        desk = replace(
            _quieted(
                replace(self, waiting=tuple(each for each in self.waiting if each not in gone)), gone, now_s
            ),
            settings=event.settings,
            group_of=event.group_of,
            default=event.default,
        )
        stamped = partial(_stamped, desk, event.claims)
        waiting, running = tuple(map(stamped, desk.waiting)), tuple(map(stamped, desk.running))
        return replace(desk, waiting=waiting, running=running), gone

    def took_over(self, agent: str, now_s: float, swap_cost_s: float | None) -> Desk:
        """The agent is on the card and serves; `swap_cost_s` is what that took, None if it says nothing."""
        costs_s = self.swap_cost_s
        if swap_cost_s is not None:
            costs_s = {**costs_s, self.group(agent): swap_cost_s}
        return replace(self, since_s=now_s, last_request_s=None, swap_cost_s=costs_s)

    def decide(self, now_s: float, serving: str | None, card_bytes: int) -> Decision:
        """What the policy wants, while no swap is under way."""
        if self.running and not self.waiting:
            return _STAY  # as the policy would say; this is every request's way in and out
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
        for request in self.waiting:
            if request.group == group:
                return Goal(agent=request.agent, claim_bytes=request.claim_bytes)
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


def _stamped(desk: Desk, claims: Mapping[str, int], request: Request) -> Request:
    """The request with the group and the claim that its agent has now."""
    claim_bytes = claims.get(request.agent, request.claim_bytes)
    return replace(request, group=desk.group(request.agent), claim_bytes=claim_bytes)


def _quieted(desk: Desk, ended: Sequence[Request], now_s: float) -> Desk:
    """Those groups of the requests that have nothing to do any more are quiet from now on."""
    quiet = {request.group for request in ended}
    quiet -= {request.group for request in (*desk.running, *desk.waiting)}
    rhythms = {group: desk.rhythms.get(group, _NOTHING_KNOWN).quiet(now_s) for group in quiet}
    return replace(desk, rhythms={**desk.rhythms, **rhythms}) if quiet else desk
