"""rm as a person and as a script use it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.checkpoints.test_verify import FILES, lay
from tests.cli.program import COMMIT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Call
    from tests.cli.program import Program

REPO = "Qwen/Qwen2.5-0.5B-Instruct"
OTHER = "b" * 40


@pytest.fixture
def folder(program: Program) -> Path:
    """Where the model tiny is, complete."""
    hub = program.folder / "hub"
    lay(hub, FILES, COMMIT, repo=REPO)
    return hub / "models--Qwen--Qwen2.5-0.5B-Instruct"


def test_a_script_says_yes(call: Call, folder: Path) -> None:
    done = call("rm", "tiny", "--yes", "--json")
    assert (done.code, done.err) == (0, "")
    document = json.loads(done.out)
    assert (document["model"], document["repo"], document["revision"]) == ("tiny", REPO, COMMIT)
    assert document["freed_bytes"] > sum(map(len, FILES.values()))
    assert document["kept_revisions"] == []
    assert not folder.exists()
    again = call("rm", "tiny", "-y")
    assert (again.code, again.out) == (1, "")
    assert again.err.startswith(f"error: nothing of {REPO} at {COMMIT[:12]} is on disk\n")


@pytest.mark.parametrize("option", ["", "--json", "-q"])
def test_nobody_is_there_to_ask(call: Call, folder: Path, option: str) -> None:
    done = call("rm", "tiny", *filter(None, [option]), stdin="y\n")
    assert (done.code, done.out) == (2, "")
    assert "agent-manager rm tiny --yes" in done.err
    assert folder.exists()


def test_a_person_is_asked(program: Program, folder: Path) -> None:
    with program.terminal("rm", "tiny") as terminal:
        terminal.until(lambda lines: any("[y/N]" in line for line in lines))
        text = " ".join(terminal.lines)
        assert f"delete {REPO} at {COMMIT[:12]}, 0.00 GiB? it is the model of dev, po" in text
        terminal.send("no\n")
        assert terminal.wait() == 1
        assert "nothing was deleted" in "\n".join(terminal.lines)
    assert folder.exists()
    with program.terminal("rm", "tiny") as terminal:
        terminal.until(lambda lines: any("[y/N]" in line for line in lines))
        terminal.send("yes\n")
        assert terminal.wait() == 0
        assert "deleted tiny: 0.00 GiB freed" in terminal.lines
    assert not folder.exists()


def test_other_commits_stay_and_are_told(call: Call, program: Program, folder: Path) -> None:
    lay(program.folder / "hub", FILES, OTHER, repo=REPO)
    done = call("rm", "tiny", "-y")
    assert (done.code, done.out) == (0, "deleted tiny: 0.00 GiB freed\n")
    assert done.err == f"note: other commits of {REPO} stay: {OTHER[:12]}\n"
    assert all(
        (folder / "snapshots" / OTHER / name).read_bytes() == content for name, content in FILES.items()
    )
    again = call("rm", "tiny", "-y")
    assert again.code == 1
    assert f"other commits of it are here: {OTHER}" in again.err


def test_while_an_agent_serves_it_stays(program: Program, folder: Path) -> None:
    assert program.run("launch", "dev", "--engine", "simulated", "-q").code == 0
    done = program.run("rm", "tiny", "--yes", "-q")
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines() == [
        "error: dev serves tiny now: nothing was deleted",
        "  hint: stop it first: agent-manager stop dev",
    ]
    assert folder.exists()
    assert program.run("stop", "-q").code == 0
    assert program.run("rm", "tiny", "--yes", "-q").code == 0
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tinny", "hint: did you mean 'tiny'?"),
        ("dev", "hint: dev is an agent; its model is tiny"),
        ("other", "model 'other' is a folder of yours"),
    ],
)
def test_names_that_are_no_downloads(call: Call, folder: Path, name: str, said: str) -> None:
    done = call("rm", name, "--yes")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert folder.exists()
