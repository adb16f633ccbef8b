"""gpu-stats as a person and as a script use it: without a GPU, and on a library in the place of the driver's."""

from __future__ import annotations

import csv
import json
import os
import signal
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from agent_manager.cli.hoist import as_verb
from agent_manager.gpu.base import GIB
from tests.gpu.stub.build import build, compiler

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Call
    from tests.cli.program import Program

SIMULATED = ("--engine", "simulated")
OF_THE_CONTRACT = {
    "index": 0,
    "uuid": "GPU-00000000-aaaa",
    "name": "Stub 5060 Ti",
    "total_bytes": 15 * GIB + GIB // 2,
    "used_bytes": 3 * GIB,
    "free_bytes": 12 * GIB + GIB // 2,
    "utilization_pct": 87,
    "memory_utilization_pct": 41,
    "temperature_c": 64,
    "power_w": 151.234,
    "power_limit_w": 180.0,
    "sm_clock_mhz": 2407,
    "fan_pct": 38,
}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("needs a C compiler (cc) to build the library that stands in for the driver's")
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpu(program: Program, library: Path) -> Gpu:
    return Gpu(program, library)


class Gpu:
    """The card that `program` finds; it behaves as told, also while the program runs."""

    def __init__(self, program: Program, library: Path) -> None:
        self._file = program.folder / "gpu"
        self.be("one")
        program.env |= {"LD_LIBRARY_PATH": str(library), "STUB_FILE": str(self._file)}

    def be(self, words: str) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(words)
        fresh.rename(self._file)


def documents(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_no_gpu_is_said_with_a_remedy(program: Program) -> None:
    for arguments in (("gpu-stats",), ("gpu-stats", "--once"), ("--gpu-stats",)):
        done = program.run(*arguments)
        assert (done.code, done.out) == (4, "")
        assert done.err.startswith("error: no NVIDIA driver is loaded on this host\n")
        assert "--engine simulated" in done.err
    done = program.run("gpu-stats", "--json")
    assert (done.code, done.out) == (4, "")
    assert json.loads(done.err)["error"]["code"] == "no_gpu"


def test_each_sample_is_the_contract(program: Program, gpu: Gpu) -> None:
    del gpu
    done = program.run("gpu-stats", "--json", "--count", "2", "--interval", "0.1")
    assert (done.code, done.err) == (0, "")
    samples = documents(done.out)
    assert len(samples) == 2
    for sample in samples:
        assert {name: sample["gpu"][name] for name in OF_THE_CONTRACT} == OF_THE_CONTRACT
        assert sample["gpu"]["simulated"] is False
        (_, process) = sample["gpu"]["processes"]
        assert (process["pid"], process["used_bytes"], process["agent"]) == (4_194_305, GIB, None)
        assert (sample["agents"], sample["swaps"], sample["notes"]) == ([], [], [])
    first, second = (datetime.fromisoformat(sample["time"]) for sample in samples)
    assert first < second


def test_a_card_that_is_lost_and_comes_back(program: Program, gpu: Gpu) -> None:
    with program.start("gpu-stats", "--json", "--interval", "0.1") as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["gpu"]["used_bytes"] == 3 * GIB
        gpu.be("one lost")
        while (sample := json.loads(watching.stdout.readline()))["gpu"]:
            pass
        said = "the GPU is lost: it fell off the bus or its driver crashed; it is read again when it is back"
        assert sample["notes"] == [said]
        gpu.be("one driver=2 used_gib=5")
        while not (sample := json.loads(watching.stdout.readline()))["gpu"]:
            pass
        assert (sample["gpu"]["used_bytes"], sample["notes"]) == (5 * GIB, [])
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=20)
    assert (watching.returncode, err) == (130, "")


def test_the_other_cards_are_named(program: Program, gpu: Gpu) -> None:
    gpu.be("")
    (sample,) = documents(program.run("gpu-stats", "--once", "--json").out)
    assert sample["gpu"]["index"] == 0
    assert sample["notes"] == ["not shown: GPU 1 (Stub A4000); AGENT_MANAGER_GPU chooses"]
    done = program.run("gpu-stats", "--once", env={"AGENT_MANAGER_GPU": "1"})
    assert done.out.startswith("Stub A4000\n")
    assert done.err == "note: not shown: GPU 0 (Stub 5060 Ti); AGENT_MANAGER_GPU chooses\n"


def test_one_table(program: Program, gpu: Gpu) -> None:
    gpu.be(f"one pid={os.getpid()}")
    done = program.run("gpu-stats", "--once")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[:2] == ["Stub 5060 Ti", "memory 3.00 GiB of 15.50 GiB"]
    assert "GPU 87%" in lines[2]
    assert "151 of 180 W" in lines[2]
    assert "throttled: power cap" in lines[3]
    assert any(line.split() == ["4194305", "unknown", "1.00", "GiB"] for line in lines)


def test_what_a_card_does_not_say_is_a_dash(program: Program, gpu: Gpu) -> None:
    gpu.be("one unsupported")
    done = program.run("gpu-stats", "--once")
    assert done.out.splitlines()[:2] == ["Stub 5060 Ti", "memory 3.00 GiB of 15.50 GiB"]
    assert "%" not in done.out
    gpu.be("one no-memory")
    done = program.run("gpu-stats", "--once")
    assert done.out.splitlines()[1] == "memory - of -"
    assert "GPU 87%" in done.out


