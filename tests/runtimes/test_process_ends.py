"""The process runtime when engines, workers and shims end in bad ways."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from agent_manager.errors import OperationFailed
from agent_manager.runtimes import proc
from agent_manager.runtimes.base import InstanceState
from agent_manager.runtimes.process import ProcessRuntime
from agent_manager.state import StateDir
from tests.contract.kits import READY, SLEEP

from .conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .conftest import Lab

SERVES = READY + SLEEP
WITH_WORKER = (
    "import os, signal\n"
    "if not os.fork():\n"
    "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "    print('worker', os.getpid(), flush=True)\n"
    "    import time\n"
    "    while True: time.sleep(60)\n"
) + SLEEP


def alive(pid: int) -> bool:
    return proc.environment(pid) != []  # a zombie has none


async def test_workers_left_behind_are_ended_and_the_end_is_that_of_the_main_process(lab: Lab) -> None:
    spec = await lab.started(WITH_WORKER)
    worker = int((await lab.said(spec, "worker ")).split()[1])
    main = lab.shim(spec)["engine_pid"]
    assert await lab.runtime.pids(spec.id) == {main, worker}
    os.kill(main, signal.SIGKILL)
    await eventually(lambda: not alive(main))
    (instance,) = await lab.runtime.list()
    assert (instance.state, alive(worker)) == (InstanceState.RUNNING, True)
    ended = await lab.runtime.wait(spec.id)
    assert (ended.code, ended.requested, alive(worker)) == (137, False, False)


async def test_stopping_does_not_wait_for_workers_without_a_main_process(lab: Lab) -> None:
    spec = await lab.started(WITH_WORKER)
    worker = int((await lab.said(spec, "worker ")).split()[1])
    os.kill(lab.shim(spec)["engine_pid"], signal.SIGKILL)
    ended = await lab.runtime.stop(spec.id, grace_s=600)
    assert (ended.code, ended.requested, alive(worker)) == (137, True, False)


async def test_a_worker_in_a_session_of_its_own_is_still_ours(lab: Lab) -> None:
    spec = await lab.started(
        WITH_WORKER.replace("if not os.fork():\n", "if not os.fork():\n    os.setsid()\n")
    )
    worker = int((await lab.said(spec, "worker ")).split()[1])
    await lab.runtime.stop(spec.id, grace_s=0)
    assert not alive(worker)


async def test_an_engine_whose_shim_was_killed_lives_on_and_is_stopped(lab: Lab) -> None:
    spec = await lab.started(WITH_WORKER)
    await lab.said(spec, "worker ")
    os.kill(lab.shim(spec)["shim_pid"], signal.SIGKILL)
    await eventually(lambda: not alive(lab.shim(spec)["shim_pid"]))
    (instance,) = await lab.runtime.list()
    assert instance.state is InstanceState.RUNNING
    assert len(await lab.runtime.pids(spec.id)) == 2
    with pytest.raises(OperationFailed):
        await lab.runtime.start(spec.id)
    ended = await lab.runtime.stop(spec.id, grace_s=0.1)
    assert (ended.code, ended.requested) == (None, True)
    assert "nobody saw it end" in (ended.reason or "")
    assert await lab.runtime.pids(spec.id) == frozenset()
    assert "output was lost" in (await lab.texts(spec))[-1]
    (instance,) = await lab.runtime.list()
    assert instance.exit == ended


async def test_waiting_notices_the_end_of_an_engine_without_a_shim(lab: Lab) -> None:
    spec = await lab.started(SERVES)
    await lab.said(spec, "ready")
    os.kill(lab.shim(spec)["shim_pid"], signal.SIGKILL)
    waiting = asyncio.create_task(lab.runtime.wait(spec.id))
    os.kill(lab.shim(spec)["engine_pid"], signal.SIGKILL)
    assert (await waiting).code is None
    assert "output was lost" in (await lab.texts(spec))[-1]
    await lab.runtime.start(spec.id)
    assert (await lab.runtime.stop(spec.id, grace_s=0)).code == 137


async def test_all_killed_at_once_is_an_end_nobody_saw(lab: Lab) -> None:
    spec = await lab.started(SERVES)
    shim = lab.shim(spec)
    os.kill(shim["shim_pid"], signal.SIGKILL)
    os.kill(shim["engine_pid"], signal.SIGKILL)
    ended = await lab.runtime.wait(spec.id)
    assert (ended.code, ended.requested) == (None, False)


async def test_a_shim_that_hangs_is_ended_after_its_engine(lab: Lab) -> None:
    spec = await lab.started(SERVES)
    await lab.said(spec, "ready")
    shim = lab.shim(spec)["shim_pid"]
    os.kill(shim, signal.SIGSTOP)
    ended = await lab.runtime.stop(spec.id, grace_s=0)
    assert (ended.code, ended.requested) == (None, True)
    await eventually(lambda: not alive(shim))


async def test_terminal_signals_do_not_end_a_shim(lab: Lab) -> None:
    spec = await lab.started(SERVES)
    await lab.said(spec, "ready")
    shim = lab.shim(spec)["shim_pid"]
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(shim, number)
    assert (await lab.runtime.stop(spec.id, grace_s=30)).code == 143


@pytest.fixture
def foreign() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of ours, and runs."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", SERVES], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


@pytest.mark.parametrize("same_ticks", [True, False])
async def test_a_reused_pid_is_not_ours_and_is_never_signalled(
    lab: Lab, foreign: subprocess.Popen[bytes], *, same_ticks: bool
) -> None:
    spec = await lab.created(SERVES)
    identity = proc.identify(foreign.pid)
    assert identity is not None
    ticks = identity.started_ticks if same_ticks else identity.started_ticks - 1
    record = {"run": 1, "started_at": 1.0, "shim_pid": foreign.pid, "shim_ticks": ticks}
    record |= {"engine_pid": foreign.pid, "engine_ticks": ticks}
    (lab.folder(spec) / "shim.json").write_text(json.dumps(record))
    (instance,) = await lab.runtime.list()
    assert instance.state is InstanceState.EXITED
    assert instance.exit is not None
    assert instance.exit.code is None
    assert await lab.runtime.pids(spec.id) == frozenset()
    await lab.runtime.stop(spec.id, grace_s=0)
    await lab.runtime.remove(spec.id)
    assert foreign.poll() is None


async def test_one_id_in_two_state_folders_is_two_instances(lab: Lab, tmp_path: Path) -> None:
    other = ProcessRuntime(StateDir(tmp_path / "other"))
    spec = await lab.started(SERVES)
    twin = lab.spec(SERVES)
    await other.create(twin)
    await other.start(twin.id)
    (theirs,) = await other.pids(twin.id)
    await lab.runtime.stop(spec.id, grace_s=0)
    assert await other.pids(twin.id) == {theirs}
    assert (await other.stop(twin.id, grace_s=0)).code == 137


async def test_a_state_folder_behind_a_link_is_the_same(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(lab.state.root)
    through_link = ProcessRuntime(StateDir(tmp_path / "link"))
    spec = await lab.started(SERVES)
    assert await through_link.pids(spec.id) == await lab.runtime.pids(spec.id) != frozenset()


async def test_an_engine_outlives_who_started_it(lab: Lab) -> None:
    spec = await lab.created(SERVES)
    starter = (
        "import asyncio, os, pathlib, signal, sys\n"
        "from agent_manager.runtimes.process import ProcessRuntime\n"
        "from agent_manager.state import StateDir\n"
        "asyncio.run(ProcessRuntime(StateDir(pathlib.Path(sys.argv[1]))).start(sys.argv[2]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", starter, str(lab.state.root), spec.id], check=False
    )
    assert done.returncode == -signal.SIGKILL
    await lab.said(spec, "ready")
    assert (await lab.runtime.stop(spec.id, grace_s=30)).code == 143


async def test_a_cancelled_start_is_a_start(lab: Lab) -> None:
    spec = await lab.created(SERVES)
    starting = asyncio.create_task(lab.runtime.start(spec.id))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    (instance,) = await lab.runtime.list()
    assert instance.state is InstanceState.RUNNING


async def test_a_full_disk_loses_lines_and_nothing_else(lab: Lab) -> None:
    spec = await lab.started(
        "import os, sys\n"
        "for line in sys.stdin: pass\n"
        "fifo = os.path.join(os.getcwd(), 'fifo')\n"
        "os.mkfifo(fifo)\n"
        "print('ready', flush=True)\n"
        "for word in open(fifo):\n"
        "    for n in range(500): print(word.strip(), n)\n"
        "    print(word.strip(), 'done', flush=True)\n"
        "    open('said-' + word.strip(), 'w').close()\n"
    )
    await lab.said(spec, "ready")
    shim, folder = lab.shim(spec)["shim_pid"], lab.folder(spec)
    unlimited = resource.prlimit(shim, resource.RLIMIT_FSIZE)
    resource.prlimit(shim, resource.RLIMIT_FSIZE, (4096, unlimited[1]))  # to a writer, as good as a full disk
    with (folder / "fifo").open("w", buffering=1) as fifo:
        fifo.write("lost\n")
        await eventually((folder / "said-lost").exists)
        await eventually(lambda: (folder / "engine.log").stat().st_size == 4096)
        # The engine was not held up; what it says next comes after the rest was read and dropped.
        resource.prlimit(shim, resource.RLIMIT_FSIZE, unlimited)
        fifo.write("kept\n")
        await lab.said(spec, "kept done")
    texts = await lab.texts(spec)
    notes = [text for text in texts if text.startswith("agent-manager: ")]
    assert len(notes) == 1
    assert "bytes of output were lost here: File too large" in notes[0]
    assert texts[0] == "ready"
    assert texts[-501:] == [f"kept {n}" for n in range(500)] + ["kept done"]
    assert (await lab.runtime.wait(spec.id)).code == 0


async def test_a_log_that_can_never_be_written_harms_nobody(lab: Lab) -> None:
    spec = await lab.created("for n in range(20000): print('line', n)\n")
    (lab.folder(spec) / "engine.log").symlink_to("/dev/full")
    await lab.runtime.start(spec.id)
    assert (await lab.runtime.wait(spec.id)).code == 0


async def test_a_burst_is_written_whole_and_in_order(lab: Lab) -> None:
    spec = await lab.started("for n in range(10000): print('line', n)\n")
    await lab.runtime.wait(spec.id)
    assert await lab.texts(spec) == [f"line {n}" for n in range(10000)]


def test_proc_reads_names_with_spaces_and_brackets(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to(sys.executable)
    with subprocess.Popen([program, "-I", "-S", "-c", SERVES], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        identity = proc.identify(process.pid)
        assert identity is not None
        assert identity.started_ticks > 1
        process.kill()
