"""Everything an operation needs from this machine, built once by the program's edge and handed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_manager.catalog.agents import Catalog
    from agent_manager.engines.base import CardKind
    from agent_manager.gpu.base import GpuProbe
    from agent_manager.runtimes.base import Runtime
    from agent_manager.state import StateDir


class Interrupts:
    """Ctrl-C, as a value: the edge calls `fire`, whoever can undo what is under way subscribes.

    `fire` returns False when nobody listens; then the edge ends the program by itself.
    """

    def __init__(self) -> None:
        self._handler: Callable[[], None] | None = None

    def fire(self) -> bool:
        """The user interrupted; never blocks."""
        if self._handler is None:
            return False
        self._handler()
        return True

    def subscribe(self, handler: Callable[[], None] | None) -> None:
        """Call `handler` for each interrupt from now on; None ends that."""
        self._handler = handler


class Host(Struct, frozen=True, kw_only=True):
    """This machine, for one operation.

    `runtimes`: those that answer, by name. `probe` makes the reader of a kind of card.
    `engine` and `runtime` are the user's choice (option or environment); None: the catalog decides.
    `behind_gateway`: a gateway listens on the agents' ports, so instances leave them alone.
    """

    state: StateDir
    catalog: Catalog
    runtimes: Mapping[str, Runtime]
    probe: Callable[[CardKind], GpuProbe]
    engine: str | None = None
    runtime: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    interrupts: Interrupts = field(default_factory=Interrupts)
    behind_gateway: bool = False
