"""Small engines under the process runtime."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from agent_manager.catalog.agents import ENGINE_PORT_OFFSET
from agent_manager.runtimes.base import InstanceSpec
from agent_manager.runtimes.process import ProcessRuntime
from tests.contract.kits import argv

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from agent_manager.state import StateDir
    from tests.conftest import FreePort


class Lab:
    """A process runtime on a state folder of its own."""

    def __init__(self, state: StateDir, free_port: FreePort) -> None:
        self.state = state
        self.runtime = ProcessRuntime(state)
        self._free_port = free_port

    def spec(self, script: str, instance_id: str = "dev-00000001", **changes: Any) -> InstanceSpec:  # noqa: ANN401 - any field
        port = self._free_port()
        facts: dict[str, Any] = {
            "id": instance_id,
            "agent": "dev",
            "engine": "simulated",
            "model": "tiny",
            "card": "SIM-0",
            "claim_bytes": 0,
            "argv": argv(script),
            "engine_port": port + ENGINE_PORT_OFFSET,
            "agent_port": port,
        }
        return InstanceSpec(**(facts | changes))

    async def created(self, script: str, instance_id: str = "dev-00000001", **changes: Any) -> InstanceSpec:  # noqa: ANN401 - any field
        spec = self.spec(script, instance_id, **changes)
        await self.runtime.create(spec)
        return spec

    async def started(self, script: str, instance_id: str = "dev-00000001", **changes: Any) -> InstanceSpec:  # noqa: ANN401 - any field
        spec = await self.created(script, instance_id, **changes)
        await self.runtime.start(spec.id)
        return spec

    async def said(self, spec: InstanceSpec, beginning: str) -> str:
        """Wait for the line that begins so, and return it."""
        async with contextlib.aclosing(self.runtime.logs(spec.id, follow=True)) as lines:
            async for line in lines:
                if line.text.startswith(beginning):
                    return line.text
        raise AssertionError(f"never said {beginning!r}: {await self.texts(spec)}")

    async def texts(self, spec: InstanceSpec) -> list[str]:
        return [line.text async for line in self.runtime.logs(spec.id)]

    def folder(self, spec: InstanceSpec) -> Path:
        return self.state.instances / spec.id

    def shim(self, spec: InstanceSpec) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.folder(spec) / "shim.json").read_text())
        return found


@pytest.fixture
async def lab(state: StateDir, free_port: FreePort) -> AsyncIterator[Lab]:
    made = Lab(state, free_port)
    yield made
    for instance in await made.runtime.list() if state.root.is_dir() else ():
        await made.runtime.stop(instance.spec.id, grace_s=0)


async def eventually(condition: Callable[[], bool], *, within_s: float = 20.0) -> None:
    """Wait until `condition` holds; fail when it does not for so long."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)
