"""The main job on real vLLM (the CPU build), as a user has it: the built wheel, processes, the official client.

A start takes half a minute on two cores, so one story is told: launch po, talk, swap to dev, read the log, stop.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import openai
import pytest

from agent_manager.runtimes import proc

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


@dataclass(frozen=True, kw_only=True)
class User:
    """Somebody with the program installed and a catalog of two tiny models."""

    program: Path
    folder: Path
    po: int
    dev: int

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        outside = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        return subprocess.run(
            [self.program, "--engine", "vllm-cpu", "--runtime", "process", *arguments],
            cwd=self.folder,
            env={**outside, "AGENT_MANAGER_STATE_DIR": str(self.folder / "state")},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    def ok(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def client(self, port: int) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"http://localhost:{port}/v1", api_key="unused", timeout=120, max_retries=0
        )

    def processes(self) -> dict[str, frozenset[int]]:
        return proc.marked_by_instance(os.path.realpath(self.folder / "state"))


@pytest.fixture
def user(
    wheel_cli: Path, vllm_venv: Path, tiny_checkpoints: tuple[Path, Path], tmp_path: Path, free_port: FreePort
) -> Iterator[User]:
    first, second = tiny_checkpoints
    user = User(program=wheel_cli, folder=tmp_path, po=free_port(), dev=free_port())
    catalog = CATALOG.format(
        vllm=vllm_venv / "bin" / "vllm", first=first, second=second, po=user.po, dev=user.dev
    )
    (tmp_path / "models.yaml").write_text(catalog)
    yield user
    user.run("stop", "--all", "--drain-timeout", "0")


def test_the_main_job(user: User) -> None:
    user.ok("launch", "po")
    _chats_and_streams(user)

    stream = _SlowReader(user.client(user.po))
    user.ok("launch", "dev")
    assert stream.tokens() == 300, "a stream that ran when the swap began is finished first"

    answer = user.client(user.dev).completions.create(model="dev", prompt="def", max_tokens=4)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert _refuses(user.po)
    assert _refuses(user.po + 100)

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
    assert user.processes() == {}
    assert _refuses(user.dev)
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
    assert user.processes() == {}
    assert "--no-such-flag" in user.ok("logs", "dev")


def _chats_and_streams(user: User) -> None:
    with user.client(user.po) as client:
        assert [model.id for model in client.models.list()] == ["po"]
        messages: Any = [{"role": "user", "content": "hello"}]
        answer = client.chat.completions.create(model="po", messages=messages, max_tokens=8)
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        chunks = list(
            client.chat.completions.create(model="po", messages=messages, max_tokens=8, stream=True)
        )
        assert chunks[-1].choices[0].finish_reason in {"stop", "length"}


class _SlowReader:
    """A client that streams a long answer while the agent is being swapped out."""

    def __init__(self, client: openai.OpenAI) -> None:
        options: Any = {"ignore_eos": True, "min_tokens": 300}
        self._stream = client.completions.create(
            model="po",
            prompt="once",
            max_tokens=300,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=options,
        )
        self._usage: int | None = None
        self._client = client
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        for chunk in self._stream:
            if chunk.usage is not None:
                self._usage = chunk.usage.completion_tokens

    def tokens(self) -> int | None:
        """How many tokens came, once the stream is over; None when it was cut."""
        self._thread.join(timeout=120)
        self._client.close()
        return self._usage


def _refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
