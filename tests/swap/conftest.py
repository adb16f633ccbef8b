"""A card of one's own in this process: the use cases as the command line calls them, every notice kept."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from agent_manager.catalog.load import load_catalog
from agent_manager.engines.base import CardKind
from agent_manager.errors import NoGpu
from agent_manager.gpu.host import HostMemoryProbe
from agent_manager.gpu.simulated import CARD_ID, SimulatedProbe
from agent_manager.runtimes.process import ProcessRuntime
from agent_manager.swap import operations, status
from agent_manager.swap.host import Host, Interrupts
from agent_manager.swap.notices import AgentStatus, LoadProgress, Notice, Remark, Step, StepBegan

from .engines import ServingRuntime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
    from pathlib import Path

    from agent_manager.gpu.base import Card, GpuProbe
    from agent_manager.runtimes.base import Instance, Runtime
    from agent_manager.state import StateDir
    from agent_manager.swap.notices import LaunchResult, StopResult
    from tests.conftest import FreePort

PATIENCE_S = 30.0
CATALOG = """\
version: 1
engine: {engine}
engines:
  simulated:
    load_seconds: {load_s}
    time_to_first_token_ms: 1
    inter_token_ms: {inter_token_ms}
    stall_timeout: {stall_timeout}
    faults: {{{faults}}}
  vllm-cpu: {{command: [no-such-vllm, serve], kv_cache: 1GiB}}
models:
  small: {{repo: Qwen/Qwen2.5-7B-Instruct-AWQ}}
  obscure: {{repo: Nobody/Knows-It}}
agents:
  po: {{model: {model}, port: {po}, context: {context}, sequences: 4}}
  dev: {{model: {model}, port: {dev}, context: {context}, sequences: 4}}
