"""Whatever an engine calls itself, a reply names the agent that was asked, however it is cut into pieces."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_manager.gateway.renaming import Renaming


def _renamed(pieces: list[bytes]) -> bytes:
    renaming = Renaming("architect", "dev")
    return b"".join([*(renaming.feed(piece) for piece in pieces), renaming.end()])


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_the_model_of_a_reply(separators: tuple[str, str]) -> None:
    reply = {"id": "1", "model": "architect", "response": {"model": "architect"}, "usage": {"n": 1}}
    said = json.loads(_renamed([json.dumps(reply, separators=separators).encode()]))
    assert said == {**reply, "model": "dev", "response": {"model": "dev"}}


def test_no_text_is_touched() -> None:
    reply = {
        "model": "other",
        "name": "architect",
        "text": 'say {"model":"architect"} and "model": "architect"',
        "arguments": json.dumps({"model": "architect"}),
        "model ": "architect",
    }
    for separators in ((",", ":"), (", ", ": ")):
        body = json.dumps(reply, separators=separators).encode()
        assert _renamed([body]) == body


def test_an_event_is_never_held_back() -> None:
    renaming = Renaming("architect", "dev")
    assert renaming.feed(b'data: {"model":"architect"}\n\n') == b'data: {"model":"dev"}\n\n'
    assert renaming.feed(b'data: {"model":"arch') == b"data: {"
    assert renaming.feed(b'itect"}\n\n') == b'"model":"dev"}\n\n'
    assert renaming.end() == b""


_BODY = (
    b'data: {"model":"architect","x":"\\"model\\":\\"architect\\""}\n\n'
    b'data: {"model": "architect"}\n\n"model":"archi'
)


@given(st.lists(st.integers(0, len(_BODY)), max_size=12).map(sorted))
def test_cut_anywhere_it_is_the_same(cuts: list[int]) -> None:
    edges = [0, *cuts, len(_BODY)]
    pieces = [_BODY[start:end] for start, end in itertools.pairwise(edges) if start < end]
    whole = _renamed([_BODY])
    assert whole.count(b'"model":"dev"') == 2
    assert _renamed(pieces) == whole
