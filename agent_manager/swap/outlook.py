"""What would fit a card and why, before anything is fetched, started or even installed. Touches nothing."""

from __future__ import annotations

import asyncio
import math
from itertools import combinations
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.catalog.load import load_catalog
from agent_manager.checkpoints.facts import Shape
from agent_manager.engines.registry import engine_named
from agent_manager.gpu.base import GIB
from agent_manager.planning.base import Budget, Fit, Shortfall
from agent_manager.planning.basis import basis_of
from agent_manager.planning.speed import Speed, expected_tokens_per_s
from agent_manager.planning.support import caveat, unsupported
from agent_manager.planning.vram import DESKTOP_BYTES, attempt, plan
from agent_manager.swap.footprints import Footprints, setup_of
from agent_manager.swap.planned_card import choose_card
from agent_manager.swap.prepare import demand_of
from agent_manager.swap.reference import DEFAULT_ENGINE
from agent_manager.swap.wanted import alternatives, known_of, wanted_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from agent_manager.catalog.agents import Agent
    from agent_manager.engines.base import Engine
    from agent_manager.gpu.base import GpuFacts
    from agent_manager.planning.base import Demand, Measured
    from agent_manager.swap.host import Host
    from agent_manager.swap.planned_card import PlannedCard
    from agent_manager.swap.wanted import Known, Wanted

_MOST_TOGETHER: Final = 10
"""Above so many agents only pairs are tried: the sets double with each agent."""


class Option(Struct, frozen=True, kw_only=True):
    """What would make an agent fit, in one line; `changes` are fields of the catalog, empty for another card."""

    message: str
    changes: Mapping[str, str | int]


