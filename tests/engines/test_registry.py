from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from agent_manager.catalog.agents import EngineSettings, Simulation
from agent_manager.engines.base import CardKind
from agent_manager.engines.registry import ENGINES, engine_named
from agent_manager.engines.simulated.options import parse
from agent_manager.engines.simulated.settings import from_environment
from agent_manager.errors import UsageError
from agent_manager.gpu.base import GIB
from agent_manager.planning.base import Budget
from tests.engines.agents import AGENT, BARE, FIT, SOURCE

if TYPE_CHECKING:
    from agent_manager.catalog.agents import Agent
    from agent_manager.state import StateDir

SETTINGS = EngineSettings(name="simulated")


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_is_found_under_its_own_name(name: str, state: StateDir) -> None:
    assert engine_named(name, state).name == name


def test_an_unknown_engine_is_refused_with_the_choices(state: StateDir) -> None:
    with pytest.raises(UsageError, match="no engine named 'ollama'") as caught:
        engine_named("ollama", state)

    assert caught.value.hint == "engines are: vllm, vllm-cpu, simulated"


@pytest.mark.parametrize(
    "agent", [AGENT, BARE, replace(AGENT, eager=True, thinking=False, shared_with=("dev", "po"))]
)
def test_the_simulated_engine_understands_what_is_rendered_for_it(agent: Agent, state: StateDir) -> None:
    engine = engine_named("simulated", state)
    fit = replace(FIT, cpu_offload_bytes=GIB // 2)

    argv = engine.command(agent, fit, SOURCE, SETTINGS, port=8100).argv

    assert argv[:4] == (sys.executable, "-P", "-m", "agent_manager.engines.simulated")
    options = parse(argv[4:])
    assert (options.model, options.names) == (SOURCE.model, agent.names)
    assert (options.host, options.port) == ("127.0.0.1", 8100)
    assert (options.utilization, options.max_model_len, options.max_num_seqs) == (0.92, 32768, 4)
    assert options.eager is agent.eager
    assert options.thinking is (agent.thinking is not False)
    assert options.quiet_paths == {"/health", "/metrics"}


def test_the_simulated_engine_is_told_how_to_behave(state: StateDir) -> None:
    engine = engine_named("simulated", state)
    simulation = Simulation(
        load_seconds=0.4, time_to_first_token_ms=1.5, inter_token_ms=0, faults={"architect": "crash-after:3"}
    )

    env = engine.command(AGENT, FIT, SOURCE, replace(SETTINGS, simulation=simulation), port=8100).env

    told = from_environment(env)
    assert told.card_dir == state.card("SIM-0")
    assert (told.load_s, told.time_to_first_token_s, told.inter_token_s) == (0.4, 0.0015, 0.0)
    assert told.faults.crash_after == 3
    assert (told.weights_bytes, told.kv_tokens) == (10 * GIB, 39321)
    assert not any(name.startswith("AGENT_MANAGER_STATE") for name in env)


def test_an_instance_that_agents_share_has_the_faults_of_them_all(state: StateDir) -> None:
    engine = engine_named("simulated", state)
    settings = replace(SETTINGS, simulation=Simulation(faults={"dev": "oom, hang", "architect": "hang-load"}))

    agent = replace(AGENT, shared_with=("po", "dev"))
    faults = from_environment(engine.command(agent, FIT, SOURCE, settings, port=8100).env).faults

    assert (faults.oom, faults.hang, faults.hang_load) == (True, True, True)


def test_another_agents_fault_and_unknown_figures_are_left_out(state: StateDir) -> None:
    engine = engine_named("simulated", state)
    settings = replace(SETTINGS, simulation=Simulation(faults={"dev": "oom"}))

    env = engine.command(
        AGENT, replace(FIT, weights_bytes=None, kv_tokens=None), SOURCE, settings, port=8100
    ).env

    assert not {
        "AGENT_MANAGER_SIM_FAULT",
        "AGENT_MANAGER_SIM_WEIGHTS_BYTES",
        "AGENT_MANAGER_SIM_KV_TOKENS",
    } & set(env)


def test_the_simulated_engine_says_what_it_is(state: StateDir) -> None:
    engine = engine_named("simulated", state)

    assert engine.simulated
    assert (engine.budget, engine.card_kind, engine.default_runtime) == (
        Budget.SHARE,
        CardKind.SIMULATED,
        "process",
    )
