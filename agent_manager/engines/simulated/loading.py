"""From start to ready: memory is claimed, then vLLM's log lines come in vLLM's order over the load time.

No thread and no event loop runs yet, and SIGTERM is ignored as by a loading vLLM. A load that cannot go on
raises LoadFailed after its cause was logged in vLLM's words.
"""

from __future__ import annotations

import math
import os
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec import Struct

from agent_manager.engines.simulated import log
from agent_manager.engines.simulated.options import is_missing_folder
from agent_manager.gpu.base import GIB
from agent_manager.gpu.simulated import TOTAL_BYTES, Claim, NotEnoughMemory, claim

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent_manager.engines.simulated.options import Options
    from agent_manager.engines.simulated.settings import Settings

VERSION = "0.32.0+simulated"
"""The vLLM whose behaviour is simulated, marked as what it is."""
SHARDS = 4
_BLOCK_TOKENS = 16
_OVERHEAD_BYTES = int(1.3 * GIB)
_DEFAULT_WEIGHTS_SHARE = 0.6

# When each phase ends, as a share of the load time: weights and compilation are what takes long.
_CONFIGURED, _LOADED, _COMPILED, _PROFILED, _CAPTURED = 0.1, 0.6, 0.8, 0.9, 1.0


class LoadFailed(Exception):
    """The engine cannot start; the log says why."""


class Footprint(Struct, frozen=True, kw_only=True):
    """What the engine says it has: bytes of its claim, and tokens of KV cache."""

    budget_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    kv_tokens: int


class Load:
    """One load, spread over `settings.load_s` from `started_s` (of `time.monotonic`)."""

    def __init__(self, options: Options, settings: Settings, started_s: float) -> None:
        self._options = options
        self._settings = settings
        self._started_s = started_s
        self._worker_pid: int | None = None
        self.footprint = _footprint(options, settings)

    def announce(self) -> None:
        """Say who starts with what. Raises LoadFailed for a missing model folder, or the fault `refuse-start`."""
        options = self._options
        log.info(
            log.SERVER, "api_utils.py:327", f"vLLM server version {VERSION}, serving model {options.model}"
        )
        log.info(
            log.SERVER, "simulated.py:1", "this engine is simulated: no model runs, its text is generated"
        )
        log.info(log.SERVER, "api_utils.py:233", f"non-default args: {dict(options.given)}")
        if is_missing_folder(options.model):
            log.plain(
                log.SERVER,
                f"ValueError: Invalid repository ID or local directory specified: '{options.model}'.",
            )
            raise LoadFailed
        if self._settings.faults.refuse_start:
            with _core_fails():
                raise RuntimeError("the fault 'refuse-start' was asked for")
        described = (
            f"model='{options.model}', max_seq_len={options.max_model_len}, enforce_eager={options.eager}"
        )
        log.info(
            log.CORE, "core.py:134", f"Initializing a V1 LLM engine (v{VERSION}) with config: {described}"
        )

    def claim_memory(self) -> Claim:
        """Take the engine's share of the card; with `leave-workers`, hand it to a worker. Raises LoadFailed."""
        settings = self._settings
        with _core_fails():
            held = _claim_share(settings.card_dir, settings.instance, self._options.utilization)
        if settings.faults.leave_workers:
            self._worker_pid = _fork_worker()
            held.attribute_to(self._worker_pid)
        return held

    def end_worker(self) -> None:
        """End the worker, if there is one: only an engine that is killed leaves it."""
        if self._worker_pid is not None:
            os.kill(self._worker_pid, signal.SIGKILL)
            os.waitpid(self._worker_pid, 0)

    def run(self) -> None:
        """Load: returns when the engine could serve, after `settings.load_s`. Raises LoadFailed for its faults."""
        self._wait(_CONFIGURED)
        self._load_weights()
        if not self._options.eager:
            self._compile()
        self._profile()
        took_s = time.monotonic() - self._started_s
        log.info(
            log.CORE,
            "core.py:403",
            f"init engine (profile, create kv cache, warmup model) took {took_s * (1 - _LOADED):.2f} s",
        )

    def _load_weights(self) -> None:
        faults = self._settings.faults
        for shard in range(SHARDS + 1):
            share = shard / SHARDS
            percent = int(100 * share)
            self._wait(_CONFIGURED + share * (_LOADED - _CONFIGURED))
            log.plain(
                log.CORE,
                f"Loading safetensors checkpoint shards: {percent:3d}% Completed | {shard}/{SHARDS} "
                f"[00:00<00:00, {SHARDS / max(self._settings.load_s, 0.01):.2f}it/s]",
            )
            if faults.hang_load and shard == 1:
                while True:
                    signal.pause()
            if faults.oom and shard == SHARDS // 2:
                self._run_out_of_memory()
            if faults.crash_at_load_percent is not None and percent >= faults.crash_at_load_percent:
                with _core_fails():
                    raise RuntimeError(
                        f"the fault 'crash-at-load:{faults.crash_at_load_percent}' was asked for"
                    )
        took_s = self._settings.load_s * (_LOADED - _CONFIGURED)
        weights_gib = round(self.footprint.weights_bytes / GIB, 2)
        log.info(log.CORE, "default_loader.py:502", f"Loading weights took {took_s:.2f} seconds")
        log.info(
            log.CORE,
            "gpu_model_runner.py:5150",
            f"Model loading took {weights_gib} GiB memory and {took_s:.6f} seconds",
        )

    def _run_out_of_memory(self) -> None:
        free_mib = (self.footprint.kv_cache_bytes // 8) >> 20
        with _core_fails("torch.OutOfMemoryError: "):
            raise MemoryError(
                f"CUDA out of memory. Tried to allocate {2 * free_mib}.00 MiB. GPU 0 has a total capacity of "
                f"{round(TOTAL_BYTES / GIB, 2)} GiB of which {free_mib}.00 MiB is free. "
                "(the fault 'oom' was asked for)"
            )

    def _compile(self) -> None:
        took_s = self._settings.load_s * (_COMPILED - _LOADED)
        log.info(log.CORE, "backends.py:1167", f"Dynamo bytecode transform time: {took_s / 4:.2f} s")
        self._wait(_COMPILED)
        log.info(log.CORE, "monitor.py:48", f"torch.compile took {took_s:.2f} s in total")

    def _profile(self) -> None:
        footprint, context = self.footprint, self._options.max_model_len
        kv_gib = round(footprint.kv_cache_bytes / GIB, 2)
        self._wait(_PROFILED)
        log.info(log.CORE, "gpu_worker.py:760", f"Available KV cache memory: {kv_gib} GiB")
        log.info(
            log.CORE,
            "kv_cache_utils.py:2327",
            f"GPU KV cache size: {footprint.kv_tokens:,} tokens, Maximum concurrency for {context:,} tokens "
            f"per request: {footprint.kv_tokens / context:.2f}x",
        )
        self._wait(_CAPTURED)
        if not self._options.eager:
            took_s = self._settings.load_s * (_CAPTURED - _PROFILED)
            log.info(
                log.CORE,
                "gpu_model_runner.py:6582",
                f"Graph capturing finished in {took_s:.0f} secs, took 0.25 GiB",
            )

    def _wait(self, share: float) -> None:
        """Sleep until that share of the load time has passed."""
        left_s = self._started_s + share * self._settings.load_s - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)


