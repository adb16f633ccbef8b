"""What the gateway says for an agent: where the client said nothing, once, and as vLLM's own flags would."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent_manager.catalog.agents import Agent, Model
from agent_manager.catalog.load import load_catalog
from agent_manager.gateway.manners import apply, manners_of
from agent_manager.gateway.routing import ENGINE_PATHS

if TYPE_CHECKING:
    from pathlib import Path

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT, TOKENIZE = "/v1/messages", "/v1/messages/count_tokens", "/tokenize"
USER = {"role": "user", "content": "hello"}
OWN = {"role": "system", "content": "be brief"}
PROMPT = {"role": "system", "content": "you plan"}
EVERYTHING = {
    "temperature": 0.1,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.05,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "repetition_penalty": 1.1,
}
AGENT = Agent(name="dev", model=Model(name="m", repo="a/b"), port=8001, context=4096, sequences=4)
PLANNER = replace(AGENT, system="you plan")


def _added(document: dict[str, Any], path: str, agent: Agent, *, shared: bool = True) -> dict[str, Any]:
    """What was added to a request that says its model, or changed in it."""
    before = {"model": "dev", **document}
    after = apply(copy.deepcopy(before), path, agent, shared=shared)
    assert before.keys() <= after.keys()
    return {name: value for name, value in after.items() if before.get(name) != value}


class TestSampling:
    @pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSES])
    def test_everything_that_vllm_takes(self, path: str) -> None:
        assert _added({}, path, replace(AGENT, sampling=EVERYTHING)) == EVERYTHING

    def test_of_anthropics_api_what_it_knows(self) -> None:
        added = _added({"max_tokens": 9}, MESSAGES, replace(AGENT, sampling=EVERYTHING))
        assert added == {"temperature": 0.1, "top_p": 0.9, "top_k": 20}

    def test_the_client_wins_and_null_says_nothing(self) -> None:
        agent = replace(AGENT, sampling={"temperature": 0.1, "top_p": 0.9, "top_k": 20})
        asked = {"temperature": 0, "top_p": None, "top_k": 7}
        assert _added(asked, CHAT, agent) == {"top_p": 0.9}

    @pytest.mark.parametrize("path", sorted(ENGINE_PATHS - {CHAT, TEXT, RESPONSES, MESSAGES}))
    def test_nothing_that_does_not_generate_is_told_how(self, path: str) -> None:
        agent = replace(AGENT, sampling={**EVERYTHING, "max_new_tokens": 5})
        assert _added({"input": "x", "prompt": "x"}, path, agent) == {}

    @pytest.mark.parametrize(
        ("path", "asked", "added"),
        [
            (CHAT, {}, {"max_completion_tokens": 100}),
            (CHAT, {"max_tokens": 50}, {}),
            (CHAT, {"max_tokens": 500}, {"max_tokens": 100}),
            (CHAT, {"max_tokens": 500, "max_completion_tokens": 50}, {}),
            (CHAT, {"max_tokens": 50, "max_completion_tokens": 500}, {"max_completion_tokens": 100}),
            (CHAT, {"max_tokens": "many"}, {}),
            (TEXT, {}, {}),
            (TEXT, {"max_tokens": 500}, {"max_tokens": 100}),
            (RESPONSES, {}, {"max_output_tokens": 100}),
            (RESPONSES, {"max_output_tokens": 500}, {"max_output_tokens": 100}),
            (MESSAGES, {}, {}),
            (MESSAGES, {"max_tokens": 500}, {"max_tokens": 100}),
        ],
    )
    def test_the_length_of_answers_is_bounded(
        self, path: str, asked: dict[str, Any], added: dict[str, Any]
    ) -> None:
        assert _added(asked, path, replace(AGENT, sampling={"max_new_tokens": 100})) == added

    def test_a_completion_that_says_nothing_has_vllms_16_tokens_at_most(self) -> None:
        assert _added({}, TEXT, replace(AGENT, sampling={"max_new_tokens": 5})) == {"max_tokens": 5}


class TestThinking:
    @pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES, COUNT, TOKENIZE])
    @pytest.mark.parametrize("thinking", [True, False])
    def test_what_goes_through_the_chat_template(self, path: str, *, thinking: bool) -> None:
        added = _added({"messages": [USER]}, path, replace(AGENT, thinking=thinking))
        assert added == {"chat_template_kwargs": {"enable_thinking": thinking}}

    def test_beside_what_the_client_has_for_the_template(self) -> None:
        asked = {"chat_template_kwargs": {"language": "en"}}
        added = _added(asked, CHAT, replace(AGENT, thinking=False))
        assert added == {"chat_template_kwargs": {"language": "en", "enable_thinking": False}}

    @pytest.mark.parametrize(
        ("path", "asked"),
        [
            (CHAT, {"chat_template_kwargs": {"enable_thinking": True}}),
            (CHAT, {"chat_template_kwargs": "wrong"}),
            (CHAT, {"reasoning_effort": "high"}),
            (RESPONSES, {"reasoning": {"effort": "low"}}),
            (MESSAGES, {"output_config": {"effort": "low"}}),
            (MESSAGES, {"thinking": {"type": "disabled"}}),
            (TEXT, {"prompt": "x"}),
            (TOKENIZE, {"prompt": "x"}),
        ],
    )
    def test_not_where_the_client_says_it_or_nobody_asks(self, path: str, asked: dict[str, Any]) -> None:
        assert _added(asked, path, replace(AGENT, thinking=False)) == {}

    def test_a_budget_for_thinking_says_nothing_of_whether(self) -> None:
        asked = {"thinking": {"type": "enabled", "budget_tokens": 100}}
        assert "chat_template_kwargs" in _added(asked, MESSAGES, replace(AGENT, thinking=True))


class TestSystemPrompt:
    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize("path", [CHAT, TOKENIZE])
    def test_a_conversation_without_one_begins_with_it(self, path: str, *, shared: bool) -> None:
        added = _added({"messages": [USER]}, path, PLANNER, shared=shared)
        assert added == {"messages": [PROMPT, USER]}

    def test_in_the_other_apis_words(self) -> None:
        assert _added({"input": "hello"}, RESPONSES, PLANNER) == {"instructions": "you plan"}
        assert _added({"instructions": None, "input": [USER]}, RESPONSES, PLANNER) == {
            "instructions": "you plan"
        }
        for path in (MESSAGES, COUNT):
            assert _added({"messages": [USER]}, path, PLANNER) == {"system": "you plan"}

    @pytest.mark.parametrize(
        ("path", "asked"),
        [
            (CHAT, {"messages": [OWN, USER]}),
            (CHAT, {"messages": [USER, {"role": "developer", "content": "be brief"}]}),
            (CHAT, {"messages": []}),
            (CHAT, {"messages": "hello"}),
            (CHAT, {}),
            (TOKENIZE, {"prompt": "hello"}),
            (TEXT, {"prompt": "hello"}),
            (RESPONSES, {"input": [OWN, USER]}),
            (RESPONSES, {"instructions": "be brief", "input": "hello"}),
            (MESSAGES, {"system": "be brief", "messages": [USER]}),
            (MESSAGES, {"system": [{"type": "text", "text": "be brief"}], "messages": [USER]}),
            (MESSAGES, {"messages": [OWN, USER]}),
            ("/v1/embeddings", {"input": "hello"}),
        ],
    )
    def test_never_a_second_one_and_never_where_none_belongs(self, path: str, asked: dict[str, Any]) -> None:
        assert _added(asked, path, PLANNER) == {}


class TestOnce:
    def test_an_engine_of_its_own_has_the_flags_already(self) -> None:
        agent = replace(AGENT, sampling=EVERYTHING, thinking=True)
        document: dict[str, Any] = {"messages": [USER]}
        assert apply(document, CHAT, agent, shared=False) is document

    @pytest.mark.parametrize("document", [{}, {"model": None}])
    def test_a_shared_engine_is_told_whose_request_it_is(self, document: dict[str, Any]) -> None:
        assert apply(document, CHAT, AGENT, shared=True) == {"model": "dev"}

    def test_who_needs_it_and_what_engines_call_themselves(self, tmp_path: Path) -> None:
        file = tmp_path / "models.yaml"
        file.write_text(
            "version: 1\nmodels: {m: {repo: a/b}}\nagents:\n"
            "  one: {model: m, port: 8000, context: 4k, sampling: {top_p: 0.9}}\n"
            "  two: {model: m, port: 8001, context: 4k, system: you plan}\n"
            "  three: {model: m, port: 8002, context: 8k, system: you plan}\n"
            "  four: {model: m, port: 8003, context: 16k, sampling: {top_p: 0.9}}\n"
        )
        found = manners_of(load_catalog(file, environ={}))
        assert {name: (each.served_as, each.shared) for name, each in found.items()} == {
            "one": ("one", True),
            "two": ("one", True),
            "three": ("three", False),
        }
        assert found["one"].complete({"model": "one"}, CHAT) == {"model": "one", "top_p": 0.9}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = (
    "model", "messages", "input", "prompt", "system", "instructions", "temperature", "max_tokens", "reasoning",
    "chat_template_kwargs", "max_completion_tokens", "max_output_tokens", "thinking", "output_config",
)  # fmt: skip
_MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant"]), "content": _JSON})


@given(
    document=st.dictionaries(st.sampled_from(_FIELDS), _JSON | st.lists(_MESSAGE, max_size=3)),
    path=st.sampled_from(sorted(ENGINE_PATHS)),
    shared=st.booleans(),
)
def test_whatever_comes_is_completed_once_and_never_spoiled(
    document: dict[str, Any], path: str, *, shared: bool
) -> None:
    agent = replace(PLANNER, sampling={**EVERYTHING, "max_new_tokens": 9}, thinking=True)
    before = json.dumps(document)
    once = apply(document, path, agent, shared=shared)
    assert json.dumps(document) == before
    assert apply(once, path, agent, shared=shared) is once
    assert document.keys() <= once.keys()
