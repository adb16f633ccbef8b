"""What the gateway's benchmark runs: the gateway, nginx, an engine by hand. All on loopback, all ended again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from agent_manager.catalog.load import load_catalog
from agent_manager.gpu.simulated import SimulatedProbe
from agent_manager.runtimes.process import ProcessRuntime
from agent_manager.state import StateDir
from agent_manager.swap.host import Host
from agent_manager.swap.prepare import prepare
from benchmarks.http import free_port, healthy, loaded_by_hand_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AGENTS: Final = ("dev", "po")
ENGINE_OFFSET: Final = 100
"""An engine's port is its agent's plus this."""
PATIENCE_S: Final = 30.0
CATALOG: Final = """\
version: 1
engine: simulated
{engines}gateway: {{port: {port}}}
models:
  coder: {{repo: Qwen/Qwen2.5-Coder-7B-Instruct-AWQ}}
  small: {{repo: Qwen/Qwen2.5-7B-Instruct-AWQ}}
agents:
  dev: {{model: coder, port: {dev}, context: 4k, sequences: 4}}
  po: {{model: small, port: {po}, context: 4k, sequences: 4}}
"""
NGINX: Final = """\
worker_processes 1;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  keepalive_requests 100000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 64; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=512;
    location / {{
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


class Gateway(Struct, frozen=True, kw_only=True):
    """One that runs: its common port, the engine's port of the first agent, its process."""

    port: int
    engine_port: int
    pid: int


@contextlib.contextmanager
def gateway(folder: Path, engines: str) -> Iterator[Gateway]:
    """`agent-manager serve` with two agents on these engines."""
    catalog, port = _catalog(folder, engines)
    dev = load_catalog(catalog, environ={}).agents[AGENTS[0]].port
    program = str(Path(sys.executable).with_name("agent-manager"))
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--catalog", str(catalog), "serve"],
            env={**os.environ, "AGENT_MANAGER_STATE_DIR": str(folder / "state")},
            stdout=log,
            stderr=log,
        )
    try:
        _until_healthy(port, process)
        yield Gateway(port=port, engine_port=dev + ENGINE_OFFSET, pid=process.pid)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@contextlib.contextmanager
def nginx(folder: Path, engine_port: int) -> Iterator[int | None]:
    """An nginx before that engine, and its port; None where it is not installed."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        yield None
        return
    own, port = folder / "nginx", free_port()
    own.mkdir()
    (own / "nginx.conf").write_text(NGINX.format(folder=own, port=port, engine=engine_port))
    process = subprocess.Popen(
        [program, "-p", str(own), "-c", str(own / "nginx.conf")], stderr=subprocess.DEVNULL
    )
    try:
        _until_healthy(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@contextlib.contextmanager
def by_hand(folder: Path, engines: str) -> Iterator[Callable[[], float]]:
    """Measures, each time, the seconds from the spawn of an engine to its first `/health` 200."""
    folder.mkdir()
    catalog, _ = _catalog(folder, engines)
    state = StateDir(folder / "state")
    host = Host(
        state=state,
        catalog=load_catalog(catalog, environ={}),
        runtimes={"process": ProcessRuntime(state)},
        probe=lambda _: SimulatedProbe(state.card("SIM-0")),
        environ=dict(os.environ),
    )
    spec = asyncio.run(prepare(host, AGENTS[0], pull=False, listener=lambda _: None)).spec
    yield lambda: loaded_by_hand_s(spec)


def completed_s(port: int, model: str) -> float:
    """Seconds until a completion of one token has come."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    asked = json.dumps({"model": model, "prompt": "Hi", "max_tokens": 1})
    began = time.perf_counter()
    try:
        connection.request("POST", "/v1/completions", asked, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise AssertionError(f"{answer.status}: {said.decode()}")
        return time.perf_counter() - began
    finally:
        connection.close()


def _catalog(folder: Path, engines: str) -> tuple[Path, int]:
    """A catalog with ports of its own, and its common one."""
    path, port = folder / "models.yaml", free_port()
    path.write_text(CATALOG.format(engines=engines, port=port, dev=free_port(), po=free_port()))
    return path, port


def _until_healthy(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not healthy(port):
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise AssertionError(f"nobody listens on port {port}: exit code {process.poll()}")
        time.sleep(0.01)
