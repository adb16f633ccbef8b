"""Docker's API through Docker's own library; the only file that imports it. Everything here blocks.

The library is imported when Docker is first asked for something: it takes a quarter of a second, and most
machines' first question is answered by `endpoint` without it.
"""

from __future__ import annotations

import contextlib
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from agent_manager.errors import DockerNotReady, EngineMissing, OperationFailed
from agent_manager.runtimes.docker.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from agent_manager.runtimes.docker.body import Creation
    from agent_manager.runtimes.docker.endpoint import Certificates, Endpoint

Json = dict[str, Any]
_Item = TypeVar("_Item")

OLDEST_API: Final = (1, 41)
"""Docker Engine 20.10: device requests by id, one-shot statistics."""
TIMEOUT_S: Final = 60.0
_NOT_FOUND, _CONFLICT = 404, 409

LIBRARY_ERRORS: Final = frozenset(
    {
        "APIError",
        "BuildError",
        "ContainerError",
        "ContextAlreadyExists",
        "ContextException",
        "ContextNotFound",
        "DeprecatedMethod",
        "DockerException",
        "ImageLoadError",
        "ImageNotFound",
        "InvalidArgument",
        "InvalidConfigFile",
        "InvalidRepository",
        "InvalidVersion",
        "MissingContextParameter",
        "NotFound",
        "NullResource",
        "StreamParseError",
        "TLSParameterError",
    }
)
"""The library's exceptions that `_as_ours` was written for; a test fails when there is another."""


class GoneError(Exception):
    """There is no such container, image or volume. Caught in this package; nobody else sees it."""


class ConflictError(Exception):
    """It is not in a state for that: not running, a name that is taken. Caught in this package."""


