"""What the engine answers: words that say they are simulated, decided by the prompt alone.

The whole answer is known before its first token is sent, so nothing here waits: see core.py for the pace.
The same request always gets the same words; `temperature` and its like change nothing.
"""

from __future__ import annotations

import itertools
import random
from enum import StrEnum
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from agent_manager.engines.simulated.tokens import split_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_manager.engines.simulated.api import Ask, Prompt

DISCLAIMER = "This text is simulated by agent-manager: no model ran."
REASONING_DISCLAIMER = "This reasoning is simulated:"
_SYLLABLES = ("ba", "co", "di", "fu", "ga", "lo", "mi", "nu", "pe", "ra", "so", "ti", "ve", "zu")
_ANSWER_WORDS = (24, 72)
_REASONING_WORDS = (8, 24)
_SENTENCE_WORDS = (5, 12)


class Kind(StrEnum):
    """Where a piece of the answer goes."""

    REASONING = "reasoning"
    CONTENT = "content"
    TOOL = "tool"


class Piece(Struct, frozen=True, kw_only=True):
    """One token of an answer. The token that ends it has no text."""

    kind: Kind
    text: str


class Answer(Struct, frozen=True, kw_only=True):
    """All tokens of one answer, and why it ends: `stop` or `length`; `stop_reason` is the stop string met."""

    pieces: tuple[Piece, ...]
    finish_reason: str
    stop_reason: str | None = None


def compose(ask: Ask, prompt: Prompt, index: int, limit: int) -> Answer:
    """The answer number `index` to `prompt`, of at most `limit` tokens."""
    rng = random.Random(f"{ask.seed} {index} {prompt.text}")  # noqa: S311 - repeatable on purpose
    pieces: list[Piece] = []
    if ask.thinking:
        words = itertools.islice(_words(rng), rng.randint(*_REASONING_WORDS))
        pieces += _pieces(Kind.REASONING, [*split_tokens(REASONING_DISCLAIMER), *words])
    if ask.tool is not None:
        # A tool call begins with a token that carries no argument text: it names the tool.
        pieces += _pieces(Kind.TOOL, ["", *split_tokens(ask.tool.arguments()), ""])
    else:
        pieces += _content(ask, rng, limit - len(pieces))
    finish_reason = "stop" if len(pieces) <= limit else "length"
    return _cut_at_stop(ask, Answer(pieces=tuple(pieces[:limit]), finish_reason=finish_reason))


def _content(ask: Ask, rng: random.Random, left: int) -> list[Piece]:
    """Words until the answer ends by itself; one token more than is `left` when it does not."""
    disclaimer = split_tokens(DISCLAIMER)
    natural = len(disclaimer) + rng.randint(*_ANSWER_WORDS)
    words = itertools.chain(disclaimer, _words(rng))
    if ask.ignore_eos:
        return _pieces(Kind.CONTENT, list(itertools.islice(words, max(0, left) + 1)))
    count = max(natural, ask.min_tokens)
    return _pieces(Kind.CONTENT, [*itertools.islice(words, min(count, max(0, left))), ""])


def _pieces(kind: Kind, texts: list[str]) -> list[Piece]:
    return [Piece(kind=kind, text=text) for text in texts]


def _words(rng: random.Random) -> Iterator[str]:
    """Sentences of words that mean nothing, word by word, without end."""
    while True:
        count = rng.randint(*_SENTENCE_WORDS)
        for position in range(count):
            word = "".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4)))
            if position == 0:
                word = word.capitalize()
            yield f" {word}." if position == count - 1 else f" {word}"


def _cut_at_stop(ask: Ask, answer: Answer) -> Answer:
    """End the answer with the token that completes a stop string, and leave the string out unless asked for."""
    if not ask.stop:
        return answer
    longest = max(len(stop) for stop in ask.stop)
    text = ""
    for position, piece in enumerate(answer.pieces):
        searched_from = max(0, len(text) - longest + 1)
        text += piece.text
        found = [(text.find(stop, searched_from), stop) for stop in ask.stop]
        met = min(((at, stop) for at, stop in found if at >= 0), default=None)
        if met is not None:
            at, stop = met
            keep = at + len(stop) if ask.include_stop else at
            kept = _truncate(answer.pieces[: position + 1], keep)
            return Answer(pieces=kept, finish_reason="stop", stop_reason=stop)
    return answer


def _truncate(pieces: tuple[Piece, ...], length: int) -> tuple[Piece, ...]:
    """The same tokens, with no text beyond `length` characters."""
    kept = []
    for piece in pieces:
        kept.append(replace(piece, text=piece.text[: max(0, length)]))
        length -= len(piece.text)
    return tuple(kept)
