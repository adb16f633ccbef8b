"""Programs on this machine pass, web pages do not; with a key, whoever has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent_manager.catalog.agents import Gateway
from agent_manager.errors import UsageError
from agent_manager.gateway.guard import Guard, read_key
from agent_manager.gateway.tickets import RefusedError

if TYPE_CHECKING:
    from pathlib import Path

HERE = {"host": "localhost:8080"}


def refused(guard: Guard, **headers: str) -> str:
    with pytest.raises(RefusedError) as raised:
        guard.check({name.replace("_", "-").lower(): value for name, value in headers.items()})
    return raised.value.kind


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8001", "127.0.0.1:8080", "127.0.0.2:8080", "[::1]:8080", "LOCALHOST:1"]
)
def test_programs_on_this_machine_pass(host: str) -> None:
    Guard().check({"host": host})


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":8080",
        "evil.example",
        "localhost.evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost:8080@evil",
        "evil@localhost",
        "localhost, evil",
        "localhost/",
        "local\u017fhost",
        "[::1",
        "[::1]evil",
        "[fe80::1]:8080",
        "0.0.0.0",  # noqa: S104 - refused
        "10.0.0.1",
    ],
)
def test_a_name_that_was_bent_to_loopback_does_not(host: str) -> None:
    assert refused(Guard(), Host=host) == "host_refused"


def test_pages_do_not_pass_unless_they_are_named() -> None:
    page = "http://localhost:3000"
    assert refused(Guard(), **HERE, Origin=page) == "origin_refused"
    assert refused(Guard(), **HERE, Origin="null") == "origin_refused"
    assert refused(Guard(), **HERE, Sec_Fetch_Site="cross-site") == "origin_refused"
    Guard(origins=frozenset({page})).check({**HERE, "origin": page, "sec-fetch-site": "same-site"})
    Guard().check({**HERE, "sec-fetch-site": "none"})


def test_a_page_that_is_named_is_told_what_it_may_send_and_read() -> None:
    page = "http://localhost:3000"
    guard = Guard(origins=frozenset({page}))
    asked = {"origin": page, "access-control-request-headers": "authorization"}
    assert dict(guard.preflight(asked)) == {
        b"Access-Control-Allow-Methods": b"GET, POST, DELETE",
        b"Access-Control-Allow-Headers": b"authorization",
        b"Access-Control-Max-Age": b"600",
    }
    assert dict(guard.preflight({"access-control-request-private-network": "true"})).keys() == {
        b"Access-Control-Allow-Methods",
        b"Access-Control-Allow-Private-Network",
        b"Access-Control-Max-Age",
    }
    assert dict(guard.shown_to(asked))[b"Access-Control-Allow-Origin"] == page.encode()
    assert guard.shown_to({"origin": "http://evil"}) == guard.shown_to({}) == Guard().shown_to(asked) == ()


class TestWithAKey:
    GUARD = Guard(key="a-key-of-32-characters-or-so-1234")

    @pytest.mark.parametrize("name", ["Authorization", "x-api-key"])
    def test_whoever_has_it_passes(self, name: str) -> None:
        key = self.GUARD.key or ""
        self.GUARD.check(
            {"host": "10.0.0.5:8080", name.lower(): f"Bearer {key}" if name == "Authorization" else key}
        )

    @pytest.mark.parametrize("shown", ["", "Bearer", "Bearer wrong", "Basic YTpi", "Bearer ä", "Bearer \xff"])
    def test_nobody_else_does(self, shown: str) -> None:
        assert refused(self.GUARD, **HERE, Authorization=shown) == "wrong_api_key"

    def test_health_is_open_to_all(self) -> None:
        self.GUARD.check({"host": "10.0.0.5"}, open_to_all=True)

    def test_neither_is_a_page_let_in_by_it(self) -> None:
        headers = {"host": "10.0.0.5", "Authorization": f"Bearer {self.GUARD.key}"}
        assert refused(self.GUARD, **headers, Origin="http://10.0.0.5") == "origin_refused"


class TestReadingTheKey:
    def read(self, **settings: Any) -> tuple[str | None, list[str]]:  # noqa: ANN401 - those of Gateway
        warned: list[str] = []
        return read_key(Gateway(**settings), {"GATE_KEY": " sesame\n", "NONE": " "}, warned.append), warned

    def test_there_may_be_none(self) -> None:
        assert self.read() == (None, [])

    def test_it_is_where_the_catalog_says(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_text("sesame\n")
        path.chmod(0o400)
        assert self.read(api_key_env="GATE_KEY") == self.read(api_key_file=path) == ("sesame", [])

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
    def test_a_file_that_others_can_read_is_told(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "key"
        path.write_text("sesame")
        path.chmod(mode)
        key, (warning,) = self.read(api_key_file=path)
        assert (key, warning) == (
            "sesame",
            f"others can read the gateway's key in {path}; 'chmod 600 {path}' keeps it yours",
        )

    def test_what_is_not_there_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "bytes").write_bytes(b"\xff")
        (tmp_path / "empty").write_text("\n")
        for settings, told in (
            ({"api_key_env": "NONE"}, r"is to be in \$NONE, and nothing is there"),
            ({"api_key_env": "OTHER"}, r"is to be in \$OTHER, and nothing is there"),
            ({"api_key_file": tmp_path / "empty"}, "and nothing is there"),
            ({"api_key_file": tmp_path / "none"}, "cannot be read from .*: No such file or directory"),
            ({"api_key_file": tmp_path / "bytes"}, "cannot be read from .*: it is no text"),
        ):
            with pytest.raises(UsageError, match=told):
                self.read(**settings)
