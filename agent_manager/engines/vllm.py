"""vLLM on an NVIDIA GPU: `vllm serve` from agent and fit. Flags as of vLLM 0.32.

Left out on purpose: `--quantization` (detected from the checkpoint), `--generation-config` (its default, `auto`,
takes the checkpoint's own sampling advice, and the agent's `sampling` goes over it).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from agent_manager.engines.base import LOOPBACK, CardKind, EngineCommand, Source
from agent_manager.gpu.base import GIB
from agent_manager.planning.base import Budget

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent_manager.catalog.agents import Agent, EngineSettings
    from agent_manager.planning.base import Fit

COMMAND = ("vllm", "serve")
"""How a host starts vLLM when the catalog does not say."""

SHUTDOWN_TIMEOUT_S = 30
"""How long vLLM lets running requests finish after SIGTERM; without it, it breaks their streams off."""


class VllmEngine:
    """The engine `vllm`. It gets a share of the card; its KV cache is what its weights leave of that."""

    name = "vllm"
    budget = Budget.SHARE
    simulated = False
    card_kind = CardKind.GPU
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
            arguments=serve_arguments(agent, fit, source, host=host, port=port, memory=share_arguments(fit)),
            env={**serve_environment(source), **settings.env},
        )


def serve_arguments(
    agent: Agent, fit: Fit, source: Source, *, host: str, port: int, memory: Sequence[str]
) -> tuple[str, ...]:
    """What follows `vllm serve`, beginning with the model; `memory` are the engine's own flags about memory.

    Replies name the first of several names, whichever was asked for. The agent's `extra_args` come last, so that
    they win.
    """
    revision = ("--revision", source.revision) if source.revision else ()
    return (
        source.model,
        *revision,
        *("--served-model-name", *agent.names),
        *("--host", host),
        *("--port", str(port)),
        *memory,
        *("--max-model-len", str(fit.max_model_len)),
        *("--max-num-seqs", str(fit.max_num_seqs)),
        *(() if fit.kv_cache_dtype == "auto" else ("--kv-cache-dtype", fit.kv_cache_dtype)),
        *(("--language-model-only",) if fit.language_model_only else ()),
        *(("--enforce-eager",) if agent.eager else ()),
        *_answer_arguments(agent),
        *("--shutdown-timeout", str(SHUTDOWN_TIMEOUT_S)),
        *("--disable-access-log-for-endpoints", "/health,/metrics"),
        *agent.extra_args,
    )


def share_arguments(fit: Fit) -> tuple[str, ...]:
    """The memory flags of an engine that gets a share of the card."""
    share = () if fit.utilization is None else ("--gpu-memory-utilization", plain(fit.utilization))
    offload_gib = fit.cpu_offload_bytes / GIB
    return (*share, *(("--cpu-offload-gb", plain(offload_gib)) if offload_gib else ()))


def serve_environment(source: Source) -> dict[str, str]:
    """What every vLLM needs: offline, silent towards its makers, its version in the log instead of a banner.

    SPT_NOENV: vLLM's workers rename themselves, and the library that does it writes over the environment that
    /proc shows, where the process runtime looks for its mark.
    """
    environment = {
        "HF_HUB_OFFLINE": "1",
        "SPT_NOENV": "1",
        "VLLM_DISABLE_LOG_LOGO": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if source.hub_cache:
        environment["HF_HUB_CACHE"] = source.hub_cache
    return environment


def plain(number: float) -> str:
    """The shortest text that reads back as exactly this number: `0.9`, `8`."""
    return repr(float(number)).removesuffix(".0")


def _answer_arguments(agent: Agent) -> tuple[str, ...]:
    """How it answers: sampling defaults, tool calls, reasoning."""
    model = agent.model
    sampling = ("--override-generation-config", _compact(agent.sampling)) if agent.sampling else ()
    tools = (
        ("--enable-auto-tool-choice", "--tool-call-parser", model.tool_parser) if model.tool_parser else ()
    )
    reasoning = ("--reasoning-parser", model.reasoning_parser) if model.reasoning_parser else ()
    thinking: tuple[str, ...] = ()
    if agent.thinking is not None:
        thinking = ("--default-chat-template-kwargs", _compact({"enable_thinking": agent.thinking}))
    return (*sampling, *tools, *reasoning, *thinking)


def _compact(values: Mapping[str, object]) -> str:
    """JSON on one line, always in the same order."""
    return json.dumps(dict(values), sort_keys=True, separators=(",", ":"))
