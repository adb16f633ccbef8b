"""The main job in containers, and what goes wrong on the way. The engine is simulated, everything else is real."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.docker.conftest import DEV, PO, docker_lab, owner_step
from tests.docker.daemon import NoDaemonError, OwnDaemon
from tests.docker.images import BASE, build_images
from tests.faults.conftest import Stream, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    import docker

    from tests.conftest import FreePort
    from tests.docker.conftest import DockerLab

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


def _loading(lab: DockerLab, agent: str) -> subprocess.Popen[str]:
    launch = lab.begin("launch", agent)
    wait_until(lambda: owner_step(lab) == "loading" or launch.poll() is not None, "it loads")
    assert launch.poll() is None, launch.communicate()
    return launch


def test_an_agent_is_launched_swapped_and_stopped(lab: DockerLab) -> None:
    lab.catalog(inter_token_ms=20)
    lab.ok("launch", PO)
    assert lab.answers(PO)
    assert lab.containers() == {"agent-manager-lab-po": "running"}
    (claim,) = (lab.state / "cards/SIM-0/claims").glob("lab-po-*")
    assert claim.stat().st_size, "what the engine holds of the card is seen from outside"
    assert lab.status()["gpu"]["used_bytes"] > 0

    stream = Stream(lab, PO, tokens=60)
    lab.ok("launch", DEV)
    assert stream.finished(), "a stream that ran when the swap began is finished first"
    assert lab.answers(DEV)
    assert not lab.answers(PO)
    assert lab.containers() == {"agent-manager-lab-dev": "running"}
    assert "Application startup complete" in lab.ok("logs", PO), "kept after its container was removed"
    (dev,) = (each for each in lab.status()["agents"] if each["name"] == DEV)
    assert (dev["state"], dev["runtime"], dev["engine"]) == ("ready", "docker", "simulated")

    lab.ok("stop")
    assert lab.containers() == {}
    lab.settled()


def test_an_agent_that_serves_is_not_started_again(lab: DockerLab) -> None:
    lab.ok("launch", PO)
    before = lab.instance(PO)
    assert "was ready already" in lab.ok("launch", PO)
    assert lab.instance(PO) == before


@pytest.mark.parametrize("fault", ["refuse-start", "oom"])
def test_a_failed_swap_is_undone(lab: DockerLab, fault: str) -> None:
    lab.catalog(dev=fault)
    lab.ok("launch", PO)
    before = lab.instance(PO)
    failed = lab.run("launch", DEV)
    assert failed.code == 1
    assert "lab-dev did not start" in failed.err
    assert "lab-po is on the card" in failed.err
    assert lab.answers(PO)
    assert lab.instance(PO) == before
    assert lab.containers() == {"agent-manager-lab-po": "running"}
    assert lab.ok("logs", DEV), "why it failed can still be read"
    lab.settled()


def test_a_failed_restart_puts_the_same_container_back_under_its_name(lab: DockerLab) -> None:
    lab.ok("launch", DEV)
    before = lab.instance(DEV)
    lab.catalog(dev="refuse-start")
    assert lab.run("restart", DEV).code == 1
    assert lab.instance(DEV) == before
    assert lab.containers() == {"agent-manager-lab-dev": "running"}
    assert lab.answers(DEV)
    lab.catalog()
    lab.ok("restart", DEV)
    assert lab.instance(DEV) != before
    assert lab.containers() == {"agent-manager-lab-dev": "running"}
    lab.settled()


def test_ctrl_c_while_loading_puts_the_previous_agent_back(lab: DockerLab) -> None:
    lab.ok("launch", PO)
    lab.catalog(load_s=20)
    launch = _loading(lab, DEV)
    launch.send_signal(signal.SIGINT)
    done = lab.end(launch)
    assert done.code == 130
    assert "lab-po is on the card" in done.err
    assert lab.containers() == {"agent-manager-lab-po": "running"}
    lab.settled()


def test_after_kill_9_a_load_is_followed_not_started_again(lab: DockerLab) -> None:
    lab.catalog(load_s=4.0)
    launch = _loading(lab, DEV)
    launch.kill()
    lab.end(launch)
    assert lab.states()[DEV] == "starting"
    before = lab.instance(DEV)
    lab.ok("launch", DEV)
    assert lab.instance(DEV) == before
    assert lab.answers(DEV)
    lab.settled()


def test_after_kill_9_in_a_swap_the_next_launch_puts_things_right(lab: DockerLab) -> None:
    lab.ok("launch", PO)
    lab.catalog(load_s=4.0)
    launch = _loading(lab, DEV)
    launch.kill()
    lab.end(launch)
    assert lab.containers()["agent-manager-lab-po"] == "exited"
    lab.catalog()
    lab.ok("launch", PO)
    assert lab.containers() == {"agent-manager-lab-po": "running"}
    assert lab.answers(PO)
    lab.settled()


def test_an_engine_that_was_killed_is_shown_failed_and_replaced(lab: DockerLab) -> None:
    lab.ok("launch", DEV)
    lab.api.kill("agent-manager-lab-dev")
    wait_until(lambda: lab.states()[DEV] == "failed", "its end is seen")
    lab.ok("launch", DEV)
    assert lab.containers() == {"agent-manager-lab-dev": "running"}
    lab.settled()


def test_somebody_elses_container_is_reported_and_not_touched(
    lab: DockerLab, foreign: docker.APIClient
) -> None:
    lab.ok("launch", PO)
    made = foreign.create_container(
        BASE, ["sleep", "60"], name="agent-manager-lab-dev", labels={"somebody": "else"}
    )
    before = foreign.inspect_container(made["Id"])
    refused = lab.run("launch", DEV)
    assert refused.code == 4
    assert "the container agent-manager-lab-dev" in refused.err
    assert "was not started by agent-manager" in refused.err
    assert foreign.inspect_container(made["Id"]) == before
    assert lab.answers(PO), "refused before anything was touched"
    lab.ok("stop", "--all")
    assert foreign.inspect_container(made["Id"]) == before


def test_a_container_of_another_state_folder_is_none_of_ours(
    lab: DockerLab, tmp_path_factory: pytest.TempPathFactory, free_port: FreePort
) -> None:
    lab.ok("launch", DEV)
    with docker_lab(tmp_path_factory.mktemp("other"), free_port, lab.host) as other:
        assert other.states() == {PO: "absent", DEV: "absent"}
        refused = other.run("launch", DEV)
        assert refused.code == 4
        assert f"belongs to {lab.state}" in refused.err
    assert lab.answers(DEV)


def test_a_port_that_another_container_has_is_named(lab: DockerLab, foreign: docker.APIClient) -> None:
    bindings = foreign.create_host_config(port_bindings={8000: ("127.0.0.1", lab.ports[DEV])})
    made = foreign.create_container(
        BASE,
        ["sleep", "60"],
        name="lab-somebody",
        labels={"somebody": "else"},
        ports=[8000],
        host_config=bindings,
    )
    foreign.start(made["Id"])
    refused = lab.run("launch", DEV)
    assert refused.code == 4
    assert f"port {lab.ports[DEV]} is in use by container lab-somebody" in refused.err
    assert lab.containers() == {}


def test_an_image_that_is_not_here_is_refused_before_anything_is_touched(lab: DockerLab) -> None:
    lab.ok("launch", PO)
    lab.image = "127.0.0.1:9/nobody/nothing:1"
    lab.catalog()
    refused = lab.run("launch", DEV, "--no-pull")
    assert refused.code == 4
    assert "the image 127.0.0.1:9/nobody/nothing:1 is not here" in refused.err
    unreachable = lab.run("launch", DEV)
    assert unreachable.code == 4
    assert "the image cannot be fetched" in unreachable.err
    assert "hint: check the network" in unreachable.err
    assert lab.answers(PO)
    assert lab.containers() == {"agent-manager-lab-po": "running"}


def test_a_container_that_was_created_and_never_started_is_cleaned(lab: DockerLab) -> None:
    lab.ok("launch", DEV)
    file = lab.state / "compose" / "lab-dev.yaml"
    lab.ok("stop")
    # As an operation leaves it that is killed between creating and starting.
    document = yaml.safe_load(file.read_text())
    labels = document["services"][DEV]["labels"]
    lab.api.create_container(BASE, ["true"], name="agent-manager-lab-dev", labels=labels)
    assert lab.containers() == {"agent-manager-lab-dev": "created"}
    lab.ok("launch", PO)
    assert lab.containers() == {"agent-manager-lab-po": "running"}
    lab.settled()


def test_without_docker_reading_is_a_note_and_launching_says_why(lab: DockerLab) -> None:
    lab.ok("launch", DEV)
    host, lab.host = lab.host, f"unix://{lab.folder}/no.sock"
    done = lab.run("status")
    assert done.code == 0
    assert "note: runtime docker does not answer: Docker is not running" in done.err
    refused = lab.run("launch", PO, "--json")
    assert refused.code == 4
    assert json.loads(refused.err)["error"]["code"] == "docker_not_ready"
    lab.host = host
    assert lab.answers(DEV)


def test_a_context_leads_to_docker_too(lab: DockerLab, tmp_path: Path) -> None:
    from tests.runtimes.test_docker_endpoint import add_context  # noqa: PLC0415 - as Docker's own command writes it

    add_context(tmp_path, "lab", lab.host, current=True)
    host, lab.host = lab.host, ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_CONFIG", str(tmp_path / ".docker"))
        lab.ok("launch", DEV)
    lab.host = host
    assert lab.containers() == {"agent-manager-lab-dev": "running"}


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
        lab.ok("launch", DEV)
        own_daemon.stop()
        down = lab.run("status")
        assert down.code == 0
        assert "runtime docker does not answer" in down.err
        own_daemon.start()
        assert lab.states()[DEV] == "failed", "Docker ended it, and restarts nothing"
        lab.ok("launch", DEV)
        assert lab.containers() == {"agent-manager-lab-dev": "running"}
        assert lab.answers(DEV)

        launch = _hanging(lab)
        own_daemon.stop()
        done = lab.end(launch)
        assert done.code in {1, 4}, done.err
        own_daemon.start()
        lab.catalog()
        lab.ok("launch", DEV)
        assert lab.containers() == {"agent-manager-lab-dev": "running"}
        lab.settled()


def _hanging(lab: DockerLab) -> subprocess.Popen[str]:
    lab.catalog(load_s=60)
    return _loading(lab, PO)
