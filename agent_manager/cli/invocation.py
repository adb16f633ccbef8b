"""One invocation of the program: what was chosen for all verbs, and how a verb runs its use case."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct

from agent_manager.state import StateDir

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Any

    from agent_manager.catalog.agents import Catalog
    from agent_manager.cli.output import Output
    from agent_manager.swap.host import Host
    from agent_manager.swap.notices import Listener

T = TypeVar("T")


class Choice(Struct, frozen=True, kw_only=True):
    """The global options that choose: None where neither an option nor the environment did."""

    catalog: Path | None = None
    engine: str | None = None
    runtime: str | None = None
    profile: str | None = None


def read_catalog(choice: Choice) -> Catalog:
    """The catalog that was chosen, else the one that is found. Raises CatalogInvalid and UsageError."""
    from agent_manager.catalog.load import find_catalog, load_catalog  # noqa: PLC0415 - not for --help

    state_root = StateDir.from_environment().root
    path = find_catalog(choice.catalog, environ=os.environ)
    return load_catalog(path, profile=choice.profile, environ=os.environ, state_root=state_root)


class Invocation(Struct, frozen=True, kw_only=True):
    """What every verb is given."""

    choice: Choice
    output: Output
    build_host: Callable[[Choice], Host]

    def host(self) -> Host:
        """This machine. Reads the catalog; raises CatalogInvalid and UsageError."""
        from agent_manager.cli.logged import tell_what_is_logged  # noqa: PLC0415 - not for --help and completion

        tell_what_is_logged(self.output)
        return self.build_host(self.choice)

    def read(self, use_case: Callable[[Host], Coroutine[Any, Any, T]]) -> T:
        """Run a use case that only reads, to its end. Raises what it raises, and Interrupted."""
        from agent_manager.cli.runner import run  # noqa: PLC0415 - asyncio; not for --help and completion

        host = self.host()
        return run(use_case(host), host.interrupts)

    def perform(
        self,
        use_case: Callable[[Host, Listener], Coroutine[Any, Any, T]],
        *,
        new_loop: Callable[[], AbstractEventLoop] | None = None,
    ) -> T:
        """Run a use case that changes something, showing its progress. Raises as `read` does."""
        from agent_manager.cli.progress import progress  # noqa: PLC0415 - rich; not for --help and completion
        from agent_manager.cli.runner import run  # noqa: PLC0415 - likewise

        host = self.host()
        simulated = (host.engine or host.catalog.engine) == "simulated"
        with progress(self.output, simulated=simulated) as listener:
            return run(use_case(host, listener), host.interrupts, new_loop=new_loop)
