"""Where a request goes: by the port it came to, or by the model it names. Pure.

An engine's paths are let through by name. Everything else an engine serves is for those who run it, vLLM's
development endpoints (`/sleep`, `/collective_rpc`) above all; a path is compared as it came, undecoded, so that no
way of writing it differently leads there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.gateway.tickets import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent_manager.catalog.agents import Agent

ENGINE_PATHS: Final = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/rerank",
        "/v1/score",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/rerank",
        "/score",
        "/classify",
        "/pooling",
        "/tokenize",
        "/detokenize",
    }
)
"""What clients ask of an engine."""
UPSTREAM_PATHS: Final = ENGINE_PATHS | {"/health", "/metrics", "/version", "/v1/models", "/ping", "/load"}
"""What may be asked of one engine under `/upstream/AGENT`: these tell of it and change nothing."""
OWN_PATHS: Final = frozenset({"/v1/models", "/health", "/running", "/metrics", "/unload"})
"""What the gateway answers itself, on every port."""

_UPSTREAM: Final = "/upstream/"
_RESPONSES: Final = "/v1/responses/"
_ID: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class Own(Struct, frozen=True):
    """The gateway answers. `name` is what follows `/v1/models/`, if anything does."""

    path: str
    name: str | None = None


class ToAgent(Struct, frozen=True):
    """An engine answers, at `path`. `agent` None: the request's `model` says whose."""

    path: str
    agent: str | None


class Names:
    """What clients may call the agents: by name, by alias, by the repository of their model.

    A repository that several agents share means the first of them in the catalog.
    """

    def __init__(self, agents: Iterable[Agent], aliases: Mapping[str, str]) -> None:
        """`aliases` leads to agents' names."""
        self._agents: dict[str, str] = {}
        every = tuple(agents)
        for agent in every:
            self._agents.setdefault(agent.model.repo or agent.model.name, agent.name)
        self._agents |= dict(aliases) | {agent.name: agent.name for agent in every}
        self.agents = tuple(agent.name for agent in every)

    def agent(self, name: str) -> str:
        """The agent that is meant. Raises RefusedError, with the names there are."""
        try:
            return self._agents[name]
        except KeyError:
            there = ", ".join(self.agents)
            raise RefusedError(
                404, "model_not_found", f"there is no model '{name[:100]}'; there are: {there}"
            ) from None


def route(method: str, path: str, *, door: str | None) -> Own | ToAgent:
    """Where `path` (without its query) leads. `door` is the agent whose port it came to, None for the common one.

    Raises RefusedError for what does not exist or is not for clients.
    """
    if path in OWN_PATHS:
        wanted = "POST" if path == "/unload" else "GET"
        if method not in (wanted, "HEAD" if wanted == "GET" else wanted):
            raise RefusedError(405, "method_not_allowed", f"{path} takes {wanted}")
        return Own(path)
    if path.startswith("/v1/models/") and method == "GET":
        return Own("/v1/models", path.removeprefix("/v1/models/"))
    to = _to_agent(path, door)
    if to is None:
        raise RefusedError(404, "not_found", f"there is no {path[:100]} here")
    methods = _methods(to.path)
    if method not in methods:
        raise RefusedError(405, "method_not_allowed", f"{path[:100]} takes {' or '.join(methods)}")
    return to


def _to_agent(path: str, door: str | None) -> ToAgent | None:
    if path in ENGINE_PATHS:
        return ToAgent(path, door)
    if path.startswith(_RESPONSES) and door is not None and _is_response(path.removeprefix(_RESPONSES)):
        return ToAgent(path, door)
    if path.startswith(_UPSTREAM):
        agent, slash, rest = path.removeprefix(_UPSTREAM).partition("/")
        if slash + rest in UPSTREAM_PATHS:
            return ToAgent(slash + rest, agent)
    return None


def _methods(path: str) -> tuple[str, ...]:
    """How an engine is asked at `path`."""
    if path in ENGINE_PATHS or path.endswith("/cancel"):
        return ("POST",)
    return ("GET", "DELETE") if path.startswith(_RESPONSES) else ("GET",)


def _is_response(rest: str) -> bool:
    """`ID` or `ID/cancel` of a stored response."""
    name, slash, verb = rest.partition("/")
    return bool(name) and set(name) <= _ID and slash + verb in ("", "/cancel")
