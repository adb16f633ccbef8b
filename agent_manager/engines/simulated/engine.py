"""How the simulated engine is started: vLLM's command line, and the environment that says how to behave."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from agent_manager.catalog.agents import Simulation
from agent_manager.engines.base import LOOPBACK, CardKind, EngineCommand, Source
from agent_manager.engines.simulated import settings as names
from agent_manager.engines.vllm import plain, serve_arguments, serve_environment, share_arguments
from agent_manager.planning.base import Budget

if TYPE_CHECKING:
    from pathlib import Path

    from agent_manager.catalog.agents import Agent, EngineSettings
    from agent_manager.planning.base import Fit


class SimulatedEngine:
    """The engine `simulated`. It gets a share of the simulated card whose folder is `card_dir`."""

    name = "simulated"
    budget = Budget.SHARE
    simulated = True
    card_kind = CardKind.SIMULATED
    default_runtime = "process"

    def __init__(self, card_dir: Path) -> None:
        self.card_dir = card_dir

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
        # -P: an agent_manager folder in the working directory is not ours.
        program = (sys.executable, "-P", "-m", "agent_manager.engines.simulated", "serve")
        behaviour = self._behaviour(agent, fit, settings.simulation or Simulation())
        return EngineCommand(
            program=settings.command or program,
            arguments=serve_arguments(agent, fit, source, host=host, port=port, memory=share_arguments(fit)),
            env={**serve_environment(source), **behaviour, **settings.env},
        )

    def _behaviour(self, agent: Agent, fit: Fit, simulation: Simulation) -> dict[str, str]:
        """What is set to None stays out, and the engine chooses."""
        wanted = {
            names.CARD_DIR: str(self.card_dir.absolute()),
            names.LOAD_SECONDS: plain(simulation.load_seconds),
            names.TIME_TO_FIRST_TOKEN_MS: plain(simulation.time_to_first_token_ms),
            names.INTER_TOKEN_MS: plain(simulation.inter_token_ms),
            names.FAULT: ",".join(filter(None, map(simulation.faults.get, agent.names))) or None,
            names.WEIGHTS_BYTES: None if fit.weights_bytes is None else str(fit.weights_bytes),
            names.KV_TOKENS: None if fit.kv_tokens is None else str(fit.kv_tokens),
        }
        return {name: value for name, value in wanted.items() if value is not None}
