"""YAML text to plain data that knows its lines: the first of two steps from models.yaml to a catalog.

What YAML allows and a configuration file has no use for is a problem here: duplicate keys, anchors and
aliases (small files that unfold to gigabytes), tags, several documents, values that span lines (but for PROSE),
invisible characters. Scalars follow YAML 1.2's core schema, as editors do: `yes` and `8:00` are text. A key without a
value counts as absent. `${env:NAME}` in a value is replaced; whether the result is text or a number, say, is then
for the schema to decide, quoted or not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import yaml
from msgspec import Struct, field

from agent_manager.catalog.values import VARIABLE, Interpolated, kind, plain_value, shown
from agent_manager.errors import CatalogInvalid, Problem, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Place = tuple[str | int, ...]
"""Where in a document: keys and list positions from the top."""

MAX_BYTES = 128 * 1024
MAX_DEPTH = 12
MAX_VALUE_CHARS = 4096
PROSE = frozenset({"system"})
"""Keys whose value is text for a model: of several lines, and longer than other values."""
MAX_PROSE_CHARS = 65_536

_BREAKS = str.maketrans({"\n": " ", "\t": " "})

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Reads plain YAML and nothing else. libyaml's is ten times faster; wheels of PyYAML have it, some builds do not."""

# Beside what YAML forbids, the line breaks that only YAML counts: lines are then what an editor shows.
_LINE_BREAKS = re.compile("[\x85\u2028\u2029]")
_REFERENCE = re.compile(r"\$\{env:([^}]*)\}")
_VARIABLE = re.compile(VARIABLE, re.ASCII)
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)


class Document(Struct):
    """A file's data, the lines (from 1) of its keys and list items, and what is wrong with it so far.

    `problems` is an ordered set. `spoiled` are places whose value was not understood, so that nothing more is
    said of them. With `complete` False reading stopped half-way: what follows from the data would mislead.
    """

    file: str
    data: object = None
    lines: dict[Place, int] = field(default_factory=dict)
    problems: dict[Problem, None] = field(default_factory=dict)
    spoiled: set[Place] = field(default_factory=set)
    complete: bool = True

    def report(self, place: Place, message: str, hint: str | None = None) -> None:
        """Note a problem on the line of its place, unless that or something around it is spoiled already."""
        around = [place[:length] for length in range(len(place), -1, -1)]
        if not any(outer in self.spoiled for outer in around):
            self.add(
                next((self.lines[outer] for outer in around if outer in self.lines), 1), place, message, hint
            )

    def add(self, line: int, place: Place, message: str, hint: str | None = None) -> None:
        """Note a problem on a known line."""
        problem = Problem(file=self.file, line=line, path=dotted(place), message=message, hint=hint)
        self.problems[problem] = None

    def raise_problems(self) -> None:
        """Raise CatalogInvalid with all problems in the order of the file, if there are any."""
        if self.problems:
            own_first = sorted(self.problems, key=lambda problem: (problem.file != self.file, problem.line))
            raise CatalogInvalid(tuple(own_first))


def dotted(place: Place) -> str:
    """`agents.dev.extra_args[0]`, with odd keys as `agents['x y']`; the top of a file is `catalog`."""
    text = ""
    for part in place:
        plain = isinstance(part, str) and _PLAIN_KEY.fullmatch(part)
        text += f".{part}" if plain else f"[{kind(part)}]"
    return text.removeprefix(".") or "catalog"


def is_there(path: Path) -> bool:
    """Whether there is something at `path`; what cannot be looked at counts, so that reading it says why."""
    try:
        return path.exists()
    except OSError:
        return True


