"""What must hold between values of models.yaml: references lead somewhere, ports do not meet, choices are made.

Works on the plain data, before or without the schema's verdict, so that one report has every problem. Values of a
wrong type are passed over: the schema reports them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_manager.catalog.agents import ENGINE_PORT_OFFSET, GATEWAY_PORT
from agent_manager.catalog.values import did_you_mean, is_loopback, resolved, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent_manager.catalog.document import Document, Place

Mapped = dict[str, object]


def check(document: Document) -> None:
    """Add what is wrong between values to the document's problems."""
    top = _mapping(document.data)
    models = _mapping(top.get("models"))
    agents = _mapping(top.get("agents"))
    _check_models(document, models)
    _check_references(document, ("agents",), agents, models)
    _check_ports(document, agents, _mapping(top.get("gateway")))
    _check_aliases(document, agents)
    _check_gateway(document, _mapping(top.get("gateway")), agents)
    faults = _mapping(_mapping(_mapping(top.get("engines")).get("simulated")).get("faults"))
    _check_known(document, ("engines", "simulated", "faults"), faults, agents)
    for name, profile in _sections(top.get("profiles")):
        place = ("profiles", name, "agents")
        overlays = _mapping(profile.get("agents"))
        _check_known(document, place, overlays, agents)
        _check_references(document, place, overlays, models)


def _mapping(value: object) -> Mapped:
    return value if isinstance(value, dict) else {}


def _sections(value: object) -> Iterator[tuple[str, Mapped]]:
    for name, section in _mapping(value).items():
        if isinstance(section, dict):
            yield name, section


def _check_models(document: Document, models: Mapped) -> None:
    for name, model in _sections(models):
        place: Place = ("models", name)
        declared = {
            key
            for key in ("repo", "path")
            if resolved(model.get(key)) is not None or (*place, key) in document.spoiled
        }
        if not declared:
            document.report(
                place, "says neither repo nor path", "add 'repo: Organisation/Name', or 'path:' and a folder"
            )
        elif len(declared) > 1:
            document.report(
                place, "says both repo and path", "keep one: the Hub repository or the local folder"
            )
        elif declared == {"path"} and "revision" in model:
            document.report((*place, "revision"), "a folder has no revision", "remove it")


def _check_references(document: Document, place: Place, agents: Mapped, models: Mapped) -> None:
    for name, agent in _sections(agents):
        model = agent.get("model")
        if isinstance(model, str) and model not in models:
            hint = did_you_mean(model, models) or "declare it under models"
            document.report((*place, name, "model"), f"no model named '{shown(model)}' under models", hint)


def _check_known(document: Document, place: Place, named: Mapped, agents: Mapped) -> None:
    for name in named:
        if name not in agents:
            hint = did_you_mean(name, agents) or "declare it under agents"
            message = f"no agent named '{shown(name)}' under agents"
            document.report((*place, name), message, hint)


def _check_aliases(document: Document, agents: Mapped) -> None:
    """A name means one agent."""
    meant = {name: f"agent {shown(name)} itself" for name in agents}
    for name, agent in _sections(agents):
        aliases = agent.get("aliases")
        for index, alias in enumerate(aliases if isinstance(aliases, list) else ()):
            if isinstance(alias, str) and alias in meant:
                message = f"'{shown(alias)}' means {meant[alias]} already"
                document.report(("agents", name, "aliases", index), message, "choose another alias")
            elif isinstance(alias, str):
                meant[alias] = f"agent {shown(name)}"


def _check_gateway(document: Document, gateway: Mapped, agents: Mapped) -> None:
    for key in ("default", "preload"):
        name = resolved(gateway.get(key))
        if isinstance(name, str) and name not in agents:
            hint = did_you_mean(name, agents) or "declare it under agents"
            document.report(("gateway", key), f"no agent named '{shown(name)}' under agents", hint)
    host = resolved(gateway.get("host", "127.0.0.1"))
    keyed = {"api_key_env", "api_key_file"} & gateway.keys()
    if isinstance(host, str) and not is_loopback(host) and not keyed:
        hint = "add 'api_key_env: AGENT_MANAGER_API_KEY' beside it, or listen on 127.0.0.1"
        document.report(
            ("gateway", "host"), f"{shown(host)} is open to others, and no key is asked for", hint
        )
    if len(keyed) > 1:
        document.report(
            ("gateway", "api_key_file"), "there is a key in api_key_env already", "keep one of the two"
        )


def _check_ports(document: Document, agents: Mapped, gateway: Mapped) -> None:
    """Each agent takes two ports: its own, and its engine's, 100 above; the gateway takes one for all."""
    taken: dict[int, str] = {}
    common = resolved(gateway.get("port", GATEWAY_PORT))
    if gateway and type(common) is int:
        taken[common] = "the gateway"
    for name, agent in _sections(agents):
        port = resolved(agent.get("port"))
        if type(port) is not int:
            continue
        _check_port(document, name, port, taken)
        taken.setdefault(port, f"agent {shown(name)}")
        taken.setdefault(port + ENGINE_PORT_OFFSET, f"the engine of agent {shown(name)}")


def _check_port(document: Document, name: str, port: int, taken: Mapping[int, str]) -> None:
    place: Place = ("agents", name, "port")
    engine_port = port + ENGINE_PORT_OFFSET
    if port in taken:
        document.report(place, f"port {port} is taken by {taken[port]}", "give each agent its own")
    elif engine_port in taken:
        document.report(
            place,
            f"its engine's port {engine_port} is taken by {taken[engine_port]}",
            f"engines listen {ENGINE_PORT_OFFSET} above their agent: choose another port",
        )
