"""Recordings of gpu-stats: what is written is read back, and nothing that was there is lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent_manager.cli.stats_record import COLUMNS, Recorder, Row, read, row_of
from agent_manager.engines.metrics import Traffic
from agent_manager.errors import HostNotReady, UsageError
from agent_manager.gpu.base import GIB, GpuSample
from agent_manager.swap.history import SwapSample
from agent_manager.swap.notices import AgentState
from agent_manager.swap.stats import AgentSample, StatsSample

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
GPU = GpuSample(
    index=0,
    uuid="GPU-1",
    name='Card, the "first"',
    total_bytes=16 * GIB,
    free_bytes=4 * GIB,
    utilization_pct=87,
    temperature_c=64,
    power_w=151.234,
)
DEV = AgentSample(
    name="dev",
    state=AgentState.READY,
    engine="vllm",
    runtime="docker",
    model="coder",
    port=8001,
    pids=(7,),
    used_bytes=GIB,
    claim_bytes=GIB,
    traffic=Traffic(running=1, waiting=2, generation_tokens_per_s=40.5, inter_token_latency_s=0.02),
)
PO = replace(DEV, name="po", traffic=Traffic(running=3, waiting=0, generation_tokens_per_s=9.5))
LOADING = replace(DEV, name="architect", traffic=None)
SWAP = SwapSample(at=NOON, arrived="dev", left="po", seconds=34.5)
SAMPLE = StatsSample(at=NOON, gpu=GPU, agents=(DEV, PO, LOADING), swaps=())


def test_a_sample_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "session.csv"
    with Recorder(path) as recorder:
        recorder.write(SAMPLE)
        (row,) = read(path)  # it is there at once
    assert row == Row(
        time=NOON,
        card='Card, the "first"',
        simulated=False,
        total_bytes=16 * GIB,
        used_bytes=12 * GIB,
        utilization_pct=87.0,
        temperature_c=64.0,
        power_w=151.234,
        agents="dev+po+architect",
        running=4,
        waiting=2,
        generation_tokens_per_s=50.0,
        inter_token_latency_s=0.02,
    )


def test_a_card_that_cannot_be_read_and_nobody_on_it(tmp_path: Path) -> None:
    path = tmp_path / "session.csv"
    with Recorder(path) as recorder:
        recorder.write(replace(SAMPLE, gpu=None, agents=()))
    assert read(path) == (Row(time=NOON),)


def test_a_swap_stands_in_the_first_row_after_it(tmp_path: Path) -> None:
    path = tmp_path / "session.csv"
    old = replace(SWAP, at=NOON - timedelta(hours=1))
    late = replace(SWAP, at=NOON + timedelta(seconds=1), arrived="po", left=None)
    with Recorder(path) as recorder:
        for second, swaps in enumerate([(old,), (old,), (late, old), (late, old)]):
            recorder.write(replace(SAMPLE, at=NOON + timedelta(seconds=second + 1), swaps=swaps))
    assert [row.arrived for row in read(path)] == [None, None, "po", None]
    assert [row.swap_seconds for row in read(path)] == [None, None, 34.5, None]


def test_a_second_session_adds_to_the_first(tmp_path: Path) -> None:
    path = tmp_path / "session.csv"
    for _ in range(2):
        with Recorder(path) as recorder:
            recorder.write(SAMPLE)
    assert len(read(path)) == 2
    assert path.read_text().count("time,card") == 1


@pytest.mark.parametrize("cut", [-1, -40, -80])
def test_a_row_that_is_cut_off_costs_no_other(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "session.csv"
    for end in (cut, None):
        with Recorder(path) as recorder:
            recorder.write(SAMPLE)
            recorder.write(replace(SAMPLE, agents=()))
        path.write_bytes(path.read_bytes()[:end])
    cut_off = [] if cut < -1 else [None]
    assert [row.agents for row in read(path)] == ["dev+po+architect", *cut_off, "dev+po+architect", None]


@pytest.mark.parametrize("content", [b"my,own,table\n1,2,3\n", b"\xff\xfe\x00", b"\n", b"time,card\n"])
def test_another_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not a recording of gpu-stats"), Recorder(path):
        pass
    with pytest.raises(UsageError, match="is not a recording of gpu-stats"):
        read(path)
    assert path.read_bytes() == content


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(HostNotReady, match="No such file or directory"), Recorder(tmp_path / "no" / "x.csv"):
        pass
    with pytest.raises(HostNotReady, match="Is a directory"), Recorder(tmp_path):
        pass


def test_no_such_recording(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read(tmp_path / "no.csv")


@pytest.mark.parametrize(
    ("column", "text", "words"),
    [
        ("power_w", "much", "much"),
        ("running", "1.5", "1.5"),
        ("power_w", "nan", "no number"),
        ("time", "noon", "noon"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path: Path, column: str, text: str, words: str) -> None:
    path = tmp_path / "session.csv"
    fields = {"time": NOON.isoformat(), column: text}
    line = ",".join(fields.get(name, "") for name in COLUMNS)
    path.write_text(f"{','.join(COLUMNS)}\n{line}\n")
    with pytest.raises(UsageError, match=f"line 2 is no sample.*{words}"):
        read(path)


counts = st.integers(0, 10**6)
shares = st.none() | st.floats(0, 1)
traffics = st.builds(
    Traffic,
    running=counts,
    waiting=counts,
    prompt_tokens_per_s=st.none() | st.floats(0, 1e6),
    generation_tokens_per_s=st.none() | st.floats(0, 1e6),
    time_to_first_token_s=st.none() | st.floats(0, 1e4),
    kv_cache_usage=shares,
    prefix_cache_hit_rate=shares,
)


@given(st.lists(st.none() | traffics, max_size=3), st.text(max_size=20))
def test_any_sample_can_be_read_back(
    tmp_path_factory: pytest.TempPathFactory, said: list[Traffic | None], name: str
) -> None:
    path = tmp_path_factory.mktemp("recording") / "session.csv"
    agents = tuple(replace(DEV, traffic=each) for each in said)
    sample = replace(SAMPLE, agents=agents, gpu=replace(GPU, name=name))
    with Recorder(path) as recorder:
        recorder.write(sample)
    (row,), wanted = read(path), row_of(sample, NOON)
    for column in COLUMNS:
        value, expected = getattr(row, column), getattr(wanted, column)
        if isinstance(expected, float):
            expected = pytest.approx(expected, rel=1e-5)
        if isinstance(expected, str):
            expected = " ".join(expected.split()) or None
        assert value == expected
