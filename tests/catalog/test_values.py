from __future__ import annotations

import pytest

from agent_manager.catalog.values import (
    RefusedError,
    parse_context,
    parse_duration,
    parse_faults,
    parse_image,
    parse_repo,
    parse_size,
    parse_utilization,
    plain_value,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 << 30),
        ("4GB", 4_000_000_000),
        ("512MiB", 512 << 20),
        ("1.5 GiB", 3 << 29),
        ("1kB", 1000),
        (0, 0),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["4", 4, "4G", "4gib", "-4GiB", "4GiB ", "GiB", "4TiB", True, None, False, 0.0, "٤GiB"]
)
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(RefusedError):
        parse_size(text)


@pytest.mark.parametrize(("text", "tokens"), [(32768, 32768), ("32k", 32768), ("1K", 1024), (1, 1)])
def test_contexts(text: object, tokens: int) -> None:
    assert parse_context(text) == tokens


@pytest.mark.parametrize("text", [0, -1, "0k", "32", "32 k", "1.5k", 1.5, True, 1 << 25, "99999k", [], None])
def test_what_is_no_context(text: object) -> None:
    with pytest.raises(RefusedError):
        parse_context(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [(900, 900), (0.5, 0.5), ("15m", 900), ("90s", 90), ("1.5h", 5400)]
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", [0, -1, "15", "15 m", "25h", "m", True, None, float("nan"), float("inf")])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(RefusedError):
        parse_duration(text)


def test_utilization() -> None:
    assert parse_utilization("auto") is None
    assert parse_utilization(1) == 1.0
    for wrong in (0, 1.01, True, "0.9", float("nan"), None):
        with pytest.raises(RefusedError):
            parse_utilization(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "vllm/vllm-openai:v0.32.0",
        "localhost:5000/a/b:1",
        "a:1",
        "a@sha256:" + "0" * 64,
        "a:latest@sha256:" + "0" * 64,
    ],
)
def test_pinned_images(text: str) -> None:
    assert parse_image(text) == text


@pytest.mark.parametrize(
    "text", ["a", "a:latest", "a:LATEST", "localhost:5000/a", "a:", ":1", "a@sha256:00", "A:1", "a:1 "]
)
def test_images_that_are_not_pinned(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_image(text)


@pytest.mark.parametrize(
    "text", ["Qwen/Qwen3-14B-AWQ", "a/b", "_a/b.c_d-e", "RedHatAI/Qwen3.5-9B-quantized.w4a16"]
)
def test_repositories(text: str) -> None:
    assert parse_repo(text) == text


@pytest.mark.parametrize(
    "text", ["Qwen", "a/b/c", "a/b--c", "a/..", "a/b.git", "-a/b", "a/.b", "a/", "/b", "a/" + "b" * 97]
)
def test_what_is_no_repository(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_repo(text)


@pytest.mark.parametrize(
    "text",
    [
        "refuse-start", "oom",
        "crash-after:3", "hang-load", "hang", "ignore-sigterm", "slow-stop:1.5", "lie-in-health",
        "crash-at-load:40", "leave-workers", "crash-after:1,leave-workers",
    ],
)  # fmt: skip
def test_faults(text: str) -> None:
    assert parse_faults(text) == text


@pytest.mark.parametrize(
    "text", ["", "boom", "crash-after", "crash-after:-1", "crash-at-load:101", "oom,", "oom;hang", 5]
)
def test_what_is_no_fault(text: object) -> None:
    with pytest.raises(RefusedError, match="no such fault"):
        parse_faults(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("null", None), ("true", True), ("yes", "yes"), ("on", "on"), ("8:00", "8:00"), ("0123", 123),
        ("1_000", "1_000"), ("1e3", 1000.0), ("-.5", -0.5), ("2024-01-01", "2024-01-01"), ("9" * 5000, "9" * 5000),
        (".inf", ".inf"), ("٣", "٣"),
    ],
)  # fmt: skip
def test_unquoted_values_follow_the_core_schema(text: str, value: object) -> None:
    assert plain_value(text) == value
