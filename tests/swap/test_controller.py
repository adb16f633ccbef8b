"""The controller where effects go wrong in ways that real processes seldom do: engines in memory, real HTTP."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from agent_manager.errors import (
    AgentManagerError,
    EngineFailed,
    HostNotReady,
    Interrupted,
    MemoryHeld,
    OperationFailed,
    PortInUse,
    StateUnusable,
)
from agent_manager.gpu.base import GIB, Card, MemoryHolder
from agent_manager.gpu.simulated import CARD_ID
from agent_manager.swap.history import StartHistory
from agent_manager.swap.notices import Step, StepBegan
from tests.fakes.memory_runtime import Behaviour

from .conftest import eventually
from .engines import Manners, tasks

if TYPE_CHECKING:
    from agent_manager.swap.notices import Notice

    from .conftest import Lab
    from .engines import ServingRuntime

NO_REQUESTS = 0


@dataclass
class ScriptedCard:
    """A card of 16 GiB that has what it is told to have free, the last figure for ever; an error is raised."""

    free: list[int | AgentManagerError] = field(default_factory=list)
    reads: int = 0

    def read(self) -> Card:
        self.reads += 1
        now = self.free.pop(0) if len(self.free) > 1 else self.free[0]
        if isinstance(now, AgentManagerError):
            raise now
        holders = (MemoryHolder(pid=7, name="a-game", used_bytes=16 * GIB - now),)
        return Card(id=CARD_ID, name="Card", total_bytes=16 * GIB, free_bytes=now, holders=holders)


class TestWhatFails:
    async def test_an_engine_that_cannot_be_stopped_keeps_the_card(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        await quick.launch("po")
        engines.fails["stop", "po"] = OperationFailed("po-1 does not end: 7 survived SIGKILL for 30 s")
        with pytest.raises(OperationFailed, match="survived SIGKILL"):
            await quick.launch("dev")
        assert quick.steps() == ["draining po", "stopping po"]
        assert engines.started() == ["po"]
        assert await quick.records() == ["po"]

    @pytest.mark.parametrize("what", ["create", "start"])
    @pytest.mark.parametrize(
        "error", [StateUnusable("no space left on device"), PortInUse("port 1 is in use"), EngineFailed("no")]
    )
    async def test_a_start_that_fails_puts_back_and_leaves_no_record(
        self, quick: Lab, engines: ServingRuntime, what: str, error: AgentManagerError
    ) -> None:
        first = await quick.launch("po")
        engines.fails[what, "dev"] = error
        with pytest.raises(type(error)) as raised:
            await quick.launch("dev")
        assert raised.value is error
        assert quick.steps() == [
            "draining po",
            "stopping po",
            "starting dev",
            "back: starting po",
            "back: loading po",
            "checking po",
        ]
        assert quick.remarks(warning=True) == ["po is on the card"]
        assert [each.spec.id for each in await engines.list()] == [first.instance_id]
        assert await engines.running() == ["po"]

    async def test_a_mistake_of_ours_undoes_the_swap_as_well(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        await quick.launch("po")
        engines.fails["start", "dev"] = ZeroDivisionError("oops")
        with pytest.raises(OperationFailed, match="internal error: ZeroDivisionError: oops") as raised:
            await quick.launch("dev")
        assert isinstance(raised.value.__cause__, ZeroDivisionError)
        assert await engines.running() == ["po"]

    async def test_what_is_told_is_why_it_failed_not_why_it_could_not_be_undone(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        await quick.launch("po")
        engines.fails["start", "dev"] = EngineFailed("dev is at fault")
        engines.fails["start", "po"] = PortInUse("somebody took the port of po")
        with pytest.raises(EngineFailed, match="dev is at fault"):
            await quick.launch("dev")
        assert quick.remarks(warning=True) == ["the card is empty"]
        assert await engines.running() == []
        assert await quick.records() == []

    async def test_a_newcomer_that_cannot_be_killed_is_not_joined_by_another(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        await quick.launch("po")
        engines.manners["dev"] = Manners(completes=False)
        engines.fails["stop", "dev"] = OperationFailed("dev-1 does not end")
        with pytest.raises(EngineFailed, match="refused a one-token completion"):
            await quick.launch("dev")
        assert await engines.running() == ["dev"]
        assert quick.remarks(warning=True) == ["dev is on the card"]
        assert engines.started() == ["po", "dev"]

    async def test_a_log_that_cannot_be_kept_is_a_warning(self, quick: Lab, engines: ServingRuntime) -> None:
        await quick.launch("po")
        (quick.state.root / "logs").write_text("in the folder's place")
        assert (await quick.launch("dev")).agent == "dev"
        (warning,) = quick.remarks(warning=True)
        assert warning.startswith("the log of po is not kept: ")
        assert await quick.records() == ["dev"]
        assert await engines.running() == ["dev"]

    async def test_a_record_that_cannot_be_removed_is_a_warning_and_the_next_one_removes_it(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        first = await quick.launch("po")
        engines.fails["remove", "po"] = StateUnusable("read-only file system")
        assert (await quick.launch("dev")).replaced == ("po",)
        assert quick.remarks(warning=True) == [f"{first.instance_id} is not removed: read-only file system"]
        assert await quick.records() == ["po", "dev"]
        del engines.fails["remove", "po"]
        assert (await quick.launch("dev")).already_running
        assert await quick.records() == ["dev"]

    async def test_a_leftover_that_cannot_be_killed_ends_the_launch_before_anything_starts(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        await quick.launch("po")
        engines.manners["po"] = Manners(healthy=False)
        engines.fails["stop", "po"] = OperationFailed("po-1 does not end")
        with pytest.raises(OperationFailed, match="does not end"):
            await quick.launch("dev")
        assert engines.started() == ["po"]

    async def test_a_word_that_cannot_be_written_for_others_is_no_failure(self, quick: Lab) -> None:
        owner = quick.state.card(CARD_ID) / "owner.json"

        def break_it(_: Notice) -> None:
            if owner.is_file():
                owner.unlink()
                owner.mkdir()

        quick.on_notice = break_it
        assert (await quick.launch("dev")).agent == "dev"
        assert quick.steps() == ["starting dev", "loading dev", "checking dev"]
        assert owner.is_dir()


class TestDraining:
    @pytest.mark.parametrize(("requests", "words"), [(1, "1 request"), (2, "2 requests")])
    async def test_requests_finish_first_and_a_person_is_told(
        self, quick: Lab, engines: ServingRuntime, requests: int, words: str
    ) -> None:
        manners = engines.manners["po"] = Manners(requests=requests)
        await quick.launch("po")
        launch = asyncio.create_task(quick.launch("dev"))
        await quick.until(Step.DRAINING)
        await eventually(lambda: bool(quick.remarks()), "it waits")
        assert quick.remarks() == [f"po finishes {words} first"]
        assert engines.started() == ["po"]
        manners.requests = NO_REQUESTS
        await launch
        assert engines.started() == ["po", "dev"]

    async def test_it_ends_when_its_time_is_over(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.manners["po"] = Manners(requests=1)
        await quick.launch("po")
        await quick.launch("dev", drain_timeout_s=0.1)
        assert await engines.running() == ["dev"]

    async def test_an_engine_without_metrics_gets_the_whole_time(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        engines.manners["po"] = Manners(requests=None)
        await quick.launch("po")
        launch = asyncio.create_task(quick.launch("dev", drain_timeout_s=0.3))
        await quick.until(Step.DRAINING)
        assert quick.steps() == ["draining po"]
        await launch
        assert quick.remarks() == []

    async def test_an_engine_that_dies_meanwhile_is_not_waited_for(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        engines.manners["po"] = Manners(requests=1)
        first = await quick.launch("po")
        launch = asyncio.create_task(quick.launch("dev", drain_timeout_s=3600))
        await eventually(lambda: bool(quick.remarks()), "it waits")
        engines.exit(first.instance_id, 1)
        assert (await launch).agent == "dev"

    async def test_no_time_means_kill_at_once(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.behaviours["po"] = Behaviour(on_sigterm=None)
        engines.manners["po"] = Manners(requests=1)
        await quick.launch("po")
        async with asyncio.timeout(20):  # SIGTERM would be ignored for 45 s
            await quick.stop("po", drain_timeout_s=0)
        assert await engines.running() == []

    async def test_an_engine_that_hears_sigterm_ends_by_it(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.behaviours["po"] = Behaviour(lines=("hello",), farewell=("bye",), on_sigterm=0)
        await quick.launch("po")
        await quick.stop("po")
        assert await quick.log("po") == ["hello", "bye"]


class TestMemory:
    async def test_it_is_read_again_until_there_is_enough(self, quick: Lab) -> None:
        card = ScriptedCard([15 * GIB, GIB, 2 * GIB, 16 * GIB])
        quick.probe = card
        await quick.launch("dev")
        assert card.reads == 4
        assert quick.steps() == ["waiting for memory dev", "starting dev", "loading dev", "checking dev"]
        assert quick.remarks() == ["1.00 of 16.00 GiB are free; held by a-game (pid 7)"]

    async def test_a_start_needs_half_a_gib_more_than_the_claim_a_return_does_not(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        quick.probe = ScriptedCard([16 * GIB])
        await quick.launch("po")
        claim = (await engines.only()).spec.claim_bytes
        quick.probe = ScriptedCard([claim])
        with pytest.raises(MemoryHeld, match=r"^dev needs .* held by a-game \(pid 7\)$"):
            await quick.launch("dev", memory_timeout_s=0.05)
        assert await engines.running() == ["po"]
        quick.probe = ScriptedCard([claim + GIB // 2])
        await quick.launch("dev", memory_timeout_s=0.05)
        assert await engines.running() == ["dev"]

    async def test_a_card_that_cannot_be_read_starts_nothing(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        await quick.launch("po")
        quick.probe = ScriptedCard([16 * GIB, HostNotReady("the driver is gone")])
        with pytest.raises(HostNotReady, match="the driver is gone"):
            await quick.launch("dev")
        assert engines.started() == ["po"]
        assert await engines.running() == []


class TestInterrupts:
    @pytest.mark.parametrize(
        "at",
        [Step.DRAINING, Step.STOPPING, Step.WAITING_FOR_MEMORY, Step.STARTING, Step.LOADING, Step.CHECKING],
    )
    async def test_one_puts_the_previous_agent_back(
        self, quick: Lab, engines: ServingRuntime, at: Step
    ) -> None:
        first = await quick.launch("po")
        quick.probe = ScriptedCard([16 * GIB, 0, 16 * GIB])
        quick.interrupt_at(at)
        with pytest.raises(Interrupted, match="interrupted: the launch of dev was undone, po is on the card"):
            await quick.launch("dev")
        assert await engines.running() == ["po"]
        assert [each.spec.id for each in await engines.list()] == [first.instance_id]
        assert (await quick.status("po")).state == "ready"

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (Step.STOPPING, Step.STARTING),  # while the one that left is put back
            (Step.LOADING, Step.STOPPING),  # while the newcomer is killed
            (Step.LOADING, Step.CHECKING),
            (Step.CHECKING, Step.LOADING),
        ],
    )
    async def test_a_second_one_empties_the_card(
        self, quick: Lab, engines: ServingRuntime, first: Step, second: Step
    ) -> None:
        await quick.launch("po")
        quick.interrupt_at(first, second)
        with pytest.raises(Interrupted, match="the launch of dev was undone, the card is empty"):
            await quick.launch("dev")
        assert await engines.running() == []
        assert await quick.records() == []

    async def test_two_while_it_drains_change_nothing(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.manners["po"] = Manners(requests=1)
        first = await quick.launch("po")
        launch = asyncio.create_task(quick.launch("dev"))
        await eventually(lambda: bool(quick.remarks()), "it waits")
        assert quick.interrupts.fire()
        assert quick.interrupts.fire(), "the second may come before the first was heard"
        with pytest.raises(Interrupted, match="po is on the card"):
            await launch
        assert [each.spec.id for each in await engines.list()] == [first.instance_id]
        assert ("stop", first.instance_id) not in engines.calls

    async def test_a_start_under_way_is_seen_through_before_it_is_undone(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        held = engines.held["start", "dev"] = asyncio.Event()
        launch = asyncio.create_task(quick.launch("dev"))
        await quick.until(Step.STARTING)
        assert quick.interrupts.fire()
        await asyncio.wait((launch,), timeout=0.1)
        assert not launch.done()
        held.set()
        with pytest.raises(Interrupted, match="the card is empty"):
            await launch
        assert engines.started() == ["dev"]
        assert await quick.records() == []

    async def test_nobody_listens_before_and_after(self, quick: Lab) -> None:
        assert not quick.interrupts.fire()
        await quick.launch("dev")
        assert not quick.interrupts.fire()

    async def test_a_cancelled_launch_leaves_no_task_and_gives_the_card_back(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        engines.manners["dev"] = Manners(healthy=False)
        before = tasks()
        launch = asyncio.create_task(quick.launch("dev"))
        await quick.until(Step.LOADING)
        launch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launch
        assert tasks() == before
        assert not quick.interrupts.fire()
        await quick.stop("dev")


class TestReadyAndRemembered:
    async def test_a_start_is_recorded_once_it_answered(self, quick: Lab, engines: ServingRuntime) -> None:
        result = await quick.launch("dev")
        spec = (await engines.only()).spec
        last = StartHistory(quick.state).last(spec)
        assert last is not None
        assert last.instance_id == result.instance_id == spec.id
        assert engines.completed == ["dev"]

    async def test_a_failed_one_is_not(self, quick: Lab, engines: ServingRuntime) -> None:
        engines.manners["dev"] = Manners(completes=False)
        with pytest.raises(EngineFailed):
            await quick.launch("dev")
        assert not (quick.state.cache / "starts.json").exists()

    async def test_the_return_of_the_previous_agent_says_how_long_it_took_last(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        await quick.launch("po")
        engines.fails["start", "dev"] = EngineFailed("no")
        with pytest.raises(EngineFailed):
            await quick.launch("dev")
        (back,) = [n for n in quick.notices if isinstance(n, StepBegan) and n.step is Step.LOADING]
        assert (back.agent, back.restoring) == ("po", True)
        assert back.expected_s is not None

    async def test_one_that_serves_and_completes_nothing_is_replaced_though_the_catalog_is_the_same(
        self, quick: Lab, engines: ServingRuntime
    ) -> None:
        first = await quick.launch("dev")
        manners = engines.manners["dev"] = Manners(completes=False)

        def mend(notice: Notice) -> None:
            if isinstance(notice, StepBegan) and notice.step is Step.STARTING:
                manners.completes = True

        quick.on_notice = mend
        second = await quick.launch("dev")
        assert not second.already_running
        assert second.instance_id != first.instance_id
        assert await quick.records() == ["dev"]
