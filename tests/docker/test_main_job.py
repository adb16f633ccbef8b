"""The main job in containers, and what goes wrong on the way. The engine is simulated, everything else is real."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.docker.conftest import docker_lab
from tests.docker.daemon import NoDaemonError, OwnDaemon
from tests.docker.images import BASE, build_images
from tests.faults.conftest import Stream, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import FreePort
    from tests.docker.conftest import DockerLab, Foreign

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


def _loading(lab: DockerLab, agent: str) -> subprocess.Popen[str]:
    launch = lab.begin("launch", agent)
    lab.until("loading", launch)
    return launch


def test_an_agent_is_launched_swapped_and_stopped(lab: DockerLab) -> None:
    lab.catalog(inter_token_ms=20)
    lab.ok("launch", lab.po)
    assert lab.answers(lab.po)
    assert lab.containers() == {lab.po_box: "running"}
    (claim,) = (lab.state / "cards/SIM-0/claims").glob(f"{lab.po}-*")
    assert claim.stat().st_size, "what the engine holds of the card is seen from outside"
    assert lab.status()["gpu"]["used_bytes"] > 0

    stream = Stream(lab, lab.po, tokens=60)
    lab.ok("launch", lab.dev)
    assert stream.finished(), "a stream that ran when the swap began is finished first"
    assert lab.answers(lab.dev)
    assert not lab.answers(lab.po)
    assert lab.containers() == {lab.dev_box: "running"}
    assert "Application startup complete" in lab.ok("logs", lab.po), "kept after its container was removed"
    (dev,) = (each for each in lab.status()["agents"] if each["name"] == lab.dev)
    assert (dev["state"], dev["runtime"], dev["engine"]) == ("ready", "docker", "simulated")

    lab.ok("stop")
    assert lab.containers() == {}
    lab.settled()


def test_an_agent_that_serves_is_not_started_again(lab: DockerLab) -> None:
    lab.ok("launch", lab.po)
    before = lab.instance(lab.po)
    assert "was ready already" in lab.ok("launch", lab.po)
    assert lab.instance(lab.po) == before


def test_a_process_takes_the_place_of_a_container_and_the_other_way_round(lab: DockerLab) -> None:
    lab.ok("launch", lab.po)
    lab.ok("launch", lab.dev, "--runtime", "process")
    assert lab.containers() == {}
    assert lab.answers(lab.dev)
    lab.ok("launch", lab.po)
    assert lab.engines() == {}
    assert lab.containers() == {lab.po_box: "running"}
    lab.settled()


def test_a_dry_run_says_what_would_run(lab: DockerLab) -> None:
    planned = lab.ok("launch", lab.dev, "--dry-run")
    assert f"{lab.dev} on SIM-0: simulated (docker)" in planned
    assert f"{lab.image} Qwen/Qwen2.5-7B-Instruct-AWQ" in planned
    assert lab.containers() == {}


@pytest.mark.parametrize("fault", ["refuse-start", "oom"])
def test_a_failed_swap_is_undone(lab: DockerLab, fault: str) -> None:
    lab.catalog(dev=fault)
    lab.ok("launch", lab.po)
    before = lab.instance(lab.po)
    failed = lab.run("launch", lab.dev)
    assert failed.code == 1
    assert f"{lab.dev} did not start" in failed.err
    assert f"{lab.po} is on the card" in failed.err
    assert lab.answers(lab.po)
    assert lab.instance(lab.po) == before
    assert lab.containers() == {lab.po_box: "running"}
    assert lab.ok("logs", lab.dev), "why it failed can still be read"
    lab.settled()


def test_a_failed_restart_puts_the_same_container_back_under_its_name(lab: DockerLab) -> None:
    lab.ok("launch", lab.dev)
    before = lab.instance(lab.dev)
    lab.catalog(dev="refuse-start")
    assert lab.run("restart", lab.dev).code == 1
    assert lab.instance(lab.dev) == before
    assert lab.containers() == {lab.dev_box: "running"}
    assert lab.answers(lab.dev)
    lab.catalog()
    lab.ok("restart", lab.dev)
    assert lab.instance(lab.dev) != before
    assert lab.containers() == {lab.dev_box: "running"}
    lab.settled()


def test_ctrl_c_while_loading_puts_the_previous_agent_back(lab: DockerLab) -> None:
    lab.ok("launch", lab.po)
    lab.catalog(load_s=20)
    launch = _loading(lab, lab.dev)
    launch.send_signal(signal.SIGINT)
    done = lab.end(launch)
    assert done.code == 130
    assert f"{lab.po} is on the card" in done.err
    assert lab.containers() == {lab.po_box: "running"}
    lab.settled()


def test_after_kill_9_a_load_is_followed_not_started_again(lab: DockerLab) -> None:
    lab.catalog(load_s=4.0)
    launch = _loading(lab, lab.dev)
    launch.kill()
    lab.end(launch)
    assert lab.states()[lab.dev] == "starting"
    before = lab.instance(lab.dev)
    lab.ok("launch", lab.dev)
    assert lab.instance(lab.dev) == before
    assert lab.answers(lab.dev)
    lab.settled()


def test_after_kill_9_in_a_swap_the_next_launch_puts_things_right(lab: DockerLab) -> None:
    lab.ok("launch", lab.po)
    lab.catalog(load_s=4.0)
    launch = _loading(lab, lab.dev)
    launch.kill()
    lab.end(launch)
    assert lab.containers()[lab.po_box] == "exited"
    lab.catalog()
    lab.ok("launch", lab.po)
    assert lab.containers() == {lab.po_box: "running"}
    assert lab.answers(lab.po)
    lab.settled()


def test_an_engine_that_was_killed_is_shown_failed_and_replaced(lab: DockerLab) -> None:
    lab.ok("launch", lab.dev)
    lab.api.kill(lab.dev_box)
    wait_until(lambda: lab.states()[lab.dev] == "failed", "its end is seen")
    lab.ok("launch", lab.dev)
    assert lab.containers() == {lab.dev_box: "running"}
    lab.settled()


def test_somebody_elses_container_is_reported_and_not_touched(lab: DockerLab, foreign: Foreign) -> None:
    lab.ok("launch", lab.po)
    before = foreign.run(lab.dev_box)
    refused = lab.run("launch", lab.dev)
    assert refused.code == 4
    assert f"the container {lab.dev_box}" in refused.err
    assert "was not started by agent-manager" in refused.err
    assert lab.answers(lab.po), "refused before anything was touched"
    lab.ok("stop", "--all")
    assert foreign.look(lab.dev_box) == before


def test_a_container_of_another_state_folder_is_none_of_ours(
    lab: DockerLab, tmp_path_factory: pytest.TempPathFactory, free_port: FreePort
) -> None:
    lab.ok("launch", lab.dev)
    with docker_lab(tmp_path_factory.mktemp("other"), free_port, lab.host, (lab.po, lab.dev)) as other:
        assert other.states() == {lab.po: "absent", lab.dev: "absent"}
        refused = other.run("launch", lab.dev)
        assert refused.code == 4
        assert f"belongs to {lab.state}" in refused.err
    assert lab.answers(lab.dev)


def test_a_port_that_another_container_has_is_named(lab: DockerLab, foreign: Foreign) -> None:
    name = foreign.run(f"somebody-{lab.dev}", lab.ports[lab.dev])["Name"].lstrip("/")
    refused = lab.run("launch", lab.dev)
    assert refused.code == 4
    assert f"port {lab.ports[lab.dev]} is in use by container {name}" in refused.err
    assert lab.containers() == {}


def test_an_image_that_is_not_here_is_refused_before_anything_is_touched(lab: DockerLab) -> None:
    lab.ok("launch", lab.po)
    lab.image = "127.0.0.1:9/nobody/nothing:1"
    lab.catalog()
    refused = lab.run("launch", lab.dev, "--no-pull")
    assert refused.code == 4
    assert "the image 127.0.0.1:9/nobody/nothing:1 is not here" in refused.err
    unreachable = lab.run("launch", lab.dev)
    assert unreachable.code == 4
    assert "the image cannot be fetched" in unreachable.err
    assert "hint: check the network" in unreachable.err
    assert lab.answers(lab.po)
    assert lab.containers() == {lab.po_box: "running"}


def test_a_container_that_was_created_and_never_started_is_cleaned(lab: DockerLab) -> None:
    lab.ok("launch", lab.dev)
    file = lab.state / "compose" / f"{lab.dev}.yaml"
    lab.ok("stop")
    # As an operation leaves it that is killed between creating and starting.
    document = yaml.safe_load(file.read_text())
    labels = document["services"][lab.dev]["labels"]
    lab.api.create_container(BASE, ["true"], name=lab.dev_box, labels=labels)
    assert lab.containers() == {lab.dev_box: "created"}
    lab.ok("launch", lab.po)
    assert lab.containers() == {lab.po_box: "running"}
    lab.settled()


def test_without_docker_reading_is_a_note_and_launching_says_why(lab: DockerLab) -> None:
    lab.ok("launch", lab.dev)
    host, lab.host = lab.host, f"unix://{lab.folder}/no.sock"
    done = lab.run("status")
    assert done.code == 0
    assert "note: runtime docker does not answer: Docker is not running" in done.err
    refused = lab.run("launch", lab.po, "--json")
    assert refused.code == 4
    assert json.loads(refused.err)["error"]["code"] == "docker_not_ready"
    lab.host = host
    assert lab.answers(lab.dev)


def test_a_context_leads_to_docker_too(lab: DockerLab, tmp_path: Path) -> None:
    from tests.runtimes.test_docker_endpoint import add_context  # noqa: PLC0415 - as Docker's own command writes it

    add_context(tmp_path, "lab", lab.host, current=True)
    host, lab.host = lab.host, ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_CONFIG", str(tmp_path / ".docker"))
        lab.ok("launch", lab.dev)
    lab.host = host
    assert lab.containers() == {lab.dev_box: "running"}


@pytest.fixture
def own_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnDaemon]:
    """A Docker that a test may stop."""
    folder = tmp_path_factory.mktemp("docker")
    daemon = OwnDaemon(folder)
    try:
        daemon.start()
    except NoDaemonError as error:
        pytest.skip(str(error))
    yield daemon
    daemon.stop()


def test_docker_is_restarted_under_a_running_agent(
    own_daemon: OwnDaemon, tmp_path: Path, free_port: FreePort
) -> None:
    from tests.docker.daemon import default_folder  # noqa: PLC0415 - where the slow part of the images is kept

    build_images(own_daemon.host, default_folder().parent)
    with docker_lab(tmp_path, free_port, own_daemon.host) as lab:
        lab.ok("launch", lab.dev)
        own_daemon.stop()
        down = lab.run("status")
        assert down.code == 0
        assert "runtime docker does not answer" in down.err
        own_daemon.start()
        assert lab.states()[lab.dev] == "failed", "Docker ended it, and restarts nothing"
        lab.ok("launch", lab.dev)
        assert lab.containers() == {lab.dev_box: "running"}
        assert lab.answers(lab.dev)

        launch = _hanging(lab)
        own_daemon.stop()
        done = lab.end(launch)
        assert done.code in {1, 4}, done.err
        own_daemon.start()
        lab.catalog()
        lab.ok("launch", lab.dev)
        assert lab.containers() == {lab.dev_box: "running"}
        lab.settled()


def _hanging(lab: DockerLab) -> subprocess.Popen[str]:
    lab.catalog(load_s=60)
    return _loading(lab, lab.po)
