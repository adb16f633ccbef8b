"""The facts that `doctor` judges, read off real things: files, sockets, processes, a driver's library, a Hub."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import asdict

from agent_manager.diagnosis.facts import Trouble
from agent_manager.errors import HostNotReady
from agent_manager.gpu.base import Card
from agent_manager.gpu.simulated import CARD_ID, claim
from agent_manager.swap import checkup
from agent_manager.swap.surroundings import disk_of, leftovers, port_facts, system_facts
from agent_manager.swap.within import within
from tests.gpu.stub.build import FLAGS, compiler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_manager.state import StateDir
    from tests.conftest import FreePort
    from tests.swap.conftest import Lab

STUB_SOURCE = Path(__file__).with_name("libnvidia_ml_facts.c")
READ_GPU = """
import json
from msgspec import to_builtins
from agent_manager.errors import NoGpu
from agent_manager.gpu.nvml import read_facts
try: print(json.dumps(to_builtins(read_facts())))
except NoGpu as error: print(json.dumps(error.message))
"""


# --- the machine --------------------------------------------------------------------------------------------------


def machine(root: Path, *, release: str = "6.8.0", os_release: str = "ID=debian\n") -> Path:
    """Some of the files that Linux shows of itself."""
    for path, text in {
        "etc/os-release": os_release,
        "proc/sys/kernel/osrelease": release,
        "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def pci_device(root: Path, name: str, vendor: str, pci_class: str) -> None:
    folder = root / "sys/bus/pci/devices" / name
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{pci_class}\n")


def test_a_distribution_says_what_it_is_and_what_it_is_like(tmp_path: Path) -> None:
    text = '# a comment\nPRETTY_NAME="Linux Mint 22"\nID=linuxmint\nID_LIKE="ubuntu debian"\n'
    facts = system_facts(machine(tmp_path, os_release=text))
    assert facts.name == "Linux Mint 22"
    assert facts.families == {"linuxmint", "ubuntu", "debian"}
    assert (facts.memory_bytes, facts.free_memory_bytes) == (8 << 30, 4 << 30)
    assert (facts.wsl, facts.systemd) == (False, False)


def test_wsl_is_known_by_its_kernel(tmp_path: Path) -> None:
    root = machine(tmp_path, release="5.15.153.1-microsoft-standard-WSL2\n")
    assert (system_facts(root).wsl, system_facts(root).wsl_library) == (True, False)
    library = root / "usr/lib/wsl/lib/libnvidia-ml.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    assert system_facts(root).wsl_library


def test_an_nvidia_card_is_seen_without_its_driver(tmp_path: Path) -> None:
    root = machine(tmp_path)
    assert system_facts(root).nvidia_card is None
    pci_device(root, "0000:00:1f.0", "0x8086", "0x030000")
    pci_device(root, "0000:01:00.1", "0x10de", "0x040300")
    assert system_facts(root).nvidia_card is False, "another's card, and the sound of one of theirs"
    pci_device(root, "0000:01:00.0", "0x10de", "0x030000")
    assert system_facts(root).nvidia_card is True


def test_a_machine_that_says_nothing_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    facts = system_facts(tmp_path)
    assert (facts.memory_bytes, facts.families, facts.nvidia_card) == (None, frozenset(), None)


def test_this_machine_is_read() -> None:
    facts = system_facts()
    assert facts.kernel.startswith("Linux ")
    assert facts.memory_bytes


def test_a_folder_that_is_yet_to_be_made_is_on_the_disk_of_the_one_above(tmp_path: Path) -> None:
    disk = disk_of(tmp_path / "a/b")
    assert (disk.existing, disk.writable) == (tmp_path, True)
    assert disk.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    assert not disk_of(tmp_path / "file/under").writable


# --- ports --------------------------------------------------------------------------------------------------------


async def test_ports_are_free_ours_or_somebodys(lab: Lab) -> None:
    agents = tuple(lab.host().catalog.agents.values())
    po, dev = agents
    with socket.create_server(("127.0.0.1", dev.port)):
        found = {each.port: each for each in port_facts(agents, {po.port}, {po.engine_port: "web"})}
    assert found[dev.port].pid == os.getpid()
    assert f"(pid {os.getpid()})" in str(found[dev.port].holder)
    assert found[dev.engine_port].holder is None
    assert found[po.port].ours
    assert found[po.engine_port].container == "web"


async def test_a_listener_on_another_address_is_in_nobodys_way(lab: Lab) -> None:
    agents = tuple(lab.host().catalog.agents.values())
    with socket.create_server(("127.0.0.2", agents[0].port)):
        assert [each.port for each in port_facts(agents, (), {}) if each.holder] == []


# --- leftovers ----------------------------------------------------------------------------------------------------


def test_nothing_is_left_where_nothing_ever_ran(state: StateDir) -> None:
    left = leftovers(state, ())
    assert (left.lost, left.harmless, left.kept_logs) == ((), 0, 0)
    assert not state.root.exists()


async def test_an_engine_behind_a_broken_record_is_found(lab: Lab) -> None:
    await lab.launch("po")
    (record,) = (path for path in lab.state.instances.iterdir() if path.is_dir())
    before = leftovers(lab.state, ())
    (record / "spec.json").write_text("{ not json")
    assert await lab.runtime.list() == (), "as others see it, nothing runs"

    (lost,) = leftovers(lab.state, ()).lost
    assert before.lost == ()
    assert (lost.instance, lost.folder) == (record.name, record)
    assert set(lost.pids) == await lab.runtime.pids(record.name)
    assert lost.pids


async def test_an_engine_without_a_record_is_found(lab: Lab) -> None:
    await lab.launch("po")
    (record,) = (path for path in lab.state.instances.iterdir() if path.is_dir())
    shutil.rmtree(record)
    (lost,) = leftovers(lab.state, ()).lost
    assert (lost.instance, lost.folder) == (record.name, None)
    assert lost.pids


def test_a_broken_record_of_nothing_is_found(state: StateDir) -> None:
    (state.instances / "dev-1").mkdir(parents=True)
    (state.instances / "dev-1/spec.json").write_text("[]")
    (lost,) = leftovers(state, ()).lost
    assert (lost.instance, lost.pids) == ("dev-1", ())


def test_what_the_next_launch_clears_is_counted(state: StateDir) -> None:
    folder = state.card(CARD_ID)
    with claim(folder, "dev", 1 << 30):
        (folder / "claims/po-12345678").write_text(
            "00000000001073741824 0000000001 po\n"
        )  # nobody holds its lock
        (folder / "owner.json").write_text(json.dumps({"pid": 1, "start_ticks": -1}))
        (state.instances / ".new-dev-1").mkdir(parents=True)
        assert leftovers(state, ()).harmless == 3
    assert (folder / "claims/po-12345678").exists(), "looking clears nothing"


def test_kept_logs_are_counted(state: StateDir) -> None:
    folder = state.kept_logs("dev")
    folder.mkdir(parents=True)
    (folder / "20260101T000000.000000Z-dev-1.log").write_bytes(b"x" * 100)
    left = leftovers(state, ("po", "dev"))
    assert (left.kept_logs, left.kept_logs_bytes, left.ended) == (1, 100, ("dev", "po"))


# --- looks that may hang ------------------------------------------------------------------------------------------


async def test_a_look_that_hangs_is_left_behind() -> None:
    go = threading.Event()
    try:
        found = await within("the driver", go.wait, limit_s=0.05)
    finally:
        go.set()
    assert found == Trouble(message="the driver did not answer within 0 s")


def test_a_look_that_never_returns_does_not_keep_the_program() -> None:
    program = (
        "import asyncio, threading\n"
        "from agent_manager.swap.within import within\n"
        "asyncio.run(within('it', threading.Event().wait, 0.05))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


async def test_errors_of_a_look_are_its_trouble() -> None:
    def ours() -> None:
        raise HostNotReady("no", hint="do this")

    def the_systems() -> None:
        raise OSError(28, "No space left on device")

    assert await within("it", ours) == Trouble(message="no", hint="do this")
    assert await within("it", the_systems) == Trouble(message="it cannot be read: No space left on device")
    assert await within("it", lambda: 5) == 5


async def test_a_mistake_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        await within("it", lambda: 1 // 0)


# --- the GPU ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library in the NVIDIA driver's place, for LD_LIBRARY_PATH."""
    cc = compiler()
    if cc is None:
        pytest.skip("needs a C compiler (cc) to build the library that stands in for the driver's")
    folder = tmp_path_factory.mktemp("driver")
    subprocess.run([cc, *FLAGS, "-o", folder / "libnvidia-ml.so.1", STUB_SOURCE], check=True, timeout=30)
    return folder


