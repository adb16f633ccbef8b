"""Downloads with the real huggingface_hub, from a Hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import huggingface_hub.errors
import pytest

from agent_manager.catalog.agents import Model
from agent_manager.checkpoints.disk import Checkpoint, Missing, facts_on_disk, locate, repo_folder
from agent_manager.checkpoints.fetching.patience import Patience
from agent_manager.checkpoints.fetching.pull import pull
from agent_manager.checkpoints.hub import listing, read_range, resolve_revision
from agent_manager.errors import DownloadFailed

from .loopback_hub import COMMIT, ENDLESS_BYTES, LoopbackHub, git_hash, serving
from .weights import TINY_CONFIG, safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent_manager.checkpoints.fetching.progress import PullProgress

REPO = "Tiny/Model-AWQ"
MODEL = Model(name="tiny", repo=REPO)
FILES = {
    "config.json": json.dumps(TINY_CONFIG).encode(),
    "model.safetensors": safetensors({"model.embed_tokens.weight": 300_000}),
    "tokenizer.json": b'{"model": {}}',
    "merges.txt": b"a b\n",
    "chat_template.jinja": b"{{ messages }}",
    "README.md": b"# Tiny",
    "pytorch_model.bin": b"not wanted",
    "original/model.safetensors": b"not wanted either",
}
WANTED = {"config.json", "model.safetensors", "tokenizer.json", "merges.txt", "chat_template.jinja"}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with serving(LoopbackHub(repo=REPO, files=dict(FILES))) as running:
        yield running


def ignore(progress: PullProgress) -> None:
    """Listen to nothing."""


QUICK = Patience(tries=3, pause_s=0.01)


def fetch(hub: LoopbackHub, cache: Path, on_progress: Callable[[PullProgress], None] = ignore) -> Path:
    return pull(
        MODEL, revision=COMMIT, hub_cache=cache, on_progress=on_progress, endpoint=hub.url, patience=QUICK
    )


class TestPull:
    def test_brings_what_an_engine_needs(self, hub: LoopbackHub, tmp_path: Path) -> None:
        folder = fetch(hub, tmp_path)
        assert folder == repo_folder(REPO, tmp_path) / "snapshots" / COMMIT
        assert {path.name for path in folder.iterdir()} == WANTED
        assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
        found = locate(Model(name="tiny", repo=REPO, revision=COMMIT), hub_cache=tmp_path)
        assert isinstance(found, Checkpoint)
        assert found.size_bytes == sum(len(FILES[name]) for name in WANTED)
        assert facts_on_disk(found.folder).disk_bytes == len(FILES["model.safetensors"])

    def test_reports_progress_to_the_last_byte(self, hub: LoopbackHub, tmp_path: Path) -> None:
        seen: list[PullProgress] = []
        fetch(hub, tmp_path, seen.append)
        total_bytes = sum(len(FILES[name]) for name in WANTED)
        assert {progress.total_bytes for progress in seen} == {total_bytes}
        assert seen[0].done_bytes == 0
        assert [progress.done_bytes for progress in seen] == sorted(progress.done_bytes for progress in seen)
        assert seen[-1].done_bytes == total_bytes

    def test_fetches_again_only_what_is_absent(self, hub: LoopbackHub, tmp_path: Path) -> None:
        folder = fetch(hub, tmp_path)
        blob = (folder / "tokenizer.json").resolve()
        (folder / "tokenizer.json").unlink()
        blob.unlink()
        assert isinstance(locate(Model(name="tiny", repo=REPO, revision=COMMIT), hub_cache=tmp_path), Missing)
        hub.requests.clear()
        seen: list[PullProgress] = []
        fetch(hub, tmp_path, seen.append)
        gets = [request for request in hub.requests if request.startswith("GET") and "resolve" in request]
        assert gets == [f"GET /{REPO}/resolve/{COMMIT}/tokenizer.json"]
        assert (seen[-1].done_bytes, seen[-1].total_bytes) == (13, 13)

    def test_goes_on_after_a_broken_connection(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.truncate = "model.safetensors"
        seen: list[PullProgress] = []
        folder = fetch(hub, tmp_path, seen.append)
        assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
        assert seen[-1].done_bytes == seen[-1].total_bytes

    def test_the_listener_can_end_it(self, hub: LoopbackHub, tmp_path: Path) -> None:
        class EnoughError(RuntimeError):
            pass

        hub.rate = 1_000_000

        def stop(progress: PullProgress) -> None:
            if progress.done_bytes:
                raise EnoughError

        with pytest.raises(EnoughError):
            fetch(hub, tmp_path, stop)
        hub.rate = None
        assert isinstance(locate(Model(name="tiny", repo=REPO, revision=COMMIT), hub_cache=tmp_path), Missing)
        fetch(hub, tmp_path)

    def test_a_model_that_is_not_on_the_hub(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="tiny"):
            pull(Model(name="tiny", path=tmp_path), revision=COMMIT, hub_cache=tmp_path, on_progress=ignore)


class TestFailures:
    @pytest.mark.parametrize(
        ("fault", "message", "hint"),
        [
            ("no-repo", f"the Hub has no {REPO}, or not for you", "correct its name"),
            ("no-revision", f"{REPO} has no commit {COMMIT}", "models.lock.yaml"),
            ("down", f"the Hub answered 503 for {REPO}", "wait a little"),
        ],
    )
    def test_the_hub_refuses(
        self, hub: LoopbackHub, tmp_path: Path, fault: str, message: str, hint: str
    ) -> None:
        hub.fault = fault
        with pytest.raises(DownloadFailed) as caught:
            fetch(hub, tmp_path)
        assert caught.value.message == message
        assert hint in (caught.value.hint or "")
        assert caught.value.where == REPO

    def test_a_gated_repository(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.gated = True
        with pytest.raises(
            DownloadFailed, match=f"{REPO} is gated: its owner wants its terms accepted"
        ) as caught:
            fetch(hub, tmp_path)
        assert "HF_TOKEN" in (caught.value.hint or "")

    def test_a_name_no_repository_can_have(self, hub: LoopbackHub, tmp_path: Path) -> None:
        odd = Model(name="odd", repo="a//b")
        with pytest.raises(DownloadFailed, match="'a//b' is not a repository name"):
            pull(odd, revision=COMMIT, hub_cache=tmp_path, on_progress=ignore, endpoint=hub.url)

    def test_nothing_an_engine_can_load(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.files = {"config.json": b"{}", "model.gguf": b"GGUF"}
        with pytest.raises(DownloadFailed, match="no engine here can load it"):
            fetch(hub, tmp_path)
        assert not (repo_folder(REPO, tmp_path) / "blobs").exists()

    def test_no_space(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.claimed_bytes = {"model.safetensors": 1 << 60}
        partial = repo_folder(REPO, tmp_path / "cache") / "blobs" / "0123.4567.incomplete"
        partial.parent.mkdir(parents=True)
        partial.write_bytes(bytes(1 << 20))
        message = r"needs 1073741824\.00 GiB more, .* free \(0\.00 GiB are partial files"
        with pytest.raises(DownloadFailed, match=message) as caught:
            fetch(hub, tmp_path / "cache")
        assert "HF_HUB_CACHE" in (caught.value.hint or "")
        assert not any("GET" in request and "resolve" in request for request in hub.requests)

    def test_an_unreachable_hub(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
            endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(DownloadFailed, match=f"^the Hub cannot be reached for {REPO}: ") as caught:
                pull(MODEL, revision=COMMIT, hub_cache=tmp_path, on_progress=ignore, endpoint=endpoint)
            assert "connection" in (caught.value.hint or "")
            with pytest.raises(DownloadFailed, match="cannot be reached"):
                resolve_revision(REPO, endpoint=endpoint)


class TestRevision:
    def test_is_the_commit_of_main(self, hub: LoopbackHub) -> None:
        assert resolve_revision(REPO, endpoint=hub.url) == COMMIT

    @pytest.mark.parametrize(
        ("fault", "message"),
        [("no-repo", "the Hub has no"), ("down", "the Hub answered 503")],
    )
    def test_failures(self, hub: LoopbackHub, fault: str, message: str) -> None:
        hub.fault = fault
        with pytest.raises(DownloadFailed, match=message):
            resolve_revision(REPO, endpoint=hub.url, patience=QUICK)


class TestListing:
    def test_is_of_all_files(self, hub: LoopbackHub) -> None:
        there = listing(REPO, revision=None, endpoint=hub.url)
        assert (there.repo, there.commit) == (REPO, COMMIT)
        assert {file.name: file.size_bytes for file in there.files} == {
            name: len(content) for name, content in FILES.items()
        }
        weights = next(file for file in there.files if file.name == "model.safetensors")
        assert weights.sha256 == weights.blob == hashlib.sha256(FILES["model.safetensors"]).hexdigest()
        merges = next(file for file in there.files if file.name == "merges.txt")
        assert (merges.sha256, merges.blob) == (None, git_hash(FILES["merges.txt"]))

    def test_of_a_commit_takes_one_request(self, hub: LoopbackHub) -> None:
        listing(REPO, revision=COMMIT, endpoint=hub.url)
        assert hub.requests == [f"GET /api/models/{REPO}/tree/{COMMIT}"]


class TestRanges:
    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
    @pytest.mark.parametrize(("start", "length"), [(0, 4), (3, 5), (9, 100_000_000)])
    @pytest.mark.parametrize("fault", ["", "ignores-ranges"])
    def test_are_what_the_file_has_there(
        self, hub: LoopbackHub, name: str, start: int, length: int, fault: str
    ) -> None:
        hub.always = {name: fault}
        got = read_range(REPO, COMMIT, name, start=start, length=length, endpoint=hub.url)
        assert got == FILES[name][start : start + length]

    def test_behind_the_end_there_is_nothing(self, hub: LoopbackHub) -> None:
        assert read_range(REPO, COMMIT, "tokenizer.json", start=500, length=5, endpoint=hub.url) == b""

    def test_a_server_that_ignores_them_is_not_read_to_the_end(self, hub: LoopbackHub) -> None:
        hub.endless, hub.always = "model.safetensors", {"model.safetensors": "ignores-ranges"}
        got = read_range(REPO, COMMIT, "model.safetensors", start=8, length=8, endpoint=hub.url)
        assert got == bytes(8)
        assert hub.sent_bytes < ENDLESS_BYTES // 8

    def test_a_token_goes_to_the_hub_alone(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        hub.token = "hf_secret"  # noqa: S105 - not a secret
        assert read_range(REPO, COMMIT, "model.safetensors", start=0, length=8, endpoint=hub.url)
        assert hub.strangers_were_told == []

    def test_of_a_file_that_is_not_there(self, hub: LoopbackHub) -> None:
        with pytest.raises(DownloadFailed):
            read_range(REPO, COMMIT, "other.json", start=0, length=8, endpoint=hub.url)


class Run(NamedTuple):
    stdout: str
    stderr: str


def run(code: str, **environ: str) -> Run:
    """Run Python in a process of its own: huggingface_hub reads its environment when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **environ},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Run(done.stdout, done.stderr)


