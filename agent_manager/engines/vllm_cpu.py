"""vLLM's CPU build: the same server, with its weights and a KV cache of declared size in host memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_manager.engines.base import LOOPBACK, CardKind, EngineCommand, Source
from agent_manager.engines.vllm import COMMAND, serve_arguments, serve_environment
from agent_manager.planning.base import Budget

if TYPE_CHECKING:
    from agent_manager.catalog.agents import Agent, EngineSettings
    from agent_manager.planning.base import Fit


class VllmCpuEngine:
    """The engine `vllm-cpu`. Its KV cache has the size the fit says."""

    name = "vllm-cpu"
    budget = Budget.DECLARED
    simulated = False
    card_kind = CardKind.CPU
    default_runtime = "docker"

    def command(
        self,
        agent: Agent,
        fit: Fit,
        source: Source,
        settings: EngineSettings,
        *,
        port: int,
        host: str = LOOPBACK,
    ) -> EngineCommand:
        """The command that serves `agent` on `host`:`port` as `fit` allows."""
        return EngineCommand(
            program=settings.command or COMMAND,
            arguments=serve_arguments(
                agent, fit, source, host=host, port=port, memory=declared_arguments(fit)
            ),
            env={**serve_environment(source), **settings.env},
        )


def declared_arguments(fit: Fit) -> tuple[str, ...]:
    """The memory flag of the CPU build.

    `--kv-cache-memory-bytes`, not VLLM_CPU_KVCACHE_SPACE, which vLLM calls a legacy setting and which takes whole
    GiB only. With neither, `--gpu-memory-utilization` means a share of the host's memory on this build, and its
    default would take 92 % of it.
    """
    if fit.kv_cache_bytes is None:
        raise ValueError(f"the fit of {fit.agent} does not say how large its KV cache is")
    return ("--kv-cache-memory-bytes", str(fit.kv_cache_bytes))
