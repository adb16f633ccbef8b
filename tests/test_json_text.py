"""Values as JSON and back: whole, checked, and with what no UTF-8 can say."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from agent_manager.json_text import from_json, to_json
from agent_manager.swap.history import SwapSample
from agent_manager.swap.notices import AgentState, Owner

OWNER = Owner(pid=1, kind="operation", verb="x")


def test_values_become_json() -> None:
    at = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert json.loads(to_json({"a": (AgentState.READY, at, Path("/é"), None), "b": OWNER})) == {
        "a": ["ready", "2026-01-31T12:00:00Z", "/é", None],
        "b": {"pid": 1, "kind": "operation", "verb": "x", "step": None, "agent": None},
    }


def test_keys_can_be_in_order() -> None:
    assert to_json({"b": 1, "a": OWNER}, in_order=True).startswith('{"a": {"agent": null, "kind"')


def test_what_json_has_not_is_said() -> None:
    with pytest.raises(NotImplementedError, match="object"):
        to_json([object()])


@given(at=st.datetimes(timezones=st.just(UTC)), arrived=st.text(st.characters()), left=st.none() | st.text())
def test_what_was_written_is_read(at: datetime, arrived: str, left: str | None) -> None:
    sample = SwapSample(at=at, arrived=arrived, left=left, seconds=1.5)
    assert from_json(to_json(sample), SwapSample) == sample


def test_a_name_that_is_no_utf_8_survives() -> None:
    owner = Owner(pid=1, kind="operation", verb="launch \udcff")
    assert from_json(to_json(owner).encode("ascii"), Owner) == owner


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "7",
        "[]",
        "null",
        '{"pid": 1}',
        '{"pid": "1", "kind": "x", "verb": "x"}',
        "[" * 100_000,
        b"\xff",
    ],
)
def test_what_is_none_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each says it in other words
        from_json(text, Owner)


def test_what_a_later_version_adds_is_passed_over() -> None:
    class Two(Struct, frozen=True, kw_only=True):
        one: int
        two: int = 2

    assert from_json('{"one": 1, "three": 3}', Two) == Two(one=1)
