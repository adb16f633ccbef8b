"""How sizes are written in what the planner says."""

from __future__ import annotations

from agent_manager.gpu.base import GIB


def gib(size_bytes: int) -> str:
    """`9.38 GiB`; below a tenth of a GiB, `51 MiB`."""
    if abs(size_bytes) < GIB // 10:
        return f"{-(-size_bytes // (1 << 20))} MiB"
    return f"{size_bytes / GIB:.2f} GiB"
