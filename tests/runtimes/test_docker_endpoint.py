"""Where Docker is, and what is said when it is not: without Docker and without its library."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from socketserver import UnixStreamServer
from typing import TYPE_CHECKING

import pytest

from agent_manager.errors import DockerNotReady
from agent_manager.runtimes.docker.endpoint import find_endpoint
from agent_manager.runtimes.docker.runtime import DockerRuntime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent_manager.state import StateDir


def add_context(home: Path, name: str, host: str, *, current: bool = False) -> None:
    """As `docker context create` writes it."""
    folder = home / ".docker" / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    folder.mkdir(parents=True)
    meta = {"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": False}}}
    (folder / "meta.json").write_text(json.dumps(meta))
    if current:
        (home / ".docker" / "config.json").write_text(json.dumps({"currentContext": name}))


def test_docker_host_comes_first(tmp_path: Path) -> None:
    add_context(tmp_path, "mine", "unix:///mine.sock", current=True)
    environ = {"HOME": str(tmp_path), "DOCKER_HOST": "unix:///given.sock", "DOCKER_CONTEXT": "mine"}
    assert find_endpoint(environ).url == "unix:///given.sock"


def test_then_the_context_that_is_named(tmp_path: Path) -> None:
    add_context(tmp_path, "one", "unix:///one.sock", current=True)
    add_context(tmp_path, "other", "unix:///other.sock")
    assert find_endpoint({"HOME": str(tmp_path), "DOCKER_CONTEXT": "other"}).url == "unix:///other.sock"


def test_then_the_context_in_use(tmp_path: Path) -> None:
    add_context(tmp_path, "one", "unix:///one.sock", current=True)
    found = find_endpoint({"HOME": str(tmp_path)})
    assert (found.url, found.chosen_by) == ("unix:///one.sock", "Docker's context 'one'")


@pytest.mark.parametrize("config", [None, "{}", "not json", "[]", '{"currentContext": "default"}'])
def test_else_the_usual_socket(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert find_endpoint({"DOCKER_CONFIG": str(tmp_path)}).url == "unix:///var/run/docker.sock"


def test_a_contexts_certificates_are_found(tmp_path: Path) -> None:
    add_context(tmp_path, "mine", "tcp://127.0.0.1:2376", current=True)
    tls = tmp_path / ".docker/contexts/tls" / hashlib.sha256(b"mine").hexdigest() / "docker"
    tls.mkdir(parents=True)
    (tls / "ca.pem").touch()
    certificates = find_endpoint({"HOME": str(tmp_path)}).certificates
    assert certificates is not None
    assert (certificates.ca, certificates.cert, certificates.verify) == (tls / "ca.pem", None, True)


def test_a_context_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DockerNotReady, match="context 'gone' cannot be read") as caught:
        find_endpoint({"HOME": str(tmp_path), "DOCKER_CONTEXT": "gone"})
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("host", ["ssh://me@box", "ssh://localhost", "tcp://192.0.2.1:2375"])
def test_another_machine_is_refused(host: str) -> None:
    with pytest.raises(DockerNotReady, match="leads to another machine"):
        find_endpoint({"DOCKER_HOST": host}).require_usable()


@pytest.mark.parametrize("host", ["tcp://127.0.0.1:2375", "tcp://localhost:2376", "tcp://[::1]:2375"])
def test_this_machine_is_not(host: str) -> None:
    find_endpoint({"DOCKER_HOST": host}).require_usable()


def test_no_socket_is_no_docker(tmp_path: Path) -> None:
    endpoint = find_endpoint({"DOCKER_HOST": f"unix://{tmp_path}/no.sock"})
    with pytest.raises(DockerNotReady, match="Docker is not running: DOCKER_HOST says") as caught:
        endpoint.require_usable()
    assert caught.value.hint == "start it, or correct DOCKER_HOST"


def test_a_socket_that_nobody_listens_on_is_a_docker_that_is_down(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    with pytest.raises(DockerNotReady, match="Docker is not running: nobody answers"):
        find_endpoint({"DOCKER_HOST": f"unix://{path}"}).require_usable()


def test_a_user_who_may_not_use_it_is_told_how_to(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    program = (
        "import os, sys\n"
        "from agent_manager.errors import DockerNotReady\n"
        "from agent_manager.runtimes.docker.endpoint import find_endpoint\n"
        "if os.getuid() == 0: os.setuid(65534)\n"  # root may do everything
        "try: find_endpoint({'DOCKER_HOST': 'unix://' + sys.argv[1]}).require_usable()\n"
        "except DockerNotReady as error: print(error.message, error.hint, sep='\\n')\n"
    )
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        path.chmod(0)
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True
        )
    message, hint = done.stdout.splitlines()
    assert message == f"this user may not use Docker: no permission on {path}"
    assert "usermod -aG docker" in hint


def test_a_file_is_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    path.touch()
    with pytest.raises(DockerNotReady, match="is not a socket"):
        find_endpoint({"DOCKER_HOST": f"unix://{path}"}).require_usable()


async def test_nothing_is_listed_where_docker_never_was(state: StateDir, tmp_path: Path) -> None:
    runtime = DockerRuntime(state, environ={"DOCKER_HOST": f"unix://{tmp_path}/no.sock"})
    assert await runtime.list() == ()


async def test_a_docker_that_was_used_and_is_gone_is_told(state: StateDir, tmp_path: Path) -> None:
    state.compose.mkdir(parents=True)
    runtime = DockerRuntime(state, environ={"DOCKER_HOST": f"unix://{tmp_path}/no.sock"})
    with pytest.raises(DockerNotReady, match="Docker is not running"):
        await runtime.list()


def test_dockers_library_is_not_imported_where_docker_is_not(tmp_path: Path) -> None:
    program = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from agent_manager.runtimes.docker.runtime import DockerRuntime\n"
        "from agent_manager.state import StateDir\n"
        f"runtime = DockerRuntime(StateDir(Path({str(tmp_path)!r})), environ={{'DOCKER_HOST': 'unix:///none'}})\n"
        "assert asyncio.run(runtime.list()) == ()\n"
        "assert not {'docker', 'requests', 'urllib3'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@contextmanager
def answering(path: Path, body: str, status: int = 200) -> Iterator[None]:
    """A server on a socket that says the same to everything."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:
            return "socket"

    with UnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ('{"ApiVersion": "1.40", "Version": "19.3"}', 200, "this Docker is too old: it speaks API 1.40"),
        ("{}", 200, "Docker does not answer"),
        ("<html>", 502, "Docker does not answer"),
    ],
)
async def test_what_is_no_docker_we_know_is_told(
    state: StateDir, tmp_path: Path, body: str, status: int, message: str
) -> None:
    path = tmp_path / "docker.sock"
    with answering(path, body, status):
        runtime = DockerRuntime(state, environ={"DOCKER_HOST": f"unix://{path}"})
        with pytest.raises(DockerNotReady, match=message):
            await runtime.container_engine()
        runtime.close()
