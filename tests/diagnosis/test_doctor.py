"""Facts of a host in, findings out: what blocks, what is only worth knowing, and what to type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
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
    LostEngine,
    MissingModel,
    ModelFacts,
    Orphan,
    PortFacts,
    SystemFacts,
    Trial,
    Trouble,
    Wanted,
)
from agent_manager.diagnosis.finding import Finding, State
from agent_manager.errors import AgentManagerError, Problem
from agent_manager.gpu.base import GIB, Card, GpuFacts, MemoryHolder
from agent_manager.runtimes.docker.endpoint import find_endpoint
from agent_manager.runtimes.docker.refusals import refused

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


# --- Docker -------------------------------------------------------------------------------------------------------


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


# --- the card -----------------------------------------------------------------------------------------------------


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


# --- the host -----------------------------------------------------------------------------------------------------


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


# --- models and the Hub -------------------------------------------------------------------------------------------


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


# --- ports and leftovers ------------------------------------------------------------------------------------------


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
