"""What starts took: remembered by agent, engine, model and card, and never in anybody's way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from agent_manager.runtimes.base import InstanceSpec
from agent_manager.swap.history import SWAPS_KEPT, StartHistory, SwapHistory, SwapSample

if TYPE_CHECKING:
    from agent_manager.state import StateDir

DEV = InstanceSpec(
    id="dev-00000001",
    agent="dev",
    engine="vllm",
    model="small",
    card="GPU-1",
    claim_bytes=1,
    argv=("vllm",),
    engine_port=8101,
    agent_port=8001,
)


def test_the_last_start_of_the_same_thing_is_remembered(state: StateDir) -> None:
    history = StartHistory(state)
    assert history.last(DEV) is None
    history.record(DEV, 30.12345)
    history.record(replace(DEV, id="dev-00000002"), 20.0)
    last = StartHistory(state).last(replace(DEV, id="dev-00000003", argv=("vllm", "--eager")))
    assert last is not None
    assert (last.instance_id, last.seconds) == ("dev-00000002", 20.0)


@pytest.mark.parametrize("field", ["agent", "engine", "model", "card"])
def test_another_thing_has_its_own_time(state: StateDir, field: str) -> None:
    history = StartHistory(state)
    history.record(DEV, 30.0)
    changes: dict[str, Any] = {field: "other", "id": "other-00000001"}
    other = replace(DEV, **changes)
    assert history.last(other) is None
    history.record(other, 2.0)
    first, second = history.last(DEV), history.last(other)
    assert first is not None
    assert second is not None
    assert (first.seconds, second.seconds) == (30.0, 2.0)


def test_a_start_is_found_by_its_instance(state: StateDir) -> None:
    history = StartHistory(state)
    history.record(DEV, 30.12345)
    found = history.of_instance("dev-00000001")
    assert found is not None
    assert found.seconds == 30.123
    assert history.of_instance("dev-00000002") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"dev": 7}', '{"dev": {"seconds": "x", "instance_id": "dev-1"}}', "\udcff"]
)
def test_what_cannot_be_read_is_forgotten_and_replaced(state: StateDir, text: str) -> None:
    history = StartHistory(state)
    state.cache.mkdir(parents=True)
    (state.cache / "starts.json").write_text(text, errors="surrogateescape")
    assert history.last(DEV) is None
    assert history.of_instance(DEV.id) is None
    history.record(DEV, 3.0)
    last = history.last(DEV)
    assert last is not None
    assert last.seconds == 3.0


def test_a_disk_that_takes_nothing_is_no_failure(state: StateDir) -> None:
    state.root.mkdir()
    state.cache.write_text("a file in the folder's place: as good as a full disk, for root too")
    history = StartHistory(state)
    history.record(DEV, 3.0)
    assert history.last(DEV) is None


CARD = "GPU-1"
SWAP = SwapSample(at=datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC), arrived="dev", left=None, seconds=12.5)


def test_the_last_swaps_are_remembered_newest_first(state: StateDir) -> None:
    history = SwapHistory(state, CARD)
    assert history.last() == ()
    history.record(SWAP)
    history.record(replace(SWAP, arrived="po", left="dev"))
    assert SwapHistory(state, CARD).last() == (replace(SWAP, arrived="po", left="dev"), SWAP)
    assert SwapHistory(state, "GPU-2").last() == ()


def test_no_more_swaps_than_are_kept(state: StateDir) -> None:
    history = SwapHistory(state, CARD)
    swaps = [replace(SWAP, at=SWAP.at + timedelta(minutes=number)) for number in range(SWAPS_KEPT + 3)]
    for swap in swaps:
        history.record(swap)
    assert list(history.last()) == swaps[:2:-1]


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[1]", '{"at": 1}', '[{"at": "yesterday"}]', '[{"at": "2026-01-01"}]']
)
def test_swaps_that_cannot_be_read_are_none(state: StateDir, text: str) -> None:
    history = SwapHistory(state, CARD)
    history.record(SWAP)
    (state.cache / f"swaps-{CARD}.json").write_text(text)
    assert history.last() == ()
    history.record(SWAP)
    assert history.last() == (SWAP,)


def test_a_swap_that_cannot_be_written_is_lost_and_no_more(state: StateDir) -> None:
    state.root.mkdir()
    state.cache.write_text("a file where the folder should be")
    SwapHistory(state, CARD).record(SWAP)
    assert SwapHistory(state, CARD).last() == ()