def _footprint(options: Options, settings: Settings) -> Footprint:
    """What the settings say, and else figures that only look right: this engine has no weights."""
    budget_bytes = math.ceil(TOTAL_BYTES * options.utilization)
    weights_bytes = settings.weights_bytes
    if weights_bytes is None:
        weights_bytes = int(budget_bytes * _DEFAULT_WEIGHTS_SHARE)
    kv_tokens = settings.kv_tokens
    if kv_tokens is None:
        kv_tokens = 2 * math.ceil(options.max_model_len / _BLOCK_TOKENS) * _BLOCK_TOKENS
    return Footprint(
        budget_bytes=budget_bytes,
        weights_bytes=weights_bytes,
        kv_cache_bytes=max(0, budget_bytes - weights_bytes - _OVERHEAD_BYTES),
        kv_tokens=max(1, kv_tokens),
    )


def _claim_share(card_dir: Path, instance: str, utilization: float) -> Claim:
    wanted_bytes = math.ceil(TOTAL_BYTES * utilization)
    try:
        return claim(card_dir, instance, wanted_bytes)
    except NotEnoughMemory as error:
        raise ValueError(
            f"Free memory on device cuda:0 ({round(error.free_bytes / GIB, 2)}/{round(TOTAL_BYTES / GIB, 2)} GiB) "
            "on startup is less than desired GPU memory utilization "
            f"({utilization}, {round(wanted_bytes / GIB, 2)} GiB). Decrease GPU memory utilization or reduce GPU "
            "memory used by other processes."
        ) from None


@contextmanager
def _core_fails(prefix: str | None = None) -> Iterator[None]:
    """Log an error raised inside as a failing vLLM does: EngineCore's traceback, then the server's wrapper."""
    try:
        yield
    except (ValueError, RuntimeError, MemoryError) as error:
        named = f"{prefix or type(error).__name__ + ': '}{error}"
        frames = '  File "agent_manager/engines/simulated/loading.py", in run (simulated)'
        log.error(log.CORE, "core.py:1510", "EngineCore failed to start.")
        log.error(log.CORE, "core.py:1510", f"Traceback (most recent call last):\n{frames}\n{named}")
        log.plain(log.CORE, "Process EngineCore:")
        log.plain(log.SERVER, "Traceback (most recent call last):")
        log.plain(
            log.SERVER,
            "RuntimeError: Engine core initialization failed. See root cause above. "
            "Failed core proc(s): {'EngineCore': 1}",
        )
        raise LoadFailed from None


def _fork_worker() -> int:
    """Start the process that holds the memory, and would outlive a killed engine; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        signal.pause()
