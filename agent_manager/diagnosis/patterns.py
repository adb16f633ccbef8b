"""Why an engine ended: from the last lines of its log and the way it ended, the cause and the remedy. Pure."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

from msgspec import Struct

from agent_manager.diagnosis.table import LOGS, RULES, VAGUE_RULES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agent_manager.diagnosis.table import Rule


class Diagnosis(Struct, frozen=True, kw_only=True):
    """What went wrong and what to do, one line each. `evidence` is the log line it rests on, if one does."""

    cause: str
    remedy: str
    evidence: str | None = None


_OUT_OF_HOST_MEMORY = "free host memory, choose a smaller model, or lower cpu_offload or kv_cache"
_SIGNAL_BASE = 128
"""Exit codes above it are signals, as shells and runtimes report them."""
_LONGEST_CAUSE = 300

_PREFIX = re.compile(
    r"^(?:\([\w.-]+ pid=\d+\)\s*)?(?:(?P<level>[A-Z]+):? +(?:[\d-]+ [\d:]+ +)?(?:\[[\w./]+:\d+\]\s?)?)?"
)
_HARMLESS = frozenset({"DEBUG", "INFO", "WARNING"})
_BEGINS = "vLLM server version"
_TOLD_TO_STOP = "[shutdown] API server: shutdown triggered"
_WRAPPERS = re.compile(
    r"Engine core initialization failed|EngineCore encountered an issue|Worker failed with error"
    r"|EngineDeadError|EngineGenerateError|cannot schedule new futures after shutdown"
    r"|died (?:unexpectedly|with exit code)"
)
_EXCEPTION = re.compile(r"^(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit): \S")
_VALIDATION = re.compile(r"^(?:Value|Assertion) error, (.*?)(?: \[type=.*)?$")
_USAGE = re.compile(r"^[\w.-]+(?: \w+)?: error: (.+)$")


def diagnose(
    lines: Iterable[str],
    *,
    exit_code: int | None,
    stop_requested: bool = False,
    out_of_host_memory: bool = False,
) -> Diagnosis | None:
    """The cause of an engine's end; None when nothing tells.

    `lines`: the end of its log, oldest first; where they hold several starts, the last one counts. `exit_code`:
    None when unknown, 128 + the signal for a killed one. With `stop_requested` what an engine says of being
    stopped is no failure. A cause that names numbers beats one that only says that something died.
    """
    said = _errors(_last_start(list(lines)))
    if out_of_host_memory:
        return Diagnosis(cause="the kernel killed it for lack of host memory", remedy=_OUT_OF_HOST_MEMORY)
    found = _by_rule(RULES, said, stop_requested=stop_requested)
    if found is not None or stop_requested:
        return found
    if any(_TOLD_TO_STOP in line.text for line in said) and not exit_code:
        return Diagnosis(cause="somebody else told it to stop", remedy="launch it again")
    return (
        _by_signal(exit_code)
        or _by_last_words(said)
        or _by_rule(VAGUE_RULES, said, stop_requested=stop_requested)
        or _by_end(said, exit_code)
    )


class _Line(Struct, frozen=True):
    text: str
    harmless: bool


def _last_start(lines: Sequence[str]) -> Sequence[str]:
    starts = [index for index, line in enumerate(lines) if _BEGINS in line]
    return lines[starts[-1] :] if starts else lines


def _errors(lines: Iterable[str]) -> list[_Line]:
    """The lines without their prefixes, and whether each is only information: vLLM warns of errors it never met."""
    split = []
    for line in lines:
        found = _PREFIX.match(line)
        level = found["level"] if found else None
        known = level in _HARMLESS or level in {"ERROR", "CRITICAL"}
        text = line[found.end() :] if found and (known or level is None) else line
        split.append(_Line(text.strip(), level in _HARMLESS))
    return split


def _by_rule(rules: Iterable[Rule], said: Sequence[_Line], *, stop_requested: bool) -> Diagnosis | None:
    for rule in rules:
        if rule.died and stop_requested:
            continue
        for line in said:
            if not line.harmless and (found := rule.pattern.search(line.text)):
                return Diagnosis(
                    cause=_short(found.expand(rule.cause)),
                    remedy=found.expand(rule.remedy),
                    evidence=_short(line.text),
                )
    return None


def _by_signal(exit_code: int | None) -> Diagnosis | None:
    number = 0 if exit_code is None else exit_code - _SIGNAL_BASE
    if number not in {each.value for each in signal.Signals}:
        return None
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        return Diagnosis(
            cause="it was killed (SIGKILL), not by agent-manager: perhaps by the kernel, for lack of host memory",
            remedy=f"'dmesg' says so if it was; then {_OUT_OF_HOST_MEMORY}",
        )
    if number in {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
        return Diagnosis(cause=f"somebody else told it to stop ({name})", remedy="launch it again")
    return Diagnosis(cause=f"it crashed ({name})", remedy=LOGS)


def _by_last_words(said: Sequence[_Line]) -> Diagnosis | None:
    """The last exception that is not about another one above it, in the engine's own words."""
    for line in reversed(said):
        if line.harmless or _WRAPPERS.search(line.text):
            continue
        detail = _VALIDATION.match(line.text) or _USAGE.match(line.text)
        if detail or _EXCEPTION.match(line.text):
            words = detail[1] if detail else line.text
            return Diagnosis(cause=_short(words), remedy=LOGS, evidence=_short(line.text))
    return None


def _by_end(said: Sequence[_Line], exit_code: int | None) -> Diagnosis | None:
    """Nothing explains it: how it ended, and the last thing it said."""
    spoken = [line.text for line in said if line.text]
    if not spoken:
        return None
    ended = "ended" if exit_code is None else f"ended with exit code {exit_code}"
    return Diagnosis(
        cause=_short(f"it {ended}; its last words: {spoken[-1]}"), remedy=LOGS, evidence=_short(spoken[-1])
    )


def _short(text: str) -> str:
    """One line of bearable length."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= _LONGEST_CAUSE else f"{line[: _LONGEST_CAUSE - 1]}…"
