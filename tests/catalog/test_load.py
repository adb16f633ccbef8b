from __future__ import annotations

from pathlib import Path

import pytest

from agent_manager.catalog import load as load_module
from agent_manager.catalog.agents import Gateway
from agent_manager.catalog.load import find_catalog, load_catalog, packaged_catalog
from agent_manager.errors import AgentUnknown, CatalogInvalid, UsageError
from tests.catalog.conftest import SMALL, Load, Problems

PROFILED = """\
version: 1
engine: vllm
models:
  big: {repo: Qwen/Qwen3-14B-AWQ, revision: 31c69efc29464b6bb0aee1398b5a7b50a99340c3, reasoning_parser: qwen3}
  small: {path: weights/small}
agents:
  architect:
    model: big
    port: 9000
    context: 32k
    kv_cache_dtype: fp8
    gpu_memory_utilization: 0.9
    thinking: true
    sampling: {temperature: 0.1, top_p: 0.95}
    extra_args: [--dtype, bfloat16]
  po: {model: big, port: 9001, context: 16384, sequences: 8, cpu_offload: 8GiB, eager: true}
profiles:
  tiny:
    engine: vllm-cpu
    runtime: process
    agents:
      architect: {model: small, context: 1k, gpu_memory_utilization: auto, sampling: {temperature: 0.7, top_k: 20}}
"""


def test_an_agent_has_what_the_file_says(load: Load) -> None:
    catalog = load(PROFILED)
    architect = catalog.agent("architect")
    assert architect.model.repo == "Qwen/Qwen3-14B-AWQ"
    assert architect.model.revision == "31c69efc29464b6bb0aee1398b5a7b50a99340c3"
    assert (architect.port, architect.engine_port) == (9000, 9100)
    assert architect.context == 32768
    assert architect.kv_cache_dtype == "fp8"
    assert architect.utilization == 0.9
    assert architect.thinking is True
    assert architect.sampling == {"temperature": 0.1, "top_p": 0.95}
    assert architect.extra_args == ("--dtype", "bfloat16")
    po = catalog.agent("po")
    assert (po.context, po.sequences, po.cpu_offload_bytes, po.eager) == (16384, 8, 8 << 30, True)
    assert catalog.engine == "vllm"
    assert catalog.profiles == ("tiny",)


def test_what_is_left_out_has_its_default(load: Load) -> None:
    catalog = load(SMALL)
    dev = catalog.agent("dev")
    assert (dev.sequences, dev.kv_cache_dtype, dev.utilization, dev.cpu_offload_bytes) == (4, "auto", None, 0)
    assert (dev.eager, dev.thinking, dev.sampling, dev.extra_args) == (False, None, {}, ())
    assert (catalog.engine, catalog.runtime, catalog.profile) == (None, None, None)
    assert set(catalog.engines) == {"vllm", "vllm-cpu", "simulated"}
    assert catalog.engines["vllm"].command == ("vllm", "serve")
    assert catalog.engines["vllm-cpu"].kv_cache_bytes == 4 << 30
    assert catalog.engines["simulated"].simulation is not None
    assert catalog.engines["vllm"].stall_timeout_s == 900


def test_a_profile_is_laid_over_the_agents_value_by_value(load: Load) -> None:
    catalog = load(PROFILED, profile="tiny")
    architect = catalog.agent("architect")
    assert architect.model.name == "small"
    assert architect.context == 1024
    assert architect.utilization is None
    assert architect.sampling == {"temperature": 0.7, "top_p": 0.95, "top_k": 20}
    assert (architect.port, architect.kv_cache_dtype, architect.thinking) == (9000, "fp8", True)
    assert catalog.agent("po") == load(PROFILED).agent("po")
    assert (catalog.profile, catalog.engine, catalog.runtime) == ("tiny", "vllm-cpu", "process")


def test_engine_settings(load: Load) -> None:
    engines = load(
        SMALL
        + """\
engines:
  vllm: {image: "registry.example:5000/vllm@sha256:%s", stall_timeout: 2m, env: {VLLM_LOGGING_LEVEL: DEBUG}}
  vllm-cpu: {kv_cache: 1GiB, command: [python, -m, vllm]}
  simulated: {load_seconds: 0, inter_token_ms: 1, faults: {dev: "crash-after:3, ignore-sigterm"}}
"""
        % ("a" * 64)
    ).engines
    assert engines["vllm"].stall_timeout_s == 120
    assert engines["vllm"].env == {"VLLM_LOGGING_LEVEL": "DEBUG"}
    assert engines["vllm-cpu"].command == ("python", "-m", "vllm")
    assert engines["vllm-cpu"].kv_cache_bytes == 1 << 30
    simulation = engines["simulated"].simulation
    assert simulation is not None
    assert (simulation.load_seconds, simulation.time_to_first_token_ms, simulation.inter_token_ms) == (
        0,
        60,
        1,
    )
    assert simulation.faults == {"dev": "crash-after:3,ignore-sigterm"}


