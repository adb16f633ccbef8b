"""The swap machine: who is on the card, who leaves, who arrives, and which requests may run. Pure.

`step(state, event, now_s) -> (state, effects)`: no I/O, no clock, no log. Whatever is slow is an effect that the
controller performs, and its result comes back as an event. One swap at a time:

    draining → stopping → making room → starting → loading → ready
        └─ undone: discarding (the newcomer) → making room → starting → loading (the one that left) → ready

The leaving instance is stopped but not removed until the newcomer is ready: putting it back is starting it
again. A first interrupt undoes the swap, a second one (or one while a swap is being undone) empties the card.
An event that does not belong to the present stage comes too late to matter and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent_manager.swap.card import Stage, State, Step, Swap
from agent_manager.swap.events import (
    Abandon,
    Arrived,
    AwaitMemory,
    AwaitReady,
    Cancelled,
    Drain,
    Drained,
    DrainExpired,
    Due,
    Effect,
    Event,
    Exited,
    Finish,
    Finished,
    Grant,
    Interrupted,
    LoadFailed,
    MemoryFree,
    MemoryHeld,
    Occupant,
    Outcome,
    Ready,
    Reject,
    Remove,
    Renewed,
    Request,
    Result,
    Start,
    StartAgain,
    Started,
    StartFailed,
    Stop,
    StopFailed,
    Stopped,
    Wake,
    Wanted,
)
from agent_manager.swap.schedule import Cause, Stay, SwapTo

if TYPE_CHECKING:
    from collections.abc import Callable


def step(state: State, event: Event, now_s: float = 0.0) -> Step:
    """One step. Total: every event is accepted in every state.

    `now_s` is the time at which the event happened, of a clock that never goes back (`time.monotonic`). Who has
    one swap to make and no requests may leave it out.
    """
    now_s = max(now_s, state.now_s)
    match event:
        case Arrived(request=request):
            return _arrived(state, request, now_s)
        case Finished(request_id=request_id) | Cancelled(request_id=request_id):
            return _ended(state, request_id, now_s)
    if now_s > state.now_s:
        state = replace(state, now_s=now_s)
    match event:
        case Wanted():
            return _wanted(state, event)
        case Exited(instance_id=instance_id):
            return _exited(state, instance_id)
        case Renewed():
            return _renewed(state, event)
        case Due() if state.swap is None:
            return _serve(state)
    if state.swap is None or (isinstance(event, Interrupted) and event.wish not in (None, state.swap.wish)):
        return state, ()
    return _STAGES[state.swap.stage](state, state.swap, event)


# --- what is asked for ------------------------------------------------------------------------------------


def _wanted(state: State, event: Wanted, cause: Cause | None = None) -> Step:
    goal, resident = event.goal, state.resident
    answer = Outcome(result=Result.DONE, goal=goal, resident=resident, wish=event.wish)
    if state.swap is not None:
        return state, (Finish(outcome=replace(answer, result=Result.BUSY)),)
    satisfied = resident is None if goal is None else state.desk.shared(state.serving, goal.agent)
    if satisfied and not (event.replace_same and resident):
        return state, (Finish(outcome=answer),)
    if goal is not None and goal.claim_bytes > state.total_bytes:
        reason = f"{goal.agent} takes {goal.claim_bytes} bytes, the card has {state.total_bytes}"
        return state, (Finish(outcome=replace(answer, result=Result.FAILED, reason=reason)),)
    swap = Swap(
        goal=goal,
        stage=Stage.DRAINING,
        drain_timeout_s=event.drain_timeout_s,
        drain_until_s=state.now_s + event.drain_timeout_s,
        cause=cause,
        wish=event.wish,
        leaving=resident,
    )
    if resident is None:
        return _make_room(state, replace(swap, left_s=state.now_s))
    return replace(state, swap=swap), (Drain(occupant=resident, timeout_s=event.drain_timeout_s),)


def _arrived(state: State, request: Request, now_s: float) -> Step:
    if request.claim_bytes > state.total_bytes:
        reject = Reject(request_id=request.id, reason=f"{request.agent} does not fit the card")
        return replace(state, now_s=now_s), (reject,)
    desk = state.desk
    granted = state.swap is None and desk.shared(state.serving, request.agent)
    state = replace(state, desk=desk.arrived(request, now_s, granted=granted), now_s=now_s)
    if not granted:
        return _serve(state)
    state, effects = _serve(state) if desk.waiting else (state, ())
    return state, (Grant(request_id=request.id), *effects)


def _ended(state: State, request_id: str, now_s: float) -> Step:
    desk = state.desk.ended(request_id, now_s)
    if desk is state.desk:
        return replace(state, now_s=now_s), ()
    state = replace(state, desk=desk, now_s=now_s)
    return _serve(state) if state.swap is None else _stop_when_idle(state)


def _renewed(state: State, event: Renewed) -> Step:
    desk, refused = state.desk.renewed(event, state.now_s)
    state, swap = replace(state, desk=desk, current=event.current), state.swap
    rejects = [
        Reject(request_id=request.id, reason=event.refusals.get(request.agent, "it is not served any more"))
        for request in refused
    ]
    effects: tuple[Effect, ...] = ()
    if swap is None:
        state, effects = _serve(state)
    elif swap.goal and swap.goal.agent not in event.claims and not _being_undone(swap):
        state, effects = _STAGES[swap.stage](state, swap, Interrupted())
    return state, (*rejects, *effects)


def _being_undone(swap: Swap) -> bool:
    """Or going to be, once what cannot be given up is done."""
    return swap.restoring or swap.interrupts > 0 or swap.stage is Stage.DISCARDING


def _serve(state: State) -> Step:
    """Grant what the resident can take; for the rest do what the policy says, now or when it says."""
    if state.swap is not None or (state.desk.running and not state.desk.waiting):
        return state, ()  # who is busy, with nobody waiting, stays: this is every request's way in and out
    desk, mine = state.desk.granted(state.serving, state.now_s)
    state = replace(state, desk=desk) if mine else state
    grants = tuple(Grant(request_id=request.id) for request in mine)
    decision = desk.decide(state.now_s, state.serving, state.total_bytes)
    if isinstance(decision, Stay) and (not state.outdated or state.stuck or desk.running):
        return state, grants if decision.until_s is None else (*grants, Wake(at_s=decision.until_s))
    goal = desk.goal(decision.group) if isinstance(decision, SwapTo) else None
    cause = Cause.OUTDATED if isinstance(decision, Stay) or state.outdated else decision.cause
    wanted = Wanted(goal=goal, drain_timeout_s=state.drain_timeout_s)
    state, more = _wanted(state, wanted, cause)
    return state, (*grants, *more)


def _exited(state: State, instance_id: str) -> Step:
    if state.resident is None or state.resident.instance_id != instance_id:
        return state, ()
    swap = state.swap
    state = replace(state, resident=None, stuck=False, desk=state.desk.cut(state.now_s))
    if swap is None:
        state, effects = _serve(state)
        return state, (Remove(instance_id=instance_id), *effects)
    # It was draining and died: nothing is left to drain or stop, and nothing to put back.
    room, effects = _after_leaving(state, replace(swap, leaving=None, left_s=state.now_s))
    return room, (Abandon(), Remove(instance_id=instance_id), *effects)


# --- the stages -------------------------------------------------------------------------------------------


def _draining(state: State, swap: Swap, event: Event) -> Step:
    leaving = swap.leaving
    match event:
        case Drained(instance_id=id_) if leaving and id_ == leaving.instance_id:
            stopping, effects = _stop_when_idle(replace(state, swap=replace(swap, idle=True)))
            # Requests that were granted and have not reached the engine yet: their time is over some day, too.
            return stopping, effects or (Wake(at_s=swap.drain_until_s),)
        case DrainExpired(instance_id=id_) if leaving and id_ == leaving.instance_id:
            return _stop_leaving(state, swap, leaving)
        case Due() if swap.idle and leaving and state.now_s >= swap.drain_until_s:
            return _stop_leaving(state, swap, leaving)
        case Interrupted():
            undone, effects = _settle(state, replace(swap, result=Result.INTERRUPTED))
            return undone, (Abandon(), *effects)
    return state, ()


def _stop_when_idle(state: State) -> Step:
    swap = state.swap
    if swap and swap.stage is Stage.DRAINING and swap.idle and not state.desk.running and swap.leaving:
        return _stop_leaving(state, swap, swap.leaving)
    return state, ()


def _stop_leaving(state: State, swap: Swap, leaving: Occupant) -> Step:
    swap = replace(swap, stage=Stage.STOPPING, left_s=state.now_s)
    stopping = replace(state, resident=None, stuck=False, swap=swap)
    return stopping, (Stop(occupant=leaving, at_once=swap.drain_timeout_s == 0),)


def _stopping(state: State, swap: Swap, event: Event) -> Step:
    leaving = swap.leaving
    match event:
        case Stopped(instance_id=id_) if leaving and id_ == leaving.instance_id:
            return _after_leaving(replace(state, desk=state.desk.cut(state.now_s)), swap)
        case StopFailed(instance_id=id_, reason=reason) if leaving and id_ == leaving.instance_id:
            # Whatever it holds, it holds: nothing else may start.
            stuck = replace(state, resident=leaving, stuck=True)
            return _settle(stuck, replace(swap, leaving=None, result=Result.FAILED, reason=reason))
        case Interrupted():
            return replace(state, swap=replace(swap, interrupts=swap.interrupts + 1)), ()
    return state, ()


def _after_leaving(state: State, swap: Swap) -> Step:
    """The one that was on the card is gone from it; `swap.leaving` is what may be put back."""
    if swap.interrupts == 1 and swap.goal is not None:
        return _undo(state, replace(swap, result=Result.INTERRUPTED))
    if swap.interrupts or swap.goal is None:
        # For a stop, the first interrupt came too late to keep it: the card is empty either way.
        result = Result.INTERRUPTED if swap.interrupts and swap.goal is not None else Result.DONE
        return _settle(state, replace(swap, result=result))
    return _make_room(state, swap)


def _make_room(state: State, swap: Swap) -> Step:
    agent, claim = _next_on_card(swap)
    waiting = replace(state, swap=replace(swap, stage=Stage.MAKING_ROOM))
    return waiting, (AwaitMemory(agent=agent, claim_bytes=claim, restoring=swap.restoring),)


def _next_on_card(swap: Swap) -> tuple[str, int]:
    if swap.restoring and swap.leaving:
        return swap.leaving.agent, swap.leaving.claim_bytes
    if swap.goal is None:
        raise AssertionError("an empty card needs no room")
    return swap.goal.agent, swap.goal.claim_bytes


def _making_room(state: State, swap: Swap, event: Event) -> Step:
    match event:
        case MemoryFree():
            starting = replace(state, swap=replace(swap, stage=Stage.STARTING))
            if swap.restoring and swap.leaving:
                return starting, (StartAgain(occupant=swap.leaving),)
            return starting, (Start(agent=_next_on_card(swap)[0]),)
        case MemoryHeld(reason=reason):
            return _undo(state, _failed(swap, reason))
        case Interrupted():
            undone, effects = _undo(state, _interrupted(swap))
            return undone, (Abandon(), *effects)
    return state, ()


def _starting(state: State, swap: Swap, event: Event) -> Step:
    match event:
        case Started(occupant=occupant):
            loading = replace(swap, stage=Stage.LOADING, arriving=occupant)
            if swap.interrupts:
                return _discard(state, loading)
            return replace(state, swap=loading), (AwaitReady(occupant=occupant, restoring=swap.restoring),)
        case StartFailed(reason=reason, instance_id=left):
            failed = _failed(swap, reason)
            # The record of the one that left is removed once, when the swap settles.
            record = left is not None and not swap.restoring
            undone, effects = _undo(state, failed)
            return undone, ((Remove(instance_id=left),) if record and left else ()) + effects
        case Interrupted():
            # A start takes milliseconds and must be seen through, or nobody would know what it left.
            return replace(state, swap=_interrupted(swap)), ()
    return state, ()


def _loading(state: State, swap: Swap, event: Event) -> Step:
    arriving = swap.arriving
    match event:
        case Ready(instance_id=id_) if arriving and id_ == arriving.instance_id:
            return _settle(_took_over(state, swap, arriving), replace(swap, arriving=None))
        case LoadFailed(instance_id=id_, reason=reason) if arriving and id_ == arriving.instance_id:
            return _discard(state, _failed(swap, reason))
        case Interrupted():
            undone, effects = _discard(state, _interrupted(swap))
            return undone, (Abandon(), *effects)
    return state, ()


def _took_over(state: State, swap: Swap, arriving: Occupant) -> State:
    cost_s = None if swap.restoring or swap.left_s is None else state.now_s - swap.left_s
    return replace(state, resident=arriving, desk=state.desk.took_over(arriving.agent, state.now_s, cost_s))


def _discard(state: State, swap: Swap) -> Step:
    if swap.arriving is None:
        raise AssertionError("nothing arrived that could be discarded")
    discarding = replace(state, swap=replace(swap, stage=Stage.DISCARDING))
    return discarding, (Stop(occupant=swap.arriving, at_once=True),)


def _discarding(state: State, swap: Swap, event: Event) -> Step:
    arriving = swap.arriving
    match event:
        case Stopped(instance_id=id_) if arriving and id_ == arriving.instance_id:
            gone = replace(swap, arriving=None)
            undone, effects = _undo(state, gone)
            # While restoring, the newcomer is the one that left; settling removes it.
            return undone, (() if swap.restoring else (Remove(instance_id=id_),)) + effects
        case StopFailed(instance_id=id_, reason=reason) if arriving and id_ == arriving.instance_id:
            # It is there and serves nobody: that must be told even to somebody who interrupted.
            stuck = replace(state, resident=arriving, stuck=True)
            told = swap.reason if swap.reason is not None else reason
            return _settle(stuck, replace(swap, arriving=None, result=Result.FAILED, reason=told))
        case Interrupted():
            # The swap is being undone already, so this one says to leave the card empty.
            return replace(state, swap=replace(swap, interrupts=2)), ()
    return state, ()


_STAGES: dict[Stage, Callable[[State, Swap, Event], Step]] = {
    Stage.DRAINING: _draining,
    Stage.STOPPING: _stopping,
    Stage.MAKING_ROOM: _making_room,
    Stage.STARTING: _starting,
    Stage.LOADING: _loading,
    Stage.DISCARDING: _discarding,
}


# --- how a swap ends --------------------------------------------------------------------------------------


def _failed(swap: Swap, reason: object) -> Swap:
    """The first thing that went wrong is what is told."""
    if swap.result is not Result.DONE:
        return swap
    return replace(swap, result=Result.FAILED, reason=reason)


def _interrupted(swap: Swap) -> Swap:
    result = Result.INTERRUPTED if swap.result is Result.DONE else swap.result
    return replace(swap, interrupts=swap.interrupts + 1, result=result)


def _undo(state: State, swap: Swap) -> Step:
    """Put back the one that left, unless that was being done already or the user wants out for good."""
    if swap.leaving is None or swap.restoring or swap.interrupts > 1 or state.is_outdated(swap.leaving):
        return _settle(state, swap)
    # The interrupt that brought it here is answered by this; the next one is for what goes back.
    return _make_room(state, replace(swap, restoring=True, interrupts=0))


def _settle(state: State, swap: Swap) -> Step:
    """End the swap: remove what is not on the card any more, tell, and see who is waiting."""
    effects: list[Effect] = []
    if swap.leaving and swap.leaving != state.resident:
        effects.append(Remove(instance_id=swap.leaving.instance_id))
    outcome = Outcome(
        result=swap.result, goal=swap.goal, resident=state.resident, reason=swap.reason, wish=swap.wish
    )
    effects.append(Finish(outcome=outcome))
    desk = state.desk
    if swap.result is not Result.DONE and swap.goal and not desk.shared(swap.goal.agent, state.serving):
        reason = swap.reason if swap.reason is not None else "the swap was interrupted"
        desk, refused = desk.refused(swap.goal.agent, state.now_s)
        effects += [Reject(request_id=request.id, reason=reason) for request in refused]
    settled, more = _serve(replace(state, swap=None, desk=desk))
    return settled, (*effects, *more)
