"""The progress of a swap on stderr: a live line on a terminal, plain lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent_manager.cli.output import gib, printable, seconds
from agent_manager.engines.base import READY
from agent_manager.swap.notices import LoadProgress, PullProgress, ReadProgress, Remark, Step, StepBegan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from agent_manager.cli.output import Output
    from agent_manager.swap.notices import Listener, Notice

SIMULATED = "simulated engine: it generates text, there is no model"
PLAIN_PERCENT_STEP = 10
"""How far a download gets between two plain lines."""

_WORDS = {
    Step.PULLING: "pulling {}",
    Step.VERIFYING: "verifying {}",
    Step.DRAINING: "draining {}",
    Step.STOPPING: "stopping {}",
    Step.WAITING_FOR_MEMORY: "waiting for memory for {}",
    Step.STARTING: "starting {}",
    Step.LOADING: "loading {}",
    Step.CHECKING: "asking {} for a first word",
}
_BRING_UP = (Step.STARTING, Step.LOADING, Step.CHECKING)


@contextmanager
def progress(output: Output, *, simulated: bool = False) -> Iterator[Listener]:
    """A listener that shows what it hears until the block ends; it never raises, whatever becomes of stderr.

    `simulated`: what is launched is a simulated engine, and every display says so. The terminal is given back
    as it was, also when the block raises.
    """
    if output.quiet:
        yield lambda _: None
    elif output.json or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield PlainProgress(sys.stderr, simulated=simulated).tell
    else:
        from agent_manager.cli.live import LiveProgress  # noqa: PLC0415 - rich, only for a terminal

        with LiveProgress(colours=output.colours(sys.stderr), simulated=simulated) as live:
            yield live.tell


def words(notice: StepBegan) -> str:
    """A step as a person reads it."""
    text = _WORDS[notice.step].format(notice.agent)
    return f"putting {notice.agent} back: {text}" if notice.restoring and notice.step in _BRING_UP else text


def failed(before: StepBegan, after: StepBegan) -> bool:
    """Whether the step `before` failed, told by the one that followed: its agent is stopped, or another put back."""
    given_up = after.step is Step.STOPPING and before.step in _BRING_UP and after.agent == before.agent
    undone = after.restoring and not before.restoring and before.step is not Step.STOPPING
    return given_up or undone


class PlainProgress:
    """One line for each step and each phase, without control characters."""

    def __init__(self, stream: TextIO, *, simulated: bool) -> None:
        self._stream = stream
        self._simulated = simulated
        self._phase = ""
        self._percent = -PLAIN_PERCENT_STEP

    def tell(self, notice: Notice) -> None:
        """Write what the notice says, if that is new."""
        match notice:
            case StepBegan():
                self._step(notice)
            case LoadProgress(agent=agent, phase=phase) if phase.name not in {self._phase, READY}:
                self._phase = phase.name
                self._write(f"loading {agent}: {phase.name}")
            case PullProgress(model=model, done_bytes=done, total_bytes=total):
                self._share(f"pulling {model}", done, total)
            case ReadProgress(subject=subject, done_bytes=done, total_bytes=total):
                self._share(f"verifying {subject}", done, total)
            case Remark(message=message, warning=warning):
                self._write(f"warning: {message}" if warning else message)

    def _step(self, notice: StepBegan) -> None:
        self._phase, self._percent = "", -PLAIN_PERCENT_STEP
        expected = f", about {seconds(notice.expected_s)}" if notice.expected_s else ""
        if self._simulated and notice.step is Step.LOADING and not notice.restoring:
            self._write(SIMULATED)
        self._write(words(notice) + expected)

    def _share(self, doing: str, done_bytes: int, total_bytes: int) -> None:
        percent = percentage(done_bytes, total_bytes)
        if percent >= self._percent + PLAIN_PERCENT_STEP:
            self._percent = percent - percent % PLAIN_PERCENT_STEP
            self._write(f"{doing}: {percent}% of {gib(total_bytes)}")

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(printable(line) + "\n")
            self._stream.flush()


def percentage(done_bytes: int, total_bytes: int) -> int:
    """Whole percent, 0-100; nothing to do is done."""
    return min(100, done_bytes * 100 // total_bytes) if total_bytes else 100


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Until now."""
        return time.monotonic() - self._began
