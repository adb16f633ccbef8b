"""launch and restart with real processes on the simulated card: what is told, and what is true afterwards."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from agent_manager.errors import (
    AgentUnknown,
    CardBusy,
    CheckpointUnusable,
    DoesNotFit,
    EngineFailed,
    EngineMissing,
    Interrupted,
    MemoryHeld,
    PortInUse,
)
from agent_manager.gpu.base import GIB
from agent_manager.gpu.simulated import CARD_ID, TOTAL_BYTES, claim
from agent_manager.runtimes.ports import listen
from agent_manager.swap import operations
from agent_manager.swap.lock import own_card, read_owner
from agent_manager.swap.notices import LoadProgress, Step, StepBegan

if TYPE_CHECKING:
    from pathlib import Path

    from agent_manager.swap.notices import LaunchPlan, Notice

    from .conftest import Lab

SWAP = ["draining po", "stopping po", "starting dev", "loading dev", "checking dev"]


def _planned(plan: LaunchPlan) -> list[str]:
    return [f"{step.verb} {step.subject}: {step.cause}" for step in plan.steps]


class TestLaunch:
    async def test_a_swap_tells_each_step_and_phase_in_order(self, lab: Lab) -> None:
        first = await lab.launch("po")
        assert lab.steps() == ["starting po", "loading po", "checking po"]
        assert (first.replaced, first.already_running, first.simulated) == ((), False, True)
        assert first.base_url == f"http://localhost:{lab.ports['po']}/v1"
        assert (first.engine, first.runtime, first.model, first.card) == (
            "simulated",
            "process",
            "small",
            CARD_ID,
        )
        lab.catalog(load_s=1)
        result = await lab.launch("dev")
        assert lab.steps() == SWAP
        assert lab.phases()[0] == "starting vLLM"
        assert "loading weights" in lab.phases()
        told = [n for n in lab.notices if isinstance(n, LoadProgress)]
        assert all(notice.agent == "dev" for notice in told)
        assert [n.phase.order for n in told] == sorted(n.phase.order for n in told)
        assert result.replaced == ("po",)
        assert result.ready_after_s is not None
        assert result.ready_after_s > 0
        assert await lab.running() == await lab.records() == ["dev"]
        assert lab.remarks(warning=True) == []
        assert not (lab.state.card(CARD_ID) / "owner.json").exists()

    async def test_the_next_start_is_told_what_the_last_one_took(self, lab: Lab) -> None:
        first = await lab.launch("dev")
        assert [n.expected_s for n in lab.notices if isinstance(n, StepBegan)] == [None, None, None]
        assert first.ready_after_s is not None
        assert (await lab.status("dev")).ready_after_s == pytest.approx(first.ready_after_s, abs=0.001)
        await lab.launch("dev", again=True)
        expected = {n.step: n.expected_s for n in lab.notices if isinstance(n, StepBegan)}
        assert expected.pop(Step.LOADING) == pytest.approx(first.ready_after_s, abs=0.001)
        assert set(expected.values()) == {None}

    async def test_what_serves_already_is_asked_for_a_word_and_left_alone(self, lab: Lab) -> None:
        first = await lab.launch("dev")
        second = await lab.launch("dev")
        assert second.already_running
        assert second.instance_id == first.instance_id
        assert second.ready_after_s is None
        assert lab.steps() == []

    async def test_a_changed_catalog_replaces_the_agent(self, lab: Lab) -> None:
        first = await lab.launch("dev")
        lab.catalog(context="8k")
        plan = await operations.plan_launch(lab.host(), "dev")
        assert "stop dev: the catalog changed" in _planned(plan)
        second = await lab.launch("dev")
        assert lab.steps() == [step.replace("po", "dev") for step in SWAP]
        assert second.instance_id != first.instance_id
        assert not second.already_running
        assert second.replaced == ()
        assert await lab.records() == ["dev"]
        (instance,) = await lab.runtime.list()
        assert "8192" in instance.spec.argv

    async def test_two_catalogs_share_the_card_and_adopt_only_what_is_the_same(self, lab: Lab) -> None:
        mine = lab.catalog_path
        first = await lab.launch("dev")
        lab.catalog_path = mine.with_name("same.yaml")
        lab.catalog()
        assert (await lab.launch("dev")).instance_id == first.instance_id
        lab.catalog_path = mine.with_name("other.yaml")
        lab.catalog(inter_token_ms=1)
        assert (await lab.launch("dev")).instance_id != first.instance_id
        assert await lab.records() == ["dev"]

    async def test_a_log_of_the_agent_that_left_is_kept(self, lab: Lab) -> None:
        await lab.launch("po")
        before = await lab.log("po")
        await lab.launch("dev")
        kept = await lab.log("po")
        assert kept[: len(before)] == before
        assert await lab.log("po", tail=2) == kept[-2:]

    async def test_restart_is_a_new_instance(self, lab: Lab) -> None:
        first = await lab.launch("dev")
        second = await operations.restart(lab.host(), "dev", listener=lab.listen)
        assert second.instance_id != first.instance_id
        assert not second.already_running
        assert await lab.records() == ["dev"]

    async def test_restart_of_what_is_not_there_is_a_launch(self, lab: Lab) -> None:
        result = await operations.restart(lab.host(), "dev", listener=lab.listen)
        assert result.agent == "dev"
        assert await lab.running() == ["dev"]

    async def test_a_failed_restart_puts_the_old_one_back(self, lab: Lab) -> None:
        first = await lab.launch("dev")
        lab.catalog(dev="refuse-start")
        with pytest.raises(EngineFailed):
            await operations.restart(lab.host(), "dev", listener=lab.listen)
        assert lab.remarks(warning=True) == ["dev is on the card"]
        status = await lab.status("dev")
        assert (status.state, status.instance_id) == ("ready", first.instance_id)

    async def test_an_unknown_agent(self, lab: Lab) -> None:
        with pytest.raises(AgentUnknown, match="no agent named 'dve'"):
            await lab.launch("dve")
        with pytest.raises(AgentUnknown):
            await operations.plan_launch(lab.host(), "dve")

    async def test_a_port_that_somebody_else_has(self, lab: Lab) -> None:
        await lab.launch("po")
        for port in (lab.ports["dev"], lab.ports["dev"] + 100):
            squatter = listen(port)
            with pytest.raises(PortInUse, match=rf"port {port} is in use by .*pid {os.getpid()}"):
                await lab.launch("dev")
            squatter.close()
        assert lab.steps() == []
        assert (await lab.status("po")).state == "ready"

    async def test_a_full_disk_at_the_history_does_not_fail_a_start(self, lab: Lab) -> None:
        lab.state.root.mkdir()
        lab.state.cache.write_text("in the way of the folder: as good as a full disk, for root too")
        result = await lab.launch("dev")
        assert result.ready_after_s is not None
        assert (await lab.status("dev")).ready_after_s is None


class TestMemory:
    async def test_memory_that_others_hold_is_waited_for_and_they_are_named(self, lab: Lab) -> None:
        with claim(_card(lab), "a-game", 8 * GIB) as game:
            launch = asyncio.create_task(lab.launch("dev"))
            await lab.until(Step.WAITING_FOR_MEMORY)
            assert await lab.running() == []
            assert (await lab.status("dev")).state == "absent"
            owner = read_owner(lab.state, CARD_ID)
            assert owner is not None
            assert (owner.verb, owner.step, owner.agent) == ("launch dev", "waiting for memory", "dev")
            (remark,) = lab.remarks()
            assert remark == f"7.47 of 15.47 GiB are free; held by a-game (pid {os.getpid()})"
            game.resize(0)
            await launch
        assert lab.steps()[:2] == ["waiting for memory dev", "starting dev"]
        assert await lab.running() == ["dev"]

    async def test_without_it_the_agent_that_left_goes_back(self, lab: Lab) -> None:
        first = await lab.launch("po")
        claimed = (await lab.runtime.list())[0].spec.claim_bytes
        # po fits beside it, as it did before; dev does not get the half GiB on top that a start needs.
        with claim(_card(lab), "a-game", TOTAL_BYTES - claimed):
            with pytest.raises(MemoryHeld) as raised:
                await lab.launch("dev", memory_timeout_s=0.2)
            assert f"a-game (pid {os.getpid()})" in raised.value.message
            assert raised.value.message.startswith("dev needs ")
            assert raised.value.exit_code == 3
            assert raised.value.hint
            assert lab.steps() == [
                "draining po",
                "stopping po",
                "waiting for memory dev",
                "back: starting po",
                "back: loading po",
                "checking po",
            ]
            assert lab.remarks(warning=True) == ["po is on the card"]
            status = await lab.status("po")
            assert (status.state, status.instance_id) == ("ready", first.instance_id)
            assert await lab.records() == ["po"]

    async def test_without_room_for_either_the_card_stays_empty_and_says_so(self, lab: Lab) -> None:
        await lab.launch("po")
        taken = [claim(_card(lab), "early", GIB)]

        def take_more(notice: Notice) -> None:
            if isinstance(notice, StepBegan) and notice.step is Step.WAITING_FOR_MEMORY and len(taken) == 1:
                taken.append(claim(_card(lab), "a-game", 8 * GIB))

        lab.on_notice = take_more
        with pytest.raises(MemoryHeld, match=r"^dev needs"):
            await lab.launch("dev", memory_timeout_s=0.2)
        for each in taken:
            each.release()
        assert lab.remarks(warning=True) == ["the card is empty"]
        assert await lab.records() == []
        assert await lab.log("po")


class TestBeforeAnythingIsTouched:
    async def test_no_pull_and_no_checkpoint(self, lab: Lab) -> None:
        await lab.launch("po")
        lab.catalog(engine="vllm-cpu")
        with pytest.raises(CheckpointUnusable, match=r"model small: .* was never downloaded") as raised:
            await operations.launch(
                lab.host(runtime="process"), "dev", listener=lab.listen, pull=False, wait_s=0
            )
        assert raised.value.hint == "launch without --no-pull fetches what is missing"
        assert await lab.running() == ["po"]

    async def test_what_does_not_fit(self, lab: Lab) -> None:
        await lab.launch("po")
        lab.catalog(context="32k")
        text = lab.catalog_path.read_text().replace("sequences: 4", "sequences: 4, utilization: 0.3")
        lab.catalog_path.write_text(text.replace("utilization", "gpu_memory_utilization"))
        with pytest.raises(DoesNotFit) as raised:
            await lab.launch("dev")
        assert raised.value.where == "agents.dev"
        assert raised.value.hint
        assert lab.steps() == []
        assert await lab.running() == ["po"]

    async def test_another_owner(self, lab: Lab) -> None:
        await lab.launch("po")
        async with own_card(lab.state, CARD_ID, verb="restart po"):
            with pytest.raises(CardBusy, match=rf"owned by 'restart po' \(pid {os.getpid()}\)"):
                await lab.launch("dev")
            with pytest.raises(CardBusy):
                await lab.stop("po")
        assert lab.steps() == []
        assert await lab.running() == ["po"]

    async def test_an_owner_that_is_waited_for(self, lab: Lab) -> None:
        async with own_card(lab.state, CARD_ID, verb="stop"):
            launch = asyncio.create_task(lab.launch("dev", wait_s=60))
            await asyncio.wait((launch,), timeout=0.3)
            assert lab.steps() == []
            assert not launch.done()
        await launch
        assert await lab.running() == ["dev"]


class TestUndone:
    async def test_a_missing_program_puts_the_previous_agent_back(self, lab: Lab) -> None:
        first = await lab.launch("po")
        catalog = lab.host().catalog
        settings = replace(catalog.engines["simulated"], command=("no-such-program",))
        host = lab.host(catalog=replace(catalog, engines={**catalog.engines, "simulated": settings}))
        with pytest.raises(EngineMissing, match="no-such-program"):
            await operations.launch(host, "dev", listener=lab.listen)
        assert lab.remarks(warning=True) == ["po is on the card"]
        assert (await lab.status("po")).instance_id == first.instance_id
        assert await lab.records() == ["po"]

    @pytest.mark.parametrize("fault", ["refuse-start", "oom", "crash-at-load:50", "lie-in-health"])
    async def test_a_failed_start_keeps_its_log_and_puts_back(self, lab: Lab, fault: str) -> None:
        first = await lab.launch("po")
        lab.catalog(dev=fault)
        with pytest.raises(EngineFailed) as raised:
            await lab.launch("dev")
        assert raised.value.message.startswith("dev ")
        assert raised.value.hint
        assert raised.value.where
        assert lab.remarks(warning=True) == ["po is on the card"]
        assert (await lab.status("po")).instance_id == first.instance_id
        assert (await lab.status("dev")).state == "absent"
        assert await lab.log("dev")
        assert await lab.records() == ["po"]

    @pytest.mark.parametrize("at", [Step.DRAINING, Step.STOPPING, Step.STARTING, Step.LOADING, Step.CHECKING])
    async def test_an_interrupt_at_each_step_leaves_the_previous_agent(self, lab: Lab, at: Step) -> None:
        first = await lab.launch("po")
        lab.interrupt_at(at)
        with pytest.raises(Interrupted, match="the launch of dev was undone, po is on the card"):
            await lab.launch("dev")
        assert not lab.interrupts.fire(), "nobody listens any more"
        status = await lab.status("po")
        assert (status.state, status.instance_id) == ("ready", first.instance_id)
        assert await lab.records() == ["po"]
        assert read_owner(lab.state, CARD_ID) is None


async def test_two_launches_of_the_same_agent_at_once(lab: Lab) -> None:
    lab.catalog(load_s=0.3)
    outcomes = await asyncio.gather(lab.launch("dev"), lab.launch("dev"), return_exceptions=True)
    busy = [each for each in outcomes if isinstance(each, CardBusy)]
    assert len(busy) == 1
    assert "launch dev" in busy[0].message
    assert await lab.running() == ["dev"]


def _card(lab: Lab) -> Path:
    return lab.state.card(CARD_ID)
