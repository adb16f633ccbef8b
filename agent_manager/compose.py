"""From an agent that fits to a compose document: the container that serves it, as a dict and as YAML. Pure.

One agent is one file and one compose project, `agent-manager-<agent>`. Whatever comes from the catalog is text
in the document and nothing else: `$` is doubled, since compose would read `${...}` as a variable, and the YAML
is made by PyYAML with every text in quotes that any reader of YAML could take for something else.

In a document for one machine (`here`) nothing is left open. In one that is kept in a repository (`REFERENCE`)
the Hub cache, the GPU and a commit that nobody has pinned yet are variables of compose.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import yaml
from msgspec import Struct
from msgspec.structs import replace

from agent_manager.catalog.document import LOADER
from agent_manager.engines.base import CardKind, Source
from agent_manager.engines.simulated.settings import CARD_DIR
from agent_manager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent_manager.catalog.agents import Agent, EngineSettings
    from agent_manager.engines.base import Engine
    from agent_manager.planning.base import Fit

Document: TypeAlias = dict[str, Any]
"""A compose document: dicts, lists, texts, numbers and truth values."""

PORT: Final = 8000
"""Where an engine listens inside its container; the host's ports lead to it."""
HUB: Final = "/hub"
MODEL: Final = "/model"
CARD: Final = "/card"
CACHE: Final = "/root/.cache/vllm"
"""vLLM's VLLM_CACHE_ROOT: compiled graphs and tuned kernels, which a second start need not make again."""
CACHE_VOLUME: Final = "cache"
AGENT_LABEL: Final = "io.agent-manager.agent"

_EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - inside the container; its ports are published on loopback
_LOOPBACK: Final = "127.0.0.1"
_UNPINNED: Final = "\0unpinned\0"
_NO_FOLDING: Final = 1 << 30
_PLAIN: Final = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")


class Place(Struct, frozen=True, kw_only=True):
    """The machine a document is for, as compose reads it: `$` is doubled, `${NAME}` is a variable.

    `hub_cache` is the host's Hub cache, `gpu` an index or UUID, `card_dir` the folder of the simulated card and
    `user` (`uid:gid`) who owns it. `publish_agent` is False when a gateway listens on the agent's port.
    `start_interval`: this Docker (25 or newer) can check a starting container more often than a running one.
    """

    hub_cache: str
    gpu: str
    card_dir: str | None = None
    user: str | None = None
    publish_agent: bool = True
    start_interval: bool = False


REFERENCE: Final = Place(hub_cache="${HF_HUB_CACHE:-~/.cache/huggingface/hub}", gpu="${AGENT_MANAGER_GPU:-0}")
"""Any machine."""


def here(
    *,
    hub_cache: Path,
    gpu: str,
    card_dir: Path | None = None,
    user: str | None = None,
    publish_agent: bool = True,
    docker_version: int = 0,
) -> Place:
    """One machine, with nothing left open. `docker_version` is the major one, such as 25."""
    return Place(
        hub_cache=_literal(str(hub_cache)),
        gpu=_literal(gpu),
        card_dir=None if card_dir is None else _literal(str(card_dir)),
        user=user,
        publish_agent=publish_agent,
        start_interval=docker_version >= 25,  # noqa: PLR2004 - Docker 25 brought start_interval
    )


def project_of(agent: str) -> str:
    """The name of an agent's compose project, and of its container."""
    return f"agent-manager-{agent}"


def revision_variable(agent: str) -> str:
    """The variable that holds the commit of an agent's model while none is pinned."""
    return f"AGENT_MANAGER_{agent.upper().replace('-', '_')}_REVISION"


def render(
    agent: Agent, fit: Fit, source: Source, settings: EngineSettings, engine: Engine, place: Place
) -> Document:
    """The document that serves `agent` as `fit` allows, on `place`.

    Of `source` the repository and its commit count, and whether it is a folder; what the container sees of it is
    decided here. Raises UsageError for an engine without an image.
    """
    if settings.image is None:
        raise UsageError(
            f"engine {engine.name} has no container image",
            hint=f"name one in models.yaml (engines.{engine.name}.image), or use --runtime process",
            where=f"engines.{engine.name}.image",
        )
    project = project_of(agent.name)
    service: Document = {
        "container_name": project,
        "image": _literal(settings.image),
        "command": _arguments(agent, fit, source, settings, engine),
        "environment": _environment(agent, fit, source, settings, engine),
        "volumes": list(_volumes(agent, engine, place)),
        "ports": list(_ports(agent, place)),
        **_card(engine, place),
        **_life(place),
        **_confinement(engine, place),
        "labels": {AGENT_LABEL: agent.name},
    }
    document: Document = {"name": project, "services": {agent.name: service}}
    if not engine.simulated:
        document["volumes"] = {CACHE_VOLUME: {}}
    return document


