"""Whether the profile's checkpoints are here, or can come here: disk and Hub. Facts in, findings out. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_manager.diagnosis.facts import DockerFacts, HubFacts, ModelFacts, Trouble
from agent_manager.diagnosis.finding import blocked, gib, listed, ok, skipped, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_manager.diagnosis.facts import Disk, HostFacts
    from agent_manager.diagnosis.finding import Finding


def judge_models(facts: HostFacts) -> Iterator[Finding]:
    """The checkpoints, and the disk under the Hub cache."""
    models = facts.models
    if facts.wanted.simulated:
        yield skipped("models", "a simulated engine needs no checkpoint")
        return
    if isinstance(models, Trouble):
        yield warning("models", f"not looked at: {models.message}", models.hint)
        return
    for trouble in models.unusable:
        state = warning if models.complete or models.missing else blocked
        yield state("models", trouble.message, trouble.hint)
    if models.missing:
        names = listed([each.name for each in models.missing])
        evidence = f"{models.complete} of {models.complete + len(models.missing)} here; missing: {names}"
        yield warning("models", evidence, "agent-manager pull")
    elif models.complete:
        yield ok("models", f"{models.complete} here, complete")
    yield _room(models, facts)


def _room(models: ModelFacts, facts: HostFacts) -> Finding:
    disk = models.disk
    said = f"{gib(disk.free_bytes)} free under {disk.folder}"
    known = [each.size_bytes for each in models.missing if each.size_bytes is not None]
    if not models.missing:
        return ok("hub-cache", said)
    if not disk.writable:
        evidence = f"this user cannot write {disk.folder}, and models are missing there"
        return blocked("hub-cache", evidence, f"sudo chown -R $USER {disk.existing}")
    needed_bytes, image_bytes = sum(known), _image_bytes(disk, facts)
    unknown = len(models.missing) - len(known)
    for_what = f"the missing models need {gib(needed_bytes)}"
    if unknown:
        rest = f"{unknown} of the missing models: how large is not known yet"
        for_what = f"{for_what}, without {rest}" if known else rest
    if image_bytes:
        for_what += f" and the image, on the same disk, {gib(image_bytes)}"
    if known and min(known) > disk.free_bytes and not models.complete:
        return blocked("hub-cache", f"{said}; {for_what}", _LARGER)
    if needed_bytes + image_bytes > disk.free_bytes:
        return warning("hub-cache", f"{said}; {for_what}", _LARGER)
    return ok("hub-cache", f"{said}; {for_what}")


_LARGER = "export HF_HUB_CACHE=/path/on/a/larger/disk  # or free some: agent-manager models; docker system df"


def _image_bytes(hub: Disk, facts: HostFacts) -> int:
    """What fetching the image will take of the very disk the Hub cache is on."""
    docker = facts.docker
    if not isinstance(docker, DockerFacts) or not facts.wanted.needs_docker or docker.image_here is not False:
        return 0
    return docker.image_room_bytes if docker.disk and docker.disk.device == hub.device else 0


def judge_hub(facts: HostFacts) -> Iterator[Finding]:
    """Can what is missing be fetched."""
    hub, models = facts.hub, facts.models
    missing = not facts.wanted.simulated and isinstance(models, ModelFacts) and bool(models.missing)
    unless_missing = blocked if missing else warning
    match hub:
        case str(reason):
            if missing:
                evidence = f"{reason}, and models are missing"
                yield blocked("hub", evidence, "unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE")
            else:
                yield skipped("hub", reason)
        case Trouble():
            yield unless_missing("hub", hub.message, hub.hint)
            yield skipped("hub-token", "the Hub does not answer")
        case HubFacts(token=False):
            yield ok("hub", f"{hub.endpoint} answers")
            yield ok("hub-token", "none; only gated and private models ask for one")
        case HubFacts(refused=True):
            yield ok("hub", f"{hub.endpoint} answers")
            evidence = f"{hub.endpoint} refuses the token it is sent: expired, or not one of its own"
            yield unless_missing(
                "hub-token", evidence, "hf auth login  # or, if HF_TOKEN is set: unset HF_TOKEN"
            )
        case HubFacts(user=None):
            yield ok("hub", f"{hub.endpoint} answers")
            yield skipped("hub-token", "the Hub does not say whose it is")
        case HubFacts():
            yield ok("hub", f"{hub.endpoint} answers")
            yield ok("hub-token", f"valid, of {hub.user}")