def test_lines_for_whoever_reads_a_pipe(program: Program, gpu: Gpu) -> None:
    del gpu
    done = program.run("gpu-stats", "--count", "2", "--interval", "0.1")
    assert (done.code, done.err) == (0, "")
    assert [line[8:] for line in done.out.splitlines()] == ["  3.00 GiB of 15.50 GiB  87%  64 °C  151 W"] * 2


def test_the_simulated_card_says_so(program: Program, gpu: Gpu) -> None:
    del gpu
    assert program.run("launch", "po", *SIMULATED, "-q").code == 0
    assert program.run("launch", "dev", *SIMULATED, "-q").code == 0
    table = program.run("gpu-stats", "--once", *SIMULATED)
    assert (table.code, table.err) == (0, "")
    assert table.out.startswith("Simulated 16 GB card\nsimulated: there is no GPU behind it\n")
    assert "po -> dev" in table.out
    (row,) = (line for line in table.out.splitlines() if line.startswith("dev "))
    assert row.split()[:4] == ["dev", "ready", "0", "0"]
    # There is a GPU, and nothing of ours on it.
    (sample,) = documents(program.run("gpu-stats", "--once", "--json").out)
    assert (sample["gpu"]["name"], sample["agents"]) == ("Stub 5060 Ti", [])
    assert sample["notes"] == ["not shown: dev is on SIM-0"]


def test_without_a_gpu_the_simulated_card_that_is_in_use(program: Program) -> None:
    program.run("launch", "dev", *SIMULATED, "-q")
    done = program.run("gpu-stats", "--json", "--once")
    (sample,) = documents(done.out)
    assert sample["gpu"]["simulated"] is True
    assert sample["gpu"]["utilization_pct"] is None
    assert sample["notes"] == ["no NVIDIA driver is loaded on this host; shown is SIM-0"]
    (process,) = sample["gpu"]["processes"]
    (agent,) = sample["agents"]
    assert (process["agent"], agent["name"], agent["state"]) == ("dev", "dev", "ready")
    assert agent["pids"] == [process["pid"]]
    assert agent["used_bytes"] == process["used_bytes"] == agent["claim_bytes"]
    assert agent["context"] == 2048
    assert agent["concurrency"] > 1
    assert set(agent["traffic"]) >= {"running", "waiting", "generation_tokens_per_s", "time_to_first_token_s"}


def test_a_session_is_recorded(program: Program, gpu: Gpu) -> None:
    del gpu
    path = program.folder / "session.csv"
    for count in (2, 1):
        done = program.run("gpu-stats", "--csv", str(path), "--count", str(count), "--interval", "0.1", "-q")
        assert (done.code, done.out, done.err) == (0, "", "")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["card"], row["power_w"], row["used_bytes"]) for row in rows] == [
        ("Stub 5060 Ti", "151.234", str(3 * GIB))
    ] * 3


def test_a_file_that_is_no_recording_is_left_alone(program: Program, gpu: Gpu) -> None:
    del gpu
    path = program.folder / "notes.csv"
    path.write_text("mine\n")
    done = program.run("gpu-stats", "--csv", str(path), "--count", "1")
    assert (done.code, done.out) == (2, "")
    assert "is not a recording of gpu-stats" in done.err
    assert path.read_text() == "mine\n"


def test_no_recording_is_begun_without_a_card(program: Program) -> None:
    path = program.folder / "session.csv"
    assert program.run("gpu-stats", "--csv", str(path)).code == 4
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gpu-stats", "--interval", "0.05"), "'0.05' is less than 0.1 s"),
        (("gpu-stats", "--count", "0"), "'--count'"),
        (("gpu-stats", "--interval", "soon"), "'soon' is not a duration"),
        (("gpu-stats", "--plot", "x.svg"), "--plot and --from go together"),
        (("gpu-stats", "--from", "x.csv"), "--plot and --from go together"),
        (("launch", "dev", "--gpu-stats"), "unexpected extra argument"),
    ],
)
def test_what_cannot_be_meant(call: Call, arguments: tuple[str, ...], words: str) -> None:
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_the_option_is_the_verb(call: Call) -> None:
    for arguments in ("--gpu-stats --once", "--engine simulated --gpu-stats --once", "--once --gpu-stats"):
        done = call(*arguments.split(), *SIMULATED)
        assert (done.code, done.out) == (0, call("gpu-stats", "--once", *SIMULATED).out)
    assert call("--help").out.count("--gpu-stats") == 2


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--gpu-stats --once", "gpu-stats --once"),
        ("-q --once --gpu-stats -- x", "gpu-stats -q --once -- x"),
        ("chat dev -- --gpu-stats", "chat dev -- --gpu-stats"),
        ("status", "status"),
    ],
)
def test_the_option_stands_for_the_verb_before_the_end_of_options(typed: str, meant: str) -> None:
    assert as_verb(typed.split()) == meant.split()


def test_a_reader_that_leaves_ends_it_quietly(program: Program, gpu: Gpu) -> None:
    del gpu
    with program.start("gpu-stats", "--json", "--interval", "0.1") as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline()
        watching.stdout.close()
        assert watching.stderr is not None
        assert watching.stderr.read() == ""
        watching.wait(20)
