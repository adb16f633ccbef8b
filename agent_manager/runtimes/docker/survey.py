"""What there is in a Docker, and whether it gives a container the GPU. Leaves everything as it was."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from agent_manager.compose import AGENT_LABEL
from agent_manager.errors import EngineMissing
from agent_manager.runtimes.docker.body import Creation
from agent_manager.runtimes.docker.client import ConflictError, GoneError
from agent_manager.runtimes.docker.records import STATE_LABEL, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent_manager.runtimes.base import InstanceSpec
    from agent_manager.runtimes.docker.client import DockerClient, Json

TRIAL_LABEL: Final = "io.agent-manager.trial"
"""On the container that tries the GPU: should its removal be cut off, it is found by this."""
_ROOTLESS: Final = "name=rootless"


class Survey(Struct, frozen=True, kw_only=True):
    """A Docker that answers. `system` is the name of what it runs on, `root` its data folder, as it sees it.

    `trial_image` is what a container can be tried with: the engine's image, else the smallest there is. `published`
    are the ports of the host that running containers have, with their names.
    """

    version: str
    api: str
    system: str
    rootless: bool
    root: str
    image_here: bool | None
    trial_image: str | None
    containers: tuple[Labelled, ...]
    published: Mapping[int, str]


class Labelled(Struct, frozen=True, kw_only=True):
    """A container with labels of ours. `state` is the state folder it says it belongs to, if it does.

    `spec` is the instance it holds, None where that cannot be read off it; `pids` its processes on this host.
    """

    name: str
    running: bool
    ended: bool
    trial: bool
    state: str | None
    spec: InstanceSpec | None
    pids: frozenset[int]


def survey(docker: DockerClient, image: str | None) -> Survey:
    """Ask Docker for what `image` needs and what is there. Blocks; raises DockerNotReady, OperationFailed."""
    version, info = docker.version(), docker.info()
    containers = docker.containers()
    here = None if image is None else docker.has_image(image)
    return Survey(
        version=str(version["Version"]),
        api=str(version["ApiVersion"]),
        system=str(info.get("OperatingSystem") or ""),
        rootless=_ROOTLESS in (info.get("SecurityOptions") or ()),
        root=str(info["DockerRootDir"]),
        image_here=here,
        trial_image=image if here else _smallest(docker.images()),
        containers=tuple(_labelled(docker, each) for each in containers if _is_ours(each)),
        published={
            int(port["PublicPort"]): _name(each)
            for each in containers
            for port in each.get("Ports") or ()
            if port.get("PublicPort")
        },
    )


def try_gpu(docker: DockerClient, image: str, gpu: str) -> None:
    """Start a container of `image` that asks for the GPU as an engine's does, and runs `true`; then remove it.

    Blocks for as long as Docker takes, a second or two with a GPU. Raises what Docker's refusal means. The container
    is removed in any case but the end of this process; `survey` finds it then.
    """
    name = f"agent-manager-trial-{os.urandom(4).hex()}"
    try:
        docker.create(Creation(name=name, config=_trial(image, gpu), volumes={}))
        with suppress(EngineMissing):  # the GPU was given, the image has no `true`
            docker.start(name)
    finally:
        with suppress(ConflictError, GoneError):  # its removal is under way, or it was never made
            docker.remove(name, kill=True)


def _trial(image: str, gpu: str) -> dict[str, Any]:
    """As in an engine's compose document: what decides whether the GPU is given, and no network, no output."""
    return {
        "Image": image,
        "Entrypoint": ["true"],
        "Cmd": [],
        "Labels": {TRIAL_LABEL: "gpu"},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": "none",
            "LogConfig": {"Type": "none"},
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "DeviceRequests": [{"Driver": "nvidia", "DeviceIDs": [gpu], "Capabilities": [["gpu"]]}],
        },
    }


def _smallest(images: Iterable[Json]) -> str | None:
    named = [each for each in images if any(tag != "<none>:<none>" for tag in each.get("RepoTags") or ())]
    smallest = min(named, key=lambda each: int(each.get("Size") or 0), default=None)
    return None if smallest is None else str(smallest["RepoTags"][0])


def _is_ours(summary: Json) -> bool:
    labels = summary.get("Labels") or {}
    return any(label in labels for label in (AGENT_LABEL, STATE_LABEL, TRIAL_LABEL))


def _labelled(docker: DockerClient, summary: Json) -> Labelled:
    labels = summary.get("Labels") or {}
    running = summary.get("State") == "running"
    return Labelled(
        name=_name(summary),
        running=running,
        ended=summary.get("State") in {"exited", "dead"},
        trial=TRIAL_LABEL in labels,
        state=labels.get(STATE_LABEL),
        spec=spec_of(labels),
        pids=_processes(docker, str(summary["Id"])) if running else frozenset(),
    )


def _processes(docker: DockerClient, container: str) -> frozenset[int]:
    with suppress(ConflictError, GoneError):  # it ended meanwhile
        return frozenset(docker.processes(container))
    return frozenset()


def _name(summary: Json) -> str:
    names = summary.get("Names") or ("/" + str(summary["Id"])[:12],)
    return str(names[0]).lstrip("/")
