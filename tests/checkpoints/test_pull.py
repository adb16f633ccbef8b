"""Downloads that go on: what they leave behind when they are cut off, and what they make of a Hub in trouble."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import huggingface_hub
import pytest

from agent_manager.catalog.agents import Model
from agent_manager.checkpoints.disk import Checkpoint, Missing, locate, repo_folder
from agent_manager.checkpoints.fetching.patience import Patience
from agent_manager.checkpoints.fetching.progress import PullProgress
from agent_manager.checkpoints.fetching.pull import plan_pull, pull
from agent_manager.errors import DownloadFailed

from .loopback_hub import COMMIT, LoopbackHub, git_hash, serving
from .weights import TINY_CONFIG, safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REPO = "Tiny/Model-AWQ"
PINNED = Model(name="tiny", repo=REPO, revision=COMMIT)
WEIGHTS = "model.safetensors"
QUICK = Patience(tries=3, pause_s=0.01, stall_s=0.3, longest_asked_s=2)
PATIENCE_S = 30.0
SLOW = 5_000_000
"""A rate at which what is sent is read at once: a reset takes along what is not."""


def noise(size: int) -> bytes:
    """Content that no two places have in common."""
    return random.Random(size).randbytes(size)  # noqa: S311 - the same each time


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    files = {
        "config.json": json.dumps(TINY_CONFIG).encode(),
        "tokenizer.json": b'{"model": {}}',
        WEIGHTS: safetensors({"model.embed_tokens.weight": 3_000_000}),
    }
    with serving(LoopbackHub(repo=REPO, files=files)) as running:
        yield running


class Told:
    """What the listeners heard."""

    def __init__(self) -> None:
        self.progress: list[PullProgress] = []
        self.remarks: list[str] = []


def fetch(
    hub: LoopbackHub,
    cache: Path,
    *,
    model: Model = PINNED,
    only: set[str] | None = None,
    patience: Patience = QUICK,
) -> Told:
    told = Told()
    pull(
        model,
        revision=COMMIT,
        hub_cache=cache,
        on_progress=told.progress.append,
        on_remark=told.remarks.append,
        endpoint=hub.url,
        only=only,
        patience=patience,
    )
    return told


def blobs(cache: Path) -> set[str]:
    return {path.name for path in (repo_folder(REPO, cache) / "blobs").iterdir()}


def names_of(hub: LoopbackHub, *names: str) -> set[str]:
    return {
        hashlib.sha256(hub.files[name]).hexdigest() if name == WEIGHTS else git_hash(hub.files[name])
        for name in names or hub.files
    }


def complete(hub: LoopbackHub, cache: Path) -> bool:
    """Everything is there, and nothing else."""
    snapshot = repo_folder(REPO, cache) / "snapshots" / COMMIT
    assert blobs(cache) == names_of(hub)
    return all((snapshot / name).read_bytes() == content for name, content in hub.files.items())


class TestTheCache:
    def test_is_the_librarys_own(self, hub: LoopbackHub, tmp_path: Path) -> None:
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        fetch(hub, ours, model=Model(name="tiny", repo=REPO))
        huggingface_hub.snapshot_download(REPO, cache_dir=theirs, endpoint=hub.url)

        def drawn(cache: Path) -> dict[str, str | bytes]:
            return {
                str(path.relative_to(cache)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
                for path in sorted(cache.rglob("*"))
                if path.is_symlink() or path.is_file()
            }

        expected = drawn(theirs)
        expected.pop("CACHEDIR.TAG", None)
        assert drawn(ours) == expected

    def test_serves_the_library_offline(self, hub: LoopbackHub, tmp_path: Path) -> None:
        fetch(hub, tmp_path, model=Model(name="tiny", repo=REPO))
        for revision in (COMMIT, "main"):
            found = huggingface_hub.snapshot_download(
                REPO, revision=revision, cache_dir=tmp_path, endpoint=hub.url, local_files_only=True
            )
            assert found == str(repo_folder(REPO, tmp_path) / "snapshots" / COMMIT)

    def test_serves_an_engine_offline_though_files_that_no_engine_needs_are_not_here(
        self, hub: LoopbackHub, tmp_path: Path
    ) -> None:
        hub.files = {**hub.files, "README.md": b"# Tiny", "pytorch_model.bin": b"x"}
        fetch(hub, tmp_path)
        for patterns in ({"ignore_patterns": "*"}, {"allow_patterns": ["*.safetensors", "*.json"]}):
            found = huggingface_hub.snapshot_download(
                REPO,
                revision=COMMIT,
                cache_dir=tmp_path,
                endpoint=hub.url,
                local_files_only=True,
                **patterns,  # vLLM asks in the first way, transformers in the second
            )
            assert found == str(repo_folder(REPO, tmp_path) / "snapshots" / COMMIT)

    def test_a_pinned_model_needs_no_branch(self, hub: LoopbackHub, tmp_path: Path) -> None:
        fetch(hub, tmp_path)
        assert not (repo_folder(REPO, tmp_path) / "refs").exists()

    def test_what_the_library_fetched_is_not_fetched_again(self, hub: LoopbackHub, tmp_path: Path) -> None:
        huggingface_hub.snapshot_download(REPO, cache_dir=tmp_path, endpoint=hub.url)
        hub.sent.clear()
        told = fetch(hub, tmp_path)
        assert hub.sent_bytes == 0
        assert told.progress[-1] == PullProgress(done_bytes=0, total_bytes=0)

    def test_a_blob_of_another_size_is_fetched_again(self, hub: LoopbackHub, tmp_path: Path) -> None:
        fetch(hub, tmp_path)
        blob = repo_folder(REPO, tmp_path) / "snapshots" / COMMIT / WEIGHTS
        with blob.open("r+b") as file:
            file.truncate(1000)
        fetch(hub, tmp_path)
        assert complete(hub, tmp_path)

    def test_only_what_is_named_is_fetched_again(self, hub: LoopbackHub, tmp_path: Path) -> None:
        fetch(hub, tmp_path)
        weights = repo_folder(REPO, tmp_path) / "snapshots" / COMMIT / WEIGHTS
        with weights.open("r+b") as file:
            file.write(b"damage")
        hub.sent.clear()
        fetch(hub, tmp_path, only={WEIGHTS})
        assert set(hub.sent) == {WEIGHTS}
        assert complete(hub, tmp_path)
        with pytest.raises(DownloadFailed, match=r"has no file other\.json at"):
            fetch(hub, tmp_path, only={"other.json"})

    def test_a_read_only_one_that_has_everything_will_do(self, hub: LoopbackHub, small_disk: Path) -> None:
        fetch(hub, small_disk)
        remount(small_disk, "ro")
        fetch(hub, small_disk)
        remount(small_disk, "rw")
        (repo_folder(REPO, small_disk) / "snapshots" / COMMIT / WEIGHTS).unlink()
        remount(small_disk, "ro")
        with pytest.raises(DownloadFailed, match="the Hub cache cannot be written: Read-only") as caught:
            fetch(hub, small_disk)
        assert "HF_HUB_CACHE" in (caught.value.hint or "")


class TestWhatIsFetched:
    def test_each_weight_once(self, hub: LoopbackHub, tmp_path: Path) -> None:
        index = {
            "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        }
        shard = safetensors({"a": 1000})
        shards = {"model-00001-of-00002.safetensors": shard, "model-00002-of-00002.safetensors": shard}
        wanted = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode(), **shards}
        unwanted = {
            "consolidated.safetensors": shard,
            "model.fp16.safetensors": shard,
            "original/model.safetensors": shard,
            "pytorch_model.bin": b"x",
            "model.gguf": b"x",
            "README.md": b"x",
        }
        hub.files = {**wanted, **unwanted}
        plan = plan_pull(PINNED, revision=COMMIT, hub_cache=tmp_path, endpoint=hub.url)
        assert {each.file.name for each in plan.files} == set(wanted)
        assert plan.fetch_bytes == plan.size_bytes == sum(len(content) for content in wanted.values())
        fetch(hub, tmp_path)
        assert isinstance(locate(PINNED, hub_cache=tmp_path), Checkpoint)

    def test_a_plan_changes_nothing(self, hub: LoopbackHub, tmp_path: Path) -> None:
        plan_pull(PINNED, revision=COMMIT, hub_cache=tmp_path / "cache", endpoint=hub.url)
        assert not (tmp_path / "cache").exists()
        assert hub.sent_bytes == 0


PULLING = """
import sys
from pathlib import Path
from agent_manager.catalog.agents import Model
from agent_manager.checkpoints.fetching.pull import pull
model = Model(name="tiny", repo={repo!r}, revision={commit!r})
pull(model, revision={commit!r}, hub_cache=Path({cache!r}), endpoint={endpoint!r},
     on_progress=lambda now: None, on_remark=lambda said: print(said, flush=True))
