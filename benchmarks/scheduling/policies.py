"""What decides in a simulation: ours, and the two simple policies it is compared with.

A policy is asked after every event while no swap is under way. It names the waiting requests that the resident
may have, and what is to happen to the card; both in terms of `agent_manager.swap.schedule`.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct, field

from agent_manager.swap.schedule import TUNED, Cause, Decision, Settings, Stay, SwapTo, Tuning, View, decide


class Policy(Protocol):
    """Decides who may run and who is on the card."""

    @property
    def name(self) -> str:
        """As the table calls it."""

    def granted(self, view: View) -> list[int]:
        """The places in `view.waiting` of the requests that may go to the resident now."""

    def decide(self, view: View) -> Decision:
        """What becomes of the card, now that those have gone."""


class Ours(Struct, frozen=True):
    """`schedule.decide`, as the gateway asks it."""

    settings: Settings = field(default_factory=Settings)
    tuning: Tuning = TUNED
    name: str = "agent-manager"

    def granted(self, view: View) -> list[int]:
        return _for_resident(view)

    def decide(self, view: View) -> Decision:
        return decide(view, self.settings, self.tuning)


class KeptIdle(Ours, frozen=True):
    """Ours, but an idle resident is kept for its minimum residency as well. Only to see what that would cost."""

    def decide(self, view: View) -> Decision:
        decision, resident = decide(view, self.settings, self.tuning), view.resident
        if not isinstance(decision, SwapTo) or resident is None:
            return decision
        trip_s = view.cost_s(resident.group) + view.cost_s(decision.group) + self.tuning.drain_s
        kept_s = min(self.settings.min_residency_s, self.tuning.residency_trips * trip_s)
        until_s = resident.since_s + kept_s
        return decision if view.now_s >= until_s else Stay(until_s=until_s)


class FirstComeFirstServed(Struct, frozen=True):
    """Strictly in the order of arrival; those in a row for the same agent run together. What llama-swap did."""

    name: str = "first come"

    def granted(self, view: View) -> list[int]:
        """Those before the first one that is for somebody else."""
        return [place for n, place in enumerate(_for_resident(view)) if place == n]

    def decide(self, view: View) -> Decision:
        return _next_when_idle(view)


class Collation(Struct, frozen=True):
    """ABCABC becomes AABBCC: the resident serves all of its own, then the oldest one's agent is next."""

    name: str = "collation"

    def granted(self, view: View) -> list[int]:
        return _for_resident(view)

    def decide(self, view: View) -> Decision:
        return _next_when_idle(view)


def _for_resident(view: View) -> list[int]:
    if view.resident is None:
        return []
    return [place for place, each in enumerate(view.waiting) if each.group == view.resident.group]


def _next_when_idle(view: View) -> Decision:
    if not view.waiting or (view.resident and view.resident.running):
        return Stay()
    return SwapTo(group=view.waiting[0].group, cause=Cause.LULL)
