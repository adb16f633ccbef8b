"""What `doctor` sees of a real Docker: its image, a container that is refused the GPU, containers left over."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import pytest

from agent_manager.errors import DockerNotReady
from agent_manager.runtimes.docker.client import DockerClient
from agent_manager.runtimes.docker.endpoint import find_endpoint
from agent_manager.runtimes.docker.survey import TRIAL_LABEL, survey, try_gpu
from tests.docker.images import BASE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.docker.conftest import DockerLab, Foreign

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture
def client(docker_host: str, docker_images: None) -> Iterator[DockerClient]:
    del docker_images  # they are there
    made = DockerClient(find_endpoint({"DOCKER_HOST": docker_host}), timeout_s=30)
    yield made
    made.close()


def findings(lab: DockerLab, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and the last finding of each check."""
    done = lab.run("doctor", "--json", *options)
    assert done.err == ""
    return done.code, {each["check"]: each for each in json.loads(done.out)["findings"]}


def names(lab: DockerLab) -> set[str]:
    """Every container there is."""
    return {each["Names"][0] for each in lab.api.containers(all=True)}


def without_gpus(lab: DockerLab) -> bool:
    return "nvidia" not in lab.api.info()["Runtimes"] and not os.path.exists("/dev/nvidiactl")  # noqa: PTH110


def test_engines_in_containers_without_a_gpu_are_ready(lab: DockerLab) -> None:
    before = names(lab)
    code, found = findings(lab)
    assert code == 0
    assert (found["docker"]["state"], found["image"]["state"]) == ("ok", "ok")
    assert "Docker Engine " in found["docker"]["evidence"]
    assert ", by DOCKER_HOST" in found["docker"]["evidence"]
    assert found["docker-disk"]["state"] == "ok"
    assert found["gpu-in-container"]["evidence"] == "not needed for simulated"
    assert names(lab) == before
    assert not lab.state.exists(), "it looks, and makes nothing"


def test_a_container_is_tried_with_the_gpu_and_removed(lab: DockerLab) -> None:
    if not without_gpus(lab):
        pytest.skip("this Docker gives containers a GPU")
    vllm_is_here(lab)
    before = names(lab)
    code, found = findings(lab, "--engine", "vllm")
    assert code == 4
    trial = found["gpu-in-container"]
    assert trial["state"] == "blocked"
    assert trial["evidence"] == "Docker cannot give a container an NVIDIA GPU on this host"
    assert "nvidia-ctk runtime configure --runtime=docker" in trial["remedy"]
    assert (found["image"]["state"], found["image"]["evidence"]) == ("ok", f"{BASE} is here")
    assert names(lab) == before


def vllm_is_here(lab: DockerLab) -> None:
    """As far as Docker can tell."""
    catalog = lab.folder / "models.yaml"
    catalog.write_text(catalog.read_text().replace("engines:\n", f"engines:\n  vllm: {{image: {BASE}}}\n"))


def test_the_trial_removes_its_container_when_interrupted(lab: DockerLab, tmp_path: Path) -> None:
    vllm_is_here(lab)
    with Relay(tmp_path / "relay.sock", lab.host) as relay:
        process = lab.begin("doctor", "--engine", "vllm", DOCKER_HOST=relay.url)
        assert relay.starting.wait(30), "the trial never came to its start"
        assert trials(lab), "it is there"
        process.send_signal(signal.SIGINT)
        relay.go.set()
        done = lab.end(process)
    assert done.code == 130
    assert trials(lab) == []


def trials(lab: DockerLab) -> list[str]:
    found = lab.api.containers(all=True, filters={"label": f"{TRIAL_LABEL}=gpu"})
    return [each["Names"][0] for each in found]


class Relay:
    """Passes everything on to Docker, but holds the start of a container back until it is told to go."""

    def __init__(self, path: Path, host: str) -> None:
        self.url = f"unix://{path}"
        self.starting = threading.Event()
        self.go = threading.Event()
        self._docker = host.removeprefix("unix://")
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._threads: list[threading.Thread] = []
        self._begin(self._serve)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(30)

    def _begin(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while True:
            try:
                ours = self._server.accept()[0]
            except OSError:
                return
            theirs = socket.socket(socket.AF_UNIX)
            theirs.connect(self._docker)
            self._begin(self._pass, ours, theirs)
            self._begin(self._pass, theirs, ours)

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError), source:
            while data := source.recv(65536):
                if data.startswith(b"POST ") and b"/start " in data.partition(b"\r\n")[0]:
                    self.starting.set()
                    self.go.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


def test_the_trial_removes_its_container_when_it_is_refused(client: DockerClient) -> None:
    with pytest.raises(DockerNotReady, match="cannot give a container an NVIDIA GPU"):
        try_gpu(client, BASE, "0")
    assert client.containers({TRIAL_LABEL: "gpu"}) == []


def test_the_smallest_image_is_tried_where_the_engines_is_not_here(client: DockerClient) -> None:
    sizes = {tag: each["Size"] for each in client.images() for tag in each["RepoTags"] or ()}
    seen = survey(client, "example.invalid/none:1")
    assert seen.image_here is False
    assert seen.trial_image is not None
    assert sizes[seen.trial_image] == min(sizes.values())


def test_containers_that_no_verb_reaches_are_named(lab: DockerLab) -> None:
    labels = {
        "gone": {"io.agent-manager.agent": "x", "io.agent-manager.state": str(lab.folder / "gone")},
        "compose": {"io.agent-manager.agent": "x"},
        "broken": {"io.agent-manager.agent": "x", "io.agent-manager.state": os.path.realpath(lab.state)},
        "trial": {TRIAL_LABEL: "gpu"},
    }
    made = {
        name: lab.api.create_container(BASE, ["true"], labels=each)["Id"] for name, each in labels.items()
    }
    try:
        done = lab.run("doctor", "--json")
        told = [each for each in json.loads(done.out)["findings"] if each["check"] == "containers"]
        named = {name: lab.inspect(container)["Name"].lstrip("/") for name, container in made.items()}
    finally:
        for container in made.values():
            lab.api.remove_container(container, force=True)
    assert done.code == 0, "they are in nobody's way"
    words = {
        "gone": "which is gone",
        "compose": "docker compose",
        "broken": "its labels",
        "trial": "'doctor'",
    }
    for name, word in words.items():
        (one,) = (each for each in told if f"container {named[name]} " in each["evidence"])
        assert word in one["evidence"]
        assert one["remedy"] == f"docker rm -f {named[name]}"


def test_a_port_that_a_container_publishes_is_told_with_its_name(lab: DockerLab, foreign: Foreign) -> None:
    name = f"somebody-{lab.po}"
    foreign.run(name, port=lab.ports[lab.po])
    done = lab.run("doctor", "--json")
    assert done.code == 4
    (taken,) = (each for each in json.loads(done.out)["findings"] if each["state"] == "blocked")
    assert taken["evidence"].endswith(f"is in use by container {name}")
    assert taken["remedy"].startswith(f"docker stop {name}  #")


def test_our_own_engine_in_a_container_is_in_nobodys_way(lab: DockerLab) -> None:
    lab.ok("launch", lab.po)
    code, found = findings(lab)
    assert code == 0
    assert f"those of {lab.po} used by its own engine" in found["ports"]["evidence"]
    assert "containers" not in found
