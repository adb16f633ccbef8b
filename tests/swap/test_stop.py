"""stop with real processes on the simulated card."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from agent_manager.errors import (
    AgentUnknown,
    Interrupted,
    NotRunning,
)
from agent_manager.swap import operations
from agent_manager.swap.notices import Step, StepBegan

if TYPE_CHECKING:
    from .conftest import Lab


class TestStop:
    async def test_stops_what_is_named_and_keeps_its_log(self, lab: Lab) -> None:
        await lab.launch("po")
        result = await lab.stop("po")
        assert result.stopped == ("po",)
        assert lab.steps() == ["draining po", "stopping po"]
        assert await lab.records() == []
        assert await lab.log("po")
        with pytest.raises(NotRunning, match="po is not running"):
            await lab.stop("po")

    async def test_without_names_stops_whatever_there_is(self, lab: Lab) -> None:
        await lab.launch("dev")
        assert (await lab.stop()).stopped == ("dev",)
        with pytest.raises(NotRunning, match="nothing is running"):
            await lab.stop()
        assert (await lab.stop(everything=True)).stopped == ()

    async def test_of_one_that_is_not_there_touches_nothing(self, lab: Lab) -> None:
        await lab.launch("dev")
        with pytest.raises(NotRunning, match="po is not running"):
            await lab.stop("dev", "po")
        with pytest.raises(AgentUnknown):
            await lab.stop("nobody")
        assert await lab.running() == ["dev"]

    async def test_an_agent_that_is_in_no_catalog_any_more_can_be_stopped(self, lab: Lab) -> None:
        await lab.launch("dev")
        lab.catalog_path.write_text(lab.catalog_path.read_text().replace("\n  dev:", "\n  tester:"))
        assert (await lab.stop("dev")).stopped == ("dev",)
        assert await lab.running() == []

    async def test_an_engine_that_failed_is_cleaned_up(self, lab: Lab) -> None:
        first = await lab.launch("dev")
        for pid in await lab.runtime.pids(first.instance_id):
            os.kill(pid, signal.SIGKILL)
        await lab.runtime.wait(first.instance_id)
        assert (await lab.stop("dev")).stopped == ("dev",)
        assert await lab.records() == []
        assert await lab.log("dev")

    async def test_after_waiting_for_a_swap_whatever_is_there_then_is_stopped(self, lab: Lab) -> None:
        await lab.launch("po")
        stops = []
        begun = asyncio.Event()

        def begin(notice: object) -> None:
            if isinstance(notice, StepBegan) and notice.step is Step.DRAINING and not begun.is_set():
                begun.set()
                stops.append(
                    asyncio.create_task(
                        operations.stop(lab.host(), (), listener=lambda _: None, everything=True, wait_s=60)
                    )
                )

        lab.on_notice = begin
        # Not the listing of before the wait: the instance that it saw is gone when the card is free.
        await asyncio.gather(lab.launch("dev"))
        assert (await stops[0]).stopped == ("dev",)
        assert await lab.records() == []

    @pytest.mark.parametrize(("at", "left"), [(Step.DRAINING, ["po"]), (Step.STOPPING, [])])
    async def test_an_interrupt_keeps_the_agent_while_it_still_serves(
        self, lab: Lab, at: Step, left: list[str]
    ) -> None:
        await lab.launch("po")
        lab.interrupt_at(at)
        if left:
            with pytest.raises(Interrupted, match="the stop was undone, po is on the card"):
                await lab.stop("po")
            assert (await lab.status("po")).state == "ready"
        else:
            assert (await lab.stop("po")).stopped == ("po",)
        assert await lab.running() == left
        assert await lab.records() == left
