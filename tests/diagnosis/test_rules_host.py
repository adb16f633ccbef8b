"""What the doctor says of the catalog, the system, the state folder, ports and what was left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from agent_manager.diagnosis.doctor import judge
from agent_manager.diagnosis.facts import (
    Leftovers,
    LostEngine,
    Orphan,
    PortFacts,
    Trouble,
)
from agent_manager.diagnosis.finding import State
from agent_manager.errors import Problem
from agent_manager.gpu.base import GIB
from tests.diagnosis.hosts import DISK, DOCKER, MODELS, READY, SYSTEM, VLLM, WSL, found, state


def test_the_catalogs_problems_block_and_name_the_line() -> None:
    problem = Problem(file="/models.yaml", line=7, path="agents.dev.port", message="8000 is po's")
    one = found("catalog", catalog=replace(READY.catalog, problems=(problem, problem)))
    assert one.state is State.BLOCKED
    assert one.evidence.startswith("/models.yaml:7: agents.dev.port: 8000 is po's (and 1 more)")
    assert str(one.remedy).endswith("+7 /models.yaml")


def test_wsl_without_windows_driver_blocks() -> None:
    one = found("wsl", system=replace(WSL, wsl_library=False))
    assert one.state is State.BLOCKED
    assert "in Windows" in str(one.remedy)
    assert "wsl" not in [each.check for each in judge(READY).findings]


def test_weights_that_stay_in_host_memory_must_fit_there() -> None:
    offloading = replace(MODELS, offload_bytes=8 * GIB)
    small = replace(SYSTEM, memory_bytes=6 * GIB, free_memory_bytes=5 * GIB)
    busy = replace(SYSTEM, free_memory_bytes=5 * GIB)
    assert state("memory", models=offloading) is State.OK
    assert state("memory", models=offloading, system=small) is State.BLOCKED
    assert state("memory", models=offloading, system=busy) is State.WARNING
    assert state("memory", system=small) is State.WARNING, "the largest checkpoint is larger"
    assert ".wslconfig" in str(found("memory", system=replace(small, wsl=True, wsl_library=True)).remedy)


def test_a_program_that_is_not_installed_blocks_where_engines_are_processes() -> None:
    wanted = replace(VLLM, runtime="process", program_found=False, image="vllm/vllm-openai:v0.32.0")
    one = found("engine", wanted=wanted)
    assert (one.state, one.remedy) == (State.BLOCKED, "uv tool install vllm==0.32.0")
    assert (
        found("engine", wanted=replace(wanted, program="/opt/v")).remedy
        == "correct engines.vllm.command in the catalog"
    )
    assert state("engine", wanted=replace(wanted, program_found=True)) is State.OK


def test_a_state_folder_that_cannot_be_written_blocks() -> None:
    one = found("state-folder", state=replace(DISK, folder=Path("/a/b"), writable=False))
    assert (one.state, one.remedy) == (State.BLOCKED, "sudo chown -R $USER /a")
    assert state("state-folder", state=replace(DISK, free_bytes=1000)) is State.WARNING


def test_free_ports_are_told_in_short() -> None:
    assert found("ports").evidence == "8000-8001, 8100 free"


@pytest.mark.parametrize(
    ("port", "evidence", "remedy"),
    [
        (
            PortFacts(port=8000, agent="dev", holder="nginx (pid 5)", pid=5),
            "port 8000, which dev needs, is in use by nginx (pid 5)",
            "kill 5",
        ),
        (
            PortFacts(port=8000, agent="dev", holder="container web", container="web"),
            "port 8000, which dev needs, is in use by container web",
            "docker stop web",
        ),
        (
            PortFacts(port=8000, agent="dev", holder="a process of another user"),
            "port 8000, which dev needs, is in use by a process of another user",
            "sudo ss -ltnp 'sport = :8000'",
        ),
    ],
)
def test_a_port_that_somebody_has_blocks_and_names_who(port: PortFacts, evidence: str, remedy: str) -> None:
    one = found("ports", ports=(port,))
    assert (one.state, one.evidence) == (State.BLOCKED, evidence)
    assert str(one.remedy).startswith(f"{remedy}  #")


def test_a_port_of_our_own_engine_is_as_it_should_be() -> None:
    one = found("ports", ports=(PortFacts(port=8000, agent="dev", holder="its own engine", ours=True),))
    assert (one.state, one.evidence) == (State.OK, "those of dev used by its own engine")


def test_an_engine_that_nobody_sees_blocks_with_the_way_to_end_it() -> None:
    lost = LostEngine(instance="dev-1", folder=Path("/s/dev-1"), pids=(5, 6))
    one = found("lost-engine", leftovers=Leftovers(lost=(lost,)))
    assert (one.state, one.remedy) == (State.BLOCKED, "kill -9 5 6; rm -r /s/dev-1")
    assert "pid 5, 6" in one.evidence
    gone = found("lost-engine", leftovers=Leftovers(lost=(replace(lost, folder=None),)))
    assert gone.remedy == "kill -9 5 6"
    dead = found("lost-engine", leftovers=Leftovers(lost=(replace(lost, pids=()),)))
    assert (dead.state, dead.remedy) == (State.WARNING, "rm -r /s/dev-1")


def test_what_is_left_is_told_and_blocks_nothing() -> None:
    orphan = Orphan(
        name="agent-manager-x", why="belongs to the state folder /gone, which is gone", running=True
    )
    left = Leftovers(ended=("dev",), harmless=3, kept_logs=2, kept_logs_bytes=2_500_000)
    facts = replace(READY, leftovers=left, docker=replace(DOCKER, orphans=(orphan,)))
    assert judge(facts).ready
    assert found("containers", facts).remedy == "docker rm -f agent-manager-x"
    assert found("ended", facts).state is State.WARNING
    assert (
        found("leftovers", facts).evidence == "2 kept logs, 2.5 MB; 3 stale files, cleared by the next launch"
    )


def test_a_part_that_could_not_be_read_is_told() -> None:
    trouble = Trouble(message="it did not answer within 8 s")
    facts = replace(READY, ports=trouble, leftovers=trouble, models=trouble)
    assert judge(facts).ready
    assert {state(check, facts) for check in ("ports", "leftovers", "models")} == {State.WARNING}
