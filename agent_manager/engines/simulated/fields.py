"""The fields of a request's JSON body, each read with the checks that vLLM makes, and the error when one fails."""

from __future__ import annotations

import math
from typing import Any

_RANGES: dict[str, tuple[float, float, str]] = {
    "presence_penalty": (-2, 2, "presence_penalty must be in [-2, 2]"),
    "frequency_penalty": (-2, 2, "frequency_penalty must be in [-2, 2]"),
    "repetition_penalty": (math.ulp(0.0), math.inf, "repetition_penalty must be greater than zero"),
    "temperature": (0, 2, "temperature must be in [0, 2]"),
    "top_p": (math.ulp(0.0), 1, "top_p must be in (0, 1]"),
    "min_p": (0, 1, "min_p must be in [0, 1]"),
    "top_k": (-1, math.inf, "top_k must be 0 (disable), or at least 1"),
}
_NOT_SIMULATED = ("logprobs", "prompt_logprobs", "echo", "suffix", "use_beam_search", "structured_outputs")


class ApiError(Exception):
    """A request that gets an error instead of an answer, in the shape that vLLM and OpenAI clients share."""

    def __init__(
        self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param

    def body(self) -> dict[str, Any]:
        """The JSON document to send."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return {"error": error}


class Fields:
    """A request's body, with a checked reading of each kind of field."""

    def __init__(self, body: Any) -> None:  # noqa: ANN401 - any JSON value
        if not isinstance(body, dict):
            raise wrong_type("", "object", body)
        self.body: dict[str, Any] = body

    def integer(self, name: str) -> int | None:
        """A whole number, or None. Raises ApiError."""
        value = self.body.get(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise wrong_type(name, "integer", value)

    def boolean(self, name: str) -> bool:
        """False when it is left out. Raises ApiError."""
        value = self.body.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise wrong_type(name, "boolean", value)

    def object(self, name: str) -> dict[str, Any]:
        """An object; empty when it is left out. Raises ApiError."""
        value = self.body.get(name)
        if value is None or isinstance(value, dict):
            return value or {}
        raise wrong_type(name, "object", value)

    def stop(self) -> tuple[str, ...]:
        """The stop strings, as given. Raises ApiError."""
        value = self.body.get("stop")
        stops = [value] if isinstance(value, str) else value or []
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise wrong_type("stop", "string or list of strings", value)
        if "" in stops:
            raise ApiError("stop cannot contain an empty string.")
        return tuple(stops)

    def messages(self) -> list[dict[str, Any]]:
        """The messages of a chat: at least one, each with a role. Raises ApiError."""
        messages = self.body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise wrong_type("messages", "list of messages", messages)
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise wrong_type("messages", "message with a role", message)
        return messages

    def check_sampling(self) -> None:
        """Refuse sampling parameters out of range, and what only a model could do."""
        for name, (low, high, rule) in _RANGES.items():
            value = self.body.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise wrong_type(name, "number", value)
            if not low <= value <= high:
                raise ApiError(f"{rule}, got {value}.", param=name)
        if self.body.get("response_format", {"type": "text"}) not in (None, {"type": "text"}):
            raise ApiError("the simulated engine has no structured output", param="response_format")
        for name in _NOT_SIMULATED:
            if self.body.get(name):
                raise ApiError(f"the simulated engine has no `{name}`", param=name)


def wrong_type(name: str, wanted: str, value: Any) -> ApiError:  # noqa: ANN401 - any JSON value
    """The error for a field that is missing or of another type than `wanted`."""
    place = f"body.{name}" if name else "body"
    problem = f"Field required: {wanted}" if value is None else f"Input should be a valid {wanted}"
    return ApiError(f"1 validation error:\n  {place}: {problem}", kind="Bad Request", param=place)


def content_text(message: dict[str, Any]) -> str:
    """The text of a message: its content, or the text parts of it. Raises ApiError for other parts."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type("messages.content", "string", content)
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError("the simulated engine takes text only", param="messages")
    return "\n".join(part["text"] for part in content)
