"""JSON Schemas for structured output and strict tools, which accept a subset of JSON Schema.

The theory. The upstream compiles the strict schemas of a request into one grammar. It accepts
closed, non-recursive objects and a short list of keywords, and limits what all schemas of a request
may use together. OpenAI's API accepts more. A schema is rewritten into the subset where that is
possible: objects are closed, ``oneOf`` becomes ``anyOf``, ``allOf`` is merged. Keywords outside the
subset move into the description, which the model reads; the SDK for Anthropic's API does the same.
A schema that the subset cannot express, such as an object with free keys, does not fit.

Sources: https://docs.anthropic.com/en/docs/build-with-claude/structured-outputs (the subset and the
limits); ``anthropic.transform_schema``
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tornadoproxy.openai.content import text_block
from tornadoproxy.openai.reading import Json, dump, obj

if TYPE_CHECKING:
    from tornadoproxy.openai.models import Capabilities

FORMATS = ("text", "json_object", "json_schema")
"""The types of output that a client can request."""

_JSON_ONLY = "Answer with a single JSON object and nothing else: no words around it, no code fence."

MAX_OPTIONAL = 24
"""Optional properties in all strict schemas of a request."""

MAX_UNIONS = 16
"""Schemas with ``anyOf`` or several types in all strict schemas of a request."""

# Far above what the upstream compiles; these bound the work for one request.
_MAX_PARTS = 5_000
_MAX_DEPTH = 64
_PART_LENGTH = 100  # characters, of a schema that is copied

# Tuples: a client may send an unhashable value in the place of a name.
_FORMATS = (
    *("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"),
)
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")

# No lookaround, backreference, word boundary or large repetition.
_PATTERN = re.compile(r"(?:[^\\({]|\\[dws\W_]|\((?!\?)|\{\d{1,2}(?:,\d{0,2})?\})*")

_MAX_PATTERN = 1_000  # characters

_SCALARS = (str, int, float, bool, type(None))
_COMPOUND = frozenset(("object", "array"))
_STRUCTURE = frozenset(("properties", "items", "prefixItems", "enum", "const"))
_ANNOTATIONS = ("title", "description", "default")
_BESIDE_REF = frozenset(("$ref", "title", "default", "$defs", "definitions", "$schema"))
_MERGED = {"required": list, "properties": dict}
_SILENT = frozenset(("$schema", "$id", "$comment", "$defs", "definitions", "discriminator"))

# The keywords that constrain values of one type only.
_TYPE_OF = {
    keyword: kind
    for kind, keywords in {
        "object": "properties required additionalProperties patternProperties propertyNames"
        " minProperties maxProperties dependentRequired",
        "array": "items prefixItems minItems maxItems uniqueItems contains",
        "string": "format pattern minLength maxLength",
        "number": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf",
    }.items()
    for keyword in keywords.split()
}


class _Unfit(Exception):
    """The subset cannot express the schema."""


def output_format(
    kind: str,
    described: Json,
    param: str,
    system: list[Json],
    able: Capabilities,
    grammar: Grammar,
    ignored: list[str],
) -> Json | None:
    """Return the upstream's format for structured output, or request it in the `system` prompt.

    :param kind: one of `FORMATS`.
    :param described: the object with the ``schema`` and whether it is ``strict``.
    :param ignored: takes the name of ``strict`` if nothing enforces the schema.
    """
    if kind == "json_object":
        system.append(text_block(_JSON_ONLY))
    if kind != "json_schema":
        return None
    given = obj(described.get("schema"), f"{param}.schema")
    fitted = grammar.fit(given) if able.structured_outputs else None
    if fitted is not None:
        return {"type": "json_schema", "schema": fitted}
    if described.get("strict"):
        ignored.append(f"{param}.strict")
    shown = dump(given).decode()
    system.append(text_block(f"{_JSON_ONLY} It must fit this JSON Schema: {shown}"))
    return None


class Grammar:
    """The strict schemas of one request, which share the upstream's limits."""

    def __init__(self) -> None:
        self._optional = MAX_OPTIONAL
        self._unions = MAX_UNIONS
        self._parts = _MAX_PARTS

    def fit(self, schema: Json) -> Json | None:
        """Rewrite `schema` into the subset; `None` if it does not fit or exceeds what is left."""
        fitter = _Fitter(schema, self._parts)
        try:
            fitted = fitter.fit()
        except (_Unfit, RecursionError):
            fitted = None
        self._parts = fitter.parts
        if fitted is None or fitter.optional > self._optional or fitter.unions > self._unions:
            return None
        self._optional -= fitter.optional
        self._unions -= fitter.unions
        return fitted


