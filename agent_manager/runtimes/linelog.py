"""The shim's side of an engine's log: bytes in, stamped lines out, bounded on disk, never blocking on a full one."""

from __future__ import annotations

import os
import time

from agent_manager.runtimes.handover import LOG, ROTATED_LOG

LINE_LIMIT_BYTES = 16 << 10
"""A longer line is cut into pieces of this size (Docker's bound as well)."""
LOG_LIMIT_BYTES = 16 << 20
"""The log is rotated at this size, once: at most twice this on disk."""


class LineLog:
    """Appends lines to `<folder>/engine.log`, each as `2026-01-31T10:00:00.123456Z text`, UTC.

    A carriage return ends a line as a newline does, since progress bars are drawn with it; the empty lines this
    makes are left out. When the disk is full, output is dropped, and the log says so once it can be written.
    """

    def __init__(self, folder: str, *, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
        """Raises nothing: a log that cannot be opened is a log that loses lines."""
        self._path, self._rotated = f"{folder}/{LOG}", f"{folder}/{ROTATED_LOG}"
        self._limit_bytes = limit_bytes
        self._file = -1
        self._size_bytes = 0
        self._pending = b""
        self._in_progress_bar = False  # what is pending follows a carriage return
        self._lost_bytes = 0
        self._lost_why = ""
        self._torn = False  # the last write ended inside a line

    def feed(self, data: bytes) -> None:
        """Take output as it came. Whole lines are written, the rest waits for its end."""
        *whole, rest = (self._pending + data).replace(b"\r\n", b"\n").split(b"\n")
        lines: list[bytes] = []
        for text in whole:
            lines += self._ended(text)
            self._in_progress_bar = False
        *drawn, self._pending = rest.split(b"\r")
        if drawn:
            lines += [text for text in drawn if text]
            self._in_progress_bar = True
        while len(self._pending) > LINE_LIMIT_BYTES:
            lines.append(self._pending[:LINE_LIMIT_BYTES])
            self._pending = self._pending[LINE_LIMIT_BYTES:]
        if lines:
            self._write(lines)

    def idle(self) -> None:
        """Nothing came for a moment: write a progress bar that is still being drawn."""
        if self._pending and self._in_progress_bar:
            self._write([self._pending])
            self._pending = b""

    @property
    def waiting(self) -> bool:
        """Whether `idle` would write something."""
        return bool(self._pending) and self._in_progress_bar

    def finish(self) -> None:
        """The engine has ended: write what is left."""
        if self._pending:
            self._write([self._pending])
            self._pending = b""

    def _ended(self, text: bytes) -> list[bytes]:
        # The lines of `text`, which a newline ended. An empty last one only closes a progress bar.
        *drawn, last = text.split(b"\r")
        lines = [piece for piece in drawn if piece]
        if last or not (drawn or self._in_progress_bar):
            lines.append(last)
        return lines

    def _write(self, lines: list[bytes]) -> None:
        now_ns = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ns // 1_000_000_000))
        prefix = f"{stamp}.{now_ns // 1000 % 1_000_000:06d}Z ".encode()
        pieces = [piece for line in lines for piece in _pieces(line)]
        payload = b"".join(prefix + piece + b"\n" for piece in pieces)
        if self._lost_bytes:
            note = f"agent-manager: {self._lost_bytes} bytes of output were lost here: {self._lost_why}\n"
            note_line = (b"\n" if self._torn else b"") + prefix + note.encode()
            if self._append(note_line) < len(note_line):
                self._lost_bytes += len(payload)
                return
            self._lost_bytes = 0
        self._lost_bytes += len(payload) - self._append(payload)

    def _append(self, payload: bytes) -> int:
        # How much of it was written: all, or what a full disk took.
        written = 0
        try:
            self._make_room(len(payload))
            while written < len(payload):
                written += os.write(self._file, payload[written:])
        except OSError as error:
            self._lost_why = error.strerror or str(error)
        if written:
            self._torn = payload[written - 1 : written] != b"\n"
        self._size_bytes += written
        return written

    def _make_room(self, wanted_bytes: int) -> None:
        if self._file >= 0 and self._size_bytes and self._size_bytes + wanted_bytes > self._limit_bytes:
            os.replace(self._path, self._rotated)  # noqa: PTH105 - pathlib costs the shim 5 ms
            os.close(self._file)
            self._file = -1
        if self._file < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(self._path, flags, 0o600)
            self._size_bytes = os.fstat(self._file).st_size


def _pieces(line: bytes) -> list[bytes]:
    if len(line) <= LINE_LIMIT_BYTES:
        return [line]
    return [line[start : start + LINE_LIMIT_BYTES] for start in range(0, len(line), LINE_LIMIT_BYTES)]
