"""A file that is arriving: its bytes at their places, and behind them a journal of which are there.

    <blob>.agent-manager.incomplete
      [0, size)     the file itself, sparse until its bytes come
      [size, ...)   the journal: its mark, the file's size, the pieces' size, and one counter for each piece

A counter says how many bytes of its piece are written, from the piece's beginning on. It is written after them, so
a process that is killed between the two loses one chunk and believes nothing that is not there. Nothing is
flushed to the disk: a power cut may lose what the journal promises, and the file's hash finds that out.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final, Self

from msgspec import Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    from pathlib import Path

PIECE_BYTES: Final = 16 << 20
"""What one request asks for: long enough that asking costs nothing, short enough to share a file out."""
SUFFIX: Final = ".agent-manager.incomplete"

_MARK: Final = b"agent-manager partial 1\n"
_HEADER: Final = struct.Struct(f"<{len(_MARK)}sQQ")
_COUNTER: Final = struct.Struct("<Q")


class Piece(Struct, kw_only=True):
    """A stretch of the file that one request fetches; `done_bytes` of it are written, from `start` on."""

    number: int
    start: int
    size_bytes: int
    done_bytes: int = 0

    @property
    def next(self) -> int:
        """The offset of the first byte that is not here."""
        return self.start + self.done_bytes

    @property
    def stop(self) -> int:
        """The offset behind the last byte."""
        return self.start + self.size_bytes

    @property
    def complete(self) -> bool:
        """Whether all of it is here."""
        return self.done_bytes == self.size_bytes


class Partial:
    """An open partial file; `done_bytes` of it are here. Whoever has it open holds the blob's lock.

    Every method may raise OSError, such as for a full disk; what is written then stays for the next time.
    """

    def __init__(self, path: Path, descriptor: int, size_bytes: int, pieces: list[Piece]) -> None:
        self.pieces = pieces
        self.size_bytes = size_bytes
        self.done_bytes = sum(piece.done_bytes for piece in pieces)
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path, size_bytes: int) -> Self:
        """Go on with the partial file at `path`, or begin one for a file of `size_bytes`."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            pieces = _read_journal(descriptor, size_bytes)
            partial = cls(path, descriptor, size_bytes, pieces or _pieces(size_bytes, PIECE_BYTES))
            if not pieces:
                partial.restart()
        except BaseException:
            os.close(descriptor)
            raise
        return partial

    @property
    def front(self) -> int:
        """The offset up to which nothing is missing."""
        return next((piece.next for piece in self.pieces if not piece.complete), self.size_bytes)

    def write(self, piece: Piece, data: bytes) -> None:
        """Put `data` behind what is there of a piece, and then say so in the journal."""
        written = memoryview(data)
        while written:
            count = os.pwrite(self._descriptor, written, piece.next)
            piece.done_bytes += count
            self.done_bytes += count
            written = written[count:]
        os.pwrite(self._descriptor, _COUNTER.pack(piece.done_bytes), self._counter(piece))

    def read(self, start: int, length: int) -> bytes:
        """Bytes that are here."""
        return os.pread(self._descriptor, length, start)

    def restart(self) -> None:
        """Forget all bytes."""
        os.ftruncate(self._descriptor, 0)
        self.done_bytes = 0
        for piece in self.pieces:
            piece.done_bytes = 0
        piece_bytes = self.pieces[0].size_bytes if self.pieces else PIECE_BYTES
        counters = bytes(_COUNTER.size * len(self.pieces))
        journal = _HEADER.pack(_MARK, self.size_bytes, piece_bytes) + counters
        if os.pwrite(self._descriptor, journal, self.size_bytes) != len(journal):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def finish(self, target: Path) -> None:
        """Take the journal off and give the file its final name, replacing what has it. All bytes are here."""
        os.ftruncate(self._descriptor, self.size_bytes)
        self._path.rename(target)

    def discard(self) -> None:
        """Remove it from the disk."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; it stays."""
        os.close(self._descriptor)

    def _counter(self, piece: Piece) -> int:
        return self.size_bytes + _HEADER.size + _COUNTER.size * piece.number


def done_bytes_at(path: Path, size_bytes: int) -> int:
    """How much of a file of `size_bytes` its partial file at `path` holds; 0 when there is none to go on with."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return sum(piece.done_bytes for piece in _read_journal(descriptor, size_bytes))
    finally:
        os.close(descriptor)


def _read_journal(descriptor: int, size_bytes: int) -> list[Piece]:
    """The pieces as the journal has them; none when there is no journal of such a file.

    A file without one, of just that size, had it taken off: it was killed on its last step, and all is here.
    """
    length = os.fstat(descriptor).st_size - size_bytes
    if length == 0:
        return [replace(piece, done_bytes=piece.size_bytes) for piece in _pieces(size_bytes, PIECE_BYTES)]
    if length < _HEADER.size:
        return []
    journal = os.pread(descriptor, length, size_bytes)
    mark, size, piece_bytes = _HEADER.unpack_from(journal)
    if (mark, size) != (_MARK, size_bytes) or not piece_bytes:
        return []
    pieces = _pieces(size_bytes, piece_bytes)
    if length != _HEADER.size + _COUNTER.size * len(pieces):
        return []
    for piece, (done_bytes,) in zip(pieces, _COUNTER.iter_unpack(journal[_HEADER.size :]), strict=True):
        piece.done_bytes = done_bytes if done_bytes <= piece.size_bytes else 0
    return pieces


def _pieces(size_bytes: int, piece_bytes: int) -> list[Piece]:
    return [
        Piece(number=number, start=start, size_bytes=min(piece_bytes, size_bytes - start))
        for number, start in enumerate(range(0, size_bytes, piece_bytes))
    ]
