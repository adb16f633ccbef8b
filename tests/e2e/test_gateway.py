"""The gateway on real vLLM (the CPU build), as clients meet it: openai, LangChain, the OpenAI Agents SDK, curl.

One story again: nobody is on the card, a request brings po, clients of all kinds talk to it, a request for dev
swaps them while po still streams, clients talk to dev, and at the end nothing is left.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_manager.runtimes import proc
from tests.e2e.user import SlowReader, User, refuses, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import openai

    from tests.conftest import FreePort

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

CLIENTS = Path(__file__).with_name("clients.py")
LONG_TOKENS = 3900
"""Of answers that take some seconds, though the model is tiny: somebody is to be seen waiting beside them."""

CATALOG = """\
version: 1
engines:
  vllm-cpu: {{command: [{vllm}, serve], kv_cache: 1GiB}}
models:
  first: {{path: {first}, tool_parser: hermes}}
  second: {{path: {second}, tool_parser: hermes}}
agents:
  po: {{model: first, port: {po}, context: 4096, sequences: 4, eager: true, sampling: {{temperature: 0.5}}}}
  dev: {{model: second, port: {dev}, context: 4096, sequences: 4, eager: true, aliases: [coder]}}
gateway: {{port: {gateway}}}
"""

MESSAGES: Any = [{"role": "user", "content": "What is the weather like?"}]
CITY: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Bergen"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"name": "weather", "description": "The weather in a city", "parameters": CITY, "strict": True}


@pytest.fixture
def user(
    wheel_cli: Path, vllm_venv: Path, tiny_checkpoints: tuple[Path, Path], tmp_path: Path, free_port: FreePort
) -> Iterator[User]:
    first, second = tiny_checkpoints
    user = User(
        program=wheel_cli,
        folder=tmp_path,
        runtime="process",
        po=free_port(),
        dev=free_port(),
        gateway=free_port(),
    )
    catalog = CATALOG.format(
        vllm=vllm_venv / "bin" / "vllm",
        first=first,
        second=second,
        po=user.po,
        dev=user.dev,
        gateway=user.gateway,
    )
    (tmp_path / "models.yaml").write_text(catalog)
    yield user
    user.run("stop", "--all", "--drain-timeout", "0")


def test_requests_decide_who_is_on_the_card_and_no_client_sees_a_swap(
    user: User, clients_python: Path, tiny_checkpoint: Path
) -> None:
    bias = bias_towards_an_end(tiny_checkpoint)
    with user.serving():
        assert user.curl_json("/running") == {"running": []}
        first = SlowReader(user.client(user.po), "po")
        assert first.tokens() == 300, "a stream that waited for its agent to be started"
        assert states(user) == {"po": "ready", "dev": "absent"}
        openai_works(user.client(user.gateway), "po", bias)
        others_work(clients_python, user.gateway, "po", bias)

        swapped_while_po_streams(user)
        assert states(user) == {"po": "absent", "dev": "ready"}
        openai_works(user.client(user.gateway), "coder", bias)
        others_work(clients_python, user.dev, "dev", bias)

        metrics = user.curl("/metrics")
        for agent in ("po", "dev"):
            assert f'agent_manager_swaps_total{{agent="{agent}",result="done"}} 1.0' in metrics
        assert 'status="5' not in metrics, "no client was told of a failure"
    assert proc.marked_by_instance(os.path.realpath(user.state)) == {}
    assert all(refuses(port) for port in (user.gateway, user.po, user.dev, user.po + 100, user.dev + 100))


def swapped_while_po_streams(user: User) -> None:
    """A request for dev comes while po streams: the streams are finished whole, dev comes and answers."""
    asked = {"model": "po", "prompt": "once", "stream": True, "stream_options": {"include_usage": True}}
    asked |= {"max_tokens": LONG_TOKENS, "min_tokens": LONG_TOKENS, "ignore_eos": True}
    files = [user.folder / name for name in ("first", "second")]
    streams = [user.curl_into(file, user.po, "/v1/completions", asked) for file in files]
    until(lambda: models(user)["po"]["running"] > 0, "po streams")
    user.completes("dev", user.dev)
    for file, stream in zip(files, streams, strict=True):
        assert stream.wait(timeout=60) == 0
        *_, usage, done = file.read_text().split("\n\n")[:-1]
        assert done == "data: [DONE]"
        assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == LONG_TOKENS


def openai_works(client: openai.OpenAI, model: str, bias: dict[str, int]) -> None:
    """The official client: an answer, a stream, a tool call, and both over /v1/responses."""
    with client:
        assert {each.id for each in client.models.list()} == {"po", "dev"}
        answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8)
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        chunks = list(
            client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8, stream=True)
        )
        assert chunks[-1].choices[0].finish_reason in {"stop", "length"}

        called = client.chat.completions.create(
            model=model,
            messages=MESSAGES,
            max_tokens=120,
            tools=[{"type": "function", "function": WEATHER}],
            tool_choice={"type": "function", "function": {"name": "weather"}},
            logit_bias=bias,
        )
        calls = called.choices[0].message.tool_calls
        assert calls
        call: Any = calls[0]
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments)["city"] in {"Oslo", "Bergen"}

        response = client.responses.create(model=model, input="hello", max_output_tokens=8)
        assert response.usage is not None
        assert response.usage.output_tokens > 0
        events = client.responses.create(model=model, input="hello", max_output_tokens=8, stream=True)
        kinds = [event.type for event in events]
        assert kinds[0] == "response.created"
        assert kinds[-1] in {"response.completed", "response.incomplete"}


def others_work(python: Path, port: int, model: str, bias: dict[str, int]) -> None:
    """LangChain and the Agents SDK, in their own environment and without a network."""
    done = subprocess.run(
        [python, CLIENTS, f"http://localhost:{port}/v1", model],
        input=json.dumps(bias),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)

    langchain = found["langchain"]
    assert min(langchain["answered"], langchain["streamed"], langchain["chunks"], langchain["responses"]) > 0
    ((name, arguments),) = langchain["tool_calls"]
    assert name == "weather"
    assert arguments["city"] in {"Oslo", "Bergen"}
    for api in ("chat", "responses"):
        run = found["agents"][api]
        assert run["items"][:2] == ["tool_call_item", "tool_call_output_item"], (
            "the tool was called, by the model"
        )
        assert run["tool_said"][0] in {"rain in Oslo", "rain in Bergen"}
        assert isinstance(run["output"], str)
        assert run["streamed"] > 0
        assert isinstance(run["stream_output"], str)


def bias_towards_an_end(checkpoint: Path) -> dict[str, int]:
    """What makes a model of random weights call a tool and finish: no token of blanks, and often the last one.

    A forced call is held to its schema, but JSON may have blanks between its parts, of which such a model finds no
    end; and the Agents SDK takes an answer that is cut at its limit for an error.
    """
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text("utf-8"))
    ends = {str(token["id"]): 5 for token in tokenizer["added_tokens"] if token["content"] == "<|im_end|>"}
    blanks = {str(id_): -100 for text, id_ in tokenizer["model"]["vocab"].items() if not text.strip("ĠĊĉč")}
    return ends | blanks


def models(user: User) -> dict[str, dict[str, Any]]:
    return {model["id"]: model for model in user.curl_json("/v1/models")["data"]}


def states(user: User) -> dict[str, str]:
    return {name: model["state"] for name, model in models(user).items()}
