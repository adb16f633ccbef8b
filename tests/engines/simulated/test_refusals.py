"""What a wrong request gets: vLLM's status, words and shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from tests.engines.simulated.conftest import Running, Starter


def error_of(reply: Any) -> dict[str, Any]:  # noqa: ANN401 - a Reply
    error: dict[str, Any] = reply.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == reply.status
    return error


def test_an_unknown_model_is_not_found(shared: Running) -> None:
    with (
        openai.OpenAI(base_url=shared.base_url, api_key="unused", max_retries=0) as client,
        pytest.raises(openai.NotFoundError, match="The model `nobody` does not exist"),
    ):
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hello"}])


def test_a_missing_model_name_means_the_one_that_is_served(shared: Running) -> None:
    assert shared.chat(model=None).json["model"] == "po"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": -0.1}, "temperature must be in [0, 2], got -0.1"),
        ({"temperature": 2.1}, "temperature must be in [0, 2], got 2.1"),
        ({"temperature": "hot"}, "body.temperature: Input should be a valid number"),
        ({"top_p": 0}, "top_p must be in (0, 1], got 0"),
        ({"top_p": 1.5}, "top_p must be in (0, 1], got 1.5"),
        ({"n": 0}, "n must be at least 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": 5000}, "max_tokens=5000 cannot be greater than max_model_len=4096"),
        ({"max_tokens": "many"}, "body.max_tokens: Input should be a valid integer"),
        ({"stop": ""}, "stop cannot contain an empty string"),
        ({"stream": "yes"}, "body.stream: Input should be a valid boolean"),
        (
            {"stream_options": {"include_usage": True}},
            "Stream options can only be defined when `stream=True`",
        ),
        ({"messages": []}, "body.messages: Input should be a valid list of messages"),
        ({"messages": "hello"}, "body.messages: Input should be a valid list of messages"),
        ({"messages": [{"content": "hello"}]}, "message with a role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "takes text only"),
        ({"tools": []}, "`tools` must not be an empty array"),
        ({"tools": [{"type": "function"}]}, "a function with a name is required"),
        ({"tool_choice": "required"}, "When using `tool_choice`, `tools` must be set"),
        ({"logprobs": True}, "the simulated engine has no `logprobs`"),
        ({"response_format": {"type": "json_object"}}, "the simulated engine has no structured output"),
    ],
)
def test_a_bad_field_is_a_bad_request(shared: Running, fields: dict[str, Any], words: str) -> None:
    reply = shared.chat(**fields)
    assert reply.status == 400
    assert words in error_of(reply)["message"]


def test_a_prompt_over_the_context_is_refused_in_vllms_words(shared: Running) -> None:
    reply = shared.chat("word " * 5000)
    assert reply.status == 400
    error = error_of(reply)
    assert error["type"] == "BadRequestError"
    assert error["message"].startswith(
        "This model's maximum context length is 4096 tokens. However, your prompt contains at least 4097 input tokens"
    )


def test_a_prompt_that_fills_the_context_leaves_no_room_and_one_less_does(shared: Running) -> None:
    def ask(tokens: int) -> Any:  # noqa: ANN401 - a Reply
        return shared.request(
            "POST", "/v1/completions", {"model": "po", "prompt": [7] * tokens, "max_tokens": 9}
        )

    assert "max_tokens must be at least 1, got 0" in error_of(ask(4096))["message"]
    assert ask(4095).json["usage"] == {"prompt_tokens": 4095, "completion_tokens": 1, "total_tokens": 4096}


@pytest.mark.parametrize("body", [b"{", b"", b"[" * 200_000, b"\xff"])
def test_what_is_no_json_is_a_bad_request(shared: Running, body: bytes) -> None:
    reply = shared.request("POST", "/v1/chat/completions", body)
    assert reply.status == 400
    assert "JSON decode error" in error_of(reply)["message"]


@pytest.mark.parametrize("body", [[], "text", 3, None])
def test_json_that_is_no_object_is_a_bad_request(shared: Running, body: object) -> None:
    content = b"null" if body is None else body
    reply = shared.request("POST", "/v1/chat/completions", content)
    assert (reply.status, error_of(reply)["param"]) == (400, "body")


def test_another_content_type_is_refused(shared: Running) -> None:
    reply = shared.chat(headers={"Content-Type": "text/plain"})
    assert reply.status == 400
    assert "Only 'application/json' is allowed" in error_of(reply)["message"]


def test_unknown_paths_and_methods_get_the_same_shape(shared: Running) -> None:
    assert error_of(shared.request("GET", "/nowhere"))["message"] == "Not Found"
    assert error_of(shared.request("GET", "/v1/chat/completions"))["code"] == 405


def test_tools_need_the_flags_that_vllm_needs(start: Starter) -> None:
    running = start(with_tools=False).wait_ready()
    tools = [{"type": "function", "function": {"name": "look"}}]
    auto = running.chat(tools=tools)
    required = running.chat(tools=tools, tool_choice="required")
    assert "--enable-auto-tool-choice and --tool-call-parser to be set" in error_of(auto)["message"]
    assert 'tool_choice="required" requires --tool-call-parser' in error_of(required)["message"]


def test_an_error_can_be_asked_for(shared: Running) -> None:
    with (
        openai.OpenAI(base_url=shared.base_url, api_key="unused", max_retries=0) as client,
        pytest.raises(openai.RateLimitError),
    ):
        client.chat.completions.create(
            model="po",
            messages=[{"role": "user", "content": "hello"}],
            extra_headers={"X-Simulate-Error": "429"},
        )
    assert shared.chat(headers={"X-Simulate-Error": "500"}).status == 500


def test_tokenize_counts_as_usage_does(shared: Running) -> None:
    reply = shared.request("POST", "/tokenize", {"model": "po", "prompt": "one two, three"}).json
    again = shared.request("POST", "/tokenize", {"model": "po", "prompt": "one two, three"}).json
    assert (reply["count"], len(reply["tokens"]), reply["max_model_len"]) == (3, 3, 4096)
    assert again == reply
    assert shared.request("GET", "/version").json == {"version": "0.32.0+simulated"}
