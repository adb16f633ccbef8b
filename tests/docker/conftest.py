"""A person with Docker: the real program, real containers of the simulated engine, a catalog of their own."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import docker
import pytest

from tests.docker.images import BASE, SIMULATED
from tests.faults.conftest import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import FreePort

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
  {po}: {{model: small, port: {po_port}, context: 4k, sequences: 4}}
  {dev}: {{model: small, port: {dev_port}, context: 4k, sequences: 4}}
"""


@dataclass
class DockerLab(Lab):
    """The program in a folder of its own, with two agents in containers.

    A container is named after its agent: these names are nobody else's, since this may be the user's own Docker, and
    other tests use it at the same time.
    """

    host: str = ""
    po: str = ""
    dev: str = ""
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
        """Write the catalog; keywords are faults of agents, `dev="oom"`."""
        names = {"po": self.po, "dev": self.dev}
        text = CATALOG.format(
            image=self.image,
            load_s=load_s,
            inter_token_ms=inter_token_ms,
            stall_timeout=stall_timeout,
            faults=", ".join(f'{names[agent]}: "{fault}"' for agent, fault in faults.items()),
            **names,
            po_port=self.ports[self.po],
            dev_port=self.ports[self.dev],
        )
        self.write(text)

    @property
    def po_box(self) -> str:
        """The name of po's container."""
        return f"agent-manager-{self.po}"

    @property
    def dev_box(self) -> str:
        """The name of dev's container."""
        return f"agent-manager-{self.dev}"

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
def docker_lab(
    folder: Path, free_port: FreePort, host: str, names: tuple[str, str] | None = None
) -> Iterator[DockerLab]:
    """A lab on the Docker at `host`, whose agents have these names; its containers are gone in the end."""
    mark = secrets.token_hex(3)
    po, dev = names or (f"po-{mark}", f"dev-{mark}")
    lab = DockerLab(folder=folder, ports={po: free_port(), dev: free_port()}, host=host, po=po, dev=dev)
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
def api(docker_host: str) -> Iterator[docker.APIClient]:
    """Docker itself, to be asked what became of things."""
    made = docker.APIClient(base_url=docker_host, version="auto", timeout=60)
    yield made
    made.close()


@pytest.fixture
def lab(tmp_path: Path, free_port: FreePort, docker_host: str, docker_images: None) -> Iterator[DockerLab]:
    del docker_images  # they are there
    with docker_lab(tmp_path, free_port, docker_host) as made:
        yield made


class Foreign:
    """Somebody else's containers; they are gone in the end."""

    def __init__(self, api: docker.APIClient) -> None:
        self.api = api
        self.made: list[str] = []

    def run(self, name: str, port: int | None = None) -> dict[str, Any]:
        """Start one that publishes a port, if one is given; what Docker says of it."""
        bindings = {} if port is None else {8000: ("127.0.0.1", port)}
        host_config = self.api.create_host_config(port_bindings=bindings)
        made = self.api.create_container(
            BASE, ["sleep", "300"], name=name, ports=list(bindings), host_config=host_config
        )
        self.made.append(made["Id"])
        self.api.start(made["Id"])
        return self.look(made["Id"])

    def look(self, container: str) -> dict[str, Any]:
        """What Docker says of it now."""
        seen: dict[str, Any] = self.api.inspect_container(container)
        return seen


@pytest.fixture
def foreign(docker_host: str, docker_images: None) -> Iterator[Foreign]:
    del docker_images  # they are there
    api = docker.APIClient(base_url=docker_host, version="auto", timeout=60)
    somebody = Foreign(api)
    yield somebody
    for container in somebody.made:
        api.remove_container(container, force=True)
    api.close()
