"""The probe and the real Python binding on a small C library in the driver's place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent_manager.gpu.base import GIB

NO_SUCH_PID = 4_194_305

READ = """
import ctypes, json, os
from msgspec import to_builtins
from agent_manager.errors import NoGpu
from agent_manager.gpu.nvml import NvmlProbe

def outcome(call):
    try:
        return call()
    except NoGpu as error:
        return {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}

def card(probe):
    return outcome(lambda: to_builtins(probe.read()))

def sessions():
    return ctypes.CDLL("libnvidia-ml.so.1").stub_sessions()

probe = NvmlProbe(os.environ.get("AGENT_MANAGER_GPU"))
"""


def evaluate(expression: str, folder: Path, **variables: str) -> Any:  # noqa: ANN401 - whatever JSON it prints
    """The value of `expression` in a new process that finds its NVML in `folder`."""
    environ = {**os.environ, "LD_LIBRARY_PATH": str(folder), **variables}
    environ.pop("AGENT_MANAGER_GPU", None)
    environ.update(variables)
    done = subprocess.run(
        [sys.executable, "-c", f"{READ}\nprint(json.dumps({expression}))"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_a_card(stub_folder: Path) -> None:
    card = evaluate("card(probe)", stub_folder, STUB_MODE=f"pid={os.getpid()}")
    name = Path("/proc/self/comm").read_text("utf-8").strip()
    assert card == {
        "id": "GPU-00000000-aaaa",
        "name": "Stub 5060 Ti",
        "total_bytes": 15 * GIB + GIB // 2,
        "free_bytes": 12 * GIB + GIB // 2,
        "simulated": False,
        "holders": [
            {"pid": os.getpid(), "name": name, "used_bytes": 2 * GIB},
            {"pid": NO_SUCH_PID, "name": "unknown", "used_bytes": GIB},
        ],
    }


@pytest.mark.parametrize("selector", ["1", "GPU-11111111-bbbb"])
def test_a_card_chosen(stub_folder: Path, selector: str) -> None:
    assert evaluate("card(probe)", stub_folder, AGENT_MANAGER_GPU=selector)["name"] == "Stub A4000"


@pytest.mark.parametrize("selector", ["2", "GPU-22222222-cccc", "first", "-1", "\N{SUPERSCRIPT TWO}"])
def test_a_card_that_is_not_there(stub_folder: Path, selector: str) -> None:
    answer = evaluate("[card(probe), sessions()]", stub_folder, AGENT_MANAGER_GPU=selector)
    error = {
        "error": f"there is no GPU '{selector}' here",
        "hint": "set AGENT_MANAGER_GPU to one of: 0 (GPU-00000000-aaaa), 1 (GPU-11111111-bbbb)",
        "exit_code": 4,
    }
    assert answer == [error, 0]


def test_memory_of_processes_may_be_unknown(stub_folder: Path) -> None:
    card = evaluate("card(probe)", stub_folder, STUB_MODE="no-process-memory")
    assert [holder["used_bytes"] for holder in card["holders"]] == [None, None]


def test_processes_may_be_unknown(stub_folder: Path) -> None:
    assert evaluate("card(probe)", stub_folder, STUB_MODE="no-processes")["holders"] == []


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("no-driver", "no NVIDIA driver is loaded on this host"),
        ("no-gpu", "the NVIDIA driver sees no GPU"),
        ("lost", "the GPU is lost: it fell off the bus or its driver crashed"),
        ("mismatch", "the NVIDIA driver was updated and the old one is still loaded"),
        ("no-memory", "the GPU cannot be read: not supported"),
    ],
)
def test_no_gpu(stub_folder: Path, mode: str, message: str) -> None:
    error, sessions = evaluate("[card(probe), sessions()]", stub_folder, STUB_MODE=mode)
    assert error["error"] == message
    assert error["hint"]
    assert error["exit_code"] == 4
    assert sessions == 0


def test_no_library_at_all(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library", "utf-8")
    error = evaluate("card(probe)", tmp_path)
    assert error["error"] == "no NVIDIA driver is loaded on this host"
    assert "--engine simulated" in error["hint"]


def test_one_session_until_it_is_closed(stub_folder: Path) -> None:
    steps = "[card(probe)['id'], card(probe)['id'], sessions(), probe.close(), probe.close(), sessions()]"
    assert evaluate(steps, stub_folder)[2:] == [1, None, None, 0]


def test_reads_again_after_an_error(stub_folder: Path) -> None:
    steps = (
        "[card(probe)['id'], os.environ.update(STUB_MODE='lost'), card(probe)['error'],"
        " os.environ.pop('STUB_MODE'), card(probe)['id'], sessions()]"
    )
    first, _, lost, _, again, sessions = evaluate(steps, stub_folder)
    assert first == again == "GPU-00000000-aaaa"
    assert lost.startswith("the GPU is lost")
    assert sessions == 1
