"""What is wrong with Docker, and what to type: facts in, findings out. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent_manager.diagnosis.facts import DockerFacts, Trouble
from agent_manager.diagnosis.finding import blocked, gib, ok, skipped, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_manager.diagnosis.facts import HostFacts, SystemFacts
    from agent_manager.diagnosis.finding import Finding

START_INTERVAL_MAJOR: Final = 25
"""Docker Engine 25 can look at a starting container more often than at a running one (`start_interval`)."""
LOG_ROOM_BYTES: Final = 1 << 30
"""Containers write their logs (30 MB each) and vLLM what it compiled (some 100 MB each model) below Docker's root."""

_NO_DOCKER: Final = "Docker does not answer"
_INSTALL: Final = {
    "debian": "sudo apt-get install -y docker.io",
    "fedora": "sudo dnf install -y moby-engine && sudo systemctl enable --now docker",
    "arch": "sudo pacman -S docker && sudo systemctl enable --now docker",
    "suse": "sudo zypper install -y docker && sudo systemctl enable --now docker",
}
"""By family of distribution: the packages of the distributions themselves."""
_INSTALL_TOOLKIT: Final = {
    "debian": "sudo apt-get install -y nvidia-container-toolkit",
    "fedora": "sudo dnf install -y nvidia-container-toolkit",
    "arch": "sudo pacman -S nvidia-container-toolkit",
    "suse": "sudo zypper install -y nvidia-container-toolkit",
}
TOOLKIT_GUIDE: Final = (
    "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
)
_CONFIGURE: Final = "sudo nvidia-ctk runtime configure --runtime=docker && "
_CONFIGURE_ROOTLESS: Final = (
    "nvidia-ctk runtime configure --runtime=docker --config=$HOME/.config/docker/daemon.json && "
    "sudo nvidia-ctk config --set nvidia-container-cli.no-cgroups --in-place && systemctl --user restart docker"
)


def judge_docker(facts: HostFacts) -> Iterator[Finding]:
    """Does it answer, is the image here, does a container get the GPU."""
    docker, wanted = facts.docker, facts.wanted
    if not wanted.needs_docker:
        yield from _unneeded(facts)
        return
    if isinstance(docker, Trouble):
        yield blocked("docker", docker.message, remedy_for(docker, facts.system))
        yield skipped("image", _NO_DOCKER)
        yield skipped("gpu-in-container", _NO_DOCKER if wanted.needs_gpu else _no_gpu(facts))
        return
    yield _engine(docker, facts)
    yield _image(docker, facts)
    yield _trial(docker, facts)


def judge_docker_disk(facts: HostFacts) -> Iterator[Finding]:
    """Is there room for the image, and for what containers write."""
    docker = facts.docker
    if not facts.wanted.needs_docker:
        return
    if isinstance(docker, Trouble):
        yield skipped("docker-disk", _NO_DOCKER)
        return
    if docker.disk is None:
        where = "Docker Desktop's virtual machine" if docker.desktop else "a place this user cannot see"
        yield skipped("docker-disk", f"Docker keeps its data in {where} ({docker.root})")
        return
    free_bytes = docker.disk.free_bytes
    there = f"{gib(free_bytes)} free under {docker.root}"
    if docker.image_here is False and free_bytes < docker.image_room_bytes:
        needs = f"fetching the image needs {gib(docker.image_room_bytes)}"
        yield blocked("docker-disk", f"{there}; {needs}", "docker system df; docker image prune")
    elif free_bytes < LOG_ROOM_BYTES:
        evidence = f"{there}; containers' logs and what vLLM compiles go there"
        yield warning("docker-disk", evidence, "docker system df; docker image prune")
    else:
        yield ok("docker-disk", there)


def remedy_for(trouble: Trouble, system: SystemFacts) -> str | None:
    """The command for what Docker, or its absence, said; the hint of the error where there is none."""
    start = "sudo systemctl enable --now docker" if system.systemd else "sudo service docker start"
    restart = "sudo systemctl restart docker" if system.systemd else "sudo service docker restart"
    commands = (
        (r"is not installed", _by_family(_INSTALL, system)),
        (r"^Docker is not running: (?:nobody|there is no)|is not a socket", start),
        (r"says (\S+), and there is no such socket|context '.*' cannot be read|another machine", _LOCAL),
        (r"may not use Docker", "sudo usermod -aG docker $USER && newgrp docker"),
        (r"too old|do not understand each other", _by_family(_INSTALL, system)),
        (r"does not answer|not understood", f"journalctl -u docker -n 50; {restart}"),
    )
    found = (command for pattern, command in commands if re.search(pattern, trouble.message))
    return next(found, None) or trouble.hint


