"""What a person can do with a card: launch, restart, stop. One operation at a time, inside the card's lock."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from agent_manager.engines.client import EngineClient
from agent_manager.errors import AgentManagerError, CardBusy, Interrupted, NoGpu, NotRunning
from agent_manager.runtimes.ports import require_free
from agent_manager.swap import events as ev
from agent_manager.swap.card import State, following
from agent_manager.swap.controller import MEMORY_TIMEOUT_S, Controller, Newcomer, as_error, occupant_of
from agent_manager.swap.footprints import Footprints, ran_with
from agent_manager.swap.history import StartHistory, remember_swap
from agent_manager.swap.lock import own_card
from agent_manager.swap.notices import LaunchPlan, LaunchResult, PlannedStep, Remark, StopResult
from agent_manager.swap.observe import find, instances
from agent_manager.swap.prepare import Draft, Prepared, choose_engine, draft, finish, prepare, probe_of
from agent_manager.swap.remote import gateways
from agent_manager.swap.takeover import Found, Takeover, runs, take_over

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from agent_manager.planning.base import Measured
    from agent_manager.runtimes.base import Instance
    from agent_manager.state import StateDir
    from agent_manager.swap.host import Host, Interrupts
    from agent_manager.swap.lock import CardLock
    from agent_manager.swap.notices import Listener, ReloadResult
    from agent_manager.swap.remote import Gateway

DRAIN_TIMEOUT_S = 60.0
CANARY_TIMEOUT_S = 30.0
GATEWAY_PATIENCE_S = 3.0
"""A gateway starts within a second, and ends as quickly when nothing runs: `serve & launch dev` is no mistake."""
GATEWAY_POLL_S = 0.1

_T = TypeVar("_T")


async def launch(  # noqa: PLR0913 - the options of the verb
    host: Host,
    agent: str,
    *,
    listener: Listener,
    pull: bool = True,
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
    wait_s: float = 0.0,
    memory_timeout_s: float = MEMORY_TIMEOUT_S,
    again: bool = False,
) -> LaunchResult:
    """Put `agent` on its card, swapping out what is there; returns when it answered a completion.

    `again` starts it anew even if it serves already. Raises DoesNotFit, HostNotReady or CheckpointUnusable
    before anything is touched; CardBusy; EngineFailed or MemoryHeld after the swap was undone; Interrupted.
    Under a gateway, it is the gateway that does it.
    """
    launched = await _through(
        partial(_gateway_of, host),
        lambda gateway: gateway.launch(
            agent,
            listener=listener,
            interrupts=host.interrupts,
            pull=pull,
            drain_timeout_s=drain_timeout_s,
            again=again,
        ),
        wait_s,
    )
    if launched is not None:
        return launched
    ready = await prepare(host, agent, pull=pull, listener=listener)
    verb = f"{'restart' if again else 'launch'} {agent}"
    async with own_card(host.state, ready.spec.card, verb=verb, wait_s=wait_s) as lock:
        found = await find(host.runtimes, ready.spec.card, {ready.spec.fingerprint})
        _check_ports(ready, found)
        taken = take_over(found)
        resident = taken.resident
        answers = resident is not None and resident.wanted and not again and await _answers(resident)
        controller = _controller(host, ready, found, lock, listener, memory_timeout_s)
        for leftover in taken.leftovers:
            await controller.discard(leftover.instance)
        state, first = _opening(ready, taken, drain_timeout_s, replace_same=not answers)
        began = time.monotonic()
        outcome = await controller.run(state, first)
        if outcome.result is not ev.Result.DONE or outcome.resident is None:
            raise undone(outcome, listener)
        if controller.ready_after_s is not None:
            left = resident.instance.spec.agent if resident else None
            took_s = time.monotonic() - began
            remember_swap(host.state, ready.spec.card, ready.spec.agent, left, took_s)
        return _launched(ready, taken, outcome.resident, controller.ready_after_s, already=answers)


async def restart(
    host: Host,
    agent: str,
    *,
    listener: Listener,
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
    wait_s: float = 0.0,
) -> LaunchResult:
    """Launch `agent` anew, also when it serves already; a failed start puts the old one back."""
    return await launch(
        host, agent, listener=listener, drain_timeout_s=drain_timeout_s, wait_s=wait_s, again=True
    )


async def plan_launch(host: Host, agent: str) -> LaunchPlan:
    """What `launch` would do now, in order, each with its cause. Touches nothing; raises as `prepare` does."""
    host = replace(host, behind_gateway=await _gateway_of(host) is not None)
    wanted_agent = host.catalog.joint(agent) if host.behind_gateway else host.catalog.agent(agent)
    drafted = await draft(host, wanted_agent)
    ready = finish(drafted, drafted.fit) if drafted.fit else None
    wanted = {ready.spec.fingerprint} if ready else ()
    taken = take_over(await find(host.runtimes, drafted.card.id, wanted))
    return LaunchPlan(
        agent=agent,
        engine=drafted.engine.name,
        runtime=drafted.runtime.name,
        card=drafted.card.id,
        fit=drafted.fit,
        argv=ready.spec.argv if ready else (),
        steps=tuple(_steps(agent, drafted, taken)),
    )


def _steps(agent: str, drafted: Draft, taken: Takeover) -> Iterator[PlannedStep]:
    if drafted.missing is not None:
        yield PlannedStep(verb="pull", subject=drafted.agent.model.name, cause=drafted.missing.reason)
    for leftover in taken.leftovers:
        cause = f"{leftover.life.value}: left by an earlier operation"
        yield PlannedStep(verb="remove", subject=leftover.instance.spec.id, cause=cause)
    if taken.loading is not None:
        yield PlannedStep(verb="follow", subject=agent, cause="it is loading already")
        return
    if taken.resident is not None:
        resident = taken.resident.instance.spec.agent
        if taken.resident.wanted:
            yield PlannedStep(verb="keep", subject=resident, cause="it serves already, as the catalog says")
            return
        cause = "the catalog changed" if resident == agent else f"it is on the card that {agent} needs"
        yield PlannedStep(verb="drain", subject=resident, cause=cause)
        yield PlannedStep(verb="stop", subject=resident, cause=cause)
    yield PlannedStep(verb="start", subject=agent, cause="it was asked for")
    if taken.resident is not None:
        yield PlannedStep(
            verb="remove", subject=resident, cause=f"{agent} is ready; until then it can go back"
        )


async def stop(
    host: Host,
    agents: Sequence[str],
    *,
    listener: Listener,
    everything: bool = False,
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
    wait_s: float = 0.0,
) -> StopResult:
    """Drain, stop and remove the named agents; without names, whatever there is on any card.

    Raises NotRunning when a named agent is not there, or nothing is (unless `everything`), before anything is
    touched; AgentUnknown for a name that is neither in the catalog nor running; CardBusy. Under a gateway, it is
    the gateway that does it, and requests bring them back.
    """
    there, notes = await instances(host.runtimes)
    for note in notes:
        listener(Remark(message=note, warning=True))
    present = {name for instance in there for name in instance.spec.agents}
    for name in agents:
        if name not in present:
            host.catalog.agent(name)
            raise NotRunning(
                f"{name} is not running", hint="'agent-manager status' shows what is", where=name
            )
    if not there and not everything:
        raise NotRunning("nothing is running", hint="'agent-manager launch AGENT' puts one on the card")
    stopped: list[str] = []
    verb = " ".join(("stop", *agents))
    for card in sorted({each.spec.card for each in there if _is_of(each, agents)}):
        by_gateway = await _through(
            partial(_gateway_on, host, card),
            lambda gateway: gateway.stop(
                agents, listener=listener, interrupts=host.interrupts, drain_timeout_s=drain_timeout_s
            ),
            wait_s,
        )
        if by_gateway is not None:
            stopped += by_gateway
            continue
        async with own_card(host.state, card, verb=verb, wait_s=wait_s, unannounced=True) as lock:
            stopped += await _empty(host, card, agents, lock, listener, drain_timeout_s)
    return StopResult(stopped=tuple(dict.fromkeys(stopped)))


async def _gateway_of(host: Host) -> Gateway | None:
    """The gateway that owns the card which the host's engine lives on; None when none does.

    Where nobody chose an engine and there is no GPU, a gateway is the choice that was made already. Raises as
    choose_engine does.
    """
    running = gateways(host.state)
    if not running:
        return None
    try:
        _, _, card = await choose_engine(host)
    except NoGpu:
        if (host.engine or host.catalog.engine) is not None or len(running) > 1:
            raise
        return next(iter(running.values()))
    return running.get(card.id)


async def _gateway_on(host: Host, card: str) -> Gateway | None:
    return gateways(host.state).get(card)


async def _through(
    find_gateway: Callable[[], Awaitable[Gateway | None]],
    ask: Callable[[Gateway], Awaitable[_T]],
    wait_s: float,
) -> _T | None:
    """What the gateway answered; None when there is none. One that starts or ends is waited for.

    Raises what `ask` raises; CardBusy when it neither answers nor is gone after `wait_s`, or GATEWAY_PATIENCE_S.
    """
    deadline = time.monotonic() + max(wait_s, GATEWAY_PATIENCE_S)
    while (gateway := await find_gateway()) is not None:
        try:
            return await ask(gateway)
        except CardBusy:
            if time.monotonic() >= deadline:
                raise
            await asyncio.sleep(GATEWAY_POLL_S)
    return None


async def reload(state: StateDir, *, listener: Listener, interrupts: Interrupts) -> tuple[ReloadResult, ...]:
    """Have every gateway that runs here read its catalog anew. Raises NotRunning when none does; CatalogInvalid."""
    running = gateways(state)
    if not running:
        raise NotRunning("no gateway runs here", hint="'agent-manager serve' starts one")
    return tuple([await each.reload(listener=listener, interrupts=interrupts) for each in running.values()])


async def _empty(
    host: Host, card: str, agents: Sequence[str], lock: CardLock, listener: Listener, drain_timeout_s: float
) -> list[str]:
    # Looked at again: another operation may have had the card while we waited for it.
    found = await find(host.runtimes, card)
    found = tuple(each for each in found if _is_of(each.instance, agents))
    taken = take_over(found)
    probe = probe_of(host, found[0].instance.spec.engine) if found else None
    if probe is None:
        return []  # it went while we waited for the lock
    controller = Controller(
        host=host,
        runtimes=host.runtimes,
        probe=probe,
        lock=lock,
        history=StartHistory(host.state),
        listener=listener,
        known=_known(found),
    )
    for leftover in taken.leftovers:
        await controller.discard(leftover.instance)
    stopped = [leftover.instance.spec.agent for leftover in taken.leftovers]
    if taken.resident:
        occupant = occupant_of(taken.resident.instance.spec)
        state = State(total_bytes=occupant.claim_bytes, resident=occupant)
        wanted = ev.Wanted(goal=None, drain_timeout_s=drain_timeout_s)
        outcome = await controller.run(state, wanted)
        if outcome.result is not ev.Result.DONE:
            raise undone(outcome, listener)
        stopped.append(occupant.agent)
    return stopped


def _is_of(instance: Instance, agents: Sequence[str]) -> bool:
    """Whether it serves one of the agents; without any, all are meant."""
    return not agents or not set(agents).isdisjoint(instance.spec.agents)


def _controller(
    host: Host, ready: Prepared, found: Sequence[Found], lock: CardLock, listener: Listener, timeout_s: float
) -> Controller:
    return Controller(
        host=host,
        runtimes=host.runtimes,
        probe=ready.draft.probe,
        lock=lock,
        history=StartHistory(host.state),
        listener=listener,
        newcomers={ready.spec.agent: newcomer_of(host, ready)},
        memory_timeout_s=timeout_s,
        known=_known(found),
    )


def newcomer_of(host: Host, ready: Prepared) -> Newcomer:
    """What the controller has to know to put it on the card."""
    return Newcomer(
        spec=ready.spec,
        runtime=ready.draft.runtime.name,
        start_bytes=ready.fit.start_bytes,
        stall_timeout_s=ready.draft.settings.stall_timeout_s,
        measured=None if ready.draft.engine.simulated else partial(_record, host, ready),
    )


def _record(host: Host, ready: Prepared, said: Measured) -> None:
    """Keep what the engine's log said of its memory, for the next plan."""
    Footprints(host.state).record(ready.draft.setup, ran_with(said, ready.draft.agent, ready.fit))


