"""A host that is ready, and what is found on it when a fact is another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from agent_manager.diagnosis.doctor import judge
from agent_manager.diagnosis.facts import (
    AgentNeed,
    CardFacts,
    CatalogFacts,
    Disk,
    DockerFacts,
    HostFacts,
    HubFacts,
    Leftovers,
    MissingModel,
    ModelFacts,
    PortFacts,
    SystemFacts,
    Trial,
    Wanted,
)
from agent_manager.gpu.base import GIB, Card, GpuFacts, MemoryHolder

if TYPE_CHECKING:
    from agent_manager.diagnosis.finding import Finding, State

DISK = Disk(folder=Path("/a"), existing=Path("/a"), free_bytes=500 * GIB, writable=True, device=1)
VLLM = Wanted(
    engine="vllm", runtime="docker", needs_gpu=True, simulated=False, image="vllm:1", program="vllm"
)
SIMULATED = Wanted(engine="simulated", runtime="process", needs_gpu=False, simulated=True)
ON_THE_CPU = replace(VLLM, engine="vllm-cpu", needs_gpu=False)
SYSTEM = SystemFacts(
    name="Ubuntu 24.04",
    families=frozenset({"ubuntu", "debian"}),
    kernel="Linux 6.8.0",
    machine="x86_64",
    python="3.12.3",
    memory_bytes=32 * GIB,
    free_memory_bytes=24 * GIB,
    systemd=True,
    nvidia_card=True,
    toolkit=True,
)
WSL = replace(
    SYSTEM, kernel="Linux 5.15-microsoft-standard-WSL2", wsl=True, wsl_library=True, nvidia_card=None
)
DOCKER = DockerFacts(
    version="28.0.4",
    api="1.48",
    url="unix:///var/run/docker.sock",
    chosen_by="Docker's default",
    system="Ubuntu 24.04",
    rootless=False,
    root="/var/lib/docker",
    disk=replace(DISK, folder=Path("/var/lib/docker")),
    image_here=True,
    image_room_bytes=20 * GIB,
)
GPU = GpuFacts(
    driver_version="580.95.05", cuda_version=(13, 0), compute_capability=(12, 0), display_active=False
)
CARD = Card(id="GPU-1", name="RTX 5060 Ti", total_bytes=15 * GIB, free_bytes=15 * GIB)
NEEDS = (
    AgentNeed(agent="dev", start_bytes=14 * GIB),
    AgentNeed(agent="po", start_bytes=9 * GIB),
)
MODELS = ModelFacts(disk=DISK, complete=2, largest_bytes=10 * GIB)
LARGE = MissingModel(name="large", size_bytes=10 * GIB)
SMALL = MissingModel(name="small", size_bytes=5 * GIB)
READY = HostFacts(
    wanted=VLLM,
    catalog=CatalogFacts(source="/models.yaml", profile=None, agents=2, models=2),
    system=SYSTEM,
    state=DISK,
    docker=DOCKER,
    trial=Trial(image="vllm:1"),
    card=CardFacts(card=CARD, gpu=GPU, needs=NEEDS),
    models=MODELS,
    hub=HubFacts(endpoint="https://huggingface.co", token=True, user="me"),
    ports=(
        PortFacts(port=8000, agent="dev"),
        PortFacts(port=8001, agent="po"),
        PortFacts(port=8100, agent="dev"),
    ),
    leftovers=Leftovers(),
)


def found(check: str, facts: HostFacts = READY, **changes: Any) -> Finding:  # noqa: ANN401 - any field
    """The one finding of a check."""
    (one,) = (each for each in judge(replace(facts, **changes)).findings if each.check == check)
    return one


def state(check: str, facts: HostFacts = READY, **changes: Any) -> State:  # noqa: ANN401 - any field
    return found(check, facts, **changes).state


def card(
    free_gib: float = 15,
    *holders: MemoryHolder,
    ours: frozenset[int] = frozenset(),
    **gpu: Any,  # noqa: ANN401 - any field
) -> CardFacts:
    """The card with so much free, and these holders."""
    read = replace(CARD, free_bytes=int(free_gib * GIB), holders=holders)
    return CardFacts(card=read, gpu=replace(GPU, **gpu), needs=NEEDS, ours=ours)
