"""Docker, looked at for `doctor`: does it answer, what is in it, does a container get the GPU."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field
from msgspec.structs import replace

from agent_manager.diagnosis.facts import DockerFacts, Orphan, Trial, Trouble
from agent_manager.errors import AgentManagerError
from agent_manager.runtimes.docker.client import DockerClient
from agent_manager.runtimes.docker.endpoint import find_endpoint
from agent_manager.runtimes.docker.images import ROOM_BYTES
from agent_manager.runtimes.docker.records import Notes
from agent_manager.runtimes.docker.survey import survey, try_gpu
from agent_manager.runtimes.threads import to_the_end
from agent_manager.swap.surroundings import disk_of
from agent_manager.swap.within import within

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent_manager.diagnosis.facts import Wanted
    from agent_manager.runtimes.base import InstanceSpec
    from agent_manager.runtimes.docker.endpoint import Endpoint
    from agent_manager.runtimes.docker.survey import Labelled, Survey
    from agent_manager.swap.host import Host

_ANSWER_S: Final = 4.0
"""How long Docker may be silent."""
_START_S: Final = 8.0
"""How long it may take to start the container that tries the GPU: a card that slept takes seconds."""
_SILENT: Final = "Docker does not answer"
_FIRST_GPU: Final = "0"


class Box(Struct, frozen=True, kw_only=True):
    """A container of this state folder. `ended`: it ran and nobody stopped it."""

    spec: InstanceSpec | None
    running: bool
    ended: bool
    pids: frozenset[int]


class DockerLook(Struct, frozen=True, kw_only=True):
    """What was seen. `published` are ports of the host that containers have, with their names."""

    facts: DockerFacts | Trouble
    trial: Trial | Trouble | str
    containers: tuple[Box, ...] = ()
    published: Mapping[int, str] = field(default_factory=dict)


async def look_at_docker(host: Host, wanted: Wanted) -> DockerLook:
    """Ask Docker, then try the GPU in a container where one is needed and an image is here. Never raises ours."""
    try:
        endpoint = find_endpoint(host.environ)
    except AgentManagerError as error:
        return DockerLook(facts=Trouble(message=error.message, hint=error.hint), trial=_SILENT)
    seen = await within("Docker", partial(_ask, host, wanted, endpoint))
    if isinstance(seen, Trouble):
        return DockerLook(facts=seen, trial=_SILENT)
    survey_, look = seen
    return replace(look, trial=await _trial(host, wanted, endpoint, survey_))


def _ask(host: Host, wanted: Wanted, endpoint: Endpoint) -> tuple[Survey, DockerLook]:
    """What there is, the trial still open. Blocks; raises DockerNotReady."""
    client = DockerClient(endpoint, timeout_s=_ANSWER_S)
    try:
        seen = survey(client, wanted.image)
    finally:
        client.close()
    root = os.path.realpath(host.state.root)
    return seen, DockerLook(
        facts=_facts(seen, endpoint, root),
        trial="not tried yet",
        containers=tuple(_boxes(seen, root, Notes(host.state.containers))),
        published=seen.published,
    )


async def _trial(host: Host, wanted: Wanted, endpoint: Endpoint, seen: Survey) -> Trial | Trouble | str:
    """Give a container the GPU. It takes at most twice `_START_S`, and is waited for even when cancelled."""
    if not wanted.needs_gpu or not wanted.needs_docker:
        return f"not needed for {wanted.engine}"
    if seen.trial_image is None:
        return "there is no image to try it with: the first launch will show"
    client = DockerClient(endpoint, timeout_s=_START_S)
    try:
        gpu = host.environ.get("AGENT_MANAGER_GPU") or _FIRST_GPU
        await to_the_end(try_gpu, client, seen.trial_image, gpu)
    except AgentManagerError as error:
        trouble = Trouble(message=error.message, hint=error.hint)
        return trouble if _SILENT in error.message else Trial(image=seen.trial_image, refusal=trouble)
    finally:
        client.close()
    return Trial(image=seen.trial_image)


def _facts(seen: Survey, endpoint: Endpoint, root: str) -> DockerFacts:
    disk = None
    with suppress(OSError):
        disk = disk_of(Path(seen.root))
    facts = DockerFacts(
        version=seen.version,
        api=seen.api,
        url=endpoint.url,
        chosen_by=endpoint.chosen_by,
        system=seen.system,
        rootless=seen.rootless,
        root=seen.root,
        disk=disk if disk and disk.existing == disk.folder else None,  # else it is not ours to look into
        image_here=seen.image_here,
        image_room_bytes=ROOM_BYTES,
        orphans=tuple(
            Orphan(name=each.name, why=why, running=each.running)
            for each in seen.containers
            if (why := _orphaned(each, root))
        ),
    )
    return (
        replace(facts, disk=None) if facts.desktop else facts
    )  # a folder of its virtual machine, not of ours


def _orphaned(container: Labelled, root: str) -> str | None:
    """Why no verb, with this state folder or another that is there, reaches a container; None if one does."""
    if container.trial:
        return "was made by 'doctor', which was killed before it could remove it"
    if container.state is None:
        return "was made by docker compose, not by launch: status does not show it"
    if container.state == root:
        return None if container.spec else "is ours, but what it holds cannot be read off its labels"
    with suppress(OSError):  # another user's folder: it is there
        if not Path(container.state).exists():
            return f"belongs to the state folder {container.state}, which is gone"
    return None


def _boxes(seen: Survey, root: str, notes: Notes) -> Iterator[Box]:
    for each in seen.containers:
        if each.state == root:
            note = notes.read(each.spec.id) if each.spec else None
            stopped = note is not None and note.stop_requested
            yield Box(spec=each.spec, running=each.running, ended=each.ended and not stopped, pids=each.pids)
