"""A program for tests: shows the notices that are named on a pipe, one on each line, as the real display does."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from agent_manager.cli.output import Output
from agent_manager.cli.progress import progress
from agent_manager.engines.base import Phase
from agent_manager.swap.notices import LoadProgress, Notice, PullProgress, Remark, Step, StepBegan

GIB = 1 << 30
NOTICES: dict[str, Notice] = {
    "pull": StepBegan(step=Step.PULLING, agent="tiny"),
    "pulled-half": PullProgress(model="tiny", done_bytes=2 * GIB, total_bytes=4 * GIB),
    "pulled-more": PullProgress(model="tiny", done_bytes=2 * GIB + 1, total_bytes=4 * GIB),
    "pulled-all": PullProgress(model="tiny", done_bytes=4 * GIB, total_bytes=4 * GIB),
    "drain": StepBegan(step=Step.DRAINING, agent="po"),
    "stop": StepBegan(step=Step.STOPPING, agent="po"),
    "memory": StepBegan(step=Step.WAITING_FOR_MEMORY, agent="dev"),
    "held": Remark(message="held by\x1b[2J firefox (pid 12)"),
    "warn": Remark(message="docker does not answer", warning=True),
    "start": StepBegan(step=Step.STARTING, agent="dev"),
    "load": StepBegan(step=Step.LOADING, agent="dev", expected_s=35.2),
    "weights": LoadProgress(agent="dev", phase=Phase(order=3, name="loading weights")),
    "weights-60": LoadProgress(agent="dev", phase=Phase(order=3, name="loading weights", percent=60)),
    "ready": LoadProgress(agent="dev", phase=Phase(order=9, name="ready")),
    "check": StepBegan(step=Step.CHECKING, agent="dev"),
    "discard": StepBegan(step=Step.STOPPING, agent="dev"),
    "restore": StepBegan(step=Step.STARTING, agent="po", restoring=True),
    "restore-load": StepBegan(step=Step.LOADING, agent="po", restoring=True, expected_s=2.0),
}


def main(pipe: str, *options: str) -> None:
    """Show them until the pipe ends; `fail` raises inside the display, `print` writes a result to stdout."""
    output = Output(quiet="--quiet" in options, json="--json" in options, no_color="--no-color" in options)
    with (
        progress(output, simulated="--simulated" in options) as listener,
        Path(pipe).open(encoding="utf-8") as lines,
    ):
        for line in lines:
            name = line.strip()
            if name == "fail":
                raise SystemExit(3)
            listener(NOTICES[name])
    Path(f"{pipe}.heard").touch()


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a swap is undone when its terminal goes; it must get there
    main(*sys.argv[1:])
    print("done")  # noqa: T201 - the result
