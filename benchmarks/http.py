"""What several benchmarks do over loopback."""

from __future__ import annotations

import socket
from http.client import HTTPConnection, HTTPException


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


def free_port() -> int:
    """A port that is free, and so is the one 100 above."""
    while True:
        with socket.socket() as agent, socket.socket() as engine:
            agent.bind(("127.0.0.1", 0))
            port = int(agent.getsockname()[1])
            try:
                engine.bind(("127.0.0.1", port + 100))
            except (OSError, OverflowError):
                continue
            if port + 100 < 65_000:
                return port
