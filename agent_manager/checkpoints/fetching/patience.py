"""How long a Hub in trouble is borne, and what it asks for. Values only."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be another one a little later."""
GO_ON: Final = "check this host's connection, then run the command again: it goes on from what is here"

_RATE_LIMIT_RESET: Final = re.compile(r"\br=0;\s*t=(\d+)")
"""`ratelimit: "resolvers";r=0;t=55`, the Hub's word for: nothing left, more in 55 s."""


class Patience(Struct, frozen=True, kw_only=True):
    """How long trouble is borne. `tries` in a row that brought no byte are the end of it.

    The first pause is `pause_s`, each next one is twice as long. A server may ask for a longer one, up to
    `longest_asked_s`. `stall_s` without a byte is trouble too.
    """

    tries: int = 6
    pause_s: float = 1.0
    longest_asked_s: float = 300.0
    stall_s: float = 10.0

    def pause_before(self, failures: int) -> float:
        """How long to wait after so many failures in a row, when nobody asked for more."""
        return self.pause_s * float(1 << (failures - 1))


def asked_s(headers: Mapping[str, str]) -> float | None:
    """How long the server asks to be left alone: Retry-After (seconds or a date), or the Hub's rate limit."""
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    if value:
        try:
            then = parsedate_to_datetime(value)
        except ValueError:
            return None
        return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    limit = _RATE_LIMIT_RESET.search(headers.get("ratelimit", ""))
    return float(limit[1]) if limit else None
