"""Somebody who has the program installed and a catalog of two tiny models, and what they do with an agent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import openai

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

DEADLINE_S = 300.0
"""For what takes a start of vLLM or two on a busy machine, and for the answer to a request that waits for that."""


@dataclass(frozen=True, kw_only=True)
class User:
    """Works in `folder`, which holds models.yaml; `runtime` is where the engines run."""

    program: Path
    folder: Path
    runtime: str
    po: int
    dev: int
    gateway: int
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._argv(*arguments),
            cwd=self.folder,
            env=self._environ(),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    def ok(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def serving(self) -> Iterator[None]:
        """`agent-manager serve` beside us, until SIGTERM; what it says is in serve.log. It has to end well."""
        log = self.folder / "serve.log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                self._argv("serve"), cwd=self.folder, env=self._environ(), stdout=said, stderr=said
            )
        try:
            until(lambda: not refuses(self.gateway) or process.poll() is not None, "the gateway opens")
            assert process.poll() is None, log.read_text()
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=120) == 0, log.read_text()
        except BaseException:
            print(log.read_text())  # noqa: T201 - pytest shows it with the failure
            raise
        finally:
            process.kill()
            process.wait()

    def curl(self, path: str) -> str:
        """What the gateway's common port says, to curl."""
        argv = ("curl", "--fail", "--silent", "--show-error", f"http://localhost:{self.gateway}{path}")
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout

    def curl_json(self, path: str) -> Any:  # noqa: ANN401 - any JSON value
        return json.loads(self.curl(path))

    def curl_into(self, file: Path, port: int, path: str, body: object) -> subprocess.Popen[bytes]:
        """A curl that writes the answer into `file` as it comes; it reads faster than a model writes."""
        said, url = json.dumps(body), f"http://localhost:{port}{path}"
        argv = ("curl", "--fail", "--silent", "--no-buffer", "--output", str(file), "--json", said, url)
        return subprocess.Popen(argv)

    def client(self, port: int, *, max_retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"http://localhost:{port}/v1",
            api_key="unused",
            timeout=DEADLINE_S,
            max_retries=max_retries,
        )

    def _argv(self, *arguments: str) -> list[str | Path]:
        return [self.program, "--engine", "vllm-cpu", "--runtime", self.runtime, *arguments]

    def _environ(self) -> dict[str, str]:
        outside = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        return {**outside, "AGENT_MANAGER_STATE_DIR": str(self.state), **self.environ}

    def completes(self, model: str, port: int) -> None:
        """A short answer, to a client with openai's own patience: two more tries, each when it is told to."""
        with self.client(port, max_retries=openai.DEFAULT_MAX_RETRIES) as client:
            answer = client.completions.create(
                model=model, prompt="def", max_tokens=4, extra_body={"ignore_eos": True}
            )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4

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
    """A client that streams a long answer while the agent is being swapped out; made when the answer begins."""

    def __init__(self, client: openai.OpenAI, agent: str, tokens: int = 300) -> None:
        options: Any = {"ignore_eos": True, "min_tokens": tokens}
        self._stream = client.completions.create(
            model=agent,
            prompt="once",
            max_tokens=tokens,
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


def until(condition: Callable[[], Any], what: str) -> Any:  # noqa: ANN401 - whatever the condition gives
    """The first true value of `condition`, asked again and again until a deadline."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"not within {DEADLINE_S:.0f} s: {what}"
        time.sleep(0.05)
    return value
