"""From a compose document to Docker's API; what compose itself makes of the same is tested in tests/docker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent_manager.runtimes.docker.body import creation

FILE = Path("/state/compose/dev.yaml")


def config(**service: object) -> dict[str, Any]:
    document = {
        "name": "agent-manager-dev",
        "services": {"dev": {"container_name": "agent-manager-dev", "image": "a/b:1", **service}},
        "volumes": {"cache": {}},
    }
    return dict(creation(document, FILE).config)


def test_doubled_dollars_are_single_ones() -> None:
    assert config(command=["$$HOME", "a$$$$b"])["Cmd"] == ["$HOME", "a$$b"]


@pytest.mark.parametrize("text", ["$HOME", "${HOME}", "a$", "$$$"])
def test_a_variable_that_is_left_open_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a variable is left open"):
        config(command=[text])


@pytest.mark.parametrize(
    "service",
    [
        {"privileged": True},
        {"healthcheck": {"test": ["CMD", "x"], "retries": 1, "disable": True}},
        {"volumes": [{"type": "bind", "source": "/a", "target": "/b"}]},
        {"volumes": [{"type": "bind", "source": "/a", "target": "/b", "propagation": "x"}]},
        {"logging": {"driver": "json-file", "options": {}, "x": 1}},
    ],
)
def test_what_is_not_known_is_refused_and_not_lost(service: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"not known|create_host_path"):
        config(**service)


@pytest.mark.parametrize(
    "service", [{"ports": ["8000"]}, {"shm_size": "much"}, {"stop_grace_period": "soon"}]
)
def test_what_cannot_be_read_is_refused(service: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a"):
        config(**service)


def test_compose_sees_it_and_knows_a_change() -> None:
    one, other = (labels(word) for word in ("a", "b"))
    assert one["com.docker.compose.project"] == "agent-manager-dev"
    assert one["com.docker.compose.project.config_files"] == str(FILE)
    assert one["com.docker.compose.config-hash"] != other["com.docker.compose.config-hash"]


def labels(word: str) -> dict[str, str]:
    made: dict[str, str] = config(command=[word], labels={"mine": "1"})["Labels"]
    assert made["mine"] == "1"
    return made


def test_two_ports_lead_to_one() -> None:
    made = config(ports=["127.0.0.1:8101:8000", "127.0.0.1:8001:8000"])
    assert made["ExposedPorts"] == {"8000/tcp": {}}
    assert made["HostConfig"]["PortBindings"] == {
        "8000/tcp": [
            {"HostIp": "127.0.0.1", "HostPort": "8101"},
            {"HostIp": "127.0.0.1", "HostPort": "8001"},
        ]
    }
