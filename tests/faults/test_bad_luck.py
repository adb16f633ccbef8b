"""Ctrl-C, `kill -9` and two at once: at most one engine, no orphan, and the next verb puts things right."""

from __future__ import annotations

import json
import os
import signal
import threading
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest

from tests.faults.conftest import wait_until

if TYPE_CHECKING:
    import subprocess

    from tests.faults.conftest import Lab

STEPS = ("draining", "stopping", "starting", "loading")


def _launch_until(lab: Lab, step: str, stream: _Stream | None = None) -> subprocess.Popen[str]:
    """Begin `launch dev` and return once it is at that step."""
    launch = lab.begin("launch", "dev")
    wait_until(lambda: _step(lab) == step or launch.poll() is not None, f"launch is {step}")
    assert launch.poll() is None, f"the launch ended before it was {step}: {launch.communicate()}"
    del stream
    return launch


def _step(lab: Lab) -> str | None:
    for path in lab.state.glob("cards/*/owner.json"):
        try:
            return str(json.loads(path.read_text())["step"])
        except (OSError, ValueError):
            return None
    return None


class _Stream:
    """A client in the middle of a streamed answer."""

    def __init__(self, lab: Lab, agent: str, tokens: int) -> None:
        self.connection = HTTPConnection("127.0.0.1", lab.ports[agent], timeout=30)
        body = {"model": agent, "prompt": "tell me", "max_tokens": tokens, "ignore_eos": True, "stream": True}
        self.connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        self.response = self.connection.getresponse()
        self.first = self.response.readline()
        self.rest = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        self.rest = self.response.read()

    def finished(self) -> bool:
        """Wait for the end; whether the whole answer came."""
        self._reader.join(timeout=30)
        self.connection.close()
        return b"[DONE]" in self.rest and b'"error"' not in self.rest


def test_a_running_stream_finishes_before_its_agent_leaves(lab: Lab) -> None:
    lab.catalog(inter_token_ms=20)
    lab.ok("launch", "po")
    stream = _Stream(lab, "po", tokens=60)
    lab.ok("launch", "dev")
    assert stream.finished()
    assert lab.answers("dev")
    assert not lab.answers("po")


def test_ctrl_c_while_draining_changes_nothing(lab: Lab) -> None:
    lab.catalog(inter_token_ms=20)
    lab.ok("launch", "po")
    before = set(lab.engines())
    stream = _Stream(lab, "po", tokens=120)
    launch = _launch_until(lab, "draining")
    launch.send_signal(signal.SIGINT)
    done = lab.end(launch)
    assert done.code == 130
    assert set(lab.engines()) == before
    assert stream.finished()
    assert lab.states() == {"po": "ready", "dev": "absent"}
    lab.settled()


def test_ctrl_c_while_stopping_puts_it_back(lab: Lab) -> None:
    lab.catalog(po="slow-stop:1")
    lab.ok("launch", "po")
    launch = _launch_until(lab, "stopping")
    launch.send_signal(signal.SIGINT)
    done = lab.end(launch)
    assert done.code == 130
    assert lab.answers("po"), done.err
    lab.settled()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_while_loading_puts_the_previous_agent_back(lab: Lab, number: signal.Signals) -> None:
    lab.ok("launch", "po")
    lab.catalog(load_s=20)
    launch = _launch_until(lab, "loading")
    launch.send_signal(number)
    wait_until(lambda: lab.agents_running() == ["po"], "po is started again")
    # Its record says how it is started, and that was with a quick load.
    done = lab.end(launch)
    assert done.code == 130
    assert "po is on the card" in done.err
    lab.catalog()
    assert lab.answers("po")
    lab.settled()


def test_ctrl_c_twice_leaves_the_card_empty(lab: Lab) -> None:
    lab.catalog(load_s=1.5)
    lab.ok("launch", "po")
    launch = _launch_until(lab, "loading")
    launch.send_signal(signal.SIGINT)
    wait_until(lambda: lab.agents_running() == ["po"], "po is being put back")
    launch.send_signal(signal.SIGINT)
    done = lab.end(launch)
    assert done.code == 130
    assert "the card is empty" in done.err
    assert lab.engines() == {}
    lab.settled()