def gpu_facts(driver: Path, **environ: str) -> Any:  # noqa: ANN401 - whatever JSON it prints
    environ = {**os.environ, "LD_LIBRARY_PATH": str(driver), **environ}
    done = subprocess.run(
        [sys.executable, "-c", READ_GPU], env=environ, capture_output=True, check=True, timeout=30
    )
    return json.loads(done.stdout)


def test_a_gpu_and_its_driver(driver: Path) -> None:
    facts = gpu_facts(driver)
    assert (facts["driver_version"], facts["cuda_version"]) == ("580.95.05", [13, 0])
    assert (facts["compute_capability"], facts["display_active"]) == ([12, 0], True)
    assert len(facts["drawing"]) == 1


def test_what_a_driver_does_not_tell_is_none(driver: Path) -> None:
    assert gpu_facts(driver, STUB_NO_DISPLAY="1")["display_active"] is None
    assert gpu_facts(driver, STUB_MODE="no-processes")["drawing"] == []


def test_no_driver_is_said_as_everywhere(driver: Path) -> None:
    assert gpu_facts(driver, STUB_MODE="no-driver") == "no NVIDIA driver is loaded on this host"


# --- all of it ----------------------------------------------------------------------------------------------------


class SmallCard:
    """The reader of a GPU that has less free than an agent needs."""

    def read(self) -> Card:
        return Card(id="GPU-1", name="A card", total_bytes=15 << 30, free_bytes=1 << 30)


