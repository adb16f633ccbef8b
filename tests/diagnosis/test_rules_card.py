"""What the doctor says of the card, its driver and who holds its memory."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from agent_manager.diagnosis.facts import (
    SystemFacts,
    Trouble,
)
from agent_manager.diagnosis.finding import State
from agent_manager.gpu.base import GIB, MemoryHolder
from tests.diagnosis.hosts import NEEDS, SYSTEM, WSL, card, found, state

NO_DRIVER = Trouble(message="no NVIDIA driver is loaded on this host", hint="install it")


@pytest.mark.parametrize(
    ("system", "evidence", "remedy"),
    [
        (SYSTEM, "no NVIDIA driver", "sudo ubuntu-drivers install"),
        (
            replace(SYSTEM, families=frozenset({"debian"})),
            "no NVIDIA driver",
            "sudo apt-get install -y nvidia-driver",
        ),
        (replace(SYSTEM, families=frozenset()), "no NVIDIA driver", "https://www.nvidia.com/drivers"),
        (replace(SYSTEM, nvidia_card=False), "there is no NVIDIA GPU in this machine", "--engine simulated"),
        (WSL, "no NVIDIA driver", "ldconfig"),
    ],
)
def test_no_gpu_says_whether_it_is_the_driver_or_the_card_that_is_missing(
    system: SystemFacts, evidence: str, remedy: str
) -> None:
    one = found("gpu", card=NO_DRIVER, system=system)
    assert one.state is State.BLOCKED
    assert evidence in one.evidence
    assert remedy in str(one.remedy)
    assert state("gpu-memory", card=NO_DRIVER, system=system) is State.SKIPPED


def test_a_lost_gpu_keeps_its_own_words() -> None:
    lost = Trouble(message="the GPU is lost", hint="reboot this host")
    assert (found("gpu", card=lost).evidence, found("gpu", card=lost).remedy) == (
        "the GPU is lost",
        "reboot this host",
    )


@pytest.mark.parametrize(
    ("version", "expected"),
    [("580.65.06", State.OK), ("579.99", State.BLOCKED), ("610.1", State.OK), ("535.216.01", State.BLOCKED)],
)
def test_a_driver_older_than_the_images_cuda_blocks(version: str, expected: State) -> None:
    one = found("driver", card=card(driver_version=version))
    assert one.state is expected
    assert bool(one.remedy) is (expected is State.BLOCKED)


def test_on_wsl_the_driver_is_updated_in_windows() -> None:
    assert "in Windows" in str(found("driver", card=card(driver_version="535.1"), system=WSL).remedy)


def test_a_quantization_the_card_cannot_compute() -> None:
    refused_one = replace(NEEDS[0], unsupported="fp8 needs compute capability 8.9, this card has 8.6")
    both = (refused_one, replace(NEEDS[1], unsupported="likewise"))
    assert state("compute-capability", card=replace(card(), needs=(refused_one, NEEDS[1]))) is State.WARNING
    assert state("compute-capability", card=replace(card(), needs=both)) is State.BLOCKED
    assert "dev: fp8 needs" in found("compute-capability", card=replace(card(), needs=both)).evidence


BROWSER = MemoryHolder(pid=12, name="firefox", used_bytes=2 * GIB)


@pytest.mark.parametrize(
    ("free_gib", "expected"),
    [(14.0, State.OK), (13.9, State.WARNING), (9.0, State.WARNING), (8.9, State.BLOCKED)],
)
def test_memory_that_others_hold_blocks_when_no_agent_could_start(free_gib: float, expected: State) -> None:
    one = found("gpu-memory", card=card(free_gib, BROWSER))
    assert one.state is expected
    assert "firefox (pid 12, 2.00 GiB)" in one.evidence
    assert one.remedy == (None if expected is State.OK else "kill 12")


def test_memory_of_our_own_engine_comes_back_with_a_swap() -> None:
    ours = MemoryHolder(pid=7, name="VLLM::EngineCore", used_bytes=14 * GIB)
    one = found("gpu-memory", card=card(1, ours, ours=frozenset({7, 8})))
    assert one.state is State.OK
    assert "held by our own engine" in one.evidence


def test_memory_of_our_own_engine_may_not_be_told_on_wsl() -> None:
    ours = MemoryHolder(pid=7, name="VLLM::EngineCore", used_bytes=None)
    assert state("gpu-memory", card=card(1, ours, ours=frozenset({7})), system=WSL) is State.OK
    assert state("gpu-memory", card=card(1, ours=frozenset({7})), system=WSL) is State.OK
    assert "nvidia-smi" in str(found("gpu-memory", card=card(1), system=WSL).remedy)


def test_an_agent_that_does_not_fit_is_for_plan_to_explain() -> None:
    short = replace(NEEDS[0], start_bytes=None, shortfall="dev needs 17.9 GiB, the card gives 15.0 GiB")
    one = found("gpu-memory", card=replace(card(), needs=(short, NEEDS[1])))
    assert (one.state, one.remedy) == (State.WARNING, "agent-manager plan dev")
    assert state("gpu-memory", card=replace(card(), needs=(short,))) is State.BLOCKED


def test_a_desktop_on_the_card_is_a_warning() -> None:
    shell = MemoryHolder(pid=3, name="gnome-shell", used_bytes=300 << 20)
    idle = MemoryHolder(pid=2, name="Xorg", used_bytes=4 << 20)
    assert state("desktop", card=card(display_active=True)) is State.WARNING
    assert "gnome-shell (pid 3, 0.29 GiB)" in found("desktop", card=card(drawing=(shell, idle))).evidence
    assert state("desktop", card=card(drawing=(shell, idle))) is State.WARNING
    assert state("desktop", card=card(drawing=(idle,))) is State.OK
    assert state("desktop", card=card(display_active=True), system=WSL) is State.OK


def test_nobody_is_told_to_kill_their_desktop() -> None:
    shell = MemoryHolder(pid=3, name="gnome-shell", used_bytes=7 * GIB)
    one = found("gpu-memory", card=card(8, shell, drawing=(shell,)))
    assert one.state is State.BLOCKED
    assert str(one.remedy).startswith("sudo systemctl isolate multi-user.target")


@pytest.mark.parametrize("pid", [1, 4242])
def test_nobody_is_told_to_kill_what_has_no_name_here(pid: int) -> None:
    name = "systemd" if pid == 1 else "unknown"
    one = found("gpu-memory", card=card(8, MemoryHolder(pid=pid, name=name, used_bytes=7 * GIB)))
    assert one.remedy == "nvidia-smi"


def test_agents_of_one_need_are_told_together() -> None:
    assert (
        "dev needs 14.00 GiB free to start; po needs 9.00 GiB" in found("gpu-memory", card=card(1)).evidence
    )
    alike = replace(card(1), needs=(NEEDS[0], replace(NEEDS[1], start_bytes=14 * GIB)))
    assert "dev and po need 14.00 GiB free to start" in found("gpu-memory", card=alike).evidence
