"""What an operation makes of what it finds on the card."""

from __future__ import annotations

import itertools

import pytest

from agent_manager.runtimes.base import Exit, Instance, InstanceSpec, InstanceState
from agent_manager.swap.takeover import Found, Life, runs, take_over

LIVES = tuple(Life)


def found(name: str, life: Life, *, wanted: bool = False, requested: bool = False) -> Found:
    spec = InstanceSpec(
        id=name,
        agent=name,
        engine="simulated",
        model="small",
        card="SIM-0",
        claim_bytes=1,
        argv=("engine",),
        engine_port=8101,
        agent_port=8001,
    )
    over = life is Life.OVER
    instance = Instance(
        spec=spec,
        runtime="process",
        state=InstanceState.EXITED if over else InstanceState.RUNNING,
        exit=Exit(code=0, requested=requested) if over else None,
    )
    return Found(instance=instance, life=life, wanted=wanted)


def test_an_empty_card() -> None:
    taken = take_over(())
    assert (taken.resident, taken.loading, taken.kept, taken.leftovers) == (None, None, None, ())


@pytest.mark.parametrize("wanted", [True, False])
def test_what_serves_is_the_resident_wanted_or_not(*, wanted: bool) -> None:
    po = found("po", Life.SERVING, wanted=wanted)
    taken = take_over((po,))
    assert taken.resident is po
    assert taken.leftovers == ()


def test_of_two_that_serve_the_newest_stays() -> None:
    old, new = found("old", Life.SERVING), found("new", Life.SERVING)
    taken = take_over((old, new))
    assert taken.resident is new
    assert taken.leftovers == (old,)


def test_a_load_that_is_wanted_is_followed_and_what_it_replaces_is_kept() -> None:
    po = found("po", Life.OVER, requested=True)
    dev = found("dev", Life.LOADING, wanted=True)
    taken = take_over((po, dev))
    assert (taken.resident, taken.loading, taken.kept, taken.leftovers) == (None, dev, po, ())


def test_what_ended_by_itself_is_not_kept() -> None:
    crashed = found("po", Life.OVER)
    dev = found("dev", Life.LOADING, wanted=True)
    taken = take_over((crashed, dev))
    assert (taken.kept, taken.leftovers) == (None, (crashed,))


def test_without_a_load_to_follow_nothing_that_stopped_is_kept() -> None:
    po = found("po", Life.OVER, requested=True)
    assert take_over((po,)).leftovers == (po,)
    dev = found("dev", Life.LOADING)
    assert take_over((po, dev)).leftovers == (po, dev)


def test_a_load_beside_one_that_serves_must_go_even_if_it_is_wanted() -> None:
    po, dev = found("po", Life.SERVING), found("dev", Life.LOADING, wanted=True)
    taken = take_over((po, dev))
    assert (taken.resident, taken.loading, taken.leftovers) == (po, None, (dev,))


def test_what_is_broken_must_go() -> None:
    broken = found("po", Life.BROKEN, wanted=True)
    taken = take_over((broken,))
    assert (taken.resident, taken.loading, taken.leftovers) == (None, None, (broken,))


def test_of_everything_there_can_be_at_most_one_engine_stays_and_nothing_is_forgotten() -> None:
    kinds = [(life, wanted) for life in LIVES for wanted in (True, False)]
    for several in itertools.product(kinds, repeat=3):
        there = tuple(
            found(f"agent{number}", life, wanted=wanted, requested=True)
            for number, (life, wanted) in enumerate(several)
        )
        taken = take_over(there)
        staying = [each for each in (taken.resident, taken.loading, taken.kept) if each]
        assert sum(runs(each) for each in staying) <= 1
        assert sorted(each.instance.spec.id for each in (*staying, *taken.leftovers)) == [
            each.instance.spec.id for each in there
        ]
