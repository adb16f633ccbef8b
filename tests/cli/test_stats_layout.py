"""The live view's lines, its graphs and its words, without a terminal."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent_manager.cli import stats_words as words
from agent_manager.cli.stats_graph import ASCII, BLOCKS, History, cells, graph, step_for
from agent_manager.cli.stats_layout import PLAIN, UNICODE, View
from agent_manager.swap.history import SwapSample
from tests.cli.scenes import BEGAN, DEV, GPU, LONG_S, PO, SCENES, STEP_S, busy


def text_of(view: View, width: int, height: int) -> list[str]:
    return ["".join(text for text, _ in line) for line in view.lines(width, height)]


def view_of(scene: str, seconds: range = range(0, 60, STEP_S)) -> View:
    view = View(interval_s=STEP_S, simulated=False)
    for second in seconds:
        view.take(SCENES[scene](second))
    return view


@given(
    st.sampled_from(sorted(SCENES)),
    st.integers(min_value=1, max_value=260),
    st.integers(min_value=1, max_value=90),
    st.integers(min_value=0, max_value=30),
    st.integers(min_value=0, max_value=9),
)
def test_it_fits_whatever_the_size(scene: str, width: int, height: int, swaps: int, notes: int) -> None:
    view = view_of(scene, range(0, 20, STEP_S))
    done = tuple(SwapSample(at=BEGAN, arrived="dev", left=None, seconds=1.0) for _ in range(swaps))
    view.take(replace(SCENES[scene](20), swaps=done, notes=tuple(f"note {n}" for n in range(notes))))

    lines = view.lines(width, height)

    assert len(lines) <= height
    if height >= 24:
        assert sum("AGENT" in text or "no agent is on" in text for text in text_of(view, width, height)) == 1
        assert ("note 0" in "\n".join(text_of(view, width, height))) == (notes > 0)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (160, 50), (200, 60)])
@pytest.mark.parametrize("scene", sorted(SCENES))
def test_no_line_is_cut_from_80_columns_on(scene: str, size: tuple[int, int]) -> None:
    view = view_of(scene, range(0, LONG_S, STEP_S))

    assert [line for line in text_of(view, *size) if len(line) > size[0]] == []


def test_before_the_first_sample_it_says_so() -> None:
    assert text_of(View(interval_s=1, simulated=False), 80, 24) == ["reading the card ..."]


def test_the_bar_is_split_by_who_holds_the_memory() -> None:
    view = View(interval_s=1, simulated=False)
    view.take(replace(busy(0), gpu=GPU, agents=(DEV, PO)))

    _, bar, legend, *_ = text_of(view, 80, 24)

    room = 80 - len("memory ") - len("  12.97 GiB of 15.47 GiB   84%")
    counts = [bar.count(fill) for fill in "█▓▒·"]
    assert counts == [33, 2, 1, 7]
    assert sum(counts) == room
    assert legend.split("  ") == [
        "",
        "",
        "",
        " █ dev 11.92",
        "▓ po 0.50 claimed",
        "▒ others 0.55",
        "· free 2.50 GiB ",
    ]


def test_a_claim_is_no_more_than_what_is_used() -> None:
    view = View(interval_s=1, simulated=False)
    view.take(replace(busy(0), gpu=replace(GPU, free_bytes=GPU.total_bytes), agents=(PO,)))

    _, bar, legend, *_ = text_of(view, 80, 24)

    assert set(bar.split("  ")[0].removeprefix("memory ")) == {"·"}
    assert "others 0.00" in legend


def test_an_agent_keeps_its_fill_when_others_come_and_go() -> None:
    view = View(interval_s=1, simulated=False)
    for second, agents in enumerate([(DEV,), (DEV, PO), (PO,)]):
        view.take(replace(busy(second), gpu=GPU, agents=agents))

    assert "▓ po" in text_of(view, 80, 24)[2]


def test_a_lost_card_keeps_its_graphs_and_says_why() -> None:
    view = View(interval_s=1, simulated=False)
    for second in range(100):
        view.take(busy(second))
    view.take(replace(busy(101), gpu=None, notes=("GPU 0 is lost",)))

    shown = "\n".join(text_of(view, 80, 24))

    assert "no card can be read" in shown
    assert "! GPU 0 is lost" in shown
    assert "█" in shown
    assert "dev        ready" in shown


def test_tokens_are_those_of_all_agents() -> None:
    view = View(interval_s=1, simulated=False)
    view.take(replace(busy(0), agents=(DEV, replace(DEV, name="po"))))

    assert "1024 /s" in "\n".join(text_of(view, 80, 24))


def test_without_unicode_bars_and_graphs_are_ascii() -> None:
    view = view_of("busy")
    view.glyphs = PLAIN

    assert "".join(text_of(view, 80, 24)).replace("°", "").replace("×", "").isascii()


def test_the_fills_of_agents_differ_without_colour() -> None:
    for glyphs in (UNICODE, PLAIN):
        fills = glyphs.agents + glyphs.others + glyphs.free
        assert len(set(fills)) == len(fills)


@given(
    st.lists(st.none() | st.floats(min_value=0, max_value=200), max_size=50),
    st.integers(min_value=1, max_value=9),
    st.sampled_from([BLOCKS, ASCII]),
)
def test_a_graph_is_as_tall_as_its_values(values: list[float | None], rows: int, levels: str) -> None:
    drawn = graph(values, 100.0, rows, levels)

    assert [len(line) for line in drawn] == [len(values)] * rows
    full = len(levels) - 1
    for value, column in zip(values, zip(*drawn, strict=True), strict=True):
        height = sum(levels.index(cell) for cell in column)
        wanted = 0 if value is None else max(1, min(rows * full, round(value / 100 * rows * full)))
        assert abs(height - wanted) <= 1
        assert (height == 0) == (value is None), "a gap is empty, and a zero is not"
        assert sorted(column, key=levels.index) == list(column), "it stands on the ground"


@given(
    st.lists(st.integers(min_value=0, max_value=1 << 40), min_size=1), st.integers(min_value=1, max_value=300)
)
def test_the_cells_of_a_bar_add_up(parts: list[int], width: int) -> None:
    total = max(1, sum(parts))
    found = cells(parts, total, width)

    assert sum(found) == (width if sum(parts) else 0)
    assert all(abs(count - part * width / total) <= 1 for count, part in zip(found, parts, strict=True))


def test_a_history_has_means_and_gaps() -> None:
    history = History(2)
    history.add(100.2, (1.0, None))
    history.add(100.9, (3.0, None))
    history.add(101.0, (4.0, None))
    history.add(104.0, (8.0, 5.0))

    assert history.columns(4, 1) == [[4.0, None, None, 8.0], [None, None, None, 5.0]]
    assert history.columns(2, 2) == [[None, 8.0], [None, 5.0]]
    assert history.columns(3, 2) == [[pytest.approx(8 / 3), None, 8.0], [None, None, 5.0]]


def test_a_history_moves_by_whole_columns() -> None:
    history = History(1)
    seen = []
    for second in range(1000, 1020):
        history.add(second, (float(second),))
        seen.append(history.columns(3, 5)[0][:-1])

    assert len({str(columns) for columns in seen}) == 4, "only the last column changes within its time"


def test_a_clock_set_back_begins_anew_and_an_hour_is_kept() -> None:
    history = History(1)
    history.add(100_000, (1.0,))
    history.add(50, (2.0,))
    assert history.columns(3, 1) == [[None, None, 2.0]]
    history.add(50 + 3600, (3.0,))
    assert history.columns(2, 3600) == [[None, 3.0]]
    assert History(1).columns(2, 1) == [[None, None]]


@pytest.mark.parametrize(
    ("columns", "interval_s", "step_s"),
    [
        (25, 1.0, 5),
        (50, 1.0, 5),
        (60, 1.0, 2),
        (130, 0.1, 1),
        (130, 1.0, 2),
        (1, 1.0, 60),
        (50, 9.0, 30),
        (9, 90.0, 60),
    ],
)
def test_a_column_stands_for_a_whole_number_of_seconds(columns: int, interval_s: float, step_s: int) -> None:
    assert step_for(columns, interval_s) == step_s


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (words.percent(None), "-"),
        (words.percent(0), "0%"),
        (words.share(0.005), "0%"),
        (words.share(1.0), "100%"),
        (words.rate(None), "-"),
        (words.rate(0.0), "0"),
        (words.rate(0.54), "0.5"),
        (words.rate(86.4), "86"),
        (words.rate(12_345.0), "12.3k"),
        (words.latency(None), "-"),
        (words.latency(0.0042), "4.2 ms"),
        (words.latency(0.061), "61 ms"),
        (words.latency(1.25), "1.25 s"),
        (words.latency(12.5), "12.5 s"),
        (words.amount(None, "W"), "-"),
        (words.context(DEV), "4.2 × 32k"),
        (words.context(replace(DEV, concurrency=None, context=1000)), "1000"),
        (words.context(PO), "-"),
        (words.phase(PO), "loading weights 60%"),
        (words.phase(DEV), ""),
        (words.held(DEV), "11.92 GiB"),
        (words.held(PO), "0.50 GiB claimed"),
        (words.throttling(GPU), "throttled: software power cap"),
        (words.throttling(replace(GPU, throttle_reasons=())), "not throttled"),
        (words.throttling(replace(GPU, throttle_reasons=None)), "throttled -"),
    ],
)
def test_values_are_written_short(said: str, wanted: str) -> None:
    assert said == wanted


def test_a_swap_of_another_day_has_its_date() -> None:
    swap = SwapSample(at=BEGAN, arrived="dev", left="po", seconds=47.5)

    assert len(words.swap(swap, BEGAN + timedelta(minutes=1))[0]) == len("14:02:11")
    assert "Mar" in words.swap(swap, BEGAN + timedelta(days=2))[0]
    assert words.swap(replace(swap, left=None), BEGAN)[1:] == ("empty card → dev", "48 s")


def test_the_processes_of_others_are_the_largest_first() -> None:
    assert [each.pid for each in words.others(replace(busy(0), gpu=GPU))] == [88417, 1203]
