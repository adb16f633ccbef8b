"""What is answered, without an engine around it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_manager.engines.simulated.api import Ask, Prompt
from agent_manager.engines.simulated.faults import Faults, parse_faults
from agent_manager.engines.simulated.generation import Answer, Kind, compose
from agent_manager.engines.simulated.tokens import count_tokens, split_tokens, token_id
from agent_manager.engines.simulated.tools import Tool, example

LETTERS = st.text(alphabet="abcdefilnorstuvz .", min_size=1, max_size=4)


def ask(**fields: object) -> Ask:
    defaults: dict[str, object] = {
        "model": "po",
        "prompts": (),
        "n": 1,
        "max_tokens": None,
        "min_tokens": 0,
        "ignore_eos": False,
        "seed": None,
        "stop": (),
        "include_stop": False,
        "stream": False,
        "include_usage": False,
        "continuous_usage": False,
    }
    return Ask(**(defaults | fields))  # type: ignore[arg-type]


def text_of(answer: Answer) -> str:
    return "".join(piece.text for piece in answer.pieces)


PROMPT = Prompt(text="hello", tokens=1)
WHOLE = compose(ask(), PROMPT, 0, 4096)


@given(limit=st.integers(1, 200), thinking=st.booleans(), ignore_eos=st.booleans(), tool=st.booleans())
def test_an_answer_has_at_most_limit_tokens_and_says_why_it_ends(
    limit: int,
    thinking: bool,  # noqa: FBT001 - given by name
    ignore_eos: bool,  # noqa: FBT001 - given by name
    tool: bool,  # noqa: FBT001 - given by name
) -> None:
    wanted = ask(thinking=thinking, ignore_eos=ignore_eos, tool=Tool(name="look") if tool else None)
    answer = compose(wanted, PROMPT, 0, limit)
    unlimited = compose(wanted, PROMPT, 0, 4096)
    assert 1 <= len(answer.pieces) <= limit
    assert answer.pieces == unlimited.pieces[:limit]
    assert (answer.finish_reason == "length") == (len(unlimited.pieces) > limit or (ignore_eos and not tool))
    if answer.finish_reason == "length":
        assert len(answer.pieces) == limit


@given(stops=st.lists(LETTERS, min_size=1, max_size=3))
def test_nothing_of_a_stop_string_is_told_and_nothing_before_it_is_lost(stops: list[str]) -> None:
    answer = compose(ask(stop=tuple(stops)), PROMPT, 0, 4096)
    whole, text = text_of(WHOLE), text_of(answer)
    assert whole.startswith(text)
    if answer.stop_reason is None:
        assert text == whole
        assert not any(stop in whole for stop in stops)
    else:
        assert whole[len(text) :].startswith(answer.stop_reason)
        assert not any(stop in text for stop in stops)
        assert answer.finish_reason == "stop"
        kept = compose(ask(stop=tuple(stops), include_stop=True), PROMPT, 0, 4096)
        assert text_of(kept) == text + answer.stop_reason


def test_min_tokens_and_seed_and_index_make_a_difference() -> None:
    assert len(compose(ask(min_tokens=300), PROMPT, 0, 4096).pieces) == 301
    assert compose(ask(seed=1), PROMPT, 0, 4096) != WHOLE
    assert compose(ask(), PROMPT, 1, 4096) != WHOLE
    assert compose(ask(), PROMPT, 0, 4096) == WHOLE


def test_reasoning_comes_before_what_is_said() -> None:
    kinds = [piece.kind for piece in compose(ask(thinking=True), PROMPT, 0, 4096).pieces]
    assert kinds[0] == Kind.REASONING
    assert kinds == sorted(kinds, key=[Kind.REASONING, Kind.CONTENT].index)


@given(st.text())
def test_tokens_joined_are_the_text(text: str) -> None:
    tokens = split_tokens(text)
    assert "".join(tokens) == text
    assert count_tokens(text) == len(tokens)
    assert all(token_id(token) == token_id(token) >= 0 for token in tokens)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "simulated"),
        ({"type": "string", "default": "x"}, "x"),
        ({"const": 3}, 3),
        ({"enum": ["a", "b"]}, "a"),
        ({"type": ["number", "null"], "minimum": 7}, 7),
        ({"type": "array", "items": {"type": "string"}}, []),
        (
            {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {}}},
            {"a": True, "b": "simulated"},
        ),
        ({"type": "object", "properties": {"a": {"type": "null"}, "b": {}}, "required": ["a"]}, {"a": None}),
        ("nonsense", "simulated"),
    ],
)
def test_examples_fit_their_schema(schema: object, value: object) -> None:
    assert example(schema) == value


def test_faults_are_read_one_and_many() -> None:
    assert parse_faults("") == Faults()
    assert parse_faults("hang-load") == Faults(hang_load=True)
    assert parse_faults("crash-after:3, leave-workers,slow-stop:1.5") == Faults(
        crash_after=3, leave_workers=True, slow_stop_s=1.5
    )
    assert parse_faults("crash-at-load:70") == Faults(crash_at_load_percent=70)


@pytest.mark.parametrize(
    "text",
    [
        "explode",
        "hang:3",
        "crash-after",
        "crash-after:-1",
        "crash-at-load:101",
        "slow-stop:soon",
        "oom:",
        "slow-stop:inf",
    ],
)
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition(":")[0]):
        parse_faults(text)
