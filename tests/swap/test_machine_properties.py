"""Whatever happens, in whatever order: the swap machine in a world that hypothesis plays.

`AGENT_MANAGER_TEST_EXAMPLES=5000 pytest tests/swap/test_machine_properties.py` looks longer, and elsewhere each
time; the default is short and always the same.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from .trip import CLAIMS
from .world import World

EXAMPLES = os.environ.get("AGENT_MANAGER_TEST_EXAMPLES")

pytestmark = pytest.mark.timeout(600)
"""What fails is made as short as it goes before it is shown."""

agents = st.sampled_from(sorted(CLAIMS))
picks = st.integers(min_value=0, max_value=31)
"""Which of those that are possible just now; taken modulo their number."""


class AnyOrder(RuleBasedStateMachine):
    """Users, clients, engines and the card do what they like; `World` checks everything after every step."""

    @initialize(
        first=st.sampled_from([None, "po", "dev", "architect"]),
        leaving=st.sampled_from([None, "po", "dev"]),
        undone=st.integers(min_value=0, max_value=4),
    )
    def begin(self, first: str | None, leaving: str | None, undone: int) -> None:
        """An empty card, or one on which `first` loads, with or without one to put back if it fails.

        Hypothesis seldom gets far into a swap that is undone, so one may be under way from the beginning.
        """
        self.world = World() if first is None else World.taken_over(first, leaving)
        if first is not None and undone:
            self.world.fail(leaves_something=False)
            self.world.succeed(times=undone - 1)

    @rule(agent=st.none() | agents, drain_timeout_s=st.sampled_from([0.0, 60.0]), replace_same=st.booleans())
    def want(self, agent: str | None, drain_timeout_s: float, replace_same: bool) -> None:  # noqa: FBT001 - hypothesis passes by name
        self.world.want(agent, drain_timeout_s=drain_timeout_s, replace_same=replace_same)

    @rule(agent=agents)
    def arrive(self, agent: str) -> None:
        self.world.arrive(agent)

    @precondition(lambda self: self.world.serving)
    @rule(pick=picks)
    def finish(self, pick: int) -> None:
        serving = self.world.serving
        self.world.finish(serving[pick % len(serving)])

    @precondition(lambda self: self.world.cancellable)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        open_ = self.world.cancellable
        self.world.cancel(open_[pick % len(open_)])

    @precondition(lambda self: self.world.late_finishes)
    @rule()
    def report_finish(self) -> None:
        self.world.report_finish()

    @rule(gone=st.none() | agents, changed=st.sets(agents))
    def renew(self, gone: str | None, changed: set[str]) -> None:
        self.world.renew(gone, changed)

    @precondition(lambda self: self.world.trip)
    @rule()
    def interrupt(self) -> None:
        self.world.interrupt()

    @precondition(lambda self: self.world.pending)
    @rule(times=st.integers(min_value=1, max_value=5))
    def succeed(self, times: int) -> None:
        """A whole swap is five successes in a row: from here it gets to any of its stages in one move."""
        self.world.succeed(times=times)

    @precondition(lambda self: self.world.pending)
    @rule(leaves_something=st.booleans())
    def fail(self, leaves_something: bool) -> None:  # noqa: FBT001 - hypothesis passes by name
        self.world.fail(leaves_something=leaves_something)

    @precondition(lambda self: self.world.may_expire)
    @rule()
    def expire(self) -> None:
        self.world.expire()

    @rule(seconds=st.sampled_from([0.5, 20.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @precondition(lambda self: self.world.mortal)
    @rule()
    def die(self) -> None:
        self.world.die(self.world.mortal[0])

    @precondition(lambda self: self.world.unreported)
    @rule()
    def report_exit(self) -> None:
        self.world.report_exit(self.world.unreported[0])

    @rule(pick=picks)
    def stale(self, pick: int) -> None:
        events = self.world.stale_events()
        self.world.stale(events[pick % len(events)])

    def teardown(self) -> None:
        if self.world.objected:
            return  # to what failed already, not to what comes of it
        self.world.come_to_rest()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=int(EXAMPLES or 400),
    stateful_step_count=50,
    deadline=None,
    derandomize=EXAMPLES is None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)