class DockerClient:
    """Speaks to one Docker. Thread-safe. Every method raises DockerNotReady when it does not answer."""

    def __init__(self, endpoint: Endpoint, *, timeout_s: float = TIMEOUT_S) -> None:
        """Touches nothing. `timeout_s`: how long Docker may be silent."""
        self.endpoint = endpoint
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._made: Any = None

    def close(self) -> None:
        """Close all connections; the next call opens others."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.close()

    def version(self) -> Json:
        """What the daemon said of itself when it was connected to: `Version`, `ApiVersion`."""
        with self._calling("asking for its version") as api:
            return dict(api.version())

    def info(self) -> Json:
        """The daemon's state: `DockerRootDir` and much else."""
        with self._calling("asking for its state") as api:
            return dict(api.info())

    def containers(self, labels: Mapping[str, str] | None = None) -> list[Json]:
        """Summaries of all containers that carry these labels, running or not."""
        filters = {"label": [f"{name}={value}" for name, value in (labels or {}).items()]}
        with self._calling("listing containers") as api:
            return list(api.containers(all=True, filters=filters))

    def inspect(self, container: str) -> Json:
        """All about a container, by id or name. Raises GoneError."""
        with self._calling(f"looking at {container}") as api:
            return dict(api.inspect_container(container))

    def has_image(self, image: str) -> bool:
        """Whether an image is here."""
        try:
            with self._calling(f"looking for the image {image}") as api:
                api.inspect_image(image)
        except (GoneError, EngineMissing):
            return False
        return True

    def images(self) -> list[Json]:
        """Summaries of the images that are here: `RepoTags`, `Size` in bytes."""
        with self._calling("listing images") as api:
            return list(api.images())

    def create(self, wanted: Creation) -> str:
        """Create a container and the volumes it names; its id. Raises ConflictError when the name is taken."""
        with self._calling(f"creating {wanted.name}") as api:
            for volume, labels in wanted.volumes.items():
                api.create_volume(volume, labels=dict(labels))
            return str(api.create_container_from_config(dict(wanted.config), wanted.name)["Id"])

    def start(self, container: str) -> None:
        """Start it; one that runs already stays as it is. Raises GoneError, and what `refusals` makes of the rest."""
        with self._calling(f"starting {container}") as api:
            api.start(container)

    def signal(self, container: str, signal: str) -> None:
        """Send `SIGTERM` and the like. Raises GoneError, ConflictError when it does not run."""
        with self._calling(f"stopping {container}") as api:
            api.kill(container, signal)

    def remove(self, container: str, *, kill: bool = False) -> None:
        """Remove one that does not run, with its unnamed volumes; `kill` ends it first.

        Raises GoneError, ConflictError.
        """
        with self._calling(f"removing {container}") as api:
            api.remove_container(container, v=True, force=kill)

    def rename(self, container: str, name: str) -> None:
        """Give it another name. Raises GoneError, ConflictError when that is taken."""
        with self._calling(f"renaming {container}") as api:
            api.rename(container, name)

    def processes(self, container: str) -> list[int]:
        """Its processes, as the host numbers them. Raises GoneError, ConflictError when it does not run."""
        with self._calling(f"listing the processes of {container}") as api:
            listed = api.top(container, ps_args="-eo pid")
        return [int(row[0]) for row in listed.get("Processes") or ()]

    def usage(self, container: str) -> Json:
        """One sample of its statistics. Raises GoneError."""
        with self._calling(f"measuring {container}") as api:
            return dict(api.stats(container, stream=False, one_shot=True))

    def log(self, container: str, *, tail: int | None, since_s: float | None, follow: bool) -> Stream[bytes]:
        """Its output, each piece with a time before it. Raises GoneError."""
        with self._calling(f"reading the log of {container}") as api:
            return Stream(
                api.logs(
                    container,
                    stream=True,
                    timestamps=True,
                    follow=follow,
                    tail="all" if tail is None else tail,
                    since=since_s,
                ),
                lambda: self._calling(f"reading the log of {container}"),
            )

    def ends(self, container: str, *, since_s: int) -> Stream[Json]:
        """An item each time the container ends or is removed, from `since_s` (seconds since 1970) on."""
        filters = {"container": container, "event": ["die", "destroy"]}
        with self._calling(f"watching {container}") as api:
            return Stream(
                api.events(since=since_s, filters=filters, decode=True),
                lambda: self._calling(f"watching {container}"),
            )

    def pull(self, image: str) -> Pull:
        """Fetch an image; what Docker says of its progress, until it is here. Raises EngineMissing, HostNotReady."""
        doing = f"fetching the image {image}"
        with self._calling(doing, fetching=True) as api:
            said = api.pull(image, stream=True, decode=True)
        return Pull(said, doing, lambda: self._calling(doing, fetching=True))

    @contextmanager
    def _calling(self, doing: str, *, fetching: bool = False) -> Iterator[Any]:
        if self._made is None:
            self.endpoint.require_usable()
        with _as_ours(doing, self.endpoint, fetching=fetching):
            with self._lock:
                if self._made is None:
                    self._made = _connect(self.endpoint, self._timeout_s)
                api = self._made
            yield api


