"""What the simulations say: every case measured, put beside the better simple policy, misses explained."""

from __future__ import annotations

import statistics
from functools import cache
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.swap.schedule import Settings, Tuning
from benchmarks.scheduling.clairvoyant import Goal, clairvoyant
from benchmarks.scheduling.policies import Collation, FirstComeFirstServed, KeptIdle, Ours
from benchmarks.scheduling.simulate import simulate
from benchmarks.scheduling.traces import AGENTS, all_traces
from benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.scheduling.policies import Policy
    from benchmarks.scheduling.traces import Trace

SWAP_COSTS_S = (1.0, 10.0, 60.0)
TOLERANCE = 0.05
SIMPLE: tuple[Policy, ...] = (FirstComeFirstServed(), Collation())
OURS = Ours()
POLICIES: tuple[Policy, ...] = (*SIMPLE, OURS)

CLOSED = (
    "its clients ask one thing at a time: keeping the agent while its client will probably ask again saves most "
    "requests a swap, and those few that do wait wait for a whole visit"
)
STARVED = (
    "one agent is never idle, so collation lets the rare one wait until it is, without a bound; "
    "serving it costs the many who are cut short"
)
WHY_MISSED = {"two agent loops": CLOSED, "two chats": CLOSED, "one never idle, one rare": STARVED}


class Figures(Struct, frozen=True, kw_only=True):
    """A policy on every draw of a trace at one swap cost; waits are of all draws together, in seconds."""

    swaps: int
    makespan_s: float
    mean_s: float
    p50_s: float
    p95_s: float
    worst_s: float


class Case(Struct, frozen=True, kw_only=True):
    """One trace at one swap cost, under every policy by name."""

    trace: str
    swap_s: float
    by_policy: dict[str, Figures]

    def beyond(self, figure: str) -> float:
        """By how much our figure exceeds the better simple policy's: 0.05 is 5 % more, -0.5 half as much."""
        ours = float(getattr(self.by_policy[OURS.name], figure))
        better = min(float(getattr(self.by_policy[policy.name], figure)) for policy in SIMPLE)
        if better == 0:
            return 0.0 if ours == 0 else float("inf")
        return ours / better - 1

    @property
    def missed(self) -> bool:
        return max(self.beyond("makespan_s"), self.beyond("p95_s")) > TOLERANCE


class Short(Struct, frozen=True, kw_only=True):
    """The first jobs of a trace, under every policy and as somebody would serve them who knows the future."""

    trace: str
    swap_s: float
    jobs: int
    makespan_s: dict[str, float]
    mean_s: dict[str, float]
    best_makespan_s: float
    best_mean_s: float


@cache
def cases() -> tuple[Case, ...]:
    """Every trace at every swap cost. Takes some seconds, once."""
    return tuple(_case(trace, swap_s) for trace in all_traces() for swap_s in SWAP_COSTS_S)


@cache
def shorts() -> tuple[Short, ...]:
    """The short traces at every swap cost, with the search's answers."""
    return tuple(_short(trace, swap_s) for trace in all_traces() for swap_s in SWAP_COSTS_S)


def measure() -> list[Row]:
    """The rows for the table of all benchmarks. Simulated, so they are the same on every machine."""
    return [_makespan_row(), _p95_row(), _search_row(), _at_once_row()]


def cases_table() -> str:
    """All cases as a Markdown table; ours with what it is beside the better simple policy."""
    head = (
        "trace",
        "swap",
        "policy",
        "swaps",
        "makespan",
        "mean",
        "p50",
        "p95",
        "worst",
        "makespan, p95 beside the better",
    )
    return _table(head, (line for case in cases() for line in _case_lines(case)))


def shorts_table() -> str:
    """The short traces as a Markdown table, with what nobody can do better."""
    names = [policy.name for policy in POLICIES]
    head = ("trace", "jobs", "swap", *(f"makespan {name}" for name in names), "**least**",
            *(f"mean wait {name}" for name in names), "**least**")  # fmt: skip
    return _table(head, (_short_line(short, names) for short in shorts()))


