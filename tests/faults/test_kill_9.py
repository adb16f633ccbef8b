"""`kill -9` of the program, of engines, of shims: at most one engine, no orphan, and the next verb puts it right."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.faults.conftest import Stream, wait_until

if TYPE_CHECKING:
    from tests.faults.conftest import Lab


@pytest.mark.parametrize("step", ["draining", "stopping", "starting", "loading"])
def test_at_any_step_the_next_launch_puts_things_right(lab: Lab, step: str) -> None:
    lab.catalog(load_s=1.0, inter_token_ms=20, po="slow-stop:1")
    lab.ok("launch", "po")
    with lab.card_held():
        launch = lab.begin("launch", "dev", "--wait", "30")
        lab.until_it_waits(launch)
        stream = Stream(lab, "po", 150) if step == "draining" else None
    # What comes after starting is so near that we may be late: the kill is as good there.
    steps = ("starting", "loading") if step == "starting" else (step,)
    wait_until(lambda: lab.step in steps or launch.poll() is not None, f"it is {step}")
    launch.kill()
    assert lab.end(launch).code == -signal.SIGKILL
    assert len(lab.agents_running()) <= 1
    lab.ok("launch", "dev")
    assert lab.agents_running() == ["dev"]
    assert lab.answers("dev")
    assert stream is None or stream.finished()
    lab.settled()


def test_before_the_first_record_of_a_start(lab: Lab) -> None:
    lab.ok("stop", "--all")
    (lab.state / "instances").mkdir(parents=True)
    with (lab.state / "instances" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # nobody creates an instance meanwhile
        launch = lab.begin_until("starting", "launch", "dev")
        launch.kill()
        lab.end(launch)
    assert lab.states() == {"po": "absent", "dev": "absent"}
    assert lab.status()["owner"] is None
    lab.ok("launch", "dev")
    assert lab.agents_running() == ["dev"]
    lab.settled()


@pytest.mark.parametrize("verb", [("launch", "po"), ("stop", "--all"), ("restart", "po"), ("status",)])
def test_while_loading_any_verb_works(lab: Lab, verb: tuple[str, ...]) -> None:
    lab.catalog(load_s=1.0)
    lab.ok("launch", "po")
    launch = lab.begin_until("loading", "launch", "dev")
    launch.kill()
    lab.end(launch)
    lab.ok(*verb)
    running = {"launch": ["po"], "restart": ["po"], "stop": [], "status": ["dev"]}[verb[0]]
    assert lab.agents_running() == running
    if verb[0] != "status":
        lab.settled()


def test_a_load_that_was_left_behind_is_followed_not_started_again(lab: Lab) -> None:
    lab.catalog(load_s=2.0)
    launch = lab.begin_until("loading", "launch", "dev")
    with lab.frozen("dev"):
        launch.kill()
        lab.end(launch)
        before = lab.engines()
        assert lab.states()["dev"] == "starting"
        second = lab.begin_until("loading", "launch", "dev")
    assert lab.end(second).code == 0
    assert lab.engines() == before
    lab.settled()


@pytest.mark.parametrize("verb", ["launch", "stop"])
def test_workers_that_outlive_engine_and_shim_are_found_and_ended(lab: Lab, verb: str) -> None:
    lab.catalog(dev="leave-workers")
    lab.ok("launch", "dev")
    (shim,) = lab.shims()
    main, *workers = sorted(lab.pids("dev"))
    assert workers
    os.kill(shim, signal.SIGKILL)
    os.kill(main, signal.SIGKILL)
    wait_until(lambda: main not in lab.pids("dev"), "the engine is dead")
    assert lab.pids("dev") == set(workers), "they hold the memory still"
    assert lab.states()["dev"] == "failed"
    if verb == "launch":
        lab.ok("launch", "po")
        assert lab.agents_running() == ["po"]
    else:
        lab.ok("stop", "dev")
        assert lab.engines() == {}
    lab.settled()


def test_of_a_shim_alone_takes_the_address_and_the_next_launch_gives_it_back(lab: Lab) -> None:
    lab.ok("launch", "dev")
    before = lab.pids("dev")
    os.kill(lab.shims()[-1], signal.SIGKILL)
    wait_until(lambda: not lab.answers("dev"), "nobody listens on its port")
    lab.ok("restart", "dev")
    assert lab.answers("dev")
    assert not before & lab.pids("dev")
    lab.settled()


def test_a_record_whose_pid_was_reused_is_not_ours_and_not_touched(lab: Lab) -> None:
    lab.ok("launch", "dev")
    (instance,) = lab.engines()
    for pid in (*lab.shims(), *lab.pids("dev")):  # a power cut
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lab.engines() == {}, "dev is dead")
    record = lab.state / "instances" / instance / "shim.json"
    facts = json.loads(record.read_text())
    bystander = os.getpid()
    record.write_text(json.dumps({**facts, "shim_pid": bystander, "engine_pid": bystander}))
    assert not (record.parent / "exit.json").exists()
    assert lab.states()["dev"] == "failed"
    lab.ok("launch", "po")
    assert lab.agents_running() == ["po"]
    lab.settled()
