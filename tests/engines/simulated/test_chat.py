"""A client application's view: the official client against the running program."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest

from agent_manager.engines.simulated.generation import DISCLAIMER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai.types.chat import ChatCompletionToolParam

    from tests.engines.simulated.conftest import Running, Starter

WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer", "minimum": 3},
                "note": {"type": "string"},
            },
            "required": ["city", "unit", "days"],
        },
    },
}
SUNSET: ChatCompletionToolParam = {"type": "function", "function": {"name": "get_sunset"}}


@pytest.fixture
def client(shared: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=shared.base_url, api_key="unused", max_retries=0) as client:
        yield client


def user(content: str) -> Any:  # noqa: ANN401 - the client's own union of message types
    return [{"role": "user", "content": content}]


def test_it_says_that_it_is_simulated_wherever_a_client_looks(client: openai.OpenAI) -> None:
    model = client.models.list().data[0]
    reply = client.chat.completions.create(model="po", messages=user("hello"))
    assert model.id == "po"
    assert model.owned_by == "agent-manager-simulated"
    assert model.model_extra is not None
    assert model.model_extra["max_model_len"] == 4096
    assert (reply.choices[0].message.content or "").startswith(DISCLAIMER)
    assert "simulated" in (reply.system_fingerprint or "")


def test_the_same_prompt_gets_the_same_words_and_another_gets_others(client: openai.OpenAI) -> None:
    def ask(prompt: str) -> str | None:
        return client.chat.completions.create(model="po", messages=user(prompt)).choices[0].message.content

    assert ask("one") == ask("one")
    assert ask("one") != ask("two")


def test_a_streamed_answer_is_the_unstreamed_one_token_by_token(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="po", messages=user("hello"))
    stream = client.chat.completions.create(
        model="po", messages=user("hello"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert whole.usage is not None
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert choices[0].delta.role == "assistant"
    assert [choice.finish_reason for choice in choices][-2:] == [None, "stop"]
    # One chunk for the role, one for each token, the one that ends it included.
    assert len(choices) == 1 + whole.usage.completion_tokens
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_ends_an_answer_with_length(client: openai.OpenAI, field: str) -> None:
    limits: dict[str, Any] = {field: 3}
    reply = client.chat.completions.create(model="po", messages=user("hello"), **limits)
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 3
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 3
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].message.content == "This text is"


def test_ignore_eos_goes_on_to_max_tokens(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="po", messages=user("hello"), max_tokens=500, extra_body={"ignore_eos": True}
    )
    assert reply.usage is not None
    assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (500, "length")


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="po", messages=user("hello"), stop=["nothing", "ted by agent"]
    )
    assert reply.choices[0].message.content == "This text is simula"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].model_extra is not None
    assert reply.choices[0].model_extra["stop_reason"] == "ted by agent"


def test_n_gives_as_many_different_answers(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="po", messages=user("hello"), n=6)
    one = client.chat.completions.create(model="po", messages=user("hello"))
    assert [choice.index for choice in reply.choices] == list(range(6))
    assert len({choice.message.content for choice in reply.choices}) == 6
    assert reply.usage is not None
    assert one.usage is not None
    assert reply.usage.prompt_tokens == one.usage.prompt_tokens


def test_n_streams_side_by_side(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="po", messages=user("hello"), n=3)
    texts = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(model="po", messages=user("hello"), n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {choice.index: choice.message.content for choice in whole.choices}


@pytest.mark.parametrize(
    ("prompt", "choice", "called"),
    [
        ("what is the weather?", "auto", None),
        ("call get_sunset, please", "auto", "get_sunset"),
        ("use a tool", "auto", "get_weather"),
        ("use a tool", "none", None),
        ("hello", "required", "get_weather"),
        ("hello", {"type": "function", "function": {"name": "get_sunset"}}, "get_sunset"),
    ],
)
def test_a_tool_is_called_when_it_is_asked_for(
    client: openai.OpenAI,
    prompt: str,
    choice: Any,  # noqa: ANN401 - the client's union
    called: str | None,
) -> None:
    reply = client.chat.completions.create(
        model="po", messages=user(prompt), tools=[WEATHER, SUNSET], tool_choice=choice
    )
    calls = reply.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls if call.type == "function"] == ([called] if called else [])
    # As vLLM does: naming the tool oneself ends with "stop".
    ending = "tool_calls" if called and isinstance(choice, str) else "stop"
    assert reply.choices[0].finish_reason == ending


def test_tool_arguments_fit_their_schema_and_stream_in_pieces(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="po", messages=user("hello"), tools=[WEATHER], tool_choice="required", stream=True
        )
    )
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert deltas[0].function is not None
    assert (deltas[0].function.name, deltas[0].type) == ("get_weather", "function")
    assert (deltas[0].id or "").startswith("chatcmpl-tool-")
    assert len(deltas) > 2
    arguments = "".join(delta.function.arguments or "" for delta in deltas if delta.function)
    assert json.loads(arguments) == {"city": "simulated", "unit": "celsius", "days": 3}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_after_a_tool_answered_the_engine_answers_in_words(client: openai.OpenAI) -> None:
    call: Any = {"id": "1", "type": "function", "function": {"name": "get_sunset", "arguments": "{}"}}
    messages: Any = [
        *user("call get_sunset"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "21:00, by the tool"},
    ]
    reply = client.chat.completions.create(model="po", messages=messages, tools=[SUNSET])
    assert reply.choices[0].message.tool_calls is None
    assert reply.choices[0].finish_reason == "stop"


def test_completions_take_text_lists_and_token_ids(client: openai.OpenAI) -> None:
    one = client.completions.create(model="po", prompt="Once upon a time")
    two = client.completions.create(model="po", prompt=["Once", "Twice"], n=2, max_tokens=4)
    ids = client.completions.create(model="po", prompt=[1, 2, 3], max_tokens=4)
    streamed = client.completions.create(model="po", prompt="Once upon a time", stream=True)
    assert one.usage is not None
    assert two.usage is not None
    assert ids.usage is not None
    assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (4, 16)
    assert one.choices[0].finish_reason == "length"
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    assert (two.usage.prompt_tokens, two.usage.completion_tokens) == (2, 16)
    assert ids.usage.prompt_tokens == 3
    assert "".join(chunk.choices[0].text for chunk in streamed) == one.choices[0].text


async def test_the_asynchronous_client_streams_many_at_once(shared: Running) -> None:
    async with openai.AsyncOpenAI(base_url=shared.base_url, api_key="unused", max_retries=0) as client:

        async def ask(number: int) -> str:
            stream = await client.chat.completions.create(model="po", messages=user(f"{number}"), stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        texts = await asyncio.gather(*(ask(number) for number in range(12)))
    assert len(set(texts)) == 12
    assert all(text.startswith(DISCLAIMER) for text in texts)


def test_a_reasoning_model_thinks_unless_told_not_to(start: Starter) -> None:
    running = start("--reasoning-parser", "qwen3").wait_ready()
    message = running.chat().json["choices"][0]["message"]
    quiet = running.chat(chat_template_kwargs={"enable_thinking": False}).json["choices"][0]["message"]
    cut = running.chat(max_tokens=2).json["choices"][0]
    assert message["reasoning"].startswith("This reasoning is simulated:")
    assert message["content"].startswith(DISCLAIMER)
    assert "reasoning" not in quiet
    assert quiet["content"].startswith(DISCLAIMER)
    assert (cut["message"]["reasoning"], cut["message"]["content"]) == ("This reasoning", None)
    assert cut["finish_reason"] == "length"


def test_thinking_can_be_off_by_default_and_on_for_one_request(start: Starter) -> None:
    flags = ("--reasoning-parser", "qwen3", "--default-chat-template-kwargs", '{"enable_thinking": false}')
    running = start(*flags).wait_ready()
    assert "reasoning" not in running.chat().json["choices"][0]["message"]
    asked = running.chat(chat_template_kwargs={"enable_thinking": True})
    assert "reasoning" in asked.json["choices"][0]["message"]
