"""The name in a reply. An engine that several agents share calls itself by its first name in every one of them.

A reply is to name the agent that was asked. The name is found as text, without parsing what passes: in JSON the
bytes `"model":"architect"` are a member wherever they stand, since quotes within a text are escaped.
"""

from __future__ import annotations

import re
from typing import Final

_MEMBERS: Final = (b'"model":"%b"', b'"model": "%b"')
"""As engines write it: compact, or with a space after the colon."""


class Renaming:
    """Of one reply, piece by piece: `now` where the engine says `was`."""

    def __init__(self, was: str, now: str) -> None:
        self._forms = tuple(form % was.encode() for form in _MEMBERS)
        self._pattern = re.compile(b"|".join(re.escape(form) for form in self._forms))
        self._now = _MEMBERS[0] % now.encode()
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """What can be passed on now. A name that may go on in the next piece is held back."""
        whole = self._pattern.sub(self._now, self._held + piece)
        cut = self._cut(whole)
        self._held = whole[cut:]
        return whole[:cut]

    def end(self) -> bytes:
        """What was held back last."""
        held, self._held = self._held, b""
        return held

    def _cut(self, whole: bytes) -> int:
        """Where a name begins that has not ended yet, else the end."""
        at = whole.find(b'"', max(0, len(whole) - len(self._forms[-1]) + 1))
        while at >= 0:
            if any(form.startswith(whole[at:]) for form in self._forms):
                return at
            at = whole.find(b'"', at + 1)
        return len(whole)