def test_the_gateway_and_what_it_knows_of_agents(load: Load, tmp_path: Path) -> None:
    catalog = load(
        SMALL.replace("4k}", "4k, aliases: [gpt-4o, Org/Coder], keep_alive: 0}")
        + """\
gateway:
  host: 0.0.0.0
  api_key_file: keys/gateway
  origins: ["http://localhost:3000"]
  keep_alive: 5m
  default: dev
"""
    )
    agent = catalog.agent("dev")
    assert (agent.aliases, agent.keep_alive_s) == (("gpt-4o", "Org/Coder"), 0.0)
    assert catalog.gateway == Gateway(
        host="0.0.0.0",  # noqa: S104 - written, not listened on
        api_key_file=tmp_path / "keys" / "gateway",
        origins=("http://localhost:3000",),
        keep_alive_s=300.0,
        default="dev",
    )
    assert load(SMALL).gateway == Gateway()
    assert load(SMALL).agent("dev").keep_alive_s is None


def test_a_system_prompt_is_text_and_a_profile_may_change_it(load: Load) -> None:
    text = (
        SMALL.replace("4k}", "4k, system: 'You plan.'}")
        + """\
  po:
    model: tiny
    port: 8002
    context: 4k
    system: |
      You are ${env:WHO}.
      Be brief.
profiles:
  plain: {agents: {po: {system: Hello.}}}
"""
    )
    catalog = load(text, environ={"WHO": "12"})
    assert [catalog.agent(name).system for name in ("dev", "po")] == ["You plan.", "You are 12.\nBe brief.\n"]
    catalog = load(text, environ={"WHO": "12"}, profile="plain")
    assert [catalog.agent(name).system for name in ("dev", "po")] == ["You plan.", "Hello."]
    assert load(SMALL).agent("dev").system is None


def test_agents_that_one_instance_can_serve(load: Load) -> None:
    catalog = load(
        SMALL.replace("4k}", "4k, thinking: true, sampling: {top_p: 0.9}}")
        + """\
  po: {model: tiny, port: 8002, context: 4096, aliases: [x], keep_alive: 5m, system: "You decide."}
  long: {model: tiny, port: 8003, context: 8k, thinking: true}
  bare: {model: tiny, port: 8004, context: 4k, extra_args: [--seed, "1"]}
"""
    )
    assert [agent.name for agent in catalog.group("po")] == ["dev", "po"]
    joint = catalog.joint("po")
    assert (joint, joint.names) == (catalog.joint("dev"), ("dev", "po"))
    assert (joint.port, joint.sampling, joint.thinking) == (8001, {}, None)
    for alone in ("long", "bare"):
        assert catalog.joint(alone) is catalog.agent(alone)


@pytest.mark.parametrize("difference", [
    "model: other", "context: 8k", "sequences: 2", "kv_cache_dtype: fp8", "gpu_memory_utilization: 0.5",
    "cpu_offload: 1GiB", "eager: true", "extra_args: [--seed, '1']",
])  # fmt: skip
def test_whatever_an_engine_is_started_with_tells_agents_apart(load: Load, difference: str) -> None:
    like = "model: tiny, context: 4k"
    text = SMALL.replace("agents:", "  other: {repo: a/b}\nagents:") + f"  po: {{port: 8002, {like}}}\n"
    assert len(load(text).group("po")) == 2
    key = difference.partition(":")[0]
    kept = ", ".join(each for each in like.split(", ") if not each.startswith(key))
    catalog = load(text.replace(f"{{port: 8002, {like}}}", f"{{port: 8002, {kept}, {difference}}}"))
    assert len(catalog.group("po")) == 1


def test_a_name_means_one_agent(problems: Problems) -> None:
    found = problems(
        SMALL.replace("4k}", "4k, aliases: [po, coder]}")
        + "  po: {model: tiny, port: 8002, context: 4k, aliases: [coder, x]}\n"
    )
    assert [(each.path, each.message) for each in found] == [
        ("agents.dev.aliases[0]", "'po' means agent po itself already"),
        ("agents.po.aliases[0]", "'coder' means agent dev already"),
    ]


@pytest.mark.parametrize(
    ("written", "meant"),
    [("models/a", "{folder}/models/a"), ("../a", "{parent}/a"), ("/srv/a", "/srv/a"), ("~/a", "/home/me/a")],
)
def test_where_a_models_folder_is(load: Load, tmp_path: Path, written: str, meant: str) -> None:
    text = SMALL.replace("repo: Qwen/Qwen2.5-0.5B-Instruct", f"path: {written}")
    model = load(text, environ={"HOME": "/home/me"}).agent("dev").model
    assert model.path == Path(meant.format(folder=tmp_path, parent=tmp_path.parent))
    assert model.repo is None


