"""The main job on real vLLM in containers, as a user has it: the built wheel, a Hub cache, the official client.

As with processes, few stories are told, since a start takes the better part of a minute on two cores.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e import hub_cache
from tests.e2e.user import SlowReader, User, refuses, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import FreePort

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PO, DEV = "e2e-po", "e2e-dev"
"""Names of containers come from agents' names: not those of the user's own agents, whose Docker this may be."""

REVISION = "0123456789abcdef0123456789abcdef01234567"
CATALOG = """\
version: 1
engines:
  vllm-cpu: {{kv_cache: 1GiB}}
models:
  first: {{repo: Tiny/First, revision: {revision}}}
  second: {{repo: Tiny/Second, revision: {revision}}}
agents:
  e2e-po: {{model: first, port: {po}, context: 512, sequences: 4, eager: true, sampling: {{temperature: 0.5}}}}
  e2e-dev: {{model: second, port: {dev}, context: 512, sequences: 4, eager: true}}
gateway: {{port: {gateway}}}
"""


class Docker:
    """Docker's and compose's own command lines, for what a user would see there."""

    def __init__(self, host: str, compose: Path) -> None:
        self._environ = {"DOCKER_HOST": host, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent"}
        self._compose = compose

    def __call__(self, *arguments: str) -> str:
        return self._run("docker", *arguments)

    def compose(self, file: Path, *arguments: str) -> str:
        return self._run(self._compose, "-f", file, *arguments)

    def containers(self) -> list[str]:
        names = self("ps", "--all", "--format", "{{.Names}}").split()
        return [name for name in names if name in {f"agent-manager-{PO}", f"agent-manager-{DEV}"}]

    def _run(self, *argv: str | Path) -> str:
        done = subprocess.run(argv, env=self._environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def docker(docker_host: str, compose_program: Path) -> Docker:
    return Docker(docker_host, compose_program)


@pytest.fixture
def user(
    wheel_cli: Path,
    vllm_cpu_image: str,
    docker: Docker,
    docker_host: str,
    tiny_checkpoints: tuple[Path, Path],
    tmp_path: Path,
    free_port: FreePort,
) -> Iterator[User]:
    assert vllm_cpu_image, "the catalog's default image is there"
    for checkpoint, repo in zip(tiny_checkpoints, ("Tiny/First", "Tiny/Second"), strict=True):
        hub_cache.add(tmp_path / "hub", checkpoint, repo, REVISION)
    user = User(
        program=wheel_cli,
        folder=tmp_path,
        runtime="docker",
        po=free_port(),
        dev=free_port(),
        gateway=free_port(),
        environ={"DOCKER_HOST": docker_host, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
    )
    catalog = CATALOG.format(po=user.po, dev=user.dev, gateway=user.gateway, revision=REVISION)
    (tmp_path / "models.yaml").write_text(catalog)
    yield user
    user.run("stop", "--all", "--drain-timeout", "0")
    for agent in (PO, DEV):
        docker("volume", "rm", "--force", f"agent-manager-{agent}_cache")


def test_the_main_job_in_containers(user: User, docker: Docker) -> None:
    user.ok("launch", PO)
    user.chats_and_streams(PO, user.po)
    _compose_sees(docker, user, PO)

    stream = SlowReader(user.client(user.po), PO)
    user.ok("launch", DEV)
    assert stream.tokens() == 300, "a stream that ran when the swap began is finished first"

    user.completes(DEV, user.dev)
    assert refuses(user.po)
    assert refuses(user.po + 100)
    assert docker.containers() == [f"agent-manager-{DEV}"], "what left is removed once dev answered"

    status: dict[str, Any] = json.loads(user.ok("status", "--json"))
    states = {agent["name"]: agent for agent in status["agents"]}
    assert states[DEV]["state"] == "ready"
    assert states[DEV]["engine"] == "vllm-cpu"
    assert states[DEV]["ready_after_s"] > 1
    assert states[PO]["state"] == "absent"
    assert status["owner"] is None

    assert "Application startup complete" in user.ok("logs", DEV)
    assert "Application startup complete" in user.ok("logs", PO), "kept after its container was removed"

    user.ok("stop")
    assert docker.containers() == []
    assert refuses(user.dev)
    assert user.run("stop").returncode == 5


def test_requests_swap_containers_and_survive_one_that_is_killed(user: User, docker: Docker) -> None:
    with user.serving():
        assert docker.containers() == []
        user.completes(PO, user.po)
        assert docker.containers() == [f"agent-manager-{PO}"]
        user.completes(DEV, user.gateway)
        until(lambda: docker.containers() == [f"agent-manager-{DEV}"], "what left is removed")

        docker("kill", f"agent-manager-{DEV}")
        user.completes(DEV, user.gateway)
        assert [agent["id"] for agent in user.curl_json("/running")["running"]] == [DEV]
    assert docker.containers() == []
    assert refuses(user.gateway)


def _compose_sees(docker: Docker, user: User, agent: str) -> None:
    """`docker compose` over the file that launch wrote takes the container for its own."""
    file = user.state / "compose" / f"{agent}.yaml"
    (seen,) = (json.loads(line) for line in docker.compose(file, "ps", "--format", "json").splitlines())
    assert seen["Name"] == f"agent-manager-{agent}"
    assert seen["Service"] == agent
    assert seen["State"] == "running"
    assert "Application startup complete" in docker.compose(file, "logs")
