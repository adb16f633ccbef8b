"""verify as a person and as a script use it, and the launch that refuses what is not whole."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.checkpoints.loopback_hub import COMMIT, LoopbackHub, serving
from tests.checkpoints.test_verify import FILES, FIRST, SECOND, flip, lay
from tests.checkpoints.weights import TINY_CONFIG, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import Call
    from tests.cli.program import Program

REPO = "Some/Tiny"
CATALOG = """\
version: 1
engines:
  vllm-cpu: {{command: [no-such-vllm, serve], kv_cache: 1GiB}}
models:
  tiny: {{repo: {repo}, revision: "{commit}"}}
  mine: {{path: ./mine}}
  absent: {{repo: Some/Body}}
agents:
  dev: {{model: tiny, port: {dev}, context: 2k, sequences: 2}}
  po: {{model: absent, port: {po}, context: 2k, sequences: 2}}
"""
ON_THE_CPU = ("--engine", "vllm-cpu", "--runtime", "process")


@pytest.fixture
def snapshot(program: Program) -> Path:
    """The catalog's models: tiny and mine are whole, absent is absent. The folder of tiny."""
    program.catalog.write_text(CATALOG.format(repo=REPO, commit=COMMIT, **program.ports))
    write_checkpoint(program.folder / "mine", {"model.safetensors": {"a": 100}}, TINY_CONFIG)
    return lay(program.folder / "hub", FILES, COMMIT, repo=REPO)


@pytest.fixture
def hub(program: Program) -> Iterator[LoopbackHub]:
    """The Hub that the program asks."""
    with serving(LoopbackHub(repo=REPO, files=FILES)) as hub:
        program.env |= {"HF_ENDPOINT": hub.url}
        yield hub


def test_what_is_on_disk(call: Call, snapshot: Path) -> None:
    assert snapshot.is_dir()
    done = call("verify")
    assert done.code == 0
    rows = [line.split() for line in done.out.splitlines()]
    assert rows == [
        ["MODEL", "REVISION", "CHECKED", "FILES", "STATE"],
        ["tiny", COMMIT[:12], "0.00", "GiB", "5", "intact"],
        ["mine", "2", "unverifiable"],
    ]
    assert done.err.splitlines()[-2:] == [
        "note: mine: lengths and headers agree, but there are no digests to compare its content with",
        "note: not on disk: absent",
    ]


def test_the_document(call: Call, snapshot: Path) -> None:
    flip(snapshot / FIRST, -1)
    (snapshot / "tokenizer.json").unlink()
    done = call("verify", "--json", "-q")
    assert done.code == 1
    tiny, mine, absent = json.loads(done.out)["models"]
    assert (tiny["name"], tiny["repo"], tiny["revision"], tiny["state"]) == ("tiny", REPO, COMMIT, "corrupt")
    assert tiny["checked_bytes"] == sum(map(len, FILES.values())) - len(FILES["tokenizer.json"])
    assert {file["name"]: file["state"] for file in tiny["files"]} == {
        **dict.fromkeys(FILES, "intact"),
        FIRST: "corrupt",
        "tokenizer.json": "missing",
    }
    assert (mine["state"], mine["repo"], mine["path"]) == (
        "unverifiable",
        None,
        str(snapshot.parents[3] / "mine"),
    )
    assert (absent["state"], absent["files"]) == ("absent", [])
    assert json.loads(done.err)["error"] == {
        "code": "checkpoint_unusable",
        "message": f"tiny: corrupt or missing: {FIRST}, tokenizer.json",
        "hint": "agent-manager verify tiny --repair fetches just what is broken",
        "where": "models.tiny",
    }


def test_what_is_broken_is_named_and_nothing_is_asked_without_a_terminal(call: Call, snapshot: Path) -> None:
    os.truncate(snapshot / SECOND, 100)
    done = call("verify", "dev", stdin="y\n")
    assert done.code == 1
    assert done.out.splitlines()[-1] == f"tiny: {SECOND} is corrupt: it has 100 of {len(FILES[SECOND])} bytes"
    assert "verify tiny --repair" in done.err
    assert "[y/N]" not in done.err
    assert (snapshot / SECOND).stat().st_size == 100


@pytest.mark.parametrize("name", ["absent", "po"])
def test_a_model_that_is_named_must_be_here(call: Call, snapshot: Path, name: str) -> None:
    assert snapshot.is_dir()
    done = call("verify", name, "-q")
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines() == [
        "error: absent: Some/Body was never downloaded",
        "  hint: agent-manager pull absent fetches it",
    ]


def test_a_folder_is_not_fetched_again(call: Call, snapshot: Path) -> None:
    os.truncate(snapshot.parents[3] / "mine" / "model.safetensors", 100)
    done = call("verify", "mine", "--repair")
    assert done.code == 1
    assert "hint: copy what is named to its folder again" in done.err


def test_a_folder_that_is_not_there(call: Call, snapshot: Path) -> None:
    folder = snapshot.parents[3] / "mine"
    folder.rename(folder.with_name("elsewhere"))
    assert call("verify", "-q").code == 0
    done = call("verify", "mine", "-q")
    assert done.code == 1
    assert done.err.splitlines() == [
        f"error: mine: there is no folder {folder}",
        "  hint: correct its path in the catalog, or put the model's files there",
    ]


