"""What an operation finds on the card, and what it makes of it. Pure.

Whoever holds the lock is the only one who mutates, so whatever is found was left behind: by an operation that
finished, or by one that was killed in the middle.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from msgspec import Struct

from agent_manager.runtimes.base import InstanceState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_manager.runtimes.base import Instance


class Life(StrEnum):
    """What an instance is good for."""

    SERVING = "serving"
    LOADING = "loading"
    BROKEN = "broken"
    """It runs, it was ready once, and it does not answer any more."""
    OVER = "over"


class Found(Struct, frozen=True, kw_only=True):
    """An instance on the card. `wanted`: it is exactly what the operation would start."""

    instance: Instance
    life: Life
    wanted: bool


class Takeover(Struct, frozen=True, kw_only=True):
    """`resident` serves; or `loading` is followed, `kept` put back if it fails; `leftovers` must go."""

    resident: Found | None
    loading: Found | None
    kept: Found | None
    leftovers: tuple[Found, ...]


def take_over(found: Sequence[Found]) -> Takeover:
    """Sort what was found, given oldest first. At most one engine stays on the card.

    A load that is not wanted is a leftover. An instance that was stopped on purpose is kept only beside a
    load that is followed: that is an unfinished swap, and it is what the swap would put back.
    """
    resident = _newest(found, Life.SERVING)
    loading = None if resident else _newest([each for each in found if each.wanted], Life.LOADING)
    kept = None
    if loading is not None:
        stopped = [each for each in found if each.instance.exit and each.instance.exit.requested]
        kept = _newest(stopped, Life.OVER)
    staying = (resident, loading, kept)
    return Takeover(
        resident=resident,
        loading=loading,
        kept=kept,
        leftovers=tuple(each for each in found if each not in staying),
    )


def runs(found: Found) -> bool:
    """Whether processes of it are there."""
    return found.instance.state is InstanceState.RUNNING


def _newest(found: Sequence[Found], life: Life) -> Found | None:
    return next((each for each in reversed(found) if each.life is life), None)
