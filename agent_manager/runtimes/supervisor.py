"""The shim's life once the engine runs: log, forward, and at the end leave nothing behind but the exit record."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import time

from agent_manager.runtimes import handover, proc
from agent_manager.runtimes.forward import Forwarder
from agent_manager.runtimes.linelog import LineLog

WORKER_GRACE_S = 2.0
"""How long processes may outlive the engine's main process. Nobody tells them to stop: they are killed then."""
STREAM_GRACE_S = 1.0
"""How long what the engine sent last may take to reach slow clients."""
_READ_BYTES = 64 << 10
_PROGRESS_S = 0.1  # a progress bar that pauses is written after this long
_LOOK_AGAIN_S = 0.01


class Supervisor:
    """Watches over one engine, `pid`, whose output comes from the pipe `output`."""

    def __init__(self, folder: str, order: handover.Order, pid: int, output: int) -> None:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        _raise_descriptor_limit()
        self._folder, self._order, self._pid, self._output = folder, order, pid, output
        self._oom_kills = _oom_kills()
        self._log = LineLog(folder)
        self._poll = select.epoll()
        self._ended = False
        self._forwarder: Forwarder | None = None
        self._pidfd = os.pidfd_open(pid)
        os.set_blocking(output, False)
        self._poll.register(self._pidfd, select.EPOLLIN)
        self._poll.register(output, select.EPOLLIN)
        if order.listener >= 0:
            self._forwarder = Forwarder(self._poll, socket.socket(fileno=order.listener), order.engine_port)

    def run(self) -> None:
        """Until no process of the instance is left and its end is recorded. Blocks."""
        while not self._ended:
            self._turn(_PROGRESS_S if self._log.waiting else -1)
        if self._forwarder:
            self._forwarder.stop_accepting()
        _, status = os.waitpid(self._pid, 0)
        self._end_workers()
        self._pump()
        self._log.finish()
        if self._forwarder:
            self._let_streams_end(self._forwarder)
        code = os.waitstatus_to_exitcode(status)
        self._record(code if code >= 0 else 128 - code)

    def _turn(self, timeout_s: float) -> None:
        # Serve what happens next, for at most `timeout_s`; -1 is for ever.
        happened = self._poll.poll(timeout_s)
        for descriptor, _ in happened:
            if descriptor == self._output:
                self._pump_once()
            elif descriptor == self._pidfd:
                self._ended = True
                self._poll.unregister(self._pidfd)
        if self._forwarder:
            self._forwarder.handle(happened)
        if not happened:
            self._log.idle()

    def _pump_once(self) -> bool:
        # Whether there was output to take.
        try:
            data = os.read(self._output, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:  # closed by all who had it
            with contextlib.suppress(OSError):
                self._poll.unregister(self._output)
            return False
        self._log.feed(data)
        return True

    def _pump(self) -> None:
        # What is in the pipe by now, and no more: someone without our mark may hold it open.
        for _ in range(64):
            if not self._pump_once():
                return

    def _end_workers(self) -> None:
        # After `kill -9` of vLLM's main process its workers live on with all the memory of the card.
        kill_at = time.monotonic() + WORKER_GRACE_S
        wanted = proc.marks(proc.INSTANCE_VARIABLE, self._order.instance_id, self._order.root)
        while left := proc.living(self._order.instance_id, self._order.root, os.getsid(0)):
            if time.monotonic() >= kill_at:
                for pid in left:
                    proc.send(pid, signal.SIGKILL, wanted)
            self._serve_for(_LOOK_AGAIN_S)

    def _serve_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            self._turn(left_s)

    def _let_streams_end(self, forwarder: Forwarder) -> None:
        until = time.monotonic() + STREAM_GRACE_S
        while forwarder.busy and (left_s := until - time.monotonic()) > 0:
            self._turn(left_s)

    def _record(self, code: int) -> None:
        killed_by_kernel = code == 128 + signal.SIGKILL and _oom_kills() > self._oom_kills
        text = (
            f'{{"run": {self._order.run}, "code": {code}, "ended_at": {time.time():.6f}, '
            f'"out_of_host_memory": {"true" if killed_by_kernel else "false"}, "reason": null}}'
        )
        # If even the reserved space cannot be used, the instance is seen to have ended, by no one knows what.
        with contextlib.suppress(OSError):
            handover.write_exit_record(self._folder, text.encode())


def _raise_descriptor_limit() -> None:
    # Each stream takes two; the engine has been started with the limit as it was.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _oom_kills() -> int:
    # How many processes this kernel has killed for lack of memory (/proc/vmstat).
    try:
        with open("/proc/vmstat", "rb") as file:  # noqa: PTH123 - pathlib costs the shim 5 ms
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except OSError:
        return 0
    return 0
