"""What a request says for its agent where its client said nothing: system prompt, sampling, thinking. Pure.

An engine that serves one agent has that agent's sampling and thinking on its command line. One that several agents
share has nobody's, and each request brings its agent's. So each default is applied once, here or there, and to the
same effect: what a client says wins, `null` says nothing, and `max_new_tokens` bounds what it says. Of sampling,
Anthropic's API (`/v1/messages`) knows temperature, top_p and top_k; the others are not applied there.

No engine has a flag for a system prompt: it is added here for every agent that has one, to requests that bring none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_manager.catalog.agents import Agent, Catalog

Document: TypeAlias = dict[str, Any]
"""A JSON object."""

_CHAT: Final = "/v1/chat/completions"
_TEXT: Final = "/v1/completions"
_RESPONSES: Final = "/v1/responses"
_MESSAGES: Final = "/v1/messages"
_COUNT: Final = "/v1/messages/count_tokens"
_TOKENIZE: Final = "/tokenize"

_OF_ANTHROPIC: Final = frozenset({"temperature", "top_p", "top_k"})
_OF_OPENAI: Final = _OF_ANTHROPIC | {
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
}
_SAMPLING: Final = {_CHAT: _OF_OPENAI, _TEXT: _OF_OPENAI, _RESPONSES: _OF_OPENAI, _MESSAGES: _OF_ANTHROPIC}
"""The fields that have the names of vLLM's generation config. OpenAI's lack some; vLLM takes all of them."""
_LIMITS: Final = {
    _CHAT: ("max_completion_tokens", "max_tokens"),
    _TEXT: ("max_tokens",),
    _RESPONSES: ("max_output_tokens",),
    _MESSAGES: ("max_tokens",),
}
"""Where a request says how long its answer may be; the first one that is there counts."""
_UNLIMITED_TEXT: Final = 16
"""What vLLM takes for the `max_tokens` of a completion without one."""
_TEMPLATED: Final = frozenset({_CHAT, _RESPONSES, _MESSAGES, _COUNT, _TOKENIZE})
"""What goes through the model's chat template."""
_SYSTEM_ROLES: Final = frozenset({"system", "developer"})


class Manners(Struct, frozen=True, kw_only=True):
    """How the requests of `agent` are completed. `served_as` is what its engine calls itself in every reply.

    `shared`: the engine serves other agents as well.
    """

    agent: Agent
    served_as: str
    shared: bool

    def complete(self, document: Document, path: str) -> Document:
        """The request to `path` as the engine gets it; `document` itself when there is nothing to add."""
        return apply(document, path, self.agent, shared=self.shared)


def manners_of(catalog: Catalog) -> dict[str, Manners]:
    """Those of the agents whose requests may need completing, by name."""
    found: dict[str, Manners] = {}
    for agent in catalog.agents.values():
        joint = catalog.joint(agent.name)
        if joint.shared_with or agent.system:
            shared = bool(joint.shared_with)
            found[agent.name] = Manners(agent=agent, served_as=joint.name, shared=shared)
    return found


def apply(document: Document, path: str, agent: Agent, *, shared: bool) -> Document:
    """The request `document` to `path`, with what `agent` says where it says nothing.

    `document` itself, untouched, when nothing is to be added. What is not as the API has it is left to the engine
    to refuse.
    """
    added = _system(document, path, agent.system) if agent.system else {}
    if shared:
        if document.get("model") is None:
            added["model"] = agent.name
        added |= _sampling(document, path, agent.sampling) | _thinking(document, path, agent.thinking)
    return {**document, **added} if added else document


def _system(document: Document, path: str, prompt: str) -> Document:
    if path in (_CHAT, _TOKENIZE):
        messages = document.get("messages")
        if isinstance(messages, list) and messages and not _has_system(messages):
            return {"messages": [{"role": "system", "content": prompt}, *messages]}
    elif path == _RESPONSES:
        if document.get("instructions") is None and not _has_system(document.get("input")):
            return {"instructions": prompt}
    elif path in (_MESSAGES, _COUNT):  # noqa: SIM102 - one question, one line, as above
        if document.get("system") is None and not _has_system(document.get("messages")):
            return {"system": prompt}
    return {}


def _has_system(messages: object) -> bool:
    return isinstance(messages, list) and any(
        isinstance(each, dict) and each.get("role") in _SYSTEM_ROLES for each in messages
    )


def _sampling(document: Document, path: str, sampling: Mapping[str, float | int]) -> Document:
    known = _SAMPLING.get(path, frozenset())
    added: Document = {
        name: value for name, value in sampling.items() if name in known and document.get(name) is None
    }
    most = sampling.get("max_new_tokens")
    return added if most is None or not known else added | _limit(document, path, int(most))


def _limit(document: Document, path: str, most: int) -> Document:
    for name in _LIMITS[path]:
        asked = document.get(name)
        if asked is not None:
            return {name: most} if isinstance(asked, int) and asked > most else {}
    if path == _MESSAGES or (path == _TEXT and most >= _UNLIMITED_TEXT):
        return {}  # Anthropic's API demands one, and that of a completion is lower already
    return {_LIMITS[path][0]: most}


def _thinking(document: Document, path: str, thinking: bool | None) -> Document:  # noqa: FBT001 - as the catalog has it
    chat = path in _TEMPLATED and (path != _TOKENIZE or "messages" in document)
    given = document.get("chat_template_kwargs")
    kwargs = {} if given is None else given
    if thinking is None or not chat or not isinstance(kwargs, dict):
        return {}
    if "enable_thinking" in kwargs or _says_effort(document):
        return {}
    return {"chat_template_kwargs": {**kwargs, "enable_thinking": thinking}}


def _says_effort(document: Document) -> bool:
    """Whether the client says how much to think: vLLM then makes `enable_thinking` of that."""
    return (
        document.get("reasoning_effort") is not None
        or _inner(document, "reasoning", "effort") is not None
        or _inner(document, "output_config", "effort") is not None
        or _inner(document, "thinking", "type") == "disabled"
    )


def _inner(document: Document, outer: str, name: str) -> object:
    value = document.get(outer)
    return value.get(name) if isinstance(value, dict) else None
