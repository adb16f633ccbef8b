"""What engines said of their memory here, so that the next plan need not estimate it. Losing it loses nothing.

The simulated engine is never recorded: its figures are made up, and would be passed off as measured.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

from msgspec import Struct, ValidationError, convert, to_builtins
from msgspec.structs import replace

from agent_manager.json_text import from_json, to_json
from agent_manager.planning.base import Measured  # noqa: TC001 - msgspec reads the types of what it decodes
from agent_manager.state import write_atomically

if TYPE_CHECKING:
    from agent_manager.catalog.agents import Agent, EngineSettings
    from agent_manager.checkpoints.facts import Facts
    from agent_manager.engines.base import Engine
    from agent_manager.gpu.base import Card
    from agent_manager.planning.base import Fit
    from agent_manager.state import StateDir


class Setup(Struct, frozen=True, kw_only=True):
    """What must be the same for a figure to hold: agent, engine, card, checkpoint at a commit, and what runs it.

    `source` is a repository or a folder; `size_bytes` are a folder's weights, which have no commit. `build` is
    the image of an engine in a container, else the command that starts it. The settings that the planner knows
    of are in Measured; `extra` is a digest of those it does not, more flags and variables, which may hold secrets.
    """

    agent: str
    engine: str
    model: str
    card: str
    source: str
    revision: str | None
    size_bytes: int | None
    build: str
    extra: str


class _Entry(Struct, frozen=True, kw_only=True):
    setup: Setup
    measured: Measured


def setup_of(
    agent: Agent,
    engine: Engine,
    settings: EngineSettings,
    card: Card,
    *,
    runtime: str,
    revision: str | None,
    facts: Facts | None,
) -> Setup:
    """The setup of a launch under a runtime of that name."""
    model = agent.model
    extra = to_json((settings.env, agent.extra_args), in_order=True).encode()
    return Setup(
        agent=agent.name,
        engine=engine.name,
        model=model.name,
        card=card.id,
        source=str(model.path or model.repo),
        revision=revision,
        size_bytes=facts.weights_bytes if facts and model.path else None,
        build=(settings.image or "") if runtime == "docker" else " ".join(settings.command),
        extra=hashlib.sha256(extra).hexdigest(),
    )


def ran_with(said: Measured, agent: Agent, fit: Fit) -> Measured:
    """The figures that an engine's log `said`, with the settings it ran with."""
    return replace(
        said,
        card_total_bytes=fit.card_total_bytes,
        utilization=fit.utilization,
        context=fit.max_model_len,
        sequences=fit.max_num_seqs,
        kv_cache_dtype=fit.kv_cache_dtype,
        cpu_offload_bytes=fit.cpu_offload_bytes,
        eager=agent.eager,
    )


class Footprints:
    """The last figures of each agent, by engine, model and card; empty when they cannot be read."""

    def __init__(self, state: StateDir) -> None:
        self._path = state.cache / "footprints.json"

    def last(self, setup: Setup) -> Measured | None:
        """The figures of the last start with exactly this setup."""
        return _measured(self._entries().get(_key(setup)), setup)

    def record(self, setup: Setup, measured: Measured) -> None:
        """Remember figures. Never raises: a full disk must not turn a good start into a failure."""
        entries = {**self._entries(), _key(setup): _Entry(setup=setup, measured=measured)}
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path, to_json(entries, indent=1))

    def _entries(self) -> dict[str, object]:
        try:
            return from_json(self._path.read_bytes(), dict[str, object])
        except (OSError, ValueError):
            return {}


def _key(setup: Setup) -> str:
    return f"{setup.agent}/{setup.engine}/{setup.model}/{setup.card}"


def _measured(entry: object, setup: Setup) -> Measured | None:
    """The figures as they were written; None when anything about them is not as it is written now."""
    try:
        found = convert(entry, _Entry)
    except ValidationError:
        return None
    return found.measured if found.setup == setup and to_builtins(found) == entry else None