def read_text(path: Path) -> str:
    """The file's text. Raises UsageError when it cannot be read, CatalogInvalid when it is not UTF-8 text."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"{path}: {reason}", hint=_open_hint(error), where=str(path)) from error
    if len(raw) > MAX_BYTES:
        raise _not_a_catalog(
            path, 1, f"larger than {MAX_BYTES // 1024} KiB", "a catalog is a short file; is this one?"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise _not_a_catalog(path, line, "not UTF-8 text", "save the file as UTF-8") from error


def _not_a_catalog(path: Path, line: int, message: str, hint: str) -> CatalogInvalid:
    return CatalogInvalid((Problem(file=str(path), line=line, path=dotted(()), message=message, hint=hint),))


def _open_hint(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "name an existing file, such as a copy of the models.yaml that agent-manager comes with"
    if isinstance(error, IsADirectoryError):
        return "name the file itself, such as models.yaml in that folder"
    return "make the file readable for this user"


def read_document(text: str, *, file: str, environ: Mapping[str, str]) -> Document:
    """Read one YAML document. Never raises: what is wrong is in `problems`."""
    document = Document(file)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    unreadable = yaml.reader.Reader.NON_PRINTABLE.search(text) or _LINE_BREAKS.search(text)
    if unreadable:
        line = text.count("\n", 0, unreadable.start()) + 1
        character = f"U+{ord(unreadable.group()):04X}"
        document.add(
            line, (), f"the character {character} is not text", "delete it, and save the file as UTF-8"
        )
        document.complete = False
        return document
    reader = _Reader(document, environ)
    try:
        for event in yaml.parse(text, Loader=LOADER):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        last_line = text.rstrip().count("\n") + 1  # the end of the file, to a reader
        mark = error.problem_mark or error.context_mark
        line = min(mark.line + 1, last_line) if mark else last_line
        start = text.split("\n")[line - 1]
        tab = "\t" in start[: len(start) - len(start.lstrip())]
        hint = "indent with spaces" if tab else "check indentation, quotes and brackets there"
        document.add(line, (), f"not valid YAML: {error.problem or error.context}", hint)
        document.complete = False
    except _Stop as stop:
        document.add(stop.line, stop.place, stop.message, stop.hint)
        document.complete = False
    return document


class _Stop(Exception):
    """What makes the rest of a file not worth reading."""

    def __init__(self, line: int, place: Place, message: str, hint: str) -> None:
        super().__init__(message)
        self.line = line
        self.place = place
        self.message = message
        self.hint = hint


class _Frame(Struct):
    """A mapping or list that is open. In a mapping, `key` is set while its value is awaited."""

    place: Place
    into: dict[str, object] | list[object]
    key: str | None = None
    seen: dict[str, int] = field(default_factory=dict)


class _Reader:
    """Builds a Document from YAML events; its own stack, so that no nesting can exhaust Python's."""

    def __init__(self, document: Document, environ: Mapping[str, str]) -> None:
        self._document = document
        self._environ = environ
        self._stack: list[_Frame] = []
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        """The next event."""
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise _Stop(
                    line, (), "a second document starts here", "keep one document: delete the '---' line"
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            self._stack.pop()
        elif isinstance(event, yaml.NodeEvent):
            frame = self._stack[-1] if self._stack else None
            if frame and isinstance(frame.into, dict) and frame.key is None:
                self._key(frame, event, line)
            else:
                self._value(frame, event, line)

    def _key(self, frame: _Frame, event: yaml.NodeEvent, line: int) -> None:
        if not isinstance(event, yaml.ScalarEvent):
            raise _Stop(
                line, frame.place, "a key must be a plain word", "write 'key: value'; quote text with { or ["
            )
        key: str = event.value
        if key in frame.seen:
            self._document.add(
                line,
                (*frame.place, key),
                f"'{shown(key)}' is already set on line {frame.seen[key]}",
                "keep one of the two",
            )
        frame.seen.setdefault(key, line)
        frame.key = key
        self._document.lines[(*frame.place, key)] = line
        self._refuse_extras((*frame.place, key), event, line)
        if not key.isprintable():
            self._spoil((*frame.place, key), line, "a key holds an invisible character", "type it again")

    def _value(self, frame: _Frame | None, event: yaml.NodeEvent, line: int) -> None:
        place = self._next_place(frame)
        if frame is None or frame.key is None:
            self._document.lines[place] = line
        usable = self._refuse_extras(place, event, line)
        value: object = None
        if isinstance(event, yaml.ScalarEvent) and usable:
            value = self._scalar(place, event, line)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(self._stack) >= MAX_DEPTH:
                raise _Stop(
                    line, place[:4], f"nested more than {MAX_DEPTH} deep", "a catalog is never that deep"
                )
            into: dict[str, object] | list[object] = {} if isinstance(event, yaml.MappingStartEvent) else []
            self._stack.append(_Frame(place, into))
            value = into
        self._store(frame, value)

    def _next_place(self, frame: _Frame | None) -> Place:
        if frame is None:
            return ()
        return (*frame.place, len(frame.into) if frame.key is None else frame.key)

    def _store(self, frame: _Frame | None, value: object) -> None:
        if frame is None:
            self._document.data = value
        elif isinstance(frame.into, list):
            frame.into.append(value)
        elif frame.key is not None:
            if value is not None and frame.key.isprintable():
                frame.into[frame.key] = value
            else:
                frame.into.pop(frame.key, None)
            frame.key = None

    def _spoil(self, place: Place, line: int, message: str, hint: str) -> None:
        self._document.add(line, place, message, hint)
        self._document.spoiled.add(place)

    def _refuse_extras(self, place: Place, event: yaml.NodeEvent, line: int) -> bool:
        if event.anchor is not None:
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            name = f"{sign}{shown(event.anchor)}"
            self._spoil(place, line, f"anchors and aliases ({name}) are not supported", "write the value out")
            return False
        tag = getattr(event, "tag", None)
        if tag is not None:
            self._spoil(place, line, f"tags ({shown(tag)}) are not supported", "write the plain value")
            return False
        return True

    def _scalar(self, place: Place, event: yaml.ScalarEvent, line: int) -> object:
        text = self._interpolated(place, event.value, line)
        if text is None:
            return None
        prose = bool(place) and place[-1] in PROSE
        longest = MAX_PROSE_CHARS if prose else MAX_VALUE_CHARS
        if len(text) > longest:
            self._spoil(place, line, f"longer than {longest} characters", "shorten it")
            return None
        if not (text.translate(_BREAKS) if prose else text).isprintable():
            self._spoil(
                place,
                line,
                "holds an invisible character" if prose else "holds a line break or an invisible character",
                "write it as plain text" if prose else "write it on one line, as plain text",
            )
            return None
        if "${env:" in event.value:
            return Interpolated(text)
        return plain_value(text) if event.implicit[0] else text

    def _interpolated(self, place: Place, text: str, line: int) -> str | None:
        """The text with `${env:NAME}` replaced; None when that failed and was reported."""
        if "${env:" not in text:
            return text
        wrong: list[tuple[str, str]] = []

        def replace(match: re.Match[str]) -> str:
            name = match.group(1)
            if not _VARIABLE.fullmatch(name):
                wrong.append((f"'{shown(name)}' is no name of a variable", "write it as ${env:NAME}"))
            elif name not in self._environ:
                wrong.append(
                    (f"the environment variable {shown(name)} is not set", "set it, or write the value here")
                )
            return self._environ.get(name, "")

        replaced = _REFERENCE.sub(replace, text)
        if not wrong and "${env:" in _REFERENCE.sub("", text):
            wrong.append(("'${env:' without its '}'", "write it as ${env:NAME}"))
        for message, hint in wrong:
            self._spoil(place, line, message, hint)
        return None if wrong else replaced
