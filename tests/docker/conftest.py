"""A person with Docker: the real program, real containers of the simulated engine, a catalog of their own."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import docker
import pytest

from tests.docker.images import SIMULATED
from tests.faults.conftest import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import FreePort

PO, DEV = "lab-po", "lab-dev"
"""A container is named after its agent: not after the user's own agents, whose Docker this may be."""

CATALOG = """\
version: 1
engine: simulated
runtime: docker
engines:
  simulated:
    image: {image}
    load_seconds: {load_s}
    time_to_first_token_ms: 1
    inter_token_ms: {inter_token_ms}
    stall_timeout: {stall_timeout}
    faults: {{{faults}}}
models:
  small: {{repo: Qwen/Qwen2.5-7B-Instruct-AWQ}}
agents:
  lab-po: {{model: small, port: {po}, context: 4k, sequences: 4}}
  lab-dev: {{model: small, port: {dev}, context: 4k, sequences: 4}}
"""


@dataclass
class DockerLab(Lab):
    """The program in a folder of its own, with agents lab-po and lab-dev in containers."""

    host: str = ""
    image: str = SIMULATED
    api: docker.APIClient = field(init=False)

    def __post_init__(self) -> None:
        self.api = docker.APIClient(base_url=self.host, version="auto", timeout=60)
        super().__post_init__()

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, "DOCKER_HOST": self.host}

    def catalog(
        self, *, load_s: float = 0.2, inter_token_ms: float = 0, stall_timeout: str = "15m", **faults: str
    ) -> None:
        """Write the catalog; keywords are faults of agents, `dev="oom"` for lab-dev."""
        text = CATALOG.format(
            image=self.image,
            load_s=load_s,
            inter_token_ms=inter_token_ms,
            stall_timeout=stall_timeout,
            faults=", ".join(f'lab-{agent}: "{fault}"' for agent, fault in faults.items()),
            po=self.ports[PO],
            dev=self.ports[DEV],
        )
        self.write(text)

    def containers(self, *, running: bool = False) -> dict[str, str]:
        """Names and states of the containers of this state folder."""
        labels = [f"io.agent-manager.state={os.path.realpath(self.state)}"]
        found = self.api.containers(all=not running, filters={"label": labels})
        return {each["Names"][0].lstrip("/"): each["State"] for each in found}

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.inspect_container(name)
        return found

    def instance(self, agent: str) -> str | None:
        """The id of the agent's instance, as `status` tells it."""
        (found,) = (each["instance_id"] for each in self.status()["agents"] if each["name"] == agent)
        return None if found is None else str(found)

    def settled(self) -> None:
        """No owner, and only containers that run."""
        assert not list(self.state.glob("cards/*/owner.json"))
        assert self.containers() == self.containers(running=True), "containers are left that do not run"


@contextmanager
def docker_lab(folder: Path, free_port: FreePort, host: str) -> Iterator[DockerLab]:
    """A lab on the Docker at `host`; its containers and volumes are gone in the end."""
    lab = DockerLab(folder=folder, ports={PO: free_port(), DEV: free_port()}, host=host)
    try:
        yield lab
    finally:
        for process in lab.spawned:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for name in lab.containers():
            with suppress(docker.errors.NotFound):
                lab.api.remove_container(name, force=True)
        lab.api.close()


@pytest.fixture
def lab(tmp_path: Path, free_port: FreePort, docker_host: str, docker_images: None) -> Iterator[DockerLab]:
    del docker_images  # they are there
    with docker_lab(tmp_path, free_port, docker_host) as made:
        yield made


@pytest.fixture
def foreign(docker_host: str, docker_images: None) -> Iterator[docker.APIClient]:
    """Docker, for somebody else's containers: those labelled `somebody=else` are removed in the end."""
    del docker_images
    api = docker.APIClient(base_url=docker_host, version="auto", timeout=60)
    yield api
    for each in api.containers(all=True, filters={"label": "somebody=else"}):
        api.remove_container(each["Id"], force=True)
    api.close()


def owner_step(lab: Lab) -> str | None:
    """What the operation under way is at."""
    for path in lab.state.glob("cards/*/owner.json"):
        with suppress(OSError, ValueError, KeyError):
            return str(json.loads(path.read_text())["step"])
    return None
