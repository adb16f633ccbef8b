"""An event-driven simulation of one card: policies are asked as a gateway asks them, time passes in jumps.

The engine: up to `SLOTS` requests run at once (continuous batching), each for its own duration however many run
beside it; more that are granted queue in the engine, first in, first out. A swap: no request is granted any
more, those in the engine finish (drain), then the card belongs to nobody for what the swap costs. The first
load onto the empty card is a swap as any other. A request waits from its arrival until a slot takes it.
"""

from __future__ import annotations

import heapq
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from agent_manager.swap.rhythm import Rhythm
from agent_manager.swap.schedule import Resident, Stay, SwapTo, View, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.scheduling.policies import Policy
    from benchmarks.scheduling.traces import Job

SLOTS = 4


class Served(Struct, frozen=True, kw_only=True):
    """What became of one job: when it arrived, was granted, got a slot and was done.

    `turns` are the other agents that waited, or were being loaded, when it arrived, plus one.
    """

    arrived_s: float
    granted_s: float
    began_s: float
    done_s: float
    turns: int

    @property
    def wait_s(self) -> float:
        return self.began_s - self.arrived_s


class Run(Struct, frozen=True, kw_only=True):
    """What came of a trace: its jobs by number, how often the card changed hands, the longest drain."""

    served: tuple[Served, ...]
    swaps: int
    longest_drain_s: float

    @property
    def makespan_s(self) -> float:
        """From the beginning until the last one is done."""
        return max(each.done_s for each in self.served)


def simulate(
    jobs: Sequence[Job], policy: Policy, swap_cost_s: Mapping[str, float], slots: int = SLOTS
) -> Run:
    """Play the jobs on a card that is empty at the beginning. Raises AssertionError if one is never served."""
    return _Card(jobs, policy, swap_cost_s, slots).play()


class _Card:
    """The card, its engine and the queue before it."""

    def __init__(
        self, jobs: Sequence[Job], policy: Policy, swap_cost_s: Mapping[str, float], slots: int
    ) -> None:
        self.jobs, self.policy, self.swap_cost_s, self.slots = jobs, policy, swap_cost_s, slots
        self.now_s = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.planned = 0
        self.resident: str | None = None
        self.since_s = 0.0
        self.last_request_s: float | None = None
        self.goal: str | None = None
        self.drain_began_s = 0.0
        self.longest_drain_s = 0.0
        self.swaps = 0
        self.in_engine: deque[int] = deque()
        self.running = 0
        self.waiting: list[Waiting] = []
        self.numbers: list[int] = []
        self.rhythms: dict[str, Rhythm] = {}
        self.asked: dict[int, tuple[float, int]] = {}
        self.granted_s: dict[int, float] = {}
        self.served: dict[int, Served] = {}
        self.followers: dict[int, list[int]] = {}

    def play(self) -> Run:
        for number, job in enumerate(self.jobs):
            if job.after is None:
                self._at(job.arrives_s, partial(self._arrive, number))
            else:
                self.followers.setdefault(job.after, []).append(number)
        while self.events:
            self.now_s, _, happen = heapq.heappop(self.events)
            happen()
            self._ask()
        if len(self.served) < len(self.jobs):
            raise AssertionError(f"{self.policy.name} left requests waiting")
        served = tuple(self.served[number] for number in range(len(self.jobs)))
        return Run(served=served, swaps=self.swaps, longest_drain_s=self.longest_drain_s)

    def _at(self, when_s: float, happen: Callable[[], None]) -> None:
        self.planned += 1
        heapq.heappush(self.events, (when_s, self.planned, happen))

    # --- what happens -------------------------------------------------------------------------------------

    def _arrive(self, number: int) -> None:
        agent = self.jobs[number].agent
        others = {each.group for each in self.waiting} | ({self.goal} if self.goal else set())
        self.asked[number] = (self.now_s, len(others - {agent}) + 1)
        self.rhythms[agent] = self.rhythms.get(agent, Rhythm()).asked(self.now_s)
        self.waiting.append(Waiting(group=agent, arrived_s=self.now_s))
        self.numbers.append(number)
        if agent == self.resident:
            self.last_request_s = self.now_s

    def _grant(self, number: int) -> None:
        self.granted_s[number] = self.now_s
        self.last_request_s = self.now_s
        self.in_engine.append(number)
        self._fill()

    def _fill(self) -> None:
        while self.in_engine and self.running < self.slots:
            number = self.in_engine.popleft()
            self.running += 1
            self._at(self.now_s + self.jobs[number].duration_s, partial(self._finish, number, self.now_s))

    def _finish(self, number: int, began_s: float) -> None:
        arrived_s, turns = self.asked[number]
        self.served[number] = Served(
            arrived_s=arrived_s,
            granted_s=self.granted_s[number],
            began_s=began_s,
            done_s=self.now_s,
            turns=turns,
        )
        self.running -= 1
        self.last_request_s = self.now_s
        self._fill()
        agent = self.jobs[number].agent
        if not self.running and agent not in {each.group for each in self.waiting}:
            self.rhythms[agent] = self.rhythms[agent].quiet(self.now_s)
        for follower in self.followers.get(number, ()):
            self._at(self.now_s + self.jobs[follower].arrives_s, partial(self._arrive, follower))
        if self.goal is not None and not self.running:
            self._drained(self.goal)

    def _drained(self, goal: str) -> None:
        self.longest_drain_s = max(self.longest_drain_s, self.now_s - self.drain_began_s)
        self.resident, self.last_request_s = None, None
        self._at(self.now_s + self.swap_cost_s[goal], self._ready)

    def _ready(self) -> None:
        self.resident, self.goal, self.since_s = self.goal, None, self.now_s
        self.swaps += 1

    # --- what is decided ----------------------------------------------------------------------------------

    def _ask(self) -> None:
        if self.goal is not None:
            return
        for place in reversed(granted := self.policy.granted(self._view())):
            del self.waiting[place]
        for number in [self.numbers[place] for place in granted]:
            self._grant(number)
        self.numbers = [number for place, number in enumerate(self.numbers) if place not in set(granted)]
        decision = self.policy.decide(self._view())
        if isinstance(decision, SwapTo):
            self.goal, self.drain_began_s = decision.group, self.now_s
            if not self.running:
                self._drained(self.goal)
        elif isinstance(decision, Stay) and decision.until_s is not None:
            if decision.until_s <= self.now_s:
                raise AssertionError("it would be asked again at once, for ever")
            self._at(decision.until_s, lambda: None)

    def _view(self) -> View:
        resident = None
        if self.resident is not None:
            resident = Resident(
                group=self.resident,
                since_s=self.since_s,
                running=self.running + len(self.in_engine),
                last_request_s=self.last_request_s,
                gaps_s=self.rhythms.get(self.resident, Rhythm()).gaps_s,
            )
        return View(now_s=self.now_s, resident=resident, waiting=self.waiting, swap_cost_s=self.swap_cost_s)
