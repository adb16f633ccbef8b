"""What clients ask of the engine, checked as vLLM 0.32 checks it and refused in its words.

Unknown fields are ignored, as in vLLM. What vLLM would do and a simulation cannot (logprobs, structured output,
images) is refused and not ignored: a client should not take silence for support.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from agent_manager.engines.simulated.fields import ApiError, Fields, content_text, wrong_type
from agent_manager.engines.simulated.tokens import count_tokens
from agent_manager.engines.simulated.tools import Tool, choose_tool, read_tools

if TYPE_CHECKING:
    from agent_manager.engines.simulated.options import Options

_MESSAGE_TOKENS = 4
"""What a chat template adds to each message, and to the whole for the answer's beginning."""
_MAX_CHOICES = 16384
_TEXT_MAX_TOKENS = 16


class Prompt(Struct, frozen=True, kw_only=True):
    """One prompt: its text decides the answer, `tokens` is what it takes of the context."""

    text: str
    tokens: int


class Ask(Struct, frozen=True, kw_only=True):
    """A request for completions: for each prompt, `n` of them. `model` is what replies say: the first name served."""

    model: str
    prompts: tuple[Prompt, ...]
    n: int
    max_tokens: int | None
    min_tokens: int
    ignore_eos: bool
    seed: int | None
    stop: tuple[str, ...]
    include_stop: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    thinking: bool = False
    tool: Tool | None = None
    tool_is_named: bool = False


def read_chat(body: Any, options: Options) -> Ask:  # noqa: ANN401 - any JSON value
    """Check the body of /v1/chat/completions. Raises ApiError."""
    fields = Fields(body)
    messages = fields.messages()
    tools = read_tools(body)
    choice = body.get("tool_choice", "auto" if tools else "none") or "none"
    _check_tool_choice(choice, tools, options)
    max_tokens = fields.integer("max_completion_tokens")
    if max_tokens is None:
        max_tokens = fields.integer("max_tokens")
    text = "\n".join(f"{message['role']}: {content_text(message)}" for message in messages)
    offered = "" if choice == "none" else "\n".join(str(tool) for tool in tools)
    prompt = Prompt(
        text=text,
        tokens=count_tokens(text) + count_tokens(offered) + _MESSAGE_TOKENS * (len(messages) + 1),
    )
    return _ask(
        fields,
        options,
        prompts=(prompt,),
        max_tokens=max_tokens,
        thinking=options.reasoning_parser is not None and _thinks(fields, options),
        tool=choose_tool(tools, choice, messages),
        tool_is_named=isinstance(choice, dict),
    )


def read_text(body: Any, options: Options) -> Ask:  # noqa: ANN401 - any JSON value
    """Check the body of /v1/completions. Raises ApiError."""
    fields = Fields(body)
    max_tokens = fields.integer("max_tokens")
    return _ask(
        fields,
        options,
        prompts=_text_prompts(body.get("prompt")),
        max_tokens=_TEXT_MAX_TOKENS if max_tokens is None else max_tokens,
    )


def read_tokenize(body: Any) -> str:  # noqa: ANN401 - any JSON value
    """The text that the body of /tokenize asks about. Raises ApiError."""
    fields = Fields(body)
    if "messages" in body:
        return "\n".join(content_text(message) for message in fields.messages())
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise wrong_type("prompt", "string", prompt)
    return prompt


def check_model(body: Any, options: Options) -> None:  # noqa: ANN401 - any JSON value
    """Raises ApiError (404) for a name that is not served; a request need not name one."""
    name = body.get("model") if isinstance(body, dict) else None
    if name and name not in options.names:
        message = f"The model `{name}` does not exist."
        raise ApiError(message, status=404, kind="NotFoundError", param="model")


