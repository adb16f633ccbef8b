from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from agent_manager.engines.simulated import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

DEADLINE_S = 20.0
FLAGS = ("--served-model-name", "po", "--max-model-len", "4096", "--max-num-seqs", "4")
TOOL_FLAGS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


@dataclass
class Reply:
    status: int
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - any JSON value
        return json.loads(self.body)


@dataclass
class Running:
    """An engine in a session of its own, as the process runtime starts it."""

    process: subprocess.Popen[bytes]
    port: int
    card_dir: Path
    log_path: Path

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def log(self) -> str:
        return self.log_path.read_text()

    def request(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            connection.request(method, path, content, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return Reply(response.status, response.read())
        finally:
            connection.close()

    def chat(self, content: str = "hello", headers: dict[str, str] | None = None, **fields: object) -> Reply:
        body = {"model": "po", "messages": [{"role": "user", "content": content}], **fields}
        return self.request("POST", "/v1/chat/completions", body, headers)

    @staticmethod
    def wait_until(condition: Callable[[], Any], what: str) -> Any:  # noqa: ANN401 - whatever the condition gives
        """The first true value of `condition`, asked again and again until a deadline."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            value = condition()
            if value:
                return value
            time.sleep(0.01)
        pytest.fail(f"not within {DEADLINE_S:.0f} s: {what}")

    def open_stream(self, **fields: object) -> http.client.HTTPConnection:
        """Ask for a stream; `read_events` reads it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        body = {"model": "po", "messages": [{"role": "user", "content": "go on"}], "stream": True, **fields}
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
        return connection

    @staticmethod
    def read_events(connection: http.client.HTTPConnection) -> list[Any]:
        """All `data:` lines of a stream, parsed; the final [DONE] as the string."""
        with connection.getresponse() as response:
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/event-stream")
            lines = [line.removeprefix("data: ") for line in response.read().decode().splitlines() if line]
        connection.close()
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    def gauge(self, name: str) -> float:
        return float(self.metric(f'{name}{{engine="0",model_name="po"}}'))

    def metric(self, sample: str) -> str:
        for line in self.request("GET", "/metrics").body.decode().splitlines():
            if line.startswith(sample + " "):
                return line.removeprefix(sample + " ")
        pytest.fail(f"no sample {sample}")

    def is_healthy(self) -> bool:
        try:
            return self.request("GET", "/health").status == 200
        except OSError:
            return False

    def wait_ready(self) -> Running:
        def ready() -> bool:
            assert self.process.poll() is None, self.log()
            return self.is_healthy()

        self.wait_until(ready, "the engine answers /health")
        return self

    def wait_exit(self) -> int:
        return self.process.wait(timeout=DEADLINE_S)

    def wait_log(self, text: str) -> None:
        self.wait_until(lambda: text in self.log(), f"'{text}' in the log")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@dataclass
class Starter:
    """Starts engines on one card, and leaves none behind."""

    folder: Path
    started: list[Running] = field(default_factory=list)

    @property
    def card_dir(self) -> Path:
        return self.folder / "cards" / "SIM-0"

    def __call__(
        self,
        *flags: str,
        port: int | None = None,
        model: str = "Qwen/Qwen2.5-7B-Instruct-AWQ",
        with_tools: bool = True,
        log_path: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Running:
        port = port or free_port()
        log_path = log_path or self.folder / f"engine-{len(self.started)}.log"
        argv = [sys.executable, "-m", "agent_manager.engines.simulated", "serve", model]
        argv += [*FLAGS, "--port", str(port), *(TOOL_FLAGS if with_tools else ()), *flags]
        environ = {
            "PATH": os.environ["PATH"],
            settings.CARD_DIR: str(self.card_dir),
            settings.LOAD_SECONDS: "0",
            settings.TIME_TO_FIRST_TOKEN_MS: "0",
            settings.INTER_TOKEN_MS: "0",
            **(env or {}),
        }
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                argv, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        running = Running(process, port, self.card_dir, log_path)
        self.started.append(running)
        return running

    def end(self) -> None:
        for running in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.process.pid, signal.SIGKILL)
            running.process.wait(timeout=DEADLINE_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Start an engine with more flags and environment; it may not be ready yet."""
    starter = Starter(tmp_path)
    yield starter
    starter.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One ready engine for tests that only ask it things."""
    starter = Starter(tmp_path_factory.mktemp("shared"))
    yield starter().wait_ready()
    starter.end()
