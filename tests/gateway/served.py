"""A gateway as the real program, with a catalog of its own, and a person beside it who types commands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp

from agent_manager.runtimes import proc
from tests import waiting
from tests.conftest import kill_engines

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import FreePort


PATIENCE_S = 40.0
until = partial(waiting.until, patience_s=PATIENCE_S)
CATALOG = """\
version: 1
engine: simulated
engines:
  simulated:
    load_seconds: {load_s}
    time_to_first_token_ms: 1
    inter_token_ms: {inter_token_ms}
    faults: {{{faults}}}
models:
  small: {{repo: Qwen/Qwen2.5-7B-Instruct-AWQ}}
agents:
{agents}
gateway: {{port: {port}{gateway}}}
"""


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever it printed
        return json.loads(self.out)


@dataclass
class Served:
    """Ports of the agents and of the gateway (`gateway`); agents differ in context, so none share an instance."""

    folder: Path
    ports: dict[str, int]
    session: aiohttp.ClientSession
    gateway: Process | None = None
    begun: list[Process] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def socket(self) -> Path:
        return self.state / "cards" / "SIM-0" / "owner.sock"

    @property
    def catalog_path(self) -> Path:
        return self.folder / "models.yaml"

    def catalog(
        self,
        *,
        po: str | None = "context: 4k",
        dev: str | None = "context: 2k",
        load_s: float = 0.0,
        inter_token_ms: float = 0,
        gateway: str = "",
        faults: str = "",
    ) -> None:
        """Write the catalog; an agent that is None is left out; faults as in `dev: oom`."""
        agents = {"po": po, "dev": dev}
        lines = [
            f"  {name}: {{model: small, port: {self.ports[name]}, sequences: 4, {said}}}"
            for name, said in agents.items()
            if said is not None
        ]
        self.catalog_path.write_text(
            CATALOG.format(
                load_s=load_s,
                inter_token_ms=inter_token_ms,
                faults=faults,
                agents="\n".join(lines),
                port=self.ports["gateway"],
                gateway=f", {gateway}" if gateway else "",
            )
        )

    async def open(self, **catalog: Any) -> None:  # noqa: ANN401 - those of `catalog`
        """Write the catalog, start the gateway and wait until clients can come."""
        if catalog or not self.catalog_path.exists():
            self.catalog(**catalog)
        self.gateway = await self.begin("serve")
        assert self.gateway.stdout is not None
        said = await asyncio.wait_for(self.gateway.stdout.readline(), PATIENCE_S)
        if not said:
            raise AssertionError((await self.gateway.communicate())[1].decode())

    async def close(self, number: signal.Signals = signal.SIGTERM) -> Done:
        """End the gateway in order."""
        assert self.gateway is not None
        self.gateway.send_signal(number)
        return await self.end(self.gateway)

    async def begin(self, *arguments: str) -> Process:
        ours = {"AGENT_MANAGER_STATE_DIR": str(self.state), "AGENT_MANAGER_CATALOG": str(self.catalog_path)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent_manager", *arguments),
            env={**os.environ, **ours, "COLUMNS": "200"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self.begun.append(process)
        return process

    async def end(self, process: Process) -> Done:
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert b"Traceback" not in err, err.decode()
        assert process.returncode is not None
        return Done(code=process.returncode, out=out.decode(), err=err.decode())

    async def run(self, *arguments: str) -> Done:
        return await self.end(await self.begin(*arguments))

    async def ok(self, *arguments: str) -> Done:
        done = await self.run(*arguments)
        assert done.code == 0, f"{arguments} ended with {done.code}: {done.err}"
        return done

    async def ask(self, agent: str, *, tokens: int = 2, door: bool = False) -> tuple[int, Any]:
        """A completion: its status and its body."""
        port = self.ports[agent] if door else self.ports["gateway"]
        body = {"model": agent, "prompt": "hello", "max_tokens": tokens, "ignore_eos": True}
        async with self.session.post(f"http://127.0.0.1:{port}/v1/completions", json=body) as answer:
            return answer.status, await answer.json(content_type=None)

    async def answers(self, agent: str, *, tokens: int = 2, door: bool = False) -> bool:
        status, body = await self.ask(agent, tokens=tokens, door=door)
        return status == 200 and body["model"] == agent and body["usage"]["completion_tokens"] == tokens

    async def models(self) -> dict[str, dict[str, Any]]:
        """What /v1/models says, by agent."""
        async with self.session.get(f"http://127.0.0.1:{self.ports['gateway']}/v1/models") as answer:
            return {each["id"]: each for each in (await answer.json())["data"]}

    async def until_state(self, agent: str, state: str) -> None:
        async def there() -> bool:
            return bool((await self.models())[agent]["state"] == state)

        await until(there, f"{agent} is {state}")

    async def until_requests(self, agent: str, kind: str, count: int) -> None:
        async def there() -> bool:
            return bool((await self.models())[agent][kind] == count)

        await until(there, f"{count} {kind} at {agent}")

    def engines(self) -> dict[str, frozenset[int]]:
        """The processes of each instance, as /proc has them."""
        return proc.marked_by_instance(os.path.realpath(self.state))

    def agents_running(self) -> list[str]:
        return sorted(instance.rpartition("-")[0] for instance in self.engines())

    async def kill_all(self) -> None:
        for process in self.begun:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


@contextlib.asynccontextmanager
async def serving(folder: Path, free_port: FreePort) -> AsyncIterator[Served]:
    """A gateway to be opened; whatever still runs in the end is killed."""
    ports = {name: free_port() for name in ("po", "dev", "gateway")}
    async with aiohttp.ClientSession() as session:
        served = Served(folder=folder, ports=ports, session=session)
        try:
            yield served
        finally:
            await served.kill_all()
            kill_engines(served.state)
