"""Our documents and containers beside those of the real `docker compose`."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import pytest
import yaml
from msgspec.structs import replace

from agent_manager.compose import here, parse, render, to_yaml
from agent_manager.engines.base import Source
from agent_manager.engines.vllm import VllmEngine
from agent_manager.engines.vllm_cpu import VllmCpuEngine
from agent_manager.runtimes.docker.body import creation
from tests.docker.daemon import default_folder
from tests.docker.debian import compose_binary
from tests.docker.images import BASE
from tests.engines.agents import AGENT, FIT, SOURCE
from tests.test_compose import SETTINGS

if TYPE_CHECKING:
    from agent_manager.compose import Document
    from agent_manager.engines.base import Engine
    from tests.docker.conftest import DockerLab

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

COMMITTED = sorted((Path(__file__).parents[2] / "compose").glob("*.yaml"))
OURS_ALONE = {
    "Id",
    "Created",
    "Name",
    "GraphDriver",
    "LogPath",
    "HostnamePath",
    "HostsPath",
    "ResolvConfPath",
    "NetworkSettings",
    "State",
    "Hostname",
    "com.docker.compose.config-hash",
    "com.docker.compose.depends_on",
    "com.docker.compose.image",
    "com.docker.compose.version",
}
"""What differs between any two containers, and what compose says of itself."""


class Compose:
    """The real program, against one Docker."""

    def __init__(self, program: Path, host: str) -> None:
        self._program = program
        self._host = host

    def __call__(self, file: Path, *arguments: str, **variables: str) -> str:
        """Its output; fails the test when it fails."""
        done = subprocess.run(
            [self._program, "-f", file, *arguments],
            env={"PATH": os.environ["PATH"], "HOME": "/home/me", "DOCKER_HOST": self._host, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"compose {arguments}: {done.stderr}"
        return done.stdout

    def service(self, file: Path, **variables: str) -> dict[str, Any]:
        """The one service of a file, as compose reads it."""
        (read,) = json.loads(self(file, "config", "--format", "json", **variables))["services"].values()
        return dict(read)


@pytest.fixture(scope="session")
def compose(docker_host: str) -> Compose:
    program = compose_binary(default_folder().parent)
    if program is None:
        pytest.skip("no docker compose here, and none to be had from Debian")
    return Compose(program, docker_host)


def comparable(seen: Any) -> Any:  # noqa: ANN401 - whatever Docker says
    """What `docker inspect` says, without what is ours alone; null, [] and {} are equal, orders do not count."""
    if isinstance(seen, dict):
        kept = {key: comparable(value) for key, value in seen.items() if key not in OURS_ALONE}
        some = {key: value for key, value in kept.items() if value is not None}
        unordered = ("Env", "Mounts")
        return {
            key: sorted(each, key=str) if key in unordered else each for key, each in some.items()
        } or None
    if isinstance(seen, list):
        return [comparable(each) for each in seen] or None
    return seen


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_compose_reads_every_committed_file(compose: Compose, file: Path) -> None:
    commit = "0" * 40
    variable = f"AGENT_MANAGER_{file.stem.upper()}_REVISION"
    service = compose.service(file, **{variable: commit, "AGENT_MANAGER_GPU": "GPU-7"})
    hub = service["volumes"][0]
    assert hub["source"] == "/home/me/.cache/huggingface/hub"
    assert hub["read_only"] is True
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["GPU-7"]
    moved = compose.service(file, HF_HUB_CACHE="/models/hub", **{variable: commit})
    assert moved["volumes"][0]["source"] == "/models/hub"


def test_there_is_a_committed_file_for_each_agent() -> None:
    catalog = yaml.safe_load((COMMITTED[0].parents[1] / "models.yaml").read_text())
    assert [file.stem for file in COMMITTED] == sorted(catalog["agents"])


def test_a_commit_that_is_not_pinned_is_asked_for(compose: Compose) -> None:
    file = next(file for file in COMMITTED if file.stem == "dev")
    with pytest.raises(AssertionError, match="not pinned yet, run agent-manager pull dev"):
        compose(file, "config", "-q")


@pytest.mark.parametrize(
    "word",
    [
        "$HOME",
        "${HOME:-x}",
        "$$",
        "1e3",
        "0o17",
        "1_000",
        "10:20",
        "yes",
        "null",
        "~",
        "\"'\n  image: evil",
        "#x",
        "!!binary aGk=",
        "{}",
        "\\n",
        "\x85\u2028\U0001f600",
    ],
)
def test_compose_takes_every_word_for_itself(compose: Compose, tmp_path: Path, word: str) -> None:
    agent = replace(AGENT, extra_args=(word,))
    settings = replace(SETTINGS, env={"WORD": word})
    place = here(hub_cache=tmp_path, gpu="0")
    file = tmp_path / "compose.yaml"
    file.write_text(to_yaml(render(agent, FIT, SOURCE, settings, VllmEngine(), place)))
    # In what it prints, compose doubles dollars as it reads them.
    service = compose.service(file)
    assert service["command"][-1].replace("$$", "$") == word
    assert service["environment"]["WORD"].replace("$$", "$") == word
    assert service["image"] == SETTINGS.image


@pytest.mark.parametrize("engine", [VllmEngine(), VllmCpuEngine()], ids=lambda engine: engine.name)
def test_creating_by_compose_and_by_us_is_the_same(
    compose: Compose, api: docker.APIClient, tmp_path: Path, engine: Engine, docker_images: None
) -> None:
    del docker_images  # they are there
    agent = replace(AGENT, name=f"created-{secrets.token_hex(3)}")
    box = f"agent-manager-{agent.name}"
    place = here(hub_cache=tmp_path, gpu="GPU-1a2b")
    settings = replace(SETTINGS, image=BASE, env={"DOLLAR": "a$b"})
    document: Document = render(agent, FIT, Source(model="a/b", revision="0" * 40), settings, engine, place)
    file = tmp_path / "compose.yaml"
    file.write_text(to_yaml(document))
    compose(file, "create")
    theirs = api.inspect_container(box)
    compose(file, "down", "--volumes")

    wanted = creation(parse(file.read_text()), file)
    for volume, labels in wanted.volumes.items():
        api.create_volume(volume, labels=dict(labels))
    api.create_container_from_config(dict(wanted.config), wanted.name)
    ours = api.inspect_container(box)
    compose(file, "down", "--volumes")

    assert comparable(ours) == comparable(theirs)
    with pytest.raises(docker.errors.NotFound):
        api.inspect_container(box)
    assert api.volumes(filters={"name": agent.name})["Volumes"] in ([], None)


def test_up_and_launch_give_the_same_container(compose: Compose, lab: DockerLab) -> None:
    lab.ok("launch", lab.dev)
    file = lab.state / "compose" / f"{lab.dev}.yaml"
    ours = lab.inspect(lab.dev_box)

    (listed,) = (json.loads(line) for line in compose(file, "ps", "--format", "json").splitlines())
    assert (listed["Name"], listed["State"], listed["Service"]) == (lab.dev_box, "running", lab.dev)
    assert "Application startup complete" in compose(file, "logs")

    compose(file, "up", "--detach")
    again = lab.inspect(lab.dev_box)
    assert again["Id"] != ours["Id"], "up over what was launched makes it anew"

    compose(file, "down")
    compose(file, "up", "--detach")
    theirs = lab.inspect(lab.dev_box)
    assert comparable(ours) == comparable(theirs)
    assert lab.instance(lab.dev) is not None, "what up started is seen, for it is the same"

    compose(file, "down")
    assert lab.containers() == {}


def test_down_on_one_file_leaves_the_other_agent(compose: Compose, lab: DockerLab) -> None:
    lab.ok("launch", lab.dev)
    lab.ok("stop")
    lab.ok("launch", f"{lab.po}")
    compose(lab.state / "compose" / f"{lab.dev}.yaml", "down", "--remove-orphans")
    assert lab.containers() == {lab.po_box: "running"}
