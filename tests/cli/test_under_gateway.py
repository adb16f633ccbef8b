"""launch, stop, restart, status, logs, gpu-stats and reload while a gateway owns the card, as a user types them."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING

import pytest

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


async def test_launch_puts_an_agent_on_the_card_and_shows_the_same_progress(served: Served) -> None:
    await served.open()
    done = await served.ok("launch", "dev", "--json")
    result = done.json
    assert (result["agent"], result["card"], result["simulated"]) == ("dev", "SIM-0", True)
    assert result["base_url"] == f"http://localhost:{served.ports['dev']}/v1"
    assert result["already_running"] is False
    assert result["ready_after_s"] > 0
    said = done.err.splitlines()
    assert said[0] == "starting dev"
    assert "loading dev: starting the engine" in said
    assert said[-1] == "asking dev for a first word"
    assert served.agents_running() == ["dev"]
    assert await served.answers("dev", door=True)


async def test_launch_of_who_is_there_says_so(served: Served) -> None:
    await served.open()
    first = (await served.ok("launch", "dev", "--json")).json
    again = (await served.ok("launch", "dev", "--json")).json
    assert again["already_running"] is True
    assert again["instance_id"] == first["instance_id"]
    assert again["ready_after_s"] is None


async def test_launch_right_after_serve_waits_for_it(served: Served) -> None:
    served.catalog()
    await served.begin("serve")
    await until(served.socket.with_name("owner.json").exists, "the gateway owns the card")
    assert (await served.ok("launch", "dev", "--json")).json["already_running"] is False
    assert await served.answers("dev")


async def test_launch_swaps(served: Served) -> None:
    await served.open()
    await served.ok("launch", "dev")
    done = await served.ok("launch", "po", "--json")
    assert done.json["replaced"] == ["dev"]
    assert "draining dev" in done.err
    assert served.agents_running() == ["po"]


async def test_a_running_answer_finishes_before_its_agent_leaves(served: Served) -> None:
    await served.open(inter_token_ms=60)
    answer = asyncio.create_task(served.answers("dev", tokens=60))
    await served.until_requests("dev", "running", 1)
    done = await served.ok("launch", "po")
    assert "dev finishes 1 request first" in done.err
    assert await answer


async def test_restart_starts_it_anew(served: Served) -> None:
    await served.open()
    first = (await served.ok("launch", "dev", "--json")).json
    again = (await served.ok("restart", "dev", "--json")).json
    assert again["instance_id"] != first["instance_id"]
    assert again["already_running"] is False
    assert served.agents_running() == ["dev"]


async def test_stop_takes_it_off_and_a_request_brings_it_back(served: Served) -> None:
    await served.open()
    await served.ok("launch", "dev")
    assert (await served.ok("stop", "--json")).json == {"stopped": ["dev"]}
    assert served.agents_running() == []
    assert await served.answers("dev")
    assert served.agents_running() == ["dev"]
    assert (await served.ok("stop", "dev", "--json")).json == {"stopped": ["dev"]}


async def test_stop_of_who_is_not_there(served: Served) -> None:
    await served.open()
    assert (await served.run("stop")).code == 5
    assert (await served.run("stop", "dev")).code == 5
    assert (await served.ok("stop", "--all", "--json")).json == {"stopped": []}
    await served.ok("launch", "dev")
    assert (await served.run("stop", "po")).code == 5
    assert served.agents_running() == ["dev"]


async def test_a_launch_that_fails_puts_the_other_one_back(served: Served) -> None:
    await served.open(faults="dev: oom")
    await served.ok("launch", "po")
    done = await served.run("launch", "dev", "--json")
    assert done.code == 1
    error = json.loads(done.err.splitlines()[-1])["error"]
    assert error["code"] == "engine_failed"
    assert done.err.count(error["message"]) == 1
    assert "po is on the card" in done.err
    assert served.agents_running() == ["po"]
    failed = next(
        each for each in (await served.ok("status", "--json")).json["agents"] if each["name"] == "dev"
    )
    assert failed["state"] == "failed"
    assert failed["cause"]
    assert (await served.close()).err.count(error["message"]) == 1, "the gateway's own log has it, too"


async def test_a_launch_tries_an_agent_again_that_failed(served: Served) -> None:
    await served.open(faults="dev: refuse-start")
    assert (await served.ask("dev"))[0] == 503
    begun = await served.run("launch", "dev")
    assert begun.code == 1
    assert "starting dev" in begun.err


async def test_an_agent_that_nobody_knows(served: Served) -> None:
    await served.open()
    done = await served.run("launch", "nobody", "--json")
    assert done.code == 2
    error = json.loads(done.err.splitlines()[-1])["error"]
    assert error["code"] == "agent_unknown"
    assert "reload" in error["hint"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupt_undoes_the_swap(served: Served, number: signal.Signals) -> None:
    await served.open(faults="dev: hang-load")
    before = (await served.ok("launch", "po", "--json")).json
    launch = await served.begin("launch", "dev")
    await until(lambda: any(name.startswith("dev-") for name in served.engines()), "dev is started")
    launch.send_signal(number)
    done = await served.end(launch)
    assert done.code == 130
    assert "the launch of dev was undone" in done.err
    assert list(served.engines()) == [before["instance_id"]]
    assert await served.answers("po")


async def test_status_says_who_owns_the_card_and_how_many_requests_there_are(served: Served) -> None:
    await served.open(inter_token_ms=50)
    answers = [asyncio.create_task(served.answers("dev", tokens=60)) for _ in range(3)]
    await served.until_requests("dev", "running", 3)
    answers.append(asyncio.create_task(served.answers("po")))
    await served.until_requests("po", "waiting", 1)
    report = (await served.ok("status", "--json")).json
    assert served.gateway is not None
    assert report["owner"]["kind"] == "gateway"
    assert report["owner"]["pid"] == served.gateway.pid
    agents = {each["name"]: each for each in report["agents"]}
    assert (agents["dev"]["requests_running"], agents["dev"]["requests_waiting"]) == (3, 0)
    assert (agents["po"]["requests_running"], agents["po"]["requests_waiting"]) == (0, 1)
    assert agents["po"]["base_url"] == f"http://localhost:{served.ports['po']}/v1"
    assert "3 run" in (await served.ok("status")).out
    assert all(await asyncio.gather(*answers))


async def test_logs_and_gpu_stats_read_as_ever(served: Served) -> None:
    await served.open()
    await served.ok("launch", "dev")
    assert "Application startup complete" in (await served.ok("logs", "dev")).out
    sample = (await served.ok("gpu-stats", "--once", "--json")).json
    assert [each["agent"] for each in sample["gpu"]["processes"]] == ["dev"]
    await served.ok("launch", "po")
    assert "Application startup complete" in (await served.ok("logs", "dev")).out, "its log is kept"
    swaps = (await served.ok("gpu-stats", "--once", "--json")).json["swaps"]
    assert [(each["arrived"], each["left"]) for each in swaps] == [("po", "dev"), ("dev", None)]


async def test_doctor_knows_whose_the_ports_are(served: Served) -> None:
    await served.open()
    await served.ok("launch", "dev")
    report = (await served.ok("doctor", "--json")).json
    (ports,) = [finding for finding in report["findings"] if finding["check"] == "ports"]
    assert ports["state"] == "ok", ports


async def test_a_dry_run_knows_the_gateway(served: Served) -> None:
    await served.open()
    await served.ok("launch", "dev")
    plan = (await served.ok("launch", "dev", "--dry-run", "--json")).json
    assert [step["verb"] for step in plan["steps"]] == ["keep"]


async def test_reload_without_a_gateway(served: Served) -> None:
    done = await served.run("reload", "--json")
    assert done.code == 5
    assert json.loads(done.err)["error"]["code"] == "not_running"


async def test_reload_of_an_invalid_catalog_changes_nothing_and_says_all_that_is_wrong(
    served: Served,
) -> None:
    await served.open()
    await served.ok("launch", "dev")
    before = served.engines()
    served.catalog_path.write_text(served.catalog_path.read_text().replace("2k", "2q").replace("4k", "4q"))
    done = await served.run("reload", "--json")
    assert done.code == 2
    error = json.loads(done.err.splitlines()[-1])["error"]
    assert error["code"] == "catalog_invalid"
    assert [each["path"] for each in error["problems"]] == ["agents.po.context", "agents.dev.context"]
    assert served.engines() == before
    assert await served.answers("dev")


async def test_reload_says_what_came_and_went(served: Served) -> None:
    await served.open(po=None)
    served.catalog(dev="context: 1k")
    result = (await served.ok("reload", "--json")).json["reloaded"][0]
    assert (result["added"], result["removed"], result["changed"]) == (["po"], [], ["dev"])
    assert await served.answers("po", door=True)


async def test_without_a_gateway_again_everything_is_as_before(served: Served) -> None:
    await served.open()
    await served.ok("launch", "dev")
    assert (await served.close()).code == 0
    assert not served.socket.exists()
    assert served.agents_running() == []
    assert (await served.ok("launch", "dev", "--json")).json["already_running"] is False
    await served.ok("stop")
