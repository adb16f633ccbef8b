"""The main job on real vLLM (the CPU build), as a user has it: the built wheel, processes, the official client.

A start takes half a minute on two cores, so one story is told: launch po, talk, swap to dev, read the log, stop.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from agent_manager.runtimes import proc
from tests.e2e.user import SlowReader, User, refuses

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import FreePort

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

CATALOG = """\
version: 1
engines:
  vllm-cpu: {{command: [{vllm}, serve], kv_cache: 1GiB}}
models:
  first: {{path: {first}}}
  second: {{path: {second}}}
agents:
  po: {{model: first, port: {po}, context: 512, sequences: 4, eager: true, sampling: {{temperature: 0.5}}}}
  dev: {{model: second, port: {dev}, context: 512, sequences: 4, eager: true}}
"""


@pytest.fixture
def user(
    wheel_cli: Path, vllm_venv: Path, tiny_checkpoints: tuple[Path, Path], tmp_path: Path, free_port: FreePort
) -> Iterator[User]:
    first, second = tiny_checkpoints
    user = User(
        program=wheel_cli,
        folder=tmp_path,
        runtime="process",
        po=free_port(),
        dev=free_port(),
        gateway=free_port(),
    )
    catalog = CATALOG.format(
        vllm=vllm_venv / "bin" / "vllm", first=first, second=second, po=user.po, dev=user.dev
    )
    (tmp_path / "models.yaml").write_text(catalog)
    yield user
    user.run("stop", "--all", "--drain-timeout", "0")


def test_the_main_job(user: User) -> None:
    user.ok("launch", "po")
    user.chats_and_streams("po", user.po)

    stream = SlowReader(user.client(user.po), "po")
    user.ok("launch", "dev")
    assert stream.tokens() == 300, "a stream that ran when the swap began is finished first"

    user.completes("dev", user.dev)
    assert refuses(user.po)
    assert refuses(user.po + 100)

    status: dict[str, Any] = json.loads(user.ok("status", "--json"))
    states = {agent["name"]: agent for agent in status["agents"]}
    assert states["dev"]["state"] == "ready"
    assert states["dev"]["engine"] == "vllm-cpu"
    assert states["dev"]["ready_after_s"] > 1
    assert states["po"]["state"] == "absent"
    assert status["owner"] is None

    assert "Application startup complete" in user.ok("logs", "dev")
    assert "Application startup complete" in user.ok("logs", "po"), "kept after po left the card"

    user.ok("stop")
    assert _processes(user) == {}
    assert refuses(user.dev)
    assert user.run("stop").returncode == 5


def test_a_start_that_fails_says_why_in_real_vllms_words(user: User, tmp_path: Path) -> None:
    catalog = tmp_path / "models.yaml"
    wrong = catalog.read_text().replace("context: 512, sequences: 4, eager: true}", "context: 512, sequences: 4, "
                                        "eager: true, extra_args: [--no-such-flag]}")  # fmt: skip
    catalog.write_text(wrong)
    done = user.run("launch", "dev")
    assert done.returncode == 1
    assert "--no-such-flag" in done.stderr
    assert "hint:" in done.stderr
    assert _processes(user) == {}
    assert "--no-such-flag" in user.ok("logs", "dev")


def _processes(user: User) -> dict[str, frozenset[int]]:
    return proc.marked_by_instance(os.path.realpath(user.state))
