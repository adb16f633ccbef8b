"""Facts of a host in, findings out: what blocks, what is only worth knowing, and what to type."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from agent_manager.diagnosis.doctor import judge
from agent_manager.diagnosis.facts import (
    CardFacts,
    Trouble,
    Wanted,
)
from agent_manager.diagnosis.finding import State
from tests.diagnosis.hosts import CARD, LARGE, MODELS, ON_THE_CPU, READY, SIMULATED, found, state


def test_a_host_that_lacks_nothing_is_ready() -> None:
    report = judge(READY)
    assert report.ready
    assert {each.state for each in report.findings} == {State.OK}
    assert not [each for each in report.findings if each.remedy]
    assert report.purpose == "vllm in containers"
    assert [group.name for group in report.groups] == [
        "Host",
        "Docker",
        "Card",
        "Disk",
        "Hub",
        "Ports",
        "Leftovers",
    ]


def test_checks_are_told_once() -> None:
    checks = [each.check for each in judge(READY).findings]
    assert len(checks) == len(set(checks))


def test_without_docker_what_needs_it_is_skipped() -> None:
    report = judge(
        replace(READY, docker=Trouble(message="Docker is not installed"), trial="Docker does not answer")
    )
    states = {each.check: each.state for each in report.findings}
    assert not report.ready
    assert states["docker"] is State.BLOCKED
    assert {states["image"], states["gpu-in-container"], states["docker-disk"]} == {State.SKIPPED}


@pytest.mark.parametrize("wanted", [SIMULATED, replace(ON_THE_CPU, runtime="process")])
def test_what_is_not_needed_blocks_nothing(wanted: Wanted) -> None:
    facts = replace(
        READY,
        wanted=wanted,
        docker=Trouble(message="Docker is not installed"),
        trial="not needed",
        card=CardFacts(card=CARD),
    )
    report = judge(facts)
    assert report.ready
    assert found("docker", facts).state is State.SKIPPED
    assert found("gpu", facts).state is State.SKIPPED


def test_simulated_engines_need_neither_models_nor_the_hub_nor_a_card() -> None:
    facts = replace(
        READY,
        wanted=SIMULATED,
        card=Trouble(message="no NVIDIA driver is loaded on this host"),
        models=replace(MODELS, complete=0, missing=(LARGE,)),
        hub="not needed for simulated",
        docker=Trouble(message="Docker is not installed"),
    )
    assert judge(facts).ready
    assert {state("models", facts), state("hub", facts), state("gpu", facts)} == {State.SKIPPED}
