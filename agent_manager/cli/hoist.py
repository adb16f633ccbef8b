"""Global options are accepted before and after the verb: here they are moved in front of it. Pure."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from msgspec import Struct

from agent_manager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Known(Struct, frozen=True, kw_only=True):
    """The options a command knows, with their dashes: those that stand alone and those that take a value."""

    flags: frozenset[str] = frozenset()
    valued: frozenset[str] = frozenset()

    def owns(self, option: str) -> bool:
        """Whether this is one of its options."""
        return option in self.flags or option in self.valued


NOTHING = Known()


def hoist(
    arguments: Sequence[str], *, everywhere: Known, of_verb: Callable[[str], Known], strict: bool = True
) -> list[str]:
    """The arguments with the options `everywhere` before the verb; the rest keeps its order.

    The verb's own options come first: they and their values are never taken for global ones. Nothing after
    `--` is moved. Raises UsageError for a global option without its value, unless `strict` is False.
    """
    return _Hoist(arguments, everywhere, of_verb, strict=strict).run()


def as_verb(arguments: Sequence[str], option: str = "--gpu-stats") -> list[str]:
    """The arguments with the verb that `option` stands for in front, wherever it stood before `--`."""
    ours = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    if option not in ours:
        return list(arguments)
    rest = [argument for argument in ours if argument != option]
    return [option.removeprefix("--"), *rest, *arguments[len(ours) :]]


class _Hoist:
    def __init__(
        self, arguments: Sequence[str], everywhere: Known, of_verb: Callable[[str], Known], *, strict: bool
    ) -> None:
        self._queue = deque(arguments)
        self._everywhere = everywhere
        self._of_verb = of_verb
        self._strict = strict
        self._own: Known | None = None
        self._front: list[str] = []
        self._rest: list[str] = []

    def run(self) -> list[str]:
        while self._queue:
            token = self._queue.popleft()
            if token == "--":  # noqa: S105 - the end of options, not a secret
                self._rest += [token, *self._queue]
                break
            if len(token) > 1 and token.startswith("-"):
                self._option(token)
            else:
                self._rest.append(token)
                if self._own is None:
                    self._own = self._of_verb(token)
        return self._front + self._rest

    def _option(self, token: str) -> None:
        own = self._own or NOTHING
        name, attached, _ = token.partition("=")
        if own.owns(name):
            self._rest.append(token)
            if name in own.valued and not attached and self._queue:
                self._rest.append(self._queue.popleft())
        elif name in self._everywhere.valued:
            self._with_value(token, attached=bool(attached))
        elif name in self._everywhere.flags or self._own is None:
            self._front.append(token)
        elif not token.startswith("--"):
            self._letters(token, own)
        else:
            self._rest.append(token)

    def _with_value(self, token: str, *, attached: bool) -> None:
        if attached:
            self._front.append(token)
        elif self._queue:
            self._front += [token, self._queue.popleft()]
        elif self._strict:
            raise UsageError(f"option '{token}' needs a value", hint="agent-manager --help lists the options")

    def _letters(self, token: str, own: Known) -> None:
        """`-qf`: some letters are global, some the verb's; a letter with a value takes the rest of the token."""
        kept = "-"
        waits = False
        for index, letter in enumerate(token[1:], start=1):
            option = f"-{letter}"
            if option in own.valued:
                kept += token[index:]
                waits = index == len(token) - 1
                break
            if option in self._everywhere.flags and not own.owns(option):
                self._front.append(option)
            else:
                kept += letter
        if kept != "-":
            self._rest.append(kept)
        if waits and self._queue:
            self._rest.append(self._queue.popleft())
