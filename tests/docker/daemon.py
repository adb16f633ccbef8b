"""A Docker daemon for tests and benchmarks: the one that answers, or one of their own.

`python -m tests.docker.daemon COMMAND …` runs a command with DOCKER_HOST naming a daemon, and stops the daemon
afterwards if it had to start one. In tests use the fixture `docker_host`, or `OwnDaemon` where one must be stopped
and started again under running containers.

A daemon of ours changes nothing on the host but a bridge of its own: no firewall rules, no /etc/docker, no default
socket. Ports published on loopback need none of them; its containers cannot reach the network, as intended.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_S = 60.0
STOP_S = 60.0
POLL_S = 0.1
BRIDGES = 64
"""How many daemons of ours can run at once: each has a bridge `am-test<n>` with the network 10.213.<n>.0/24."""


_started: list[subprocess.Popen[bytes]] = []
"""Kept, since a daemon may outlive the object that started it, and Python warns of a child it forgets."""


class NoDaemonError(Exception):
    """No daemon answers and none can be started here; the message says why."""


def default_folder() -> Path:
    """Where the shared daemon of tests and benchmarks keeps its images, from one run to the next."""
    given = os.environ.get("AGENT_MANAGER_E2E_CACHE")
    cache = Path(given).absolute() if given else Path.home() / ".cache" / "agent-manager-e2e"
    return cache / "docker"


@contextmanager
def docker_daemon(folder: Path | None = None) -> Iterator[str]:
    """The address, as DOCKER_HOST says it, of the user's daemon when one answers, else of our own in `folder`.

    Ours is shared by all who use the folder at the same time, in this process or another; the last one to leave
    stops it. Raises NoDaemonError when there is none and this user cannot start one.
    """
    running = answering()
    if running:
        yield running
        return
    daemon = OwnDaemon(folder or default_folder())
    daemon.folder.mkdir(parents=True, exist_ok=True)
    with (daemon.folder / "users.lock").open("w") as users:
        with _starting_or_stopping(daemon.folder):
            fcntl.flock(users, fcntl.LOCK_SH)
            if not _answers(daemon.host):
                daemon.start()
                _tidy(daemon.host)
        try:
            yield daemon.host
        finally:
            with _starting_or_stopping(daemon.folder), contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)  # blocked while anybody else uses it
                daemon.stop()


def answering() -> str | None:
    """The address of the daemon that DOCKER_HOST, the context or the default socket leads to, if it answers."""
    if not _answers(None):
        return None
    return _output("docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}")


class OwnDaemon:
    """A daemon with all its files below `folder`, images included; they stay when it stops.

    Its sockets are in a folder of a short name below the temporary one, since their paths may have 107 bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        short = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:8]
        self._runtime = Path(tempfile.gettempdir()) / f"am-docker-{short}"
        self._pidfile = folder / "docker.pid"
        self.log = folder / "dockerd.log"
        self.host = f"unix://{self._runtime}/docker.sock"

    def start(self) -> None:
        """Start it and wait until it answers. Raises NoDaemonError, with the end of its log, when it does not."""
        if os.geteuid() != 0 or not all(map(shutil.which, ("docker", "dockerd", "ip"))):
            raise NoDaemonError(
                "no Docker answers here, and starting one needs root, docker, dockerd and ip (of iproute2)"
            )
        if self.pid is not None:
            raise NoDaemonError(f"a daemon runs in {self.folder} already (pid {self.pid})")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._runtime.mkdir(mode=0o700, exist_ok=True)
        (self.folder / "daemon.json").write_text("{}", "utf-8")
        self._remove_bridge()  # of a daemon that was killed
        argv: list[str | Path] = [
            "dockerd",
            *("--config-file", self.folder / "daemon.json"),
            *("--data-root", self.folder / "data"),
            *("--exec-root", self._runtime / "exec"),
            *("--pidfile", self._pidfile),
            *("--host", self.host),
            *("--bridge", self._make_bridge()),
            *("--iptables=false", "--ip6tables=false", "--ip-forward=false"),
        ]
        with self.log.open("w") as log:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        _started.append(process)
        _until(lambda: process.poll() is not None or _answers(self.host), START_S)
        if not _answers(self.host):
            tail = "\n".join(self.log.read_text("utf-8").splitlines()[-15:])
            self.stop()
            raise NoDaemonError(f"dockerd did not start:\n{tail}")

    def stop(self) -> None:
        """Stop it, its containers with it, and take its bridge away. Nothing happens when it does not run."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            if not _until(lambda: self.pid is None, STOP_S):
                os.kill(pid, signal.SIGKILL)
                _until(lambda: self.pid is None, STOP_S)
        for process in _started:
            if process.pid == pid:
                process.wait(STOP_S)
        self._remove_bridge()
        _succeeds(
            "umount", str(self.folder / "data")
        )  # a bind mount over itself, which a killed daemon leaves
        shutil.rmtree(self._runtime, ignore_errors=True)

    @property
    def pid(self) -> int | None:
        """The process of the running daemon, None when there is none."""
        try:
            pid = int(self._pidfile.read_text("utf-8"))
            name = Path(f"/proc/{pid}/comm").read_text("utf-8").strip()
            state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            return None
        return pid if name == "dockerd" and state != "Z" else None

    def _make_bridge(self) -> str:
        # Making the bridge is also what claims its number: it fails when another daemon has it.
        for number in range(BRIDGES):
            name = f"am-test{number}"
            if not _succeeds("ip", "link", "add", "name", name, "type", "bridge"):
                continue
            (self.folder / "bridge").write_text(name, "utf-8")
            if _succeeds("ip", "addr", "add", f"10.213.{number}.1/24", "dev", name) and _succeeds(
                "ip", "link", "set", name, "up"
            ):
                return name
            self._remove_bridge()
        raise NoDaemonError("no network bridge can be made here")

    def _remove_bridge(self) -> None:
        record = self.folder / "bridge"
        if record.is_file():
            _succeeds("ip", "link", "delete", record.read_text("utf-8"))
            record.unlink()


@contextmanager
def _starting_or_stopping(folder: Path) -> Iterator[None]:
    """One at a time, across processes."""
    with (folder / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _tidy(host: str) -> None:
    """Drop what an interrupted run left, and what images were replaced; those with a name stay."""
    _succeeds("docker", "--host", host, "system", "prune", "--force", "--volumes")


def _answers(host: str | None) -> bool:
    if shutil.which("docker") is None:
        return False
    address = ("--host", host) if host else ()
    return _succeeds("docker", *address, "version", "--format", "{{.Server.Version}}")


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _succeeds(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, check=True, text=True).stdout.strip()


def main() -> int:
    """Run the command given with DOCKER_HOST set; its exit status is ours."""
    try:
        with docker_daemon() as host:
            return subprocess.run(
                sys.argv[1:], env={**os.environ, "DOCKER_HOST": host}, check=False
            ).returncode
    except NoDaemonError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a script
        return 1


if __name__ == "__main__":
    sys.exit(main())
