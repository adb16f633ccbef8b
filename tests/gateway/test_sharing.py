"""Agents that share a model behind the real gateway: one instance, no swap between them, each in its own way."""

from __future__ import annotations

import contextlib
import json
import re
import select
import signal
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.program import WAIT_S, Program
from tests.conftest import kill_engines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import FreePort

PACKAGED = Path(__file__).parents[2] / "models.yaml"
QUICK = "simulated: {{load_seconds: 0.2, time_to_first_token_ms: 0, inter_token_ms: 0, faults: {{{faults}}}}}"
HELLO = [{"role": "user", "content": "hello"}]
THINKING = {"enable_thinking": True}


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """`agent-manager serve` with the catalog that comes along, its agents on ports of this test."""

    program: Program
    port: int

    def ask(self, port: int, path: str = "/v1/chat/completions", **body: object) -> Any:  # noqa: ANN401 - any JSON
        return json.loads(self.text(port, path, **{"messages": HELLO, **body}))

    def text(self, port: int, path: str, **body: object) -> str:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", headers={"Content-Type": "application/json"}
        )
        if body:
            request.data = json.dumps(body).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=WAIT_S) as said:
            return str(said.read().decode())

    def swaps(self) -> float:
        """How many there were. The agent that left may be put away after the first answer of the one that came."""
        deadline = time.monotonic() + WAIT_S
        while json.loads(self.program.run("status", "--json").out)["owner"]["step"] is not None:
            assert time.monotonic() < deadline, "a swap is still under way"
        found = re.findall(r"(?m)^agent_manager_swaps_total\{.*\} (.+)$", self.text(self.port, "/metrics"))
        return sum(float(each) for each in found)

    def states(self) -> dict[str, str]:
        report = json.loads(self.program.run("status", "--json").out)
        return {agent["name"]: agent["state"] for agent in report["agents"]}


@contextlib.contextmanager
def served(tmp_path: Path, free_port: FreePort, faults: str = "") -> Iterator[Gateway]:
    """With the profile long-context, where architect and dev are on one model."""
    text = PACKAGED.read_text()
    ports = {"architect": free_port(), "dev": free_port(), "po": free_port()}
    common = free_port()
    for old, port in zip((8000, 8001, 8002, 8080), (*ports.values(), common), strict=True):
        text = text.replace(f"port: {old}", f"port: {port}")
    text = re.sub(r"(?m)^  simulated:.*\n(    .*\n)+", f"  {QUICK.format(faults=faults)}\n", text)
    own = "system: You write code., thinking: false, sampling: {max_new_tokens: 5}"
    text = text.replace("dev: {model: qwen3.5-9b-w4a16, ", f"dev: {{model: qwen3.5-9b-w4a16, {own}, ")
    catalog = tmp_path / "models.yaml"
    catalog.write_text(text)
    program = Program(tmp_path, catalog, ports)
    serving = program.start("--engine", "simulated", "--profile", "long-context", "serve")
    try:
        assert serving.stdout is not None
        assert select.select([serving.stdout], [], [], WAIT_S)[0], "the gateway opens"
        assert "gateway" in serving.stdout.readline()
        program.env["AGENT_MANAGER_PROFILE"] = "long-context"
        yield Gateway(program=program, port=common)
    finally:
        serving.send_signal(signal.SIGTERM)
        try:
            serving.communicate(timeout=WAIT_S)
        finally:
            serving.kill()
            kill_engines(tmp_path / "state")


@pytest.fixture
def gateway(tmp_path: Path, free_port: FreePort) -> Iterator[Gateway]:
    with served(tmp_path, free_port) as made:
        yield made


def test_agents_that_share_a_model_cost_no_swap_between_them(gateway: Gateway) -> None:
    ports = gateway.program.ports
    for _ in range(3):
        for name in ("architect", "dev"):
            assert gateway.ask(ports[name])["model"] == name
            assert gateway.ask(gateway.port, model=name)["model"] == name
    assert gateway.swaps() == 1
    assert gateway.states() == {"architect": "ready", "dev": "ready", "po": "absent"}
    assert gateway.program.run("logs", "dev").out == gateway.program.run("logs", "architect").out

    assert gateway.ask(ports["po"])["model"] == "po"
    assert gateway.swaps() == 2
    assert gateway.states() == {"architect": "absent", "dev": "absent", "po": "ready"}
    assert gateway.program.run("logs", "dev").out == gateway.program.run("logs", "architect").out


def test_what_they_share_of_the_card_is_told_once(gateway: Gateway) -> None:
    gateway.ask(gateway.program.ports["dev"])
    run = gateway.program.run
    (claim,) = {agent["claim_bytes"] for agent in json.loads(run("status", "--json").out)["agents"][:2]}
    rows = {line.split()[0]: line for line in run("status").out.splitlines() if line}
    assert f" {claim / (1 << 30):.2f} GiB " in rows["architect"]
    assert " with architect " in rows["dev"]
    assert "GiB" not in rows["dev"] + rows["po"]

    shown = run("--engine", "simulated", "gpu-stats", "--once").out
    assert re.search(r"(?m)^(architect\+dev|dev\+architect) +ready ", shown)


def test_each_answers_in_its_own_way(gateway: Gateway) -> None:
    ports = gateway.program.ports
    architect, dev = gateway.ask(ports["architect"]), gateway.ask(ports["dev"])

    assert architect["choices"][0]["message"]["reasoning"]
    assert "reasoning" not in dev["choices"][0]["message"]
    assert dev["usage"]["completion_tokens"] == 5 < architect["usage"]["completion_tokens"]
    assert dev["usage"]["prompt_tokens"] > architect["usage"]["prompt_tokens"], "it has a system prompt"

    asked = gateway.ask(
        ports["dev"], messages=[{"role": "system", "content": "x"}, *HELLO], chat_template_kwargs=THINKING
    )
    assert asked["choices"][0]["message"]["reasoning"], "the client wins"
    assert asked["usage"]["prompt_tokens"] < dev["usage"]["prompt_tokens"]


def test_every_event_of_a_stream_names_the_agent(gateway: Gateway) -> None:
    body = {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    said = gateway.text(gateway.program.ports["dev"], "/v1/chat/completions", **body)
    events = [line.removeprefix("data: ") for line in said.splitlines() if line]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert {chunk["model"] for chunk in chunks} == {"dev"}
    assert chunks[-1]["usage"]["completion_tokens"] == 5


def test_an_instance_that_does_not_start_is_not_tried_again_under_another_name(
    tmp_path: Path, free_port: FreePort
) -> None:
    with served(tmp_path, free_port, faults="dev: refuse-start") as gateway:
        causes = []
        for name in ("architect", "dev"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                gateway.ask(gateway.program.ports[name])
            assert refused.value.code == 503
            causes.append(json.loads(refused.value.read())["error"]["message"])
            refused.value.close()
        assert all("architect did not start" in cause for cause in causes)
        assert gateway.swaps() == 1
        assert gateway.ask(gateway.program.ports["po"])["model"] == "po"