async def test_everything_is_looked_at_and_nothing_is_made(lab: Lab) -> None:
    facts = await checkup.look(lab.host(environ={"DOCKER_HOST": f"unix://{lab.state.root}/none.sock"}))
    assert (facts.wanted.engine, facts.wanted.runtime, facts.wanted.simulated) == (
        "simulated",
        "process",
        True,
    )
    assert isinstance(facts.docker, Trouble)
    assert not isinstance(facts.ports, Trouble)
    assert [each.holder for each in facts.ports] == [None] * 4
    assert not lab.state.root.exists()


async def test_an_engine_of_ours_is_known_by_its_ports_and_processes(lab: Lab) -> None:
    await lab.launch("po")
    facts = await checkup.look(lab.host(environ={"DOCKER_HOST": f"unix://{lab.state.root}/none.sock"}))
    assert not isinstance(facts.ports, Trouble)
    assert [each.ours for each in facts.ports if each.agent == "po"] == [True, True]
    assert not isinstance(facts.card, Trouble)
    assert facts.card.ours
    assert facts.card.foreign == ()
    report = await checkup.checkup(lab.host(environ={"DOCKER_HOST": f"unix://{lab.state.root}/none.sock"}))
    assert report.ready, [asdict(each) for each in report.findings]


async def test_an_engine_that_died_is_listed(lab: Lab) -> None:
    launched = await lab.launch("po")
    for pid in await lab.runtime.pids(launched.instance_id):
        os.kill(pid, 9)
    await lab.runtime.wait(launched.instance_id)
    facts = await checkup.look(lab.host(environ={"DOCKER_HOST": f"unix://{lab.state.root}/none.sock"}))
    assert not isinstance(facts.leftovers, Trouble)
    assert facts.leftovers.ended == ("po",)


