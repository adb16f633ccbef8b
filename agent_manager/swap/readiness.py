"""Following a load until the engine answered: log phases, health, one completion; failure with its cause.

A load ends only for lack of progress (no new log line, no CPU time, no disk traffic), never for its total
time. A cold start may take minutes, and killing a good load is worse than waiting for a bad one.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import deque
from typing import TYPE_CHECKING

from agent_manager.diagnosis.patterns import diagnose
from agent_manager.engines.base import READY
from agent_manager.engines.client import EngineClient
from agent_manager.engines.phases import PhaseTracker
from agent_manager.errors import EngineFailed, EngineKilled
from agent_manager.swap.notices import LoadProgress, Step, StepBegan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_manager.engines.figures import FigureReader
    from agent_manager.runtimes.base import Exit, InstanceSpec, Runtime
    from agent_manager.swap.notices import Listener

POLL_SHARE = 0.002
POLL_FIRST_S = 0.002
POLL_LATER_S = 0.05
"""How often a port that refuses is asked: after this share of the load so far, within these bounds. Each time costs
a quarter of a millisecond of CPU, and a load is noticed to be over about as late as it was long."""
NAMES_AGAIN_S = 0.25
ACTIVITY_EVERY_S = 2.0
BUSY_SHARE = 0.02
"""CPU time below this share of the elapsed time is an idle event loop, not a load that makes progress."""
ANSWER_TIMEOUT_S = 120.0
TAIL_LINES = 400
PROBES = 3
"""One unanswered probe of a busy engine means nothing; a port that refuses is asked as often in no time."""
ENDING_S = 5.0
"""How long an engine that broke off an answer may take to be gone; the shim gives its workers 2 s."""
_KILLED = 128 + signal.SIGKILL
READ_UP_S = 1.0
"""How far behind an engine that answers its log may be read."""


class LoadWatch:
    """Watches one instance load. Use once: `await watch.until_ready()`; its log goes through `figures` too."""

    def __init__(
        self,
        runtime: Runtime,
        spec: InstanceSpec,
        *,
        listener: Listener,
        stall_timeout_s: float,
        figures: FigureReader | None = None,
    ) -> None:
        self._runtime = runtime
        self._spec = spec
        self._listener = listener
        self._stall_timeout_s = stall_timeout_s
        self._client = EngineClient(spec.engine_port)
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._progressed_at = time.monotonic()
        self._answering = False
        self._figures = figures
        self._read_up = asyncio.Event()

    async def until_ready(self) -> None:
        """Return when the engine answered a completion. Raises EngineFailed with the cause and a remedy."""
        follow = asyncio.create_task(self._follow_log())
        stalled = asyncio.create_task(self._watch_for_stall())
        ended = asyncio.create_task(self._runtime.wait(self._spec.id))
        answered = asyncio.create_task(self._until_answered())
        watchers = (answered, ended, stalled)
        try:
            await asyncio.wait(watchers, return_when=asyncio.FIRST_COMPLETED)
            if answered.done() and answered.exception() and not await self._healthy():
                # It is going down, and how it ends says more than the answer that it broke off.
                await asyncio.wait((ended,), timeout=ENDING_S)
            if ended.done():
                # What it said last is why it ended: read it all before judging.
                await asyncio.wait((follow,), timeout=2.0)
                raise self._failed(ended.result())
            if stalled.done():
                stalled.result()
            answered.result()
            if self._figures:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._read_up.wait(), READ_UP_S)
        finally:
            for task in (follow, *watchers):
                task.cancel()
            await asyncio.gather(follow, *watchers, return_exceptions=True)

    async def _follow_log(self) -> None:
        tracker = PhaseTracker()
        async with contextlib.aclosing(self._runtime.logs(self._spec.id, follow=True)) as lines:
            async for line in lines:
                self._tail.append(line.text)
                self._progressed_at = time.monotonic()
                if self._figures:
                    self._figures.feed(line.text)
                phase = tracker.feed(line.text)
                if phase is not None and phase.name == READY:
                    self._read_up.set()
                if phase is not None and not self._answering:
                    self._listener(LoadProgress(agent=self._spec.agent, phase=phase))

    async def _watch_for_stall(self) -> None:
        before, seen_at = await self._runtime.activity(self._spec.id), time.monotonic()
        while True:
            await asyncio.sleep(min(ACTIVITY_EVERY_S, self._stall_timeout_s / 4))
            now, now_at = await self._runtime.activity(self._spec.id), time.monotonic()
            busy = now.cpu_seconds - before.cpu_seconds > BUSY_SHARE * (now_at - seen_at)
            if busy or now.disk_bytes > before.disk_bytes:
                self._progressed_at = now_at
            before, seen_at = now, now_at
            if now_at - self._progressed_at > self._stall_timeout_s:
                raise EngineFailed(
                    f"{self._spec.agent} made no progress for {self._stall_timeout_s:g} s while loading"
                    f"{self._last_words()}",
                    hint=f"see 'agent-manager logs {self._spec.agent}', or raise the engine's stall_timeout",
                    where=f"agents.{self._spec.agent}",
                )

    async def _until_answered(self) -> None:
        began = time.monotonic()
        while not await self._client.health():
            share_s = POLL_SHARE * (time.monotonic() - began)
            await asyncio.sleep(min(max(POLL_FIRST_S, share_s), POLL_LATER_S))
        self._answering = True  # the log is read a moment later than the port answers
        self._listener(StepBegan(step=Step.CHECKING, agent=self._spec.agent))
        names = await self._names()
        port = self._spec.engine_port
        if not set(self._spec.agents) <= set(names):
            raise EngineFailed(
                f"port {port} serves {', '.join(names) or 'no model'}, not {' and '.join(self._spec.agents)}",
                hint=f"another engine answers there: find it with 'ss -ltnp sport = :{port}'",
                where=f"agents.{self._spec.agent}.port",
            )
        timeout_s = min(ANSWER_TIMEOUT_S, self._stall_timeout_s)
        await self._client.complete_once(self._spec.agent, timeout_s=timeout_s)
        # An engine that answers and dies in the same breath is not ready.
        if not await self._healthy():
            raise EngineFailed(
                f"{self._spec.agent} answered once and is gone", where=f"agents.{self._spec.agent}"
            )

    async def _healthy(self) -> bool:
        for _ in range(PROBES):
            if await self._client.health():
                return True
        return False

    async def _names(self) -> tuple[str, ...]:
        for _ in range(PROBES - 1):
            if names := await self._client.models():
                return names
            await asyncio.sleep(NAMES_AGAIN_S)
        return await self._client.models()

    def _failed(self, end: Exit) -> EngineFailed:
        return engine_failed(self._spec, self._tail, end)

    def _last_words(self) -> str:
        return f"; its last words: {self._tail[-1]}" if self._tail else ", and said nothing"


def engine_failed(spec: InstanceSpec, lines: Iterable[str], end: Exit) -> EngineFailed:
    """The error for an instance that ended by itself: the cause its log gives, and what to do about it."""
    found = diagnose(
        lines, exit_code=end.code, out_of_host_memory=end.out_of_host_memory, stop_requested=end.requested
    )
    if end.reason and not found:
        return EngineFailed(f"{spec.agent} ended: {end.reason}", where=f"agents.{spec.agent}")
    if found is None:
        return EngineFailed(
            f"{spec.agent} ended with exit code {end.code} and said nothing",
            hint=f"run it by hand: {spec.argv[0]} …; 'agent-manager launch {spec.agent} --dry-run' shows how",
            where=f"agents.{spec.agent}",
        )
    # With something in its log it was more than the kill, or the kernel did it for a reason.
    killed = end.code == _KILLED and not end.out_of_host_memory and found.evidence is None
    kind = EngineKilled if killed else EngineFailed
    return kind(f"{spec.agent} did not start: {found.cause}", hint=found.remedy, where=f"agents.{spec.agent}")
