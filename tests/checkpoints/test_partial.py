"""Partial files: what is written is believed by the next process, and nothing else is."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_manager.checkpoints.fetching import partial as module
from agent_manager.checkpoints.fetching.partial import Partial, done_bytes_at

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True, scope="module")
def _small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", 1000)
        yield


@given(steps=st.lists(st.tuples(st.integers(0, 10), st.integers(1, 700), st.booleans()), max_size=40))
def test_whatever_is_written_in_whatever_order_is_found_again(steps: list[tuple[int, int, bool]]) -> None:
    with TemporaryDirectory() as folder:
        path, size = Path(folder) / "partial", len(CONTENT)
        partial = Partial.open(path, size)
        for number, length, reopens in steps:
            piece = partial.pieces[number % len(partial.pieces)]
            partial.write(piece, CONTENT[piece.next : min(piece.next + length, piece.stop)])
            if reopens:
                before = [(each.start, each.done_bytes) for each in partial.pieces]
                partial.close()
                partial = Partial.open(path, size)
                assert [(each.start, each.done_bytes) for each in partial.pieces] == before
        assert (
            partial.done_bytes == sum(each.done_bytes for each in partial.pieces) == done_bytes_at(path, size)
        )
        for piece in partial.pieces:
            assert partial.read(piece.start, piece.done_bytes) == CONTENT[piece.start : piece.next]
        assert partial.read(0, partial.front) == CONTENT[: partial.front]
        partial.close()


def _written(path: Path, size: int) -> Partial:
    partial = Partial.open(path, size)
    for piece in partial.pieces:
        partial.write(piece, CONTENT[piece.start : piece.stop])
    return partial


def test_a_finished_file_has_its_bytes_and_its_name(tmp_path: Path) -> None:
    partial = _written(tmp_path / "partial", len(CONTENT))
    partial.finish(tmp_path / "blob")
    partial.close()
    assert (tmp_path / "blob").read_bytes() == CONTENT
    assert not (tmp_path / "partial").exists()


def test_killed_on_its_last_step_nothing_is_lost(tmp_path: Path) -> None:
    _written(tmp_path / "partial", len(CONTENT)).close()
    os.truncate(tmp_path / "partial", len(CONTENT))
    assert done_bytes_at(tmp_path / "partial", len(CONTENT)) == len(CONTENT)


@pytest.mark.parametrize("damage", ["size", "mark", "cut", "counter"])
def test_a_journal_that_cannot_be_right_is_not_believed(tmp_path: Path, damage: str) -> None:
    path, size = tmp_path / "partial", len(CONTENT)
    _written(path, size).close()
    with path.open("r+b") as file:
        match damage:
            case "size":
                size -= 1
            case "mark":
                file.seek(size)
                file.write(b"another")
            case "cut":
                file.truncate(path.stat().st_size - 3)
            case _:
                file.seek(-8, os.SEEK_END)
                file.write(b"\xff" * 8)
    expected = size - size % 1000 if damage == "counter" else 0
    assert done_bytes_at(path, size) == expected
    partial = Partial.open(path, size)
    assert partial.done_bytes == expected
    partial.close()


def test_an_empty_file_is_complete(tmp_path: Path) -> None:
    partial = Partial.open(tmp_path / "partial", 0)
    assert (partial.front, partial.done_bytes, partial.pieces) == (0, 0, [])
    partial.finish(tmp_path / "blob")
    partial.close()
    assert (tmp_path / "blob").read_bytes() == b""
