"""What we render is accepted by vLLM's own parser, for every agent of the default catalog in every profile."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from agent_manager.catalog.load import load_catalog, packaged_catalog
from agent_manager.engines.base import Source
from agent_manager.engines.vllm import VllmEngine
from agent_manager.engines.vllm_cpu import VllmCpuEngine
from agent_manager.gpu.base import GIB
from tests.engines.agents import COMMIT, FIT

if TYPE_CHECKING:
    from agent_manager.catalog.agents import Agent
    from agent_manager.planning.base import Fit

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SCRIPT = Path(__file__).with_name("parse_arguments.py")


def every_agent() -> dict[str, Agent]:
    """Every agent in every profile, by a name that tells both."""
    plain = load_catalog(packaged_catalog(), environ={})
    catalogs = {"default": plain}
    catalogs |= {name: load_catalog(packaged_catalog(), profile=name, environ={}) for name in plain.profiles}
    return {
        f"{profile}/{name}": agent
        for profile, catalog in catalogs.items()
        for name, agent in catalog.agents.items()
    }


def fit_of(agent: Agent) -> Fit:
    return replace(
        FIT,
        agent=agent.name,
        max_model_len=agent.context,
        max_num_seqs=agent.sequences,
        kv_cache_dtype=agent.kv_cache_dtype,
        utilization=agent.utilization or 0.92,
        cpu_offload_bytes=agent.cpu_offload_bytes,
        kv_cache_bytes=4 * GIB,
    )


def rendered(engine: VllmEngine | VllmCpuEngine, agent: Agent) -> list[str]:
    settings = load_catalog(packaged_catalog(), environ={}).engines[engine.name]
    model = agent.model
    source = (
        Source(model=str(model.path))
        if model.path
        else Source(model=str(model.repo), revision=model.revision or COMMIT)
    )
    argv = engine.command(agent, fit_of(agent), source, settings, port=agent.engine_port).argv
    assert argv[:2] == ("vllm", "serve")
    return list(argv[2:])


def parse_all(vllm_venv: Path, commands: list[list[str]]) -> list[dict[str, Any] | str]:
    done = subprocess.run(
        [vllm_venv / "bin" / "python", SCRIPT],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=False,
        cwd=SCRIPT.parent,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any] | str] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_vllms_parser_accepts_what_we_render_and_understands_it_as_meant(vllm_venv: Path) -> None:
    agents = every_agent()
    engines = (VllmEngine(), VllmCpuEngine())
    commands = {
        f"{engine.name} {name}": (engine, agent, rendered(engine, agent))
        for engine in engines
        for name, agent in agents.items()
    }
    made_up = [*rendered(engines[0], agents["default/po"]), "--made-up-flag"]
    made_up_value = [*rendered(engines[0], agents["default/po"]), "--kv-cache-dtype", "fp3"]
    made_up_parser = [*rendered(engines[0], agents["default/po"]), "--max-num-seqs", "many"]

    *answers, refused_flag, refused_value, refused_number = parse_all(
        vllm_venv, [*(argv for _, _, argv in commands.values()), made_up, made_up_value, made_up_parser]
    )

    assert len(agents) >= 6
    for (label, (engine, agent, _)), answer in zip(commands.items(), answers, strict=True):
        assert isinstance(answer, dict), f"{label}: {answer}"
        assert understood(engine, answer) == meant(engine, agent), label
    assert isinstance(refused_flag, str)
    assert "--made-up-flag" in refused_flag
    assert isinstance(refused_value, str)
    assert "fp3" in refused_value
    assert isinstance(refused_number, str)
    assert "many" in refused_number


def understood(engine: VllmEngine | VllmCpuEngine, values: dict[str, Any]) -> dict[str, Any]:
    """What vLLM took from the command line, of what `meant` is about."""
    names = (
        *(
            "model_tag",
            "served_model_name",
            "host",
            "port",
            "max_model_len",
            "max_num_seqs",
            "kv_cache_dtype",
        ),
        *("enforce_eager", "override_generation_config", "enable_auto_tool_choice", "tool_call_parser"),
        *("reasoning_parser", "default_chat_template_kwargs", "shutdown_timeout"),
        "disable_access_log_for_endpoints",
        *(
            ("gpu_memory_utilization", "cpu_offload_gb")
            if engine.name == "vllm"
            else ("kv_cache_memory_bytes",)
        ),
    )
    return {name: values[name] for name in names}


def meant(engine: VllmEngine | VllmCpuEngine, agent: Agent) -> dict[str, Any]:
    """What the agent says, under vLLM's names."""
    fit, model = fit_of(agent), agent.model
    memory: dict[str, Any] = {"kv_cache_memory_bytes": 4 * GIB}
    if engine.name == "vllm":
        memory = {"gpu_memory_utilization": fit.utilization, "cpu_offload_gb": agent.cpu_offload_bytes / GIB}
    thinking = None if agent.thinking is None else {"enable_thinking": agent.thinking}
    return {
        "model_tag": str(model.path or model.repo),
        "served_model_name": [agent.name],
        "host": "127.0.0.1",
        "port": agent.port + 100,
        "max_model_len": agent.context,
        "max_num_seqs": agent.sequences,
        "kv_cache_dtype": agent.kv_cache_dtype,
        "enforce_eager": agent.eager,
        "override_generation_config": dict(agent.sampling),
        "enable_auto_tool_choice": model.tool_parser is not None,
        "tool_call_parser": model.tool_parser,
        "reasoning_parser": model.reasoning_parser or "",
        "default_chat_template_kwargs": thinking,
        "shutdown_timeout": 30,
        "disable_access_log_for_endpoints": "/health,/metrics",
        **memory,
    }
