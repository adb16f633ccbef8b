"""Where requests lead, and what leads nowhere."""

from __future__ import annotations

import pytest

from agent_manager.catalog.agents import Agent, Model
from agent_manager.gateway.routing import Names, Own, ToAgent, route
from agent_manager.gateway.tickets import RefusedError

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
