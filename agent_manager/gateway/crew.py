"""Whom a catalog has the gateway serve, and what each of its parts has to know of that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from agent_manager.errors import AgentManagerError, HostNotReady
from agent_manager.gateway.guard import Guard, read_key
from agent_manager.gateway.routing import Names
from agent_manager.swap.desk import Desk
from agent_manager.swap.events import Goal
from agent_manager.swap.history import StartHistory
from agent_manager.swap.notices import Remark
from agent_manager.swap.operations import newcomer_of
from agent_manager.swap.prepare import prepare
from agent_manager.swap.schedule import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_manager.catalog.agents import Catalog
    from agent_manager.runtimes.base import InstanceSpec
    from agent_manager.swap.controller import Newcomer
    from agent_manager.swap.host import Host
    from agent_manager.swap.notices import Listener
    from agent_manager.swap.prepare import Prepared


class Crew(Struct, frozen=True, kw_only=True):
    """The agents that can be served, and why the others cannot."""

    ready: Mapping[str, Prepared]
    absent: Mapping[str, AgentManagerError]

    @property
    def any(self) -> Prepared:
        """One of them: engine and card are the same for all."""
        return next(iter(self.ready.values()))

    def goal(self, agent: str | None) -> Goal | None:
        """That agent on the card; None for one that cannot be served, or for nobody."""
        ready = self.ready.get(agent or "")
        return Goal(agent=ready.spec.agent, claim_bytes=ready.spec.claim_bytes) if ready else None

    def newcomers(self, host: Host) -> dict[str, Newcomer]:
        """What the controller has to know of each."""
        return {name: newcomer_of(host, ready) for name, ready in self.ready.items()}

    def desk(self, host: Host) -> Desk:
        """What the policy has to know."""
        settings = host.catalog.gateway
        specs = {ready.spec.agent: ready.spec for ready in self.ready.values()}
        starts = StartHistory(host.state)
        took_s = {name: starts.last(spec) for name, spec in specs.items()}
        return Desk(
            settings=Settings(
                max_wait_s=settings.max_wait_s,
                keep_alive_s=settings.keep_alive_s,
                keep_alive_of_s={name: _keep_alive_s(host.catalog, spec) for name, spec in specs.items()},
            ),
            group_of={name: ready.spec.agent for name, ready in self.ready.items()},
            default=self.goal(settings.default),
            swap_cost_s={name: start.seconds for name, start in took_s.items() if start is not None},
        )


async def gather(host: Host, listener: Listener) -> Crew:
    """Prepare every agent of the catalog, and tell who cannot be served.

    Raises what keeps the first agent from being served when none can be, and HostNotReady.
    """
    ready: dict[str, Prepared] = {}
    absent: dict[str, AgentManagerError] = {}
    for name in host.catalog.agents:
        if name in ready or name in absent:
            continue  # it shares the instance of an earlier one
        names = host.catalog.joint(name).names
        try:
            ready |= dict.fromkeys(names, await prepare(host, name, pull=False, listener=listener))
        except HostNotReady:
            raise
        except AgentManagerError as error:
            absent |= dict.fromkeys(names, error)
            told = f"{' and '.join(names)} cannot be served: {error.message}"
            listener(Remark(message=told, warning=True))
    if not ready:
        raise next(iter(absent.values()))
    return Crew(ready=ready, absent=absent)


def names_of(catalog: Catalog) -> Names:
    """What clients may call the agents."""
    agents = catalog.agents.values()
    return Names(agents, {alias: agent.name for agent in agents for alias in agent.aliases})


def ports_of(catalog: Catalog) -> dict[int, str | None]:
    """Where the gateway listens, and for whom; None is the common port."""
    return {catalog.gateway.port: None} | {agent.port: name for name, agent in catalog.agents.items()}


def guard_of(host: Host, listener: Listener) -> Guard:
    """Who may talk to the gateway. Raises UsageError when the key is not where the catalog says."""
    settings = host.catalog.gateway
    key = read_key(settings, host.environ, lambda text: listener(Remark(message=text, warning=True)))
    return Guard(key=key, origins=frozenset(settings.origins))


def _keep_alive_s(catalog: Catalog, spec: InstanceSpec) -> float:
    """The longest of those who share the instance; a negative one is for ever."""
    own = (catalog.agents[name].keep_alive_s for name in spec.agents)
    wanted = [catalog.gateway.keep_alive_s if each is None else each for each in own]
    return min(wanted) if min(wanted) < 0 else max(wanted)
