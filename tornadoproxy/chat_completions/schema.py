"""Fits a JSON Schema to structured output and strict tools, which know a part of that language.

The theory. Upstream takes closed objects alone, no bounds on numbers, lengths and counts, and no
schema that contains itself. OpenAI's API takes more. Objects that say nothing of other properties
are closed, bounds go into the description, where the model reads them, as the SDK for Anthropic's
API does it. What cannot be said so, such as an object whose keys are free, has no fitting schema.

Source: https://docs.anthropic.com/en/docs/build-with-claude/structured-outputs
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tornadoproxy.chat_completions.reading import Json

_BOUNDS = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
)
_NAMED = ("properties", "$defs", "definitions")  # schemas by name
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")  # schemas in a list
_ALONE = ("items", "not")


def fit(schema: Json) -> Json | None:
    """The schema that fits upstream and means the same to the model, or `None` if there is none."""
    if _is_recursive(schema) or not all(map(_is_closable, _parts(schema))):
        return None
    return _fitted(schema)


def _parts(schema: object) -> Iterator[Json]:
    """A schema and all those within it."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += _within(part)


def _within(schema: Json) -> Iterator[object]:
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            yield from value.values()
        elif key in _LISTED and isinstance(value, list):
            yield from value
        elif key in _ALONE:
            yield value


def _is_object(schema: Json) -> bool:
    kind = schema.get("type")
    return kind == "object" or (isinstance(kind, list) and "object" in kind)


def _is_closable(schema: Json) -> bool:
    """Whether it is no object whose keys are free."""
    if not _is_object(schema):
        return True
    others = schema.get("additionalProperties")
    return others is False or (others is None and "properties" in schema)


def _is_recursive(schema: Json) -> bool:
    """Whether a definition leads back to itself, or to the whole."""
    references = {"#": _references(schema)}
    for key in ("$defs", "definitions"):
        definitions = schema.get(key)
        if isinstance(definitions, dict):
            for name, definition in definitions.items():
                references[f"#/{key}/{name}"] = _references(definition)
    try:
        TopologicalSorter(references).prepare()
    except CycleError:
        return True
    return False


def _references(schema: object) -> set[str]:
    return {part["$ref"] for part in _parts(schema) if isinstance(part.get("$ref"), str)}


def _fitted(schema: Json) -> Json:
    fitted: Json = {}
    bounds: Json = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            fitted[key] = {name: _inner(each) for name, each in value.items()}
        elif key in _LISTED and isinstance(value, list):
            fitted[key] = [_inner(each) for each in value]
        elif key in _ALONE:
            fitted[key] = _inner(value)
        elif key in _BOUNDS or (key == "minItems" and value not in (0, 1)):
            bounds[key] = value
        else:
            fitted[key] = value
    if bounds:
        told = json.dumps(bounds, ensure_ascii=False)
        described = fitted.get("description")
        fitted["description"] = f"{described}\n\n{told}" if described else told
    if _is_object(schema):
        fitted["additionalProperties"] = False
    return fitted


def _inner(schema: object) -> object:
    return _fitted(schema) if isinstance(schema, dict) else schema
