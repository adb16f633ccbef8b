"""Where requests lead, and what leads nowhere."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_manager.catalog.agents import Agent, Model
from agent_manager.gateway.routing import ENGINE_PATHS, Names, Own, ToAgent, route
from agent_manager.gateway.tickets import RefusedError

RESPONSE = re.compile(r"/v1/responses/[\w-]+/cancel", re.ASCII)
SMALL = Model(name="small", repo="Qwen/Small")
NAMES = Names(
    [
        Agent(name="dev", model=SMALL, port=8001, context=4096, sequences=1),
        Agent(name="po", model=SMALL, port=8002, context=4096, sequences=1),
        Agent(name="scribe", model=Model(name="folder"), port=8003, context=4096, sequences=1),
    ],
    {"coder": "dev"},
)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "agent"),
        [("po", "po"), ("coder", "dev"), ("Qwen/Small", "dev"), ("folder", "scribe")],
    )
    def test_an_agent_is_known_by_name_alias_and_model(self, name: str, agent: str) -> None:
        assert NAMES.agent(name) == agent

    def test_an_unknown_name_is_told_with_those_there_are(self) -> None:
        with pytest.raises(RefusedError) as raised:
            NAMES.agent("gpt-4")
        assert raised.value.status == 404
        assert raised.value.message == "there is no model 'gpt-4'; there are: dev, po, scribe"


class TestRoute:
    def test_on_an_agents_port_the_port_decides(self) -> None:
        assert route("POST", "/v1/chat/completions", door="dev") == ToAgent("/v1/chat/completions", "dev")

    def test_on_the_common_port_the_model_decides(self) -> None:
        assert route("POST", "/v1/responses", door=None) == ToAgent("/v1/responses", None)

    def test_an_agent_can_be_named_in_the_path(self) -> None:
        assert route("GET", "/upstream/po/metrics", door=None) == ToAgent("/metrics", "po")

    def test_a_stored_response_is_its_agents(self) -> None:
        assert route("GET", "/v1/responses/resp_1", door="po") == ToAgent("/v1/responses/resp_1", "po")

    def test_models_are_listed_or_looked_up(self) -> None:
        assert route("GET", "/v1/models", door="dev") == Own("/v1/models")
        assert route("GET", "/v1/models/Qwen/Small", door=None) == Own("/v1/models", "Qwen/Small")

    @pytest.mark.parametrize(
        "path", ["/sleep", "/wake_up", "/collective_rpc", "/is_sleeping", "/server_info"]
    )
    @pytest.mark.parametrize("door", [None, "dev"])
    def test_what_runs_an_engine_is_reached_by_nobody(self, path: str, door: str | None) -> None:
        disguises = (path, f"/upstream/dev{path}", f"/upstream/dev/v1/..{path}", f"/upstream/dev/{path}",
                     path.replace("s", "%73"), f"/v1/responses/x/..{path}", f"/upstream/dev{path}/")  # fmt: skip
        for each in disguises:
            for method in ("GET", "POST"):
                with pytest.raises(RefusedError) as raised:
                    route(method, each, door=door)
                assert raised.value.status == 404

    def test_unloading_is_a_post(self) -> None:
        assert route("POST", "/unload", door=None) == Own("/unload")
        with pytest.raises(RefusedError) as raised:
            route("GET", "/unload", door=None)
        assert raised.value.status == 405

    @pytest.mark.parametrize(
        ("method", "path", "takes"),
        [
            ("GET", "/v1/chat/completions", "POST"),
            ("DELETE", "/v1/completions", "POST"),
            ("GET", "/upstream/dev/tokenize", "POST"),
            ("POST", "/upstream/dev/load", "GET"),
            ("HEAD", "/upstream/dev/metrics", "GET"),
            ("POST", "/v1/responses/resp_1", "GET or DELETE"),
            ("GET", "/v1/responses/resp_1/cancel", "POST"),
        ],
    )
    def test_an_engine_is_asked_as_it_is_meant_to_be(self, method: str, path: str, takes: str) -> None:
        with pytest.raises(RefusedError) as raised:
            route(method, path, door="dev")
        assert (raised.value.status, raised.value.message) == (405, f"{path} takes {takes}")

    @given(
        st.lists(
            st.sampled_from(
                [
                    "/",
                    "..",
                    ".",
                    ";",
                    "%2f",
                    "%2e",
                    "\\",
                    "?",
                    "sleep",
                    "v1",
                    "responses",
                    "cancel",
                    "upstream",
                    "dev",
                ]
            )
        )
    )
    def test_what_is_let_through_is_on_the_list_letter_by_letter(self, parts: list[str]) -> None:
        try:
            to = route("POST", "/" + "".join(parts), door="dev")
        except RefusedError:
            return
        assert isinstance(to, Own) or to.path in ENGINE_PATHS or RESPONSE.fullmatch(to.path)
