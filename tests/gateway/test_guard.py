"""Programs on this machine pass, web pages do not; with a key, whoever has it."""

from __future__ import annotations

import pytest

from agent_manager.gateway.guard import Guard
from agent_manager.gateway.tickets import RefusedError

HERE = {"Host": "localhost:8080"}


def refused(guard: Guard, **headers: str) -> str:
    with pytest.raises(RefusedError) as raised:
        guard.check({name.replace("_", "-"): value for name, value in headers.items()})
    return raised.value.kind


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8001", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST:1"]
)
def test_programs_on_this_machine_pass(host: str) -> None:
    Guard().check({"Host": host})


@pytest.mark.parametrize(
    "host", ["", "evil.example", "localhost.evil.example:8080", "localhost:8080@evil", "10.0.0.1"]
)
def test_a_name_that_was_bent_to_loopback_does_not(host: str) -> None:
    assert refused(Guard(), Host=host) == "host_refused"


def test_pages_do_not_pass_unless_they_are_named() -> None:
    page = "http://localhost:3000"
    assert refused(Guard(), **HERE, Origin=page) == "origin_refused"
    assert refused(Guard(), **HERE, Origin="null") == "origin_refused"
    assert refused(Guard(), **HERE, Sec_Fetch_Site="cross-site") == "origin_refused"
    Guard(origins=frozenset({page})).check({**HERE, "Origin": page, "Sec-Fetch-Site": "same-site"})
    Guard().check({**HERE, "Sec-Fetch-Site": "none"})


class TestWithAKey:
    GUARD = Guard(key="a-key-of-32-characters-or-so-1234")

    @pytest.mark.parametrize("name", ["Authorization", "x-api-key"])
    def test_whoever_has_it_passes(self, name: str) -> None:
        key = self.GUARD.key or ""
        self.GUARD.check({"Host": "10.0.0.5:8080", name: f"Bearer {key}" if name == "Authorization" else key})

    @pytest.mark.parametrize("shown", ["", "Bearer", "Bearer wrong", "Basic YTpi", "Bearer ä"])
    def test_nobody_else_does(self, shown: str) -> None:
        assert refused(self.GUARD, **HERE, Authorization=shown) == "wrong_api_key"

    def test_health_is_open_to_all(self) -> None:
        self.GUARD.check({"Host": "10.0.0.5"}, open_to_all=True)
