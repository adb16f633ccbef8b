"""Values as a person writes them on the command line: durations, points in time."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([smhd]?)")


def duration_s(text: str | float) -> float:
    """Seconds from `90`, `90s`, `1.5m`, `2h` or `1d`. Raises ValueError for anything else, below zero included."""
    match = _DURATION.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"'{text}' is not a duration such as 90, 90s or 2m")
    return float(match[1]) * _SECONDS[match[2]]


def moment(text: str | datetime) -> datetime:
    """A point in time, in UTC, from ISO 8601 (local time unless it says otherwise) or as a duration ago: `10m`.

    Raises ValueError for anything else.
    """
    if isinstance(text, datetime):
        return text.astimezone(UTC)
    try:
        return datetime.now(UTC) - timedelta(seconds=duration_s(text))
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"'{text}' is neither a time such as 2026-01-31T12:00 nor a duration such as 10m"
        ) from None


def tail_lines(text: str | int) -> int | None:
    """How many lines: a number from 0, or None for `all`. Raises ValueError for anything else."""
    word = str(text).strip()
    if word == "all":
        return None
    if not word.isdecimal():
        raise ValueError(f"'{text}' is not a number of lines, or all")
    return int(word)
