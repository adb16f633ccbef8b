"""Run with the clients' Python: `clients.py BASE_URL MODEL`, with a logit bias as JSON on standard input.

Talks to an OpenAI-compatible server through LangChain and the OpenAI Agents SDK as their users do, and writes what
came back as one JSON document. The bias helps a model of random weights to call a tool, and to come to an end.
"""
# mypy: disable-error-code="import-not-found, misc, no-any-return, untyped-decorator, unused-ignore"

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from typing import Any, Literal

HELLO = "Say hello"
ASK_WEATHER = "What is the weather like?"
WORDS = 24
TOOL_WORDS = 120


def weather(city: Literal["Oslo", "Bergen"]) -> str:
    """The weather in a city."""
    return f"rain in {city}"


def langchain(base_url: str, model: str, bias: dict[str, int]) -> dict[str, Any]:
    """ChatOpenAI: an answer, a stream, a tool call, and an answer over /v1/responses."""
    from langchain_core.tools import tool  # noqa: PLC0415 - the clients' environment
    from langchain_openai import ChatOpenAI  # noqa: PLC0415 - likewise

    common: dict[str, Any] = {"base_url": base_url, "api_key": "unused", "model": model, "max_retries": 0}
    chat = ChatOpenAI(**common, max_tokens=WORDS, stream_usage=True)
    answer = chat.invoke(HELLO)
    chunks = list(chat.stream(HELLO))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    bound = ChatOpenAI(**common, max_tokens=TOOL_WORDS, logit_bias=bias).bind_tools(
        [tool(weather)], tool_choice="weather", strict=True
    )
    response = ChatOpenAI(**common, max_tokens=WORDS, use_responses_api=True).invoke(HELLO)
    return {
        "answered": answer.usage_metadata["output_tokens"],
        "streamed": whole.usage_metadata["output_tokens"],
        "chunks": len(chunks),
        "tool_calls": [[call["name"], call["args"]] for call in bound.invoke(ASK_WEATHER).tool_calls],
        "responses": response.usage_metadata["output_tokens"],
    }


async def agents(base_url: str, model: str, bias: dict[str, int]) -> dict[str, Any]:
    """An agent with a tool: told to use it, it gets the result back and answers; over both APIs, and as a stream."""
    from agents import (  # noqa: PLC0415 - the clients' environment
        Agent,
        ModelSettings,
        OpenAIChatCompletionsModel,
        OpenAIResponsesModel,
        Runner,
        function_tool,
        set_tracing_disabled,
    )
    from openai import AsyncOpenAI  # noqa: PLC0415 - likewise

    set_tracing_disabled(disabled=True)
    settings = ModelSettings(temperature=1.0, max_tokens=TOOL_WORDS, extra_body={"logit_bias": bias})
    found: dict[str, Any] = {}
    async with AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
        for name, kind in (("chat", OpenAIChatCompletionsModel), ("responses", OpenAIResponsesModel)):
            talker = kind(model=model, openai_client=client)
            agent = Agent(
                name="forecaster",
                instructions="Use the tool",
                model=talker,
                tools=[function_tool(weather)],
                model_settings=replace(settings, tool_choice="weather"),
            )
            run = await Runner.run(agent, ASK_WEATHER)
            plain = Agent(name="greeter", model=talker, model_settings=settings)
            stream = Runner.run_streamed(plain, HELLO)
            events = [event.type async for event in stream.stream_events()]
            found[name] = {
                "items": [item.type for item in run.new_items],
                "tool_said": [item.output for item in run.new_items if item.type == "tool_call_output_item"],
                "output": run.final_output,
                "streamed": len(events),
                "stream_output": stream.final_output,
            }
    return found


def main() -> None:
    """The command line and standard input to standard output."""
    base_url, model = sys.argv[1:]
    bias = json.load(sys.stdin)
    found = {
        "langchain": langchain(base_url, model, bias),
        "agents": asyncio.run(agents(base_url, model, bias)),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
