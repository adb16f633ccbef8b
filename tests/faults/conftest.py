"""A person at a terminal: the real program, real processes, the simulated engine, a catalog of their own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_manager.runtimes import proc
from tests.checkpoints.weights import TINY_CONFIG, write_checkpoint
from tests.conftest import kill_engines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.conftest import FreePort
    from tests.faults.gateway import Gate

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

    def begin(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        """Begin a command and go on."""
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            env={**self.environ, **environ},
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

    def begin_until(self, step: str, *arguments: str) -> subprocess.Popen[str]:
        """Begin a command and go on once it is at that step of its swap."""
        process = self.begin(*arguments)
        self.until(step, process)
        return process

    def until(self, step: str, process: subprocess.Popen[str]) -> None:
        """Wait until a command is at that step, which it tells whoever looks at the card."""
        wait_until(lambda: self.step == step or process.poll() is not None, f"it is {step}")
        assert process.poll() is None, f"it ended before it was {step}: {process.communicate()}"

    @property
    def step(self) -> str | None:
        for path in self.state.glob("cards/*/owner.json"):
            with contextlib.suppress(OSError, ValueError):
                return json.loads(path.read_text())["owner"]["step"]  # type: ignore[no-any-return] # a text, or null
        return None

    @contextlib.contextmanager
    def card_held(self) -> Iterator[None]:
        """Have the card for ourselves meanwhile: whoever wants it has to wait."""
        with self.lock_file.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def until_it_waits(self, process: subprocess.Popen[str]) -> None:
        """Wait until a command waits for the card (it has the lock's file open)."""

        def waits() -> bool:
            for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if descriptor.readlink() == self.lock_file.resolve():
                        return True
            return process.poll() is not None

        wait_until(waits, "it waits for the card")
        assert process.poll() is None, f"it ended before it waited: {process.communicate()}"

    @property
    def lock_file(self) -> Path:
        return self.state / "cards" / "SIM-0" / "lock"

    @contextlib.contextmanager
    def frozen(self, agent: str) -> Iterator[None]:
        """Let an engine get no further meanwhile, however slow this machine is."""
        pids = self.pids(agent)
        assert pids, f"{agent} has no engine"
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids & self.pids(agent):
                os.kill(pid, signal.SIGCONT)

    def pids(self, agent: str) -> frozenset[int]:
        """The processes of an agent's engines."""
        found = [pids for instance, pids in self.engines().items() if instance.startswith(f"{agent}-")]
        return frozenset().union(*found)

    def shims(self) -> list[int]:
        """Who supervises engines here, alive or not, newest last."""
        paths = sorted((self.state / "instances").glob("*/shim.json"), key=lambda path: path.stat().st_mtime)
        return [int(json.loads(path.read_text())["shim_pid"]) for path in paths]

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


class Stream:
    """A client in the middle of a streamed answer."""

    def __init__(self, lab: Lab, agent: str, tokens: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", lab.ports[agent], timeout=PATIENCE_S)
        body = {"model": agent, "prompt": "tell me", "max_tokens": tokens, "ignore_eos": True, "stream": True}
        self._connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        self._response = self._connection.getresponse()
        assert self._response.readline().startswith(b"data: ")
        self._rest = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        self._rest = self._response.read()

    def finished(self) -> bool:
        """Wait for the end; whether the whole answer came."""
        self._reader.join(timeout=PATIENCE_S)
        self._connection.close()
        return b"[DONE]" in self._rest and b'"error"' not in self._rest


@pytest.fixture
def lab(tmp_path: Path, free_port: FreePort) -> Iterator[Lab]:
    lab = Lab(folder=tmp_path, ports={"po": free_port(), "dev": free_port()})
    yield lab
    for process in lab.spawned:
        if process.poll() is None:
            process.kill()
        process.communicate()
    kill_engines(lab.state)


@pytest.fixture
async def gate(lab: Lab, free_port: FreePort) -> AsyncIterator[Gate]:
    """A gateway before po and dev, and clients as many as one likes; not started yet."""
    import aiohttp  # noqa: PLC0415 - for the tests of the gateway only

    from tests.faults.gateway import Gate  # noqa: PLC0415 - it imports this module

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout()) as session:
        yield Gate(lab, free_port(), session)


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
