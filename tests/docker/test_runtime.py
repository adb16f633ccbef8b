"""What the docker runtime does beyond the contract of every runtime: images, names, GPUs, memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from agent_manager.errors import DockerNotReady, EngineMissing, HostNotReady
from agent_manager.runtimes.base import InstanceState
from agent_manager.runtimes.docker.runtime import DockerRuntime
from tests.contract.kits import DockerKit
from tests.docker.registry import registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import docker

    from agent_manager.runtimes.base import Fetching, InstanceSpec
    from agent_manager.state import StateDir
    from tests.conftest import FreePort

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture
async def kit(
    state: StateDir, free_port: FreePort, docker_host: str, docker_images: None
) -> AsyncIterator[DockerKit]:
    del docker_images  # they are there
    made = DockerKit(state, free_port, docker_host)
    yield made
    for instance in await made.runtime.list():
        await made.runtime.stop(instance.spec.id, grace_s=0)
        await made.runtime.remove(instance.spec.id)
    made.docker.close()


def changed(spec: InstanceSpec, **service: object) -> InstanceSpec:
    """The same instance, with other keys in its compose service."""
    document: dict[str, Any] = dict(spec.document or {})
    return replace(
        spec,
        document=document | {"services": {spec.agent: document["services"][spec.agent] | service}},
    )


async def test_an_image_is_fetched_layer_by_layer(
    state: StateDir, kit: DockerKit, docker_host: str, api: docker.APIClient
) -> None:
    layers = (secrets.token_bytes(3 << 20), secrets.token_bytes(1000))
    told: list[Fetching] = []
    runtime = DockerRuntime(state, environ={"DOCKER_HOST": docker_host}, room_bytes=1)
    with registry(layers) as address:
        image = f"{address}/tiny/image:1"
        await runtime.provide(changed(kit.spec("serves"), image=image), fetch=True, tell=told.append)
    assert api.inspect_image(image)["Id"]
    api.remove_image(image)
    assert {now.subject for now in told} == {image}
    assert [now.message for now in told if now.message] == [
        "layer 1 of 2 is here",
        "layer 2 of 2 is here",
    ]
    assert told[-1].done_bytes == told[-1].total_bytes > 3 << 20
    assert [now.done_bytes for now in told] == sorted(now.done_bytes for now in told)
    runtime.close()


async def test_a_fetch_can_be_given_up(state: StateDir, kit: DockerKit, docker_host: str) -> None:
    runtime = DockerRuntime(state, environ={"DOCKER_HOST": docker_host}, room_bytes=1)
    begun = asyncio.Event()
    with registry((secrets.token_bytes(64 << 20),)) as address:
        spec = changed(kit.spec("serves"), image=f"{address}/large/image:1")
        fetching = asyncio.create_task(runtime.provide(spec, fetch=True, tell=lambda _: begun.set()))
        await begun.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    runtime.close()


async def test_without_room_nothing_is_fetched(state: StateDir, kit: DockerKit, docker_host: str) -> None:
    runtime = DockerRuntime(state, environ={"DOCKER_HOST": docker_host}, room_bytes=1 << 60)
    spec = changed(kit.spec("serves"), image="127.0.0.1:9/no/image:1")
    with pytest.raises(HostNotReady, match="GiB are free under"):
        await runtime.provide(spec, fetch=True, tell=lambda _: None)
    runtime.close()


async def test_a_registry_that_lacks_it_is_told(state: StateDir, kit: DockerKit, docker_host: str) -> None:
    runtime = DockerRuntime(state, environ={"DOCKER_HOST": docker_host}, room_bytes=1)
    spec = changed(kit.spec("serves"), image="127.0.0.1:9/no/image:1")
    with pytest.raises(EngineMissing, match="the image cannot be fetched") as caught:
        await runtime.provide(spec, fetch=True, tell=lambda _: None)
    assert caught.value.hint
    runtime.close()


async def test_a_container_that_cannot_have_its_gpu_is_cleaned(kit: DockerKit) -> None:
    device = {"driver": "nvidia", "device_ids": ["GPU-none"], "capabilities": ["gpu"]}
    spec = changed(kit.spec("serves"), deploy={"resources": {"reservations": {"devices": [device]}}})
    await kit.runtime.create(spec)
    with pytest.raises(DockerNotReady) as caught:
        await kit.runtime.start(spec.id)
    assert "GPU" in caught.value.message
    assert "NVIDIA Container Toolkit" in (caught.value.hint or "")
    (instance,) = await kit.runtime.list()
    assert instance.state is InstanceState.EXITED
    assert instance.exit is not None
    assert instance.exit.reason == caught.value.message
    await kit.runtime.remove(spec.id)
    assert await kit.runtime.list() == ()


async def test_a_folder_that_is_not_there_is_named(kit: DockerKit) -> None:
    mount = {"type": "bind", "source": "/no/such/hub", "target": "/hub", "bind": {"create_host_path": False}}
    spec = changed(kit.spec("serves"), volumes=[mount])
    with pytest.raises(HostNotReady, match="Docker does not see the folder /no/such/hub"):
        await kit.runtime.create(spec)
    assert await kit.runtime.list() == ()


async def test_the_newest_instance_has_the_name_and_one_that_is_put_back_has_it_again(
    kit: DockerKit, api: docker.APIClient
) -> None:
    old, new = kit.spec("polite", number=1), kit.spec("polite", number=2)
    await kit.runtime.create(old)
    await kit.runtime.start(old.id)
    await kit.runtime.stop(old.id, grace_s=0)
    await kit.runtime.create(new)

    def named() -> str:
        labels: dict[str, str] = api.inspect_container(f"agent-manager-{new.agent}")["Config"]["Labels"]
        return labels["io.agent-manager.instance"]

    assert named() == new.id
    await kit.runtime.remove(new.id)
    await kit.runtime.start(old.id)
    assert named() == old.id


async def test_memory_that_the_host_takes_back_is_told(kit: DockerKit, api: docker.APIClient) -> None:
    eats = "x = []\nwhile True: x.append(bytearray(1 << 20))\n"
    spec = changed(kit.spec("serves"), command=["python3.11", "-c", eats])
    await kit.runtime.create(spec)
    api.update_container(f"agent-manager-{spec.agent}", mem_limit="32m", memswap_limit="32m")
    await kit.runtime.start(spec.id)
    ended = await kit.runtime.wait(spec.id)
    assert (ended.code, ended.out_of_host_memory) == (137, True)


async def test_a_long_line_is_one_line(kit: DockerKit) -> None:
    spec = changed(kit.spec("serves"), command=["python3.11", "-c", "print('x' * 50_000); print('end')"])
    await kit.runtime.create(spec)
    await kit.runtime.start(spec.id)
    await kit.runtime.wait(spec.id)
    async with contextlib.aclosing(kit.runtime.logs(spec.id)) as lines:
        assert [line.text async for line in lines] == ["x" * 50_000, "end"]


async def test_work_shows_in_its_activity(kit: DockerKit) -> None:
    spec = changed(kit.spec("serves"), command=["python3.11", "-c", "while True: pass"])
    await kit.runtime.create(spec)
    await kit.runtime.start(spec.id)
    before = await kit.runtime.activity(spec.id)
    async with asyncio.timeout(30):
        while (await kit.runtime.activity(spec.id)).cpu_seconds <= before.cpu_seconds:
            pass


async def test_its_processes_are_those_of_the_host(kit: DockerKit) -> None:
    spec = kit.spec("serves")
    await kit.runtime.create(spec)
    await kit.runtime.start(spec.id)
    (pid,) = await kit.runtime.pids(spec.id)
    os.kill(pid, 0)


async def test_a_broken_label_is_skipped(kit: DockerKit, api: docker.APIClient) -> None:
    spec = kit.spec("serves")
    await kit.runtime.create(spec)
    labels = api.inspect_container(f"agent-manager-{spec.agent}")["Config"]["Labels"]
    image = api.inspect_container(f"agent-manager-{spec.agent}")["Config"]["Image"]
    made = api.create_container(image, ["true"], labels=labels | {"io.agent-manager.spec": "{"})
    try:
        assert [instance.spec for instance in await kit.runtime.list()] == [spec]
    finally:
        api.remove_container(made["Id"])
