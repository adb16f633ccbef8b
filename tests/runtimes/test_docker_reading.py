"""Docker's log and Docker's progress, read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from agent_manager.errors import HostNotReady
from agent_manager.runtimes.docker.images import Tally, require_room
from agent_manager.runtimes.docker.loglines import LogLines
from agent_manager.runtimes.docker.records import moment

if TYPE_CHECKING:
    from pathlib import Path

NOON = "2026-01-31T12:00:00.123456789Z"
AT = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


def read(*pieces: str, since: datetime | None = None) -> list[str]:
    lines = LogLines(since=since)
    return [line.text for piece in pieces for line in lines.feed(piece.encode())] + [
        line.text for line in lines.finish()
    ]


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2026-01-31T12:00:00Z", 0),
        ("2026-01-31T12:00:00.5Z", 500_000),
        (NOON, 123_456),
        ("2026-01-31T12:00:00.000000001Z", 0),
    ],
)
def test_dockers_times_have_any_number_of_digits(text: str, micros: int) -> None:
    assert moment(text) == datetime(2026, 1, 31, 12, 0, 0, micros, tzinfo=UTC)


def test_a_line_has_its_time() -> None:
    (line,) = LogLines().feed(f"{NOON} hello there\n".encode())
    assert (line.at, line.text) == (AT, "hello there")


def test_a_long_line_comes_in_pieces_and_is_one() -> None:
    assert read(f"{NOON} {'a' * 20}", f"{NOON} {'b' * 20}", f"{NOON} c\n") == ["a" * 20 + "b" * 20 + "c"]


def test_empty_lines_stay_and_carriage_returns_end_lines() -> None:
    assert read(f"{NOON} \n") == [""]
    assert read(f"{NOON} 10%\r20%\r\r30%\n") == ["10%", "20%", "30%"]
    assert read(f"{NOON} dos\r\n") == ["dos"]


def test_the_last_line_needs_no_newline() -> None:
    assert read(f"{NOON} one\n", f"{NOON} two") == ["one", "two"]


def test_what_is_older_is_left_out() -> None:
    assert read(f"{NOON} old\n", "2026-01-31T12:00:01Z new\n", since=AT.replace(second=1, microsecond=0)) == [
        "new"
    ]


def test_what_is_not_text_is_shown_all_the_same() -> None:
    (line,) = LogLines().feed(NOON.encode() + b" \xff\xfe\n")
    assert line.text == "\ufffd\ufffd"


def test_layers_add_up() -> None:
    tally = Tally("a/b:1")
    said: list[dict[str, Any]] = [
        {"status": "Pulling from a/b", "id": "1"},
        {"status": "Already exists", "id": "base"},
        {"status": "Pulling fs layer", "id": "x"},
        {"status": "Downloading", "id": "x", "progressDetail": {"current": 10, "total": 100}},
        {"status": "Downloading", "id": "y", "progressDetail": {"current": 0, "total": 50}},
        {"status": "Download complete", "id": "x", "progressDetail": {}},
        {"status": "Extracting", "id": "x", "progressDetail": {"current": 1, "total": 100}},
        {"status": "Pull complete", "id": "x", "progressDetail": {}},
        {"status": "Digest: sha256:0"},
    ]
    told = [(now.done_bytes, now.total_bytes, now.message) for each in said if (now := tally.add(each))]
    assert told == [
        (0, 0, "layer 1 of 1 is here"),
        (10, 100, None),
        (10, 150, None),
        (100, 150, None),
        (100, 150, None),
        (100, 150, "layer 2 of 3 is here"),
    ]


def test_a_full_disk_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    require_room("a/b:1", str(tmp_path), 1)
    require_room("a/b:1", str(tmp_path / "not ours to see"), 1 << 60)
    with pytest.raises(HostNotReady, match=r"the image a/b:1 is not here, and only [\d.]+ GiB are free"):
        require_room("a/b:1", str(tmp_path), 1 << 60)