def _opening(
    ready: Prepared, taken: Takeover, drain_timeout_s: float, *, replace_same: bool
) -> tuple[State, ev.Event | ev.AwaitReady]:
    """Where the machine begins: at the load that is followed, or with what serves and what is wanted."""
    total_bytes = ready.draft.card.total_bytes
    if taken.loading is not None:
        arriving = occupant_of(taken.loading.instance.spec)
        leaving = occupant_of(taken.kept.instance.spec) if taken.kept else None
        state = following(
            total_bytes=total_bytes, arriving=arriving, leaving=leaving, drain_timeout_s=drain_timeout_s
        )
        return state, ev.AwaitReady(occupant=arriving, restoring=False)
    resident = occupant_of(taken.resident.instance.spec) if taken.resident else None
    goal = ev.Goal(agent=ready.spec.agent, claim_bytes=ready.spec.claim_bytes)
    wanted = ev.Wanted(goal=goal, drain_timeout_s=drain_timeout_s, replace_same=replace_same)
    return State(total_bytes=total_bytes, resident=resident), wanted


def _launched(
    ready: Prepared, taken: Takeover, now: ev.Occupant, ready_after_s: float | None, *, already: bool
) -> LaunchResult:
    left = taken.resident.instance.spec.agent if taken.resident and not already else None
    return LaunchResult(
        agent=ready.spec.agent,
        instance_id=now.instance_id,
        base_url=f"http://localhost:{ready.draft.agent.port}/v1",
        engine=ready.spec.engine,
        runtime=ready.draft.runtime.name,
        model=ready.spec.model,
        card=ready.spec.card,
        simulated=ready.draft.engine.simulated,
        ready_after_s=ready_after_s,
        replaced=(left,) if left and left != ready.spec.agent else (),
        already_running=already,
    )


