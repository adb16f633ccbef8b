"""Logs of the process runtime: how the shim writes them, how they are read, how they are kept."""

from __future__ import annotations

import contextlib
import resource
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from agent_manager.errors import NotRunning, StateUnusable
from agent_manager.runtimes.base import LogLine
from agent_manager.runtimes.kept_logs import keep_log, kept_logs, read_kept
from agent_manager.runtimes.linelog import LINE_LIMIT_BYTES, LineLog
from agent_manager.runtimes.logfile import LogReader, stamped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .conftest import Lab


@contextlib.contextmanager
def reading(folder: Path, *, tail: int | None = None) -> Iterator[LogReader]:
    reader = LogReader(folder, tail=tail)
    try:
        yield reader
    finally:
        reader.close()


def rest(reader: LogReader) -> list[str]:
    texts: list[str] = []
    while (lines := reader.read()) is not None:
        texts += [line.text for line in lines]
    return texts


def texts(folder: Path, *, tail: int | None = None) -> list[str]:
    with reading(folder, tail=tail) as reader:
        return rest(reader)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"on", b"e\nt", b"wo\n"], ["one", "two"]),
        ([b"\n\none\n"], ["", "", "one"]),
        ([b"one\r\ntwo\r", b"\nthree\n"], ["one", "two", "three"]),
        ([b"\r 0%|  \r50%|# ", b"\r100%|##\ndone\n"], [" 0%|  ", "50%|# ", "100%|##", "done"]),
        ([b"\r 0%", b"\r100%\r\n", b"\n"], [" 0%", "100%", ""]),
        (["ä\n".encode()[:1], "ä\n".encode()[1:]], ["ä"]),
        ([b"\xff\xfe\n"], ["\ufffd\ufffd"]),
        ([b"x" * (LINE_LIMIT_BYTES + 1) + b"\n"], ["x" * LINE_LIMIT_BYTES, "x"]),
        ([b"y" * 9000, b"y" * 9000, b"\n"], ["y" * LINE_LIMIT_BYTES, "y" * (18000 - LINE_LIMIT_BYTES)]),
        ([b"no newline"], ["no newline"]),
    ],
)
def test_output_becomes_lines(tmp_path: Path, chunks: list[bytes], expected: list[str]) -> None:
    log = LineLog(str(tmp_path))
    for chunk in chunks:
        log.feed(chunk)
    log.finish()
    assert texts(tmp_path) == expected


def test_a_progress_bar_that_pauses_is_written_once(tmp_path: Path) -> None:
    log = LineLog(str(tmp_path))
    waiting = []
    for step in (b"half a line", b", done\n\r50%", b"", b"\r100%\n"):
        if step:
            log.feed(step)
        else:
            log.idle()
        waiting.append(log.waiting)
    assert waiting == [False, True, False, False]
    assert texts(tmp_path) == ["half a line, done", "50%", "100%"]


def test_the_log_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    log = LineLog(str(tmp_path), limit_bytes=4096)
    for number in range(1000):
        log.feed(f"line {number}\n".encode())
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert all(size <= 4096 for size in sizes)
    found = texts(tmp_path)
    assert found == [f"line {number}" for number in range(1000 - len(found), 1000)]
    assert texts(tmp_path, tail=len(found) - 3) == found[3:]
    assert texts(tmp_path, tail=5000) == found


def test_reading_goes_on_through_rotations(tmp_path: Path) -> None:
    log = LineLog(str(tmp_path), limit_bytes=4096)
    log.feed(b"line 0\n")
    with reading(tmp_path) as reader:
        found = rest(reader)
        for number in range(1, 1000):
            log.feed(f"line {number}\n".encode())
            if number % 100 == 0:  # about one rotation
                found += rest(reader)
        found += rest(reader)
    assert found == [f"line {number}" for number in range(1000)]


def test_reading_begins_before_there_is_a_log(tmp_path: Path) -> None:
    with reading(tmp_path) as reader:
        assert reader.read() is None
        LineLog(str(tmp_path)).feed(b"first\n")
        assert rest(reader) == ["first"]


