"""Fetching an image: is there room for it, how far is it. Docker's words in, values out."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field

from agent_manager.errors import HostNotReady
from agent_manager.runtimes.base import Fetching

if TYPE_CHECKING:
    from collections.abc import Mapping

_GIB: Final = 1 << 30
ROOM_BYTES: Final = 20 * _GIB
"""What must be free before an image of vLLM is fetched: its layers lie there packed and unpacked meanwhile.

How large an image is, a registry does not say beforehand; a GPU build of vLLM has some 10 GB packed.
"""
_HERE: Final = ("Pull complete", "Already exists")


def require_room(image: str, docker_root: str, needed_bytes: int) -> None:
    """Raises HostNotReady when the disk under Docker's root has less free. Says nothing of a root it cannot see."""
    try:
        free_bytes = shutil.disk_usage(docker_root).free
    except OSError:
        return
    if free_bytes < needed_bytes:
        raise HostNotReady(
            f"the image {image} is not here, and only {free_bytes / _GIB:.1f} GiB are free under {docker_root}; "
            f"fetching it needs {needed_bytes / _GIB:.0f} GiB",
            hint="free some space: 'docker system df' shows what Docker holds, 'docker image prune' frees what is "
            "unused",
            where=docker_root,
        )


class Tally(Struct):
    """Adds up what Docker says of an image's layers while it fetches them."""

    image: str
    _layers: dict[str, str] = field(default_factory=dict)
    _done_bytes: dict[str, int] = field(default_factory=dict)
    _total_bytes: dict[str, int] = field(default_factory=dict)

    def add(self, said: Mapping[str, Any]) -> Fetching | None:
        """Take one thing Docker said; how far it is now, where that changed.

        The total grows while Docker learns of more layers. Each layer that is here is worth a line.
        """
        layer, status = said.get("id"), str(said.get("status", ""))
        if not layer or status.startswith("Pulling from"):
            return None
        self._layers[layer] = status
        detail = said.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._total_bytes[layer] = int(detail["total"])
            self._done_bytes[layer] = int(detail.get("current", 0))
        elif layer in self._total_bytes and status != "Downloading":
            self._done_bytes[layer] = self._total_bytes[layer]  # verified, unpacked or both
        elif status not in _HERE:
            return None
        return self._now(f"layer {self._here} of {len(self._layers)} is here" if status in _HERE else None)

    @property
    def _here(self) -> int:
        return sum(status in _HERE for status in self._layers.values())

    def _now(self, message: str | None) -> Fetching:
        return Fetching(
            subject=self.image,
            done_bytes=sum(self._done_bytes.values()),
            total_bytes=sum(self._total_bytes.values()),
            message=message,
        )
