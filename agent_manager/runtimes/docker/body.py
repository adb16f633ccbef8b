"""From a compose document to what Docker's API is asked for, as `docker compose up` would ask. Pure.

What is read here is what `agent_manager.compose` writes, and the little else that tests need; a key that is not
known is an error, so that nothing of a document is lost in silence. The API's fields are those of its
`ContainerCreate` (version 1.41), compose's labels those of its `pkg/api/labels.go`.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agent_manager.compose import Document

_COMPOSE: Final = "com.docker.compose"
COMPOSE_VERSION: Final = "2.26.1"
"""The version of compose whose labels these are; tests hold them beside that program's own."""

_VARIABLE: Final = re.compile(r"\$\$|\$")
_DURATION: Final = re.compile(r"(\d+)(ms|s|m|h)")
_NANOSECONDS: Final = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_SIZE: Final = re.compile(r"(\d+)([kmg]?)b?")
_BYTES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_PORT: Final = re.compile(r"(?:([\d.]+):)?(\d+):(\d+)")


class Creation(Struct, frozen=True, kw_only=True):
    """What to ask Docker for: a container's `name` and `config`, and before that its `volumes` with their labels."""

    name: str
    config: Mapping[str, Any]
    volumes: Mapping[str, Mapping[str, str]]


def creation(document: Document, file: Path) -> Creation:
    """The container of a document with one service; `file` is where compose would read that document.

    Raises ValueError for a key that is not known, and for a variable that was left open.
    """
    plain = _plain(document)
    project, ((name, service),) = plain["name"], plain["services"].items()
    _only(plain, {"name", "services", "volumes"})
    volumes = {
        volume: {
            f"{_COMPOSE}.project": project,
            f"{_COMPOSE}.version": COMPOSE_VERSION,
            f"{_COMPOSE}.volume": volume,
        }
        for volume in plain.get("volumes", {})
    }
    config: dict[str, Any] = {
        "HostConfig": {"NetworkMode": "default"},
        "AttachStdout": True,
        "AttachStderr": True,
    }
    for key, value in service.items():
        if key == "volumes":
            config["HostConfig"]["Mounts"] = [_mount(mount, project) for mount in value]
        elif key == "labels":
            config["Labels"] = value | _compose_labels(project, name, service, file)
        elif key != "container_name":
            _translate(config, key, value)
    return Creation(
        name=service["container_name"],
        config=config,
        volumes={f"{project}_{volume}": labels for volume, labels in volumes.items()},
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
    """The value with `$$` read as compose reads it. Raises ValueError for a variable."""
    if isinstance(value, str):
        return _VARIABLE.sub(_dollar, value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value


def _dollar(match: re.Match[str]) -> str:
    if match.group() != "$$":
        raise ValueError(f"a variable is left open: {match.string}")
    return "$"


def _only(mapping: Mapping[str, Any], known: set[str]) -> None:
    if unknown := mapping.keys() - known:
        raise ValueError(f"not known in a compose document: {', '.join(sorted(unknown))}")


def _compose_labels(project: str, service: str, content: Document, file: Path) -> dict[str, str]:
    """What makes `docker compose` see the container. The hash is not compose's own: `up` makes it anew."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    labels = {
        "config-hash": digest,
        "container-number": "1",
        "depends_on": "",
        "oneoff": "False",
        "project": project,
        "project.config_files": str(file),
        "project.working_dir": str(file.parent),
        "service": service,
        "version": COMPOSE_VERSION,
    }
    return {f"{_COMPOSE}.{name}": value for name, value in labels.items()}


def _translate(config: dict[str, Any], key: str, value: Any) -> None:  # noqa: ANN401 - whatever YAML holds
    top, host = _TOP.get(key), _HOST.get(key)
    if top is not None:
        name, convert = top
        config[name] = convert(value)
    elif host is not None:
        name, convert = host
        config["HostConfig"][name] = convert(value)
    elif key == "ports":
        bindings = _bindings(value)
        config["HostConfig"]["PortBindings"] = bindings
        config["ExposedPorts"] = {port: {} for port in bindings}
    else:
        raise ValueError(f"not known in a compose service: {key}")


def _same(value: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
    return value


def _duration_ns(text: str) -> int:
    if not _DURATION.fullmatch(text):
        raise ValueError(f"not a duration: {text}")
    number, unit = _DURATION.fullmatch(text).groups()  # type: ignore[union-attr] # it matched
    return int(number) * _NANOSECONDS[unit]


def _seconds(text: str) -> int:
    return _duration_ns(text) // 10**9


def _size_bytes(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"not a size: {text}")
    return int(match[1]) * _BYTES[match[2]]


def _environment(variables: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items()]


def _healthcheck(check: Mapping[str, Any]) -> dict[str, Any]:
    _only(check, {"test", "interval", "timeout", "retries", "start_period", "start_interval"})
    times = {
        "interval": "Interval",
        "timeout": "Timeout",
        "start_period": "StartPeriod",
        "start_interval": "StartInterval",
    }
    read = {name: _duration_ns(check[key]) for key, name in times.items() if key in check}
    return {"Test": check["test"], "Retries": check["retries"], **read}


def _log_config(logging: Mapping[str, Any]) -> dict[str, Any]:
    _only(logging, {"driver", "options"})
    return {"Type": logging["driver"], "Config": logging["options"]}


def _device_requests(deploy: Mapping[str, Any]) -> list[dict[str, Any]]:
    devices = deploy["resources"]["reservations"]["devices"]
    for device in devices:
        _only(device, {"driver", "device_ids", "capabilities"})
    return [
        {
            "Driver": device["driver"],
            "DeviceIDs": device["device_ids"],
            "Capabilities": [device["capabilities"]],
        }
        for device in devices
    ]


def _bindings(ports: list[str]) -> dict[str, list[dict[str, str]]]:
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        match = _PORT.fullmatch(port)
        if match is None:
            raise ValueError(f"not a published port: {port}")
        address, outside, inside = match.groups()
        bindings.setdefault(f"{inside}/tcp", []).append({"HostIp": address or "", "HostPort": outside})
    return bindings


def _mount(mount: Mapping[str, Any], project: str) -> dict[str, Any]:
    _only(mount, {"type", "source", "target", "read_only", "bind"})
    made: dict[str, Any] = {"Type": mount["type"], "Target": mount["target"]}
    if mount.get("read_only"):
        made["ReadOnly"] = True
    if mount["type"] == "volume":
        return made | {"Source": f"{project}_{mount['source']}"}
    if mount.get("bind") != {"create_host_path": False}:
        raise ValueError("a folder of the host is mounted only where it exists: create_host_path: false")
    return made | {"Source": mount["source"]}


_TOP: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "image": ("Image", _same),
    "command": ("Cmd", _same),
    "entrypoint": ("Entrypoint", _same),
    "environment": ("Env", _environment),
    "healthcheck": ("Healthcheck", _healthcheck),
    "stop_grace_period": ("StopTimeout", _seconds),
    "user": ("User", _same),
}
_HOST: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "cap_add": ("CapAdd", _same),
    "cap_drop": ("CapDrop", _same),
    "deploy": ("DeviceRequests", _device_requests),
    "init": ("Init", _same),
    "logging": ("LogConfig", _log_config),
    "network_mode": ("NetworkMode", _same),
    "restart": ("RestartPolicy", lambda name: {"Name": name, "MaximumRetryCount": 0}),
    "security_opt": ("SecurityOpt", _same),
    "shm_size": ("ShmSize", _size_bytes),
}
