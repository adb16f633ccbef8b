"""What starts took here, so that the next one can say how long it will take. Losing it loses nothing."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from agent_manager.state import write_atomically

if TYPE_CHECKING:
    from agent_manager.runtimes.base import InstanceSpec
    from agent_manager.state import StateDir


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRecord:
    """One start that worked: how many seconds after its spawn the instance had answered a completion."""

    instance_id: str
    seconds: float


class StartHistory:
    """The last start of each agent, by engine, model and card; empty when it cannot be read."""

    def __init__(self, state: StateDir) -> None:
        self._path = state.cache / "starts.json"

    def last(self, spec: InstanceSpec) -> StartRecord | None:
        """The last start of this agent with this engine, model and card."""
        return self._records().get(_key(spec))

    def of_instance(self, instance_id: str) -> StartRecord | None:
        """The start of that very instance."""
        return next(
            (record for record in self._records().values() if record.instance_id == instance_id), None
        )

    def record(self, spec: InstanceSpec, seconds: float) -> None:
        """Remember a start. Never raises: a full disk must not turn a good start into a failure."""
        records = self._records()
        records[_key(spec)] = StartRecord(instance_id=spec.id, seconds=round(seconds, 3))
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            facts = {key: asdict(record) for key, record in records.items()}
            write_atomically(self._path, json.dumps(facts, indent=1))

    def _records(self) -> dict[str, StartRecord]:
        try:
            entries = json.loads(self._path.read_text())
            return {
                key: StartRecord(instance_id=str(entry["instance_id"]), seconds=float(entry["seconds"]))
                for key, entry in entries.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


def _key(spec: InstanceSpec) -> str:
    return f"{spec.agent}/{spec.engine}/{spec.model}/{spec.card}"
