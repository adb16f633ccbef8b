"""The Engine protocol: what serves a model over HTTP, as command line, environment and log phases."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_manager.catalog.agents import Agent, EngineSettings
    from agent_manager.planning.base import Budget, Fit


READY = "ready"
"""The name of the last phase of a load."""
LOOPBACK = "127.0.0.1"
"""Where an engine listens on a host. In a container of its own it listens everywhere, and Docker on loopback."""


class Source(Struct, frozen=True, kw_only=True):
    """Where an engine finds the model: a folder, or a Hub repository at one commit.

    `model` is what follows `serve`: a folder as the engine sees it, or the repository's id. `revision` is the
    commit for a repository, None for a folder. `hub_cache` is the Hub cache as the engine sees it; None leaves
    the engine to its default.
    """

    model: str
    revision: str | None = None
    hub_cache: str | None = None


class CardKind(StrEnum):
    """Which sort of memory an engine lives in."""

    GPU = "gpu"
    CPU = "cpu"
    SIMULATED = "simulated"


class EngineCommand(Struct, frozen=True, kw_only=True):
    """What to run: `program` and its `arguments`; `env` is what the engine needs beyond the host's own.

    `program` is how a host starts the engine. In a container it is the image's entrypoint that the arguments
    follow.
    """

    program: tuple[str, ...]
    arguments: tuple[str, ...]
    env: Mapping[str, str]

    @property
    def argv(self) -> tuple[str, ...]:
        """The whole command line."""
        return (*self.program, *self.arguments)


class Phase(Struct, frozen=True, kw_only=True):
    """How far a load is. `order` only grows; `percent` (0-100) where the log gives one."""

    order: int
    name: str
    percent: int | None = None


class Engine(Protocol):
    """One engine. Pure: it renders and reads text, it runs nothing.

    `default_runtime` is where it runs when nobody says: `process` or `docker`.
    """

    name: str
    budget: Budget
    simulated: bool
    card_kind: CardKind
    default_runtime: str

    def command(
        self,
        agent: Agent,
        fit: Fit,
        source: Source,
        settings: EngineSettings,
        *,
        port: int,
        host: str = LOOPBACK,
    ) -> EngineCommand:
        """The command that serves `agent` on `host`:`port` as `fit` allows."""
        ...
