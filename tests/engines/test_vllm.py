from __future__ import annotations

import pytest
from msgspec.structs import replace

from agent_manager.catalog.agents import EngineSettings
from agent_manager.engines.base import CardKind, Source
from agent_manager.engines.vllm import VllmEngine, plain
from agent_manager.engines.vllm_cpu import VllmCpuEngine
from agent_manager.gpu.base import GIB
from agent_manager.planning.base import Budget
from tests.engines.agents import AGENT, BARE, COMMIT, FIT, SOURCE

VLLM = VllmEngine()
CPU = VllmCpuEngine()
SETTINGS = EngineSettings(name="vllm")


def test_everything_an_agent_says_is_on_the_command_line() -> None:
    command = VLLM.command(AGENT, FIT, SOURCE, SETTINGS, port=8100)

    assert command.argv == (
        *("vllm", "serve", "Qwen/Qwen3-14B-AWQ", "--revision", COMMIT),
        *("--served-model-name", "architect", "--host", "127.0.0.1", "--port", "8100"),
        *("--gpu-memory-utilization", "0.92", "--max-model-len", "32768", "--max-num-seqs", "4"),
        *("--kv-cache-dtype", "fp8", "--override-generation-config", '{"temperature":0.1,"top_p":0.95}'),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3"),
        *("--shutdown-timeout", "30", "--disable-access-log-for-endpoints", "/health,/metrics"),
    )


def test_an_instance_that_agents_share_has_all_their_names() -> None:
    argv = VLLM.command(replace(AGENT, shared_with=("dev", "po")), FIT, SOURCE, SETTINGS, port=8100).argv

    at = argv.index("--served-model-name")
    assert argv[at + 1 : at + 5] == ("architect", "dev", "po", "--host")


def test_what_an_agent_leaves_out_is_left_to_vllm() -> None:
    fit = replace(FIT, kv_cache_dtype="auto", utilization=None)

    command = VLLM.command(BARE, fit, Source(model="/models/bare"), SETTINGS, port=8102)

    assert command.argv == (
        *(
            "vllm",
            "serve",
            "/models/bare",
            "--served-model-name",
            "po",
            "--host",
            "127.0.0.1",
            "--port",
            "8102",
        ),
        *("--max-model-len", "32768", "--max-num-seqs", "4"),
        *("--shutdown-timeout", "30", "--disable-access-log-for-endpoints", "/health,/metrics"),
    )


def test_eager_thinking_and_offload() -> None:
    agent = replace(AGENT, eager=True, thinking=False)
    fit = replace(FIT, cpu_offload_bytes=8 * GIB)

    argv = VLLM.command(agent, fit, SOURCE, SETTINGS, port=8100).argv

    assert "--enforce-eager" in argv
    assert argv[argv.index("--default-chat-template-kwargs") + 1] == '{"enable_thinking":false}'
    assert argv[argv.index("--cpu-offload-gb") + 1] == "8"


def test_a_checkpoint_that_sees_is_loaded_without_its_eyes() -> None:
    fit = replace(FIT, language_model_only=True)

    assert "--language-model-only" in VLLM.command(AGENT, fit, SOURCE, SETTINGS, port=8100).argv


def test_the_users_own_arguments_come_last_and_the_catalogs_command_first() -> None:
    agent = replace(AGENT, extra_args=("--max-num-batched-tokens", "4096"))
    settings = replace(SETTINGS, command=("/opt/vllm/bin/python", "-m", "vllm.entrypoints.cli.main", "serve"))

    argv = VLLM.command(agent, FIT, SOURCE, settings, port=8100).argv

    assert argv[:5] == (*settings.command, SOURCE.model)
    assert argv[-2:] == agent.extra_args


def test_a_hostile_model_name_stays_one_argument() -> None:
    source = Source(model="/models/a b;$(reboot)")

    assert "/models/a b;$(reboot)" in VLLM.command(AGENT, FIT, source, SETTINGS, port=8100).argv


def test_the_environment_is_offline_and_silent_and_the_catalog_has_the_last_word() -> None:
    settings = replace(SETTINGS, env={"VLLM_LOGGING_LEVEL": "DEBUG", "VLLM_DISABLE_LOG_LOGO": "0"})

    env = VLLM.command(AGENT, FIT, replace(SOURCE, hub_cache="/hub"), settings, port=8100).env

    assert env == {
        "HF_HUB_CACHE": "/hub",
        "HF_HUB_OFFLINE": "1",
        "SPT_NOENV": "1",
        "VLLM_DISABLE_LOG_LOGO": "0",
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "VLLM_NO_USAGE_STATS": "1",
    }
    assert "HF_HUB_CACHE" not in VLLM.command(AGENT, FIT, SOURCE, SETTINGS, port=8100).env


def test_rendering_twice_gives_the_same() -> None:
    backwards = replace(AGENT, sampling=dict(reversed(list(AGENT.sampling.items()))))

    assert VLLM.command(AGENT, FIT, SOURCE, SETTINGS, port=8100) == VLLM.command(
        backwards, FIT, SOURCE, SETTINGS, port=8100
    )


@pytest.mark.parametrize("number", [0.9, 0.92, 1 / 3, 0.1 + 0.2, 8.0, 7.45, 1.0])
def test_a_number_reads_back_exactly(number: float) -> None:
    assert float(plain(number)) == number


def test_on_the_cpu_the_kv_cache_is_declared_and_no_share_of_the_host_is_asked_for() -> None:
    fit = replace(FIT, kv_cache_bytes=4 * GIB + 1, cpu_offload_bytes=GIB)

    argv = CPU.command(AGENT, fit, SOURCE, replace(SETTINGS, name="vllm-cpu"), port=8100).argv

    assert argv[argv.index("--kv-cache-memory-bytes") + 1] == "4294967297"
    assert not {"--gpu-memory-utilization", "--cpu-offload-gb"} & set(argv)


def test_on_the_cpu_a_fit_without_a_kv_cache_is_refused() -> None:
    # Left out, vLLM would take 92 % of the host's memory.
    with pytest.raises(ValueError, match="architect"):
        CPU.command(AGENT, replace(FIT, kv_cache_bytes=None), SOURCE, SETTINGS, port=8100)


def test_what_the_engines_say_of_themselves() -> None:
    assert (VLLM.name, VLLM.budget, VLLM.simulated, VLLM.card_kind, VLLM.default_runtime) == (
        "vllm",
        Budget.SHARE,
        False,
        CardKind.GPU,
        "docker",
    )
    assert (CPU.name, CPU.budget, CPU.simulated, CPU.card_kind, CPU.default_runtime) == (
        "vllm-cpu",
        Budget.DECLARED,
        False,
        CardKind.CPU,
        "docker",
    )
