"""Whether the card is up to the profile's agents, and free for them. Facts in, findings out. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_manager.diagnosis.facts import Trouble
from agent_manager.diagnosis.finding import blocked, gib, listed, ok, skipped, warning
from agent_manager.planning.support import IMAGE_CUDA, LEAST_DRIVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_manager.diagnosis.facts import AgentNeed, CardFacts, HostFacts, SystemFacts
    from agent_manager.diagnosis.finding import Finding
    from agent_manager.gpu.base import GpuFacts, MemoryHolder

DESKTOP_BYTES: Final = 100 << 20
"""An X server on a card that no display hangs on takes less: some megabytes. A desktop takes hundreds."""

UNNAMED: Final = "unknown"
"""What a process is called that this host does not show: another container's, or one that just ended."""

_NO_DESKTOP: Final = (
    "sudo systemctl isolate multi-user.target  # ends the desktop; or plug the display into another GPU"
)
_DRIVER_PAGE: Final = "https://www.nvidia.com/drivers"
_INSTALL_DRIVER: Final = {
    "ubuntu": "sudo ubuntu-drivers install && sudo reboot",
    "debian": "sudo apt-get install -y nvidia-driver && sudo reboot",
    "arch": "sudo pacman -S nvidia-open && sudo reboot",
}
_GPU_CHECKS: Final = ("driver", "compute-capability", "gpu-memory", "desktop")


def judge_card(facts: HostFacts) -> Iterator[Finding]:
    """The GPU, its driver, what it can compute, its memory; for vLLM on the CPU the host's memory."""
    wanted, card = facts.wanted, facts.card
    if wanted.simulated:
        yield skipped("gpu", f"not needed for {wanted.engine}")
        return
    if isinstance(card, Trouble):
        if wanted.needs_gpu:
            yield _no_gpu(card, facts.system)
            yield from (skipped(check, "no GPU can be read") for check in _GPU_CHECKS)
        else:
            yield warning("cpu-memory", card.message, card.hint)
        return
    if not wanted.needs_gpu:
        yield skipped("gpu", f"not needed for {wanted.engine}")
        yield _room("cpu-memory", card, facts.system)
        return
    yield ok("gpu", _named(card))
    if card.gpu is not None:
        yield _driver(card.gpu, facts.system)
        yield _capability(card)
    yield _room("gpu-memory", card, facts.system)
    if card.gpu is not None:
        yield _desktop(card.gpu, facts.system)


def _named(card: CardFacts) -> str:
    return f"{card.card.name}, {gib(card.card.total_bytes)} ({card.card.id})"


def _no_gpu(trouble: Trouble, system: SystemFacts) -> Finding:
    if "no NVIDIA driver" not in trouble.message:
        return blocked("gpu", trouble.message, trouble.hint)
    without = "agent-manager --engine simulated doctor"
    if system.wsl:
        return blocked("gpu", trouble.message, "sudo ldconfig; nvidia-smi" if system.wsl_library else None)
    if system.nvidia_card is False:
        evidence = "there is no NVIDIA GPU in this machine"
        return blocked("gpu", evidence, f"{without}  # or --engine vllm-cpu: engines that need none")
    return blocked("gpu", trouble.message, _install_driver(system))


def _install_driver(system: SystemFacts) -> str:
    known = next((_INSTALL_DRIVER[each] for each in _INSTALL_DRIVER if each in system.families), None)
    return f"{known}  # or from {_DRIVER_PAGE}" if known else f"install NVIDIA's driver: {_DRIVER_PAGE}"


def _driver(gpu: GpuFacts, system: SystemFacts) -> Finding:
    cuda = f", CUDA up to {gpu.cuda_version[0]}.{gpu.cuda_version[1]}" if gpu.cuda_version else ""
    said = f"{gpu.driver_version}{cuda}"
    branch, least = _branch(gpu.driver_version), LEAST_DRIVER[IMAGE_CUDA]
    if branch is None or branch >= least:
        return ok("driver", said)
    remedy = _install_driver(system)
    if system.wsl:
        remedy = f"update the driver in Windows ({_DRIVER_PAGE}), then in Windows: wsl --shutdown"
    return blocked(
        "driver", f"{said}: vLLM is built for CUDA {IMAGE_CUDA}, which needs {least} or newer", remedy
    )