def misses() -> str:
    """The cases in which ours is more than the tolerance beyond the better one, and why."""
    lines = [
        f"- {case.trace}, swaps of {case.swap_s:.0f} s (makespan {case.beyond('makespan_s'):+.0%}, mean wait "
        f"{case.beyond('mean_s'):+.0%}, p95 {case.beyond('p95_s'):+.0%}, worst {case.beyond('worst_s'):+.0%}): "
        f"{WHY_MISSED.get(case.trace, '**not explained**')}."
        for case in cases()
        if case.missed
    ]
    return "\n".join(lines)


VARIANTS: tuple[tuple[str, Ours], ...] = (
    ("as it is", OURS),
    ("an idle resident is kept for its minimum residency, too", KeptIdle()),
    ("an idle resident is never kept", Ours(tuning=Tuning(saved_trips=0))),
    ("kept as if a request saved 0.25 trips", Ours(tuning=Tuning(saved_trips=0.25))),
    ("kept as if a request saved a whole trip", Ours(tuning=Tuning(saved_trips=1))),
    ("patience of 2 trips", Ours(tuning=Tuning(patience_trips=2))),
    ("patience of 8 trips", Ours(tuning=Tuning(patience_trips=8))),
    ("no minimum residency", Ours(tuning=Tuning(residency_trips=0))),
    ("`max_wait` 20 s", Ours(Settings(max_wait_s=20))),
    ("`max_wait` 20 s, no minimum residency", Ours(Settings(max_wait_s=20), Tuning(residency_trips=0))),
    ("`max_wait` 60 s", Ours(Settings(max_wait_s=60))),
    ("`max_wait` 120 s", Ours(Settings(max_wait_s=120))),
)


def variants_table() -> str:
    """What other figures in the policy would come to, over all cases. Takes about half a minute."""
    head = ("variant", "misses", "makespan", "mean", "p95", "worst")
    return _table(head, (_variant_line(name, policy) for name, policy in VARIANTS))


def _variant_line(name: str, policy: Ours) -> tuple[str, ...]:
    traces = {trace.name: trace for trace in all_traces()}
    tried = [
        replace(
            case, by_policy={**case.by_policy, OURS.name: _figures(traces[case.trace], policy, case.swap_s)}
        )
        for case in cases()
    ]
    figures = (
        statistics.geometric_mean(
            getattr(case.by_policy[OURS.name], figure) / getattr(case.by_policy["collation"], figure)
            for case in tried
        )
        for figure in ("makespan_s", "mean_s", "p95_s", "worst_s")
    )
    return (name, f"{sum(case.missed for case in tried)}", *(f"{figure:.2f} ×" for figure in figures))


# --- measuring --------------------------------------------------------------------------------------------


def _case(trace: Trace, swap_s: float) -> Case:
    figures = {policy.name: _figures(trace, policy, swap_s) for policy in POLICIES}
    return Case(trace=trace.name, swap_s=swap_s, by_policy=figures)


