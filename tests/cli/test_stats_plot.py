"""Recordings become pictures, and what is none becomes a sentence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from msgspec.structs import replace

from agent_manager.cli.stats_plot import plot
from agent_manager.cli.stats_record import Recorder
from agent_manager.errors import AgentManagerError, HostNotReady, UsageError
from agent_manager.swap.history import SwapSample
from tests.cli.scenes import BEGAN, busy, idle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from agent_manager.swap.stats import StatsSample

SWAPPED = SwapSample(at=BEGAN + timedelta(seconds=60), arrived="po", left="dev", seconds=38.0)


@pytest.fixture(autouse=True)
def _utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def record(path: Path, samples: Iterable[StatsSample]) -> Path:
    with Recorder(path) as recorder:
        for sample in samples:
            recorder.write(sample)
    return path


def session() -> Iterable[StatsSample]:
    """Dev, then po from the first minute on, and a pause in between."""
    for second in (*range(0, 100, 2), *range(400, 500, 2)):
        sample = busy(second)
        if second < 60:
            yield replace(sample, agents=sample.agents[:1], swaps=())
        else:
            po = replace(sample.agents[1], traffic=sample.agents[0].traffic)
            yield replace(sample, agents=(po,), swaps=(SWAPPED,))


def words_of(picture: Path) -> set[str]:
    tree = ET.parse(picture)  # noqa: S314 - we drew it
    return {"".join(each.itertext()).strip() for each in tree.iter() if each.tag.endswith("}text")}


def test_a_session_has_its_panels_its_agents_and_its_swaps(tmp_path: Path) -> None:
    recording, picture = record(tmp_path / "session.csv", session()), tmp_path / "session.svg"

    plot(recording, picture)

    said = words_of(picture)
    assert {
        "memory used (GiB)",
        "utilization (%)",
        "power (W)",
        "temperature (°C)",
        "tokens per second",
    } <= said
    assert {"dev", "po", "total", "dev → po, 38 s", "time (UTC)", "NVIDIA GeForce RTX 4080 SUPER"} <= said
    assert "2026-03-04 14:00:00, 8 min 18 s" in said
    assert "no agent" not in said, "the pause is a gap"
    assert "14:00" in said


def test_the_same_recording_gives_the_same_picture(tmp_path: Path) -> None:
    recording = record(tmp_path / "session.csv", session())
    for suffix in (".svg", ".png"):
        first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
        plot(recording, first)
        plot(recording, second)
        assert first.read_bytes() == second.read_bytes()
    assert re.search(rb"20[0-9]{2}-[0-9]{2}-[0-9]{2}T", (tmp_path / "first.svg").read_bytes()) is None


def test_a_png_is_one(tmp_path: Path) -> None:
    plot(record(tmp_path / "session.csv", session()), tmp_path / "picture.PNG")

    data = (tmp_path / "picture.PNG").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (1320, 1080)


def test_a_simulated_card_is_said_to_be_one_and_what_it_lacks_too(tmp_path: Path) -> None:
    plot(record(tmp_path / "one.csv", [idle(0)]), tmp_path / "one.svg")

    said = words_of(tmp_path / "one.svg")
    assert "Simulated 16 GB card (simulated: there is no GPU behind it)" in said
    assert "not known" in said


def test_a_long_session_is_thinned_and_keeps_its_swaps(tmp_path: Path) -> None:
    samples = (
        replace(busy(second), swaps=(SWAPPED,) if second >= 60 else (), notes=()) for second in range(9000)
    )
    plot(record(tmp_path / "long.csv", samples), tmp_path / "long.svg")

    assert "dev → po, 38 s" in words_of(tmp_path / "long.svg")
    assert (tmp_path / "long.svg").stat().st_size < 2_000_000


@pytest.mark.parametrize("name", ["picture", "picture.pdf", "session.csv", ".svg"])
def test_only_svg_and_png_are_drawn(tmp_path: Path, name: str) -> None:
    recording = record(tmp_path / "session.csv", [busy(0)])
    kept = recording.read_bytes()

    with pytest.raises(UsageError, match=r"\.svg or \.png"):
        plot(recording, tmp_path / name)

    assert recording.read_bytes() == kept


@pytest.mark.parametrize(
    "content",
    [None, b"", b"a,b\n1,2\n", b"\xff\x00\x1b", b"{}\n"],
    ids=["missing", "empty", "csv", "binary", "json"],
)
def test_what_is_no_recording_is_a_sentence_and_no_picture(tmp_path: Path, content: bytes | None) -> None:
    source = tmp_path / "source.csv"
    if content is not None:
        source.write_bytes(content)

    with pytest.raises(UsageError, match=r"source\.csv"):
        plot(source, tmp_path / "picture.svg")

    assert not (tmp_path / "picture.svg").exists()


def test_a_recording_without_samples_has_no_picture(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it holds no samples yet"):
        plot(record(tmp_path / "empty.csv", []), tmp_path / "picture.svg")


def test_a_picture_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    recording = record(tmp_path / "session.csv", [busy(0), busy(1)])

    with pytest.raises(HostNotReady, match="No such file"):
        plot(recording, tmp_path / "nowhere" / "picture.svg")
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(AgentManagerError, match="Is a directory"):
        plot(recording, tmp_path / "folder.svg")


def test_it_needs_no_display_and_tells_nothing(tmp_path: Path) -> None:
    record(tmp_path / "session.csv", session())
    code = "from pathlib import Path; from agent_manager.cli.stats_plot import plot; "
    code += "plot(Path('session.csv'), Path('session.png'))"

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "session.png").stat().st_size > 10_000
