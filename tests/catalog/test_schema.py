from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from agent_manager.catalog.load import load_catalog
from agent_manager.catalog.schema import json_schema, main

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.catalog.conftest import Load

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "models.yaml"
SCHEMA = ROOT / "models.schema.json"
PROFILES = (None, "long-context", "cpu", "offload-32b")


def test_the_checked_in_schema_is_the_generated_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema()
    assert main(["--check", str(SCHEMA)]) == 0
    stale = tmp_path / "stale.json"
    stale.write_text("{}\n")
    assert main(["--check", str(stale)]) == 1
    assert "is stale" in capsys.readouterr().err


def test_the_program_prints_the_schema() -> None:
    command = [sys.executable, "-m", "agent_manager.catalog.schema"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == SCHEMA.read_text()


def test_the_schema_is_a_schema_and_accepts_the_catalog() -> None:
    Draft202012Validator.check_schema(json_schema())
    Draft202012Validator(json_schema()).validate(yaml.safe_load(CATALOG.read_text()))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("extra",), 1), (("version",), 2), (("engine",), "x"), (("agents", "dev", "port"), 80),
        (("agents", "dev", "context"), "32 k"), (("agents", "dev", "sampling", "temprature"), 1),
        (("agents", "Dev"), {"model": "qwen2.5-7b-awq", "port": 9000, "context": 1}),
        (("models", "qwen2.5-7b-awq", "path"), "/x"), (("models", "qwen2.5-7b-awq", "revision"), "main"),
        (("profiles", "cpu", "agents", "dev", "port"), 9000), (("engines", "vllm", "image"), "vllm:latest"),
        (("engines", "simulated", "faults"), {"dev": "boom"}),
    ],
)  # fmt: skip
def test_the_schema_refuses_what_loading_refuses(place: tuple[str, ...], value: object) -> None:
    data = _with(place, value)
    assert not Draft202012Validator(json_schema()).is_valid(data)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("agents", "dev", "port"), "${env:PORT}"), (("profiles",), None),
        (("agents", "dev", "eager"), "${env:EAGER}"),
        (("engines", "vllm", "stall_timeout"), "20m"), (("engines", "simulated", "faults"), {"dev": "oom, hang"}),
    ],
)  # fmt: skip
def test_the_schema_accepts_what_loading_accepts(place: tuple[str, ...], value: object) -> None:
    Draft202012Validator(json_schema()).validate(_with(place, value))


def _with(place: tuple[str, ...], value: object) -> Any:  # noqa: ANN401 - a YAML document
    data = copy.deepcopy(yaml.safe_load(CATALOG.read_text()))
    here = data
    for key in place[:-1]:
        here = here[key]
    here[place[-1]] = value
    return data


def test_every_field_is_described() -> None:
    def properties(node: object) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict):
            yield from node.get("properties", {}).items()
            for child in node.values():
                yield from properties(child)

    for name, field in properties(json_schema()):
        assert re.search(r"\w", field["description"]), name


@pytest.mark.parametrize("profile", PROFILES)
def test_the_catalog_loads_in_each_profile(profile: str | None) -> None:
    catalog = load_catalog(CATALOG, profile=profile, environ={})
    assert [(agent.name, agent.port) for agent in catalog.agents.values()] == [
        ("architect", 8000),
        ("dev", 8001),
        ("po", 8002),
    ]
    assert catalog.engine == ("vllm-cpu" if profile == "cpu" else None)
    assert catalog.profiles == PROFILES[1:]


def test_the_default_trio() -> None:
    agents = load_catalog(CATALOG, environ={}).agents
    assert {name: agent.model.repo for name, agent in agents.items()} == {
        "architect": "Qwen/Qwen3-14B-AWQ",
        "dev": "Qwen/Qwen2.5-Coder-14B-Instruct-AWQ",
        "po": "Qwen/Qwen2.5-7B-Instruct-AWQ",
    }
    assert [agent.context for agent in agents.values()] == [32768, 32768, 16384]
    assert [agent.sampling["temperature"] for agent in agents.values()] == [0.1, 0.3, 0.5]


def test_the_offload_profile_is_what_is_known_to_run() -> None:
    for name in ("architect", "dev"):
        agent = load_catalog(CATALOG, profile="offload-32b", environ={}).agent(name)
        assert (agent.cpu_offload_bytes, agent.context, agent.sequences, agent.eager) == (
            8 << 30,
            8192,
            1,
            True,
        )
        assert agent.kv_cache_dtype == "fp8"


def test_the_catalogs_engine_settings_are_the_defaults(load: Load) -> None:
    """So that a catalog without `engines` runs the same images."""
    text = CATALOG.read_text()
    without = re.sub(r"(?ms)^engines:.*?(?=^models:)", "", text)
    assert len(without) < len(text)
    assert load(without).engines == load(text).engines
