"""Where agent-manager keeps things on this machine: one folder, one layout, said here only.

<state>/
  cards/<card>/{lock,owner.json,claims/}   who owns a card; memory that simulated engines hold
  cards/<card>/owner.sock                  where a gateway that owns it is asked for launch, stop and reload
  instances/<id>/                          the process runtime's records and logs
  compose/<agent>.yaml                     the container each agent was launched as last
  containers/<id>.json                     what Docker does not know of a container: who ended it
  logs/<agent>/                            logs kept after an instance was removed (last 5)
  cache/                                   measured durations; losing it loses nothing
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from msgspec import Struct

from agent_manager.errors import StateUnusable

ENVIRONMENT_VARIABLE = "AGENT_MANAGER_STATE_DIR"


class StateDir(Struct, frozen=True):
    """The state folder. Its properties are paths; only `ensure` touches the disk."""

    root: Path

    @classmethod
    def from_environment(cls) -> StateDir:
        """`$AGENT_MANAGER_STATE_DIR`, else the XDG state folder of this user."""
        given = os.environ.get(ENVIRONMENT_VARIABLE)
        if given:
            return cls(Path(given).expanduser().absolute())
        import platformdirs  # noqa: PLC0415 - not needed when the environment says where

        return cls(Path(platformdirs.user_state_dir("agent-manager", appauthor=False)))

    @property
    def cards(self) -> Path:
        """One folder for each card."""
        return self.root / "cards"

    def card(self, name: str) -> Path:
        """The folder of one card: its lock, its owner, its claims."""
        return self.cards / name

    @property
    def instances(self) -> Path:
        """The process runtime's records."""
        return self.root / "instances"

    @property
    def compose(self) -> Path:
        """The compose document of each agent, as it was launched last."""
        return self.root / "compose"

    @property
    def containers(self) -> Path:
        """The docker runtime's notes."""
        return self.root / "containers"

    def kept_logs(self, agent: str) -> Path:
        """Logs of this agent's removed instances."""
        return self.root / "logs" / agent

    @property
    def cache(self) -> Path:
        """What was measured; nothing depends on it."""
        return self.root / "cache"


def ensure(folder: Path) -> Path:
    """Make `folder` (mode 0700) and its parents, and return it. Raises StateUnusable with the reason."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(folder, error) from error
    return folder


def write_atomically(path: Path, text: str) -> None:
    """Write `text` (mode 0600) beside `path` and rename it there, so that no reader sees half of it.

    Blocks for as long as the disk takes. Raises OSError and leaves nothing behind.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        fresh.touch(mode=0o600)
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def unusable(path: Path, error: OSError) -> StateUnusable:
    """The error for a failed read or write below the state folder."""
    return StateUnusable(
        f"{path}: {error.strerror or error}",
        hint=f"make it writable with free space, or set {ENVIRONMENT_VARIABLE} to a folder that is",
        where=str(path),
    )
