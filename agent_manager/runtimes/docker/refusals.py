"""What Docker says when it refuses, as our errors: cause and remedy. Pure: text in, error out.

The words are those of Docker Engine 20.10 to 28 (moby), of runc and of NVIDIA's container toolkit.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from agent_manager.errors import (
    AgentManagerError,
    DockerNotReady,
    EngineMissing,
    HostNotReady,
    OperationFailed,
    PortInUse,
)

_PORT_HINT: Final = "stop what listens there, or give the agent another port in models.yaml"
_TOOLKIT: Final = (
    "install the NVIDIA Container Toolkit, run 'sudo nvidia-ctk runtime configure --runtime=docker' and "
    "'sudo systemctl restart docker'; or use --engine simulated or vllm-cpu"
)


class _Refusal(Struct, frozen=True):
    """In `message`, `{found}` is the pattern's group that matched, `{said}` all that Docker said."""

    pattern: re.Pattern[str]
    error: type[AgentManagerError]
    message: str
    hint: str


def _refusal(pattern: str, error: type[AgentManagerError], message: str, hint: str) -> _Refusal:
    return _Refusal(re.compile(pattern, re.IGNORECASE | re.DOTALL), error, message, hint)


_REFUSALS: Final = (
    _refusal(
        r"could not select device driver|failed to discover GPU vendor|unknown or invalid runtime name: nvidia"
        r"|unresolvable CDI devices",
        DockerNotReady,
        "Docker cannot give a container an NVIDIA GPU on this host",
        _TOOLKIT,
    ),
    _refusal(
        r"nvidia-container-cli: ([^:]+: [^:\n]+)|(nvidia-container-runtime-hook[^\n]*)",
        DockerNotReady,
        "the NVIDIA driver refused a container: {found}",
        "check nvidia-smi, and that the GPU chosen with AGENT_MANAGER_GPU is there; after a driver update, reboot",
    ),
    _refusal(
        r"(?:Bind for \S*?:(\d+) failed: port is already allocated"
        r"|listen tcp\d? \S*?:(\d+): bind: address already in use"
        r"|failed to bind host port \S*?:(\d+)\S*: address already in use)",
        PortInUse,
        "port {found} is in use",
        _PORT_HINT,
    ),
    _refusal(
        r"exec: \\?\"([^\"\\]+)\\?\": (?:executable file not found|stat|permission denied|no such file)",
        EngineMissing,
        "program '{found}' was not found in the image",
        "is engines.<name>.image in models.yaml an image of that engine?",
    ),
    _refusal(
        r"bind source path does not exist: (\S+)",
        HostNotReady,
        "Docker does not see the folder {found}",
        "it must exist on the machine Docker runs on; Docker from a snap or in a virtual machine sees only "
        "folders that are shared with it",
    ),
    _refusal(
        r"no space left on device",
        HostNotReady,
        "Docker's disk is full",
        "free some space: 'docker system df' shows what Docker holds, 'docker image prune' frees what is unused",
    ),
    _refusal(
        r"read-only file system|error while (?:creating|mounting) (?:mount source path|volume)[^\n]*permission denied"
        r"|mkdir \S+: permission denied",
        HostNotReady,
        "a volume of the container cannot be written: {said}",
        "make Docker's folder ('docker info' names its root dir) writable again",
    ),
    _refusal(
        r"client version \S+ is too old|client version \S+ is too new|minimum supported API version",
        DockerNotReady,
        "this Docker and agent-manager do not understand each other: {said}",
        "agent-manager needs Docker Engine 20.10 or newer",
    ),
    _refusal(
        r"no such image|manifest (?:for \S+ )?(?:unknown|not found)|pull access denied|repository does not exist"
        r"|was found but does not match the specified platform",
        EngineMissing,
        "there is no such image: {said}",
        "correct engines.<name>.image in models.yaml",
    ),
)
_FETCH_REFUSALS: Final = (
    _refusal(
        r"no such host|network is unreachable|i/o timeout|connection refused|TLS handshake timeout"
        r"|request canceled|connection reset|context deadline exceeded|server misbehaving|EOF",
        EngineMissing,
        "the image cannot be fetched: {said}",
        "check the network of this host; or fetch the image elsewhere and bring it with "
        "'docker save' and 'docker load'",
    ),
)


def refused(said: str, *, doing: str, fetching: bool = False) -> AgentManagerError:
    """The error for what Docker said while `doing` (such as `starting dev-1a2b3c4d`).

    `fetching`: it was talking to a registry, so words about networks mean that one.
    """
    words = " ".join(said.split()).rstrip(".") or "no reason given"
    refusals: tuple[_Refusal, ...] = (*_REFUSALS, *_FETCH_REFUSALS) if fetching else _REFUSALS
    for refusal in refusals:
        match = refusal.pattern.search(said)
        if match is None:
            continue
        found = next((group for group in match.groups() if group), words)
        where = f"port {found}" if refusal.error is PortInUse else None
        return refusal.error(refusal.message.format(found=found, said=words), hint=refusal.hint, where=where)
    return OperationFailed(f"Docker refused while {doing}: {words}", hint="the words are Docker's own")
