"""doctor, as a person and as a script use it: the real program on hosts that lack one thing or another."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.program import Program

SIMULATED = ("--engine", "simulated")
STATES = {"ok", "warning", "blocked", "skipped"}


@pytest.fixture
def nowhere(program: Program) -> Program:
    """A host without Docker, without a driver, and told not to ask the Hub."""
    broken = program.folder / "no-driver"
    broken.mkdir()
    (broken / "libnvidia-ml.so.1").write_text("not a library")
    program.env |= {
        "DOCKER_HOST": f"unix://{program.folder}/none.sock",
        "HF_HUB_OFFLINE": "1",
        "LD_LIBRARY_PATH": str(broken),
    }
    return program


def findings(program: Program, *args: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and the last finding of each check."""
    done = program.run("doctor", "--json", *args)
    assert done.err == ""
    document = json.loads(done.out)
    assert document["ready"] is (done.code == 0)
    return done.code, {each["check"]: each for each in document["findings"]}


def test_a_host_without_anything_is_ready_for_simulated_engines(nowhere: Program) -> None:
    done = nowhere.run("doctor", *SIMULATED)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[-1] == "ready for simulated as a process of this host"
    assert [line for line in lines if line and not line.startswith(" ")][:-1] == [
        "Host",
        "Docker",
        "Card",
        "Disk",
        "Hub",
        "Ports",
        "Leftovers",
    ]
    assert "→" not in done.out, "there is nothing to do"


def test_a_host_without_anything_is_not_ready_for_vllm(nowhere: Program) -> None:
    done = nowhere.run("doctor")
    assert (done.code, done.err) == (4, "")
    assert "✗ blocked docker             Docker is not running: DOCKER_HOST says" in done.out
    assert "→ unset DOCKER_HOST DOCKER_CONTEXT; docker context use default" in done.out
    assert done.out.splitlines()[-1].startswith("not ready for vllm in containers: docker, gpu")


def test_json_is_one_document(nowhere: Program) -> None:
    code, found = findings(nowhere)
    assert code == 4
    for finding in found.values():
        assert set(finding) == {"check", "state", "evidence", "remedy"}
        assert finding["state"] in STATES
        assert finding["evidence"] == " ".join(finding["evidence"].split())
    assert found["gpu"]["state"] == "blocked"
    assert found["hub"]["evidence"] == "HF_HUB_OFFLINE forbids asking the Hub, and models are missing"


@pytest.mark.parametrize("args", [(), SIMULATED, ("--engine", "vllm-cpu")])
def test_nothing_is_made_by_looking(nowhere: Program, args: tuple[str, ...]) -> None:
    before = sorted(nowhere.folder.rglob("*"))
    nowhere.run("doctor", *args)
    assert sorted(nowhere.folder.rglob("*")) == before


def test_what_a_pipe_cannot_show_is_written_otherwise(nowhere: Program) -> None:
    done = nowhere.run("doctor", env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.err) == (4, "")
    assert "x blocked docker" in done.out
    assert "-> unset DOCKER_HOST" in done.out


def test_a_terminal_gets_lines_that_fit_it_and_commands_whole(nowhere: Program) -> None:
    with nowhere.terminal("doctor", env={"NO_COLOR": "1"}) as terminal:
        assert terminal.wait() == 4
    written = terminal.raw.decode().replace("\r", "").splitlines()
    assert [line for line in written if len(line) > 100 and "→" not in line] == []
    assert [
        line
        for line in written
        if line.endswith("→ unset DOCKER_HOST DOCKER_CONTEXT; docker context use default")
    ]


def test_a_catalog_that_cannot_be_used_is_a_finding(nowhere: Program) -> None:
    nowhere.catalog.write_text("version: 1\nmodels: {}\nagents: {dev: {model: gone}}\n")
    code, found = findings(nowhere, *SIMULATED)
    assert code == 4
    assert found["catalog"]["state"] == "blocked"
    assert found["catalog"]["evidence"].startswith(f"{nowhere.catalog}:2: models: ")
    assert found["catalog"]["remedy"].endswith(f"+2 {nowhere.catalog}")
    assert found["leftovers"]["state"] == "ok", "the rest is looked at all the same"


def test_a_profile_that_is_not_there_is_a_mistake_on_the_command_line(nowhere: Program) -> None:
    assert nowhere.run("doctor", "--profile", "none").code == 2


