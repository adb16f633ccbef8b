"""Pages as engines write them, and the time between two of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent_manager.engines.metrics import Reading, parse, quantile, traffic
from agent_manager.engines.simulated.metrics import Gauges, Metrics

if TYPE_CHECKING:
    from agent_manager.engines.metrics import Histogram

INF = float("inf")
VLLM = """\
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{implementation="CPython",major="3",version="3.12.11"} 1.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a \\"}, le=\\"1\\" {"} 3.0
vllm:num_requests_running{engine="1",model_name="a \\"}, le=\\"1\\" {"} 1.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a \\"}, le=\\"1\\" {"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="po",reason="capacity"} 2.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="po"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="po"} 0.75
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="po"} 1.2e+06
vllm:prompt_tokens_total{engine="1",model_name="po"} 5.0
vllm:prompt_tokens_created{engine="0",model_name="po"} 1.7632e+09
vllm:prompt_tokens_by_source_total{engine="0",model_name="po",source="local_compute"} 7.0
vllm:generation_tokens_total{engine="0",model_name="po"} 40.0
vllm:prefix_cache_queries_total{engine="0",model_name="po"} 100.0
vllm:prefix_cache_hits_total{engine="0",model_name="po"} 60.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="a \\"}, le=\\"1\\" {"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="po"} 4.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="po"} 5.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.1",model_name="po"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.5",model_name="po"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="+Inf",model_name="po"} 2.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="po"} 5.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="po"} NaN
"""
"""Its shape and its surprises: two engine cores, quotes and braces in a name, names that begin alike."""
BEFORE = Reading(
    running=1,
    waiting=0,
    prompt_tokens=1000.0,
    generation_tokens=500.0,
    prefix_cache_queries=100.0,
    prefix_cache_hits=90.0,
    time_to_first_token=((0.1, 10.0), (0.2, 10.0), (INF, 10.0)),
    inter_token_latency=((0.01, 100.0), (0.02, 110.0), (INF, 110.0)),
)
AFTER = Reading(
    running=2,
    waiting=3,
    kv_cache_usage=0.5,
    prompt_tokens=1200.0,
    generation_tokens=560.0,
    prefix_cache_queries=300.0,
    prefix_cache_hits=140.0,
    time_to_first_token=((0.1, 10.0), (0.2, 14.0), (INF, 14.0)),
    inter_token_latency=((0.01, 100.0), (0.02, 110.0), (INF, 110.0)),
)


def test_a_page_is_summed_over_engine_cores() -> None:
    assert parse(VLLM) == Reading(
        running=4,
        waiting=2,
        kv_cache_usage=0.5,
        prompt_tokens=1_200_005.0,
        generation_tokens=40.0,
        prefix_cache_queries=100.0,
        prefix_cache_hits=60.0,
        time_to_first_token=((0.1, 3.0), (0.5, 6.0), (INF, 7.0)),
    )


def test_the_simulated_engines_page_says_what_it_did() -> None:
    metrics = Metrics()
    metrics.prompt_tokens, metrics.generation_tokens = 12, 34
    for observed_s in (0.03, 0.05, 0.3):
        metrics.first_token.observe(observed_s)
    page = metrics.render('odd "name"', Gauges(running=2, waiting=1, kv_cache_usage=0.125, asleep=False))

    reading = parse(page)

    assert reading is not None
    assert (reading.running, reading.waiting, reading.kv_cache_usage) == (2, 1, 0.125)
    assert (reading.prompt_tokens, reading.generation_tokens) == (12.0, 34.0)
    assert (reading.prefix_cache_queries, reading.prefix_cache_hits) == (12.0, 0.0)
    counts = dict(reading.time_to_first_token)
    assert (counts[0.02], counts[0.04], counts[0.06], counts[INF]) == (0.0, 1.0, 2.0, 3.0)
    assert reading.inter_token_latency[-1] == (INF, 0.0)


@pytest.mark.parametrize(
    "page",
    [
        "",
        "vllm:num_requests_running 1.0\n",
        "vllm:num_requests_running 1.0\nvllm:num_requests_waiting NaN\n",
        "vllm:num_requests_running +Inf\nvllm:num_requests_waiting 0.0\n",
        VLLM.replace("vllm:", "sglang:"),
        "vllm:num_requests_running{" + '"' * 100_000,
    ],
)
def test_what_is_no_engines_page_is_no_reading(page: str) -> None:
    assert parse(page) is None


def test_a_line_that_is_broken_spoils_no_other() -> None:
    page = 'vllm:kv_cache_usage_perc{model_name="po} 1.0\n' + VLLM
    page += 'vllm:time_to_first_token_seconds_bucket{le="soon"} 9.0\nvllm:generation_tokens_total{} many\n'

    assert parse(page) == parse(VLLM)


def test_what_happened_between_two_readings() -> None:
    between = traffic(BEFORE, AFTER, 2.0)

    assert (between.running, between.waiting, between.kv_cache_usage) == (2, 3, 0.5)
    assert between.prompt_tokens_per_s == pytest.approx(100.0)
    assert between.generation_tokens_per_s == pytest.approx(30.0)
    assert between.prefix_cache_hit_rate == pytest.approx(0.25)
    assert between.time_to_first_token_s == pytest.approx(0.15)
    assert between.inter_token_latency_s is None, "no token came"


def test_an_idle_engine_has_rates_of_zero_and_no_latencies() -> None:
    idle = traffic(AFTER, AFTER, 1.0)

    assert (idle.prompt_tokens_per_s, idle.generation_tokens_per_s) == (0.0, 0.0)
    assert (idle.time_to_first_token_s, idle.inter_token_latency_s) == (None, None)
    assert idle.prefix_cache_hit_rate == pytest.approx(140 / 300), "since its start"


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(None, id="first"),
        pytest.param(replace(BEFORE, generation_tokens=561.0), id="tokens"),
        pytest.param(
            replace(BEFORE, time_to_first_token=((0.1, 15.0), (0.2, 15.0), (INF, 15.0))), id="latency"
        ),
    ],
)
def test_without_a_reading_of_the_same_life_there_are_no_rates(before: Reading | None) -> None:
    now = traffic(before, AFTER, 1.0)

    assert (now.running, now.waiting) == (2, 3)
    assert (now.prompt_tokens_per_s, now.generation_tokens_per_s, now.time_to_first_token_s) == (
        None,
        None,
        None,
    )
    assert now.prefix_cache_hit_rate == pytest.approx(140 / 300)


def test_no_time_between_readings_is_no_rate() -> None:
    assert traffic(BEFORE, AFTER, 0.0).generation_tokens_per_s is None


def test_what_an_engine_does_not_tell_stays_unknown() -> None:
    bare = Reading(running=0, waiting=0)

    told = traffic(bare, bare, 1.0)

    assert (told.generation_tokens_per_s, told.kv_cache_usage, told.prefix_cache_hit_rate) == (
        None,
        None,
        None,
    )
    assert traffic(bare, AFTER, 1.0).time_to_first_token_s is None
    assert traffic(BEFORE, bare, 1.0).generation_tokens_per_s is None


@pytest.mark.parametrize(
    ("share", "buckets", "value"),
    [
        (0.5, (), None),
        (0.5, ((0.1, 0.0), (INF, 0.0)), None),
        (0.5, ((0.1, 2.0), (INF, 2.0)), 0.05),
        (0.5, ((0.1, 0.0), (0.3, 4.0), (INF, 4.0)), 0.2),
        (0.25, ((0.1, 1.0), (0.3, 4.0), (INF, 4.0)), 0.1),
        (0.5, ((0.1, 1.0), (0.3, 1.0), (INF, 9.0)), 0.3),
        (1.0, ((0.1, 1.0), (0.3, 2.0), (INF, 2.0)), 0.3),
        (0.0, ((0.1, 1.0), (INF, 1.0)), 0.0),
        (0.5, ((INF, 9.0),), 0.0),
    ],
)
def test_a_quantile_is_linear_within_its_bucket(
    share: float, buckets: Histogram, value: float | None
) -> None:
    assert quantile(share, buckets) == (None if value is None else pytest.approx(value))


@given(st.lists(st.floats(min_value=0.0, max_value=9.0), min_size=1), st.floats(min_value=0.0, max_value=1.0))
def test_a_quantile_lies_in_the_bucket_of_the_value_it_stands_for(
    observed: list[float], share: float
) -> None:
    bounds = (0.5, 1.0, 2.5, 10.0, INF)
    buckets = tuple((bound, float(sum(value <= bound for value in observed))) for bound in bounds)
    true = sorted(observed)[max(0, min(len(observed) - 1, -int(-share * len(observed) // 1) - 1))]
    index = next(i for i, bound in enumerate(bounds) if true <= bound)
    lower = bounds[index - 1] if index else 0.0

    found = quantile(share, buckets)

    assert found is not None
    assert lower <= found <= bounds[index] or share == 0.0