def test_a_full_disk_is_noted_where_lines_are_missing(tmp_path: Path) -> None:
    log = LineLog(str(tmp_path))
    log.feed(b"before\n")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (45, unlimited[1]))  # inside the second line
    try:
        log.feed(b"torn and lost\n")
        log.feed(b"lost\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    log.feed(b"after\n")
    log.feed(b"and on\n")
    found = texts(tmp_path)
    assert found[0] == "before"
    assert found[-3].startswith("agent-manager: ")
    assert found[-3].endswith("bytes of output were lost here: File too large")
    assert found[-2:] == ["after", "and on"]
    assert not any("lost" in text for text in found if not text.startswith("agent-manager: "))


def test_lines_without_a_stamp_have_the_time_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "engine.log").write_text(
        "2026-01-31T10:00:00.123456Z one\nTraceback\n\n9999-99-99T99:99:99.999999Z x\n"
    )
    with reading(tmp_path) as reader:
        lines = reader.read()
    at = datetime(2026, 1, 31, 10, 0, 0, 123456, tzinfo=UTC)
    assert lines == [LogLine(at=at, text=text) for text in ("one", "Traceback", "", "x")]
    assert stamped(lines[0]) == "2026-01-31T10:00:00.123456Z one\n"


def test_a_last_line_without_a_newline_is_read_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "engine.log").write_text("2026-01-31T10:00:00.123456Z one\n2026-01-31T10:00:01.000000Z to")
    assert texts(tmp_path, tail=1) == []
    with reading(tmp_path, tail=1) as reader:
        assert rest(reader) == []
        assert [line.text for line in reader.finish()] == ["to"]


async def test_progress_reaches_who_follows_before_its_line_ends(lab: Lab) -> None:
    spec = await lab.started("import time\nprint('\\r50%', end='', flush=True)\nwhile True: time.sleep(60)\n")
    assert await lab.said(spec, "50%") == "50%"


async def test_logs_are_kept_and_the_oldest_dropped(lab: Lab) -> None:
    folder = lab.state.kept_logs("dev")
    assert kept_logs(folder) == ()
    kept: list[Path | None] = []
    for number in range(7):
        spec = await lab.started(f"print('run', {number})\nprint('end')\n", f"dev-{number:08x}")
        await lab.runtime.wait(spec.id)
        kept.append(await keep_log(lab.runtime, spec.id, folder))
        await lab.runtime.remove(spec.id)
    assert list(kept_logs(folder)) == kept[:1:-1]
    newest = kept_logs(folder)[0]
    assert newest.name.endswith("Z-dev-00000006.log")
    lines = read_kept(newest)
    assert [line.text for line in lines] == ["run 6", "end"]
    assert [line.text for line in read_kept(newest, tail=1)] == ["end"]
    assert read_kept(newest, since=lines[0].at) == lines
    assert read_kept(newest, since=lines[1].at + timedelta(seconds=1)) == ()


async def test_an_empty_log_is_not_kept(lab: Lab) -> None:
    spec = await lab.created("")
    assert await keep_log(lab.runtime, spec.id, lab.state.kept_logs("dev")) is None
    assert kept_logs(lab.state.kept_logs("dev")) == ()


async def test_keeping_the_log_of_an_unknown_instance_leaves_nothing(lab: Lab) -> None:
    folder = lab.state.kept_logs("dev")
    with pytest.raises(NotRunning):
        await keep_log(lab.runtime, "dev-0badf00d", folder)
    assert list(folder.iterdir()) == []


async def test_a_log_that_cannot_be_kept_says_where(lab: Lab) -> None:
    spec = await lab.started("print('one')\n")
    await lab.runtime.wait(spec.id)
    lab.state.kept_logs("dev").parent.write_text("a file where a folder should be")
    with pytest.raises(StateUnusable, match="logs"):
        await keep_log(lab.runtime, spec.id, lab.state.kept_logs("dev"))
