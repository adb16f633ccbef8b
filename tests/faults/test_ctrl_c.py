"""Ctrl-C at every step, once and twice: what was there is back, or the card is empty, and the program says which."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.checkpoints.loopback_hub import ENDLESS_BYTES, LoopbackHub, serving
from tests.faults.conftest import Stream, wait_until
from tests.faults.test_bad_input import VLLM_CATALOG

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.faults.conftest import Lab

STREAM = 200
"""Tokens of an answer that takes four seconds at 20 ms each: longer than a command needs to begin draining."""


def _draining(lab: Lab, *arguments: str) -> tuple[subprocess.Popen[str], Stream]:
    """A command that waits for a streamed answer of po to end."""
    with lab.card_held():
        command = lab.begin(*arguments, "--wait", "30")
        lab.until_it_waits(command)
        stream = Stream(lab, "po", STREAM)
    lab.until("draining", command)
    return command, stream


def test_while_draining_changes_nothing(lab: Lab) -> None:
    lab.catalog(inter_token_ms=20)
    lab.ok("launch", "po")
    before = set(lab.engines())
    launch, stream = _draining(lab, "launch", "dev")
    launch.send_signal(signal.SIGINT)
    done = lab.end(launch)
    assert done.code == 130
    assert "po is on the card" in done.err
    assert set(lab.engines()) == before
    assert stream.finished()
    assert lab.states() == {"po": "ready", "dev": "absent"}
    lab.settled()


def test_twice_while_draining_changes_nothing_either(lab: Lab) -> None:
    lab.catalog(inter_token_ms=20)
    lab.ok("launch", "po")
    before = set(lab.engines())
    launch, stream = _draining(lab, "launch", "dev")
    launch.send_signal(signal.SIGINT)
    launch.send_signal(signal.SIGINT)
    assert lab.end(launch).code == 130
    assert set(lab.engines()) == before
    assert stream.finished()
    lab.settled()


def test_while_stopping_puts_it_back(lab: Lab) -> None:
    lab.catalog(po="slow-stop:1")
    lab.ok("launch", "po")
    launch = lab.begin_until("stopping", "launch", "dev")
    launch.send_signal(signal.SIGINT)
    done = lab.end(launch)
    assert done.code == 130
    assert lab.answers("po"), done.err
    lab.settled()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_loading_puts_the_previous_agent_back(lab: Lab, number: signal.Signals) -> None:
    lab.ok("launch", "po")
    lab.catalog(load_s=20)
    launch = lab.begin_until("loading", "launch", "dev")
    launch.send_signal(number)
    # Its record says how it is started, and that was with a quick load.
    done = lab.end(launch)
    assert done.code == 130
    assert "po is on the card" in done.err
    assert lab.agents_running() == ["po"]
    assert lab.answers("po")
    lab.settled()


def test_twice_leaves_the_card_empty(lab: Lab) -> None:
    lab.catalog(load_s=1.5)
    lab.ok("launch", "po")
    launch = lab.begin_until("loading", "launch", "dev")
    launch.send_signal(signal.SIGINT)
    wait_until(lambda: lab.agents_running() == ["po"], "po is being put back")
    launch.send_signal(signal.SIGINT)
    done = lab.end(launch)
    assert done.code == 130
    assert "the card is empty" in done.err
    assert lab.engines() == {}
    lab.settled()


def test_during_a_stop_that_drains_keeps_the_agent(lab: Lab) -> None:
    lab.catalog(inter_token_ms=20)
    lab.ok("launch", "po")
    before = set(lab.engines())
    stop, stream = _draining(lab, "stop", "po")
    stop.send_signal(signal.SIGINT)
    done = lab.end(stop)
    assert done.code == 130
    assert "po is on the card" in done.err
    assert stream.finished()
    assert set(lab.engines()) == before
    lab.settled()


def test_during_a_stop_that_stops_comes_too_late(lab: Lab) -> None:
    lab.catalog(po="slow-stop:1")
    lab.ok("launch", "po")
    stop = lab.begin_until("stopping", "stop", "po")
    stop.send_signal(signal.SIGINT)
    assert lab.end(stop).code == 0
    assert lab.engines() == {}
    lab.settled()


def test_while_waiting_for_the_card(lab: Lab) -> None:
    lab.ok("launch", "po")
    with lab.card_held():
        launch = lab.begin("launch", "dev", "--wait", "30")
        lab.until_it_waits(launch)
        launch.send_signal(signal.SIGINT)
        done = lab.end(launch)
    assert done.code == 130
    assert lab.agents_running() == ["po"]
    lab.settled()


def test_while_pulling_ends_the_download(lab: Lab, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"\0" * (1 << 20)}
    repo = "Tiny/Model-AWQ"
    lab.ok("launch", "po")
    text = VLLM_CATALOG.format(command="no-such-vllm", path=tmp_path, port=lab.ports["dev"])
    lab.write(text.replace(f"path: {tmp_path}", f"repo: {repo}").replace("  po:", "  dev:"))
    with serving(LoopbackHub(repo=repo, files=files, endless="model.safetensors")) as hub:
        place = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
        launch = lab.begin("launch", "dev", **place)
        wait_until(lambda: hub.sent_bytes > 0 or launch.poll() is not None, "bytes come")
        assert launch.poll() is None, launch.communicate()
        launch.send_signal(signal.SIGINT)
        done = lab.end(launch)
    assert done.code == 130, done.err
    assert hub.sent_bytes < ENDLESS_BYTES
    lab.catalog()
    assert lab.agents_running() == ["po"]
    lab.settled()
