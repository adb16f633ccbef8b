"""Docker's log, read: pieces with a time before each in, whole lines out. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent_manager.runtimes.base import LogLine
from agent_manager.runtimes.docker.records import moment

if TYPE_CHECKING:
    from collections.abc import Iterator


class LogLines:
    """Joins what Docker cut: it gives a line of more than 16 KiB in pieces, each with its time.

    A carriage return ends a line as a newline does, since progress bars are drawn with it; the empty lines this
    makes are left out. Lines before `since` are left out too: Docker goes by whole milliseconds at best.
    """

    def __init__(self, *, since: datetime | None = None) -> None:
        self._since = since
        self._at = datetime.now(UTC)
        self._pending = b""

    def feed(self, piece: bytes) -> Iterator[LogLine]:
        """The lines that `piece` completes. It begins with a time, and holds one newline at most: its last byte."""
        stamp, _, text = piece.partition(b" ")
        if not self._pending:
            self._at = moment(stamp.decode("ascii", "replace"))
        self._pending += text
        if self._pending.endswith(b"\n"):
            yield from self._line()

    def finish(self) -> Iterator[LogLine]:
        """The last line, if it lacks a newline."""
        if self._pending:
            yield from self._line()

    def _line(self) -> Iterator[LogLine]:
        raw, self._pending = self._pending.removesuffix(b"\n").removesuffix(b"\r"), b""
        if self._since is not None and self._at < self._since:
            return
        parts = raw.split(b"\r")
        for part in parts:
            if part or len(parts) == 1:
                yield LogLine(at=self._at, text=part.decode("utf-8", "replace"))