"""


def begin(hub: LoopbackHub, cache: Path) -> subprocess.Popen[str]:
    """A pull in a process of its own."""
    code = PULLING.format(repo=REPO, commit=COMMIT, cache=str(cache), endpoint=hub.url)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: still not after {PATIENCE_S:.0f} s"
        time.sleep(0.005)


class TestGoingOn:
    @pytest.mark.parametrize("sizes", [(24_000_000,), (9_000_000, 8_000_000, 7_000_000)])
    def test_after_kill_9_at_half_way_at_most_the_other_half_comes(
        self, hub: LoopbackHub, tmp_path: Path, sizes: tuple[int, ...]
    ) -> None:
        hub.files = {"config.json": b"{}"} | {
            f"model-{number}.safetensors": noise(size) for number, size in enumerate(sizes)
        }
        total = sum(len(content) for content in hub.files.values())
        hub.rate = 20_000_000
        for share in (0.25, 0.5):  # twice: the second process dies as the first did
            process = begin(hub, tmp_path)
            wait_until(
                lambda share=share, process=process: (
                    hub.kept_bytes(tmp_path) >= total * share or process.poll() is not None
                ),  # type: ignore[misc]
                f"{share:.0%} is here",
            )
            process.send_signal(signal.SIGKILL)
            _, errors = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == -signal.SIGKILL, errors
        assert isinstance(locate(PINNED, hub_cache=tmp_path), Missing)
        plan = plan_pull(PINNED, revision=COMMIT, hub_cache=tmp_path, endpoint=hub.url)
        assert plan.fetch_bytes == total - hub.kept_bytes(tmp_path) <= total * 0.55
        hub.rate = None
        hub.sent.clear()
        told = fetch(hub, tmp_path)
        assert told.progress[-1].total_bytes == plan.fetch_bytes
        assert hub.sent_bytes == plan.fetch_bytes
        assert {path.name for path in (repo_folder(REPO, tmp_path) / "snapshots" / COMMIT).iterdir()} == set(
            hub.files
        )
        for name, content in hub.files.items():
            assert (repo_folder(REPO, tmp_path) / "snapshots" / COMMIT / name).read_bytes() == content
        assert not [name for name in blobs(tmp_path) if name.endswith(".incomplete")]

    def test_a_partial_file_of_another_tool_is_never_touched(self, hub: LoopbackHub, tmp_path: Path) -> None:
        (sha,) = names_of(hub, WEIGHTS)
        other = repo_folder(REPO, tmp_path) / "blobs" / f"{sha}.0123abcd.incomplete"
        other.parent.mkdir(parents=True)
        other.write_bytes(b"theirs")
        fetch(hub, tmp_path)
        assert other.read_bytes() == b"theirs"

    def test_what_came_before_a_failure_is_kept(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.faults[WEIGHTS] = ["resets", "503", "503", "503", "503"]
        hub.rate = SLOW
        with pytest.raises(DownloadFailed, match=f"127.0.0.1 answered 503 for {WEIGHTS}, 3 times") as caught:
            fetch(hub, tmp_path)
        assert "goes on from what is here" in (caught.value.hint or "")
        kept = hub.kept_bytes(tmp_path)
        hub.faults.clear()
        hub.sent.clear()
        fetch(hub, tmp_path)
        assert hub.sent_bytes == sum(map(len, hub.files.values())) - kept
        assert 0 < hub.sent[WEIGHTS] < len(hub.files[WEIGHTS]) * 0.55
        assert complete(hub, tmp_path)


class TestTwoAtOnce:
    def test_the_second_waits_says_so_and_finds_everything_there(
        self, hub: LoopbackHub, tmp_path: Path
    ) -> None:
        hub.rate = 2_000_000
        first = begin(hub, tmp_path)
        wait_until(lambda: hub.sent[WEIGHTS] > 0, "bytes come")
        told = fetch(hub, tmp_path)
        _, errors = first.communicate(timeout=PATIENCE_S)
        assert first.returncode == 0, errors
        assert told.remarks == [f"another process is fetching {WEIGHTS}: waiting for it"]
        assert hub.sent[WEIGHTS] == len(hub.files[WEIGHTS])
        assert complete(hub, tmp_path)

    def test_the_librarys_lock_is_honoured(self, hub: LoopbackHub, tmp_path: Path) -> None:
        (sha,) = names_of(hub, WEIGHTS)
        lock = tmp_path / ".locks" / repo_folder(REPO, tmp_path).name / f"{sha}.lock"
        lock.parent.mkdir(parents=True)
        waits = threading.Event()
        ended: list[Told] = []

        def remark(_: str) -> None:
            waits.set()

        def work() -> None:
            told = Told()
            pull(PINNED, revision=COMMIT, hub_cache=tmp_path, endpoint=hub.url, patience=QUICK,
                 on_progress=told.progress.append, on_remark=remark)  # fmt: skip
            ended.append(told)

        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            thread = threading.Thread(target=work)
            thread.start()
            assert waits.wait(PATIENCE_S)
            assert hub.sent[WEIGHTS] == 0
        thread.join()
        assert ended
        assert complete(hub, tmp_path)


class TestTroubleThatPasses:
    @pytest.mark.parametrize("fault", ["503", "500", "429", "resets", "stalls", "expired"])
    def test_is_tried_again(self, hub: LoopbackHub, tmp_path: Path, fault: str) -> None:
        hub.faults[WEIGHTS] = [fault]
        hub.rate = SLOW
        told = fetch(hub, tmp_path)
        assert complete(hub, tmp_path)
        assert len(told.remarks) == 1
        assert WEIGHTS in told.remarks[0]
        assert hub.sent[WEIGHTS] < len(hub.files[WEIGHTS]) * 1.1

    def test_an_expired_address_is_asked_for_again(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.faults[WEIGHTS] = ["expired"]
        fetch(hub, tmp_path)
        assert hub.fetched().count(WEIGHTS) == 2

    def test_a_busy_hub_is_left_alone_for_as_long_as_it_asks(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.faults[WEIGHTS] = ["429:1"]
        told = fetch(hub, tmp_path)
        assert told.remarks == [f"127.0.0.1 answered 429 for {WEIGHTS}: waiting 1 s, as it asks"]

    def test_but_not_for_hours(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.always[WEIGHTS] = "429:7200"
        with pytest.raises(DownloadFailed, match="and asks to wait 7200 s"):
            fetch(hub, tmp_path)

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ("503", f"127.0.0.1 answered 503 for {WEIGHTS}, 3 times"),
            ("429", f"127.0.0.1 answered 429 for {WEIGHTS}, 3 times"),
            ("expired", f"{WEIGHTS}: its signed address is no longer good (403), 3 times"),
        ],
    )
    def test_does_not_go_on_for_ever(
        self, hub: LoopbackHub, tmp_path: Path, fault: str, message: str
    ) -> None:
        hub.always[WEIGHTS] = fault
        with pytest.raises(DownloadFailed) as caught:
            fetch(hub, tmp_path)
        assert caught.value.message == message
        assert not (repo_folder(REPO, tmp_path) / "snapshots" / COMMIT / WEIGHTS).exists()

    def test_while_asking(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.fault = "down"
        with pytest.raises(DownloadFailed, match="the Hub answered 503"):
            fetch(hub, tmp_path)
        assert len(hub.requests) == 3

    def test_while_asking_is_told(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.fault = "down"
        said: list[str] = []

        def remark(message: str) -> None:
            said.append(message)
            hub.fault = None

        plan_pull(
            PINNED, revision=COMMIT, hub_cache=tmp_path, endpoint=hub.url, patience=QUICK, on_remark=remark
        )
        assert said == ["the Hub answered 503: asking again in 0 s"]


class TestTroubleThatStays:
    def test_ranges_are_ignored(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.faults[WEIGHTS] = ["resets"]
        hub.always[WEIGHTS] = "ignores-ranges"
        told = fetch(hub, tmp_path)
        assert complete(hub, tmp_path)
        assert told.remarks[-1] == f"{WEIGHTS}: ranges are ignored on the way here: fetching it as a whole"

    def test_ranges_of_a_file_of_many_pieces_are_ignored(
        self, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("agent_manager.checkpoints.fetching.partial.PIECE_BYTES", 1 << 19)
        hub.always[WEIGHTS] = "ignores-ranges"
        fetch(hub, tmp_path)
        assert complete(hub, tmp_path)

    def test_damage_on_the_way(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.faults[WEIGHTS] = ["corrupts"]
        told = fetch(hub, tmp_path)
        assert told.remarks == [f"{WEIGHTS}: not the bytes that the Hub lists: fetching it again"]
        assert complete(hub, tmp_path)

    def test_damage_that_comes_again(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.always[WEIGHTS] = "corrupts"
        with pytest.raises(DownloadFailed, match=f"^{WEIGHTS} came damaged, 2 times"):
            fetch(hub, tmp_path)
        assert blobs(tmp_path) == names_of(hub, "config.json", "tokenizer.json")
        assert hub.sent[WEIGHTS] == 2 * len(hub.files[WEIGHTS])

    def test_another_size_than_listed(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.claimed_bytes = {WEIGHTS: 5_000_000}
        with pytest.raises(DownloadFailed, match=f"{WEIGHTS}: the Hub lists 5000000 bytes and sends"):
            fetch(hub, tmp_path)

    def test_a_token_that_is_refused(
        self, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
        monkeypatch.setenv("HF_TOKEN", "hf_old")
        hub.token = "hf_new"  # noqa: S105 - not a secret
        with pytest.raises(DownloadFailed, match=f"the Hub does not accept this token for {REPO}") as caught:
            fetch(hub, tmp_path)
        assert "expired" in (caught.value.hint or "")

    def test_a_token_goes_to_the_hub_alone(
        self, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        hub.token = "hf_secret"  # noqa: S105 - not a secret
        fetch(hub, tmp_path)
        assert complete(hub, tmp_path)
        assert hub.strangers_were_told == []

    def test_a_full_disk(self, hub: LoopbackHub, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("agent_manager.checkpoints.fetching.pull.check_space", lambda _: None)
        (small_disk / "filler").write_bytes(bytes(6 << 20))
        with pytest.raises(DownloadFailed, match=f"^the disk is full while downloading {REPO}$"):
            fetch(hub, small_disk)
        sent = hub.sent[WEIGHTS]
        (small_disk / "filler").unlink()
        fetch(hub, small_disk)
        assert complete(hub, small_disk)
        assert hub.sent[WEIGHTS] - sent < len(hub.files[WEIGHTS])

    def test_no_room_is_told_before_a_byte_comes(self, hub: LoopbackHub, small_disk: Path) -> None:
        (small_disk / "filler").write_bytes(bytes(6 << 20))
        with pytest.raises(DownloadFailed, match=r"needs 0\.00 GiB more"):
            fetch(hub, small_disk)
        assert hub.sent_bytes == 0


DISK_BYTES = 8 << 20
_MS_RDONLY, _MS_REMOUNT, _MNT_DETACH = 1, 32, 2
_LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if _LIBC.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=%d" % DISK_BYTES):
        pytest.skip(f"a small disk cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    yield folder
    assert _LIBC.umount2(os.fsencode(folder), _MNT_DETACH) == 0


def remount(folder: Path, how: str) -> None:
    flags = _MS_REMOUNT | (_MS_RDONLY if how == "ro" else 0)
    assert _LIBC.mount(b"none", os.fsencode(folder), b"tmpfs", flags, b"size=%d" % DISK_BYTES) == 0
