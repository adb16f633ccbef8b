"""How far a download is, and telling whoever wants to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping


class FileProgress(Struct, frozen=True, kw_only=True):
    """How much of one file is on the disk now; `done_bytes` counts what was here before, too."""

    name: str
    size_bytes: int
    done_bytes: int


class PullProgress(Struct, frozen=True, kw_only=True):
    """How far a download is: bytes that came, of those that were not here when it began.

    `files`: each that is fetched.
    """

    done_bytes: int
    total_bytes: int
    files: tuple[FileProgress, ...] = ()


ProgressListener: TypeAlias = Callable[[PullProgress], None]
RemarkListener: TypeAlias = Callable[[str], None]


class Progress:
    """Counts the bytes of all files of one download. `sizes` and `here`: bytes by file name."""

    def __init__(self, sizes: Mapping[str, int], here: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._here = dict(here)
        self._done = dict(here)

    def reached(self, name: str, done_bytes: int) -> None:
        """So much of a file is here now."""
        self._done[name] = done_bytes

    def now(self) -> PullProgress:
        """How far it is."""
        files = tuple(
            FileProgress(name=name, size_bytes=size, done_bytes=self._done[name])
            for name, size in self._sizes.items()
        )
        return PullProgress(
            done_bytes=max(0, sum(self._done.values()) - sum(self._here.values())),
            total_bytes=sum(self._sizes.values()) - sum(self._here.values()),
            files=files,
        )
