"""The progress of a pull on stderr: a line for each file and the whole on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec import Struct

from agent_manager.cli.output import GIB, gib, printable, seconds
from agent_manager.cli.progress import PLAIN_PERCENT_STEP, percentage
from agent_manager.swap.notices import PullProgress, Remark, StepBegan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from agent_manager.checkpoints.fetching.progress import FileProgress
    from agent_manager.cli.output import Output
    from agent_manager.swap.notices import Listener, Notice

RATE_WINDOW_S = 10.0
"""How far back a rate looks: long enough to be read, short enough to be now."""
PLAIN_EVERY_S = 30.0
"""A line at least so often, or nobody knows whether it is still going on."""
_MB = 1_000_000
_MIB = 1 << 20
TOLD_BYTES = 16 << 20
"""A file of more is worth a line of its own."""


@contextmanager
def pull_progress(output: Output) -> Iterator[Listener]:
    """A listener that shows what it hears until the block ends; it never raises, whatever becomes of stderr."""
    if output.quiet:
        yield lambda _: None
    elif output.json or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield PlainPull(sys.stderr).tell
    else:
        from agent_manager.cli.pull_live import LivePull  # noqa: PLC0415 - rich, only for a terminal

        with LivePull(colours=output.colours(sys.stderr)) as live:
            yield live.tell


class Rate:
    """Bytes per second, over the last seconds; None before it can be told."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def saw(self, now_s: float, done_bytes: int) -> None:
        """So much was done by then. Less than before: it began again, and so does the rate."""
        if self._seen and done_bytes < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now_s, done_bytes))
        while now_s - self._seen[0][0] > RATE_WINDOW_S:
            self._seen.popleft()

    @property
    def bytes_per_s(self) -> float | None:
        """Over what was seen."""
        if not self._seen:
            return None
        (then_s, before), (now_s, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now_s - then_s) if now_s > then_s else None

    def told(self, left_bytes: int) -> str:
        """`85.2 MB/s, 1 min 10 s left`, as far as it is known."""
        rate = self.bytes_per_s
        if rate is None:
            return ""
        if rate <= 0:
            return "no bytes are coming"
        left = f", {seconds(left_bytes / rate, whole=True)} left" if left_bytes > 0 else ""
        return f"{rate / _MB:.1f} MB/s{left}"


class Arrival(Struct, frozen=True):
    """When a file began to come, and how much of it was here by then."""

    since_s: float
    here_bytes: int

    def told(self, now_s: float, file: FileProgress) -> str:
        """`3.95 GiB in 45 s, 88.2 MB/s`, now that all of it is here."""
        took_s = now_s - self.since_s
        rate = f", {(file.size_bytes - self.here_bytes) / took_s / _MB:.1f} MB/s" if took_s > 0 else ""
        return f"{amount(file.size_bytes)} in {seconds(took_s)}{rate}"


def amount(size_bytes: int) -> str:
    """A size in GiB, or in MiB where that would be nothing but zeros."""
    return gib(size_bytes) if size_bytes >= GIB // 10 or not size_bytes else f"{size_bytes / _MIB:.2f} MiB"


class PlainPull:
    """One line when a model begins, then each ten percent or half minute, and one for each file that is done."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begin()

    def _begin(self) -> None:
        self._rate = Rate()
        self._percent: int | None = None
        self._said_s = 0.0
        self._done: set[str] | None = None
        self._files: dict[str, Arrival] = {}

    def tell(self, notice: Notice) -> None:
        """Write what the notice says, if that is new."""
        match notice:
            case StepBegan(agent=model):
                self._begin()
                self._write(f"pulling {model}")
            case PullProgress():
                self._pull(notice)
            case Remark(message=message, warning=warning):
                self._write(f"warning: {message}" if warning else message)

    def _pull(self, now: PullProgress) -> None:
        clock_s = time.monotonic()
        self._rate.saw(clock_s, now.done_bytes)
        done = {file.name for file in now.files if file.done_bytes == file.size_bytes}
        if self._percent is None or self._done is None:
            here = sum(file.size_bytes for file in now.files) - now.total_bytes
            kept = f", {amount(here)} are here already" if here else ""
            self._write(f"pulling {now.model}: {amount(now.total_bytes)} in {len(now.files)} files{kept}")
            self._percent, self._said_s, self._done = 0, clock_s, done
        for file in now.files:
            if file.name not in self._files or file.done_bytes == self._files[file.name].here_bytes:
                self._files[file.name] = Arrival(clock_s, file.done_bytes)
            if file.name in done - self._done and file.size_bytes > TOLD_BYTES:
                self._write(
                    f"pulling {now.model}: {file.name} is here, {self._files[file.name].told(clock_s, file)}"
                )
        self._done = done
        percent = percentage(now.done_bytes, now.total_bytes)
        far = percent >= self._percent + PLAIN_PERCENT_STEP
        if far or clock_s - self._said_s > PLAIN_EVERY_S:
            self._percent, self._said_s = percent - percent % PLAIN_PERCENT_STEP, clock_s
            told = self._rate.told(now.total_bytes - now.done_bytes)
            self._write(
                f"pulling {now.model}: {percent}% of {amount(now.total_bytes)}{', ' if told else ''}{told}"
            )

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(printable(line) + "\n")
            self._stream.flush()