def undone(outcome: ev.Outcome, listener: Listener) -> AgentManagerError:
    """The error that ended the swap, and a word on who is on the card now."""
    resident, goal = outcome.resident, outcome.goal
    now = f"{resident.agent} is on the card" if resident else "the card is empty"
    if outcome.result is ev.Result.INTERRUPTED:
        what = f"launch of {goal.agent}" if goal else "stop"
        return Interrupted(f"interrupted: the {what} was undone, {now}")
    listener(Remark(message=now, warning=True))
    return as_error(outcome.reason)


def _known(found: Iterable[Found]) -> dict[str, Instance]:
    return {each.instance.spec.id: each.instance for each in found}


async def _answers(found: Found) -> bool:
    """Whether a healthy engine really completes: `/health` misses a hung decode."""
    spec = found.instance.spec
    try:
        await EngineClient(spec.engine_port).complete_once(spec.agent, timeout_s=CANARY_TIMEOUT_S)
    except AgentManagerError:
        return False
    return True


def _check_ports(ready: Prepared, found: Sequence[Found]) -> None:
    """Refuse before anything is touched if somebody outside this card listens where the agent should."""
    ours = {each.instance.spec.engine_port for each in found if runs(each)}
    ours |= {each.instance.spec.agent_port or 0 for each in found if runs(each)}
    for port in {ready.draft.agent.port, ready.spec.engine_port} - ours:
        require_free(port)
