"""What the live view of `gpu-stats` costs beside an engine at work.

The real program, in a terminal of 80 × 24 and one of 120 × 40, watches a simulated engine that serves, once a
second. Its CPU time (user and system, all threads) is taken over 20 seconds, after the first three; its memory is
the kernel's high-water mark. The yardsticks are the CPU time of one empty Python program, and the memory of one
that has imported what no such view can do without.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks.http import free_port
from benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SIZES = ((80, 24), (120, 40))
WARM_UP_S = 3.0
MEASURED_S = 20.0
CPU_BOUND_PCT = 1.5
MEMORY_BOUND_MB = 60.0
MB = 1_000_000
BARE = "import asyncio, rich.console; print(open('/proc/self/status').read())"
EMPTY = "import resource; r = resource.getrusage(resource.RUSAGE_SELF); print(r.ru_utime + r.ru_stime)"
CATALOG = """\
version: 1
engine: simulated
engines:
  simulated: {{load_seconds: 0, time_to_first_token_ms: 50, inter_token_ms: 20}}
models:
  small: {{repo: Qwen/Qwen2.5-7B-Instruct-AWQ}}
agents:
  dev: {{model: small, port: {dev}, context: 4k, sequences: 4}}
"""


def measure() -> list[Row]:
    program = str(Path(sys.executable).with_name("agent-manager"))
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        (Path(folder) / "models.yaml").write_text(CATALOG.format(dev=port))
        environ = {
            **os.environ,
            "AGENT_MANAGER_STATE_DIR": f"{folder}/state",
            "AGENT_MANAGER_CATALOG": f"{folder}/models.yaml",
            "TERM": "xterm-256color",
        }
        subprocess.run([program, "-q", "launch", "dev", "--no-pull"], env=environ, check=True)
        try:
            with _working(port):
                return [row for size in SIZES for row in _view_rows(program, environ, *size)]
        finally:
            subprocess.run([program, "-q", "stop", "--all"], env=environ, check=True)


def _view_rows(program: str, environ: Mapping[str, str], columns: int, lines: int) -> list[Row]:
    with _terminal([program, "gpu-stats"], environ, columns, lines) as process:
        time.sleep(WARM_UP_S)
        before, began = process.cpu_times(), time.monotonic()
        time.sleep(MEASURED_S)
        after, elapsed_s = process.cpu_times(), time.monotonic() - began
        status = Path(f"/proc/{process.pid}/status").read_text()
    spent_s = after.user + after.system - before.user - before.system
    percent = 100 * spent_s / elapsed_s
    peak_mb, bare_mb = _peak_mb(status), _peak_mb(_answer(BARE))
    empty_ms = float(_answer(EMPTY)) * 1000
    what = f"`gpu-stats`, {columns} × {lines}, once a second"
    return [
        Row(
            what=f"{what}: CPU",
            figure=f"{percent:.2f} % of a core",
            yardstick=f"`python -c pass` once a second: {empty_ms / 10:.2f} %",
            bound=f"≤ {CPU_BOUND_PCT} %",
            kept=percent <= CPU_BOUND_PCT,
        ),
        Row(
            what=f"{what}: memory",
            figure=f"{peak_mb:.1f} MB",
            yardstick=f"`import asyncio, rich.console`: {bare_mb:.1f} MB",
            bound=f"≤ {MEMORY_BOUND_MB:.0f} MB",
            kept=peak_mb <= MEMORY_BOUND_MB,
        ),
    ]


@contextmanager
def _terminal(
    argv: list[str], environ: Mapping[str, str], columns: int, lines: int
) -> Iterator[psutil.Process]:
    """The program in a terminal that somebody reads."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    started = subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, env=dict(environ), start_new_session=True
    )
    os.close(theirs)
    reader = threading.Thread(target=_read_all, args=(ours,))
    reader.start()
    try:
        yield psutil.Process(started.pid)
        os.write(ours, b"q")
        started.wait(10)
    finally:
        started.kill()
        started.wait()
        reader.join()
        os.close(ours)


def _read_all(fd: int) -> None:
    with contextlib.suppress(OSError):  # Linux says EIO when the last one has closed the terminal
        while os.read(fd, 65536):
            pass


@contextmanager
def _working(port: int) -> Iterator[None]:
    """Two requests at a time, one after the other, until the block ends."""
    ended = threading.Event()
    body = json.dumps({"model": "dev", "prompt": "on and on", "max_tokens": 100}).encode()
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )

    def work() -> None:
        while not ended.is_set():
            with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310 - our own loopback address
                answer.read()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _peak_mb(status: str) -> float:
    """The most memory it ever had, of what /proc says of a process."""
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / MB


def _answer(code: str) -> str:
    """What a Python program prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
