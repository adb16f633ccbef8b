"""The sampler and the real Python binding on the library that stands in for the driver's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_manager.gpu.base import GIB
from agent_manager.gpu.host import CARD_ID as CPU
from agent_manager.gpu.samplers import sampler_of
from agent_manager.gpu.simulated import CARD_ID as SIMULATED
from agent_manager.gpu.simulated import TOTAL_BYTES, claim

if TYPE_CHECKING:
    from agent_manager.state import StateDir

NO_SUCH_PID = 4_194_305
UNSUPPORTED = (
    "utilization_pct",
    "memory_utilization_pct",
    "temperature_c",
    "power_w",
    "power_limit_w",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "fan_pct",
    "performance_state",
    "throttle_reasons",
)

SAMPLE = """
import ctypes, json, os
from msgspec import to_builtins
from agent_manager.errors import NoGpu
from agent_manager.gpu.nvml import NvmlSampler

def sample():
    try:
        return to_builtins(sampler.sample())
    except NoGpu as error:
        return {"error": error.message, "hint": error.hint}

def mode(words):
    os.environ["STUB_MODE"] = words

def count(what):
    return getattr(ctypes.CDLL("libnvidia-ml.so.1"), f"stub_{what}")()

sampler = NvmlSampler(os.environ.get("AGENT_MANAGER_GPU"))
"""


def evaluate(expression: str, folder: Path, words: str = "", **variables: str) -> Any:  # noqa: ANN401 - whatever JSON it prints
    """The value of `expression` in a new process whose NVML is the stub, in the mode `words`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{SAMPLE}\nprint(json.dumps({expression}))"],
        env=os.environ | {"LD_LIBRARY_PATH": str(folder), "STUB_MODE": words} | variables,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_everything_a_card_says(stub_folder: Path) -> None:
    name = Path("/proc/self/comm").read_text("utf-8").strip()
    assert evaluate("sample()", stub_folder, f"pid={os.getpid()}") == {
        "index": 0,
        "uuid": "GPU-00000000-aaaa",
        "name": "Stub 5060 Ti",
        "total_bytes": 15 * GIB + GIB // 2,
        "free_bytes": 12 * GIB + GIB // 2,
        "utilization_pct": 87,
        "memory_utilization_pct": 41,
        "temperature_c": 64,
        "power_w": 151.234,
        "power_limit_w": 180.0,
        "sm_clock_mhz": 2407,
        "memory_clock_mhz": 13801,
        "fan_pct": 38,
        "performance_state": 1,
        "throttle_reasons": ["power cap"],
        "processes": [
            {"pid": os.getpid(), "name": name, "used_bytes": 2 * GIB},
            {"pid": NO_SUCH_PID, "name": "unknown", "used_bytes": GIB},
        ],
        "simulated": False,
    }


@pytest.mark.parametrize("words", ["unsupported", "no-permission"])
def test_what_a_card_refuses_is_none_and_asked_once(stub_folder: Path, words: str) -> None:
    first, again, asked = evaluate("[sample(), sample(), count('asked_fan')]", stub_folder, words)
    assert {name: first[name] for name in UNSUPPORTED} == dict.fromkeys(UNSUPPORTED)
    assert first == again
    assert first["free_bytes"] == 12 * GIB + GIB // 2
    assert asked == 1


def test_what_fails_once_is_asked_again(stub_folder: Path) -> None:
    steps = "[sample(), mode(''), sample(), count('inits')]"
    failed, _, good, inits = evaluate(steps, stub_folder, "slow")
    assert (failed["fan_pct"], failed["power_w"]) == (None, None)
    assert (good["fan_pct"], good["power_w"]) == (38, 151.234)
    assert inits == 1


def test_memory_that_is_not_the_cards_own(stub_folder: Path) -> None:
    sample = evaluate("sample()", stub_folder, "no-memory")
    assert (sample["total_bytes"], sample["free_bytes"], sample["temperature_c"]) == (None, None, 64)


@pytest.mark.parametrize(("words", "used"), [("no-process-memory", [None, None]), ("no-processes", [])])
def test_processes_the_driver_says_little_of(stub_folder: Path, words: str, used: list[None]) -> None:
    assert [each["used_bytes"] for each in evaluate("sample()", stub_folder, words)["processes"]] == used