@pytest.mark.parametrize("step", STEPS)
def test_after_kill_9_at_any_step_the_next_launch_puts_things_right(lab: Lab, step: str) -> None:
    lab.catalog(load_s=1.0, inter_token_ms=20, po="slow-stop:1")
    lab.ok("launch", "po")
    stream = _Stream(lab, "po", tokens=60) if step == "draining" else None
    launch = _launch_until(lab, step, stream) if step != "starting" else _launch_until(lab, "loading")
    launch.kill()
    lab.end(launch)
    assert len(lab.agents_running()) <= 1
    lab.status()
    lab.ok("launch", "dev")
    assert lab.agents_running() == ["dev"]
    assert lab.answers("dev")
    assert stream is None or stream.finished()
    lab.settled()


@pytest.mark.parametrize("verb", [("launch", "po"), ("stop", "--all"), ("restart", "po"), ("status",)])
def test_after_kill_9_while_loading_any_verb_works(lab: Lab, verb: tuple[str, ...]) -> None:
    lab.catalog(load_s=1.0)
    lab.ok("launch", "po")
    launch = _launch_until(lab, "loading")
    launch.kill()
    lab.end(launch)
    lab.ok(*verb)
    running = {"launch": ["po"], "restart": ["po"], "stop": [], "status": ["dev"]}[verb[0]]
    assert lab.agents_running() == running
    if verb[0] != "status":
        lab.settled()


def test_a_load_that_was_left_behind_is_followed_not_started_again(lab: Lab) -> None:
    lab.catalog(load_s=2.0)
    launch = _launch_until(lab, "loading")
    launch.kill()
    lab.end(launch)
    before = set(lab.engines())
    assert lab.states()["dev"] == "starting"
    lab.ok("launch", "dev")
    assert set(lab.engines()) == before


def test_of_two_launches_at_once_one_works_and_the_other_is_told_who_has_the_card(lab: Lab) -> None:
    lab.catalog(load_s=1.5)
    first = _launch_until(lab, "loading")
    second = lab.run("launch", "po")
    assert second.code == 6
    assert "launch dev" in second.err
    assert f"pid {first.pid}" in second.err
    assert lab.end(first).code == 0
    assert lab.agents_running() == ["dev"]


def test_a_launch_that_waits_gets_its_turn(lab: Lab) -> None:
    lab.catalog(load_s=1.0)
    first = _launch_until(lab, "loading")
    second = lab.begin("launch", "po", "--wait", "20")
    assert lab.end(first).code == 0
    assert lab.end(second).code == 0
    assert lab.agents_running() == ["po"]


def test_a_record_whose_pid_was_reused_is_not_ours_and_not_touched(lab: Lab) -> None:
    lab.ok("launch", "dev")
    instance = next(iter(lab.engines()))
    bystander = os.getpid()
    for pid in _everything(lab):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lab.engines() == {}, "dev is dead")
    record = lab.state / "instances" / instance / "shim.json"
    facts = json.loads(record.read_text())
    reused = {key: bystander if key.endswith("pid") and value else value for key, value in facts.items()}
    record.write_text(json.dumps(reused))
    (record.parent / "exit.json").unlink(missing_ok=True)
    assert lab.states()["dev"] == "failed"
    lab.ok("launch", "po")
    assert lab.agents_running() == ["po"]
    lab.settled()


def _everything(lab: Lab) -> list[int]:
    """Engines and shims: a power cut."""
    shims = [
        int(json.loads(path.read_text())["pid"])
        for path in (lab.state / "instances").glob("*/shim.json")
        if "pid" in json.loads(path.read_text())
    ]
    return [*shims, *(pid for pids in lab.engines().values() for pid in pids)]