def test_a_user_who_may_not_use_docker_is_told_how_to(nowhere: Program) -> None:
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may do everything, and setpriv is not here to be somebody else")
    folder = Path("/tmp") / f"am-{os.getpid()}"  # noqa: S108 - nobody else can look into pytest's own
    folder.mkdir()
    try:
        nowhere.env |= {"DOCKER_HOST": f"unix://{folder}/docker.sock", "HOME": str(folder)}
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"{folder}/docker.sock")
            sock.listen()
            (folder / "docker.sock").chmod(0)
            found = as_nobody(nowhere, folder)
    finally:
        shutil.rmtree(folder)
    assert found["docker"]["state"] == "blocked"
    assert "this user may not use Docker" in found["docker"]["evidence"]
    assert found["docker"]["remedy"] == "sudo usermod -aG docker $USER && newgrp docker"


def as_nobody(program: Program, folder: Path) -> dict[str, dict[str, Any]]:
    """The findings of a user without rights; whoever is no root already is one."""
    shutil.copy(program.catalog, folder / "models.yaml")
    drop = ("setpriv", "--reuid=65534", "--clear-groups") if os.getuid() == 0 else ()
    environ = program.env | {
        "AGENT_MANAGER_STATE_DIR": f"{folder}/state",
        "AGENT_MANAGER_CATALOG": f"{folder}/models.yaml",
    }
    done = subprocess.run(
        [*drop, sys.executable, "-m", "agent_manager", "doctor", "--json"],
        env=environ,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stderr == ""
    return {each["check"]: each for each in json.loads(done.stdout)["findings"]}


@contextmanager
def hanging(path: Path) -> Iterator[threading.Event]:
    """A socket that takes every connection and never says a word; the event is set with the first."""
    asked = threading.Event()
    kept: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()

        def take() -> None:
            while True:
                try:
                    kept.append(sock.accept()[0])
                except OSError:
                    return
                asked.set()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield asked
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in kept:
                each.close()


def test_a_docker_that_hangs_does_not_hang_doctor(nowhere: Program) -> None:
    with hanging(nowhere.folder / "none.sock"):
        code, found = findings(nowhere)
    assert code == 4
    assert "does not answer" in found["docker"]["evidence"] or "did not answer" in found["docker"]["evidence"]
    assert (
        "systemctl restart docker" in found["docker"]["remedy"]
        or "service docker" in found["docker"]["remedy"]
    )
    assert found["ports"]["state"] == "ok"


def test_ctrl_c_ends_it_while_docker_hangs(nowhere: Program) -> None:
    with hanging(nowhere.folder / "none.sock") as asked:
        process = nowhere.start("doctor")
        assert asked.wait(20)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert "interrupted" in err
    assert "Traceback" not in err


def test_a_port_that_somebody_has_is_named(nowhere: Program) -> None:
    port = nowhere.ports["dev"]
    with socket.create_server(("127.0.0.1", port)):
        done = nowhere.run("doctor", "--json", *SIMULATED)
    assert done.code == 4
    (taken,) = (each for each in json.loads(done.out)["findings"] if each["state"] == "blocked")
    assert taken["check"] == "ports"
    assert f"(pid {os.getpid()})" in taken["evidence"]
    assert taken["remedy"].startswith(f"kill {os.getpid()}  #")


def test_an_engine_of_ours_behind_a_broken_record_is_found_and_ended_by_the_remedy(nowhere: Program) -> None:
    assert nowhere.run("launch", "dev", *SIMULATED).code == 0
    (record,) = (path for path in (nowhere.folder / "state/instances").iterdir() if path.is_dir())
    (record / "spec.json").write_text("")
    done = nowhere.run("doctor", "--json", *SIMULATED)
    (lost,) = (each for each in json.loads(done.out)["findings"] if each["check"] == "lost-engine")
    assert done.code == 4
    assert f"instance {record.name} runs (pid " in lost["evidence"]

    subprocess.run(["/bin/sh", "-c", lost["remedy"]], check=True, timeout=20)
    assert not record.exists()


def test_an_engine_that_serves_is_as_it_should_be(nowhere: Program) -> None:
    assert nowhere.run("launch", "dev", *SIMULATED).code == 0
    code, found = findings(nowhere, *SIMULATED)
    assert code == 0
    assert "those of dev used by its own engine" in found["ports"]["evidence"]
