"""What starts and swaps took here: the next start can say how long it will take. Losing it loses nothing."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from agent_manager.json_text import from_json, to_json
from agent_manager.state import write_atomically

if TYPE_CHECKING:
    from agent_manager.runtimes.base import InstanceSpec
    from agent_manager.state import StateDir

SWAPS_KEPT = 20


class StartRecord(Struct, frozen=True, kw_only=True):
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
            write_atomically(self._path, to_json(records, indent=1))

    def _records(self) -> dict[str, StartRecord]:
        try:
            return from_json(self._path.read_bytes(), dict[str, StartRecord])
        except (OSError, ValueError):
            return {}


def _key(spec: InstanceSpec) -> str:
    return f"{spec.agent}/{spec.engine}/{spec.model}/{spec.card}"


class SwapSample(Struct, frozen=True, kw_only=True):
    """A swap that was done: who came, who left for it (None: the card was empty), when, and how long it took."""

    at: datetime
    arrived: str
    left: str | None
    seconds: float


class SwapHistory:
    """The last swaps that were done on one card; empty when they cannot be read."""

    def __init__(self, state: StateDir, card: str) -> None:
        self._path = state.cache / f"swaps-{card}.json"

    def last(self) -> tuple[SwapSample, ...]:
        """At most SWAPS_KEPT, newest first."""
        try:
            return from_json(self._path.read_bytes(), tuple[SwapSample, ...])
        except (OSError, ValueError):
            return ()

    def record(self, swap: SwapSample) -> None:
        """Remember a swap. Never raises: a full disk must not turn a good swap into a failure."""
        swaps = [swap, *self.last()][:SWAPS_KEPT]
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path, to_json(swaps, indent=1))


def remember_swap(state: StateDir, card: str, arrived: str, left: str | None, seconds: float) -> None:
    """A swap was done now. Never raises."""
    sample = SwapSample(at=datetime.now(UTC), arrived=arrived, left=left, seconds=round(seconds, 3))
    SwapHistory(state, card).record(sample)
