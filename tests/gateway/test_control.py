"""The owner's door: who may open it, what happens beside requests, a new catalog without losing one, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.cli.program import Terminal, argv
from tests.gateway.served import serving, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import FreePort
    from tests.gateway.served import Served


@pytest.fixture
async def served(tmp_path: Path, free_port: FreePort) -> AsyncIterator[Served]:
    async with serving(tmp_path, free_port) as served:
        yield served


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


# --- the socket -------------------------------------------------------------------------------------------


async def test_only_its_user_may_open_the_socket(served: Served) -> None:
    await served.open()
    mode = served.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    await served.close()
    assert not served.socket.exists()


async def test_the_socket_of_a_killed_gateway_is_replaced(served: Served) -> None:
    await served.open()
    assert served.gateway is not None
    await served.ok("launch", "dev")
    served.gateway.kill()
    await served.gateway.wait()
    assert served.socket.exists()
    assert (await served.run("reload")).code == 5
    kept = set(served.engines())
    await served.open()
    assert (await served.ok("launch", "dev", "--json")).json["already_running"] is True
    assert set(served.engines()) == kept


async def test_a_state_folder_with_a_long_name(tmp_path: Path, free_port: FreePort) -> None:
    folder = tmp_path / ("long" * 20) / ("name" * 20)
    folder.mkdir(parents=True)
    async with serving(folder, free_port) as served:
        await served.open()
        assert len(str(served.socket)) > 107
        await served.ok("launch", "dev")


# --- one thing after the other ----------------------------------------------------------------------------


async def test_a_launch_waits_for_the_swap_that_is_under_way(served: Served) -> None:
    await served.open(load_s=1.0)
    answer = asyncio.create_task(served.answers("po"))
    await served.until_state("po", "starting")
    assert (await served.ok("launch", "dev", "--json")).json["replaced"] == ["po"]
    assert await answer
    assert served.agents_running() == ["dev"]


async def test_launches_at_once_are_done_one_after_the_other(served: Served) -> None:
    await served.open(load_s=0.3)
    done = await asyncio.gather(*(served.run("launch", agent) for agent in ("dev", "po", "dev", "po")))
    assert [each.code for each in done] == [0, 0, 0, 0]
    assert len(served.agents_running()) == 1


async def test_an_interrupt_of_who_waits_leaves_the_swap_alone(served: Served) -> None:
    await served.open(load_s=4.0)
    answer = asyncio.create_task(served.answers("po"))
    await served.until_state("po", "starting")
    launch = await served.begin("launch", "dev")
    assert launch.stderr is not None
    await launch.stderr.readline()  # what it hears of the other swap
    launch.send_signal(signal.SIGINT)
    assert (await served.end(launch)).code == 130
    assert await answer
    assert served.agents_running() == ["po"]


async def test_a_launch_whose_terminal_is_gone_goes_on(served: Served) -> None:
    await served.open(load_s=1.0)
    launch = await served.begin("launch", "dev")
    await until(lambda: served.agents_running() == ["dev"], "dev is started")
    launch.kill()
    await served.until_state("dev", "ready")


# --- a new catalog ----------------------------------------------------------------------------------------


async def test_a_changed_agent_is_replaced_when_its_requests_are_over(served: Served) -> None:
    await served.open(inter_token_ms=100)
    running = asyncio.create_task(served.answers("dev", tokens=60))
    await served.until_requests("dev", "running", 1)
    before = set(served.engines())
    served.catalog(dev="context: 1k", inter_token_ms=100)
    await served.ok("reload")
    later = asyncio.create_task(served.answers("dev"))
    await served.until_requests("dev", "waiting", 1)
    assert set(served.engines()) == before
    assert not running.done()
    assert await running
    assert await later
    assert served.agents_running() == ["dev"]
    assert set(served.engines()) != before


async def test_a_changed_agent_leaves_by_itself_and_comes_when_it_is_asked_for(served: Served) -> None:
    await served.open()
    await served.ok("launch", "dev")
    served.catalog(dev="context: 1k")
    await served.ok("reload")
    await until(lambda: served.agents_running() == [], "dev has left")
    assert await served.answers("dev")


async def test_what_only_the_gateway_needs_changes_nothing_on_the_card(served: Served) -> None:
    await served.open()
    await served.ok("launch", "dev")
    before = served.engines()
    served.catalog(dev="context: 2k, aliases: [coder], keep_alive: 5m", gateway="max_wait: 30s, default: po")
    await served.ok("reload")
    status, body = await served.ask("coder")
    assert (status, body["model"]) == (200, "dev")
    assert served.engines() == before


async def test_requests_for_a_removed_agent_are_told_and_what_runs_finishes(served: Served) -> None:
    await served.open(inter_token_ms=100)
    running = asyncio.create_task(served.answers("dev", tokens=60, door=True))
    await served.until_requests("dev", "running", 1)
    waiting = asyncio.create_task(served.ask("po"))
    await served.until_requests("po", "waiting", 1)
    served.catalog(po=None, inter_token_ms=100)
    await served.ok("reload")
    status, body = await waiting
    assert status == 503
    assert "not in the catalog any more" in body["error"]["message"]
    assert (await served.ask("po"))[0] == 404
    assert not listens(served.ports["po"])
    assert await running


async def test_a_removed_agent_on_the_card_finishes_and_leaves(served: Served) -> None:
    await served.open(inter_token_ms=100)
    running = asyncio.create_task(served.answers("dev", tokens=60, door=True))
    await served.until_requests("dev", "running", 1)
    served.catalog(dev=None, inter_token_ms=100)
    await served.ok("reload")
    assert not running.done()
    assert await running
    await until(lambda: served.agents_running() == [], "dev has left")
    assert await served.answers("po")


async def test_an_added_agent_has_its_port_at_once(served: Served) -> None:
    await served.open(po=None)
    assert not listens(served.ports["po"])
    served.catalog()
    await served.ok("reload")
    assert await served.answers("po", door=True)


async def test_agents_that_change_ports(served: Served, free_port: FreePort) -> None:
    await served.open()
    await served.ok("launch", "dev")
    old = served.ports["dev"]
    served.ports["dev"] = free_port()
    served.catalog()
    await served.ok("reload")
    await until(lambda: not listens(old), "the old port is closed")
    assert await served.answers("dev", door=True)


async def test_a_port_that_somebody_has_changes_nothing(served: Served, free_port: FreePort) -> None:
    await served.open()
    taken, old = free_port(), served.ports["po"]
    with socket.create_server(("127.0.0.1", taken)):
        served.ports["po"] = taken
        served.catalog(dev="context: 1k")
        assert (await served.run("reload")).code == 4
        served.ports["po"] = old
        assert await served.answers("po", door=True)
        assert await served.answers("dev", door=True)


async def test_a_reload_while_the_agent_loads(served: Served) -> None:
    """What loads with settings of earlier serves nobody: the one who waits gets the new ones."""
    await served.open(load_s=4.0)
    answer = asyncio.create_task(served.answers("dev"))
    await served.until_state("dev", "starting")
    await until(lambda: served.agents_running() == ["dev"], "dev is started")
    before = set(served.engines())
    served.catalog(dev="context: 1k")
    await served.ok("reload")
    assert await answer
    assert served.agents_running() == ["dev"]
    assert set(served.engines()) != before


async def test_a_reload_while_a_removed_agent_loads(served: Served) -> None:
    await served.open(load_s=5.0)
    answer = asyncio.create_task(served.ask("dev"))
    await served.until_state("dev", "starting")
    served.catalog(dev=None, load_s=0.0)
    await served.ok("reload")
    assert (await answer)[0] == 503
    await until(lambda: served.agents_running() == [], "dev is given up")
    assert await served.answers("po")


async def test_no_request_is_lost_over_many_reloads(served: Served) -> None:
    await served.open(load_s=0.05)
    ended = asyncio.Event()

    async def client(agent: str) -> int:
        count = 0
        while not ended.is_set():
            assert await served.answers(agent)
            count += 1
        return count

    clients = [asyncio.create_task(client(agent)) for agent in ("dev", "dev", "po")]
    for context in ("1k", "2k", "3k", "2k"):
        served.catalog(dev=f"context: {context}", load_s=0.05)
        await served.ok("reload")
        await served.answers("dev")
    ended.set()
    assert all(await asyncio.gather(*clients))


async def test_a_hang_up_is_a_reload(served: Served) -> None:
    await served.open(po=None)
    assert served.gateway is not None
    served.catalog()
    served.gateway.send_signal(signal.SIGHUP)
    await until(lambda: listens(served.ports["po"]), "po has its port")
    served.catalog_path.write_text("version: 1\nagents: {}\nmodels: [1]\n")
    served.gateway.send_signal(signal.SIGHUP)
    assert await served.answers("po")
    done = await served.close()
    assert done.code == 0
    assert "the catalog is not taken" in done.err
    assert f"{served.catalog_path}:2: agents:" in done.err
    assert f"{served.catalog_path}:3: models:" in done.err


# --- the end ----------------------------------------------------------------------------------------------


async def test_what_runs_is_finished_before_it_ends(served: Served) -> None:
    await served.open(inter_token_ms=20)
    running = asyncio.create_task(served.answers("dev", tokens=60))
    await served.until_requests("dev", "running", 1)
    done = await served.close()
    assert done.code == 0
    assert await running
    assert served.agents_running() == []


async def test_a_second_signal_cuts_what_runs(served: Served) -> None:
    await served.open(inter_token_ms=200)
    running = asyncio.create_task(served.ask("dev", tokens=400))
    await served.until_requests("dev", "running", 1)
    assert served.gateway is not None
    served.gateway.send_signal(signal.SIGTERM)
    await until(lambda: not listens(served.ports["gateway"]), "it ends")
    served.gateway.send_signal(signal.SIGTERM)
    assert (await served.end(served.gateway)).code == 0
    assert served.agents_running() == []
    with contextlib.suppress(aiohttp.ClientError):
        status, body = await running
        assert (status, "error" in body) != (200, False)


async def test_an_engine_that_is_left_is_taken_over_by_the_next_gateway(served: Served) -> None:
    await served.open(gateway="at_exit: leave")
    first: dict[str, Any] = (await served.ok("launch", "dev", "--json")).json
    assert (await served.close()).code == 0
    assert list(served.engines()) == [first["instance_id"]]
    await served.open()
    assert await served.answers("dev")
    assert list(served.engines()) == [first["instance_id"]]


async def test_a_load_that_is_left_is_followed_by_the_next_gateway(served: Served) -> None:
    await served.open(gateway="at_exit: leave", load_s=10.0)
    answer = asyncio.create_task(served.ask("dev"))
    await until(lambda: served.agents_running() == ["dev"], "dev is started")
    before = list(served.engines())
    assert (await served.close()).code == 0
    assert (await answer)[0] == 503
    assert list(served.engines()) == before
    await served.open()
    assert await served.answers("dev")
    assert list(served.engines()) == before


async def test_a_launch_is_told_that_the_gateway_ends(served: Served) -> None:
    await served.open(faults="dev: hang-load")
    launch = await served.begin("launch", "dev")
    await until(lambda: served.agents_running() == ["dev"], "dev is started")
    assert (await served.close()).code == 0
    done = await served.end(launch)
    assert done.code == 130
    assert served.agents_running() == []


async def test_a_terminal_that_is_closed_ends_it(served: Served) -> None:
    served.catalog()
    ours = {
        "AGENT_MANAGER_STATE_DIR": str(served.state),
        "AGENT_MANAGER_CATALOG": str(served.catalog_path),
        "TERM": "xterm",
    }
    with Terminal(argv("serve"), env={**os.environ, **ours}, cwd=served.folder) as terminal:
        await asyncio.to_thread(terminal.until, lambda lines: any("gateway" in line for line in lines))
        terminal.hang_up()
        await asyncio.wait_for(asyncio.to_thread(terminal.process.wait), 20)
    assert not served.socket.exists()