"""


class NoCard:
    """The reader of a GPU on a machine without one."""

    def read(self) -> Card:
        raise NoGpu("there is no GPU on this machine")


@dataclass(kw_only=True)
class Lab:
    """Agents po and dev on the simulated card, `runtime` under the name `process`."""

    state: StateDir
    catalog_path: Path
    ports: Mapping[str, int]
    runtime: Runtime
    notices: list[Notice] = field(default_factory=list)
    interrupts: Interrupts = field(default_factory=Interrupts)
    probe: GpuProbe | None = None
    on_notice: Callable[[Notice], None] = lambda _: None

    def __post_init__(self) -> None:
        self.catalog()

    def catalog(
        self,
        *,
        load_s: float = 0.0,
        inter_token_ms: float = 0,
        stall_timeout: str = "15m",
        context: str = "4k",
        model: str = "small",
        engine: str = "simulated",
        **faults: str,
    ) -> None:
        """Write the catalog; further keywords are faults of agents, such as `dev="oom"`."""
        text = CATALOG.format(
            load_s=load_s,
            inter_token_ms=inter_token_ms,
            stall_timeout=stall_timeout,
            context=context,
            model=model,
            engine=engine,
            faults=", ".join(f'{agent}: "{fault}"' for agent, fault in faults.items()),
            **self.ports,
        )
        self.catalog_path.write_text(text)

    def host(self, **changes: Any) -> Host:  # noqa: ANN401 - any field
        """This machine, as the program's edge builds it for one command."""
        loaded = load_catalog(self.catalog_path, profile=None, environ={}, state_root=self.state.root)
        facts: dict[str, Any] = {
            "state": self.state,
            "catalog": loaded,
            "runtimes": {"process": self.runtime},
            "probe": self._probe,
            "environ": {"HF_HUB_CACHE": str(self.catalog_path.with_name("hub"))},
            "interrupts": self.interrupts,
        }
        return Host(**(facts | changes))

    def listen(self, notice: Notice) -> None:
        self.notices.append(notice)
        self.on_notice(notice)

    def launch(self, agent: str, **options: Any) -> Coroutine[Any, Any, LaunchResult]:  # noqa: ANN401 - those of `launch`
        self.notices.clear()
        return operations.launch(self.host(), agent, listener=self.listen, **options)

    def stop(self, *agents: str, **options: Any) -> Coroutine[Any, Any, StopResult]:  # noqa: ANN401 - those of `stop`
        self.notices.clear()
        return operations.stop(self.host(), agents, listener=self.listen, **options)

    async def leave_loading(self, agent: str) -> Instance:
        """Launch, and be gone without a word once the engine has spoken; the instance that is left."""
        launch = asyncio.create_task(self.launch(agent))
        await eventually(lambda: bool(self.phases()), "it loads")
        launch.cancel()
        await asyncio.gather(launch, return_exceptions=True)
        return (await self.runtime.list())[-1]

    async def status(self, agent: str) -> AgentStatus:
        report = await status.report(self.host())
        return next(each for each in report.agents if each.name == agent)

    async def log(self, agent: str, *, tail: int | None = None) -> list[str]:
        lines = status.agent_logs(self.host(), agent, tail=tail, since=None, follow=False)
        return [line.text async for line in lines]

    async def running(self) -> list[str]:
        """The agents whose engines have processes."""
        found = await self.runtime.list()
        return sorted([each.spec.agent for each in found if await self.runtime.pids(each.spec.id)])

    async def records(self) -> list[str]:
        """The agents of all instances, running or not, oldest first."""
        return [each.spec.agent for each in await self.runtime.list()]

    def steps(self) -> list[str]:
        """What was told, as `draining po`; undoing as `back: loading po`."""
        return [
            f"{'back: ' if notice.restoring else ''}{notice.step} {notice.agent}"
            for notice in self.notices
            if isinstance(notice, StepBegan)
        ]

    def phases(self) -> list[str]:
        return [notice.phase.name for notice in self.notices if isinstance(notice, LoadProgress)]

    def remarks(self, *, warning: bool = False) -> list[str]:
        return [
            notice.message
            for notice in self.notices
            if isinstance(notice, Remark) and notice.warning == warning
        ]

    def interrupt_at(self, *steps: Step) -> None:
        """Ctrl-C as each of these steps begins, once for each, in this order."""
        left = list(steps)

        def fire(notice: Notice) -> None:
            if left and isinstance(notice, StepBegan) and notice.step is left[0]:
                left.pop(0)
                assert self.interrupts.fire()

        self.on_notice = fire

    async def until(self, step: Step) -> None:
        """Wait until this step was told."""
        await eventually(
            lambda: any(isinstance(each, StepBegan) and each.step is step for each in self.notices), step
        )

    def _probe(self, kind: CardKind) -> GpuProbe:
        match kind:
            case CardKind.SIMULATED:
                return self.probe or SimulatedProbe(self.state.card(CARD_ID))
            case CardKind.CPU:
                return HostMemoryProbe()
            case CardKind.GPU:
                return NoCard()


@pytest.fixture
async def lab(state: StateDir, free_port: FreePort, tmp_path: Path) -> AsyncIterator[Lab]:
    """Real processes, the simulated engine."""
    made = Lab(
        state=state,
        catalog_path=tmp_path / "models.yaml",
        ports={"po": free_port(), "dev": free_port()},
        runtime=ProcessRuntime(state),
    )
    yield made
    for instance in await made.runtime.list():
        await made.runtime.stop(instance.spec.id, grace_s=0)


@pytest.fixture
async def engines() -> AsyncIterator[ServingRuntime]:
    """Engines in memory."""
    runtime = ServingRuntime()
    yield runtime
    await runtime.close()


@pytest.fixture
def quick(state: StateDir, free_port: FreePort, tmp_path: Path, engines: ServingRuntime) -> Lab:
    """The same lab with engines in memory: nothing takes time, and everything can be made to fail."""
    return Lab(
        state=state,
        catalog_path=tmp_path / "models.yaml",
        ports={"po": free_port(), "dev": free_port()},
        runtime=engines,
    )


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; fail the test when it does not come true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: still not after {PATIENCE_S:.0f} s"
        await asyncio.sleep(0.005)
