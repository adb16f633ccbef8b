"""An engine that crashes, hangs, lies or leaves workers behind: told with its cause, undone, no orphan."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.faults.conftest import wait_until

if TYPE_CHECKING:
    from tests.faults.conftest import Lab


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("refuse-start", "did not start"),
        ("oom", "out of memory"),
        ("crash-at-load:40", "did not start"),
        ("lie-in-health", "500"),
    ],
)
def test_a_failed_start_is_told_and_undone(lab: Lab, fault: str, words: str) -> None:
    lab.catalog(dev=fault)
    lab.ok("launch", "po")
    done = lab.run("launch", "dev")
    assert done.code == 1
    assert words in done.err.lower()
    assert "hint:" in done.err
    assert "po is on the card" in done.err
    assert lab.agents_running() == ["po"]
    assert lab.answers("po")
    assert not lab.answers("dev")
    lab.settled()
    assert lab.ok("logs", "dev"), "the log is still there after the engine failed"


def test_without_a_previous_agent_the_card_is_empty_afterwards(lab: Lab) -> None:
    lab.catalog(dev="oom")
    done = lab.run("launch", "dev")
    assert done.code == 1
    assert "the card is empty" in done.err
    assert lab.engines() == {}
    lab.settled()


def test_an_engine_that_never_becomes_ready(lab: Lab) -> None:
    lab.catalog(dev="hang-load", stall_timeout="2s")
    lab.ok("launch", "po")
    done = lab.run("launch", "dev")
    assert done.code == 1
    assert "no progress" in done.err
    assert lab.agents_running() == ["po"]
    assert lab.answers("po")
    lab.settled()


def test_an_engine_that_takes_completions_and_never_answers(lab: Lab) -> None:
    lab.catalog(dev="hang", stall_timeout="2s")
    lab.ok("launch", "po")
    done = lab.run("launch", "dev")
    assert done.code == 1
    assert lab.answers("po")
    lab.settled()


def test_an_engine_that_is_killed_while_it_loads(lab: Lab) -> None:
    lab.ok("launch", "po")
    lab.catalog(load_s=20)
    launch = lab.begin("launch", "dev")
    wait_until(lambda: lab.agents_running() == ["dev"], "dev loads")
    lab.catalog()
    for pid in lab.pids("dev"):
        os.kill(pid, signal.SIGKILL)
    done = lab.end(launch)
    assert done.code == 1
    assert "killed" in done.err
    assert lab.agents_running() == ["po"]
    lab.settled()


def test_an_engine_that_dies_after_it_was_ready_is_shown_as_failed_and_replaced(lab: Lab) -> None:
    lab.catalog(dev="crash-after:2")
    lab.ok("launch", "dev")
    assert lab.states()["dev"] == "ready"
    lab.answers("dev")
    wait_until(lambda: lab.engines() == {}, "dev is dead")
    assert lab.states()["dev"] == "failed"
    lab.ok("launch", "po")
    assert lab.agents_running() == ["po"]
    lab.settled()


def test_workers_that_outlive_their_engine_go_too(lab: Lab) -> None:
    lab.catalog(dev="leave-workers")
    lab.ok("launch", "dev")
    pids = lab.pids("dev")
    assert len(pids) > 1
    os.kill(min(pids), signal.SIGKILL)
    wait_until(lambda: not lab.pids("dev"), "workers are gone")
    lab.ok("launch", "po")
    assert lab.agents_running() == ["po"]
    lab.settled()


def test_an_engine_that_ignores_sigterm_is_killed(lab: Lab) -> None:
    lab.catalog(po="ignore-sigterm")
    lab.ok("launch", "po")
    lab.ok("stop", "po", "--drain-timeout", "0")
    assert lab.engines() == {}
    lab.settled()


def test_a_healthy_engine_that_does_not_complete_is_replaced_by_a_launch(lab: Lab) -> None:
    lab.catalog()
    lab.ok("launch", "po")
    pid = min(lab.pids("po"))
    before = set(lab.engines())
    os.kill(pid, signal.SIGSTOP)
    try:
        done = lab.run("launch", "po")
    finally:
        for stopped in {pid} & lab.pids("po"):
            os.kill(stopped, signal.SIGCONT)
    assert done.code == 0, done.err
    assert set(lab.engines()) != before
    assert lab.answers("po")
