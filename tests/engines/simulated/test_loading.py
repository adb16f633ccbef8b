"""From the command line to ready, and every way not to get there."""

from __future__ import annotations

import math
import re
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from agent_manager.engines.simulated import settings
from agent_manager.gpu.simulated import TOTAL_BYTES, SimulatedProbe

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engines.simulated.conftest import Starter

PHASES = [
    r"vLLM server version",
    r"this engine is simulated",
    r"Initializing a V1 LLM engine",
    r"Loading safetensors checkpoint shards:\s+0% Completed \| 0/4",
    r"Loading safetensors checkpoint shards:\s+100% Completed \| 4/4",
    r"Loading weights took ([\d.]+) seconds",
    r"Model loading took 5\.0 GiB memory and ([\d.]+) seconds",
    r"Dynamo bytecode transform time",
    r"torch\.compile took ([\d.]+) s in total",
    r"Available KV cache memory: 7\.93 GiB",
    r"GPU KV cache size: 70,000 tokens, Maximum concurrency for 4,096 tokens per request: 17\.09x",
    r"Graph capturing finished in (\d+) secs, took ([\d.]+) GiB",
    r"init engine \(profile, create kv cache, warmup model\) took ([\d.]+)",
    r"Starting vLLM server on http://127\.0\.0\.1",
    r"Application startup complete",
]
BUSY = (
    r"ValueError: Free memory on device cuda:0 \(1\.24/15\.47 GiB\) on startup is less than desired GPU memory "
    r"utilization \(0\.5, 7\.74 GiB\)"
)


def test_the_log_has_vllms_lines_in_vllms_order(start: Starter) -> None:
    sizes = {settings.WEIGHTS_BYTES: str(5 << 30), settings.KV_TOKENS: "70000"}
    running = start(env=sizes).wait_ready()
    running.wait_log("Application startup complete")
    lines = running.log().splitlines()
    found = [next(i for i, line in enumerate(lines) if re.search(phase, line)) for phase in PHASES]
    assert found == sorted(found)
    prefix = re.compile(r"\((APIServer|EngineCore) pid=\d+\) ")
    assert all(prefix.match(line) for line in lines)
    assert re.search(r"\(EngineCore pid=\d+\) INFO \d\d-\d\d \d\d:\d\d:\d\d \[core\.py:\d+\] ", running.log())


def test_an_eager_engine_compiles_and_captures_nothing(start: Starter) -> None:
    running = start("--enforce-eager").wait_ready()
    assert "torch.compile" not in running.log()
    assert "Graph capturing" not in running.log()


def test_while_it_loads_nobody_listens_and_sigterm_changes_nothing(start: Starter) -> None:
    running = start(env={settings.FAULT: "hang-load"})
    running.wait_log(" 25% Completed")
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", running.port)):
        pass
    running.terminate()
    assert SimulatedProbe(running.card_dir).read().holders[0].pid == running.process.pid
    assert running.process.poll() is None
    running.process.kill()
    assert running.wait_exit() == -signal.SIGKILL


def test_the_load_takes_the_time_that_was_asked_for(start: Starter) -> None:
    running = start(env={settings.LOAD_SECONDS: "1.5"}).wait_ready()
    took = re.search(r"Loading weights took ([\d.]+) seconds", running.log())
    assert took is not None
    assert float(took[1]) == pytest.approx(0.75)


