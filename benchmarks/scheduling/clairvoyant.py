"""The best that somebody could do who knows the future: branch and bound over all orders of service.

For up to a dozen jobs. The same card as in `simulate.py` (slots, drains, swap costs), and the same order within
an agent: who came first is served first. Free to choose: who has the card when, for how many of its jobs, whether
to sit and wait for a job that will come, or to swap before it comes. Two goals, each with a schedule of its own:
the least makespan, and the least mean wait.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

from benchmarks.scheduling.simulate import SLOTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.scheduling.traces import Job

Arrivals: TypeAlias = dict[int, float]
"""When each job that is known and not served yet arrives, by number."""


class Goal(StrEnum):
    """What is to be least."""

    MAKESPAN = "makespan"
    MEAN_WAIT = "mean wait"


class _Node(Struct, frozen=True, kw_only=True):
    """A visit under way: the agent on the card, when its slots are free, and what is left."""

    agent: str
    slots_s: tuple[float, ...]
    over_s: float
    waited_s: float
    arrivals: Arrivals


def clairvoyant(jobs: Sequence[Job], swap_cost_s: Mapping[str, float], goal: Goal) -> float:
    """The least makespan or the least mean wait, in seconds. Takes exponential time: for a dozen jobs at most."""
    search = _Search(jobs, swap_cost_s, goal)
    search.leave(over_s=0.0, agent=None, waited_s=0.0, arrivals=search.first)
    return search.best / len(jobs) if goal is Goal.MEAN_WAIT else search.best


class _Search:
    def __init__(self, jobs: Sequence[Job], swap_cost_s: Mapping[str, float], goal: Goal) -> None:
        self.jobs, self.cost_s, self.goal = jobs, swap_cost_s, goal
        self.best = float("inf")
        self.seen: dict[tuple[frozenset[int], str], list[tuple[float, ...]]] = {}
        self.first = {n: job.arrives_s for n, job in enumerate(jobs) if job.after is None}
        self.followers: dict[int, list[int]] = {}
        for number, job in enumerate(jobs):
            if job.after is not None:
                self.followers.setdefault(job.after, []).append(number)

    def leave(self, *, over_s: float, agent: str | None, waited_s: float, arrivals: Arrivals) -> None:
        """The card is free at `over_s`: try every agent that has jobs, the one with the oldest first."""
        if not arrivals:
            self.best = min(self.best, over_s if self.goal is Goal.MAKESPAN else waited_s)
            return
        oldest_first = sorted(arrivals, key=lambda number: arrivals[number])
        for newcomer in dict.fromkeys(self.jobs[number].agent for number in oldest_first):
            if newcomer == agent:
                continue
            ready_s = over_s + self.cost_s[newcomer]
            node = _Node(
                agent=newcomer,
                slots_s=(ready_s,) * SLOTS,
                over_s=ready_s,
                waited_s=waited_s,
                arrivals=arrivals,
            )
            if not self._is_dominated(node):
                self._serve(node)

    def _serve(self, node: _Node) -> None:
        """The agent on the card serves one more of its jobs; then it goes on, or leaves."""
        mine = [number for number in node.arrivals if self.jobs[number].agent == node.agent]
        if not mine or self._bound(node) >= self.best:
            return
        number = min(mine, key=lambda each: (node.arrivals[each], each))
        began_s = max(node.slots_s[0], node.arrivals[number])
        done_s = began_s + self.jobs[number].duration_s
        arrivals = {other: at_s for other, at_s in node.arrivals.items() if other != number}
        for follower in self.followers.get(number, ()):
            arrivals[follower] = done_s + self.jobs[follower].arrives_s
        served = _Node(
            agent=node.agent,
            slots_s=tuple(sorted((*node.slots_s[1:], done_s))),
            over_s=max(node.over_s, done_s),
            waited_s=node.waited_s + began_s - node.arrivals[number],
            arrivals=arrivals,
        )
        self._serve(served)
        self.leave(
            over_s=served.over_s, agent=served.agent, waited_s=served.waited_s, arrivals=served.arrivals
        )

    def _bound(self, node: _Node) -> float:
        """No schedule that goes on from here is better than this."""
        others = [number for number in node.arrivals if self.jobs[number].agent != node.agent]
        if self.goal is Goal.MAKESPAN:
            swaps_s = sum(self.cost_s[agent] for agent in {self.jobs[number].agent for number in others})
            return max([node.over_s + swaps_s, *(node.arrivals[n] + self.jobs[n].duration_s for n in others)])
        return node.waited_s + sum(
            max(0.0, node.over_s + self.cost_s[self.jobs[n].agent] - node.arrivals[n]) for n in others
        )

    def _is_dominated(self, node: _Node) -> bool:
        """Whether the same jobs are left, and an earlier visit by this agent was better off in every way."""
        figures = [node.over_s, *(at_s for _, at_s in sorted(node.arrivals.items()))]
        if self.goal is Goal.MEAN_WAIT:
            figures.append(node.waited_s)
        seen = self.seen.setdefault((frozenset(node.arrivals), node.agent), [])
        if any(all(a <= b for a, b in zip(other, figures, strict=True)) for other in seen):
            return True
        seen.append(tuple(figures))
        return False