class AgentOutlook(Struct, frozen=True, kw_only=True):
    """How one agent would do on the card.

    `answer` is None where nothing is known of its checkpoint, and `problems` says why. The sizes are the parts of
    the fit, or of what a shortfall would take at least, for one request of the full context; None where nothing is
    known. `tokens_per_s` is derived, for one request at a time. `download_bytes` is 0 for what is on disk.
    `notes`: where figures come from. `problems`: what keeps it from running, whatever its memory. `declared` is
    False for a model by itself, which is planned with settings of its own.
    """

    agent: Agent
    declared: bool
    answer: Fit | Shortfall | None
    weights_bytes: int | None = None
    overhead_bytes: int | None = None
    kv_cache_bytes: int | None = None
    tokens_per_s: Speed | None = None
    download_bytes: int | None = None
    options: tuple[Option, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def fit(self) -> Fit | None:
        """The answer, if it fits."""
        return self.answer if isinstance(self.answer, Fit) else None

    @property
    def fits(self) -> bool | None:
        """Whether it fits and nothing else keeps it from running; None where nothing is known."""
        return None if self.answer is None else self.fit is not None and not self.problems


class Together(Struct, frozen=True, kw_only=True):
    """Agents that could be on the card at once, each with one request of its full context at least.

    `utilization`: the `gpu_memory_utilization` each would need, in the same order; None on the CPU.
    """

    agents: tuple[str, ...]
    utilization: tuple[float | None, ...]


class Outlook(Struct, frozen=True, kw_only=True):
    """The whole answer. `together`: the largest sets of agents, none within another."""

    engine: str
    card: PlannedCard
    agents: tuple[AgentOutlook, ...]
    together: tuple[Together, ...]


class _Scene(Struct, frozen=True, kw_only=True):
    """What every agent is planned for."""

    host: Host
    engine: Engine
    card: PlannedCard


class _Subject(Struct, frozen=True, kw_only=True):
    """One agent, what is known of its model, and what it asks of the card."""

    wanted: Wanted
    known: Known
    demand: Demand

    @property
    def name(self) -> str:
        return self.wanted.agent.name


async def look_ahead(host: Host, names: Sequence[str] = (), *, asked: PlannedCard | None = None) -> Outlook:
    """How the named agents, models or Hub repositories would do on a card; without names, all agents.

    `asked` is a card of some size; None: the one in this machine, else the reference card. Reads this disk, and the
    Hub for what neither it nor the program knows. Raises AgentUnknown or UsageError for a name, and as `choose_card`.
    """
    engine = engine_named(host.engine or host.catalog.engine or DEFAULT_ENGINE, host.state)
    scene = _Scene(host=host, engine=engine, card=await choose_card(host, engine, asked))
    wanted = [wanted_of(host.catalog, name, engine.budget) for name in names or host.catalog.agents]
    models = {each.agent.model.name: each.agent.model for each in wanted}
    found = await asyncio.gather(
        *(known_of(host, model, ask_hub=not engine.simulated) for model in models.values())
    )
    known = dict(zip(models, found, strict=True))
    subjects = [_subject(scene, each, known[each.agent.model.name]) for each in wanted]
    agents = await asyncio.to_thread(lambda: tuple(_outlook(scene, subject) for subject in subjects))
    together = _together(subjects, scene.card.total_bytes)
    return Outlook(engine=engine.name, card=scene.card, agents=agents, together=together)


def _subject(scene: _Scene, wanted: Wanted, known: Known) -> _Subject:
    shape = known.facts.shape if known.facts else None
    if not wanted.declared and isinstance(shape, Shape):
        context = min(wanted.agent.context, shape.max_position_embeddings)
        wanted = replace(wanted, agent=replace(wanted.agent, context=context))
    settings = scene.host.catalog.engines[scene.engine.name]
    measured = _measured(scene, wanted.agent, known)
    demand = demand_of(wanted.agent, scene.engine, settings, known.facts, measured)
    return _Subject(wanted=wanted, known=known, demand=demand)


def _measured(scene: _Scene, agent: Agent, known: Known) -> Measured | None:
    """What this agent took on this very card; a card of some size was never measured."""
    host, engine = scene.host, scene.engine
    if scene.card.card is None:
        return None
    setup = setup_of(
        agent,
        engine,
        host.catalog.engines[engine.name],
        scene.card.card,
        runtime=host.runtime or host.catalog.runtime or engine.default_runtime,
        revision=known.revision,
        facts=known.facts,
    )
    return Footprints(host.state).last(setup)


def _outlook(scene: _Scene, subject: _Subject) -> AgentOutlook:
    agent, known = subject.wanted.agent, subject.known
    outlook = AgentOutlook(
        agent=agent,
        declared=subject.wanted.declared,
        answer=None,
        download_bytes=known.download_bytes,
        notes=(known.note,) if known.note else (),
    )
    if known.reason is not None:
        return _unplanned(outlook, known, known.reason)
    outlook = _on_gpu(outlook, subject, scene.card.gpu)
    fit = attempt(subject.demand, scene.card.total_bytes)
    if isinstance(fit, Fit):
        return _fitting(outlook, fit, _speed(subject.demand, fit, scene.card))
    shortfall = plan(subject.demand, scene.card.total_bytes, alternatives=alternatives(scene.host))
    options = tuple(_options(scene, subject, shortfall)) if isinstance(shortfall, Shortfall) else ()
    return replace(_asking(outlook, subject.demand), answer=shortfall, options=(*outlook.options, *options))


def _on_gpu(outlook: AgentOutlook, subject: _Subject, gpu: GpuFacts | None) -> AgentOutlook:
    """What the GPU and its driver say to the checkpoint, whatever its size."""
    facts = subject.known.facts
    if facts is None or gpu is None:
        return outlook
    capability, dtype = gpu.compute_capability, subject.demand.kv_cache_dtype
    obstacle = unsupported(facts, capability, gpu.driver_version, kv_cache_dtype=dtype)
    if obstacle is not None:
        options = (Option(message=obstacle.hint, changes={}),)
        return replace(outlook, problems=(obstacle.message,), options=options)
    slower = caveat(facts, capability)
    return replace(outlook, notes=(*outlook.notes, slower)) if slower else outlook


def _unplanned(outlook: AgentOutlook, known: Known, reason: str) -> AgentOutlook:
    """An agent whose model no engine loads, or of which nothing is known."""
    options = (Option(message=known.hint, changes={}),) if known.hint else ()
    if not known.unusable:
        return replace(outlook, problems=(reason,), options=options)
    refused = Shortfall(agent=outlook.agent.name, message=reason, missing_bytes=0)
    return replace(outlook, answer=refused, options=options)


def _fitting(outlook: AgentOutlook, fit: Fit, speed: Speed | None) -> AgentOutlook:
    return replace(
        outlook,
        answer=fit,
        weights_bytes=fit.weights_bytes,
        overhead_bytes=fit.overhead_bytes,
        kv_cache_bytes=fit.kv_cache_bytes,
        tokens_per_s=speed,
        notes=(*outlook.notes, *fit.notes),
    )


def _asking(outlook: AgentOutlook, demand: Demand) -> AgentOutlook:
    """With the parts that one request of the full context would take, where that can be told."""
    if demand.facts is None or not isinstance(demand.facts.shape, Shape):
        return outlook
    basis = basis_of(demand, demand.facts, demand.facts.shape)
    return replace(
        outlook,
        weights_bytes=basis.weights_bytes,
        overhead_bytes=basis.overhead_bytes,
        kv_cache_bytes=basis.least_pages * basis.layout.page_bytes,
    )


def _speed(demand: Demand, fit: Fit, card: PlannedCard) -> Speed | None:
    if demand.facts is None or card.bandwidth_bytes_per_s is None:
        return None
    least, most = (expected_tokens_per_s(demand.facts, fit, speed) for speed in card.bandwidth_bytes_per_s)
    return Speed(low=least.low, high=most.high) if least and most else None


def _options(scene: _Scene, subject: _Subject, shortfall: Shortfall) -> Iterator[Option]:
    """What the planner tried, and profiles of the catalog in which the same model fits."""
    for option in shortfall.options:
        yield Option(message=option.text, changes=option.changes)
    yield from _profiles(scene, subject)
    for advice in shortfall.advice:
        yield Option(message=advice, changes={})


def _profiles(scene: _Scene, subject: _Subject) -> Iterator[Option]:
    host, engine, repo = scene.host, scene.engine, subject.wanted.agent.model.repo
    for name in host.catalog.profiles if repo else ():
        other = load_catalog(
            host.catalog.source, profile=name, environ=host.environ, state_root=host.state.root
        )
        for agent in other.agents.values():
            if agent.model.repo != repo or other.engine not in {None, engine.name}:
                continue
            demand = demand_of(agent, engine, other.engines[engine.name], subject.known.facts, None)
            fit = attempt(demand, scene.card.total_bytes)
            if isinstance(fit, Fit):
                message = _in_profile(name, agent, _speed(demand, fit, scene.card))
                yield Option(message=message, changes={"profile": name})


def _in_profile(name: str, agent: Agent, speed: Speed | None) -> str:
    offload_gib = agent.cpu_offload_bytes / GIB
    offload = f", cpu_offload: {offload_gib:g}GiB" if offload_gib else ""
    pace = f" ({speed.low:.1f} to {speed.high:.1f} tokens/s)" if speed else ""
    return f"--profile {name}, where {agent.name} runs it with context: {agent.context}{offload}{pace}"


def _together(subjects: Iterable[_Subject], total_bytes: int) -> tuple[Together, ...]:
    """The largest sets of declared agents whose least shares fit the card beside each other."""
    shares = {
        subject.name: share
        for subject in subjects
        if subject.wanted.declared and (share := _least_share(subject.demand, total_bytes))
    }
    found: list[Together] = []
    for size in range(len(shares) if len(shares) <= _MOST_TOGETHER else 2, 1, -1):
        for names in combinations(shares, size):
            covered = any(set(names) <= set(other.agents) for other in found)
            if not covered and _side_by_side([shares[name] for name in names], total_bytes):
                shared = tuple(shares[name].utilization for name in names)
                found.append(Together(agents=names, utilization=shared))
    return tuple(found)


def _side_by_side(fits: Sequence[Fit], total_bytes: int) -> bool:
    """Whether all can run at once: each with its start margin, where its CUDA context goes, and a desktop."""
    desktop_bytes = DESKTOP_BYTES if fits[0].utilization is not None else 0
    return sum(fit.start_bytes for fit in fits) + desktop_bytes <= total_bytes


def _least_share(demand: Demand, total_bytes: int) -> Fit | None:
    """The fewest whole percents of the card that hold a request of the full context; None when none do."""
    fit = attempt(demand, total_bytes)
    if not isinstance(fit, Fit) or fit.concurrency is None or fit.kv_cache_bytes is None:
        return None
    if demand.budget is Budget.DECLARED:
        return fit
    spare_bytes = fit.kv_cache_bytes - math.ceil(fit.kv_cache_bytes / fit.concurrency)
    first = math.ceil(100 * (fit.budget_bytes - spare_bytes) / total_bytes)
    for percent in range(max(1, first - 1), first + 3):
        answer = attempt(replace(demand, utilization=percent / 100), total_bytes)
        if isinstance(answer, Fit):
            return answer
    return None
