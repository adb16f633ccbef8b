"""The engines there are, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_manager.engines.simulated.engine import SimulatedEngine
from agent_manager.engines.vllm import VllmEngine
from agent_manager.engines.vllm_cpu import VllmCpuEngine
from agent_manager.errors import UsageError
from agent_manager.gpu.simulated import CARD_ID

if TYPE_CHECKING:
    from agent_manager.engines.base import Engine
    from agent_manager.state import StateDir

ENGINES = (VllmEngine.name, VllmCpuEngine.name, SimulatedEngine.name)


def engine_named(name: str, state: StateDir) -> Engine:
    """The engine of that name. `state` holds the simulated card. Raises UsageError, naming the choices."""
    match name:
        case VllmEngine.name:
            return VllmEngine()
        case VllmCpuEngine.name:
            return VllmCpuEngine()
        case SimulatedEngine.name:
            return SimulatedEngine(state.card(CARD_ID))
        case _:
            raise UsageError(
                f"no engine named '{name}'", hint=f"engines are: {', '.join(ENGINES)}", where="--engine"
            )
