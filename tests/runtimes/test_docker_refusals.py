"""Docker's words, as errors with a remedy. The words are Docker's own, of several versions."""

from __future__ import annotations

import inspect

import pytest
from docker import errors

from agent_manager.errors import (
    AgentManagerError,
    DockerNotReady,
    EngineMissing,
    HostNotReady,
    OperationFailed,
    PortInUse,
)
from agent_manager.runtimes.docker.client import LIBRARY_ERRORS
from agent_manager.runtimes.docker.refusals import refused

STARTS = [
    ('could not select device driver "nvidia" with capabilities: [[gpu]]', DockerNotReady, "an NVIDIA GPU"),
    (
        "failed to create task: failed to discover GPU vendor from CDI: no known GPU vendor found",
        DockerNotReady,
        "an NVIDIA GPU",
    ),
    (
        (
            "OCI runtime create failed: runc did not terminate successfully: exit status 1: nvidia-container-cli: "
            "device error: GPU-1a2b: unknown device: unknown"
        ),
        DockerNotReady,
        "the NVIDIA driver refused a container: device error: GPU-1a2b",
    ),
    (
        (
            "driver failed programming external connectivity: Bind for 127.0.0.1:8001 failed: port "
            "is already allocated"
        ),
        PortInUse,
        "port 8001 is in use",
    ),
    (
        (
            "driver failed programming external connectivity: Error starting userland proxy: listen "
            "tcp4 127.0.0.1:8101: bind: address already in use"
        ),
        PortInUse,
        "port 8101 is in use",
    ),
    (
        (
            "failed to set up container networking: driver failed programming external connectivity on endpoint x: "
            "failed to bind host port 127.0.0.1:8002/tcp: address already in use"
        ),
        PortInUse,
        "port 8002 is in use",
    ),
    (
        (
            'OCI runtime create failed: container_linux.go:380: starting container process caused: exec: "vlm": '
            "executable file not found in $PATH: unknown"
        ),
        EngineMissing,
        "program 'vlm' was not found in the image",
    ),
    (
        'invalid mount config for type "bind": bind source path does not exist: /home/me/hub',
        HostNotReady,
        "Docker does not see the folder /home/me/hub",
    ),
    ("write /var/lib/docker/tmp/x: no space left on device", HostNotReady, "Docker's disk is full"),
    (
        "error while creating mount source path '/x': mkdir /x: read-only file system",
        HostNotReady,
        "a volume of the container cannot be written",
    ),
    (
        "client version 1.44 is too new. Maximum supported API version is 1.40",
        DockerNotReady,
        "do not understand each other",
    ),
]
FETCHES = [
    (
        "Get https://registry-1.docker.io/v2/: dial tcp: lookup registry-1.docker.io on 127.0.0.1:53: no such host",
        "the image cannot be fetched",
    ),
    (
        "Get http://127.0.0.1:1/v2/: dial tcp 127.0.0.1:1: connect: connection refused",
        "the image cannot be fetched",
    ),
    (
        "manifest for vllm/vllm-openai:v9 not found: manifest unknown: manifest unknown",
        "there is no such image",
    ),
    (
        "pull access denied for x, repository does not exist or may require 'docker login'",
        "there is no such image",
    ),
]


@pytest.mark.parametrize(("said", "kind", "message"), STARTS)
def test_a_refused_start_has_its_cause_and_a_remedy(
    said: str, kind: type[AgentManagerError], message: str
) -> None:
    error = refused(said, doing="starting dev")
    assert type(error) is kind
    assert message in error.message
    assert error.hint
    assert error.exit_code == 4


def test_a_port_is_where_the_error_is() -> None:
    error = refused("Bind for 0.0.0.0:8001 failed: port is already allocated", doing="starting dev")
    assert error.where == "port 8001"


@pytest.mark.parametrize(("said", "message"), FETCHES)
def test_an_image_that_does_not_come_has_its_cause_and_a_remedy(said: str, message: str) -> None:
    error = refused(said, doing="fetching x", fetching=True)
    assert type(error) is EngineMissing
    assert message in error.message
    assert error.hint
    assert error.exit_code == 4


def test_words_about_networks_mean_a_registry_only_while_fetching() -> None:
    assert type(refused("connection refused", doing="starting dev")) is OperationFailed


@pytest.mark.parametrize("said", ["the moon is full", "", "{found} {0} %s", "ünïcödé\n\nand more."])
def test_anything_else_is_told_in_dockers_own_words(said: str) -> None:
    error = refused(said, doing="starting dev")
    assert type(error) is OperationFailed
    assert "starting dev" in error.message
    assert "\n" not in error.message
    assert not error.message.endswith(".")


def test_every_exception_of_the_library_is_known() -> None:
    """A new one must be looked at: `_as_ours` in client.py decides what becomes of it."""
    library = {
        name
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, Exception) and kind.__module__ == errors.__name__
    }
    assert library == LIBRARY_ERRORS
