"""The shim: one small process per instance, which outlives whoever started it.

Run by `launch.py` with the instance's folder as its argument and an order (handover.py) on stdin. It detaches,
starts the engine, reports on stdout how that went, and stays: it keeps the engine's output in a bounded log,
forwards the agent port to the engine's, and writes `exit.json` once no process of the instance is left. Signals
meant for a terminal, or for everything at once, do not end it: it ends when the engine has.

The report, one line: `ok`, or `exec ERRNO` (the engine cannot be executed), or `state ERRNO` (the folder cannot
be written).

Standard library only, and what is needed after the start is imported after the start: this file and an
interpreter are all that stands between a runtime's `start` and the engine. Linux only.
"""

from __future__ import annotations

import os
import sys
import time

from agent_manager.runtimes import handover, proc

TYPE_CHECKING = False  # as in `typing`, which costs 5 ms to import
if TYPE_CHECKING:
    from typing import NoReturn

# Python ignores these two, and an engine must not inherit that. Linux numbers on x86 and ARM; importing `signal`
# for their names costs 2 ms before the engine runs.
_SIGPIPE, _SIGXFSZ = 13, 25
_SIGKILL = 9


def main() -> None:
    """Be the shim of the folder named on the command line. Never returns."""
    if os.fork():
        os._exit(0)  # whoever started us has no child to reap later
    os.setsid()
    folder = sys.argv[1]
    try:
        order = handover.Order.decode(_read_all(0))
    except ValueError:
        os._exit(1)  # whoever started us died half-way; nothing was recorded, nothing runs
    pid, output = _start(folder, order)
    _report("ok\n")
    _detach_stdio()

    from agent_manager.runtimes.supervisor import Supervisor  # noqa: PLC0415 - the engine runs by now

    Supervisor(folder, order, pid, output).run()
    os._exit(0)  # nothing to clean up, and someone may be waiting for this process to end


def _start(folder: str, order: handover.Order) -> tuple[int, int]:
    # The engine's pid and the reading end of its output; exits, having said why, when it cannot be had.
    if order.listener >= 0:
        os.set_inheritable(order.listener, False)  # noqa: FBT003 - the standard library's signature
    started_at = time.time()
    output, engine_output = os.pipe()
    try:
        os.chdir(folder)
        handover.reserve_exit_record(folder)
        _record(folder, order, started_at, None)
    except OSError as error:
        _give_up("state", error)
    try:
        pid = _spawn(order, engine_output)
    except OSError as error:
        _give_up("exec", error)
    try:
        proc.settle(pid)  # whoever hears of it can recognise it
        _record(folder, order, started_at, proc.identify(pid))
    except OSError as error:
        os.kill(pid, _SIGKILL)
        _give_up("state", error)
    os.close(engine_output)
    return pid, output


def _give_up(what: str, error: OSError) -> NoReturn:
    _report(f"{what} {error.errno or 0}\n")
    os._exit(1)


def _spawn(order: handover.Order, output: int) -> int:
    return os.posix_spawn(
        order.program,
        order.argv,
        order.env,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ],
        setsigmask=[],
        setsigdef=[_SIGPIPE, _SIGXFSZ],
    )


def _record(folder: str, order: handover.Order, started_at: float, engine: proc.Identity | None) -> None:
    shim = proc.identify(os.getpid())
    text = (
        f'{{"run": {order.run}, "started_at": {started_at:.6f}, '
        f'"shim_pid": {os.getpid()}, "shim_ticks": {shim.started_ticks if shim else 0}, '
        f'"engine_pid": {engine.pid if engine else 0}, "engine_ticks": {engine.started_ticks if engine else 0}}}'
    )
    handover.write_atomically(f"{folder}/{handover.SHIM_RECORD}", text.encode())


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read()


def _report(text: str) -> None:
    try:
        os.write(1, text.encode())
    except OSError:
        return  # whoever started us is gone; the record says the rest


def _detach_stdio() -> None:
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
