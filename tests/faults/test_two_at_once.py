"""Two commands for one card: one works, the other is told who has it, or waits for its turn."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.faults.conftest import Stream

if TYPE_CHECKING:
    from tests.faults.conftest import Lab


@pytest.mark.parametrize(
    "verb", [("launch", "po"), ("launch", "dev"), ("restart", "dev"), ("stop", "dev"), ("stop", "--all")]
)
def test_the_second_is_told_who_has_the_card(lab: Lab, verb: tuple[str, ...]) -> None:
    lab.catalog(load_s=1.0)
    first = lab.begin_until("loading", "launch", "dev")
    with lab.frozen("dev"):
        second = lab.run(*verb, "--json")
        assert second.code == 6
        error = json.loads(second.err.splitlines()[-1])["error"]
        assert error["code"] == "card_busy"
        assert "launch dev" in error["message"]
        assert f"pid {first.pid}" in error["message"]
        owner = lab.status()["owner"]
        assert (owner["pid"], owner["kind"], owner["verb"]) == (first.pid, "operation", "launch dev")
    assert lab.end(first).code == 0
    assert lab.agents_running() == ["dev"]
    assert lab.answers("dev")
    lab.settled()


def test_one_that_waits_gets_its_turn(lab: Lab) -> None:
    lab.catalog(load_s=0.5)
    first = lab.begin_until("loading", "launch", "dev")
    with lab.frozen("dev"):
        second = lab.begin("launch", "po", "--wait", "30")
        lab.until_it_waits(second)
        assert lab.agents_running() == ["dev"]
    assert lab.end(first).code == 0
    assert lab.end(second).code == 0
    assert lab.agents_running() == ["po"]
    lab.settled()


def test_one_that_waits_for_a_failing_launch_gets_its_turn_too(lab: Lab) -> None:
    lab.catalog(load_s=0.5, dev="oom")
    first = lab.begin_until("loading", "launch", "dev")
    with lab.frozen("dev"):
        second = lab.begin("launch", "po", "--wait", "30")
        lab.until_it_waits(second)
    assert lab.end(first).code == 1
    assert lab.end(second).code == 0
    assert lab.agents_running() == ["po"]
    lab.settled()


def test_a_running_stream_finishes_before_its_agent_leaves(lab: Lab) -> None:
    lab.catalog(inter_token_ms=20)
    lab.ok("launch", "po")
    with lab.card_held():
        launch = lab.begin("launch", "dev", "--wait", "30")
        lab.until_it_waits(launch)
        stream = Stream(lab, "po", 100)
    done = lab.end(launch)
    assert done.code == 0
    assert stream.finished()
    assert "po finishes 1 request first" in done.err
    assert lab.answers("dev")
    assert not lab.answers("po")
