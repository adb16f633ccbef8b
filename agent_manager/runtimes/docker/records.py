"""What a container says of its instance, and the little that Docker does not know. Labels are the record.

    io.agent-manager.agent      the agent; also on containers made by hand from our compose files
    io.agent-manager.instance   the instance's id
    io.agent-manager.state      the state folder it belongs to: others on this Docker are none of ours
    io.agent-manager.spec       the whole InstanceSpec, as JSON

A note (`<state>/containers/<id>.json`) adds who ended a start, and why one never ran. Losing it loses that.
"""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from agent_manager.compose import AGENT_LABEL
from agent_manager.json_text import from_json, to_json
from agent_manager.runtimes.base import Exit, Instance, InstanceSpec, InstanceState
from agent_manager.runtimes.proc import INSTANCE_VARIABLE
from agent_manager.state import ensure, unusable, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from agent_manager.compose import Document

INSTANCE_LABEL: Final = "io.agent-manager.instance"
STATE_LABEL: Final = "io.agent-manager.state"
SPEC_LABEL: Final = "io.agent-manager.spec"
RUNTIME: Final = "docker"

_NEVER: Final = "0001-01-01T00:00:00Z"
_RUNNING: Final = frozenset({"running", "paused", "restarting"})


def document_of(spec: InstanceSpec, root: str) -> Document:
    """The compose document of exactly this instance: the planned one, and the labels it is read back from.

    Raises ValueError for an instance that was not planned for a container.
    """
    if spec.document is None:
        raise ValueError(f"{spec.id} was not planned for a container")
    document: Document = copy.deepcopy(dict(spec.document))
    (service,) = document["services"].values()
    facts = to_json(spec, in_order=True)
    labels = {AGENT_LABEL: spec.agent, INSTANCE_LABEL: spec.id, STATE_LABEL: root, SPEC_LABEL: facts}
    # Labels and variables are text: what compose would take for a variable is doubled.
    service["labels"] = service.get("labels", {}) | {
        name: value.replace("$", "$$") for name, value in labels.items()
    }
    service["environment"] = service.get("environment", {}) | {INSTANCE_VARIABLE: spec.id}
    return document


def spec_of(labels: Mapping[str, str]) -> InstanceSpec | None:
    """The instance whose container carries these labels; None when they are not whole."""
    try:
        return from_json(labels[SPEC_LABEL], InstanceSpec)
    except (KeyError, ValueError):
        return None


class Note(Struct, frozen=True, kw_only=True):
    """About the start at `started_at` (Docker's own text): `stop_requested`, or `never_ran` with the reason."""

    started_at: str
    stop_requested: bool = False
    never_ran: str | None = None


class Notes:
    """One file for each instance that there is something to say about."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, instance_id: str) -> Note | None:
        """The note, if there is one that can be read."""
        try:
            return from_json(self._path(instance_id).read_bytes(), Note)
        except (OSError, ValueError):
            return None

    def write(self, instance_id: str, note: Note) -> None:
        """Keep a note in place of the one before. Raises StateUnusable."""
        ensure(self.folder)
        try:
            write_atomically(self._path(instance_id), to_json(note))
        except OSError as error:
            raise unusable(self._path(instance_id), error) from error

    def forget(self, instance_id: str) -> None:
        """Drop the note. Raises StateUnusable."""
        try:
            self._path(instance_id).unlink(missing_ok=True)
        except OSError as error:
            raise unusable(self._path(instance_id), error) from error

    def _path(self, instance_id: str) -> Path:
        return self.folder / f"{instance_id}.json"


def instance_of(spec: InstanceSpec, seen: Mapping[str, Any], note: Note | None) -> Instance:
    """The instance, from what Docker says of its container now (`seen`, as `docker inspect`)."""
    state = seen["State"]
    if note is not None and note.started_at != state["StartedAt"]:
        note = None  # it is about an earlier start
    exit_ = _exit(state, note)
    if state["Status"] in _RUNNING:
        now = InstanceState.RUNNING
    else:
        now = InstanceState.CREATED if exit_ is None else InstanceState.EXITED
    return Instance(
        spec=spec,
        runtime=RUNTIME,
        state=now,
        started_at=None if state["StartedAt"] == _NEVER else moment(state["StartedAt"]),
        exit=exit_,
    )


def _exit(state: Mapping[str, Any], note: Note | None) -> Exit | None:
    if state["Status"] in _RUNNING:
        return None
    if note is not None and note.never_ran is not None:
        return Exit(code=None, reason=note.never_ran)
    if state["StartedAt"] == _NEVER:
        # Docker keeps its own words for a start that failed.
        return Exit(code=None, reason=str(state["Error"])) if state.get("Error") else None
    return Exit(
        code=int(state["ExitCode"]),
        requested=note is not None and note.stop_requested,
        out_of_host_memory=bool(state.get("OOMKilled")),
    )


def moment(text: str) -> datetime:
    """A time of Docker's (`2026-01-31T10:00:00.123456789Z`, any number of digits), to the microsecond."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    micros = int(fraction[:6].ljust(6, "0")) if fraction else 0
    return datetime.fromisoformat(whole).replace(tzinfo=UTC, microsecond=micros)


def publishing(port: int, containers: Iterable[Mapping[str, Any]]) -> str | None:
    """The one of these containers that publishes a port of the host, so it runs."""
    for each in containers:
        if any(published.get("PublicPort") == port for published in each.get("Ports") or ()):
            return f"container {each['Names'][0].lstrip('/')}"
    return None


def aside(summary: Mapping[str, Any]) -> str:
    """The name of a container that is being replaced: the agent's, and what is its own of its id."""
    instance_id: str = summary["Labels"][INSTANCE_LABEL]
    return f"agent-manager-{instance_id}"


def ports_of(spec: InstanceSpec) -> tuple[int, ...]:
    """The host's ports that its container publishes."""
    return (spec.engine_port,) if spec.agent_port is None else (spec.engine_port, spec.agent_port)