async def test_agents_needs_are_those_of_a_launch(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(checkup, "_gpu", lambda _: None)
    lab.catalog(engine="vllm")
    host = lab.host(
        probe=lambda _: SmallCard(), environ={"DOCKER_HOST": f"unix://{lab.state.root}/none.sock"}
    )
    facts = await checkup.look(host)
    assert not isinstance(facts.card, Trouble)
    assert [each.agent for each in facts.card.needs] == ["po", "dev"]
    assert all(each.start_bytes and each.start_bytes > 1 << 30 for each in facts.card.needs)
    lab.catalog(engine="vllm", model="obscure")
    host = lab.host(
        probe=lambda _: SmallCard(), environ={"DOCKER_HOST": f"unix://{lab.state.root}/none.sock"}
    )
    facts = await checkup.look(host)
    assert not isinstance(facts.card, Trouble)
    assert [each.start_bytes for each in facts.card.needs] == [None, None]


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, Any]]]:
    """A Hub that only knows who asks: its address, and what it answers and was sent."""
    answer: dict[str, Any] = {"status": 200, "body": {"name": "me"}, "token": None}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer["token"] = self.headers["Authorization"]
            body = json.dumps(answer["body"]).encode()
            self.send_response(answer["status"])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", answer
    server.shutdown()
    server.server_close()
    thread.join()


def whoami(endpoint: str, home: Path, **environ: str) -> Any:  # noqa: ANN401 - whatever JSON it prints
    """In a process of its own: the library reads its environment once."""
    program = (
        "import json\n"
        "from msgspec import to_builtins\n"
        "from agent_manager.checkpoints import hub\n"
        "from agent_manager.errors import DownloadFailed\n"
        "try: print(json.dumps([hub.is_offline(), to_builtins(hub.whoami(timeout_s=5))]))\n"
        "except DownloadFailed as error: print(json.dumps(error.message))\n"
    )
    kept = {"PATH": os.environ["PATH"], "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**kept, **environ}, capture_output=True, check=True, timeout=30
    )
    return json.loads(done.stdout)


def test_a_token_is_whose_it_is(hub: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    endpoint, answer = hub
    offline, account = whoami(endpoint, tmp_path, HF_TOKEN="hf_mine")  # noqa: S106 - nobody's
    assert account == {"endpoint": endpoint, "token": True, "refused": False, "user": "me"}
    assert (offline, answer["token"]) == (False, "Bearer hf_mine")


@pytest.mark.parametrize(
    ("status", "token", "refused"),
    [(401, "hf_old", True), (403, "hf_old", True), (401, "", False), (429, "x", False)],
)
def test_a_hub_that_answers_is_reached(
    hub: tuple[str, dict[str, Any]], tmp_path: Path, status: int, token: str, *, refused: bool
) -> None:
    endpoint, answer = hub
    answer.update(status=status, body={"error": "no"})
    _, account = whoami(endpoint, tmp_path, HF_TOKEN=token)
    assert (account["refused"], account["user"], account["token"]) == (refused, None, bool(token))


def test_a_hub_that_is_down_or_away_is_said(
    hub: tuple[str, dict[str, Any]], tmp_path: Path, free_port: FreePort
) -> None:
    endpoint, answer = hub
    answer.update(status=503)
    assert whoami(endpoint, tmp_path) == f"the Hub ({endpoint}) answered 503"
    assert "cannot be reached" in whoami(f"http://127.0.0.1:{free_port()}", tmp_path)
