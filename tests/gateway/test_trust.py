"""Trust: who failed is not tried again at once, and it says for how long."""

from __future__ import annotations

import pytest

from agent_manager.gateway.trust import FIRST_PAUSE_S, GOOD_WHILE_S, LONGEST_PAUSE_S, Trust

CAUSE = "dev did not start: CUDA out of memory"


def pause_s(trust: Trust, now_s: float) -> float:
    paused = trust.paused("dev", now_s)
    return paused[1] if paused else 0.0


def test_who_never_failed_is_trusted() -> None:
    assert Trust().paused("dev", 0.0) is None


def test_a_start_that_failed_for_a_reason_is_not_tried_again_at_once() -> None:
    trust = Trust()
    trust.failed("dev", CAUSE, 100.0, by_itself=False)
    assert trust.paused("dev", 100.0) == (CAUSE, FIRST_PAUSE_S)
    assert trust.paused("dev", 104.0) == (CAUSE, FIRST_PAUSE_S - 4)
    assert trust.paused("dev", 100.0 + FIRST_PAUSE_S) is None
    assert trust.paused("po", 100.0) is None


def test_each_failure_in_a_row_doubles_the_pause_up_to_the_longest() -> None:
    trust, pauses = Trust(), []
    for _ in range(1100):
        trust.failed("dev", CAUSE, 0.0, by_itself=False)
        pauses.append(pause_s(trust, 0.0))
    assert pauses[:4] == [FIRST_PAUSE_S, FIRST_PAUSE_S * 2, FIRST_PAUSE_S * 4, FIRST_PAUSE_S * 8]
    assert pauses[-1] == LONGEST_PAUSE_S


@pytest.mark.parametrize("served_s", [0.0, GOOD_WHILE_S + 1])
def test_the_first_crash_is_forgiven(served_s: float) -> None:
    trust = Trust()
    trust.ready("dev", 0.0)
    trust.failed("dev", "dev crashed", served_s, by_itself=True)
    assert trust.paused("dev", served_s) is None


def test_a_second_crash_soon_after_is_not() -> None:
    trust = Trust()
    for at_s in (0.0, 5.0):
        trust.ready("dev", at_s)
        trust.failed("dev", "dev crashed", at_s + 1, by_itself=True)
    assert trust.paused("dev", 6.0) == ("dev crashed", FIRST_PAUSE_S)


def test_after_a_good_while_the_count_begins_anew() -> None:
    trust = Trust()
    for at_s in (0.0, 5.0, 20.0, 1000.0):
        trust.ready("dev", at_s)
        trust.failed("dev", "dev crashed", at_s + 1, by_itself=True)
    trust.ready("dev", 2000.0)
    trust.failed("dev", "dev crashed", 2000.0 + GOOD_WHILE_S, by_itself=True)
    assert trust.paused("dev", 2000.0 + GOOD_WHILE_S) is None


def test_a_start_after_crashes_is_no_proof_yet() -> None:
    trust = Trust()
    trust.failed("dev", CAUSE, 0.0, by_itself=False)
    trust.ready("dev", 20.0)
    assert trust.paused("dev", 20.0) is None
    trust.failed("dev", "dev crashed", 21.0, by_itself=True)
    assert pause_s(trust, 21.0) == FIRST_PAUSE_S


def test_who_asks_by_name_has_it_tried_at_once() -> None:
    trust = Trust()
    trust.failed("dev", CAUSE, 0.0, by_itself=False)
    trust.forgiven("dev")
    assert trust.paused("dev", 0.0) is None
