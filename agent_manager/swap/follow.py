"""One running engine, followed from sample to sample: its processes, its state, what it says of its traffic."""

from __future__ import annotations

import contextlib
import re
import time
from itertools import islice
from typing import TYPE_CHECKING, Final

from agent_manager.engines.client import EngineClient
from agent_manager.engines.metrics import traffic
from agent_manager.errors import AgentManagerError
from agent_manager.swap.notices import AgentState, Step
from agent_manager.swap.observe import observe
from agent_manager.swap.stats import AgentSample
from agent_manager.swap.takeover import Life

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_manager.engines.metrics import Reading, Traffic
    from agent_manager.gpu.base import GpuSample, MemoryHolder
    from agent_manager.runtimes.base import Instance, Runtime
    from agent_manager.swap.notices import Owner
    from agent_manager.swap.observe import Observed

LOG_LINES: Final = 1000
"""Of a load; vLLM's has some hundred."""

_CONCURRENCY: Final = re.compile(r"Maximum concurrency for [\d,]+ tokens per request: ([\d,.]+)x")
"""vllm/v1/core/kv_cache_utils.py of 0.32."""
_LEAVING: Final = {Step.DRAINING.value: AgentState.DRAINING, Step.STOPPING.value: AgentState.STOPPING}


class Followed:
    """One start of one instance. `ask` brings what is known up to date, `sample` says it."""

    def __init__(self, runtime: Runtime, instance: Instance) -> None:
        self._runtime = runtime
        self._instance = instance
        self._client = EngineClient(instance.spec.engine_port)
        self._pids: frozenset[int] = frozenset()
        self._seen: Observed | None = None
        self._reading: Reading | None = None
        self._read_at = 0.0
        self._traffic: Traffic | None = None
        self._concurrency: float | None = None
        self._log_was_read = False

    async def ask(self, *, thoroughly: bool) -> None:
        """Read its /metrics; at first, when it does not tell, or `thoroughly`, also its health, phase and processes.

        Takes some milliseconds, and no more than a few seconds. Raises nothing: it may end at any time.
        """
        thoroughly = thoroughly or self._seen is None
        reading = await self._client.metrics()
        now = time.monotonic()
        if reading is None:
            self._traffic = None
        else:
            self._traffic = traffic(self._reading, reading, now - self._read_at)
        self._reading, self._read_at = reading, now
        if thoroughly:
            with contextlib.suppress(AgentManagerError):  # it is gone
                self._pids = await self._runtime.pids(self._instance.spec.id)
        if thoroughly or reading is None or self._life is not Life.SERVING:
            self._seen = await observe(self._runtime, self._instance)
        if self._life is Life.SERVING and not self._log_was_read:
            self._log_was_read = True
            self._concurrency = await self._read_concurrency()

    def sample(self, gpu: GpuSample | None, owner: Owner | None) -> AgentSample:
        """What is known now. `gpu` says what its processes hold, `owner` whether it is being taken off."""
        spec, phase = self._instance.spec, self._seen.phase if self._seen else None
        state = self._state(owner)
        starting = state is AgentState.STARTING
        held = self._held(gpu)
        return AgentSample(
            name=spec.agent,
            state=state,
            engine=spec.engine,
            runtime=self._instance.runtime,
            model=spec.model,
            port=spec.agent_port or spec.engine_port,
            pids=tuple(sorted(self._pids | {each.pid for each in held})),
            used_bytes=_used_bytes(held),
            claim_bytes=spec.claim_bytes,
            phase=phase.name if phase and starting else None,
            phase_percent=phase.percent if phase and starting else None,
            context=_context(spec.argv),
            concurrency=self._concurrency,
            traffic=self._traffic,
            shared_with=spec.shared_with,
        )

    @property
    def _life(self) -> Life | None:
        return self._seen.life if self._seen else None

    def _state(self, owner: Owner | None) -> AgentState:
        step = owner.step if owner and owner.agent == self._instance.spec.agent else None
        if step in _LEAVING:
            return _LEAVING[step]
        if self._life is Life.BROKEN:
            return AgentState.FAILED
        # It may answer already while its launch still waits for a completion.
        checking = step in {Step.LOADING.value, Step.CHECKING.value}
        return AgentState.READY if self._life is Life.SERVING and not checking else AgentState.STARTING

    def _held(self, gpu: GpuSample | None) -> list[MemoryHolder]:
        # A simulated engine's claim is under its id: in a container its pid is another one than outside.
        id_ = self._instance.spec.id
        return [each for each in (gpu.processes if gpu else ()) if each.pid in self._pids or each.name == id_]

    async def _read_concurrency(self) -> float | None:
        instance, seen = self._instance, 0
        lines = self._runtime.logs(instance.spec.id, since=instance.started_at)
        with contextlib.suppress(AgentManagerError):
            async with contextlib.aclosing(lines):
                async for line in lines:
                    if found := _CONCURRENCY.search(line.text):
                        return float(found[1].replace(",", ""))
                    seen += 1
                    if seen == LOG_LINES:
                        break
        return None


def _used_bytes(held: Sequence[MemoryHolder]) -> int | None:
    used = [each.used_bytes for each in held if each.used_bytes is not None]
    return sum(used) if used and len(used) == len(held) else None


def _context(argv: Sequence[str]) -> int | None:
    """The value of --max-model-len, which our engines are given as a number of its own."""
    values = islice(argv, 1, None)
    found = next((value for flag, value in zip(argv, values, strict=False) if flag == "--max-model-len"), "")
    return int(found) if found.isdecimal() else None