class _Fitter:
    """Fits one schema.

    :param parts: the number of schemas within it that may be visited.
    """

    def __init__(self, root: Json, parts: int) -> None:
        self.parts = parts
        self.optional = 0
        self.unions = 0
        self._root = root
        self._definitions: Json = {}
        self._names: dict[str, str] = {}  # of definitions, by reference
        self._unfinished = {"#"}  # references to the schemas that are being fitted

    def fit(self) -> Json:
        fitted = self._fit(self._root, 0)
        if self._definitions:
            fitted["$defs"] = self._definitions
        return fitted

    def _fit(self, schema: object, depth: int) -> Json:
        self._visit(depth)
        if not isinstance(schema, dict):
            raise _Unfit
        if "allOf" in schema or ("$ref" in schema and not _BESIDE_REF.issuperset(schema)):
            return self._fit(self._merged(schema, depth), depth + 1)
        if "$ref" in schema:
            return {"$ref": f"#/$defs/{self._define(schema['$ref'], depth)}"}
        fitted: Json = {name: schema[name] for name in _ANNOTATIONS if _is_scalar(schema, name)}
        for union in ("anyOf", "oneOf"):
            if isinstance(schema.get(union), list) and _STRUCTURE.isdisjoint(schema):
                fitted["anyOf"] = self._union(schema[union], depth)
                return _with_rest(fitted, schema, {union, "type"})
        if literal := _literal(schema):
            return _with_rest(fitted | literal, schema, {"type"})
        types = _types(schema)
        if len(types) > 1 and not _COMPOUND.isdisjoint(types):
            fitted["anyOf"] = self._union([_of_type(schema, kind) for kind in types], depth)
            return _with_rest(fitted, schema, {"type", *_TYPE_OF})
        self.unions += len(types) > 1
        fitted["type"] = types[0] if len(types) == 1 else types
        if types == ["object"]:
            fitted |= self._object(schema, depth)
        elif types == ["array"]:
            fitted |= self._array(schema, depth)
        elif "string" in types:
            fitted |= _string(schema)
        return _with_rest(fitted, schema, {"required"})

    def _union(self, branches: list[Any], depth: int) -> list[Json]:  # Any: JSON
        if not branches:
            raise _Unfit
        self.unions += 1
        return [self._fit(branch, depth + 1) for branch in branches]

    def _object(self, schema: Json, depth: int) -> Json:
        properties = schema.get("properties")
        is_open = schema.get("additionalProperties", properties is None) is not False
        required = schema.get("required") or []
        if is_open or "patternProperties" in schema or not isinstance(required, list):
            raise _Unfit
        if not isinstance(properties, dict | None):
            raise _Unfit
        fitted = {name: self._fit(each, depth + 1) for name, each in (properties or {}).items()}
        wanted = {name for name in required if isinstance(name, str)}
        required = [name for name in fitted if name in wanted]
        self.optional += len(fitted) - len(required)
        required_names: Json = {"required": required} if required else {}
        return {"properties": fitted, **required_names, "additionalProperties": False}

    def _array(self, schema: Json, depth: int) -> Json:
        items = schema.get("items")
        if isinstance(schema.get("prefixItems"), list):
            # a tuple: the subset can list its items' types, but not their positions
            prefix = self._copied(schema["prefixItems"])
            items = {"anyOf": [*prefix, *([items] if items else [])]}
        fitted: Json = {"items": self._fit(items, depth + 1)}
        if schema.get("minItems") in (0, 1):
            fitted["minItems"] = schema["minItems"]
        return fitted

    def _define(self, reference: object, depth: int) -> str:
        """Fit the definition that `reference` names, once, and return its name in ``$defs``."""
        if not isinstance(reference, str) or reference in self._unfinished:
            raise _Unfit
        if reference not in self._names:
            self._unfinished.add(reference)
            fitted = self._fit(self._target(reference), depth + 1)
            self._unfinished.discard(reference)
            name = re.sub(r"[^\w.-]", "_", reference.rpartition("/")[2])
            if name in self._definitions:
                raise _Unfit
            self._names[reference] = name
            self._definitions[name] = fitted
        return self._names[reference]

    def _target(self, reference: object) -> object:
        """Return the schema that a local reference names (RFC 6901, section 6)."""
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise _Unfit
        target: Any = self._root  # Any: JSON
        for part in unquote(reference[2:]).split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or name not in target:
                raise _Unfit
            target = target[name]
        return target

    def _merged(self, schema: Json, depth: int) -> Json:
        """Merge a schema with those of its ``allOf`` and its ``$ref``."""
        merged: Json = {}
        descriptions: list[str] = []
        for part in self._all_of(schema, depth):
            for key, value in part.items():
                if key == "description" and isinstance(value, str):
                    descriptions.append(value)
                elif key in _MERGED and not isinstance(value, _MERGED[key]):
                    raise _Unfit
                elif key == "required":
                    merged.setdefault(key, []).extend(value)
                elif key == "properties":
                    known = merged.setdefault(key, {})
                    if any(known.setdefault(name, each) != each for name, each in value.items()):
                        raise _Unfit
                elif key not in merged or merged[key] == value:
                    merged[key] = value
                elif key not in _ANNOTATIONS and key not in _SILENT:
                    raise _Unfit
        if descriptions:
            merged["description"] = "\n\n".join(dict.fromkeys(descriptions))
        return merged

    def _all_of(self, schema: object, depth: int) -> Iterator[Json]:
        self._visit(depth)
        if not isinstance(schema, dict):
            raise _Unfit
        yield {key: value for key, value in schema.items() if key not in ("allOf", "$ref")}
        others = schema.get("allOf", [])
        if not isinstance(others, list):
            raise _Unfit
        if "$ref" in schema:
            others = [*others, self._copied(self._target(schema["$ref"]))]
        for other in others:
            yield from self._all_of(other, depth + 1)

    def _copied(self, value: Any) -> Any:  # Any: JSON
        """Count the length of a copied `value`: without a bound, copies would fill the memory."""
        self.parts -= len(json.dumps(value)) // _PART_LENGTH
        if self.parts < 0:
            raise _Unfit
        return value

    def _visit(self, depth: int) -> None:
        self.parts -= 1
        if self.parts < 0 or depth > _MAX_DEPTH:
            raise _Unfit


