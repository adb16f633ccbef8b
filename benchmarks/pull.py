"""How fast a checkpoint comes from a Hub on loopback, beside `hf download`, and what a pull that was killed costs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

from agent_manager.checkpoints.fetching.partial import SUFFIX
from benchmarks.hub import COMMIT, REPO
from benchmarks.table import Row, ratio, seconds_of

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS = 3
MIB = 1 << 20
SHARDS, SHARD_BYTES = 8, 96 * MIB
SMALL_FILES, SMALL_BYTES = 200, 20_000
LATENCY_S = 0.04
PROGRAM = str(Path(sys.executable).with_name("agent-manager"))
HF = str(Path(sys.executable).with_name("hf"))
CATALOG = f"""\
version: 1
models: {{bench: {{repo: {REPO}, revision: {COMMIT}}}}}
agents: {{dev: {{model: bench, port: 8001, context: 4k, sequences: 1}}}}
"""


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory(dir=_fast_disk()) as folder:
        place = Path(folder)
        large, small = place / "large", place / "small"
        _write(large, shards=SHARDS, shard_bytes=SHARD_BYTES, small_files=8)
        _write(small, shards=4, shard_bytes=4 * MIB, small_files=SMALL_FILES)
        with _serving(large, 0) as url:
            rows = [
                _beside_hf(place, url, SHARDS * SHARD_BYTES, "a loopback Hub", 0.95),
                _resumed(place, url),
            ]
        with _serving(small, LATENCY_S) as url:
            what = f"a Hub {LATENCY_S * 1000:.0f} ms away, {SMALL_FILES} small files and 4 shards"
            rows.append(_beside_hf(place, url, 4 * 4 * MIB + SMALL_FILES * SMALL_BYTES, what, 2.0))
    return rows


def _beside_hf(place: Path, url: str, size_bytes: int, what: str, bound: float) -> Row:
    cache = place / "cache"
    environ = _environ(place, url, cache)

    def timed(argv: list[str]) -> float:
        shutil.rmtree(cache, ignore_errors=True)
        return seconds_of(argv, environ)

    times, ours_s = ratio(
        lambda: timed([HF, "download", REPO, "--revision", COMMIT]),
        lambda: timed([PROGRAM, "pull", "dev"]),
        RUNS,
    )
    return Row(
        what=f"`pull` from {what}",
        figure=f"{times:.2f} × as fast ({size_bytes / ours_s / 1e6:.0f} MB/s)",
        yardstick="`hf download`, which verifies nothing",
        bound=f"≥ {bound} ×",
        kept=times >= bound,
    )


def _resumed(place: Path, url: str) -> Row:
    """What the next one fetches when one was killed at half way."""
    cache = place / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    environ = _environ(place, url, cache)
    total = SHARDS * SHARD_BYTES
    process = subprocess.Popen(
        [PROGRAM, "pull", "dev"], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while _here_bytes(cache) < total // 2 and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    missing = total - _here_bytes(cache)
    _counted(url)
    seconds_of([PROGRAM, "pull", "dev"], environ)
    share = (_counted(url) - missing) / total
    return Row(
        what=f"`pull` after `kill -9` with {missing / total:.0%} missing",
        figure=f"{share:+.1%} of the checkpoint beyond that",
        yardstick="the bytes that the Hub sends",
        bound="≤ +5 %",
        kept=share <= 0.05,
    )


def _here_bytes(cache: Path) -> int:
    """On the disk, in whole files and in partial ones."""
    here = 0
    for path in (cache / f"models--{REPO.replace('/', '--')}" / "blobs").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # one that is whole gets another name meanwhile
            size = path.stat().st_blocks * 512
            here += min(size, SHARD_BYTES) if path.name.endswith(SUFFIX) else size
    return here


def _write(folder: Path, *, shards: int, shard_bytes: int, small_files: int) -> None:
    folder.mkdir()
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [shard_bytes], "data_offsets": [0, shard_bytes]}}
    ).encode()
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    for name in names:
        with (folder / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for _ in range(shard_bytes // MIB):
                file.write(os.urandom(MIB))
    index = {"weight_map": {f"w{number}": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    for number in range(small_files):
        (folder / f"extra_{number}.json").write_text(json.dumps({"n": number, "text": "x" * SMALL_BYTES}))


@contextmanager
def _serving(folder: Path, latency_s: float) -> Iterator[str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.hub", str(folder), str(latency_s)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None  # noqa: S101 - asked for above
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.communicate()


def _counted(url: str) -> int:
    with urlopen(f"{url}/counted") as answer:  # noqa: S310 - the benchmark's own server
        return int(answer.read())


def _environ(place: Path, url: str, cache: Path) -> dict[str, str]:
    catalog = place / "models.yaml"
    catalog.write_text(CATALOG)
    return {
        **os.environ,
        "AGENT_MANAGER_STATE_DIR": str(place / "state"),
        "AGENT_MANAGER_CATALOG": str(catalog),
        "HF_ENDPOINT": url,
        "HF_HOME": str(place / "home"),
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }


def _fast_disk() -> str | None:
    """Memory, where there is enough: what is measured is the program, not the disk."""
    shared = Path("/dev/shm")  # noqa: S108 - only if it is there and large
    room = 4 * SHARDS * SHARD_BYTES
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > room else None
