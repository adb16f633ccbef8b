"""How fast `verify` reads a model's files, beside other programs on the same files.

The yardstick is `sha256sum` on every file at once, as many at a time as there are cores (xargs -P). Its own
implementation is slow on processors with SHA instructions, so a second one is told where it is installed: `openssl
dgst -sha256`, which is as fast as the processor goes. The whole command is told too: on so small a model the
program's start is a good part of it, on a real one it is nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent_manager.catalog.agents import Model
from agent_manager.checkpoints.disk import repo_folder
from agent_manager.checkpoints.verify import ModelState, verify
from benchmarks.table import Row, ratio, seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RUNS = 3
SHARD_BYTES = 128 << 20
SHARDS = 4
BOUND = 0.8
"""Of the yardstick's throughput."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = Model(name="sample", repo="Some/Model", revision=COMMIT)
CATALOG = f"""\
version: 1
engine: simulated
models:
  sample: {{repo: Some/Model, revision: "{COMMIT}"}}
agents:
  dev: {{model: sample, port: 28001, context: 4k, sequences: 4}}
"""


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "hub"
        blobs = _make(cache)
        catalog = Path(folder) / "models.yaml"
        catalog.write_text(CATALOG)
        environ = {
            **os.environ,
            "AGENT_MANAGER_CATALOG": str(catalog),
            "AGENT_MANAGER_STATE_DIR": f"{folder}/state",
            "HF_HUB_CACHE": str(cache),
        }
        program = [str(Path(sys.executable).with_name("agent-manager")), "verify", "-q"]
        sha256sum = ("sha256sum", _all_cores(["sha256sum"], blobs))
        rows = [
            _row("verify, in the program", lambda: _inside(cache), *sha256sum),
            _row("`agent-manager verify`", lambda: seconds_of(program, environ), *sha256sum, bound=False),
        ]
        if shutil.which("openssl"):
            openssl = _all_cores(["openssl", "dgst", "-sha256"], blobs)
            rows.append(
                _row("verify, in the program", lambda: _inside(cache), "openssl dgst", openssl, bound=False)
            )
        return rows


def _make(cache: Path) -> list[Path]:
    """A model of large files in the cache, in memory once they are written."""
    storage = repo_folder(str(MODEL.repo), cache)
    snapshot = storage / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (storage / "blobs").mkdir()
    made = []
    for number in range(SHARDS):
        content = os.urandom(1 << 20) * (SHARD_BYTES >> 20)
        blob = storage / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / f"model-{number}.safetensors").symlink_to(blob)
        made.append(blob)
    config = json.dumps({}).encode()
    blob = storage / "blobs" / hashlib.sha256(config).hexdigest()
    blob.write_bytes(config)
    (snapshot / "config.json").symlink_to(blob)
    return made


def _inside(cache: Path) -> float:
    began = time.perf_counter()
    (check,) = verify([MODEL], hub_cache=cache, on_progress=lambda _: None)
    took_s = time.perf_counter() - began
    if check.state is not ModelState.INTACT:
        raise AssertionError(check)
    return took_s


def _all_cores(program: Sequence[str], files: Sequence[Path]) -> Callable[[], float]:
    argv = ["xargs", "-P", str(len(os.sched_getaffinity(0))), "-n", "1", *program]
    names = "\n".join(map(str, files))

    def run() -> float:
        began = time.perf_counter()
        subprocess.run(argv, input=names, text=True, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    return run


def _row(
    what: str, subject: Callable[[], float], name: str, yardstick: Callable[[], float], *, bound: bool = True
) -> Row:
    share, unit_s = ratio(subject, yardstick, RUNS)
    speed = 1 / share
    rate = SHARDS * SHARD_BYTES / unit_s / (1 << 30)
    return Row(
        what=what,
        figure=f"{speed:.2f} × the throughput",
        yardstick=f"`{name}` on {len(os.sched_getaffinity(0))} cores ({rate:.2f} GiB/s)",
        bound=f"≥ {BOUND} ×" if bound else "",
        kept=not bound or speed >= BOUND,
    )
