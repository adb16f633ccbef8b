"""What the doctor says of models, the room for them, and the Hub."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from agent_manager.diagnosis.doctor import judge
from agent_manager.diagnosis.facts import (
    HubFacts,
    ModelFacts,
    Trouble,
)
from agent_manager.diagnosis.finding import State
from agent_manager.gpu.base import GIB
from tests.diagnosis.hosts import DISK, DOCKER, LARGE, MODELS, READY, SMALL, found, state


@pytest.mark.parametrize(
    ("free_gib", "complete", "expected"),
    [(16, 0, State.OK), (14, 0, State.WARNING), (4, 0, State.BLOCKED), (4, 1, State.WARNING)],
)
def test_missing_models_need_room(free_gib: float, complete: int, expected: State) -> None:
    disk = replace(DISK, free_bytes=int(free_gib * GIB), device=2)
    models = ModelFacts(disk=disk, complete=complete, missing=(LARGE, SMALL))
    assert state("hub-cache", models=models) is expected
    assert found("models", models=models).remedy == "agent-manager pull"


def test_the_image_and_the_models_may_share_a_disk() -> None:
    disk = replace(DISK, free_bytes=30 * GIB)
    facts = replace(READY, models=ModelFacts(disk=disk, complete=0, missing=(LARGE, SMALL)))
    docker = replace(DOCKER, disk=disk, image_here=False)
    assert state("hub-cache", facts) is State.OK
    assert state("hub-cache", facts, docker=docker) is State.WARNING
    assert state("hub-cache", facts, docker=replace(docker, disk=replace(disk, device=9))) is State.OK


def test_a_size_that_is_not_known_is_not_made_up() -> None:
    models = ModelFacts(disk=DISK, complete=0, missing=(replace(LARGE, size_bytes=None), SMALL))
    assert (
        "5.00 GiB, without 1 of the missing models: how large is not known yet"
        in found("hub-cache", models=models).evidence
    )
    models = ModelFacts(disk=DISK, complete=0, missing=(replace(LARGE, size_bytes=None),))
    assert " 0.00 GiB" not in found("hub-cache", models=models).evidence


def test_a_cache_that_cannot_be_written_matters_while_something_is_missing() -> None:
    disk = replace(DISK, writable=False)
    assert state("hub-cache", models=replace(MODELS, disk=disk)) is State.OK
    assert state("hub-cache", models=ModelFacts(disk=disk, complete=1, missing=(SMALL,))) is State.BLOCKED


def test_a_folder_that_is_no_model_is_told() -> None:
    broken = (Trouble(message="model 'x': there is no folder /x", hint="correct its path"),)
    assert state("models", models=ModelFacts(disk=DISK, complete=0, unusable=broken)) is State.BLOCKED
    report = judge(replace(READY, models=replace(MODELS, unusable=broken)))
    assert [each.state for each in report.findings if each.check == "models"] == [State.WARNING, State.OK]


HUB = "https://huggingface.co"
MISSING = ModelFacts(disk=DISK, complete=1, missing=(SMALL,))


@pytest.mark.parametrize(
    ("hub", "check", "with_all", "with_some"),
    [
        (Trouble(message="the Hub cannot be reached"), "hub", State.WARNING, State.BLOCKED),
        ("HF_HUB_OFFLINE forbids asking the Hub", "hub", State.SKIPPED, State.BLOCKED),
        (HubFacts(endpoint=HUB, token=True, refused=True), "hub-token", State.WARNING, State.BLOCKED),
        (HubFacts(endpoint=HUB, token=True), "hub-token", State.SKIPPED, State.SKIPPED),
        (HubFacts(endpoint=HUB, token=False), "hub-token", State.OK, State.OK),
    ],
)
def test_the_hub_matters_while_something_is_missing(
    hub: HubFacts | Trouble | str, check: str, with_all: State, with_some: State
) -> None:
    assert state(check, hub=hub) is with_all
    assert state(check, hub=hub, models=MISSING) is with_some
