"""Reading stamped log lines back: `2026-01-31T10:00:00.123456Z text`, UTC, from a live log or a kept one."""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent_manager.runtimes import handover
from agent_manager.runtimes.base import LogLine
from agent_manager.state import unusable

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK_BYTES = 64 << 10
_STAMP_BYTES = len("2026-01-31T10:00:00.123456Z")


def stamped(line: LogLine) -> str:
    """A line as a log holds it, newline included."""
    return f"{line.at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z {line.text}\n"


class Parser:
    """Bytes in, lines out. A line without a stamp has the time of the one before, or `otherwise`."""

    def __init__(self, otherwise: datetime, since: datetime | None = None) -> None:
        self._at = otherwise
        self._since = since
        self._stamp = b""
        self._rest = b""

    def feed(self, data: bytes) -> list[LogLine]:
        """The lines that `data` completes, from `since` on."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line for raw in whole if (line := self._line(raw))]

    def finish(self) -> list[LogLine]:
        """The last line, if it lacks a newline."""
        raw, self._rest = self._rest, b""
        line = self._line(raw) if raw else None
        return [line] if line else []

    def _line(self, raw: bytes) -> LogLine | None:
        text = raw
        if raw[_STAMP_BYTES - 1 : _STAMP_BYTES + 1] == b"Z ":
            if raw[:_STAMP_BYTES] != self._stamp:  # a burst of lines shares one
                with contextlib.suppress(ValueError):
                    self._at = datetime.fromisoformat(raw[:_STAMP_BYTES].decode("ascii"))
                    self._stamp = raw[:_STAMP_BYTES]
            text = raw[_STAMP_BYTES + 1 :]
        if self._since is not None and self._at < self._since:
            return None
        return LogLine(at=self._at, text=text.decode("utf-8", "replace"))


class LogReader:
    """Reads `engine.log.1` and `engine.log` of a folder, and goes on reading through rotations.

    Reads are of 64 KiB from files just written; they are not worth a thread.
    """

    def __init__(self, folder: Path, *, tail: int | None = None, since: datetime | None = None) -> None:
        """Raises StateUnusable when there is a log that cannot be read."""
        self._log, self._rotated = folder / handover.LOG, folder / handover.ROTATED_LOG
        self._next = -1  # the file after this one, once this one was rotated
        self._file = _open(self._rotated)
        if self._file < 0:
            self._file = _open(self._log)
        if tail is not None:
            self._seek(tail)
        self._parser = Parser(datetime.now(UTC), since)

    def read(self) -> list[LogLine] | None:
        """The next lines, perhaps none of them wanted; None when there are no more for now."""
        while True:
            data = os.read(self._file, _BLOCK_BYTES) if self._file >= 0 else b""
            if data:
                return self._parser.feed(data)
            if not self._advance():
                return None

    def finish(self) -> list[LogLine]:
        """The last line, if the disk was too full for its newline."""
        return self._parser.finish()

    def close(self) -> None:
        """Close what is open."""
        for descriptor in (self._file, self._next):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._next = -1

    def _advance(self) -> bool:
        # At the end of a file. When it was rotated, read on: what was written up to then is there by now. At
        # its end for the second time, go to the next.
        if self._next < 0:
            self._next = self._following()
            return self._next >= 0
        if self._file >= 0:
            os.close(self._file)
        self._file, self._next = self._next, -1
        return True

    def _following(self) -> int:
        if self._file < 0:
            return _open(self._log)
        here, newest, rotated = os.fstat(self._file).st_ino, _inode(self._log), _inode(self._rotated)
        if newest in (here, None):
            return -1
        # Rotated twice since: the file between is the rotated one.
        return _open(self._log if rotated in (here, None) else self._rotated)

    def _seek(self, tail: int) -> None:
        # Go to where the last `tail` lines begin, from the end of the newest file backwards.
        self.close()
        missing = tail
        for path in (self._log, self._rotated):
            descriptor = _open(path)
            if descriptor < 0:
                continue
            self.close()
            self._file = descriptor
            missing = _seek_back(descriptor, missing)
            if missing == 0:
                return


def _seek_back(descriptor: int, lines: int) -> int:
    # Go to where the last `lines` lines of a file begin; return how many of them it does not have.
    position = os.fstat(descriptor).st_size
    if lines == 0 or position == 0:
        os.lseek(descriptor, position, os.SEEK_SET)
        return lines
    wanted = lines + (os.pread(descriptor, 1, position - 1) == b"\n")
    while position > 0:
        start = max(0, position - _BLOCK_BYTES)
        block = os.pread(descriptor, position - start, start)
        while (newline := block.rfind(b"\n")) >= 0:
            wanted -= 1
            if wanted == 0:
                os.lseek(descriptor, start + newline + 1, os.SEEK_SET)
                return 0
            block = block[:newline]
        position = start
    os.lseek(descriptor, 0, os.SEEK_SET)
    return wanted - 1


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    except OSError as error:
        raise unusable(path, error) from error


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