def test_a_name_that_nothing_has(call: Call, snapshot: Path) -> None:
    assert snapshot.is_dir()
    done = call("verify", "tinny")
    assert (done.code, done.out) == (2, "")
    assert "hint: did you mean 'tiny'?" in done.err


def test_repair_fetches_just_what_is_broken(program: Program, snapshot: Path, hub: LoopbackHub) -> None:
    flip(snapshot / FIRST, -1)
    (snapshot / "README.md").resolve().write_bytes(b"# Another")
    (snapshot / "tokenizer.json").unlink()
    broken = {FIRST, "README.md", "tokenizer.json"}
    done = program.run("verify", "--repair", "--json")
    assert done.code == 0, done.err
    tiny = json.loads(done.out)["models"][0]
    assert (tiny["state"], set(tiny["repaired"])) == ("intact", broken)
    assert set(hub.sent) == broken
    assert all((snapshot / name).read_bytes() == content for name, content in FILES.items())
    assert program.run("verify", "dev", "-q").code == 0


def test_what_is_corrupt_stays_until_its_replacement_is_right(
    program: Program, snapshot: Path, hub: LoopbackHub
) -> None:
    flip(snapshot / FIRST, -1)
    corrupt = (snapshot / FIRST).read_bytes()
    hub.fault = "down"
    done = program.run("verify", "--repair")
    assert done.code == 1
    assert "error: " in done.err
    assert (snapshot / FIRST).read_bytes() == corrupt


def test_a_person_is_asked(program: Program, snapshot: Path, hub: LoopbackHub) -> None:
    flip(snapshot / FIRST, -1)
    for answer, code in (("\n", 1), ("y\n", 0)):
        with program.terminal("verify", "dev") as terminal:
            terminal.until(lambda lines: any("fetch 1 file again? [y/N]" in line for line in lines))
            assert f"tiny: {FIRST} is corrupt" in "".join(terminal.lines)
            terminal.send(answer)
            assert terminal.wait() == code
    assert set(hub.sent) == {FIRST}
    assert (snapshot / FIRST).read_bytes() == FILES[FIRST]


def test_ctrl_c_at_the_question_changes_nothing(program: Program, snapshot: Path) -> None:
    flip(snapshot / FIRST, -1)
    corrupt = (snapshot / FIRST).read_bytes()
    with program.terminal("verify", "dev") as terminal:
        terminal.until(lambda lines: any("[y/N]" in line for line in lines))
        terminal.interrupt()
        assert terminal.wait() == 130
        assert "Traceback" not in "\n".join(terminal.lines)
    assert (snapshot / FIRST).read_bytes() == corrupt


class TestLaunch:
    def test_what_is_not_whole_is_refused_and_named(self, call: Call, snapshot: Path) -> None:
        os.truncate(snapshot / FIRST, 50_000)
        done = call("launch", "dev", *ON_THE_CPU, "--no-pull")
        assert done.code == 1
        reason = f"is incomplete: {FIRST}: it has 50000 of {len(FILES[FIRST])} bytes"
        assert done.err.splitlines()[0] == f"error: model tiny: {REPO} at {COMMIT[:12]} {reason}"

    def test_with_a_pull_just_that_is_fetched(
        self, program: Program, snapshot: Path, hub: LoopbackHub
    ) -> None:
        os.truncate(snapshot / FIRST, 50_000)
        (snapshot / "tokenizer.json").resolve().unlink()
        done = program.run("launch", "dev", *ON_THE_CPU)
        assert "no-such-vllm" in done.err, "it went on to start the engine"
        assert set(hub.sent) == {FIRST, "tokenizer.json"}
        assert program.run("verify", "dev", "-q").code == 0

    def test_a_folder_with_a_short_shard_is_refused_and_named(self, call: Call, snapshot: Path) -> None:
        folder = snapshot.parents[3] / "mine"
        os.truncate(folder / "model.safetensors", 150)
        catalog = folder.parent / "models.yaml"
        catalog.write_text(catalog.read_text().replace("model: tiny", "model: mine"))
        done = call("launch", "dev", *ON_THE_CPU)
        assert done.code == 1
        assert f"in {folder} model.safetensors: it has 150 bytes, its header says" in done.err

    def test_the_simulated_engine_needs_no_file(self, call: Call, snapshot: Path) -> None:
        os.truncate(snapshot / FIRST, 50_000)
        assert call("launch", "dev", "--engine", "simulated", "--no-pull").code == 0


def test_models_tells_what_is_not_whole(call: Call, snapshot: Path) -> None:
    os.truncate(snapshot / FIRST, 8192)
    partial = snapshot.parents[1] / "blobs" / "feed.agent-manager.incomplete"
    partial.write_bytes(bytes(4096))
    done = call("models")
    assert done.out.splitlines()[1].split()[:6] == ["tiny", REPO, COMMIT[:12], "0.00", "GiB,", "incomplete"]
    assert f"warning: tiny: {REPO} at {COMMIT[:12]} is incomplete: {FIRST}: it has 8192 of" in done.err
    tiny, mine, absent = json.loads(call("models", "--json").out)["models"]
    assert (tiny["missing"], tiny["partial_bytes"]) == ([FIRST], 4096)
    assert tiny["disk_bytes"] > 8192 + 4096
    assert mine["disk_bytes"] == mine["size_bytes"]
    assert (absent["disk_bytes"], absent["partial_bytes"], absent["missing"]) == (0, 0, [])
