"""A person at a terminal: the real program, real processes, the simulated engine, a catalog of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any

import pytest

from agent_manager.runtimes import proc
from tests.checkpoints.weights import TINY_CONFIG, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import FreePort

PATIENCE_S = 30.0
PROGRAM = (sys.executable, "-m", "agent_manager")

CATALOG = """\
version: 1
engine: simulated
engines:
  simulated:
    load_seconds: {load_s}
    time_to_first_token_ms: 1
    inter_token_ms: {inter_token_ms}
    stall_timeout: {stall_timeout}
    faults: {{{faults}}}
models:
  small: {{repo: Qwen/Qwen2.5-7B-Instruct-AWQ}}
agents:
  po: {{model: small, port: {po}, context: 4k, sequences: 4}}
  dev: {{model: small, port: {dev}, context: 4k, sequences: 4}}
"""


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Lab:
    """The program in a folder of its own, with agents po and dev."""

    folder: Path
    ports: dict[str, int]
    spawned: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.catalog()

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def environ(self) -> dict[str, str]:
        ours = {"AGENT_MANAGER_STATE_DIR": str(self.state), "AGENT_MANAGER_CATALOG": str(self._catalog_path)}
        return {**os.environ, **ours, "COLUMNS": "200"}

    @property
    def _catalog_path(self) -> Path:
        return self.folder / "models.yaml"

    def catalog(
        self, *, load_s: float = 0.2, inter_token_ms: float = 0, stall_timeout: str = "15m", **faults: str
    ) -> None:
        """Write the catalog; keywords are faults of agents, such as `dev="oom"`."""
        text = CATALOG.format(
            load_s=load_s,
            inter_token_ms=inter_token_ms,
            stall_timeout=stall_timeout,
            faults=", ".join(f'{agent}: "{fault}"' for agent, fault in faults.items()),
            **self.ports,
        )
        self.write(text)

    def write(self, text: str) -> None:
        self._catalog_path.write_text(text)

    def run(self, *arguments: str) -> Done:
        """Run a command to its end."""
        done = subprocess.run(
            [*PROGRAM, *arguments],
            env=self.environ,
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(code=done.returncode, out=done.stdout, err=done.stderr)

    def ok(self, *arguments: str) -> str:
        """Run a command that must succeed; its output."""
        done = self.run(*arguments)
        assert done.code == 0, f"{arguments} ended with {done.code}: {done.err}"
        return done.out

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin a command and go on."""
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        self.spawned.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> Done:
        """Wait for a command that was begun."""
        out, err = process.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in err, err
        return Done(code=process.returncode, out=out, err=err)

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.ok("status", "--json"))
        return answer

    def states(self) -> dict[str, str]:
        """The state of each agent, as `status` tells it."""
        return {agent["name"]: agent["state"] for agent in self.status()["agents"]}

    def engines(self) -> dict[str, frozenset[int]]:
        """The processes of each instance, read from /proc, without agent-manager's own records."""
        return proc.marked_by_instance(os.path.realpath(self.state))

    def agents_running(self) -> list[str]:
        return sorted(instance.rpartition("-")[0] for instance in self.engines())

    def answers(self, agent: str) -> bool:
        """Whether the agent completes on its own port."""
        connection = HTTPConnection("127.0.0.1", self.ports[agent], timeout=10)
        body = json.dumps({"model": agent, "prompt": "hello", "max_tokens": 1})
        try:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def settled(self) -> None:
        """No owner, no leftovers in the records, every record's instance alive."""
        owners = list(self.state.glob("cards/*/owner.json"))
        records = {path.name for path in (self.state / "instances").glob("*-*")}
        assert not owners
        assert records == set(self.engines()), "records and processes differ"


@pytest.fixture
def lab(tmp_path: Path, free_port: FreePort) -> Iterator[Lab]:
    lab = Lab(folder=tmp_path, ports={"po": free_port(), "dev": free_port()})
    yield lab
    for process in lab.spawned:
        if process.poll() is None:
            process.kill()
        process.communicate()
    if lab.engines():
        lab.catalog()
        lab.run("stop", "--all", "--drain-timeout", "0")
    for pids in lab.engines().values():
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A folder that an engine could load, as far as its files tell."""
    folder = tmp_path / "tiny"
    write_checkpoint(folder, {"model.safetensors": {"model.embed_tokens.weight": 256_000}}, TINY_CONFIG)
    return folder


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; fail the test when it does not come true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: still not after {PATIENCE_S:.0f} s"
        time.sleep(0.01)
