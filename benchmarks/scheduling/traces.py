"""Who asks for what, and when: the traces that policies are compared on. Seconds; the same in every run."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SEEDS = 5
"""Traces that are drawn are drawn this often, and what is measured is put together."""
AGENTS = ("architect", "dev", "po")


class Job(Struct, frozen=True, kw_only=True):
    """A request: it arrives at `arrives_s`, or that long after the job numbered `after` has finished."""

    agent: str
    arrives_s: float
    duration_s: float
    after: int | None = None


class Trace(Struct, frozen=True, kw_only=True):
    """One kind of traffic, drawn once or several times; a job's number is its place in its draw."""

    name: str
    draws: tuple[tuple[Job, ...], ...]

    def short(self, limit: int = 12) -> tuple[Job, ...]:
        """The first jobs of the first draw, by arrival, for the search."""
        return self.draws[0][:limit]


def all_traces() -> list[Trace]:
    """Every kind of traffic, in the order of the table."""
    return [
        Trace(name="alternating, at once", draws=(_at_once(12),)),
        Trace(name="alternating, every 3 s", draws=(_alternating(60, every_s=3.0),)),
        _drawn("Poisson, calm", lambda rng: _poisson(rng, dict.fromkeys(AGENTS, 1 / 180), 3600)),
        _drawn("Poisson, busy", lambda rng: _poisson(rng, dict.fromkeys(AGENTS, 1 / 12), 1200)),
        _drawn("Poisson, uneven", lambda rng: _poisson(rng, {"dev": 1 / 5, "po": 1 / 20}, 1200)),
        _drawn("bursts", _bursts),
        _drawn("agent loop", _loop),
        _drawn("two agent loops", lambda rng: _merged(_loop(rng), _loop(rng))),
        _drawn("two chats", _chats),
        _drawn("one heavy, one rare", lambda rng: _poisson(rng, {"dev": 1 / 2, "po": 1 / 60}, 1200)),
        _drawn("one never idle, one rare", lambda rng: _poisson(rng, {"dev": 1 / 1.2, "po": 1 / 60}, 1200)),
    ]


def _drawn(name: str, draw: Callable[[random.Random], tuple[Job, ...]]) -> Trace:
    return Trace(name=name, draws=tuple(draw(random.Random(seed)) for seed in range(SEEDS)))  # noqa: S311 - the same traces each time


def _at_once(count: int) -> tuple[Job, ...]:
    return tuple(Job(agent=AGENTS[n % 2], arrives_s=0.0, duration_s=3.0) for n in range(count))


def _alternating(count: int, *, every_s: float) -> tuple[Job, ...]:
    return tuple(Job(agent=AGENTS[n % 3], arrives_s=every_s * n, duration_s=3.0) for n in range(count))


def _poisson(rng: random.Random, rates: Mapping[str, float], for_s: float) -> tuple[Job, ...]:
    """Independent clients; answers take 1 to 10 s, mostly the shorter."""
    jobs = []
    for agent, per_s in rates.items():
        at_s = rng.expovariate(per_s)
        while at_s < for_s:
            jobs.append(Job(agent=agent, arrives_s=at_s, duration_s=_answer_s(rng)))
            at_s += rng.expovariate(per_s)
    return tuple(sorted(jobs, key=lambda job: job.arrives_s))


def _bursts(rng: random.Random) -> tuple[Job, ...]:
    """Every minute or so somebody sends eight requests to one agent within four seconds."""
    jobs, at_s = [], 0.0
    for _ in range(20):
        agent = rng.choice(AGENTS)
        jobs += [
            Job(agent=agent, arrives_s=at_s + rng.uniform(0, 4), duration_s=_answer_s(rng)) for _ in range(8)
        ]
        at_s += rng.expovariate(1 / 60)
    return tuple(sorted(jobs, key=lambda job: job.arrives_s))


def _loop(rng: random.Random) -> tuple[Job, ...]:
    """One program, one request at a time: plan, then code with tools in between, then review; ten rounds."""
    jobs: list[Job] = []
    for _ in range(10):
        round_ = ["architect", *["dev"] * rng.randint(2, 6), *["po"] * rng.randint(1, 2)]
        for agent in round_:
            after = len(jobs) - 1 if jobs else None
            jobs.append(
                Job(agent=agent, arrives_s=rng.uniform(0.1, 1.0), duration_s=_answer_s(rng), after=after)
            )
    return tuple(jobs)


def _chats(rng: random.Random) -> tuple[Job, ...]:
    """Two people, each with their own agent, who read for some seconds before they ask again."""
    return _merged(*(_chat(rng, agent) for agent in AGENTS[:2]))


def _chat(rng: random.Random, agent: str) -> tuple[Job, ...]:
    return tuple(
        Job(agent=agent, arrives_s=rng.uniform(2, 6), duration_s=_answer_s(rng), after=n - 1 if n else None)
        for n in range(40)
    )


def _merged(*traces: tuple[Job, ...]) -> tuple[Job, ...]:
    """Several traces side by side, their jobs in turn."""
    places = sorted((n, which) for which, trace in enumerate(traces) for n in range(len(trace)))
    number = {place: new for new, place in enumerate(places)}
    jobs = ((traces[which][n], which) for n, which in places)
    return tuple(
        job if job.after is None else replace(job, after=number[job.after, which]) for job, which in jobs
    )


def _answer_s(rng: random.Random) -> float:
    return min(10.0, 1.0 + rng.expovariate(1 / 2.5))