def _is_scalar(schema: Json, name: str) -> bool:
    return name in schema and isinstance(schema[name], _SCALARS)


def _literal(schema: Json) -> Json:
    """Return the ``const`` or ``enum`` of `schema`, if the subset has it: it lists scalars."""
    if "const" in schema:
        return {"const": schema["const"]} if _is_scalar(schema, "const") else {}
    values = schema.get("enum")
    fits = isinstance(values, list) and values and all(isinstance(v, _SCALARS) for v in values)
    return {"enum": values} if fits else {}


def _types(schema: Json) -> list[str]:
    """Return the types of the values; without ``type``, the type that the keywords imply."""
    given = schema.get("type")
    if given is None:
        given = [_TYPE_OF[keyword] for keyword in schema if keyword in _TYPE_OF][:1]
    types = given if isinstance(given, list) else [given]
    if not types or not all(kind in _TYPES for kind in types):
        raise _Unfit
    return list(dict.fromkeys(types))


def _of_type(schema: Json, kind: str) -> Json:
    """Return the keywords of `schema` that constrain one of its types."""
    own = "number" if kind == "integer" else kind
    return {"type": kind} | {key: schema[key] for key in schema if _TYPE_OF.get(key) == own}


def _string(schema: Json) -> Json:
    fitted: Json = {}
    if schema.get("format") in _FORMATS:
        fitted["format"] = schema["format"]
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and len(pattern) <= _MAX_PATTERN and _PATTERN.fullmatch(pattern):
        fitted["pattern"] = pattern
    return fitted


def _with_rest(fitted: Json, schema: Json, done: set[str]) -> Json:
    """Add the other keywords of `schema` to the description of `fitted`."""
    rest = {
        key: value
        for key, value in schema.items()
        if key not in fitted and key not in done and key not in _SILENT
    }
    if rest:
        written = json.dumps(rest, ensure_ascii=False)
        described = fitted.get("description")
        fitted["description"] = f"{described}\n\n{written}" if described else written
    return fitted
