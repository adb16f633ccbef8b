"""Text to tokens and back: a token is a word with the space before it; a long word is several."""

from __future__ import annotations

import re
import zlib

_TOKEN = re.compile(r"\s*\S{1,12}|\s+")
_VOCABULARY = 151_936
"""Qwen's; the ids mean nothing here."""


def split_tokens(text: str) -> list[str]:
    """The tokens of `text`; joined, they are `text` again."""
    return _TOKEN.findall(text)


def count_tokens(text: str) -> int:
    """How many tokens `text` has."""
    return sum(1 for _ in _TOKEN.finditer(text))


def token_id(token: str) -> int:
    """A number for the token, always the same."""
    return zlib.crc32(token.encode()) % _VOCABULARY
