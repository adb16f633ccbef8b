"""What cards of common sizes give an engine. Pure."""

from __future__ import annotations

import math
from typing import Final

from agent_manager.gpu.base import GIB

SIZES_GIB: Final = (8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192)
"""What cards are sold as."""

_SEEN_GIB: Final = {16: 15.47, 24: 23.56}
"""What CUDA says of an RTX 5060 Ti and an RTX 3090."""
_LEAST_SHARE: Final = 15.47 / 16


def usable_bytes(size_bytes: int) -> int:
    """What CUDA gives of a card sold as that large: as seen for 16 and 24 GiB, else the smaller of their shares."""
    seen_gib = _SEEN_GIB.get(size_bytes // GIB) if size_bytes % GIB == 0 else None
    return math.floor(seen_gib * GIB) if seen_gib else math.floor(size_bytes * _LEAST_SHARE)
