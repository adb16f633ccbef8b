"""What `doctor` knows of a host, as values: read elsewhere, judged in this room. Nothing here does I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from pathlib import Path

    from agent_manager.errors import Problem
    from agent_manager.gpu.base import Card, GpuFacts, MemoryHolder


class Trouble(Struct, frozen=True, kw_only=True):
    """A part of the host that could not be read: why, and what to do in words. Each is one line."""

    message: str
    hint: str | None = None


class Wanted(Struct, frozen=True, kw_only=True):
    """What the host should be ready for.

    `needs_gpu`: the engine lives on an NVIDIA GPU. `image` is what it runs from in a container, `program` what a host
    starts it with. `simulated` engines need no checkpoint.
    """

    engine: str
    runtime: str
    needs_gpu: bool
    simulated: bool
    image: str | None = None
    program: str | None = None
    program_found: bool = True

    @property
    def needs_docker(self) -> bool:
        """Whether engines run in containers."""
        return self.runtime == "docker"


class CatalogFacts(Struct, frozen=True, kw_only=True):
    """The catalog in use. `problems` are all those of a file that cannot be used; then the packaged one is judged."""

    source: str
    profile: str | None
    agents: int
    models: int
    problems: tuple[Problem, ...] = ()


class SystemFacts(Struct, frozen=True, kw_only=True):
    """The machine. `families` are os-release's ID and ID_LIKE, such as {"ubuntu", "debian"}.

    `systemd`: it is what starts services here. `nvidia_card`: None where it cannot be told whether there is one.
    `wsl_library`: on WSL2, whether Windows gives the driver's libraries. `toolkit`: nvidia-ctk is on the PATH.
    """

    name: str
    families: frozenset[str]
    kernel: str
    machine: str
    python: str
    memory_bytes: int | None
    free_memory_bytes: int | None
    systemd: bool
    wsl: bool = False
    wsl_library: bool = False
    nvidia_card: bool | None = None
    toolkit: bool = False


class Disk(Struct, frozen=True, kw_only=True):
    """A folder, or the nearest one above it that exists, and the disk it is on. `device` tells disks apart."""

    folder: Path
    existing: Path
    free_bytes: int
    writable: bool
    device: int


class DockerFacts(Struct, frozen=True, kw_only=True):
    """The Docker that answers, and what is in it.

    `disk` is that of Docker's root, None where it cannot be seen from here (a virtual machine). `image_here` is None
    where the engine has no image, `image_room_bytes` is what fetching it needs. `orphans` are containers that carry
    our labels and that no verb reaches.
    """

    version: str
    api: str
    url: str
    chosen_by: str
    system: str
    rootless: bool
    root: str
    disk: Disk | None
    image_here: bool | None
    image_room_bytes: int = 0
    orphans: tuple[Orphan, ...] = ()

    @property
    def desktop(self) -> bool:
        """Whether it is Docker Desktop, whose containers run in a virtual machine."""
        return self.system == "Docker Desktop"


class Orphan(Struct, frozen=True, kw_only=True):
    """A container with our labels. `why` says what is wrong with it, `running` whether it may hold the card."""

    name: str
    why: str
    running: bool


class Trial(Struct, frozen=True, kw_only=True):
    """A container of `image` was asked to start with the GPU: it did, or Docker refused."""

    image: str
    refusal: Trouble | None = None


class AgentNeed(Struct, frozen=True, kw_only=True):
    """What an agent of the profile needs of the card: free bytes at its start, or why it does not fit at all.

    Both are None where nothing is known of its model yet. `unsupported` is why this GPU cannot compute it, `slower`
    why it does so less well than others.
    """

    agent: str
    start_bytes: int | None = None
    shortfall: str | None = None
    unsupported: str | None = None
    slower: str | None = None


class CardFacts(Struct, frozen=True, kw_only=True):
    """The card: `gpu` says more of it where it is one. `ours` are the processes of our own running instances."""

    card: Card
    gpu: GpuFacts | None = None
    ours: frozenset[int] = frozenset()
    needs: tuple[AgentNeed, ...] = ()

    @property
    def foreign(self) -> tuple[MemoryHolder, ...]:
        """Who holds memory of it and is no engine of ours, largest first."""
        others = (holder for holder in self.card.holders if holder.pid not in self.ours)
        return tuple(sorted(others, key=lambda holder: -(holder.used_bytes or 0)))


class MissingModel(Struct, frozen=True, kw_only=True):
    """A model of the profile that is not (all) on disk. `size_bytes` is None where nothing is known of it."""

    name: str
    size_bytes: int | None


class ModelFacts(Struct, frozen=True, kw_only=True):
    """The profile's checkpoints: how many are complete, what is missing, and what cannot be used as it is."""

    disk: Disk
    complete: int
    missing: tuple[MissingModel, ...] = ()
    unusable: tuple[Trouble, ...] = ()
    largest_bytes: int | None = None
    offload_bytes: int = 0


class HubFacts(Struct, frozen=True, kw_only=True):
    """The Hub answered. `token`: one is sent with each request. `user` is whose, where the Hub says so."""

    endpoint: str
    token: bool
    refused: bool = False
    user: str | None = None


class PortFacts(Struct, frozen=True, kw_only=True):
    """A port that an agent needs. `holder` is who listens there, None when nobody does; `ours`: that agent itself."""

    port: int
    agent: str
    holder: str | None = None
    container: str | None = None
    pid: int | None = None
    ours: bool = False


class LostEngine(Struct, frozen=True, kw_only=True):
    """Processes of an engine of ours that `status` and `stop` cannot see, since its record cannot be read.

    `folder` is the record, None when it is gone altogether. Without `pids` only the record is left.
    """

    instance: str
    folder: Path | None
    pids: tuple[int, ...]


class Leftovers(Struct, frozen=True, kw_only=True):
    """What earlier runs left in the state folder. `ended` are the agents of instances that ended by themselves.

    `harmless` counts what the next launch clears by itself: claims and owners of dead processes, folders half made.
    """

    lost: tuple[LostEngine, ...] = ()
    ended: tuple[str, ...] = ()
    harmless: int = 0
    kept_logs: int = 0
    kept_logs_bytes: int = 0


class HostFacts(Struct, frozen=True, kw_only=True):
    """Everything, part by part; a part that could not be read is a Trouble.

    `trial` and `hub` are texts where they were not looked at: the reason.
    """

    wanted: Wanted
    catalog: CatalogFacts
    system: SystemFacts
    state: Disk
    docker: DockerFacts | Trouble
    trial: Trial | Trouble | str
    card: CardFacts | Trouble
    models: ModelFacts | Trouble
    hub: HubFacts | Trouble | str
    ports: tuple[PortFacts, ...] | Trouble
    leftovers: Leftovers | Trouble
