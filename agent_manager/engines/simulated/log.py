"""The engine's log: vLLM's lines with vLLM's prefix, one write each, so that whoever follows sees them at once."""

from __future__ import annotations

import contextlib
import os
import time

CORE = "EngineCore"
SERVER = "APIServer"

_STDOUT = 1


def info(process: str, place: str, message: str) -> None:
    """Log `message` as `process` (CORE or SERVER) at `place`, such as `core.py:134`."""
    _write(process, f"INFO {_now()} [{place}] {message}")


def error(process: str, place: str, message: str) -> None:
    """Log `message` as an error, each of its lines with the prefix."""
    for line in message.splitlines():
        _write(process, f"ERROR {_now()} [{place}] {line}")


def plain(process: str, line: str) -> None:
    """Log a line that vLLM writes without level, time and place, such as a progress bar."""
    _write(process, line)


def access(line: str) -> None:
    """Log a line of the HTTP server."""
    _write(SERVER, f"INFO:     {line}")


def _write(process: str, text: str) -> None:
    # Nobody reads any more, or the disk is full: serving goes on, as it does in vLLM.
    with contextlib.suppress(OSError):
        os.write(_STDOUT, f"({process} pid={os.getpid()}) {text}\n".encode())


def _now() -> str:
    return time.strftime("%m-%d %H:%M:%S")
