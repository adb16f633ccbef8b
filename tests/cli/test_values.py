"""Durations, moments and numbers of lines as a person writes them, and as they are printed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agent_manager.cli.output import ago, gib, printable, seconds
from agent_manager.cli.values import duration_s, moment, tail_lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("90", 90), ("90s", 90), ("1.5m", 90), (" 2h ", 7200), ("1d", 86400), (".5", 0.5), (60.0, 60)],
)
def test_a_duration_is_seconds_or_says_its_unit(text: str | float, expected: float) -> None:
    assert duration_s(text) == expected


@pytest.mark.parametrize("text", ["-1", "", "m", "1 h 2", "ten", "1e3", "nan", "inf", "-0"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        duration_s(text)


def test_a_moment_is_a_time_or_a_duration_ago() -> None:
    before = datetime.now(UTC)
    ten_minutes_ago = moment("10m")
    assert before - timedelta(minutes=10) <= ten_minutes_ago <= datetime.now(UTC) - timedelta(minutes=10)
    assert moment("2026-01-31T12:00+02:00") == datetime(2026, 1, 31, 10, tzinfo=UTC)
    assert moment("2026-01-31T12:00Z") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    local = datetime(2026, 1, 31, 12).astimezone()
    assert moment("2026-01-31T12:00") == local
    assert moment("2026-01-31T12:00").tzinfo is UTC


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "-5m", "99999999999d"])
def test_anything_else_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="is neither a time"):
        moment(text)


def test_a_number_of_lines_or_all() -> None:
    assert tail_lines("0") == 0
    assert tail_lines("12") == 12
    assert tail_lines("all") is None
    for text in ("-1", "x", "1.5", ""):
        with pytest.raises(ValueError, match="is not a number of lines"):
            tail_lines(text)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (0.04, "0.0 s"),
        (2.34, "2.3 s"),
        (35.4, "35 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (11400, "3 h 10 min"),
        (7200, "2 h"),
    ],
)
def test_durations_are_printed_as_a_person_says_them(duration: float, expected: str) -> None:
    assert seconds(duration) == expected


def test_whole_seconds_while_a_clock_ticks() -> None:
    assert seconds(3.4, whole=True) == "3 s"


def test_how_long_ago() -> None:
    now = datetime.now(UTC)
    assert ago(now - timedelta(minutes=3, seconds=2)) == "3 min ago"
    assert ago(now - timedelta(hours=23, minutes=50)) == "23 h ago"
    assert ago(now - timedelta(days=3)) == "3 d ago"
    assert ago(now + timedelta(seconds=30)) == "0 s ago"


def test_a_gib_is_two_to_the_thirty() -> None:
    assert gib(1 << 30) == "1.00 GiB"
    assert gib(10**9) == "0.93 GiB"


def test_control_characters_cannot_repaint_a_terminal() -> None:
    assert printable("a\x1b[31mb\rc\x9bd\x7f") == "a\\x1b[31mb\\x0dc\\x9bd\\x7f"
    assert printable("two\nlines\tand ü ✓") == "two\nlines\tand ü ✓"