def test_it_claims_its_share_under_its_instances_name_and_gives_it_back(start: Starter) -> None:
    running = start("--gpu-memory-utilization", "0.5", env={settings.INSTANCE: "po-0123abcd"}).wait_ready()
    card = SimulatedProbe(running.card_dir).read()
    assert card.used_bytes == -(-TOTAL_BYTES // 2)
    assert [(holder.name, holder.pid) for holder in card.holders] == [("po-0123abcd", running.process.pid)]
    running.terminate()
    assert running.wait_exit() == 0
    assert SimulatedProbe(running.card_dir).read().used_bytes == 0


def test_a_second_engine_is_refused_in_vllms_words_until_the_first_is_killed(start: Starter) -> None:
    first = start().wait_ready()
    second = start("--gpu-memory-utilization", "0.5")
    assert second.wait_exit() == 1
    assert re.search(BUSY, second.log())
    assert "EngineCore failed to start." in second.log()
    assert "Engine core initialization failed. See root cause above." in second.log()
    first.process.kill()
    first.wait_exit()
    start("--gpu-memory-utilization", "0.5").wait_ready()


def test_two_engines_fit_side_by_side_when_there_is_room(start: Starter) -> None:
    engines = [start("--gpu-memory-utilization", "0.5"), start("--gpu-memory-utilization", "0.49")]
    for running in engines:
        running.wait_ready()
    assert SimulatedProbe(engines[0].card_dir).read().used_bytes == -(-TOTAL_BYTES // 2) + math.ceil(
        TOTAL_BYTES * 0.49
    )


def test_a_port_in_use_ends_it(start: Starter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        running = start(port=taken.getsockname()[1])
        assert running.wait_exit() == 1
    assert "[Errno 98] Address already in use" in running.log()


def test_a_model_folder_must_be_there_with_its_config(start: Starter, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    missing = start(model=str(folder))
    assert missing.wait_exit() == 1
    assert f"Invalid repository ID or local directory specified: '{folder}'" in missing.log()
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    start(model=str(folder)).wait_ready()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("refuse-start", "the fault 'refuse-start' was asked for"),
        ("oom", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"),
        ("crash-at-load:50", "the fault 'crash-at-load:50' was asked for"),
    ],
)
def test_a_load_that_fails_says_why_and_exits_1(start: Starter, fault: str, words: str) -> None:
    running = start(env={settings.FAULT: fault})
    assert running.wait_exit() == 1
    log = running.log()
    assert 0 < log.index("EngineCore failed to start.") < log.index(words)
    assert log.index(words) < log.index(
        "RuntimeError: Engine core initialization failed. See root cause above."
    )
    assert "Application startup complete" not in log
    assert (" 50% Completed" in log) == (fault != "refuse-start")
    assert "100% Completed" not in log
    assert SimulatedProbe(running.card_dir).read().used_bytes == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--swap-space", "4"), "unrecognized arguments: --swap-space 4"),
        (("--max-model", "4096"), "unrecognized arguments: --max-model 4096"),
        (("--api-key", "x"), "unrecognized arguments: --api-key x"),
        (("--max-num-seqs", "0"), "'0' must be at least 1"),
        (("--gpu-memory-utilization", "1.2"), "'1.2' must be above 0 and at most 1"),
        (("--tool-call-parser", "herms"), "invalid choice: 'herms'"),
        (("--override-generation-config", "{"), "invalid JSON"),
    ],
)
def test_a_wrong_command_line_is_refused(start: Starter, flags: tuple[str, ...], words: str) -> None:
    running = start(*flags)
    assert running.wait_exit() == 2
    assert words in running.log()


def test_auto_tool_choice_needs_a_parser(start: Starter) -> None:
    running = start("--enable-auto-tool-choice", with_tools=False)
    assert running.wait_exit() == 2
    assert "--enable-auto-tool-choice requires --tool-call-parser" in running.log()


def test_every_flag_that_agent_manager_renders_is_known(start: Starter) -> None:
    running = start(
        *("--host", "127.0.0.1", "--gpu-memory-utilization", "0.5", "--kv-cache-dtype", "fp8"),
        *("--cpu-offload-gb", "8", "--enforce-eager", "--generation-config", "vllm"),
        *("--override-generation-config", '{"temperature": 0.1, "top_p": 0.95}'),
        *("--reasoning-parser", "qwen3", "--default-chat-template-kwargs", '{"enable_thinking": false}'),
        *("--revision", "31c69efc29464b6bb0aee1398b5a7b50a99340c3", "--enable-sleep-mode"),
        *("--shutdown-timeout", "30", "--disable-access-log-for-endpoints", "/health,/metrics"),
        *("--max-num-batched-tokens", "2048", "--tensor-parallel-size", "1", "--load-format", "auto"),
    ).wait_ready()
    running.request("GET", "/metrics")
    assert running.chat().status == 200
    assert '"POST /v1/chat/completions HTTP/1.1" 200' in running.log()
    assert "/metrics HTTP" not in running.log()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (settings.LOAD_SECONDS, "soon"),
        (settings.LOAD_SECONDS, "-1"),
        (settings.INTER_TOKEN_MS, "nan"),
        (settings.WEIGHTS_BYTES, "5GiB"),
        (settings.FAULT, "explode"),
    ],
)
def test_a_wrong_environment_is_refused_by_name(start: Starter, name: str, value: str) -> None:
    running = start(env={name: value})
    assert running.wait_exit() == 2
    assert running.log().startswith(f"agent-manager-simulated: error: {name}: ")


def test_a_card_folder_that_cannot_be_made_is_said(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    running = start(env={settings.CARD_DIR: str(tmp_path / "file" / "SIM-0")})
    assert running.wait_exit() == 1
    assert "StateUnusable: " in running.log()
    assert "Traceback" not in running.log()