def command_line(document: Document) -> tuple[str, ...]:
    """What the container of a document runs, as a person reads it: the image, and what follows its entrypoint."""
    (service,) = document["services"].values()
    return tuple(word.replace("$$", "$") for word in (service["image"], *service["command"]))


def to_yaml(document: Document) -> str:
    """The document as YAML; `parse` gives it back."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=_NO_FOLDING)


def parse(text: str) -> Document:
    """The document that `to_yaml` wrote. Raises ValueError for what is none."""
    try:
        document = yaml.load(text, Loader=LOADER)  # noqa: S506 - a safe one
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("services"), dict):
        raise ValueError("not a compose document")  # noqa: TRY004 - whatever is wrong with it, it is the text's value
    return document


def _arguments(agent: Agent, fit: Fit, source: Source, settings: EngineSettings, engine: Engine) -> list[str]:
    inside = _inside(agent, source)
    if inside.revision is None and agent.model.path is None and not engine.simulated:
        inside = replace(inside, revision=_UNPINNED)
    command = engine.command(agent, fit, inside, settings, port=PORT, host=_EVERYWHERE)
    pull = f"not pinned yet, run agent-manager pull {agent.name}"
    unpinned = f"${{{revision_variable(agent.name)}:?{pull}}}"
    return [unpinned if text == _UNPINNED else _literal(text) for text in command.arguments]


def _environment(
    agent: Agent, fit: Fit, source: Source, settings: EngineSettings, engine: Engine
) -> dict[str, str]:
    command = engine.command(agent, fit, _inside(agent, source), settings, port=PORT, host=_EVERYWHERE)
    environment = {name: _literal(value) for name, value in command.env.items()}
    if engine.card_kind is CardKind.SIMULATED:
        environment[CARD_DIR] = CARD
    return environment


def _inside(agent: Agent, source: Source) -> Source:
    """Where the container finds the model."""
    if agent.model.path is not None:
        return Source(model=MODEL)
    return Source(model=source.model, revision=source.revision, hub_cache=HUB)


def _volumes(agent: Agent, engine: Engine, place: Place) -> Iterator[Document]:
    if agent.model.path is not None:
        yield _bind(_literal(str(agent.model.path)), MODEL, read_only=True)
    elif not engine.simulated:
        yield _bind(place.hub_cache, HUB, read_only=True)
    if engine.simulated:
        if place.card_dir is not None:
            yield _bind(place.card_dir, CARD)
    else:
        yield {"type": "volume", "source": CACHE_VOLUME, "target": CACHE}


def _bind(source: str, target: str, *, read_only: bool = False) -> Document:
    """A folder of the host, which must be there: Docker would make an empty one that belongs to root."""
    mount: Document = {"type": "bind", "source": source, "target": target}
    if read_only:
        mount["read_only"] = True
    return mount | {"bind": {"create_host_path": False}}


def _ports(agent: Agent, place: Place) -> Iterator[str]:
    yield f"{_LOOPBACK}:{agent.engine_port}:{PORT}"
    if place.publish_agent:
        yield f"{_LOOPBACK}:{agent.port}:{PORT}"


def _card(engine: Engine, place: Place) -> Document:
    if engine.card_kind is not CardKind.GPU:
        return {}
    device = {"driver": "nvidia", "device_ids": [place.gpu], "capabilities": ["gpu"]}
    return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}


def _life(place: Place) -> Document:
    """How it starts, is watched and ends. Docker never restarts it: whoever owns the card does."""
    healthcheck: Document = {
        "test": ["CMD", "curl", "-sf", f"http://{_LOOPBACK}:{PORT}/health"],
        "interval": "30s",
        "timeout": "10s",
        "retries": 3,
        "start_period": "10m",
    }
    if place.start_interval:
        healthcheck["start_interval"] = "5s"
    return {
        "healthcheck": healthcheck,
        "init": True,
        "restart": "no",
        "stop_grace_period": "45s",
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
        "network_mode": "bridge",
    }


def _confinement(engine: Engine, place: Place) -> Document:
    """What it may do. DAC_OVERRIDE: checkpoint files are often 0600 of the user, and root without it is nobody."""
    common: Document = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
    if engine.simulated:
        return common | ({"user": place.user} if place.user else {})
    numa = ["SYS_NICE"] if engine.card_kind is CardKind.CPU else []
    return common | {"cap_add": ["DAC_OVERRIDE", *numa], "shm_size": "4g"}


def _literal(text: str) -> str:
    return text.replace("$", "$$")


class _Dumper(yaml.SafeDumper):
    """Quotes more than it must: readers of YAML differ in what they take for a number (`1e3`, `0o17`)."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - PyYAML's signature
        """Indent lists below their key."""
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
        """Write everything out."""
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if _PLAIN.fullmatch(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