RESOLVE = f"""
from agent_manager.checkpoints.hub import resolve_revision
from agent_manager.errors import DownloadFailed
try:
    print(resolve_revision({REPO!r}))
except DownloadFailed as error:
    print(error.message)
    print(error.hint)
"""


class TestEnvironment:
    def test_the_endpoint(self, hub: LoopbackHub) -> None:
        assert run(RESOLVE, HF_ENDPOINT=hub.url) == Run(f"{COMMIT}\n", "")

    def test_offline(self, hub: LoopbackHub) -> None:
        said = run(RESOLVE, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1").stdout.splitlines()
        assert said == [
            f"{REPO} is not here, and HF_HUB_OFFLINE forbids asking the Hub",
            "unset HF_HUB_OFFLINE",
        ]
        assert hub.requests == []

    def test_importing_costs_nothing(self) -> None:
        loaded = run("import sys, agent_manager.checkpoints.hub\nprint('huggingface_hub' in sys.modules)")
        assert loaded.stdout == "False\n"


def test_every_error_of_the_library_has_been_thought_of() -> None:
    """A new one must be given its words in hub.py, or be added here as covered by what is above it."""
    explained = {"GatedRepoError", "RevisionNotFoundError", "RepositoryNotFoundError", "DisabledRepoError"}
    explained |= {"OfflineModeIsEnabled", "HFValidationError", "HfHubHTTPError"}
    looked_behind = {"DryRunError", "LocalEntryNotFoundError", "IncompleteSnapshotError"}
    broke = {"RemoteEntryNotFoundError", "EntryNotFoundError", "BadRequestError", "FileMetadataError"}
    not_a_download = {
        "BucketNotFoundError", "BucketBatchError", "JobNotFoundError", "InferenceTimeoutError",
        "InferenceEndpointTimeoutError", "LocalTokenNotFoundError", "TextGenerationError", "ValidationError",
        "GenerationError", "OverloadedError", "IncompleteGenerationError", "UnknownError",
    }  # fmt: skip
    module = huggingface_hub.errors
    bases = (module.HfHubHTTPError.__mro__[1], OSError, module.EntryNotFoundError, module.HFValidationError)
    raised = {
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, bases) and value.__module__ == module.__name__
    }
    assert raised == explained | looked_behind | broke | not_a_download
