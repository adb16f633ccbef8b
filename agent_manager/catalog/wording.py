"""Pydantic's findings in our words: each becomes a problem with a line, a path, and what to do."""

from __future__ import annotations

from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from agent_manager.catalog.schema import AgentOverlay, AgentSection, CatalogSection
from agent_manager.catalog.values import RefusedError, did_you_mean, kind, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails

    from agent_manager.catalog.document import Document, Place

_KEY = "[key]"  # how pydantic marks that a mapping's key, not its value, is wrong
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_HINTS = {
    "list_type": "write [one, two], or one item per line after '- '",
    "dict_type": "write 'name: value' lines, indented below the key",
    "model_type": "write 'key: value' lines, indented below the key",
    "bool_type": "write true or false, without quotes",
}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def report(document: Document, errors: Iterable[ErrorDetails]) -> None:
    """Add pydantic's errors about the document's data to its problems."""
    for error in errors:
        place = error["loc"][:-1] if error["loc"][-1:] == (_KEY,) else error["loc"]
        message, hint = _words(error, place)
        document.report(place, message, hint)


def _words(error: ErrorDetails, place: Place) -> tuple[str, str | None]:
    """What is wrong, and what to do."""
    context = error.get("ctx", {})
    found = kind(error["input"])
    match error["type"]:
        case "value_error" if isinstance(context.get("error"), RefusedError):
            return context["error"].message, context["error"].hint
        case "missing":
            return "missing", f"add '{place[-1]}: …'{_about(place)}"
        case "extra_forbidden":
            return _unknown_key(place)
        case "literal_error":
            choices = [choice.strip("' ") for choice in context["expected"].replace(" or ", ", ").split(",")]
            expected = choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
            return f"expected {expected}, got {found}", did_you_mean(error["input"], choices)
        case "too_short":
            return "must not be empty", f"add an entry{_about(place)}"
        case "string_type":
            return f"expected text, got {found}", _quote_hint(error["input"])
        case type_ if type_ in _BOUNDS:
            key, words = _BOUNDS[type_]
            direction = "larger" if key in {"gt", "ge"} else "smaller"
            return (
                f"expected {words} {context[key]:g}, got {found}",
                f"write a {direction} number{_about(place)}",
            )
        case type_ if type_ in _EXPECTED:
            return f"expected {_EXPECTED[type_]}, got {found}", _hint(error, place)
    return f"not a value that fits here: {found}", f"see models.schema.json{_about(place)}"


def _quote_hint(value: object) -> str:
    if isinstance(value, (dict, list)) or value is None:
        return "write one value on the same line"
    return f"put it in quotes: '{kind(value)}'"


def _hint(error: ErrorDetails, place: Place) -> str:
    value = error["input"]
    if error["type"] in _HINTS:
        return _HINTS[error["type"]]
    if isinstance(value, str) and value.replace(".", "", 1).lstrip("-").isdecimal():
        return f"write {shown(value)} without quotes"
    return f"write {_EXPECTED[error['type']]}{_about(place)}"


def _unknown_key(place: Place) -> tuple[str, str | None]:
    section = _section_at(place[:-1])
    if section is AgentOverlay and place[-1] in AgentSection.model_fields:
        return f"a profile cannot change '{place[-1]}'", "clients count on it; set it under agents"
    fields = section.model_fields if section else {}
    known = [field.alias or name for name, field in fields.items()]
    return f"unknown key '{shown(str(place[-1]))}'", did_you_mean(place[-1], known)


def _about(place: Place) -> str:
    """`: <description>` of the field at a place, where the schema has one."""
    section = _section_at(place[:-1])
    field = section.model_fields.get(str(place[-1])) if section else None
    if field is None or field.description is None:
        return ""
    return ": " + field.description[0].lower() + field.description[1:].rstrip(".")


def _section_at(place: Place) -> type[BaseModel] | None:
    """The class of the schema that describes the mapping at a place."""
    here: Any = CatalogSection
    for part in place:
        if isinstance(here, type) and issubclass(here, BaseModel):
            fields = {field.alias or name: field for name, field in here.model_fields.items()}
            here = fields[str(part)].annotation if part in fields else None
        else:
            arguments = get_args(_plain(here))
            here = arguments[-1] if arguments else None
    here = _plain(here)
    return here if isinstance(here, type) and issubclass(here, BaseModel) else None


def _plain(annotation: Any) -> Any:  # noqa: ANN401 - an annotation can be anything
    """The annotation without Annotated and without `| None`."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        options = [option for option in get_args(annotation) if option is not type(None)]
        return _plain(options[0])
    return annotation
