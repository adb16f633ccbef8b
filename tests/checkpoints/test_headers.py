from __future__ import annotations

import json

import pytest

from agent_manager.checkpoints.headers import (
    MAX_HEADER_BYTES,
    Tensor,
    header_length,
    indexed_files,
    parse_header,
)
from agent_manager.errors import CheckpointUnusable


def header(text: str, data_bytes: int = 0) -> tuple[bytes, int]:
    encoded = text.encode()
    return encoded, 8 + len(encoded) + data_bytes


class TestSafetensors:
    def test_reads_names_and_sizes(self) -> None:
        entries = {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]},
        }
        data, file_bytes = header(json.dumps(entries), 8)
        assert header_length(len(data).to_bytes(8, "little"), file_bytes=file_bytes, where="w") == len(data)
        assert parse_header(data, file_bytes=file_bytes, where="w") == (
            Tensor(name="a", size_bytes=8, dtype="F16"),
        )

    @pytest.mark.parametrize(
        ("prefix", "file_bytes"),
        [
            (b"", 0),
            (b"\x10\0\0", 3),
            ((0).to_bytes(8, "little"), 100),
            ((93).to_bytes(8, "little"), 100),
            ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), 10**12),
            (b"version ", 130),
        ],
        ids=["empty", "short", "no header", "beyond the file", "too large", "a Git LFS pointer"],
    )
    def test_a_length_that_cannot_be(self, prefix: bytes, file_bytes: int) -> None:
        with pytest.raises(CheckpointUnusable, match=r"^w: ") as caught:
            header_length(prefix, file_bytes=file_bytes, where="w")
        assert caught.value.hint

    @pytest.mark.parametrize(
        "text",
        [
            "not json",
            "[]",
            '{"a": 1}',
            '{"a": {"dtype": "F16"}}',
            '{"a": {"data_offsets": [8, 0]}}',
            '{"a": {"data_offsets": ["0", "8"]}}',
        ],
    )
    def test_a_header_that_is_not_one(self, text: str) -> None:
        data, file_bytes = header(text, 8)
        with pytest.raises(CheckpointUnusable, match=r"^w: its header"):
            parse_header(data, file_bytes=file_bytes, where="w")

    def test_not_text(self) -> None:
        with pytest.raises(CheckpointUnusable, match="not JSON"):
            parse_header(b"\xff\xfe\x00", file_bytes=11, where="w")

    def test_a_truncated_file(self) -> None:
        data, file_bytes = header('{"a": {"data_offsets": [0, 8]}}', 7)
        with pytest.raises(CheckpointUnusable, match="its header says"):
            parse_header(data, file_bytes=file_bytes, where="w")

    def test_a_type_that_is_not_said(self) -> None:
        data, file_bytes = header('{"a": {"data_offsets": [0, 8]}}', 8)
        assert parse_header(data, file_bytes=file_bytes, where="w")[0].dtype == ""


class TestIndex:
    def test_names_its_files(self) -> None:
        index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}
        assert indexed_files(index, where="w") == {"model-1.safetensors"}

    @pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 7}, {"a": "../x.safetensors"}, {"a": ""}])
    def test_a_map_that_is_not_one(self, weight_map: object) -> None:
        with pytest.raises(CheckpointUnusable, match=r"^w: weight_map"):
            indexed_files({"weight_map": weight_map}, where="w")
