"""Tool calls: when the engine makes one, and with which arguments.

The rule: with `tool_choice` "required" or a named tool, always. With "auto", when the last message is from the
user and holds the name of an offered tool (that one is called), or the word "tool" (then the first one).
"""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec import Struct, field

from agent_manager.engines.simulated.fields import ApiError

_EXAMPLES: dict[str, Any] = {
    "string": "simulated",
    "integer": 1,
    "number": 1.0,
    "boolean": True,
    "array": [],
    "null": None,
}


class Tool(Struct, frozen=True, kw_only=True):
    """A function that the client offers; `parameters` is its JSON schema."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> str:
        """JSON for a call: an example value for each property that the schema requires."""
        return json.dumps(example(self.parameters | {"type": "object"}))


def read_tools(body: dict[str, Any]) -> tuple[Tool, ...]:
    """The tools that a request offers. Raises ApiError for what is no tool."""
    offered = body.get("tools")
    if offered is None:
        return ()
    if offered == []:
        raise ApiError(
            "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.",
            param="tools",
        )
    tools = []
    for item in offered if isinstance(offered, list) else [None]:
        function = item.get("function") if isinstance(item, dict) else None
        function = function if isinstance(function, dict) else {}
        name, parameters = function.get("name"), function.get("parameters") or {}
        if not isinstance(name, str) or not name or not isinstance(parameters, dict):
            raise ApiError(
                "1 validation error:\n  body.tools: a function with a name is required", param="tools"
            )
        tools.append(Tool(name=name, parameters=parameters))
    return tuple(tools)


def choose_tool(tools: tuple[Tool, ...], choice: Any, messages: list[dict[str, Any]]) -> Tool | None:  # noqa: ANN401
    """The tool to call, by the rule above; None for an answer in words."""
    if not tools or choice == "none":
        return None
    if isinstance(choice, dict):
        return next(tool for tool in tools if tool.name == choice["function"]["name"])
    if choice == "required":
        return tools[0]
    last = messages[-1]
    if last["role"] != "user":
        return None
    words = set(re.findall(r"[\w.-]+", str(last.get("content")).lower()))
    named = next((tool for tool in tools if tool.name.lower() in words), None)
    return named or (tools[0] if "tool" in words else None)


def example(schema: Any) -> Any:  # noqa: ANN401 - JSON schema to JSON value
    """A value that fits `schema`, as far as type, enum, const, default, minimum and required say."""
    if not isinstance(schema, dict):
        return "simulated"
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: example(properties.get(name)) for name in schema.get("required") or properties}
    if kind in {"integer", "number"} and "minimum" in schema:
        return schema["minimum"]
    return _EXAMPLES.get(kind, "simulated")
