"""OpenAI's /v1/responses as vLLM 0.32 has it: a request becomes a chat, its reply a list of items.

A stream is a sequence of named and numbered events: each item is announced, grows by deltas, and is told as a whole
when it is done. Nothing is stored, so no request can go on from an earlier response.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agent_manager.engines.simulated.api import read_chat
from agent_manager.engines.simulated.fields import ApiError, wrong_type
from agent_manager.engines.simulated.generation import Kind
from agent_manager.engines.simulated.replies import Json, Reply

if TYPE_CHECKING:
    from agent_manager.engines.simulated.api import Ask
    from agent_manager.engines.simulated.core import Step
    from agent_manager.engines.simulated.options import Options

_ECHOED: dict[str, Any] = {
    "instructions": None,
    "metadata": None,
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "background": False,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "previous_response_id": None,
    "prompt": None,
    "reasoning": None,
    "service_tier": "auto",
    "text": None,
    "truncation": "disabled",
    "user": None,
}
"""What a response repeats of its request, and what it says where the request said nothing."""
_PARTS = {"input_text", "output_text", "text"}
_PREFIXES = {Kind.REASONING: "rs", Kind.CONTENT: "msg", Kind.TOOL: "fc"}


def read_responses(body: Any, options: Options) -> Ask:  # noqa: ANN401 - any JSON value
    """Check the body of /v1/responses. Raises ApiError."""
    if not isinstance(body, dict):
        raise wrong_type("", "object", body)
    for name in ("background", "previous_response_id", "prompt"):
        if body.get(name):
            raise ApiError(f"the simulated engine has no `{name}`", param=name)
    text = body.get("text")
    if isinstance(text, dict) and text.get("format", {"type": "text"}) not in (None, {"type": "text"}):
        raise ApiError("the simulated engine has no structured output", param="text.format")
    tools = [_chat_tool(tool) for tool in body.get("tools") or ()]
    choice = body.get("tool_choice", "auto") if tools else "none"
    if isinstance(choice, dict):
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    chat = {
        **body,
        "messages": [*_instructions(body), *_messages(body.get("input"))],
        "tools": tools or None,
        "tool_choice": choice,
        "max_tokens": body.get("max_output_tokens"),
        "stream_options": None,
    }
    if isinstance(body.get("reasoning"), dict):
        chat["reasoning_effort"] = body["reasoning"].get("effort")
    return read_chat(chat, options)


class ResponsesReply(Reply):
    """The reply of /v1/responses: the items of one answer, in the order in which they come."""

    prefix = "resp"
    end = b""
    _sent = 0
    _open: Kind | None = None

    def opening(self) -> list[Json]:
        """The response as it begins, twice."""
        begun = self._response([], status="in_progress")
        return [self._event(f"response.{name}", response=begun) for name in ("created", "in_progress")]

    def chunks(self, step: Step) -> list[Json]:
        """What a step that was just taken in adds: the item it begins, its delta, the item that it is the end of."""
        events: list[Json] = []
        if step.piece is not None:
            if step.piece.kind is not self._open:
                events += self._closed()
                self._open = step.piece.kind
                events += self._opened()
            if step.piece.text:
                events.append(self._delta(step.piece.text))
        return events + self._closed() if step.finish_reason is not None else events

    def closing(self) -> list[Json]:
        """The whole response."""
        return [self._event("response.completed", response=self.document())]

    def document(self) -> Json:
        """The whole reply."""
        status = "incomplete" if self._progress[0].finish_reason == "length" else "completed"
        return self._response([self._item(kind, whole=True) for kind in self._kinds()], status=status)

    def frame(self, chunk: Json) -> bytes:
        """Named, as each has a type."""
        return f"event: {chunk.get('type', 'error')}\n".encode() + super().frame(chunk)

    # --- events -------------------------------------------------------------------------------------------

    def _event(self, kind: str, **facts: object) -> Json:
        self._sent += 1
        return {"type": kind, "sequence_number": self._sent - 1, **facts}

    def _of_item(self, kind: str, **facts: object) -> Json:
        """An event of the item that is open; of its content, unless it is a call."""
        if self._open is None:
            raise AssertionError("no item is open")
        place = {"output_index": self._kinds().index(self._open), "item_id": self._item_id(self._open)}
        if self._open is not Kind.TOOL:
            place["content_index"] = 0
        return self._event(kind, **place, **facts)

    def _opened(self) -> list[Json]:
        kind = self._open or Kind.CONTENT
        item, index = self._item(kind, whole=False), self._kinds().index(kind)
        events = [self._event("response.output_item.added", output_index=index, item=item)]
        if kind is not Kind.TOOL:
            events.append(self._of_item("response.content_part.added", part=_part(kind, "")))
        return events

    def _delta(self, text: str) -> Json:
        match self._open:
            case Kind.TOOL:
                return self._of_item("response.function_call_arguments.delta", delta=text)
            case Kind.REASONING:
                return self._of_item("response.reasoning_text.delta", delta=text)
        return self._of_item("response.output_text.delta", delta=text, logprobs=[])

    def _closed(self) -> list[Json]:
        """The ends of the item that is open, if one is."""
        if self._open is None:
            return []
        kind, text = self._open, self._progress[0].text(self._open)
        item, index = self._item(kind, whole=True), self._kinds().index(kind)
        match kind:
            case Kind.TOOL:
                done = "response.function_call_arguments.done"
                events = [self._of_item(done, arguments=text, name=item["name"])]
            case Kind.REASONING:
                events = [self._of_item("response.reasoning_text.done", text=text)]
            case Kind.CONTENT:
                events = [self._of_item("response.output_text.done", text=text, logprobs=[])]
        if kind is not Kind.TOOL:
            events.append(self._of_item("response.content_part.done", part=_part(kind, text)))
        self._open = None
        return [*events, self._event("response.output_item.done", output_index=index, item=item)]

    # --- documents ----------------------------------------------------------------------------------------

    def _response(self, output: list[Json], *, status: str) -> Json:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        echoed = {name: self._body.get(name, default) for name, default in _ECHOED.items()}
        if not echoed["tools"]:
            echoed["tool_choice"] = "none"
        return {
            "id": self._id,
            "created_at": self._created,
            "incomplete_details": cut,
            "model": self._ask.model,
            "object": "response",
            "output": output,
            **echoed,
            "status": status,
            "usage": None if status == "in_progress" else self._tokens(),
        }

    def _kinds(self) -> list[Kind]:
        """The items there are so far, in their order: an answer reasons first."""
        return [kind for kind in Kind if self._progress[0].texts[kind]]

    def _item_id(self, kind: Kind) -> str:
        return f"{_PREFIXES[kind]}_{self._id.removeprefix(f'{self.prefix}-')}"

    def _item(self, kind: Kind, *, whole: bool) -> Json:
        """An item as it is now, or as it is announced."""
        progress = self._progress[0]
        text = progress.text(kind) if whole else ""
        item: Json = {"id": self._item_id(kind), "status": "completed" if whole else "in_progress"}
        match kind:
            case Kind.TOOL:
                name = self._ask.tool.name if self._ask.tool else ""
                call = {"type": "function_call", "call_id": progress.tool_call_id, "name": name}
                return {**item, **call, "arguments": text}
            case Kind.REASONING:
                content = [_part(kind, text)] if whole else []
                return {**item, "type": "reasoning", "summary": [], "content": content}
            case Kind.CONTENT:
                content = [_part(kind, text)] if whole else []
                return {**item, "type": "message", "role": "assistant", "content": content}

    def _tokens(self) -> Json:
        usage = self._usage()
        thought = len(self._progress[0].texts[Kind.REASONING])
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": usage["total_tokens"],
        }


def _part(kind: Kind, text: str) -> Json:
    if kind is Kind.REASONING:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": None if text else []}


def _chat_tool(tool: Any) -> Json:  # noqa: ANN401 - any JSON value
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise ApiError("the simulated engine takes tools of the type 'function' only", param="tools")
    return {"type": "function", "function": {key: tool[key] for key in tool if key != "type"}}


def _instructions(body: Json) -> list[Json]:
    said = body.get("instructions")
    return [] if said is None else [{"role": "system", "content": said}]


def _messages(given: Any) -> list[Json]:  # noqa: ANN401 - any JSON value
    """The input as messages of a chat."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise wrong_type("input", "string or list of items", given)
    return [message for item in given if (message := _message(item)) is not None]


def _message(item: Any) -> Json | None:  # noqa: ANN401 - any JSON value
    """A message for an item of the input; None for reasoning, which is not told again."""
    if not isinstance(item, dict):
        raise wrong_type("input", "list of items", item)
    match item.get("type", "message"):
        case "message":
            return {"role": item.get("role"), "content": _content(item.get("content"))}
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        case "function_call_output":
            output = item.get("output")
            return {"role": "tool", "content": output if isinstance(output, str) else json.dumps(output)}
        case "reasoning":
            return None
        case other:
            raise ApiError(f"the simulated engine takes no input of the type '{other}'", param="input")


def _content(content: Any) -> Any:  # noqa: ANN401 - any JSON value
    """A message's content with its parts named as in a chat; what is no text is refused where chats are read."""
    if not isinstance(content, list):
        return content
    return [
        {"type": "text", "text": part.get("text")}
        if isinstance(part, dict) and part.get("type") in _PARTS
        else part
        for part in content
    ]