class Stream(Generic[_Item]):
    """What the library gives as it comes; see `threads.Stream`."""

    def __init__(self, stream: Any, calling: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:  # noqa: ANN401 - the library is untyped
        self._stream = stream
        self._calling = calling

    def __iter__(self) -> Iterator[_Item]:
        """Its items; a connection that breaks ends it. Raises DockerNotReady and others of our errors."""
        with self._calling():
            yield from self._stream

    def close(self) -> None:
        """End it, from any thread."""
        # The library reaches for the socket through what may have ended by itself meanwhile.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self._stream.close()


class Pull:
    """What Docker says while it fetches an image; see `threads.Stream`."""

    def __init__(
        self, said: Iterator[Json], doing: str, calling: Callable[[], contextlib.AbstractContextManager[Any]]
    ) -> None:
        self._said = said
        self._doing = doing
        self._calling = calling
        self._unwanted = False

    def __iter__(self) -> Iterator[Json]:
        """Its items. Raises EngineMissing, HostNotReady and others of our errors."""
        with self._calling():
            for said in self._said:
                if self._unwanted:
                    return
                if "error" in said:
                    raise refused(str(said["error"]), doing=self._doing, fetching=True)
                yield said

    def close(self) -> None:
        """End it with its next item, of which there are several a second. Docker gives up when nobody listens."""
        self._unwanted = True


def _connect(endpoint: Endpoint, timeout_s: float) -> Any:  # noqa: ANN401 - the library is untyped
    import docker  # noqa: PLC0415 - a quarter of a second, and only where Docker is there

    class Api(docker.APIClient):  # type: ignore[misc] # the library is untyped
        """Asks for the version once, to choose that of the API: Docker takes 10 ms to say it."""

        _said: Json | None = None

        def version(self, api_version: bool = True) -> Json:  # noqa: FBT001, FBT002 - the library's signature
            if self._said is None:
                self._said = dict(super().version(api_version))
            return self._said

    tls: Any = False
    if endpoint.certificates is not None:
        tls = _tls(endpoint.certificates)
    try:
        api = Api(base_url=endpoint.url, version="auto", timeout=timeout_s, tls=tls)
    except docker.errors.TLSParameterError:
        raise
    except docker.errors.DockerException as error:
        raise _no_answer(error, "asking for its version", endpoint) from error
    version = str(api.api_version)
    if tuple(int(part) for part in version.split(".")) < OLDEST_API:
        api.close()
        raise DockerNotReady(
            f"this Docker is too old: it speaks API {version}, and {'.'.join(map(str, OLDEST_API))} is needed",
            hint="install Docker Engine 20.10 or newer, or use --runtime process",
            where=endpoint.chosen_by,
        )
    return api


def _tls(certificates: Certificates) -> Any:  # noqa: ANN401 - the library is untyped
    from docker.tls import TLSConfig  # noqa: PLC0415 - as above

    pair = (certificates.cert, certificates.key)
    return TLSConfig(
        client_cert=tuple(map(str, pair)) if all(pair) else None,
        ca_cert=str(certificates.ca) if certificates.ca else None,
        verify=certificates.verify,
    )


@contextmanager
def _as_ours(doing: str, endpoint: Endpoint, *, fetching: bool) -> Iterator[None]:
    """The library's errors as ours. GoneError and ConflictError are for the runtime to say better."""
    from docker import errors  # noqa: PLC0415 - a quarter of a second, and only where Docker is there
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - the library lets these through from streams

    try:
        yield
    except errors.ImageNotFound as error:
        raise refused(str(error.explanation), doing=doing, fetching=fetching) from error
    except errors.APIError as error:
        said = str(error.explanation or error)
        if error.status_code == _NOT_FOUND and not fetching:
            raise GoneError(said) from error
        if error.status_code == _CONFLICT:
            raise ConflictError(said) from error
        raise refused(said, doing=doing, fetching=fetching) from error
    except (
        errors.ContextException,
        errors.ContextNotFound,
        errors.InvalidConfigFile,
        errors.TLSParameterError,
    ) as error:
        raise DockerNotReady(
            f"Docker's configuration cannot be used: {_words(error)}", where=endpoint.chosen_by
        ) from error
    except (HTTPError, OSError) as error:
        raise _no_answer(error, doing, endpoint) from error
    except (errors.DockerException, errors.StreamParseError) as error:
        raise OperationFailed(
            f"Docker's answer is not understood while {doing}: {_words(error)}", where=endpoint.url
        ) from error


def _no_answer(error: Exception, doing: str, endpoint: Endpoint) -> DockerNotReady:
    """Docker went away, or is no Docker."""
    try:
        endpoint.require_usable()
    except DockerNotReady as reason:
        return reason
    return DockerNotReady(
        f"Docker does not answer while {doing}: {_words(error)}",
        hint="see 'docker info', and its log: journalctl -u docker",
        where=endpoint.url,
    )


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
