"""The pull verb against a Hub on loopback: its documents, its lines, its screens, and how it is interrupted."""

from __future__ import annotations

import json
import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

from agent_manager.cli.pull_progress import Rate
from tests.checkpoints.loopback_hub import COMMIT, LoopbackHub, serving
from tests.checkpoints.weights import TINY_CONFIG, safetensors
from tests.cli.program import WAIT_S, Terminal, argv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.program import Program

REPO = "Qwen/Qwen2.5-0.5B-Instruct"
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(program: Program) -> Iterator[LoopbackHub]:
    files = {
        "config.json": json.dumps(TINY_CONFIG).encode(),
        "README.md": b"# Tiny",
        WEIGHTS: safetensors({"model.embed_tokens.weight": 20_000_000}),
    }
    with serving(LoopbackHub(repo=REPO, files=files)) as running:
        program.env["HF_ENDPOINT"] = running.url
        yield running


def size(hub: LoopbackHub) -> int:
    return len(hub.files["config.json"]) + len(hub.files[WEIGHTS])


def test_a_dry_run_lists_what_would_come_and_fetches_nothing(program: Program, hub: LoopbackHub) -> None:
    done = program.run("pull", "dev", "--dry-run", "--json")
    document = json.loads(done.out)
    assert document["fetch_bytes"] == size(hub)
    (model,) = document["models"]
    assert (model["name"], model["repo"], model["revision"], model["pinned"]) == ("tiny", REPO, COMMIT, True)
    assert {file["name"]: file["fetch_bytes"] for file in model["files"]} == {
        name: len(hub.files[name]) for name in ("config.json", WEIGHTS)
    }
    lines = program.run("pull", "dev", "--dry-run").out.splitlines()
    assert lines[0].split() == ["MODEL", "REVISION", "SIZE", "TO", "FETCH"]
    assert lines[-1] == "19.07 MiB to fetch"
    assert hub.sent_bytes == 0
    assert not (program.folder / "hub").exists()


def test_a_pull_and_another(program: Program, hub: LoopbackHub) -> None:
    done = program.run("pull", "dev", "tiny", "po", REPO)
    assert done.code == 0, done.err
    assert re.fullmatch(
        r"tiny at 0123456789ab is here, 19\.07 MiB: 19\.07 MiB fetched and verified in .+ s\n", done.out
    )
    lines = done.err.splitlines()
    assert lines[:2] == ["pulling tiny", "pulling tiny: 19.07 MiB in 2 files"]
    assert re.fullmatch(r"pulling tiny: 100% of 19\.07 MiB, [\d.]+ MB/s", lines[-1])
    assert not any("\x1b" in line or "\r" in line for line in lines)
    again = program.run("pull", "--json")
    (model,) = json.loads(again.out)["models"]
    assert (model["fetched_bytes"], model["took_s"], model["size_bytes"]) == (0, None, size(hub))
    assert hub.sent[WEIGHTS] == len(hub.files[WEIGHTS])


def test_an_unpinned_model_is_pinned(program: Program, hub: LoopbackHub) -> None:
    program.catalog.write_text(program.catalog.read_text().replace(f', revision: "{COMMIT}"', ""))
    assert program.run("pull", "dev").code == 0
    assert f"{REPO}: {COMMIT}" in (program.folder / "models.lock.yaml").read_text()
    asked = len(hub.requests)
    assert program.run("pull", "dev").code == 0
    assert len(hub.requests) == asked, "it is pinned, and here"


def test_a_repository_that_is_not_in_the_catalog(program: Program, hub: LoopbackHub) -> None:
    hub.repo = "Some/Other"
    assert json.loads(program.run("pull", "Some/Other", "--json").out)["models"][0]["repo"] == "Some/Other"
    assert not (program.folder / "models.lock.yaml").exists()


def test_a_model_in_a_folder_needs_none(program: Program) -> None:
    done = program.run("pull", "other")
    assert done.code == 0
    assert "there is nothing to pull" in done.err


@pytest.mark.parametrize("name", ["nobody", "a//b"])
def test_a_name_that_is_none(program: Program, name: str) -> None:
    done = program.run("pull", name)
    assert done.code == 2
    assert name in done.err


def test_what_the_hub_refuses(program: Program, hub: LoopbackHub) -> None:
    hub.gated = True
    done = program.run("pull", "dev", "--json")
    assert done.code == 1
    assert done.out == ""
    error = json.loads(done.err.splitlines()[-1])["error"]
    assert error["code"] == "download_failed"
    assert error["message"] == f"{REPO} is gated: its owner wants its terms accepted"


def test_one_that_fails_does_not_keep_the_others_from_coming(program: Program, hub: LoopbackHub) -> None:
    done = program.run("pull", "No/Such", "dev")
    assert done.code == 1
    assert "warning: No/Such: the Hub has no No/Such" in done.err
    assert hub.sent[WEIGHTS] == len(hub.files[WEIGHTS])
    assert program.run("pull", "dev").code == 0


def test_offline(program: Program, hub: LoopbackHub) -> None:
    done = program.run("pull", "dev", env={"HF_HUB_OFFLINE": "1"})
    assert done.code == 1
    assert "HF_HUB_OFFLINE forbids asking the Hub" in done.err
    assert hub.requests == []


def test_ctrl_c_while_nothing_comes_ends_it_and_keeps_what_is_here(
    program: Program, hub: LoopbackHub
) -> None:
    hub.faults[WEIGHTS] = ["stalls"]
    cache = program.folder / "hub"
    pull = program.start("pull", "dev")
    deadline = time.monotonic() + WAIT_S
    while hub.kept_bytes(cache) < size(hub) // 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pull.send_signal(signal.SIGINT)
    _, err = pull.communicate(timeout=5)  # the library itself would wait for ten seconds
    assert pull.returncode == 130, err
    kept = hub.kept_bytes(cache)
    assert kept >= size(hub) // 4
    hub.sent.clear()
    assert program.run("pull", "dev").code == 0
    assert hub.sent_bytes == size(hub) - kept


@pytest.mark.parametrize("columns", [80, 120])
def test_the_screen(program: Program, hub: LoopbackHub, columns: int) -> None:
    hub.rate = 8_000_000
    env = program.env | {"TERM": "xterm-256color", "LANG": "C.UTF-8"}
    with Terminal(argv("pull", "dev"), env=env, cwd=program.folder, columns=columns) as terminal:
        bar = r"[━─]{20}  " if columns > 100 else ""
        figures = r" *\d+%  \d+\.\d\d MiB of 19\.07 MiB  \d+\.\d MB/s, \d+ s left"
        terminal.until(
            lambda lines: (
                len(lines) == 2
                and re.fullmatch(rf"model\.safetensors +{bar}{figures}", lines[0]) is not None
                and re.fullmatch(rf"tiny: 1 of 2 files +{bar}{figures}", lines[1]) is not None
            )
        )
        hub.rate = None
        assert terminal.wait() == 0
        assert len(terminal.lines) == 1
        assert terminal.lines[0].startswith("tiny at 0123456789ab is here, 19.07 MiB: 19.07 MiB fetched")


def test_a_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate.told(100) == ""
    rate.saw(0.0, 0)
    rate.saw(1.0, 100_000_000)
    assert rate.told(100_000_000) == "100.0 MB/s, 1 s left"
    for second in range(2, 14):
        rate.saw(float(second), 100_000_000)
    assert rate.told(1) == "no bytes are coming"
    rate.saw(14.0, 5)
    assert rate.told(1) == ""
