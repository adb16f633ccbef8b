"""The engine behind the endpoints: who runs, who waits, at which pace tokens come, and sleep.

One event loop owns all of it. A sequence is one answer being generated; `max_num_seqs` of them run at once, the
others wait in order. A sleeping engine lets everybody wait, as vLLM does.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from agent_manager.engines.simulated import log
from agent_manager.engines.simulated.metrics import Gauges, Metrics
from agent_manager.gpu.base import GIB
from agent_manager.gpu.simulated import NotEnoughMemory

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from agent_manager.engines.simulated.generation import Answer, Piece
    from agent_manager.engines.simulated.loading import Footprint
    from agent_manager.engines.simulated.settings import Settings
    from agent_manager.gpu.simulated import Claim

ASLEEP_BYTES = int(1.2 * GIB)
"""What a sleeper keeps: CUDA context and graphs, 1-1.5 GiB on real cards."""
WAKE_TAGS = frozenset({"weights", "kv_cache"})


class EngineDead(Exception):
    """The engine has stopped, or is about to: what is unfinished stays so."""

    def __init__(self) -> None:
        super().__init__("EngineCore encountered an issue. See stack trace (above) for the root cause.")


class Job(Struct, frozen=True, kw_only=True):
    """One answer to generate: what it will be, and the tokens of its prompt."""

    answer: Answer
    prompt_tokens: int


class Step(Struct, frozen=True, kw_only=True):
    """A token of the sequence `index`, or, with `piece` None, its end without one (an abort)."""

    index: int
    piece: Piece | None
    finish_reason: str | None = None


class Core:
    """The engine. `stopping` True refuses new sequences."""

    def __init__(self, settings: Settings, footprint: Footprint, claim: Claim, max_num_seqs: int) -> None:
        self.metrics = Metrics()
        self.stopping = False
        self._settings = settings
        self._footprint = footprint
        self._claim = claim
        self._slots = asyncio.Semaphore(max_num_seqs)
        self._awake = asyncio.Event()
        self._awake.set()
        self._asleep_tags: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._aborted_as = "abort"
        self._running = 0
        self._waiting = 0
        self._held_tokens = 0

    @property
    def asleep(self) -> bool:
        """Whether it sleeps, in part or whole."""
        return not self._awake.is_set()

    def gauges(self) -> Gauges:
        """How things are now."""
        usage = min(1.0, self._held_tokens / self._footprint.kv_tokens)
        return Gauges(running=self._running, waiting=self._waiting, kv_cache_usage=usage, asleep=self.asleep)

    async def generate(self, jobs: Sequence[Job]) -> AsyncGenerator[Step]:
        """Run `jobs` side by side and yield their tokens as they come. Closing it cancels them.

        Raises EngineDead when the engine stops, before the first step or between two.
        """
        if self.stopping:
            raise EngineDead
        steps: asyncio.Queue[Step] = asyncio.Queue()
        tasks = []
        for index, job in enumerate(jobs):
            task = asyncio.create_task(self._run(index, job, steps))
            task.add_done_callback(partial(self._ended, steps=steps, index=index))
            tasks.append(task)
        self._tasks.update(tasks)
        self._idle.clear()
        try:
            unfinished = len(tasks)
            while unfinished:
                step = await steps.get()
                if step.finish_reason == "error":
                    raise EngineDead
                unfinished -= step.finish_reason is not None
                yield step
        finally:
            for task in tasks:
                task.cancel()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until nothing runs or waits, at most `timeout_s`; whether that came to pass."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def abort(self, finish_reason: str) -> None:
        """End everything that runs or waits, as `abort` (the client gets what there is) or `error`."""
        self._aborted_as = finish_reason
        for task in self._tasks:
            task.cancel()

    async def sleep(self) -> None:
        """Give back the memory but ASLEEP_BYTES; who comes now waits. What runs is aborted."""
        if self.asleep:
            return
        started_s = time.monotonic()
        self._awake.clear()
        self._asleep_tags = set(WAKE_TAGS)
        aborted = list(self._tasks)
        self.abort("abort")
        await asyncio.gather(*aborted, return_exceptions=True)
        freed_bytes = self._footprint.budget_bytes - ASLEEP_BYTES
        self._claim.resize(min(self._claim.claimed_bytes, ASLEEP_BYTES))
        log.info(
            log.CORE,
            "gpu_worker.py:327",
            f"Sleep mode freed {round(freed_bytes / GIB, 2)} GiB memory, "
            f"{round(ASLEEP_BYTES / GIB, 2)} GiB memory is still in use.",
        )
        log.info(
            log.CORE, "abstract.py:391", f"It took {time.monotonic() - started_s:.6f} seconds to fall asleep."
        )

    def wake(self, tags: frozenset[str]) -> bool:
        """Take the memory again; True once all tags are awake. Raises NotEnoughMemory and sleeps on."""
        if not self.asleep:
            return True
        started_s = time.monotonic()
        try:
            self._claim.resize(self._footprint.budget_bytes)
        except NotEnoughMemory:
            log.error(log.CORE, "core.py:1512", "CUDA Error: out of memory at csrc/cumem_allocator.cpp:62")
            raise
        took_s = time.monotonic() - started_s
        log.info(
            log.CORE,
            "abstract.py:409",
            f"It took {took_s:.6f} seconds to wake up tags {sorted(tags) or 'all'}.",
        )
        self._asleep_tags -= tags or WAKE_TAGS
        if not self._asleep_tags:
            self._awake.set()
        return not self.asleep

    def _ended(self, task: asyncio.Task[None], steps: asyncio.Queue[Step], index: int) -> None:
        # A task that was cancelled before it began ran no code of its own: its end is told here.
        if task.cancelled():
            steps.put_nowait(Step(index=index, piece=None, finish_reason=self._aborted_as))
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()

    async def _run(self, index: int, job: Job, steps: asyncio.Queue[Step]) -> None:
        """Generate one answer into `steps`; the last step has a finish reason."""
        arrived_s = time.monotonic()
        finished = ""
        try:
            await self._wait_for_turn()
            self.metrics.queue.observe(time.monotonic() - arrived_s)
            try:
                await self._decode(index, job, steps, arrived_s)
                finished = job.answer.finish_reason
            finally:
                self._running -= 1
                self._slots.release()
        finally:
            self.metrics.finished[finished or self._aborted_as] += 1
            self.metrics.request.observe(time.monotonic() - arrived_s)

    async def _wait_for_turn(self) -> None:
        self._waiting += 1
        try:
            await self._awake.wait()
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self._running += 1

    async def _decode(self, index: int, job: Job, steps: asyncio.Queue[Step], arrived_s: float) -> None:
        """Send the answer token by token, each at its time."""
        if self._settings.faults.hang:
            await asyncio.Event().wait()
        answer, metrics = job.answer, self.metrics
        held_tokens = job.prompt_tokens + len(answer.pieces)
        self._held_tokens += held_tokens
        try:
            due_s = previous_s = time.monotonic()
            for position, piece in enumerate(answer.pieces, start=1):
                first = position == 1
                due_s += self._settings.time_to_first_token_s if first else self._settings.inter_token_s
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                now_s = time.monotonic()
                if first:
                    metrics.prompt_tokens += job.prompt_tokens
                    metrics.first_token.observe(now_s - arrived_s)
                else:
                    metrics.inter_token.observe(now_s - previous_s)
                metrics.generation_tokens += 1
                previous_s = now_s
                ends = position == len(answer.pieces)
                steps.put_nowait(
                    Step(index=index, piece=piece, finish_reason=answer.finish_reason if ends else None)
                )
        finally:
            self._held_tokens -= held_tokens