_LOCAL: Final = "unset DOCKER_HOST DOCKER_CONTEXT; docker context use default"


def toolkit_remedy(docker: DockerFacts, system: SystemFacts) -> str:
    """The commands that let Docker give containers the GPU, as far as they are still to be done."""
    if docker.desktop and not system.wsl:
        return "docker context use default  # Docker Desktop on Linux has no GPU: use Docker Engine"
    restart = "sudo systemctl restart docker" if system.systemd else "sudo service docker restart"
    configure = _CONFIGURE_ROOTLESS if docker.rootless else _CONFIGURE + restart
    install = None if system.toolkit else _by_family(_INSTALL_TOOLKIT, system)
    if install is None:
        return configure if system.toolkit else f"install the toolkit ({TOOLKIT_GUIDE}), then: {configure}"
    source = "" if "arch" in system.families else f"  # NVIDIA's package source first: {TOOLKIT_GUIDE}"
    return f"{install} && {configure}{source}"


def _by_family(commands: dict[str, str], system: SystemFacts) -> str | None:
    return next((commands[family] for family in commands if family in system.families), None)


def _unneeded(facts: HostFacts) -> Iterator[Finding]:
    docker = facts.docker
    there = docker.message if isinstance(docker, Trouble) else f"Docker Engine {docker.version} answers"
    yield skipped("docker", f"not needed: engines run as processes of this host ({there})")


def _engine(docker: DockerFacts, facts: HostFacts) -> Finding:
    kind = f"{docker.system} with " if docker.desktop else ""
    by = "" if docker.chosen_by == "Docker's default" else f", by {docker.chosen_by}"
    rootless = ", rootless" if docker.rootless else ""
    said = f"{kind}Docker Engine {docker.version} (API {docker.api}{rootless}) at {docker.url}{by}"
    if docker.desktop and facts.wanted.needs_gpu and not facts.system.wsl:
        evidence = f"{said}: it runs containers in a virtual machine, which has no GPU on Linux"
        return warning("docker", evidence, toolkit_remedy(docker, facts.system))
    if _major(docker.version) < START_INTERVAL_MAJOR:
        said += f"; before version {START_INTERVAL_MAJOR} it looks at a container's health every 30 s only"
    return ok("docker", said)


def _major(version: str) -> int:
    digits = version.partition(".")[0]
    return int(digits) if digits.isdecimal() else START_INTERVAL_MAJOR


def _image(docker: DockerFacts, facts: HostFacts) -> Finding:
    image, engine = facts.wanted.image, facts.wanted.engine
    if image is None:
        evidence = f"engine {engine} has no container image"
        return blocked("image", evidence, f"name one in the catalog: engines.{engine}.image")
    if docker.image_here:
        return ok("image", f"{image} is here")
    return warning("image", f"{image} is not here: the first launch fetches it", f"docker pull {image}")


def _trial(docker: DockerFacts, facts: HostFacts) -> Finding:
    trial = facts.trial
    if not facts.wanted.needs_gpu:
        return skipped("gpu-in-container", _no_gpu(facts))
    if isinstance(trial, str):
        return skipped("gpu-in-container", trial)
    if isinstance(trial, Trouble):
        return warning("gpu-in-container", f"it could not be tried: {trial.message}", trial.hint)
    if trial.refusal is not None:
        remedy = _refusal_remedy(trial.refusal, docker, facts)
        return blocked("gpu-in-container", trial.refusal.message, remedy)
    return ok("gpu-in-container", f"a container of {trial.image} was given the GPU")


def _refusal_remedy(refusal: Trouble, docker: DockerFacts, facts: HostFacts) -> str | None:
    if "cannot give a container an NVIDIA GPU" in refusal.message:
        return toolkit_remedy(docker, facts.system)
    return refusal.hint


def _no_gpu(facts: HostFacts) -> str:
    return f"not needed for {facts.wanted.engine}"
