"""What a person gets for a wrong name, a wrong path, a missing program, a port that is taken."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.conftest import Lab

VLLM_CATALOG = """\
version: 1
engine: vllm-cpu
runtime: process
engines:
  vllm-cpu: {{command: [{command}, serve], kv_cache: 1GiB}}
models:
  tiny: {{path: {path}}}
agents:
  po: {{model: tiny, port: {port}, context: 256, sequences: 2}}
"""


def test_unknown_agent_is_told_with_the_nearest_name(lab: Lab) -> None:
    done = lab.run("launch", "dve")
    assert done.code == 2
    assert "no agent named 'dve'" in done.err
    assert "did you mean 'dev'?" in done.err


def test_port_in_use_is_told_with_who_has_it_and_nothing_is_touched(lab: Lab) -> None:
    lab.ok("launch", "po")
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", lab.ports["dev"]))
        squatter.listen()
        done = lab.run("launch", "dev")
    assert done.code == 4
    assert f"port {lab.ports['dev']} is in use by" in done.err
    assert "pid" in done.err
    assert lab.answers("po")
    assert lab.states() == {"po": "ready", "dev": "absent"}


def test_engine_port_in_use_is_found_before_anything_is_touched(lab: Lab) -> None:
    lab.ok("launch", "po")
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", lab.ports["dev"] + 100))
        squatter.listen()
        done = lab.run("launch", "dev")
    assert done.code == 4
    assert lab.answers("po")


def test_model_folder_missing(lab: Lab, tmp_path: Path) -> None:
    lab.write(VLLM_CATALOG.format(command="vllm", path=tmp_path / "nowhere", port=lab.ports["po"]))
    done = lab.run("launch", "po")
    assert done.code == 1
    assert "nowhere" in done.err
    assert "hint:" in done.err


def test_model_folder_without_config(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    lab.write(VLLM_CATALOG.format(command="vllm", path=tmp_path / "model", port=lab.ports["po"]))
    done = lab.run("launch", "po")
    assert done.code == 1
    assert "config.json" in done.err


def test_engine_missing_on_path(lab: Lab, tmp_path: Path, tiny_model: Path) -> None:
    lab.write(VLLM_CATALOG.format(command=tmp_path / "no-such-vllm", path=tiny_model, port=lab.ports["po"]))
    done = lab.run("launch", "po")
    assert done.code == 4
    assert "no-such-vllm" in done.err
    assert "hint:" in done.err
    assert lab.engines() == {}
    lab.catalog()
    lab.settled()


def test_no_engine_chosen_and_no_gpu_names_the_three_choices(lab: Lab) -> None:
    lab.write(
        "version: 1\n"
        "models: {small: {repo: Qwen/Qwen2.5-7B-Instruct-AWQ}}\n"
        f"agents: {{po: {{model: small, port: {lab.ports['po']}, context: 4k, sequences: 4}}}}\n"
    )
    done = lab.run("launch", "po", "--json")
    assert done.code == 4
    error = json.loads(done.err.splitlines()[-1])["error"]
    assert error["code"] == "no_gpu"
    for choice in ("--engine vllm", "--engine vllm-cpu", "--engine simulated"):
        assert choice in error["hint"]
    lab.catalog()


def test_what_does_not_fit_is_refused_before_anything_is_touched(lab: Lab) -> None:
    lab.ok("launch", "po")
    lab.write(
        "version: 1\n"
        "engine: simulated\n"
        "models: {small: {repo: Qwen/Qwen2.5-7B-Instruct-AWQ}, huge: {repo: Qwen/Qwen2.5-32B-Instruct-AWQ}}\n"
        "agents:\n"
        f"  po: {{model: small, port: {lab.ports['po']}, context: 4k, sequences: 4}}\n"
        f"  dev: {{model: huge, port: {lab.ports['dev']}, context: 8k, sequences: 1}}\n"
    )
    done = lab.run("launch", "dev")
    assert done.code == 3
    assert "GiB" in done.err
    assert lab.answers("po")


def test_state_folder_that_cannot_be_written(lab: Lab) -> None:
    lab.state.write_text("a file where the folder should be")
    done = lab.run("launch", "po")
    assert done.code == 4
    assert str(lab.state) in done.err
    assert "AGENT_MANAGER_STATE_DIR" in done.err
    lab.state.unlink()


def test_stop_of_what_is_not_there(lab: Lab) -> None:
    done = lab.run("stop", "po")
    assert done.code == 5
    assert "po is not running" in done.err
    assert lab.run("stop").code == 5
    assert lab.run("stop", "--all").code == 0
