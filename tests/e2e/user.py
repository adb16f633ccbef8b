"""Somebody who has the program installed and a catalog of two tiny models, and what they do with an agent."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import openai

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class User:
    """Works in `folder`, which holds models.yaml; `runtime` is where the engines run."""

    program: Path
    folder: Path
    runtime: str
    po: int
    dev: int
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        outside = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        return subprocess.run(
            [self.program, "--engine", "vllm-cpu", "--runtime", self.runtime, *arguments],
            cwd=self.folder,
            env={**outside, "AGENT_MANAGER_STATE_DIR": str(self.state), **self.environ},
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

    def chats_and_streams(self, agent: str, port: int) -> None:
        with self.client(port) as client:
            assert [model.id for model in client.models.list()] == [agent]
            messages: Any = [{"role": "user", "content": "hello"}]
            answer = client.chat.completions.create(model=agent, messages=messages, max_tokens=8)
            assert answer.usage is not None
            assert answer.usage.completion_tokens > 0
            chunks = list(
                client.chat.completions.create(model=agent, messages=messages, max_tokens=8, stream=True)
            )
            assert chunks[-1].choices[0].finish_reason in {"stop", "length"}


class SlowReader:
    """A client that streams a long answer while the agent is being swapped out."""

    def __init__(self, client: openai.OpenAI, agent: str) -> None:
        options: Any = {"ignore_eos": True, "min_tokens": 300}
        self._stream = client.completions.create(
            model=agent,
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


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
