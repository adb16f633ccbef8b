"""Claims on the simulated card, between real processes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from agent_manager.errors import StateUnusable
from agent_manager.gpu.base import GIB
from agent_manager.gpu.simulated import CARD_ID, TOTAL_BYTES, NotEnoughMemory, SimulatedProbe, claim

if TYPE_CHECKING:
    from collections.abc import Iterator

CLAIMER = """
import sys
from pathlib import Path
from agent_manager.gpu.simulated import NotEnoughMemory, claim
card, wanted = Path(sys.argv[1]), int(sys.argv[2])
sys.stdin.readline()
try:
    held = claim(card, "racer", wanted)
except NotEnoughMemory as error:
    print("refused", error.free_bytes, flush=True)
else:
    print("holds", held.claimed_bytes, flush=True)
    sys.stdin.readline()
"""


class Claimer:
    """Another process that claims when told to, and holds on until it is ended."""

    def __init__(self, card_dir: Path, wanted_bytes: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLAIMER, str(card_dir), str(wanted_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def go(self) -> None:
        self._pipe(self.process.stdin).write("\n")
        self._pipe(self.process.stdin).flush()

    def answer(self) -> str:
        return self._pipe(self.process.stdout).readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


@pytest.fixture
def claimers() -> Iterator[list[Claimer]]:
    started: list[Claimer] = []
    yield started
    for claimer in started:
        claimer.kill()


def test_an_untouched_card_is_all_free(tmp_path: Path) -> None:
    card = SimulatedProbe(tmp_path / "SIM-0").read()
    assert (card.id, card.simulated) == (CARD_ID, True)
    assert card.total_bytes == card.free_bytes == int(15.47 * GIB)
    assert card.holders == ()
    assert not (tmp_path / "SIM-0").exists()


def test_a_claim_is_counted_named_and_given_back(tmp_path: Path) -> None:
    with claim(tmp_path, "po-0123abcd", 5 * GIB):
        card = SimulatedProbe(tmp_path).read()
        (holder,) = card.holders
        assert card.used_bytes == 5 * GIB
        assert (holder.name, holder.pid, holder.used_bytes) == ("po-0123abcd", os.getpid(), 5 * GIB)
    assert SimulatedProbe(tmp_path).read().used_bytes == 0


def test_no_more_is_given_than_is_free_to_the_byte(tmp_path: Path) -> None:
    with claim(tmp_path, "a", 5 * GIB):
        with pytest.raises(NotEnoughMemory) as refused:
            claim(tmp_path, "b", TOTAL_BYTES - 5 * GIB + 1)
        assert refused.value.free_bytes == TOTAL_BYTES - 5 * GIB
        with claim(tmp_path, "b", TOTAL_BYTES - 5 * GIB):
            assert SimulatedProbe(tmp_path).read().free_bytes == 0


def test_a_claim_shrinks_and_grows_while_there_is_room(tmp_path: Path) -> None:
    probe = SimulatedProbe(tmp_path)
    with claim(tmp_path, "a", 12 * GIB) as held:
        held.resize(GIB)
        assert probe.read().used_bytes == GIB
        with claim(tmp_path, "b", 8 * GIB):
            with pytest.raises(NotEnoughMemory):
                held.resize(12 * GIB)
            assert (held.claimed_bytes, probe.read().used_bytes) == (GIB, 9 * GIB)
        held.resize(12 * GIB)
        assert probe.read().used_bytes == 12 * GIB


def test_a_killed_process_holds_nothing_and_its_file_goes_with_the_next_claim(
    tmp_path: Path, claimers: list[Claimer]
) -> None:
    claimers.append(Claimer(tmp_path, 12 * GIB))
    claimers[0].go()
    assert claimers[0].answer() == f"holds {12 * GIB}"
    with pytest.raises(NotEnoughMemory):
        claim(tmp_path, "mine", 4 * GIB)
    claimers[0].kill()
    assert SimulatedProbe(tmp_path).read().used_bytes == 0
    assert len(visible_claims(tmp_path)) == 1
    with claim(tmp_path, "mine", 4 * GIB):
        assert [path.name.rpartition("-")[0] for path in visible_claims(tmp_path)] == ["mine"]


def test_of_many_that_claim_at_once_only_those_that_fit_get_memory(
    tmp_path: Path, claimers: list[Claimer]
) -> None:
    claimers += [Claimer(tmp_path, 5 * GIB) for _ in range(6)]
    for claimer in claimers:
        claimer.go()
    # A reader that looks all the time must not make a claim fail, nor ever see more than the card has.
    readings = [SimulatedProbe(tmp_path).read().free_bytes for _ in range(200)]
    answers = sorted(claimer.answer() for claimer in claimers)
    assert answers[:3] == [f"holds {5 * GIB}"] * 3
    assert all(answer.startswith("refused ") for answer in answers[3:])
    assert min(readings) >= 0
    assert SimulatedProbe(tmp_path).read().used_bytes == 15 * GIB


def test_a_claimer_waits_for_another_before_it_looks(tmp_path: Path, claimers: list[Claimer]) -> None:
    with claim(tmp_path, "first", 8 * GIB) as held:
        held.resize(GIB)
        claimers.append(Claimer(tmp_path, 10 * GIB))
        with (tmp_path / "claims" / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            claimers[0].go()
            wait_until_blocked(claimers[0].process.pid)
            # What another claimer would do meanwhile: the memory that was free is taken.
            held.claimed_bytes = 8 * GIB
            held.attribute_to(os.getpid())
        assert claimers[0].answer() == f"refused {TOTAL_BYTES - 8 * GIB}"


def test_a_child_that_inherits_a_claim_keeps_it(tmp_path: Path) -> None:
    held = claim(tmp_path, "a", 5 * GIB)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    held.attribute_to(child)
    # As when the parent is killed: its descriptor is closed, the file stays.
    os.close(held._descriptor)  # noqa: SLF001 - a kill cannot be had inside the test's own process
    (holder,) = SimulatedProbe(tmp_path).read().holders
    assert (holder.pid, holder.used_bytes) == (child, 5 * GIB)
    os.close(writing)
    os.waitpid(child, 0)
    assert SimulatedProbe(tmp_path).read().used_bytes == 0


def test_programs_that_an_engine_starts_do_not_hold_its_claim(tmp_path: Path) -> None:
    with (
        claim(tmp_path, "a", 5 * GIB),
        subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, close_fds=False
        ) as program,
    ):
        (path,) = visible_claims(tmp_path)
        links = os.listdir(f"/proc/{program.pid}/fd")  # noqa: PTH208 - a kernel view
        held = [os.path.realpath(f"/proc/{program.pid}/fd/{link}") for link in links]
        program.send_signal(signal.SIGKILL)
        assert str(path) not in held


def test_files_that_are_no_claims_are_passed_over(tmp_path: Path) -> None:
    with claim(tmp_path, "a", GIB):
        (tmp_path / "claims" / "notes.txt").write_text("hello")
        (tmp_path / "claims" / ".new-0123").write_text("left by a claimer that died")
        assert SimulatedProbe(tmp_path).read().used_bytes == GIB
        with claim(tmp_path, "b", GIB):
            assert sorted(path.name[0] for path in visible_claims(tmp_path)) == ["a", "b"]
            assert not (tmp_path / "claims" / ".new-0123").exists()


def test_a_folder_that_cannot_be_used_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "claims").write_text("a file where the folder should be")
    with pytest.raises(StateUnusable, match="claims"):
        SimulatedProbe(tmp_path).read()
    with pytest.raises(StateUnusable, match="claims"):
        claim(tmp_path, "a", GIB)


def wait_until_blocked(pid: int) -> None:
    """Wait until the kernel says that `pid` waits for a lock."""
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        waiters = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
        if any(str(pid) in fields for fields in waiters):
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} waits for no lock")


def visible_claims(card_dir: Path) -> list[Path]:
    return sorted(path for path in (card_dir / "claims").iterdir() if not path.name.startswith("."))
