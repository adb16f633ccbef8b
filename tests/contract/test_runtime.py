"""What every runtime promises. One suite: for real processes, and for the runtime in memory."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from agent_manager.errors import EngineMissing, NotRunning, OperationFailed, PortInUse
from agent_manager.runtimes.base import NEVER_STARTED, InstanceState

from .kits import DockerKit, MemoryKit, ProcessKit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent_manager.runtimes.base import Instance, InstanceSpec, Runtime
    from agent_manager.state import StateDir
    from tests.conftest import FreePort

    from .kits import Kit


@pytest.fixture(
    params=["process", "memory", pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.timeout(300)])]
)
async def kit(request: pytest.FixtureRequest, state: StateDir, free_port: FreePort) -> AsyncIterator[Kit]:
    match request.param:
        case "process":
            made: Kit = ProcessKit(state, free_port)
        case "docker":
            request.getfixturevalue("docker_images")
            made = DockerKit(state, free_port, request.getfixturevalue("docker_host"))
        case _:
            made = MemoryKit(free_port)
    yield made
    for instance in await made.runtime.list():
        await made.runtime.stop(instance.spec.id, grace_s=0)
        if isinstance(made, DockerKit):
            await made.runtime.remove(instance.spec.id)
    if isinstance(made, DockerKit):
        made.docker.close()


async def started(kit: Kit, kind: str, *, number: int = 0) -> InstanceSpec:
    """A running instance that has said its first word, if its kind has one."""
    spec = kit.spec(kind, number=number)
    await kit.runtime.create(spec)
    await kit.runtime.start(spec.id)
    if kind in ("serves", "polite", "stubborn"):
        await said(kit.runtime, spec.id, "ready")
    return spec


async def said(runtime: Runtime, instance_id: str, text: str, *, times: int = 1) -> None:
    left = times
    async with contextlib.aclosing(runtime.logs(instance_id, follow=True)) as lines:
        async for line in lines:
            left -= line.text == text
            if not left:
                return
    raise AssertionError(f"{instance_id} ended without saying {text!r}")


async def texts(runtime: Runtime, instance_id: str, tail: int | None = None) -> list[str]:
    return [line.text async for line in runtime.logs(instance_id, tail=tail)]


async def only(runtime: Runtime) -> Instance:
    (instance,) = await runtime.list()
    return instance


async def test_what_was_created_is_listed_and_does_not_run(kit: Kit) -> None:
    spec = kit.spec("serves")
    await kit.runtime.create(spec)
    instance = await only(kit.runtime)
    assert instance.spec == spec
    assert instance.runtime == kit.runtime.name
    assert instance.state is InstanceState.CREATED
    assert (instance.started_at, instance.exit) == (None, None)
    assert await kit.runtime.pids(spec.id) == frozenset()


async def test_an_id_is_created_once(kit: Kit) -> None:
    spec = kit.spec("serves")
    await kit.runtime.create(spec)
    with pytest.raises(OperationFailed, match="exists already"):
        await kit.runtime.create(spec)
    assert (await only(kit.runtime)).spec == spec


async def test_what_was_started_runs_and_has_processes(kit: Kit) -> None:
    before = datetime.now(UTC)
    spec = await started(kit, "serves")
    instance = await only(kit.runtime)
    assert instance.state is InstanceState.RUNNING
    assert instance.started_at is not None
    assert before <= instance.started_at <= datetime.now(UTC)
    assert instance.exit is None
    assert len(await kit.runtime.pids(spec.id)) == 1
    assert (await kit.runtime.activity(spec.id)).cpu_seconds >= 0


async def test_what_runs_is_not_started_again(kit: Kit) -> None:
    spec = await started(kit, "serves")
    with pytest.raises(OperationFailed, match="running already"):
        await kit.runtime.start(spec.id)
    assert len(await kit.runtime.pids(spec.id)) == 1


async def test_of_two_starts_at_once_one_wins(kit: Kit) -> None:
    spec = kit.spec("serves")
    await kit.runtime.create(spec)
    outcomes = await asyncio.gather(*(kit.runtime.start(spec.id) for _ in range(4)), return_exceptions=True)
    assert [outcome for outcome in outcomes if outcome is None] == [None]
    assert sum(isinstance(outcome, OperationFailed) for outcome in outcomes) == 3
    await said(kit.runtime, spec.id, "ready")
    assert len(await kit.runtime.pids(spec.id)) == 1


async def test_a_missing_program_is_named_and_leaves_a_reason(kit: Kit) -> None:
    spec = kit.spec("missing")
    await kit.runtime.create(spec)
    with pytest.raises(EngineMissing, match="'no-such-engine-program'"):
        await kit.runtime.start(spec.id)
    instance = await only(kit.runtime)
    assert instance.state is InstanceState.EXITED
    assert instance.exit is not None
    assert instance.exit.code is None
    assert "no-such-engine-program" in (instance.exit.reason or "")
    assert instance.started_at is None


@pytest.mark.parametrize("which", ["agent", "engine"])
async def test_a_taken_port_is_named_with_its_holder(kit: Kit, which: str) -> None:
    spec = kit.spec("serves")
    port = spec.agent_port if which == "agent" else spec.engine_port
    assert port is not None
    await kit.runtime.create(spec)
    with kit.occupy(port) as holder, pytest.raises(PortInUse) as caught:
        await kit.runtime.start(spec.id)
    assert f"port {port} is in use by" in caught.value.message
    assert holder in caught.value.message
    instance = await only(kit.runtime)
    assert instance.state is InstanceState.EXITED
    assert instance.exit is not None
    assert instance.exit.reason == caught.value.message
    await kit.runtime.start(spec.id)  # free by now
    assert (await only(kit.runtime)).state is InstanceState.RUNNING


async def test_two_instances_cannot_share_an_agent_port(kit: Kit) -> None:
    first = await started(kit, "serves", number=1)
    second = kit.spec("serves", number=2, port=first.agent_port)
    await kit.runtime.create(second)
    with pytest.raises(PortInUse):
        await kit.runtime.start(second.id)
    assert [instance.state for instance in await kit.runtime.list()] == [
        InstanceState.RUNNING,
        InstanceState.EXITED,
    ]
    await kit.runtime.stop(first.id, grace_s=0)
    await kit.runtime.start(second.id)


async def test_stopping_lets_an_engine_say_goodbye(kit: Kit) -> None:
    spec = await started(kit, "polite")
    ended = await kit.runtime.stop(spec.id, grace_s=30)
    assert (ended.code, ended.requested, ended.reason) == (0, True, None)
    assert await texts(kit.runtime, spec.id) == ["ready", "bye"]
    instance = await only(kit.runtime)
    assert (instance.state, instance.exit) == (InstanceState.EXITED, ended)
    assert await kit.runtime.pids(spec.id) == frozenset()


async def test_sigterm_alone_ends_most(kit: Kit) -> None:
    spec = await started(kit, "serves")
    assert (await kit.runtime.stop(spec.id, grace_s=30)).code == 143


async def test_what_ignores_sigterm_is_killed_when_its_grace_is_over(kit: Kit) -> None:
    spec = await started(kit, "stubborn")
    ended = await kit.runtime.stop(spec.id, grace_s=0.2)
    assert (ended.code, ended.requested) == (137, True)
    assert await kit.runtime.pids(spec.id) == frozenset()


async def test_no_grace_kills_at_once(kit: Kit) -> None:
    spec = await started(kit, "polite")
    ended = await kit.runtime.stop(spec.id, grace_s=0)
    assert (ended.code, ended.requested) == (137, True)
    assert await texts(kit.runtime, spec.id) == ["ready"]


async def test_stopping_twice_tells_the_same(kit: Kit) -> None:
    spec = await started(kit, "polite")
    first = await kit.runtime.stop(spec.id, grace_s=30)
    assert await kit.runtime.stop(spec.id, grace_s=0) == first


async def test_two_stops_at_once_tell_the_same(kit: Kit) -> None:
    spec = await started(kit, "stubborn")
    first, second = await asyncio.gather(
        kit.runtime.stop(spec.id, grace_s=0.1), kit.runtime.stop(spec.id, grace_s=0.1)
    )
    assert first == second
    assert first.code == 137


async def test_what_was_never_started_cannot_be_stopped_or_waited_for(kit: Kit) -> None:
    spec = kit.spec("serves")
    await kit.runtime.create(spec)
    assert await kit.runtime.stop(spec.id, grace_s=0) == NEVER_STARTED
    assert await kit.runtime.wait(spec.id) == NEVER_STARTED
    assert (await only(kit.runtime)).state is InstanceState.CREATED
    assert [line async for line in kit.runtime.logs(spec.id, follow=True)] == []


async def test_waiting_gives_the_exit_code(kit: Kit) -> None:
    spec = await started(kit, "fails")
    ended = await kit.runtime.wait(spec.id)
    assert (ended.code, ended.requested, ended.reason, ended.out_of_host_memory) == (3, False, None, False)
    assert (await only(kit.runtime)).exit == ended


async def test_a_signal_is_told_as_128_and_its_number(kit: Kit) -> None:
    spec = await started(kit, "kills-itself")
    assert (await kit.runtime.wait(spec.id)).code == 137


async def test_who_waits_hears_of_a_stop(kit: Kit) -> None:
    spec = await started(kit, "serves")
    waiting = asyncio.create_task(kit.runtime.wait(spec.id))
    await asyncio.sleep(0)
    stopped = await kit.runtime.stop(spec.id, grace_s=30)
    assert await waiting == stopped


async def test_a_cancelled_wait_changes_nothing(kit: Kit) -> None:
    spec = await started(kit, "serves")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(kit.runtime.wait(spec.id), timeout=0.05)
    assert (await only(kit.runtime)).state is InstanceState.RUNNING


async def test_a_cancelled_stop_can_be_followed_by_another(kit: Kit) -> None:
    spec = await started(kit, "stubborn")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(kit.runtime.stop(spec.id, grace_s=60), timeout=0.1)
    assert (await only(kit.runtime)).state is InstanceState.RUNNING
    assert (await kit.runtime.stop(spec.id, grace_s=0)).code == 137


async def test_starting_again_keeps_the_spec_and_goes_on_with_the_log(kit: Kit) -> None:
    spec = await started(kit, "polite")
    first_start = (await only(kit.runtime)).started_at
    await kit.runtime.stop(spec.id, grace_s=30)
    await kit.runtime.start(spec.id)
    instance = await only(kit.runtime)
    assert (instance.spec, instance.state, instance.exit) == (spec, InstanceState.RUNNING, None)
    assert first_start is not None
    assert instance.started_at is not None
    assert instance.started_at > first_start
    await said(kit.runtime, spec.id, "ready", times=2)
    assert await texts(kit.runtime, spec.id) == ["ready", "bye", "ready"]
    assert (await kit.runtime.stop(spec.id, grace_s=0)).code == 137


async def test_a_second_start_that_crashes_was_not_requested(kit: Kit) -> None:
    spec = await started(kit, "fails")
    await kit.runtime.wait(spec.id)
    await kit.runtime.start(spec.id)
    ended = await kit.runtime.wait(spec.id)
    assert (ended.code, ended.requested) == (3, False)
    assert await texts(kit.runtime, spec.id) == ["one", "two", "one", "two"]


async def test_what_runs_is_not_removed(kit: Kit) -> None:
    spec = await started(kit, "serves")
    with pytest.raises(OperationFailed, match="is running"):
        await kit.runtime.remove(spec.id)
    assert (await only(kit.runtime)).state is InstanceState.RUNNING


async def test_what_was_removed_is_unknown_and_its_id_free(kit: Kit) -> None:
    spec = await started(kit, "fails")
    await kit.runtime.wait(spec.id)
    await kit.runtime.remove(spec.id)
    assert await kit.runtime.list() == ()
    with pytest.raises(NotRunning):
        await kit.runtime.start(spec.id)
    await kit.runtime.create(spec)
    assert await texts(kit.runtime, spec.id) == []


@pytest.mark.parametrize("instance_id", ["dev-0badf00d", "../escape", ""])
async def test_an_unknown_id_is_not_running(kit: Kit, instance_id: str) -> None:
    runtime = kit.runtime
    for call in (
        runtime.start(instance_id),
        runtime.stop(instance_id, grace_s=0),
        runtime.wait(instance_id),
        runtime.remove(instance_id),
        runtime.pids(instance_id),
        runtime.activity(instance_id),
        anext(runtime.logs(instance_id)),
        anext(runtime.logs(instance_id, follow=True)),
    ):
        with pytest.raises(NotRunning):
            await call


async def test_instances_are_listed_oldest_first(kit: Kit) -> None:
    specs = [kit.spec("serves", number=number) for number in (5, 1, 9, 3)]
    for spec in specs:
        await kit.runtime.create(spec)
    assert [instance.spec for instance in await kit.runtime.list()] == specs


async def test_logs_have_times_and_an_order(kit: Kit) -> None:
    before = datetime.now(UTC)
    spec = await started(kit, "fails")
    await kit.runtime.wait(spec.id)
    lines = [line async for line in kit.runtime.logs(spec.id)]
    assert [line.text for line in lines] == ["one", "two"]
    assert before <= lines[0].at <= lines[1].at <= datetime.now(UTC)


async def test_logs_can_be_cut_to_their_tail(kit: Kit) -> None:
    spec = await started(kit, "talks")
    await said(kit.runtime, spec.id, "line 9")
    assert await texts(kit.runtime, spec.id, tail=3) == ["line 7", "line 8", "line 9"]
    assert await texts(kit.runtime, spec.id, tail=0) == []
    assert len(await texts(kit.runtime, spec.id, tail=100)) == 10


async def test_logs_can_begin_at_a_time(kit: Kit) -> None:
    spec = await started(kit, "fails")
    await kit.runtime.wait(spec.id)
    between = datetime.now(UTC)
    await kit.runtime.start(spec.id)
    await kit.runtime.wait(spec.id)
    since = [line.text async for line in kit.runtime.logs(spec.id, since=between)]
    assert since == ["one", "two"]
    assert [line.text async for line in kit.runtime.logs(spec.id, since=between, tail=1)] == ["two"]
    assert [line.text async for line in kit.runtime.logs(spec.id, since=datetime.now(UTC))] == []


async def test_following_ends_with_the_instance(kit: Kit) -> None:
    spec = await started(kit, "polite")

    async def follow() -> list[str]:
        return [line.text async for line in kit.runtime.logs(spec.id, follow=True)]

    following = asyncio.create_task(follow())
    await kit.runtime.stop(spec.id, grace_s=30)
    assert await following == ["ready", "bye"]


async def test_following_after_the_end_reads_it_all(kit: Kit) -> None:
    spec = await started(kit, "fails")
    assert [line.text async for line in kit.runtime.logs(spec.id, follow=True)] == ["one", "two"]
    assert [line.text async for line in kit.runtime.logs(spec.id, follow=True, tail=1)] == ["two"]


async def test_following_can_be_cancelled(kit: Kit) -> None:
    spec = await started(kit, "serves")

    async def follow() -> None:
        async for _ in kit.runtime.logs(spec.id, follow=True):
            pass

    following = asyncio.create_task(follow())
    await said(kit.runtime, spec.id, "ready")
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert (await only(kit.runtime)).state is InstanceState.RUNNING


async def test_listing_goes_on_while_instances_come_and_go(kit: Kit) -> None:
    done = asyncio.Event()

    async def watch() -> int:
        looks = 0
        while not done.is_set():
            for instance in await kit.runtime.list():
                assert (instance.exit is not None) == (instance.state is InstanceState.EXITED)
            looks += 1
        return looks

    watching = [asyncio.create_task(watch()) for _ in range(2)]
    for number in range(5):
        spec = await started(kit, "serves", number=number)
        await kit.runtime.stop(spec.id, grace_s=0)
        await kit.runtime.remove(spec.id)
    done.set()
    assert all(looks > 5 for looks in await asyncio.gather(*watching))
    assert await kit.runtime.list() == ()