def _figures(trace: Trace, policy: Policy, swap_s: float) -> Figures:
    runs = [simulate(jobs, policy, dict.fromkeys(AGENTS, swap_s)) for jobs in trace.draws]
    waits_s = sorted(served.wait_s for run in runs for served in run.served)
    return Figures(
        swaps=sum(run.swaps for run in runs),
        makespan_s=sum(run.makespan_s for run in runs),
        mean_s=statistics.fmean(waits_s),
        p50_s=waits_s[len(waits_s) // 2],
        p95_s=waits_s[int(0.95 * len(waits_s))],
        worst_s=waits_s[-1],
    )


def _short(trace: Trace, swap_s: float) -> Short:
    jobs, cost_s = trace.short(), dict.fromkeys(AGENTS, swap_s)
    runs = {policy.name: simulate(jobs, policy, cost_s) for policy in POLICIES}
    return Short(
        trace=trace.name,
        swap_s=swap_s,
        jobs=len(jobs),
        makespan_s={name: run.makespan_s for name, run in runs.items()},
        mean_s={name: statistics.fmean(each.wait_s for each in run.served) for name, run in runs.items()},
        best_makespan_s=clairvoyant(jobs, cost_s, Goal.MAKESPAN),
        best_mean_s=clairvoyant(jobs, cost_s, Goal.MEAN_WAIT),
    )


# --- rows and tables --------------------------------------------------------------------------------------


def _makespan_row() -> Row:
    beyond = [case.beyond("makespan_s") for case in cases()]
    return Row(
        what="policy: time until all is served, simulated",
        figure=f"{min(beyond):+.0%} to {max(beyond):+.0%} over {len(beyond)} cases",
        yardstick="the better of first come and collation, case by case",
        bound=f"≤ {TOLERANCE:+.0%}",
        kept=max(beyond) <= TOLERANCE,
    )


def _p95_row() -> Row:
    missed = [case for case in cases() if case.missed]
    most = max(case.beyond("p95_s") for case in cases())
    explained = all(case.trace in WHY_MISSED for case in missed)
    return Row(
        what="policy: p95 wait, simulated",
        figure=f"{len(cases()) - len(missed)} of {len(cases())} cases within {TOLERANCE:.0%}, at most {most:+.0%}",
        yardstick="the better of first come and collation, case by case",
        bound="the others explained in scheduling/RESULTS.md",
        kept=explained,
    )


def _search_row() -> Row:
    ours = statistics.geometric_mean(each.makespan_s[OURS.name] / each.best_makespan_s for each in shorts())
    simple = [
        statistics.geometric_mean(each.makespan_s[policy.name] / each.best_makespan_s for each in shorts())
        for policy in SIMPLE
    ]
    others = ", ".join(f"{policy.name} {mean:.2f} ×" for policy, mean in zip(SIMPLE, simple, strict=True))
    return Row(
        what="policy: time until 12 requests are served, simulated",
        figure=f"{ours:.2f} × (geometric mean)",
        yardstick=f"a clairvoyant schedule, found by search ({others})",
        bound="≤ the simple ones",
        kept=ours <= min(simple),
    )


def _at_once_row() -> Row:
    swaps = max(case.by_policy[OURS.name].swaps for case in cases() if case.trace == "alternating, at once")
    first_come = max(
        case.by_policy[SIMPLE[0].name].swaps for case in cases() if case.trace == "alternating, at once"
    )
    return Row(
        what="policy: swaps for 12 alternating requests at once, simulated",
        figure=f"{swaps}",
        yardstick=f"first come ({first_come})",
        bound="≤ 2",
        kept=swaps <= 2,
    )


def _case_lines(case: Case) -> Iterable[tuple[str, ...]]:
    for name, figures in case.by_policy.items():
        beside = ""
        if name == OURS.name:
            beside = f"{case.beyond('makespan_s'):+.0%}, {case.beyond('p95_s'):+.0%}"
            beside = f"**{beside}**" if case.missed else beside
        yield (
            case.trace,
            f"{case.swap_s:.0f}",
            name,
            f"{figures.swaps}",
            f"{figures.makespan_s:.0f}",
            f"{figures.mean_s:.1f}",
            f"{figures.p50_s:.1f}",
            f"{figures.p95_s:.1f}",
            f"{figures.worst_s:.1f}",
            beside,
        )


def _short_line(short: Short, names: Sequence[str]) -> tuple[str, ...]:
    return (
        short.trace,
        f"{short.jobs}",
        f"{short.swap_s:.0f}",
        *(f"{short.makespan_s[name]:.0f}" for name in names),
        f"{short.best_makespan_s:.0f}",
        *(f"{short.mean_s[name]:.1f}" for name in names),
        f"{short.best_mean_s:.1f}",
    )


def _table(head: Sequence[str], lines: Iterable[tuple[str, ...]]) -> str:
    rows = [tuple(head), tuple("---" for _ in head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
