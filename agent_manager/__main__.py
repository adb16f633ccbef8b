"""The program's first lines: `--version` without importing anything, and quiet ends for Ctrl-C and closed pipes."""

from __future__ import annotations

import os
import sys

from agent_manager import __version__

INTERRUPTED = 130
PIPE_CLOSED = 141
"""128 + SIGPIPE: what a shell reports for any program whose reader went away."""


def main() -> None:
    """Run the command line of this process and end it with the exit code of cli.md."""
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # What is still buffered has no reader; without this the interpreter would say so once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = PIPE_CLOSED
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    if arguments[:1] in (["--version"], ["-V"]):
        sys.stdout.write(f"agent-manager {__version__}\n")
        return 0
    from agent_manager.cli.app import run  # noqa: PLC0415 - typer costs five times what --version may

    return run(arguments)


if __name__ == "__main__":
    main()