def limit_tokens(ask: Ask, prompt: Prompt, options: Options) -> int:
    """How many tokens an answer to `prompt` may have. Raises ApiError when the context is too short."""
    context = options.max_model_len
    if ask.max_tokens is not None and ask.max_tokens > context:
        raise ApiError(
            f"max_tokens={ask.max_tokens} cannot be greater than max_model_len={context}. "
            "Please request fewer output tokens.",
            param="max_tokens",
        )
    if prompt.tokens > context:
        raise ApiError(
            f"This model's maximum context length is {context} tokens. However, your prompt contains at least "
            f"{context + 1} input tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            param="input_tokens",
        )
    left = context - prompt.tokens
    limit = left if ask.max_tokens is None else min(left, ask.max_tokens)
    if limit < 1:
        raise ApiError(f"max_tokens must be at least 1, got {limit}.", param="max_tokens")
    return limit


def _ask(
    fields: Fields,
    options: Options,
    *,
    prompts: tuple[Prompt, ...],
    max_tokens: int | None,
    thinking: bool = False,
    tool: Tool | None = None,
    tool_is_named: bool = False,
) -> Ask:
    fields.check_sampling()
    stream = fields.boolean("stream")
    stream_options = fields.object("stream_options")
    if stream_options and not stream:
        raise ApiError("Stream options can only be defined when `stream=True`.", param="stream_options")
    n = fields.integer("n")
    if n is not None and not 1 <= n <= _MAX_CHOICES:
        raise ApiError(f"n must be at least 1 and at most {_MAX_CHOICES}, got {n}.")
    return Ask(
        model=options.names[0],
        prompts=prompts,
        n=1 if n is None else n,
        max_tokens=max_tokens,
        min_tokens=fields.integer("min_tokens") or 0,
        ignore_eos=fields.boolean("ignore_eos"),
        seed=fields.integer("seed"),
        stop=fields.stop(),
        include_stop=fields.boolean("include_stop_str_in_output"),
        stream=stream,
        include_usage=bool(stream_options.get("include_usage")),
        continuous_usage=bool(stream_options.get("continuous_usage_stats")),
        thinking=thinking,
        tool=tool,
        tool_is_named=tool_is_named,
    )


def _thinks(fields: Fields, options: Options) -> bool:
    """The request decides, then its effort, then the server's default."""
    asked = fields.object("chat_template_kwargs").get("enable_thinking")
    if asked is not None:
        return bool(asked)
    effort = fields.body.get("reasoning_effort")
    return options.thinking if effort is None else effort != "none"


def _check_tool_choice(choice: Any, tools: tuple[Tool, ...], options: Options) -> None:  # noqa: ANN401 - JSON
    if choice == "none":
        return
    if not tools:
        raise ApiError("When using `tool_choice`, `tools` must be set.", param="tool_choice")
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if name not in {tool.name for tool in tools}:
            raise ApiError(
                "The tool specified in `tool_choice` does not match any of the specified `tools`.",
                param="tool_choice.function.name",
            )
        wanted = f'function "{name}"'
    elif choice in {"auto", "required"}:
        wanted = '"required"'
    else:
        raise ApiError(
            f"Invalid value for `tool_choice`: {choice}! Only named tools, "
            '"none", "auto" or "required" are supported.',
            param="tool_choice",
        )
    if not options.auto_tool_choice:
        if choice == "auto":
            raise ApiError(
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            )
        raise ApiError(f"tool_choice={wanted} requires --tool-call-parser to be set")


def _text_prompts(prompt: Any) -> tuple[Prompt, ...]:  # noqa: ANN401 - any JSON value
    """A string, a list of token ids, or a list of either."""
    if isinstance(prompt, str):
        return (Prompt(text=prompt, tokens=max(1, count_tokens(prompt))),)
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, int) for item in prompt):
            return (Prompt(text=str(prompt), tokens=len(prompt)),)
        return tuple(one for item in prompt for one in _text_prompts(item))
    raise wrong_type("prompt", "string or list of token ids", prompt)
