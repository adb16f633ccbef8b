"""What several benchmarks do with engines and over loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_manager.runtimes.base import InstanceSpec


def healthy(port: int) -> bool:
    """Whether `/health` answers 200."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):  # Docker's proxy may accept, and then hang up
        return False
    finally:
        connection.close()


_taken: set[int] = set()


def free_port() -> int:
    """A port that is free, and so is the one 100 above; neither was given before."""
    while True:
        with socket.socket() as agent, socket.socket() as engine:
            agent.bind(("127.0.0.1", 0))
            port = int(agent.getsockname()[1])
            try:
                engine.bind(("127.0.0.1", port + 100))
            except (OSError, OverflowError):
                continue
            if port + 100 < 65_000 and _taken.isdisjoint((port, port + 100)):
                _taken.update((port, port + 100))
                return port


def loaded_by_hand_s(spec: InstanceSpec) -> float:
    """Seconds from the spawn of the engine to its first `/health` 200, without agent-manager."""
    began = time.perf_counter()
    engine = subprocess.Popen(
        spec.argv,
        env={**os.environ, **spec.env, "AGENT_MANAGER_INSTANCE": "by-hand"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not healthy(spec.engine_port):
            time.sleep(0.001)
        return time.perf_counter() - began
    finally:
        engine.kill()
        engine.wait()