@pytest.mark.parametrize(
    ("bits", "words"),
    [(0, []), (1, []), (4 | 32, ["power cap", "too warm"]), (1 << 20, [])],
)
def test_why_the_clocks_are_low(stub_folder: Path, bits: int, words: list[str]) -> None:
    assert evaluate("sample()['throttle_reasons']", stub_folder, f"reasons={bits}") == words


def test_a_performance_state_that_is_not_known(stub_folder: Path) -> None:
    assert evaluate("sample()['performance_state']", stub_folder, "state=32") is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lost", "the GPU is lost: it fell off the bus or its driver crashed"),
        ("reset", "the GPU needs a reset after an error it cannot mend"),
        ("no-driver", "the GPU cannot be read: unknown error"),
        ("driver=2", "the GPU cannot be read: unknown error"),
    ],
)
def test_a_card_that_goes_away_and_comes_back(stub_folder: Path, words: str, message: str) -> None:
    steps = (
        f"[sample(), mode('{words}'), sample(), count('sessions'), mode('driver=2 used_gib=1'), sample(),"
        " count('sessions'), count('inits')]"
    )
    before, _, gone, ended, _, back, sessions, inits = evaluate(steps, stub_folder)
    assert (gone["error"], ended) == (message, 0)
    assert gone["hint"]
    assert back == before | {"free_bytes": 14 * GIB + GIB // 2}
    assert (sessions, inits) == (1, 2)


def test_a_driver_that_is_not_there_yet(stub_folder: Path) -> None:
    steps = "[sample(), sample(), mode(''), sample(), count('sessions')]"
    missing, still, _, good, sessions = evaluate(steps, stub_folder, "no-driver")
    assert missing["error"] == still["error"] == "no NVIDIA driver is loaded on this host"
    assert (good["name"], sessions) == ("Stub 5060 Ti", 1)


def test_one_session_until_it_is_closed(stub_folder: Path) -> None:
    steps = (
        "[len([sample() for _ in range(9)]), count('sessions'), sampler.close(), sampler.close(),"
        " count('sessions')]"
    )
    assert evaluate(steps, stub_folder) == [9, 1, None, None, 0]


@pytest.mark.parametrize("selector", ["1", "GPU-11111111-bbbb"])
def test_one_of_two_cards(stub_folder: Path, selector: str) -> None:
    steps = "[sampler.others(), sample(), sampler.others()]"
    before, sample, others = evaluate(steps, stub_folder, AGENT_MANAGER_GPU=selector)
    assert (sample["index"], sample["name"]) == (1, "Stub A4000")
    assert (before, others) == ([], ["0 (Stub 5060 Ti)"])


def test_one_card_has_no_others(stub_folder: Path) -> None:
    assert evaluate("[sample()['index'], sampler.others()]", stub_folder, "one") == [0, []]


def test_the_simulated_card_has_memory_and_nothing_else(state: StateDir) -> None:
    sampler = sampler_of(SIMULATED, state)
    with claim(state.card(SIMULATED), "dev-0a1b2c3d", GIB):
        sample = sampler.sample()
    assert (sample.uuid, sample.simulated) == (SIMULATED, True)
    assert (sample.total_bytes, sample.used_bytes) == (TOTAL_BYTES, GIB)
    (process,) = sample.processes
    assert (process.pid, process.name, process.used_bytes) == (os.getpid(), "dev-0a1b2c3d", GIB)
    assert {getattr(sample, name) for name in UNSUPPORTED} == {None}
    assert sampler.sample().used_bytes == 0
    sampler.close()


def test_the_hosts_memory_is_not_simulated(state: StateDir) -> None:
    sampler = sampler_of(CPU, state)
    sample = sampler.sample()
    assert (sample.uuid, sample.simulated, sample.processes) == (CPU, False, ())
    assert sample.total_bytes is not None
    assert sample.free_bytes is not None
    assert 0 < sample.free_bytes < sample.total_bytes
    assert sampler.others() == ()