def _capability(card: CardFacts) -> Finding:
    refused = [need for need in card.needs if need.unsupported]
    if not refused:
        capability = card.gpu.compute_capability if card.gpu else None
        if capability is None:
            return skipped("compute-capability", "the driver does not say")
        slower = [f"{need.agent}: {need.slower}" for need in card.needs if need.slower]
        enough = f"{'.'.join(map(str, capability))}, enough for every model of the profile that is known"
        return ok("compute-capability", "; ".join([enough, *slower]))
    evidence = "; ".join(f"{need.agent}: {need.unsupported}" for need in refused)
    remedy = f"give {listed([need.agent for need in refused])} another model in the catalog"
    state = blocked if len(refused) == len(card.needs) else warning
    return state("compute-capability", evidence, remedy)


def _room(check: str, card: CardFacts, system: SystemFacts) -> Finding:
    """Whether the agents fit the card at all, and whether it is free enough for them now."""
    said = f"{gib(card.card.total_bytes)}, {gib(card.card.free_bytes)} free{_held(card)}"
    short = [need for need in card.needs if need.shortfall]
    if short:
        evidence = f"{said}; {'; '.join(str(need.shortfall) for need in short)}"
        state = blocked if len(short) == len(card.needs) else warning
        return state(check, evidence, f"agent-manager plan {' '.join(need.agent for need in short)}")
    available_bytes = _available_bytes(card)
    if available_bytes is None:
        return ok(check, said)
    waiting = [need for need in card.needs if need.start_bytes and need.start_bytes > available_bytes]
    if not waiting:
        return ok(check, said)
    state = blocked if len(waiting) == len(card.needs) else warning
    return state(check, f"{said}; {_needs(waiting)}", _free_it(check, card, system))


def _needs(waiting: list[AgentNeed]) -> str:
    """`architect and dev need 14.76 GiB free to start; po needs 9.00 GiB`."""
    by_size: dict[str, list[str]] = {}
    for need in waiting:
        by_size.setdefault(gib(need.start_bytes or 0), []).append(need.agent)
    said = (
        f"{' and '.join(agents)} {'needs' if len(agents) == 1 else 'need'} {size} free to start"
        for size, agents in by_size.items()
    )
    return "; ".join(said)


def _available_bytes(card: CardFacts) -> int | None:
    """What a swap would find: what is free, and what our own engines will give back. None: they do not say."""
    ours = [holder.used_bytes for holder in card.card.holders if holder.pid in card.ours]
    known = [used_bytes for used_bytes in ours if used_bytes is not None]
    if len(known) < len(ours) or (card.ours and not ours):
        return None
    return card.card.free_bytes + sum(known)


def _held(card: CardFacts) -> str:
    if not card.card.holders:
        return ""
    foreign = [_holder(holder) for holder in card.foreign]
    ours = sum(holder.pid in card.ours for holder in card.card.holders)
    words = (
        [f"{ours} processes of our own engines"] if ours > 1 else ["our own engine"] if ours else []
    ) + foreign
    return f", held by {listed(words)}"


def _holder(holder: MemoryHolder) -> str:
    used = f", {gib(holder.used_bytes)}" if holder.used_bytes is not None else ""
    return f"{holder.name} (pid {holder.pid}{used})"


def _free_it(check: str, card: CardFacts, system: SystemFacts) -> str:
    if check == "cpu-memory":
        return "ps -eo pid,rss,comm --sort=-rss | head"
    if system.wsl:
        return "nvidia-smi  # and the Task Manager of Windows: its programs use the card too"
    drawing = {holder.pid for holder in card.gpu.drawing} if card.gpu else set()
    named = [holder for holder in card.foreign if holder.name != UNNAMED and holder.pid > 1]
    others = [str(holder.pid) for holder in named if holder.pid not in drawing]
    if others:
        return f"kill {' '.join(others)}"
    return _NO_DESKTOP if drawing else "nvidia-smi"


def _desktop(gpu: GpuFacts, system: SystemFacts) -> Finding:
    if system.wsl:
        said = "Windows draws on it too" if gpu.display_active else "no display is on it"
        return ok("desktop", said)
    drawn_bytes = sum(holder.used_bytes or 0 for holder in gpu.drawing)
    who = f": {listed([_holder(holder) for holder in gpu.drawing])}" if gpu.drawing else ""
    if gpu.display_active:
        evidence = f"a display is on this card{who}"
    elif drawn_bytes >= DESKTOP_BYTES:
        evidence = f"a desktop is on this card{who}"
    else:
        return ok("desktop", f"none is on this card{who}")
    return warning(
        "desktop",
        f"{evidence}; its memory comes and goes, and is missing to agents",
        _NO_DESKTOP,
    )


def _branch(version: str) -> int | None:
    """580 of `580.95.05`."""
    digits = version.partition(".")[0]
    return int(digits) if digits.isdecimal() else None
