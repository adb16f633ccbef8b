"""Everything that can go wrong, as one tree. An error says what, where and what to do next.

    AgentManagerError                 exit  code
    ├── UsageError                       2  usage
    │   ├── AgentUnknown                 2  agent_unknown
    │   ├── CatalogInvalid               2  catalog_invalid
    │   └── NotYet                       2  not_yet
    ├── DoesNotFit                       3  does_not_fit
    │   └── MemoryHeld                   3  memory_held
    ├── HostNotReady                     4  host_not_ready
    │   ├── NoGpu                        4  no_gpu
    │   ├── DockerNotReady               4  docker_not_ready
    │   ├── EngineMissing                4  engine_missing
    │   ├── PortInUse                    4  port_in_use
    │   └── StateUnusable                4  state_unusable
    ├── OperationFailed                  1  operation_failed
    │   ├── EngineFailed                 1  engine_failed
    │   │   └── EngineKilled             1  engine_failed
    │   ├── CheckpointUnusable           1  checkpoint_unusable
    │   └── DownloadFailed               1  download_failed
    ├── NotRunning                       5  not_running
    ├── CardBusy                         6  card_busy
    └── Interrupted                    130  interrupted

Messages are lowercase, one line, without a final period; the hint is a line of its own. Only `cli/app.py`
turns an error into an exit code.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct


class AgentManagerError(Exception):
    """The root. `message`: what went wrong, one line; `hint`: what to do next; `where`: the place, if any."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where


class UsageError(AgentManagerError):
    """The command line or a file the user wrote cannot be understood."""

    code = "usage"
    exit_code = 2


class AgentUnknown(UsageError):
    """No agent of that name in the catalog."""

    code = "agent_unknown"


class Problem(Struct, frozen=True, kw_only=True):
    """One thing wrong in a file: `line` counts from 1; `path` is dotted, such as `agents.dev.context`."""

    file: str
    line: int
    path: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.path}: {self.message}"


class CatalogInvalid(UsageError):
    """The catalog has problems; all of them, in the order of the file."""

    code = "catalog_invalid"

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{problems[0].file}: {count}", where=problems[0].path)
        self.problems = problems


class NotYet(UsageError):
    """Asked for something that is planned and not built."""

    code = "not_yet"


class DoesNotFit(AgentManagerError):
    """The card is too small for the agent as declared."""

    code = "does_not_fit"
    exit_code = 3


class MemoryHeld(DoesNotFit):
    """The card is large enough, but others hold its memory."""

    code = "memory_held"


class HostNotReady(AgentManagerError):
    """This machine lacks something the operation needs."""

    code = "host_not_ready"
    exit_code = 4


class NoGpu(HostNotReady):
    """No GPU can be read here, and no other engine was chosen."""

    code = "no_gpu"


class DockerNotReady(HostNotReady):
    """Docker is not installed, does not run, or cannot do what was asked of it."""

    code = "docker_not_ready"


class EngineMissing(HostNotReady):
    """The engine's program, or the image that holds it, is not here."""

    code = "engine_missing"


class PortInUse(HostNotReady):
    """Somebody else listens where the agent should."""

    code = "port_in_use"


class StateUnusable(HostNotReady):
    """The state folder cannot be read or written."""

    code = "state_unusable"


class OperationFailed(AgentManagerError):
    """What was asked for was tried, and failed."""

    code = "operation_failed"


class EngineFailed(OperationFailed):
    """An engine did not start, or died."""

    code = "engine_failed"


class EngineKilled(EngineFailed):
    """Somebody else killed it while it loaded: nothing says that it would not start again."""


class CheckpointUnusable(OperationFailed):
    """A model's files are missing, incomplete or not what an engine can load."""

    code = "checkpoint_unusable"


class DownloadFailed(OperationFailed):
    """A checkpoint could not be fetched."""

    code = "download_failed"


class NotRunning(AgentManagerError):
    """The operation needs an agent that serves, and it does not."""

    code = "not_running"
    exit_code = 5


class CardBusy(AgentManagerError):
    """Another process owns the card."""

    code = "card_busy"
    exit_code = 6


class Interrupted(AgentManagerError):
    """The user interrupted; what was under way was undone."""

    code = "interrupted"
    exit_code = 130
