"""Run a simulated engine: `python -m agent_manager.engines.simulated serve MODEL --flags-of-vllm`.

Exits 0 after SIGTERM or SIGINT, 1 when it could not start or crashed, 2 for a bad command line or environment.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from agent_manager.engines.simulated import log, options, settings
from agent_manager.engines.simulated.loading import Load, LoadFailed
from agent_manager.errors import StateUnusable


def main(argv: list[str]) -> int:
    """Load and serve; returns the exit code."""
    started_s = time.monotonic()
    # A loading vLLM does not answer SIGTERM, and Ctrl-C in a terminal ends it without a word.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asked = options.parse(argv)
    try:
        wanted = settings.from_environment(os.environ)
    except ValueError as error:
        sys.stderr.write(f"{options.PROGRAM}: error: {error}\n")
        return 2
    load = Load(asked, wanted, started_s)
    try:
        _load_and_serve(load, asked, wanted)
    except LoadFailed:
        return 1
    except (StateUnusable, OSError) as error:
        log.plain(log.SERVER, f"{type(error).__name__}: {error}")
        return 1
    finally:
        load.end_worker()
    return 0


def _load_and_serve(load: Load, asked: options.Options, wanted: settings.Settings) -> None:
    load.announce()
    # The memory first: it may start a worker, and one that outlives this process must not hold the port.
    with load.claim_memory() as claim, _bind(asked.host, asked.port) as listener:
        # The HTTP server's libraries are most of what this program takes to start: the load time covers it.
        import asyncio  # noqa: PLC0415 - see above

        from agent_manager.engines.simulated.core import Core  # noqa: PLC0415 - see above
        from agent_manager.engines.simulated.server import Server, serve  # noqa: PLC0415 - see above

        load.run()
        core = Core(wanted, load.footprint, claim, asked.max_num_seqs)
        asyncio.run(serve(Server(core, asked, wanted), core, listener, asked, wanted))


def _bind(host: str, port: int) -> socket.socket:
    """Take the port without listening on it, as vLLM does: who connects during the load is refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # Taking the interpreter apart costs more than all of a stop, and nothing is left that needs it.
    os._exit(code)
