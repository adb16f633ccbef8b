"""The policy: its rules one by one, its bound on everybody's wait, and what it is worth beside simple ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_manager.swap.rhythm import REMEMBERED, Rhythm, linger_s
from agent_manager.swap.schedule import (
    Cause,
    Resident,
    Settings,
    Stay,
    SwapTo,
    Unload,
    View,
    Waiting,
    decide,
)
from benchmarks.scheduling import report
from benchmarks.scheduling.clairvoyant import Goal, clairvoyant
from benchmarks.scheduling.policies import Collation, FirstComeFirstServed, Ours
from benchmarks.scheduling.simulate import simulate
from benchmarks.scheduling.traces import Job

SETTINGS = Settings(max_wait_s=100, min_residency_s=50)
COSTS_S = {"po": 1.0, "dev": 10.0, "architect": 60.0}


def waits(*requests: tuple[str, float]) -> tuple[Waiting, ...]:
    return tuple(Waiting(group=group, arrived_s=at_s) for group, at_s in requests)


def view(now_s: float, resident: Resident | None, *requests: tuple[str, float]) -> View:
    return View(now_s=now_s, resident=resident, waiting=waits(*requests), swap_cost_s=COSTS_S)


def busy(group: str = "dev", *, since_s: float = 0.0) -> Resident:
    return Resident(group=group, since_s=since_s, running=2, last_request_s=since_s)


def idle(group: str = "dev", *, last_s: float | None = 0.0, gaps_s: tuple[float, ...] = ()) -> Resident:
    return Resident(group=group, since_s=0.0, last_request_s=last_s, gaps_s=gaps_s)


# --- who leaves, and when ---------------------------------------------------------------------------------


def test_an_empty_card_that_nobody_asks_for_stays_empty() -> None:
    assert decide(view(5, None), SETTINGS) == Stay()


def test_an_empty_card_goes_to_the_one_who_waits() -> None:
    assert decide(view(5, None, ("po", 5)), SETTINGS) == SwapTo(group="po", cause=Cause.EMPTY)


def test_a_resident_that_nothing_is_known_of_leaves_as_soon_as_it_has_nothing_to_do() -> None:
    assert decide(view(5, idle(last_s=5), ("po", 3)), SETTINGS) == SwapTo(group="po", cause=Cause.LULL)


def test_a_busy_resident_is_kept_until_the_waiter_has_waited_long_enough() -> None:
    kept = decide(view(1000, busy(), ("po", 990)), SETTINGS)
    assert isinstance(kept, Stay)
    assert kept.until_s is not None
    assert 1000 < kept.until_s <= 990 + SETTINGS.max_wait_s
    over = decide(view(kept.until_s, busy(), ("po", 990)), SETTINGS)
    assert over == SwapTo(group="po", cause=Cause.OVERDUE)


def test_one_waits_longer_for_a_slow_swap_than_for_a_quick_one_but_never_beyond_the_maximum() -> None:
    def until_s(max_wait_s: float, group: str) -> float:
        patient = Settings(max_wait_s=max_wait_s, min_residency_s=0)
        kept = decide(view(1000, busy(), (group, 1000)), patient)
        assert isinstance(kept, Stay)
        assert kept.until_s is not None
        return kept.until_s

    assert until_s(1000, "po") < until_s(1000, "architect")
    assert until_s(7, "architect") == 1007


def test_a_busy_resident_is_kept_for_its_minimum_residency_even_if_others_are_overdue() -> None:
    since_s = 995.0
    kept = decide(view(1000, busy(since_s=since_s), ("architect", 0)), SETTINGS)
    assert kept == Stay(until_s=since_s + SETTINGS.min_residency_s)


def test_an_idle_resident_is_kept_as_long_as_its_rhythm_says_that_it_pays() -> None:
    quick = idle(last_s=1000, gaps_s=(0.2, 0.3, 200.0, 0.2))
    kept = decide(view(1000, quick, ("architect", 990)), SETTINGS)
    assert isinstance(kept, Stay)
    assert kept.until_s is not None
    assert 1000.3 < kept.until_s < 1001
    assert isinstance(decide(view(kept.until_s, quick, ("architect", 990)), SETTINGS), SwapTo)
    slow = idle(last_s=1000, gaps_s=(200.0, 300.0))
    assert isinstance(decide(view(1000, slow, ("architect", 990)), SETTINGS), SwapTo)


def test_an_idle_resident_is_not_kept_beyond_anybodys_patience() -> None:
    quick = idle(last_s=1000, gaps_s=(2.0,))
    assert isinstance(decide(view(1000, quick, ("architect", 950)), SETTINGS), Stay)
    overdue = decide(view(1000, quick, ("architect", 900)), SETTINGS)
    assert overdue == SwapTo(group="architect", cause=Cause.LULL)


def test_what_waits_for_the_residents_own_group_does_not_make_it_leave() -> None:
    assert decide(view(1000, idle(), ("dev", 0)), SETTINGS) == Stay()


# --- who is next ------------------------------------------------------------------------------------------


def test_the_longest_waiter_is_next() -> None:
    chosen = decide(view(50, None, ("dev", 10), ("architect", 20), ("dev", 30)), SETTINGS)
    assert chosen == SwapTo(group="dev", cause=Cause.EMPTY)


def test_a_quick_swap_goes_before_a_slow_one_that_was_asked_for_a_little_earlier() -> None:
    assert decide(view(20, None, ("architect", 10), ("po", 20)), SETTINGS) == SwapTo(
        group="po", cause=Cause.EMPTY
    )
    much_earlier = decide(view(90, None, ("architect", 10), ("po", 90)), SETTINGS)
    assert much_earlier == SwapTo(group="architect", cause=Cause.EMPTY)


def test_a_quick_swap_does_not_go_first_if_the_longest_waiter_would_be_late() -> None:
    hurried = Settings(max_wait_s=15, min_residency_s=50)
    chosen = decide(view(20, None, ("architect", 10), ("po", 20)), hurried)
    assert chosen == SwapTo(group="architect", cause=Cause.EMPTY)


# --- keep-alive and the default ---------------------------------------------------------------------------


@pytest.mark.parametrize("keep_alive_s", [-1.0, -300.0])
def test_a_negative_keep_alive_is_for_ever(keep_alive_s: float) -> None:
    assert decide(view(1e9, idle()), Settings(keep_alive_s=keep_alive_s)) == Stay()


def test_an_idle_resident_leaves_after_its_keep_alive() -> None:
    five_minutes = Settings(keep_alive_s=300)
    assert decide(view(399, idle(last_s=100)), five_minutes) == Stay(until_s=400)
    assert decide(view(400, idle(last_s=100)), five_minutes) == Unload(cause=Cause.IDLE)
    assert decide(view(400, busy()), five_minutes) == Stay()


def test_a_keep_alive_of_nothing_unloads_after_the_last_request_and_not_before_the_first() -> None:
    at_once = Settings(keep_alive_s=0)
    assert decide(view(100, idle(last_s=100)), at_once) == Unload(cause=Cause.IDLE)
    assert decide(view(100, idle(last_s=None)), at_once) == Stay()


def test_keep_alive_may_be_said_for_one_group() -> None:
    but_dev = Settings(keep_alive_s=-1, keep_alive_of_s={"dev": 60})
    assert decide(view(60, idle("dev")), but_dev) == Unload(cause=Cause.IDLE)
    assert decide(view(60, idle("po")), but_dev) == Stay()


def test_the_default_comes_back_instead_of_an_empty_card_and_then_stays() -> None:
    a_minute = Settings(keep_alive_s=60)
    back = View(now_s=60, resident=idle("dev"), default="po")
    assert decide(back, a_minute) == SwapTo(group="po", cause=Cause.IDLE)
    assert decide(View(now_s=1e6, resident=idle("po"), default="po"), a_minute) == Stay()


# --- rhythm -----------------------------------------------------------------------------------------------


def test_a_gap_is_from_the_end_of_the_last_request_to_the_next() -> None:
    rhythm = Rhythm().asked(0).quiet(10).asked(13).asked(14).quiet(20).asked(21)
    assert rhythm.gaps_s == (3, 1)


def test_old_gaps_are_forgotten() -> None:
    rhythm = Rhythm()
    for n in range(2 * REMEMBERED):
        rhythm = rhythm.quiet(0).asked(n)
    assert rhythm.gaps_s == tuple(range(REMEMBERED, 2 * REMEMBERED))


@pytest.mark.parametrize("gaps_s", [(), (50.0,), (50.0, 70.0), (1.0, 50.0, 50.0, 50.0, 50.0)])
def test_it_does_not_pay_to_linger_for_what_seldom_comes(gaps_s: tuple[float, ...]) -> None:
    assert linger_s(gaps_s, saved_s=3) == 0


gaps = st.lists(st.floats(0, 1000), max_size=REMEMBERED)


@given(gaps_s=gaps, saved_s=st.floats(0, 200))
def test_lingering_never_costs_more_on_average_than_it_saves(gaps_s: list[float], saved_s: float) -> None:
    limit_s = linger_s(gaps_s, saved_s)
    spent_s = sum(min(gap_s, limit_s) for gap_s in gaps_s)
    assert spent_s <= saved_s * sum(gap_s <= limit_s for gap_s in gaps_s) or limit_s == 0


# --- the bound on everybody's wait ------------------------------------------------------------------------

agents = st.sampled_from(sorted(COSTS_S))
seconds = st.floats(min_value=0, max_value=60)


@st.composite
def traces(draw: st.DrawFn, *, most: int) -> tuple[Job, ...]:
    """Jobs that come by themselves, or some time after an earlier one is done."""
    jobs = []
    for number in range(draw(st.integers(1, most))):
        after = draw(st.none() | st.integers(0, number - 1)) if number else None
        at_s = draw(seconds) * (1 if after is not None else 5)
        jobs.append(Job(agent=draw(agents), arrives_s=at_s, duration_s=1 + draw(seconds), after=after))
    return tuple(jobs)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    jobs=traces(most=30),
    costs_s=st.fixed_dictionaries(dict.fromkeys(sorted(COSTS_S), seconds)),
    max_wait_s=seconds,
    min_residency_s=seconds,
)
def test_nobody_waits_beyond_the_bound(
    jobs: tuple[Job, ...], costs_s: dict[str, float], max_wait_s: float, min_residency_s: float
) -> None:
    policy = Ours(Settings(max_wait_s=max_wait_s, min_residency_s=min_residency_s))
    run = simulate(jobs, policy, costs_s)
    turn_s = max(costs_s.values()) + run.longest_drain_s + min_residency_s
    for served in run.served:
        assert served.granted_s - served.arrived_s <= max_wait_s + served.turns * turn_s + 1e-6


def test_the_bound_is_one_that_a_policy_can_break() -> None:
    never_idle = [Job(agent="dev", arrives_s=2.0 * n, duration_s=3) for n in range(200)]
    rare = Job(agent="po", arrives_s=20, duration_s=3)
    run = simulate([*never_idle, rare], Collation(), dict.fromkeys(COSTS_S, 1.0))
    assert run.served[-1].wait_s > 300
    ours = simulate([*never_idle, rare], Ours(), dict.fromkeys(COSTS_S, 1.0))
    assert ours.served[-1].wait_s < 60


# --- what it is worth -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(jobs=traces(most=6), cost_s=st.sampled_from([1.0, 10.0, 60.0]))
def test_nobody_beats_the_clairvoyant_schedule(jobs: tuple[Job, ...], cost_s: float) -> None:
    costs_s = dict.fromkeys(COSTS_S, cost_s)
    makespan_s = clairvoyant(jobs, costs_s, Goal.MAKESPAN)
    mean_s = clairvoyant(jobs, costs_s, Goal.MEAN_WAIT)
    for policy in (FirstComeFirstServed(), Collation(), Ours()):
        run = simulate(jobs, policy, costs_s)
        assert run.makespan_s >= makespan_s - 1e-6
        assert sum(each.wait_s for each in run.served) / len(jobs) >= mean_s - 1e-6


def test_the_evidence_still_holds() -> None:
    assert [row.what for row in report.measure() if not row.kept] == []
