"""Where Docker is: DOCKER_HOST, else the context that was chosen, else the usual socket. Without its library.

The library reads DOCKER_HOST only; contexts are read here as Docker's command line does (docker/cli,
`cli/context/store`): `<config>/config.json` names the one in use, `<config>/contexts/meta/<sha256 of the
name>/meta.json` says where it leads, and its certificates lie under `contexts/tls`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from msgspec import Struct

from agent_manager.errors import DockerNotReady

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_SOCKET: Final = "/var/run/docker.sock"
_CONNECT_TIMEOUT_S: Final = 5.0
_DEFAULT_CONTEXT: Final = "default"
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_INSTALL: Final = "install Docker Engine (https://docs.docker.com/engine/install), or use --runtime process"
_START: Final = "start it: sudo systemctl start docker; or use --runtime process"


class Certificates(Struct, frozen=True, kw_only=True):
    """Files for TLS; those that are None are not used. `verify`: the daemon must show a certificate we trust."""

    ca: Path | None
    cert: Path | None
    key: Path | None
    verify: bool


class Endpoint(Struct, frozen=True, kw_only=True):
    """Where Docker's API is. `chosen_by` says who said so, as a person would look for it."""

    url: str
    chosen_by: str
    certificates: Certificates | None = None

    @property
    def socket(self) -> Path | None:
        """The socket's file, for `unix://`."""
        return Path(self.url.removeprefix("unix://")) if self.url.startswith("unix://") else None

    def require_usable(self) -> None:
        """Raises DockerNotReady, saying why: another machine, not installed, not running, no permission.

        Connects to a socket and hangs up, a fraction of a millisecond; other endpoints are not tried.
        """
        if self.socket is not None:
            _require_socket(self.socket, self)
        else:
            _require_this_machine(self)


def find_endpoint(environ: Mapping[str, str]) -> Endpoint:
    """Where this environment says that Docker is. Raises DockerNotReady for a context that is not there."""
    if host := environ.get("DOCKER_HOST"):
        return Endpoint(url=host, chosen_by="DOCKER_HOST", certificates=_from_environment(environ))
    config = Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or "~").expanduser() / ".docker")
    name = environ.get("DOCKER_CONTEXT") or _current_context(config)
    if name == _DEFAULT_CONTEXT:
        return Endpoint(url=f"unix://{DEFAULT_SOCKET}", chosen_by="Docker's default")
    return _of_context(name, config / "contexts")


def _from_environment(environ: Mapping[str, str]) -> Certificates | None:
    folder = environ.get("DOCKER_CERT_PATH")
    verify = bool(environ.get("DOCKER_TLS_VERIFY"))
    if not folder and not verify:
        return None
    return _certificates(
        Path(folder or Path(environ.get("HOME") or "~").expanduser() / ".docker"), verify=verify
    )


def _certificates(folder: Path, *, verify: bool) -> Certificates:
    ca, cert, key = (folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
    return Certificates(
        ca=ca if ca.is_file() else None,
        cert=cert if cert.is_file() else None,
        key=key if key.is_file() else None,
        verify=verify,
    )


def _current_context(config: Path) -> str:
    try:
        return str(
            json.loads((config / "config.json").read_bytes()).get("currentContext") or _DEFAULT_CONTEXT
        )
    except (OSError, ValueError, AttributeError):
        return _DEFAULT_CONTEXT  # as Docker's command line: no configuration, no context


def _of_context(name: str, contexts: Path) -> Endpoint:
    folder = hashlib.sha256(name.encode()).hexdigest()
    meta = contexts / "meta" / folder / "meta.json"
    try:
        docker: dict[str, Any] = json.loads(meta.read_bytes())["Endpoints"]["docker"]
        url, verify = str(docker["Host"]), not docker.get("SkipTLSVerify")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DockerNotReady(
            f"Docker's context '{name}' cannot be read",
            hint="'docker context ls' lists those there are; DOCKER_CONTEXT=default is the local one",
            where=str(meta),
        ) from error
    tls = contexts / "tls" / folder / "docker"
    certificates = _certificates(tls, verify=verify) if tls.is_dir() else None
    return Endpoint(url=url, chosen_by=f"Docker's context '{name}'", certificates=certificates)


def _require_this_machine(endpoint: Endpoint) -> None:
    if urlsplit(endpoint.url).hostname in _LOOPBACK and not endpoint.url.startswith("ssh:"):
        return
    raise DockerNotReady(
        f"{endpoint.chosen_by} leads to another machine: {endpoint.url}",
        hint="checkpoints, the card and the agents' ports must be where agent-manager runs: run it there, "
        "or choose the local Docker with DOCKER_HOST=unix:///var/run/docker.sock",
        where=endpoint.chosen_by,
    )


def _require_socket(path: Path, endpoint: Endpoint) -> None:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise DockerNotReady(f"{path} is not a socket", hint=_START, where=endpoint.chosen_by)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_CONNECT_TIMEOUT_S)
            probe.connect(os.fspath(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _absent(path, endpoint) from error
    except PermissionError as error:
        raise DockerNotReady(
            f"this user may not use Docker: no permission on {path}",
            hint="add yourself to its group: sudo usermod -aG docker $USER, then log in anew; "
            "or use --runtime process",
            where=str(path),
        ) from error
    except ConnectionRefusedError as error:
        raise DockerNotReady(
            f"Docker is not running: nobody answers on {path}", hint=_START, where=str(path)
        ) from error
    except OSError as error:
        raise DockerNotReady(
            f"{path}: {error.strerror or error}", hint=_START, where=endpoint.chosen_by
        ) from error


def _absent(path: Path, endpoint: Endpoint) -> DockerNotReady:
    if endpoint.chosen_by != "Docker's default":
        return DockerNotReady(
            f"Docker is not running: {endpoint.chosen_by} says {path}, and there is no such socket",
            hint=f"start it, or correct {endpoint.chosen_by}",
            where=endpoint.chosen_by,
        )
    if shutil.which("dockerd") or shutil.which("docker"):
        return DockerNotReady(f"Docker is not running: there is no {path}", hint=_START, where=str(path))
    return DockerNotReady("Docker is not installed", hint=_INSTALL, where=str(path))
