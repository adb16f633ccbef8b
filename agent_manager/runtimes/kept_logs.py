"""Logs of removed instances: an engine that failed must still be readable after it was cleaned up.

`<state>/logs/<agent>/<UTC time>-<id>.log`, lines as in `engine.log`; the last five are kept.
"""

from __future__ import annotations

import contextlib
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent_manager.runtimes.logfile import Parser, stamped
from agent_manager.state import ensure, unusable

if TYPE_CHECKING:
    from pathlib import Path

    from agent_manager.runtimes.base import LogLine, Runtime

KEPT = 5
_BLOCK_BYTES = 256 << 10


async def keep_log(runtime: Runtime, instance_id: str, folder: Path, limit: int = KEPT) -> Path | None:
    """Copy an instance's whole log into `folder`, and drop all but the newest `limit` there.

    Returns where it is; None for a log without a line, which is not kept. Raises NotRunning, StateUnusable.
    """
    ensure(folder)
    kept = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{instance_id}.log"
    unfinished = folder / f".{kept.name}"
    try:
        async with contextlib.aclosing(runtime.logs(instance_id)) as lines:
            with unfinished.open("w", encoding="utf-8") as file:
                async for line in lines:
                    file.write(stamped(line))
        if not unfinished.stat().st_size:
            return None
        unfinished.rename(kept)
        for old in kept_logs(folder)[limit:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        raise unusable(kept, error) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return kept


def kept_logs(folder: Path) -> tuple[Path, ...]:
    """The logs kept in `folder`, newest first. Raises StateUnusable when that cannot be told."""
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise unusable(folder, error) from error
    logs = (name for name in names if name.endswith(".log") and not name.startswith("."))
    return tuple(folder / name for name in sorted(logs, reverse=True))


def read_kept(path: Path, *, tail: int | None = None, since: datetime | None = None) -> tuple[LogLine, ...]:
    """The last `tail` lines of a kept log that are not older than `since`. Blocks; raises StateUnusable."""
    parser = Parser(datetime.now(UTC), since)
    found: deque[LogLine] = deque(maxlen=tail)
    try:
        with path.open("rb") as file:
            while data := file.read(_BLOCK_BYTES):
                found.extend(parser.feed(data))
    except OSError as error:
        raise unusable(path, error) from error
    found.extend(parser.finish())
    return tuple(found)
