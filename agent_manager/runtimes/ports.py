"""Ports of this host: taking one, and telling who has it. Loopback only."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from agent_manager.errors import HostNotReady, PortInUse
from agent_manager.runtimes import proc

LOOPBACK = "127.0.0.1"
_BACKLOG = 512


def listen(port: int) -> socket.socket:
    """A socket that listens on loopback `port`. Raises PortInUse, naming who does already; HostNotReady."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Connections of the agent that left linger for a minute; they must not keep the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOOPBACK, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise in_use(port) from error
        raise HostNotReady(f"cannot listen on port {port}: {error.strerror}", where=f"port {port}") from error
    return sock


def require_free(port: int) -> None:
    """Raises PortInUse, naming who listens there; HostNotReady when the port cannot be used at all."""
    listen(port).close()


def in_use(port: int, holder: str | None = None) -> PortInUse:
    """The error for a port that somebody has; `holder` is who, where that is known already."""
    holder = holder or port_holder(port)
    return PortInUse(
        f"port {port} is in use by {holder}" if holder else f"port {port} is in use",
        hint="stop what listens there, or give the agent another port in models.yaml",
        where=f"port {port}",
    )


def port_holder(port: int) -> str | None:
    """Who listens on `port`, such as `python3 (pid 123)`; None when nobody does.

    Reads all of /proc, 10-50 ms.
    """
    import psutil  # noqa: PLC0415 - slow to import, and needed only to explain a failure

    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.laddr.port != port:
            continue
        if connection.pid is None:
            return "a process of another user"
        return _name(connection.pid)
    return None


def _name(pid: int) -> str:
    mark = f"{proc.SHIM_VARIABLE}=".encode()
    for entry in proc.environment(pid):
        if entry.startswith(mark):
            return f"agent-manager's instance {os.fsdecode(entry[len(mark) :])} (pid {pid})"
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return f"pid {pid}"
    return f"{name} (pid {pid})"
