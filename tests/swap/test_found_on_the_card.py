"""What earlier operations left on the card: followed, adopted or removed; and what a plan says of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from agent_manager.errors import (
    EngineFailed,
    Interrupted,
    MemoryHeld,
)
from agent_manager.gpu.simulated import CARD_ID
from agent_manager.runtimes.base import InstanceState
from agent_manager.runtimes.process import ProcessRuntime
from agent_manager.swap import operations
from agent_manager.swap.notices import Step

if TYPE_CHECKING:
    from agent_manager.swap.notices import LaunchPlan

    from .conftest import Lab


def _planned(plan: LaunchPlan) -> list[str]:
    return [f"{step.verb} {step.subject}: {step.cause}" for step in plan.steps]


class TestTakingOver:
    async def test_a_load_that_was_left_behind_is_followed(self, lab: Lab) -> None:
        lab.catalog(load_s=20)  # for ever, as far as this test goes
        left = await lab.leave_loading("dev")
        assert left.state is InstanceState.RUNNING
        status = await lab.status("dev")
        assert (status.state, status.instance_id) == ("starting", left.spec.id)
        assert _planned(await operations.plan_launch(lab.host(), "dev")) == [
            "follow dev: it is loading already"
        ]
        follower = asyncio.create_task(lab.launch("dev"))
        await lab.until(Step.LOADING)
        assert lab.steps() == ["loading dev"]
        assert [each.spec.id for each in await lab.runtime.list()] == [left.spec.id]
        lab.interrupts.fire()
        with pytest.raises(Interrupted, match="the card is empty"):
            await follower
        assert await lab.records() == []

    async def test_a_followed_load_that_becomes_ready(self, lab: Lab) -> None:
        lab.catalog(load_s=1)
        launch = asyncio.create_task(lab.launch("dev"))
        await lab.until(Step.LOADING)
        (left,) = await lab.runtime.list()
        (pid,) = await lab.runtime.pids(left.spec.id)
        os.kill(pid, signal.SIGSTOP)  # it must still be loading when the next one looks
        launch.cancel()
        await asyncio.gather(launch, return_exceptions=True)
        follower = asyncio.create_task(lab.launch("dev"))
        await lab.until(Step.LOADING)
        os.kill(pid, signal.SIGCONT)
        result = await follower
        assert result.instance_id == left.spec.id
        assert (result.already_running, result.ready_after_s) == (False, None)
        assert (await lab.status("dev")).state == "ready"

    async def test_a_followed_load_that_fails_puts_back_what_it_replaced(self, lab: Lab) -> None:
        first = await lab.launch("po")
        lab.catalog(load_s=20)
        left = await lab.leave_loading("dev")
        assert await lab.records() == ["po", "dev"]
        follower = asyncio.create_task(lab.launch("dev"))
        await lab.until(Step.LOADING)
        for pid in await lab.runtime.pids(left.spec.id):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineFailed, match="it was killed"):
            await follower
        assert lab.steps() == [
            "loading dev",
            "stopping dev",
            "back: starting po",
            "back: loading po",
            "checking po",
        ]
        assert (await lab.status("po")).instance_id == first.instance_id
        assert await lab.records() == ["po"]

    async def test_another_load_that_was_left_behind_is_removed(self, lab: Lab) -> None:
        lab.catalog(load_s=20)
        left = await lab.leave_loading("dev")
        lab.catalog()
        planned = _planned(await operations.plan_launch(lab.host(), "po"))
        assert planned == [
            f"remove {left.spec.id}: loading: left by an earlier operation",
            "start po: it was asked for",
        ]
        await lab.launch("po")
        assert await lab.records() == await lab.running() == ["po"]
        assert await lab.log("dev"), "its log is kept"

    async def test_an_engine_that_died_is_removed_with_its_log_kept(self, lab: Lab) -> None:
        first = await lab.launch("dev")
        for pid in await lab.runtime.pids(first.instance_id):
            os.kill(pid, signal.SIGKILL)
        await lab.runtime.wait(first.instance_id)
        planned = _planned(await operations.plan_launch(lab.host(), "dev"))
        assert planned == [
            f"remove {first.instance_id}: over: left by an earlier operation",
            "start dev: it was asked for",
        ]
        second = await lab.launch("dev")
        assert second.instance_id != first.instance_id
        assert await lab.records() == ["dev"]


class TestPlan:
    async def test_on_an_empty_card(self, lab: Lab) -> None:
        plan = await operations.plan_launch(lab.host(), "dev")
        assert _planned(plan) == ["start dev: it was asked for"]
        assert (plan.agent, plan.engine, plan.runtime, plan.card) == ("dev", "simulated", "process", CARD_ID)
        assert plan.fit is not None
        assert plan.fit.agent == "dev"
        assert str(lab.ports["dev"] + 100) in plan.argv
        assert not lab.state.root.exists(), "a plan touches nothing"

    async def test_of_a_swap(self, lab: Lab) -> None:
        await lab.launch("po")
        files = sorted(lab.state.root.rglob("*"))
        assert _planned(await operations.plan_launch(lab.host(), "dev")) == [
            "drain po: it is on the card that dev needs",
            "stop po: it is on the card that dev needs",
            "start dev: it was asked for",
            "remove po: dev is ready; until then it can go back",
        ]
        assert sorted(lab.state.root.rglob("*")) == files
        assert await lab.running() == ["po"]

    async def test_of_what_serves_already(self, lab: Lab) -> None:
        await lab.launch("dev")
        planned = _planned(await operations.plan_launch(lab.host(), "dev"))
        assert planned == ["keep dev: it serves already, as the catalog says"]

    async def test_with_a_checkpoint_to_pull(self, lab: Lab) -> None:
        lab.catalog(engine="vllm-cpu")
        plan = await operations.plan_launch(lab.host(runtime="process"), "dev")
        assert _planned(plan) == [
            "pull small: Qwen/Qwen2.5-7B-Instruct-AWQ was never downloaded",
            "start dev: it was asked for",
        ]
        assert plan.fit is not None, "its figures are public"
        assert plan.argv[:2] == ("no-such-vllm", "serve")

    async def test_with_a_checkpoint_nobody_knows(self, lab: Lab) -> None:
        lab.catalog(engine="vllm-cpu", model="obscure")
        plan = await operations.plan_launch(lab.host(runtime="process"), "dev")
        assert _planned(plan)[0] == "pull obscure: Nobody/Knows-It was never downloaded"
        assert (plan.fit, plan.argv) == (None, ())


async def test_a_broken_record_does_not_keep_others_from_the_card(lab: Lab) -> None:
    broken = lab.state.instances / "po-00000000"
    broken.mkdir(parents=True)
    (broken / "spec.json").write_text("{")
    assert (await lab.launch("dev")).agent == "dev"
    (lab.state.instances / (await lab.runtime.list())[0].spec.id / "shim.json").write_text(json.dumps([]))
    assert (await lab.status("dev")).state == "ready", "its processes are there, whatever its record says"
    assert (await lab.stop("dev")).stopped == ("dev",)


async def test_an_engine_whose_record_was_lost_holds_its_memory_and_is_named(lab: Lab) -> None:
    first = await lab.launch("po")
    (pid,) = await lab.runtime.pids(first.instance_id)
    record = lab.state.instances / first.instance_id / "spec.json"
    content = record.read_bytes()
    record.write_text("{")
    with pytest.raises(MemoryHeld, match=rf"held by {first.instance_id} \(pid {pid}\)"):
        await lab.launch("dev", memory_timeout_s=0.1)
    assert "starting dev" not in lab.steps(), "at most one engine is on the card"
    record.write_bytes(content)
    await lab.launch("dev")
    assert await lab.running() == ["dev"]


async def test_a_runtime_of_another_process_sees_the_same(lab: Lab) -> None:
    first = await lab.launch("dev")
    lab.runtime = ProcessRuntime(lab.state)
    assert (await lab.launch("dev")).instance_id == first.instance_id
