"""The figures of memory in an engine's log."""

from __future__ import annotations

import pytest

from agent_manager.engines.figures import FigureReader
from agent_manager.planning.base import Measured

from .test_phases import GPU, REAL

GIB = 1 << 30


def read(lines: list[str]) -> Measured | None:
    reader = FigureReader()
    for line in lines:
        reader.feed(line)
    return reader.measured


def test_a_start_on_a_gpu_says_everything() -> None:
    assert read(GPU) == Measured(
        weights_bytes=round(9.44 * GIB),
        kv_cache_bytes=round(10.11 * GIB),
        kv_tokens=66_224,
        graph_bytes=round(0.61 * GIB),
    )


def test_a_real_start_on_the_cpu_says_its_tokens() -> None:
    assert read(REAL.read_text("utf-8").split("\n")) == Measured(kv_tokens=524_288)


def test_an_eager_start_has_no_graphs() -> None:
    measured = read([line for line in GPU if "Graph capturing" not in line])

    assert measured is not None
    assert (measured.kv_tokens, measured.graph_bytes) == (66_224, None)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Model loading took 5.2 GiB and 3.1 seconds", Measured(weights_bytes=round(5.2 * GIB))),
        ("Available KV cache memory: -0.62 GiB", Measured(kv_cache_bytes=round(-0.62 * GIB))),
        ("GPU + host KV cache size: 1,048,576 tokens, Maximum", Measured(kv_tokens=1_048_576)),
        ("XPU KV cache size: 16 tokens", Measured(kv_tokens=16)),
    ],
)
def test_variants_of_a_line(line: str, expected: Measured) -> None:
    assert read([f"(EngineCore pid=7) INFO 11-20 15:42:17 [x.py:1] {line}"]) == expected


def test_an_engine_that_starts_again_in_the_same_log_counts_as_it_was_last() -> None:
    again = ["Model loading took 9.40 GiB memory and 2.0 seconds"]
    measured = read(GPU + again)

    assert measured is not None
    assert (measured.weights_bytes, measured.kv_tokens) == (round(9.40 * GIB), 66_224)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "KV cache size: many tokens",
        "Model loading took long",
        "Available KV cache memory: GiB",
        "\x00" * 100,
    ],
)
def test_other_lines_say_nothing(line: str) -> None:
    assert read([line]) is None
