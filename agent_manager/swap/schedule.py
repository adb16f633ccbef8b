"""The policy: which waiting agent gets the card next. Pure; it sees requests and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that needs an agent on the card, and the memory that agent takes."""

    id: str
    agent: str
    claim_bytes: int


def next_agent(waiting: Sequence[Request]) -> Request | None:
    """The request whose agent gets the card next: the oldest one's; those for the same agent go with it."""
    return waiting[0] if waiting else None
