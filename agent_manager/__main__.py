"""The program's first lines: `--version` without importing anything, and quiet ends for Ctrl-C and closed pipes."""

from __future__ import annotations

import os
import sys

from agent_manager import __version__

INTERRUPTED = 130
PIPE_CLOSED = 141
"""128 + SIGPIPE: what a shell reports for any program whose reader went away."""


def main() -> None:
    """Run the command line of this process and end it with its exit code."""
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        _give_up_stdout()
        code = PIPE_CLOSED
    except OSError as error:
        _give_up_stdout()
        sys.stderr.write(f"error: the result cannot be written: {error.strerror}\n")
        code = 1
    sys.exit(code)


def _give_up_stdout() -> None:
    """What is still buffered cannot be written; without this the interpreter would say so once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    if arguments[:1] in (["--version"], ["-V"]):
        sys.stdout.write(f"agent-manager {__version__}\n")
        return 0
    import gc  # noqa: PLC0415 - --version needs nothing but the interpreter

    # Imports leave no garbage, and the collector would look for some a hundred times: 20 ms. `build_host` wakes it.
    gc.disable()
    # Pydantic would look for plugins, of which none is used here, in every package that is installed: 5 ms.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from agent_manager.cli.app import run  # noqa: PLC0415 - typer costs five times what --version may

    code = run(arguments)
    # At its end the interpreter would look through every object once more: 50 ms, and there is nothing to find.
    gc.freeze()
    return code


if __name__ == "__main__":
    main()
