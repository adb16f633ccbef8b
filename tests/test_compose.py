"""The compose document: what it says, and that nothing of a catalog gets out of its place in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent_manager.catalog.agents import EngineSettings, Model
from agent_manager.compose import REFERENCE, Document, here, parse, render, to_yaml
from agent_manager.engines.base import Source
from agent_manager.engines.simulated.engine import SimulatedEngine
from agent_manager.engines.vllm import VllmEngine
from agent_manager.engines.vllm_cpu import VllmCpuEngine
from agent_manager.errors import UsageError
from tests.engines.agents import AGENT, COMMIT, FIT, SOURCE

if TYPE_CHECKING:
    from agent_manager.compose import Place
    from agent_manager.engines.base import Engine

GPU, CPU, SIMULATED = VllmEngine(), VllmCpuEngine(), SimulatedEngine(Path("/state/cards/SIM-0"))
SETTINGS = EngineSettings(name="vllm", image="vllm/vllm-openai:v0.32.0", command=("vllm", "serve"))
HERE = here(
    hub_cache=Path("/home/me/hub"),
    gpu="GPU-1a2b",
    card_dir=Path("/state/cards/SIM-0"),
    user="1000:1000",
    docker_version=28,
)

NASTY = st.text(alphabet=st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    [
        "$HOME",
        "${HOME}",
        "$${x:?no}",
        "a: b",
        "- x",
        '"',
        "'\n  image: evil\n",
        "#",
        "!!python/object/apply:os.system [id]",
        "&a *a",
        "yes",
        "null",
        "~",
        "1e3",
        "0o17",
        "1_000",
        "10:20",
        "{}",
        "[",
        "| x",
        "\\",
        "\u2028\x85\ufeff",
    ]
)


def document(engine: Engine = GPU, place: Place = HERE) -> Document:
    return render(AGENT, FIT, SOURCE, SETTINGS, engine, place)


def service(engine: Engine = GPU, place: Place = HERE) -> dict[str, Any]:
    made: dict[str, Any] = document(engine, place)["services"]["architect"]
    return made


def test_one_agent_is_one_project_with_one_service_of_its_name() -> None:
    made = document()
    assert made["name"] == "agent-manager-architect"
    assert list(made["services"]) == ["architect"]
    assert service()["container_name"] == "agent-manager-architect"
    assert service()["image"] == "vllm/vllm-openai:v0.32.0"
    assert made["volumes"] == {"cache": {}}


def test_the_command_is_the_engines_without_its_program() -> None:
    command = service()["command"]
    on_host = GPU.command(AGENT, FIT, SOURCE, SETTINGS, port=8100).arguments
    assert command[:3] == ["Qwen/Qwen3-14B-AWQ", "--revision", COMMIT]
    changed = {one: other for one, other in zip(on_host, command, strict=True) if one != other}
    assert changed == {"127.0.0.1": "0.0.0.0", "8100": "8000"}  # noqa: S104 - in the container


def test_the_hub_is_mounted_read_only_and_must_be_there() -> None:
    hub, cache = service()["volumes"]
    assert hub == {
        "type": "bind",
        "source": "/home/me/hub",
        "target": "/hub",
        "read_only": True,
        "bind": {"create_host_path": False},
    }
    assert cache == {"type": "volume", "source": "cache", "target": "/root/.cache/vllm"}
    assert service()["environment"]["HF_HUB_CACHE"] == "/hub"
    assert service()["environment"]["HF_HUB_OFFLINE"] == "1"


def test_a_folder_is_mounted_in_place_of_the_hub() -> None:
    agent = replace(AGENT, model=Model(name="mine", path=Path("/models/a$b")))
    made = render(agent, FIT, Source(model="/models/a$b"), SETTINGS, GPU, HERE)["services"]["architect"]
    assert made["command"][0] == "/model"
    assert "--revision" not in made["command"]
    assert made["volumes"][0]["source"] == "/models/a$$b"
    assert made["volumes"][0]["target"] == "/model"
    assert "HF_HUB_CACHE" not in made["environment"]


def test_the_gpu_is_one_by_its_id_and_only_for_the_engine_that_needs_one() -> None:
    (device,) = service()["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["GPU-1a2b"], "capabilities": ["gpu"]}
    assert "deploy" not in service(CPU)
    assert "deploy" not in service(SIMULATED)


def test_capabilities_are_dropped_but_those_it_needs() -> None:
    assert (service()["cap_drop"], service()["cap_add"]) == (["ALL"], ["DAC_OVERRIDE"])
    assert service(CPU)["cap_add"] == ["DAC_OVERRIDE", "SYS_NICE"]
    assert "cap_add" not in service(SIMULATED)
    for engine in (GPU, CPU, SIMULATED):
        assert service(engine)["security_opt"] == ["no-new-privileges:true"]


def test_ports_are_on_loopback_and_the_agents_own_only_without_a_gateway() -> None:
    assert service()["ports"] == ["127.0.0.1:8100:8000", "127.0.0.1:8000:8000"]
    assert service(place=replace(HERE, publish_agent=False))["ports"] == ["127.0.0.1:8100:8000"]


def test_docker_never_restarts_it_and_gives_it_time() -> None:
    made = service()
    assert (made["restart"], made["init"], made["stop_grace_period"]) == ("no", True, "45s")
    assert made["healthcheck"]["start_period"] == "10m"
    assert made["network_mode"] == "bridge"
    assert set(made["logging"]["options"]) == {"max-size", "max-file"}


@pytest.mark.parametrize(("version", "said"), [(20, False), (24, False), (25, True), (28, True)])
def test_a_start_interval_is_only_for_a_docker_that_knows_it(version: int, said: bool) -> None:  # noqa: FBT001 - a case
    place = here(hub_cache=Path("/hub"), gpu="0", docker_version=version)
    assert ("start_interval" in service(place=place)["healthcheck"]) is said
    assert "start_interval" not in service(place=REFERENCE)["healthcheck"]


def test_the_simulated_card_is_shared_through_a_mount() -> None:
    made = service(SIMULATED)
    assert made["volumes"] == [
        {
            "type": "bind",
            "source": "/state/cards/SIM-0",
            "target": "/card",
            "bind": {"create_host_path": False},
        }
    ]
    assert made["environment"]["AGENT_MANAGER_SIM_CARD_DIR"] == "/card"
    assert made["user"] == "1000:1000"


def test_for_any_machine_what_differs_is_a_variable() -> None:
    made = service(place=REFERENCE)
    assert made["volumes"][0]["source"] == "${HF_HUB_CACHE:-~/.cache/huggingface/hub}"
    (device,) = made["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["${AGENT_MANAGER_GPU:-0}"]


def test_a_commit_that_is_not_pinned_must_be_given() -> None:
    agent = replace(AGENT, name="po-2", model=replace(AGENT.model, revision=None))
    made = render(agent, FIT, Source(model="a/b"), SETTINGS, GPU, REFERENCE)["services"]["po-2"]
    assert made["command"][1:3] == [
        "--revision",
        "${AGENT_MANAGER_PO_2_REVISION:?not pinned yet, run agent-manager pull po-2}",
    ]


def test_an_engine_without_an_image_is_named() -> None:
    with pytest.raises(UsageError, match="engine simulated has no container image") as caught:
        render(AGENT, FIT, SOURCE, replace(SETTINGS, image=None), SIMULATED, HERE)
    assert caught.value.where == "engines.simulated.image"


@pytest.mark.parametrize("engine", [GPU, CPU, SIMULATED])
@pytest.mark.parametrize("place", [HERE, REFERENCE])
def test_yaml_gives_the_document_back(engine: Engine, place: Place) -> None:
    assert parse(to_yaml(document(engine, place))) == document(engine, place)


@given(words=st.lists(NASTY, max_size=4), value=NASTY, path=NASTY)
def test_a_catalog_cannot_break_out_of_its_place(words: list[str], value: str, path: str) -> None:
    agent = replace(
        AGENT, extra_args=tuple(words), model=Model(name="mine", path=Path("/") / path.replace("\0", ""))
    )
    settings = replace(SETTINGS, env={"INNOCENT": value})
    made = render(agent, FIT, Source(model="x"), settings, GPU, HERE)
    assert parse(to_yaml(made)) == made
    plain = render(AGENT, FIT, SOURCE, SETTINGS, GPU, HERE)
    assert _shape(made) == _shape(plain)
    service = made["services"]["architect"]
    if words:
        assert [_read(word) for word in service["command"][-len(words) :]] == words
    assert _read(service["environment"]["INNOCENT"]) == value
    assert _read(service["volumes"][0]["source"]) == str(agent.model.path)


def _shape(made: Document) -> object:
    """The keys, and those of the service."""
    return sorted(made), sorted(made["services"]), sorted(made["services"]["architect"])


def _read(text: str) -> str:
    """As compose reads a text in which no variable is left."""
    assert "$" not in text.replace("$$", "")
    return text.replace("$$", "$")


@given(text=NASTY)
def test_no_reader_of_yaml_takes_a_text_for_something_else(text: str) -> None:
    """A text is quoted unless it begins like a word: what a number is, YAML 1.1 and 1.2 disagree on."""
    (written,) = [token for token in yaml.scan(to_yaml({"a": text})) if isinstance(token, yaml.ScalarToken)][
        1:
    ]
    assert not written.plain or written.value[:1].isalpha() or written.value[:1] == "/"
    assert parse_value(to_yaml({"a": text})) == text


def parse_value(text: str) -> object:
    return yaml.safe_load(text)["a"]


@pytest.mark.parametrize("text", ["", "a: [", "[]", "services: []", "name: x"])
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not YAML|not a compose document"):
        parse(text)