def test_a_home_is_needed_only_where_a_path_names_it(load: Load) -> None:
    with pytest.raises(UsageError, match="HOME is not set"):
        load(SMALL.replace("repo: Qwen/Qwen2.5-0.5B-Instruct", "path: ~/a"))


def test_values_from_the_environment_become_what_their_place_needs(load: Load) -> None:
    text = """\
version: 1
models:
  tiny: {repo: "${env:ORG}/${env:FAMILY}2.5-0.5B", revision: "${env:NOTHING}", path: "${env:NOTHING}"}
agents:
  dev:
    model: tiny
    port: ${env:PORT}
    context: ${env:TOKENS}
    sampling: {temperature: "${env:HEAT}"}
    extra_args: [--seed, "${env:SEED}"]
engines: {vllm: {env: {SEED: "${env:SEED}", EMPTY: "${env:NOTHING}"}}}
"""
    environ = {
        "PORT": "9001",
        "TOKENS": "8k",
        "HEAT": "1",
        "SEED": "007",
        "ORG": "Qwen",
        "FAMILY": "Qwen",
        "NOTHING": "",
    }
    catalog = load(text, environ=environ)
    dev = catalog.agent("dev")
    assert dev.model.repo == "Qwen/Qwen2.5-0.5B"
    assert dev.model.revision is None
    assert (dev.port, dev.context, dev.sampling) == (9001, 8192, {"temperature": 1.0})
    assert dev.extra_args == ("--seed", "007")
    assert {type(word) for word in dev.extra_args} == {str}
    assert catalog.engines["vllm"].env == {"SEED": "007", "EMPTY": ""}
    assert {type(value) for value in catalog.engines["vllm"].env.values()} == {str}


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert load_catalog(path, environ={}).agent("dev").port == 8001


def test_keys_without_a_value_count_as_absent(load: Load) -> None:
    assert load(SMALL + "profiles:\nengines:\n  simulated:\n").profiles == ()


def test_an_unknown_profile_or_agent_is_answered_with_the_nearest(load: Load) -> None:
    with pytest.raises(UsageError) as refused:
        load(PROFILED, profile="tinny")
    assert refused.value.hint == "did you mean 'tiny'?"
    assert not isinstance(refused.value, CatalogInvalid)
    with pytest.raises(AgentUnknown) as unknown:
        load(PROFILED).agent("architekt")
    assert unknown.value.hint == "did you mean 'architect'?"


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_catalog(tmp_path / "absent.yaml", environ={})
    with pytest.raises(UsageError, match="is a directory"):
        load_catalog(tmp_path, environ={})


def test_the_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config"
    explicit, named, user = tmp_path / "x.yaml", tmp_path / "n.yaml", config / "agent-manager/models.yaml"
    environ = {"XDG_CONFIG_HOME": str(config), "HOME": str(tmp_path)}
    assert find_catalog(None, environ=environ) == packaged_catalog()
    user.parent.mkdir(parents=True)
    for path in (user, tmp_path / "models.yaml", named, explicit):
        path.write_text(SMALL)
    assert find_catalog(None, environ=environ) == Path("models.yaml")
    environ["AGENT_MANAGER_CATALOG"] = str(named)
    assert find_catalog(None, environ=environ) == named
    environ["AGENT_MANAGER_CATALOG"] = "~/n.yaml"
    assert find_catalog(None, environ=environ) == named
    assert find_catalog(explicit, environ=environ) == explicit
    (tmp_path / "models.yaml").unlink()
    del environ["AGENT_MANAGER_CATALOG"]
    assert find_catalog(None, environ=environ) == user
    del environ["XDG_CONFIG_HOME"]
    user.parent.rename(tmp_path / "moved")
    (tmp_path / ".config").mkdir()
    (tmp_path / "moved").rename(tmp_path / ".config/agent-manager")
    assert find_catalog(None, environ=environ) == tmp_path / ".config/agent-manager/models.yaml"


def test_a_catalog_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--catalog"):
        find_catalog(tmp_path / "absent.yaml", environ={})
    with pytest.raises(UsageError, match="AGENT_MANAGER_CATALOG"):
        find_catalog(None, environ={"AGENT_MANAGER_CATALOG": str(tmp_path / "absent.yaml")})


def test_the_installed_packages_catalog_comes_before_the_repositorys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "__file__", str(tmp_path / "agent_manager/catalog/load.py"))
    (tmp_path / "agent_manager/catalog").mkdir(parents=True)
    assert packaged_catalog() == tmp_path / "models.yaml"
    installed = tmp_path / "agent_manager/catalog/models.yaml"
    installed.write_text(SMALL)
    assert packaged_catalog() == installed
