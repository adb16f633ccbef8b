"""The agent port: what the shim forwards, and what becomes of streams when either end goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_manager.errors import HostNotReady, PortInUse
from agent_manager.runtimes import ports
from agent_manager.runtimes.ports import listen, port_holder, require_free
from tests.contract.kits import READY, SLEEP

from .conftest import eventually

if TYPE_CHECKING:
    from agent_manager.runtimes.base import InstanceSpec
    from tests.conftest import FreePort

    from .conftest import Lab

# Sends back what it gets, and an end for an end. Ends a stream that says "bye" by resetting it.
ECHO = (
    "import asyncio, socket, struct, sys\n"
    "async def echo(reader, writer):\n"
    "    try:\n"
    "        while data := await reader.read(65536):\n"
    "            if data == b'bye':\n"
    "                sock = writer.get_extra_info('socket')\n"
    "                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n"
    "                break\n"
    "            writer.write(data)\n"
    "            await writer.drain()\n"
    "        else:\n"
    "            writer.write(b'<end>')\n"
    "    except ConnectionError: pass\n"
    "    writer.close()\n"
    "async def main():\n"
    "    server = await asyncio.start_server(echo, '127.0.0.1', int(sys.argv[1]))\n"
    "    print('listening', flush=True)\n"
    "    await server.serve_forever()\n"
    "asyncio.run(main())\n"
)


async def echoing(lab: Lab) -> tuple[InstanceSpec, int]:
    draft = lab.spec(ECHO)
    assert draft.agent_port is not None
    spec = await lab.started(
        ECHO,
        argv=(*draft.argv, str(draft.engine_port)),
        engine_port=draft.engine_port,
        agent_port=draft.agent_port,
    )
    await lab.said(spec, "listening")
    return spec, draft.agent_port


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def ask(port: int, data: bytes) -> bytes:
    """Send `data`, then the end; return all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:

        async def send() -> None:
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        _, answer = await asyncio.gather(send(), reader.read())
        return answer
    finally:
        writer.close()


async def test_an_end_is_forwarded_and_the_answer_still_comes(lab: Lab) -> None:
    _, port = await echoing(lab)
    assert await ask(port, b"hello") == b"hello<end>"


async def test_many_large_streams_at_once(lab: Lab) -> None:
    _, port = await echoing(lab)
    blobs = [os.urandom(1 << 20) for _ in range(20)]
    answers = await asyncio.gather(*(ask(port, blob) for blob in blobs))
    assert answers == [blob + b"<end>" for blob in blobs]


async def test_streams_leave_no_descriptors_behind(lab: Lab) -> None:
    spec, port = await echoing(lab)
    shim = lab.shim(spec)["shim_pid"]
    before = descriptors(shim)
    for _ in range(5):
        await asyncio.gather(*(ask(port, b"x") for _ in range(40)))
    await eventually(lambda: descriptors(shim) == before)


async def test_before_the_engine_listens_a_connection_is_reset(lab: Lab) -> None:
    spec = await lab.started(READY + SLEEP)
    assert spec.agent_port is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", spec.agent_port)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_a_reset_by_the_engine_reaches_the_client(lab: Lab) -> None:
    _, port = await echoing(lab)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"bye")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_a_client_that_goes_away_is_noticed_by_the_engine(lab: Lab) -> None:
    spec, port = await echoing(lab)
    (engine,) = await lab.runtime.pids(spec.id)
    before = descriptors(engine)
    sock = socket.create_connection(("127.0.0.1", port))
    await eventually(lambda: descriptors(engine) == before + 1)
    sock.close()
    await eventually(lambda: descriptors(engine) == before)


async def test_a_client_that_does_not_read_holds_up_nobody_else(lab: Lab) -> None:
    _, port = await echoing(lab)
    with socket.create_connection(("127.0.0.1", port)) as lazy:
        lazy.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            for _ in range(10_000):
                lazy.send(bytes(65536))
            raise AssertionError("something between us took all of it")
        assert await ask(port, b"hello") == b"hello<end>"


async def test_when_the_engine_was_killed_streams_end_and_the_port_is_refused(lab: Lab) -> None:
    spec, port = await echoing(lab)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    os.kill(lab.shim(spec)["engine_pid"], signal.SIGKILL)
    assert await reader.read() == b""
    writer.close()
    await lab.runtime.wait(spec.id)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    await lab.runtime.start(spec.id)  # the ports are free again, whatever lingers


async def test_without_an_agent_port_nobody_listens_there(lab: Lab, free_port: FreePort) -> None:
    port = free_port()
    await lab.started(READY + SLEEP, agent_port=None, engine_port=port + 100)
    assert port_holder(port) is None


async def test_a_port_of_an_instance_is_said_to_be_its(lab: Lab) -> None:
    spec = await lab.started(READY + SLEEP)
    assert spec.agent_port is not None
    with pytest.raises(PortInUse, match=f"is in use by agent-manager's instance {spec.id} \\(pid \\d+\\)"):
        require_free(spec.agent_port)


def test_a_taken_port_is_said_to_be_whose(free_port: FreePort) -> None:
    port = free_port()
    assert port_holder(port) is None
    with listen(port):
        holder = port_holder(port)
        assert holder is not None
        assert holder.endswith(f" (pid {os.getpid()})")
    require_free(port)


def test_a_port_that_nobody_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "LOOPBACK", "192.0.2.1")  # an address this host lacks
    with pytest.raises(HostNotReady, match="cannot listen on port 8101"):
        require_free(8101)
