"""/v1/responses: the official client against the running program; its stream helper checks the events' order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import openai
import pytest

from agent_manager.engines.simulated.generation import DISCLAIMER, REASONING_DISCLAIMER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engines.simulated.conftest import Running, Starter

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
FORCED: Any = {"type": "function", "name": "get_weather"}


@pytest.fixture
def client(shared: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=shared.base_url, api_key="unused", max_retries=0) as client:
        yield client


def test_an_answer_says_that_it_is_simulated_and_counts_its_tokens(client: openai.OpenAI) -> None:
    reply = client.responses.create(model="po", input="hello", instructions="Be brief", metadata={"a": "b"})
    assert reply.output_text.startswith(DISCLAIMER)
    assert reply.status == "completed"
    assert reply.usage is not None
    assert reply.usage.output_tokens > 0
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert (reply.instructions, reply.metadata, reply.tool_choice) == ("Be brief", {"a": "b"}, "none")


def test_a_stream_adds_up_to_the_answer(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="po", input="hello")
    with client.responses.stream(model="po", input="hello") as stream:
        events: list[Any] = list(stream)
        final = stream.get_final_response()
    assert [event.type for event in events if "delta" not in event.type] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.output_text == whole.output_text
    assert (
        "".join(event.delta for event in events if event.type == "response.output_text.delta")
        == whole.output_text
    )


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    reply = client.responses.create(model="po", input="hello", max_output_tokens=3)
    assert reply.status == "incomplete"
    assert reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.usage is not None
    assert reply.usage.output_tokens == 3


def test_a_tool_is_called_and_told_the_result(client: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": [{"type": "input_text", "text": "and now?"}]}]
    first = client.responses.create(model="po", input=asked, tools=[WEATHER], tool_choice=FORCED)
    (call,) = first.output
    assert call.type == "function_call"
    assert call.name == "get_weather"
    assert json.loads(call.arguments) == {"city": "simulated"}

    told: Any = [call.to_dict(), {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    second = client.responses.create(model="po", input=[*asked, *told], tools=[WEATHER])
    assert second.output_text.startswith(DISCLAIMER)


def test_a_tool_call_streams_its_arguments(client: openai.OpenAI) -> None:
    with client.responses.stream(model="po", input="now", tools=[WEATHER], tool_choice=FORCED) as stream:
        events: list[Any] = list(stream)
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    (done,) = (event for event in events if event.type == "response.function_call_arguments.done")
    assert json.loads("".join(deltas)) == json.loads(done.arguments) == {"city": "simulated"}


def test_reasoning_is_an_item_of_its_own(start: Starter) -> None:
    running = start("--reasoning-parser", "qwen3").wait_ready()
    with openai.OpenAI(base_url=running.base_url, api_key="unused", max_retries=0) as client:
        reply = client.responses.create(model="po", input="hello")
        with client.responses.stream(model="po", input="hello") as stream:
            kinds = [event.item.type for event in stream if event.type == "response.output_item.done"]
    reasoning: Any
    reasoning, message = reply.output
    assert reasoning.content[0].text.startswith(REASONING_DISCLAIMER)
    assert message.type == "message"
    assert kinds == ["reasoning", "message"]
    assert reply.usage is not None
    assert reply.usage.output_tokens > reply.usage.output_tokens_details.reasoning_tokens > 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": None}, "body.input"),
        ({"input": [{"type": "image_generation_call"}]}, "image_generation_call"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "text only"),
        ({"tools": [{"type": "web_search"}]}, "function"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"text": {"format": {"type": "json_object"}}}, "structured output"),
        ({"tool_choice": "required", "tools": [{"type": "function"}]}, "tools"),
    ],
)
def test_what_it_cannot_do_is_refused(shared: Running, fields: dict[str, Any], words: str) -> None:
    reply = shared.request("POST", "/v1/responses", {"model": "po", "input": "hello", **fields})
    assert reply.status == 400
    assert words in reply.json["error"]["message"]
