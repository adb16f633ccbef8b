"""What the doctor says of Docker, its images and its trial of the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from agent_manager.diagnosis.facts import (
    CardFacts,
    Trial,
    Trouble,
)
from agent_manager.diagnosis.finding import State
from agent_manager.errors import AgentManagerError
from agent_manager.gpu.base import GIB
from agent_manager.runtimes.docker.endpoint import find_endpoint
from agent_manager.runtimes.docker.refusals import refused
from tests.diagnosis.hosts import CARD, DISK, DOCKER, ON_THE_CPU, SYSTEM, VLLM, WSL, found, state

if TYPE_CHECKING:
    from pathlib import Path


def trouble_of(environ: dict[str, str]) -> Trouble:
    """What is really said of such a Docker."""
    try:
        find_endpoint(environ).require_usable()
    except AgentManagerError as error:
        return Trouble(message=error.message, hint=error.hint)
    raise AssertionError("that is a Docker")


def test_each_way_docker_can_be_absent_has_its_command(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cases = {
        f"unix://{tmp_path}/none.sock": "unset DOCKER_HOST DOCKER_CONTEXT; docker context use default",
        f"unix://{tmp_path}/file": "sudo systemctl enable --now docker",
        "tcp://192.0.2.1:2375": "unset DOCKER_HOST DOCKER_CONTEXT; docker context use default",
    }
    for host, command in cases.items():
        assert found("docker", docker=trouble_of({"DOCKER_HOST": host})).remedy == command
    context = trouble_of({"DOCKER_CONFIG": str(tmp_path), "DOCKER_CONTEXT": "gone"})
    assert (
        found("docker", docker=context).remedy
        == "unset DOCKER_HOST DOCKER_CONTEXT; docker context use default"
    )


@pytest.mark.parametrize(
    ("message", "command"),
    [
        (
            "this user may not use Docker: no permission on /x",
            "sudo usermod -aG docker $USER && newgrp docker",
        ),
        (
            "Docker does not answer while asking: timed out",
            "journalctl -u docker -n 50; sudo systemctl restart docker",
        ),
        ("Docker is not installed", "sudo apt-get install -y docker.io"),
        ("Docker is not running: there is no /var/run/docker.sock", "sudo systemctl enable --now docker"),
        (
            "this Docker is too old: it speaks API 1.40, and 1.41 is needed",
            "sudo apt-get install -y docker.io",
        ),
    ],
)
def test_what_docker_lacks_has_its_command(message: str, command: str) -> None:
    assert found("docker", docker=Trouble(message=message, hint="words")).remedy == command


def test_services_are_started_as_this_system_does() -> None:
    down = Trouble(message="Docker is not running: nobody answers on /var/run/docker.sock")
    remedy = found("docker", docker=down, system=replace(SYSTEM, systemd=False)).remedy
    assert remedy == "sudo service docker start"


def test_an_unknown_distribution_gets_the_hint_in_words() -> None:
    absent = Trouble(
        message="Docker is not installed", hint="install Docker Engine (https://docs.docker.com)"
    )
    system = replace(SYSTEM, families=frozenset({"plan9"}))
    assert found("docker", docker=absent, system=system).remedy == absent.hint


def test_an_old_docker_is_a_note() -> None:
    one = found("docker", docker=replace(DOCKER, version="20.10.24+dfsg1", api="1.41"))
    assert one.state is State.OK
    assert "before version 25" in one.evidence
    assert "before version 25" not in found("docker").evidence


def test_who_chose_docker_is_told() -> None:
    assert "DOCKER_HOST" in found("docker", docker=replace(DOCKER, chosen_by="DOCKER_HOST")).evidence


def test_docker_desktop_has_no_gpu_on_linux_and_has_it_on_windows() -> None:
    desktop = replace(DOCKER, system="Docker Desktop", disk=None)
    assert state("docker", docker=desktop) is State.WARNING
    assert state("docker", docker=desktop, wanted=ON_THE_CPU, card=CardFacts(card=CARD)) is State.OK
    assert state("docker", docker=desktop, system=WSL) is State.OK
    assert "Docker Desktop" in found("wsl", docker=desktop, system=WSL).evidence
    assert "virtual machine" in found("docker-disk", docker=desktop).evidence


def test_an_image_that_is_not_here_is_fetched_by_the_first_launch() -> None:
    one = found("image", docker=replace(DOCKER, image_here=False))
    assert (one.state, one.remedy) == (State.WARNING, "docker pull vllm:1")
    assert state("image", wanted=replace(VLLM, image=None)) is State.BLOCKED


def test_an_image_needs_room() -> None:
    tight = replace(DOCKER, disk=replace(DISK, free_bytes=19 * GIB), image_here=False)
    assert state("docker-disk", docker=tight) is State.BLOCKED
    assert state("docker-disk", docker=replace(tight, image_here=True)) is State.OK
    full = replace(DOCKER, disk=replace(DISK, free_bytes=1000))
    assert state("docker-disk", docker=full) is State.WARNING


TOOLKIT = refused('could not select device driver "nvidia" with capabilities: [[gpu]]', doing="starting it")


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"),
        ({"toolkit": False}, "sudo apt-get install -y nvidia-container-toolkit && sudo nvidia-ctk runtime"),
        ({"toolkit": False, "families": frozenset({"arch"})}, "sudo pacman -S nvidia-container-toolkit && "),
        ({"toolkit": False, "families": frozenset()}, "install the toolkit (https://docs.nvidia.com/"),
        ({"systemd": False}, "sudo service docker restart"),
    ],
)
def test_a_host_without_the_toolkit_is_told_what_is_left_to_do(changes: dict[str, Any], command: str) -> None:
    trial = Trial(image="vllm:1", refusal=Trouble(message=TOOLKIT.message, hint=TOOLKIT.hint))
    one = found("gpu-in-container", trial=trial, system=replace(SYSTEM, **changes))
    assert one.state is State.BLOCKED
    assert command in str(one.remedy)


def test_a_rootless_docker_is_configured_in_its_own_files() -> None:
    trial = Trial(image="vllm:1", refusal=Trouble(message=TOOLKIT.message))
    remedy = str(found("gpu-in-container", trial=trial, docker=replace(DOCKER, rootless=True)).remedy)
    assert ".config/docker/daemon.json" in remedy
    assert "no-cgroups" in remedy


def test_a_driver_that_refuses_a_container_is_told_in_its_own_words() -> None:
    said = "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0, please update your driver"
    error = refused(said, doing="starting it")
    trial = Trial(image="vllm:1", refusal=Trouble(message=error.message, hint=error.hint))
    one = found("gpu-in-container", trial=trial)
    assert one.state is State.BLOCKED
    assert "cuda>=13.0" in one.evidence or "unsatisfied condition" in one.evidence


@pytest.mark.parametrize(
    ("trial", "expected"),
    [
        ("there is no image to try it with", State.SKIPPED),
        (Trouble(message="Docker does not answer while starting it"), State.WARNING),
    ],
)
def test_a_trial_that_was_not_made_blocks_nothing(trial: Trouble | str, expected: State) -> None:
    assert state("gpu-in-container", trial=trial) is expected
