"""What an engine is started with, and what happens when it, or the state folder, cannot be used."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import stat
from typing import TYPE_CHECKING

import pytest

from agent_manager.errors import EngineMissing, StateUnusable
from agent_manager.runtimes.base import InstanceState
from agent_manager.runtimes.handover import Order
from agent_manager.runtimes.process import ProcessRuntime
from agent_manager.state import StateDir
from tests.contract.kits import READY, SLEEP

from .conftest import Lab

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FreePort

SERVES = READY + SLEEP
SHOWS_ITSELF = (
    "import json, os\n"
    "print(json.dumps({'env': dict(os.environ), 'fds': sorted(os.listdir('/proc/self/fd'), key=int),\n"
    "                  'cwd': os.getcwd(), 'stdin': os.readlink('/proc/self/fd/0'), 'sid': os.getsid(0)}))\n"
)


async def test_an_engine_inherits_little_and_no_secret(state: StateDir, free_port: FreePort) -> None:
    lab = Lab(state, free_port)
    host_env = {
        "PATH": os.environ["PATH"],
        "HOME": "/home/somebody",
        "LC_ALL": "C.UTF-8",
        "HF_HUB_CACHE": "/models",
        "CUDA_VISIBLE_DEVICES": "0",
        "HF_TOKEN": "hunter2",
        "HF_TOKEN_PATH": "hunter2",
        "OPENAI_API_KEY": "hunter2",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "EDITOR": "ed",
        "AGENT_MANAGER_INSTANCE": "somebody-else",
    }
    lab.runtime = ProcessRuntime(state, host_env=host_env)
    spec = await lab.started(SHOWS_ITSELF, env={"VLLM_LOGGING_LEVEL": "INFO", "LC_ALL": "C"})
    await lab.runtime.wait(spec.id)
    shown = json.loads((await lab.texts(spec))[0])
    assert shown["env"] == {
        "PATH": os.environ["PATH"],
        "HOME": "/home/somebody",
        "LC_ALL": "C",
        "HF_HUB_CACHE": "/models",
        "CUDA_VISIBLE_DEVICES": "0",
        "VLLM_LOGGING_LEVEL": "INFO",
        "SPT_NOENV": "1",
        "AGENT_MANAGER_INSTANCE": spec.id,
        "AGENT_MANAGER_STATE_DIR": str(state.root),
    }
    written = b"".join(path.read_bytes() for path in lab.folder(spec).iterdir())
    assert b"hunter2" not in written
    assert b"/home/somebody" not in (lab.folder(spec) / "spec.json").read_bytes()


async def test_an_engine_gets_three_descriptors_and_a_session_apart(lab: Lab) -> None:
    spec = await lab.started(SHOWS_ITSELF)
    await lab.runtime.wait(spec.id)
    shown = json.loads((await lab.texts(spec))[0])
    assert shown["fds"] == ["0", "1", "2", "3"]  # the last one lists them
    assert shown["stdin"] == "/dev/null"
    assert shown["cwd"] == str(lab.folder(spec))
    assert shown["sid"] == lab.shim(spec)["shim_pid"] != os.getsid(0)


async def test_an_engine_gets_the_usual_signals(lab: Lab) -> None:
    spec = await lab.started("", argv=("/bin/sh", "-c", "grep -E 'SigIgn|SigBlk' /proc/self/status"))
    await lab.runtime.wait(spec.id)
    masks = {line.split(":")[0]: int(line.split()[1], 16) for line in await lab.texts(spec)}
    assert masks["SigBlk"] == 0
    assert not masks["SigIgn"] & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


async def test_records_are_for_their_owner_only(lab: Lab) -> None:
    spec = await lab.started(SERVES)
    await lab.runtime.stop(spec.id, grace_s=0)
    for path in lab.folder(spec).iterdir():
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        ("#!/no/such/interpreter\n", 0o755, "cannot be executed: No such file"),
        ("\x7fELF not really", 0o755, "cannot be executed: Exec format error"),
        ("#!/bin/sh\n", 0o644, "cannot be executed"),
    ],
)
async def test_a_program_that_cannot_be_executed(
    lab: Lab, tmp_path: Path, content: str, mode: int, message: str
) -> None:
    program = tmp_path / "engine"
    program.write_text(content)
    program.chmod(mode)
    spec = await lab.created("", argv=(str(program),))
    with pytest.raises(EngineMissing, match=message):
        await lab.runtime.start(spec.id)
    (instance,) = await lab.runtime.list()
    assert instance.state is InstanceState.EXITED
    assert instance.exit is not None
    assert message in (instance.exit.reason or "")


async def test_a_program_that_does_not_exist(lab: Lab) -> None:
    spec = await lab.created("", argv=("/no/such/engine",))
    with pytest.raises(EngineMissing, match="'/no/such/engine' does not exist"):
        await lab.runtime.start(spec.id)


async def test_a_state_folder_that_is_a_file(tmp_path: Path, free_port: FreePort) -> None:
    (tmp_path / "state").write_text("")
    lab = Lab(StateDir(tmp_path / "state"), free_port)
    with pytest.raises(StateUnusable, match=str(tmp_path / "state")):
        await lab.runtime.create(lab.spec(SERVES))
    with pytest.raises(StateUnusable, match=str(tmp_path / "state")):
        await lab.runtime.list()


async def test_an_instance_folder_that_cannot_be_written_is_told_before_anything_runs(lab: Lab) -> None:
    spec = await lab.created(SERVES)
    (lab.folder(spec) / "shim.json").mkdir()  # a record cannot take its place; root may write anywhere else
    (lab.folder(spec) / "shim.json" / "full").touch()
    with pytest.raises(StateUnusable, match=spec.id):
        await lab.runtime.start(spec.id)
    assert await lab.runtime.pids(spec.id) == frozenset()


async def test_listing_without_a_state_folder_makes_none(state: StateDir) -> None:
    assert await ProcessRuntime(state).list() == ()
    assert not state.root.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"spec": 3}', "\x00\xff", '{"created_ns": 1, "spec": {}}']
)
async def test_a_broken_spec_is_skipped_and_kept(
    lab: Lab, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    good = await lab.created(SERVES, "dev-00000002")
    bad = await lab.created(SERVES, "dev-00000001")
    (lab.folder(bad) / "spec.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        assert [instance.spec for instance in await lab.runtime.list()] == [good]
    assert bad.id in caplog.text
    assert (lab.folder(bad) / "spec.json").read_text() == content
    with pytest.raises(StateUnusable):
        await lab.runtime.start(bad.id)
    await lab.runtime.remove(bad.id)
    assert not lab.folder(bad).exists()


@pytest.mark.parametrize("record", ["shim.json", "exit.json", "stop-requested"])
async def test_other_broken_records_do_not_hide_what_runs(lab: Lab, record: str) -> None:
    spec = await lab.started(SERVES)
    await lab.said(spec, "ready")
    (lab.folder(spec) / record).write_text("{ broken")
    (instance,) = await lab.runtime.list()
    assert instance.state is InstanceState.RUNNING
    ended = await lab.runtime.stop(spec.id, grace_s=0)
    assert await lab.runtime.pids(spec.id) == frozenset()
    assert ended.requested
    (instance,) = await lab.runtime.list()
    assert instance.state is InstanceState.EXITED


async def test_foreign_things_among_the_records_are_left_alone(lab: Lab) -> None:
    spec = await lab.created(SERVES)
    (lab.state.instances / "note.txt").write_text("")  # could be an id
    (lab.state.instances / "Not An Id").mkdir()
    (lab.state.instances / "empty").mkdir()
    assert [instance.spec for instance in await lab.runtime.list()] == [spec]
    assert (lab.state.instances / "empty").is_dir()


async def test_what_others_left_half_made_or_half_removed_goes_with_the_next_instance(lab: Lab) -> None:
    for name in (".new-po-00000009", ".removed-po-00000008-1"):
        (lab.state.instances / name).mkdir(parents=True)
        (lab.state.instances / name / "spec.json").write_text("{")
    assert await lab.runtime.list() == ()
    spec = await lab.created("pass")
    assert {path.name for path in lab.state.instances.iterdir()} == {spec.id, ".lock"}


async def test_listing_in_many_places_while_one_changes_everything(lab: Lab) -> None:
    done = asyncio.Event()

    async def watch() -> None:
        runtime = ProcessRuntime(lab.state)
        while not done.is_set():
            await runtime.list()

    watching = [asyncio.create_task(watch()) for _ in range(3)]
    for number in range(6):
        spec = await lab.started("", f"dev-{number:08x}", argv=("/bin/true",))
        await lab.runtime.wait(spec.id)
        await lab.runtime.remove(spec.id)
    done.set()
    await asyncio.gather(*watching)


@pytest.mark.parametrize("cut", [0, 1, 10, -12, -10, -2, -1])
def test_half_an_order_is_no_order(cut: int) -> None:
    order = Order(
        run=7,
        root="/état",
        instance_id="dev-1",
        engine_port=8101,
        listener=-1,
        program="/bin/true",
        argv=["true", "."],
        env={"A": "b=c", "EMPTY": ""},
    )
    decoded = Order.decode(order.encode())
    assert (decoded.argv, decoded.env, decoded.root) == (["true", "."], {"A": "b=c", "EMPTY": ""}, "/état")
    with pytest.raises(ValueError, match="not whole"):
        Order.decode(order.encode()[:cut])
