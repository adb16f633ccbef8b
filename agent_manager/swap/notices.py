"""What a swap tells while it is under way, and what it returns when it is done. Values only."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

from agent_manager.checkpoints.fetching.progress import FileProgress  # noqa: TC001 - msgspec decodes notices
from agent_manager.engines.base import Phase  # noqa: TC001 - likewise

if TYPE_CHECKING:
    from datetime import datetime

    from agent_manager.gpu.base import Card
    from agent_manager.planning.base import Fit


class Step(StrEnum):
    """The steps of a swap, as a person reads them."""

    PULLING = "pulling"
    VERIFYING = "verifying"
    DRAINING = "draining"
    STOPPING = "stopping"
    WAITING_FOR_MEMORY = "waiting for memory"
    STARTING = "starting"
    LOADING = "loading"
    CHECKING = "checking"
    """The engine is up; it has to answer one completion."""


class StepBegan(Struct, frozen=True, kw_only=True, tag=True):
    """A step began.

    `expected_s`: how long the load took last time, for LOADING. `restoring`: a failed swap is
    being undone, `agent` is the one that goes back on the card.
    """

    step: Step
    agent: str
    expected_s: float | None = None
    restoring: bool = False


class LoadProgress(Struct, frozen=True, kw_only=True, tag=True):
    """The engine's log announced a phase of its load."""

    agent: str
    phase: Phase


class PullProgress(Struct, frozen=True, kw_only=True, tag=True):
    """A checkpoint or an image is being fetched; `total_bytes` is what this pull has to fetch, `files` each of it."""

    model: str
    done_bytes: int
    total_bytes: int
    files: tuple[FileProgress, ...] = ()


class ReadProgress(Struct, frozen=True, kw_only=True, tag=True):
    """Files are being read and compared; `subject` is a model, or says that there are several."""

    subject: str
    done_bytes: int
    total_bytes: int


class Remark(Struct, frozen=True, kw_only=True, tag=True):
    """One line that a person should see, such as what is being waited for. `warning` for what went wrong."""

    message: str
    warning: bool = False


Notice: TypeAlias = StepBegan | LoadProgress | PullProgress | ReadProgress | Remark
Listener: TypeAlias = Callable[[Notice], None]


class LaunchResult(Struct, frozen=True, kw_only=True):
    """The agent is on the card and answered a completion. `ready_after_s` None: it was running already."""

    agent: str
    instance_id: str
    base_url: str
    engine: str
    runtime: str
    model: str
    card: str
    simulated: bool
    ready_after_s: float | None
    replaced: tuple[str, ...]
    already_running: bool


class StopResult(Struct, frozen=True, kw_only=True):
    """The agents that were taken off the card."""

    stopped: tuple[str, ...]


class ReloadResult(Struct, frozen=True, kw_only=True):
    """The gateway has read its catalog anew: agents that came, went, or are served with other settings."""

    catalog: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


class PlannedStep(Struct, frozen=True, kw_only=True):
    """One operation that would be done, and why: `drain po: it is on the card that dev needs`."""

    verb: str
    subject: str
    cause: str


class LaunchPlan(Struct, frozen=True, kw_only=True):
    """What a launch would do, in order, and how the agent fits; `argv` is the engine's command.

    `fit` is None and `argv` empty while nothing is known of a checkpoint that is yet to be pulled.
    """

    agent: str
    engine: str
    runtime: str
    card: str
    fit: Fit | None
    argv: tuple[str, ...]
    steps: tuple[PlannedStep, ...]


class AgentState(StrEnum):
    """What an agent is doing, seen from outside."""

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    ASLEEP = "asleep"
    STOPPING = "stopping"
    FAILED = "failed"


class AgentStatus(Struct, frozen=True, kw_only=True):
    """One agent of the catalog. For an absent one `engine` and `runtime` are what launch would choose.

    `claim_bytes` is the memory of the card that its instance was given, while it runs.
    """

    name: str
    state: AgentState
    engine: str
    runtime: str
    model: str
    port: int
    engine_port: int
    base_url: str | None = None
    instance_id: str | None = None
    started_at: datetime | None = None
    ready_after_s: float | None = None
    claim_bytes: int | None = None
    phase: str | None = None
    cause: str | None = None
    """Why it failed, for FAILED."""
    requests_running: int | None = None
    requests_waiting: int | None = None
    """Its requests at the gateway, under one."""


class Owner(Struct, frozen=True, kw_only=True):
    """Who holds a card's lock. `step` and `agent` are what a swap is at, if it has begun."""

    pid: int
    kind: str
    verb: str
    step: str | None = None
    agent: str | None = None


class StatusReport(Struct, frozen=True, kw_only=True):
    """The whole picture: the card of what runs (None: nothing runs), its owner, every agent of the catalog.

    `notes`: what could not be read, one line each, such as a runtime that does not answer.
    """

    card: Card | None
    owner: Owner | None
    agents: tuple[AgentStatus, ...]
    notes: tuple[str, ...] = ()
