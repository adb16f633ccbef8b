"""A serving engine: its figures, its queue, its sleep, its end, and what goes wrong on demand."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_manager.engines.simulated import settings
from agent_manager.gpu.base import GIB
from agent_manager.gpu.simulated import SimulatedProbe

if TYPE_CHECKING:
    from tests.engines.simulated.conftest import Running, Starter

LABELS = 'engine="0",model_name="po"'
SLOW = {settings.INTER_TOKEN_MS: "20"}
FOREVER = {"ignore_eos": True, "max_tokens": 4000}
SLEEPY = {settings.DEV_MODE: "1"}
ENDLESS_S = "3600000"


def wait_counts(running: Running, *, active: int, waiting: int) -> None:
    def there() -> bool:
        return (running.gauge("vllm:num_requests_running"), running.gauge("vllm:num_requests_waiting")) == (
            active,
            waiting,
        )

    running.wait_until(there, f"{active} running, {waiting} waiting")


def test_the_metrics_count_what_was_done(start: Starter) -> None:
    running = start().wait_ready()
    usage = running.chat().json["usage"]
    running.chat(max_tokens=3)
    assert float(running.metric(f"vllm:prompt_tokens_total{{{LABELS}}}")) == 2 * usage["prompt_tokens"]
    assert (
        float(running.metric(f"vllm:generation_tokens_total{{{LABELS}}}")) == usage["completion_tokens"] + 3
    )
    for reason in ("stop", "length"):
        assert running.metric(f'vllm:request_success_total{{{LABELS},finished_reason="{reason}"}}') == "1.0"
    for name, count in (
        ("time_to_first_token_seconds", 2),
        ("inter_token_latency_seconds", usage["completion_tokens"] + 1),
        ("e2e_request_latency_seconds", 2),
        ("request_queue_time_seconds", 2),
    ):
        assert float(running.metric(f"vllm:{name}_count{{{LABELS}}}")) == count
        assert float(running.metric(f'vllm:{name}_bucket{{{LABELS},le="+Inf"}}')) == count
    assert running.gauge("vllm:num_requests_running") == 0
    assert running.gauge("vllm:kv_cache_usage_perc") == 0


def test_latencies_are_those_asked_for(start: Starter) -> None:
    running = start(env={settings.TIME_TO_FIRST_TOKEN_MS: "80", settings.INTER_TOKEN_MS: "30"}).wait_ready()
    running.chat(max_tokens=4)
    # A sleep never ends early; how late it ends is the machine's business.
    assert float(running.metric(f"vllm:time_to_first_token_seconds_sum{{{LABELS}}}")) >= 0.08
    assert float(running.metric(f"vllm:e2e_request_latency_seconds_sum{{{LABELS}}}")) >= 0.08 + 3 * 0.03
    assert running.metric(f'vllm:time_to_first_token_seconds_bucket{{{LABELS},le="0.06"}}') == "0.0"


def test_more_than_max_num_seqs_wait_and_leave_when_their_client_does(start: Starter) -> None:
    running = start(env=SLOW).wait_ready()
    streams = [running.open_stream(**FOREVER) for _ in range(6)]
    wait_counts(running, active=4, waiting=2)
    assert 0 < running.gauge("vllm:kv_cache_usage_perc") <= 1
    streams[0].close()
    wait_counts(running, active=4, waiting=1)
    for stream in streams[1:]:
        stream.close()
    wait_counts(running, active=0, waiting=0)
    assert running.metric(f'vllm:request_success_total{{{LABELS},finished_reason="abort"}}') == "6.0"


def test_an_idle_engine_stops_at_once(start: Starter) -> None:
    running = start("--shutdown-timeout", "30").wait_ready()
    running.terminate()
    assert running.wait_exit() == 0
    assert "[shutdown] API server: shutdown triggered" in running.log()


def test_without_a_shutdown_timeout_running_streams_end_with_an_error(start: Starter) -> None:
    running = start(env=SLOW).wait_ready()
    streams = [running.open_stream(**FOREVER) for _ in range(5)]
    wait_counts(running, active=4, waiting=1)
    running.terminate()
    for stream in streams:
        events = running.read_events(stream)
        assert events[-1] == "[DONE]"
        assert "EngineCore encountered an issue" in events[-2]["error"]["message"]
        assert events[-2]["error"]["code"] == 500
    assert running.wait_exit() == 0


def test_with_a_shutdown_timeout_running_and_waiting_finish_and_new_ones_are_refused(start: Starter) -> None:
    running = start("--shutdown-timeout", "30", "--max-num-seqs", "1", env=SLOW).wait_ready()
    streams = [running.open_stream(max_tokens=40, ignore_eos=True) for _ in range(2)]
    wait_counts(running, active=1, waiting=1)
    running.terminate()
    running.wait_log("[shutdown] EngineCore: start mode=drain timeout=30s")
    refused = running.chat()
    assert (refused.status, refused.json["error"]["type"]) == (500, "InternalServerError")
    for stream in streams:
        events = running.read_events(stream)
        assert events[-2]["choices"][0]["finish_reason"] == "length"
        assert sum(1 for event in events[:-1] if event["choices"][0]["delta"].get("content")) == 40
    assert running.wait_exit() == 0


def test_what_outlasts_the_shutdown_timeout_is_ended(start: Starter) -> None:
    running = start("--shutdown-timeout", "1", env=SLOW).wait_ready()
    stream = running.open_stream(**FOREVER)
    wait_counts(running, active=1, waiting=0)
    running.terminate()
    assert "EngineCore encountered an issue" in running.read_events(stream)[-2]["error"]["message"]
    assert running.wait_exit() == 0


def test_sleep_gives_memory_back_and_waking_takes_it_again(start: Starter) -> None:
    running = start("--enable-sleep-mode", env=SLEEPY).wait_ready()
    probe = SimulatedProbe(running.card_dir)
    awake_bytes = probe.read().used_bytes
    assert running.request("GET", "/is_sleeping").json == {"is_sleeping": False}
    assert running.request("POST", "/sleep?level=1").json == {"status": "sleeping", "level": 1}
    assert running.request("GET", "/is_sleeping").json == {"is_sleeping": True}
    assert probe.read().used_bytes == int(1.2 * GIB)
    assert "Sleep mode freed 13.03 GiB memory, 1.2 GiB memory is still in use." in running.log()
    assert running.metric(f'vllm:engine_sleep_state{{{LABELS},sleep_state="weights_offloaded"}}') == "1.0"
    assert running.request("POST", "/wake_up").json == {"status": "awake", "tags": None}
    assert probe.read().used_bytes == awake_bytes
    assert running.metric(f'vllm:engine_sleep_state{{{LABELS},sleep_state="awake"}}') == "1.0"
    assert running.chat().status == 200


def test_a_request_to_a_sleeper_waits_until_all_of_it_is_awake(start: Starter) -> None:
    running = start("--enable-sleep-mode", env=SLEEPY).wait_ready()
    running.request("POST", "/sleep")
    replies: list[int] = []
    asking = threading.Thread(target=lambda: replies.append(running.chat().status))
    asking.start()
    wait_counts(running, active=0, waiting=1)
    assert running.request("POST", "/wake_up?tags=weights").json["status"] == "sleeping"
    wait_counts(running, active=0, waiting=1)
    assert running.request("POST", "/wake_up?tags=kv_cache").json["status"] == "awake"
    asking.join()
    assert replies == [200]


def test_what_runs_when_sleep_comes_is_aborted(start: Starter) -> None:
    running = start("--enable-sleep-mode", env=SLOW | SLEEPY).wait_ready()
    stream = running.open_stream(**FOREVER)
    wait_counts(running, active=1, waiting=0)
    running.request("POST", "/sleep")
    events = running.read_events(stream)
    assert (events[-1], events[-2]["choices"][0]["finish_reason"]) == ("[DONE]", "abort")


def test_a_sleeper_whose_memory_is_gone_cannot_wake_until_it_is_back(start: Starter) -> None:
    running = start("--enable-sleep-mode", env=SLEEPY).wait_ready()
    running.request("POST", "/sleep")
    other = start("--gpu-memory-utilization", "0.5").wait_ready()
    failed = running.request("POST", "/wake_up")
    assert failed.status == 500
    assert "CUDA Error: out of memory at csrc/cumem_allocator" in running.log()
    assert running.request("GET", "/is_sleeping").json == {"is_sleeping": True}
    other.terminate()
    assert other.wait_exit() == 0
    assert running.request("POST", "/wake_up").status == 200


def test_only_level_1_and_known_tags_are_simulated(start: Starter) -> None:
    running = start("--enable-sleep-mode", env=SLEEPY).wait_ready()
    assert running.request("POST", "/sleep?level=2").status == 400
    assert running.request("POST", "/wake_up?tags=everything").status == 400


def test_the_sleep_endpoints_need_the_flag_and_the_mode(start: Starter) -> None:
    for running in (
        start("--enable-sleep-mode", "--gpu-memory-utilization", "0.4"),
        start("--gpu-memory-utilization", "0.4", env=SLEEPY),
    ):
        running.wait_ready()
        assert running.request("POST", "/sleep").status == 404
        assert running.request("GET", "/is_sleeping").status == 404


def test_crash_after_answers_so_many_and_dies(start: Starter) -> None:
    running = start(env={settings.FAULT: "crash-after:2"}).wait_ready()
    assert [running.chat().status for _ in range(2)] == [200, 200]
    assert running.wait_exit() == 1
    assert "EngineCore encountered a fatal error." in running.log()
    assert SimulatedProbe(running.card_dir).read().used_bytes == 0


def test_crash_after_counts_streams_and_zero_dies_when_ready(start: Starter) -> None:
    running = start(env={settings.FAULT: "crash-after:1"}).wait_ready()
    assert running.read_events(running.open_stream())[-1] == "[DONE]"
    assert running.wait_exit() == 1
    at_once = start(env={settings.FAULT: "crash-after:0"})
    assert at_once.wait_exit() == 1
    assert "Application startup complete" in at_once.log()


def test_a_hung_engine_is_healthy_and_answers_nothing(start: Starter) -> None:
    running = start(env={settings.FAULT: "hang"}).wait_ready()
    stream = running.open_stream()
    wait_counts(running, active=1, waiting=0)
    assert running.is_healthy()
    running.terminate()
    assert "error" in running.read_events(stream)[-2]
    assert running.wait_exit() == 0


def test_a_lying_engine_is_healthy_and_fails_every_completion(start: Starter) -> None:
    running = start(env={settings.FAULT: "lie-in-health"}).wait_ready()
    assert running.chat().status == 500
    assert running.request("POST", "/v1/completions", {"model": "po", "prompt": "x"}).status == 500
    assert running.is_healthy()


def test_ignore_sigterm_leaves_only_sigkill(start: Starter) -> None:
    running = start(env={settings.FAULT: "ignore-sigterm"}).wait_ready()
    running.terminate()
    assert running.chat().status == 200
    assert running.process.poll() is None
    running.process.kill()
    assert running.wait_exit() == -signal.SIGKILL


def test_slow_stop_exits_late_and_does_not_listen_meanwhile(start: Starter) -> None:
    running = start(env={settings.FAULT: f"slow-stop:{ENDLESS_S}"}).wait_ready()
    running.terminate()
    running.wait_until(lambda: not running.is_healthy(), "the port is closed")
    assert running.process.poll() is None
    quick = start("--gpu-memory-utilization", "0.05", env={settings.FAULT: "slow-stop:0.2"}).wait_ready()
    quick.terminate()
    assert quick.wait_exit() == 0


def test_a_killed_engine_leaves_its_worker_with_the_memory(start: Starter) -> None:
    environ = {settings.FAULT: "leave-workers", settings.INSTANCE: "po-0123abcd"}
    running = start(env=environ).wait_ready()
    running.process.kill()
    running.wait_exit()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", running.port)):
        pass
    (holder,) = SimulatedProbe(running.card_dir).read().holders
    assert holder.pid != running.process.pid
    assert os.getsid(holder.pid) == running.process.pid
    with open(f"/proc/{holder.pid}/environ", "rb") as environ_file:  # noqa: PTH123 - not a path, a kernel view
        assert b"AGENT_MANAGER_INSTANCE=po-0123abcd" in environ_file.read()
    os.kill(holder.pid, signal.SIGTERM)
    running.wait_until(lambda: not SimulatedProbe(running.card_dir).read().holders, "the memory is back")


def test_an_engine_that_stops_well_takes_its_worker_along(start: Starter) -> None:
    running = start(env={settings.FAULT: "leave-workers"}).wait_ready()
    (holder,) = SimulatedProbe(running.card_dir).read().holders
    running.terminate()
    assert running.wait_exit() == 0
    running.wait_until(lambda: not os.path.exists(f"/proc/{holder.pid}"), "the worker is gone")  # noqa: PTH110
    assert SimulatedProbe(running.card_dir).read().used_bytes == 0


def test_a_log_that_cannot_be_written_does_not_stop_it_from_serving(start: Starter) -> None:
    running = start(log_path=Path("/dev/full")).wait_ready()
    assert running.chat().status == 200
    running.terminate()
    assert running.wait_exit() == 0


def test_under_several_names_replies_give_the_first_as_vllm_does(start: Starter) -> None:
    engine = start("--served-model-name", "architect", "dev").wait_ready()

    models = engine.request("GET", "/v1/models").json["data"]
    assert [model["id"] for model in models] == ["architect", "dev"]
    for name in ("architect", "dev", None):
        assert engine.chat(model=name).json["model"] == "architect"
    assert engine.chat(model="po").status == 404
