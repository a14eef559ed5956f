"""JSON Schemas fitted to the subset that strict tools and structured output accept."""

from __future__ import annotations

import json
from datetime import date
from typing import Any, Literal

import pytest
from hypothesis import strategies as st
from openai.lib._parsing._completions import type_to_response_format_param
from properties import holds_of
from pydantic import BaseModel, Field

from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.schema import MAX_OPTIONAL, MAX_UNIONS, Grammar
from tornadoproxy.openai.tools import MAX_STRICT

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

SCALARS = (str, int, float, bool, type(None))
TYPES = {"object", "array", "string", "integer", "number", "boolean", "null"}
FORMATS = [
    *("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")
]


def assert_in_subset(schema: Any, definitions: Json) -> None:  # Any: JSON
    """Assert that `schema` is in the documented subset.

    Source: https://docs.anthropic.com/en/docs/build-with-claude/structured-outputs
    """
    assert isinstance(schema, dict)
    if "$ref" in schema:
        assert schema.keys() - {"$defs"} == {"$ref"}
        assert schema["$ref"].removeprefix("#/$defs/") in definitions
        return
    keys = schema.keys() - {"title", "description", "default", "$defs"}
    if "anyOf" in keys:
        assert keys == {"anyOf"}
        for branch in schema["anyOf"]:
            assert_in_subset(branch, definitions)
    elif keys & {"enum", "const"}:
        assert keys <= {"enum", "const"}
        assert all(isinstance(value, SCALARS) for value in schema.get("enum", []))
    elif schema["type"] == "object":
        assert keys <= {"type", "properties", "required", "additionalProperties"}
        assert schema["additionalProperties"] is False
        assert set(schema.get("required", [])) <= schema["properties"].keys()
        for each in schema["properties"].values():
            assert_in_subset(each, definitions)
    elif schema["type"] == "array":
        assert keys <= {"type", "items", "minItems"}
        assert schema.get("minItems", 0) in (0, 1)
        assert_in_subset(schema["items"], definitions)
    else:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert set(kinds) <= TYPES - {"object", "array"}
        assert keys <= ({"type", "format", "pattern"} if "string" in kinds else {"type"})
        assert schema.get("format", "date") in FORMATS


def of(**properties: object) -> Json:
    return {"type": "object", "properties": properties, "required": [*properties]}


def fitted(part: Json, **definitions: object) -> object:
    """The fitted schema of a property."""
    schema = of(a=part) | ({"$defs": definitions} if definitions else {})
    whole = Grammar().fit(schema)
    if whole is None:
        return None
    assert_in_subset(whole, whole.get("$defs", {}))
    return whole["properties"]["a"]


CLOSED = {"type": "object", "properties": {}, "additionalProperties": False}
STRING = {"type": "string"}


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "integer", "minimum": 0}, {"type": "integer", "description": '{"minimum": 0}'}),
        (
            {"type": "string", "minLength": 1, "description": "Whose?"},
            {"type": "string", "description": 'Whose?\n\n{"minLength": 1}'},
        ),
        ({"oneOf": [STRING, {"type": "null"}]}, {"anyOf": [STRING, {"type": "null"}]}),
        (
            {"oneOf": [STRING], "discriminator": {"propertyName": "kind"}, "title": "T"},
            {"title": "T", "anyOf": [STRING]},
        ),
        ({"type": "string", "enum": ["a", "b"]}, {"enum": ["a", "b"]}),
        ({"type": "string", "const": "a"}, {"const": "a"}),
        ({"enum": [{"a": 1}]}, None),
        ({"const": 0, "enum": [{}]}, {"const": 0, "description": '{"enum": [{}]}'}),
        ({"anyOf": []}, None),
        ({"type": "array", "prefixItems": []}, None),
        (
            {"type": "object", "properties": {}, "const": {"a": 1}},
            CLOSED | {"description": '{"const": {"a": 1}}'},
        ),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
        ({"type": "string", "pattern": r"^\d{3}-[a-z]+$"},) * 2,
        *(
            (STRING | {key: value}, STRING | {"description": json.dumps({key: value})})
            for key, value in (
                ("format", "binary"),
                ("format", {}),
                ("pattern", "^(?=a)b"),
                ("pattern", r"(a)\1"),
                ("pattern", "a{1000}"),
                ("minLength", 1),
            )
        ),
        (
            {"type": "array", "items": STRING, "minItems": 1, "maxItems": 2},
            {"type": "array", "items": STRING, "minItems": 1, "description": '{"maxItems": 2}'},
        ),
        ({"type": "array"}, None),
        (
            {"type": "array", "prefixItems": [STRING], "maxItems": 1},
            {
                "type": "array",
                "items": {"anyOf": [STRING]},
                "description": '{"prefixItems": [{"type": "string"}], "maxItems": 1}',
            },
        ),
        ({"type": ["string", "null"], "format": "date"},) * 2,
        (
            {"type": ["object", "null"], "properties": {}, "description": "D"},
            {"description": "D", "anyOf": [CLOSED, {"type": "null"}]},
        ),
        ({"properties": {}}, CLOSED),
        ({"type": "object", "properties": {}, "required": ["b"]}, CLOSED),
        (
            {"type": "object", "properties": {}, "anyOf": [{"required": ["b"]}]},
            CLOSED | {"description": '{"anyOf": [{"required": ["b"]}]}'},
        ),
        ({"type": "object"}, None),
        ({"type": "object", "properties": {}, "additionalProperties": True}, None),
        ({"type": "object", "properties": {}, "patternProperties": {"^x": {}}}, None),
        ({}, None),
        ({"type": "any"}, None),
        ({"type": {}}, None),
        ({"type": [{}]}, None),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_schema_is_rewritten_into_the_subset_or_unfit(part: Json, expected: object) -> None:
    assert fitted(part) == expected


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A"}),
        ({"$ref": "#/$defs/A", "title": "T"}, {"$ref": "#/$defs/A"}),
        ({"allOf": [{"$ref": "#/$defs/A"}]}, CLOSED | {"properties": {"x": STRING}}),
        (
            {"$ref": "#/$defs/A", "description": "D"},
            CLOSED | {"properties": {"x": STRING}, "description": "D"},
        ),
        (
            {
                "allOf": [{"$ref": "#/$defs/A"}, {"properties": {"y": STRING}, "required": ["y"]}],
                "description": "D",
            },
            CLOSED
            | {"description": "D", "properties": {"x": STRING, "y": STRING}, "required": ["y"]},
        ),
        ({"allOf": [STRING, {"type": "integer"}]}, None),
        ({"allOf": [{"$ref": "#/$defs/A"}, {"properties": {"x": CLOSED}}]}, None),
        (
            {"allOf": [{"title": "T", "type": "string"}, {"title": "U"}, {"description": "D"}]},
            {"title": "T", "type": "string", "description": "D"},
        ),
        ({"allOf": 5}, None),
        ({"allOf": [5]}, None),
        ({"type": "object", "properties": 5, "additionalProperties": False}, None),
        ({"allOf": [{"required": 5}, {"required": ["x"]}]}, None),
        ({"allOf": [{"properties": {}}, {"properties": [5]}]}, None),
        ({"$ref": "https://example.com/a.json"}, None),
        ({"$ref": "#/$defs/missing"}, None),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_references_stay_and_all_of_is_merged(part: Json, expected: object) -> None:
    assert fitted(part, A={"type": "object", "properties": {"x": STRING}}) == expected


@pytest.mark.parametrize(
    "definition",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/A"},
        of(next={"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]}),
        of(
            next={"$ref": "#/$defs/A", "description": "D"}, other={"allOf": [{"$ref": "#/$defs/A"}]}
        ),
        {"allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A"}]},
    ],
)
def test_recursive_schema_is_unfit(definition: Json) -> None:
    assert fitted({"$ref": "#/$defs/A"}, A=definition) is None


def test_work_is_bounded_however_references_multiply() -> None:
    definitions: Json = {
        f"A{n}": of(**{name: {"$ref": f"#/$defs/A{n + 1}", "description": "D"} for name in "ab"})
        for n in range(60)
    }
    assert fitted({"$ref": "#/$defs/A0", "description": "D"}, **definitions, A60=STRING) is None
    nested: Json = STRING
    for _ in range(500):
        nested = {"type": "array", "items": nested}
    assert fitted(nested) is None


@pytest.mark.parametrize(
    "long",
    [
        {"description": "x" * 100_000},
        {"title": "x" * 100_000},
        {"minLength": [0] * 50_000},
        {"enum": ["a"] * 50_000},
    ],
    ids=lambda long: next(iter(long)),
)
def test_long_definition_is_not_copied_for_each_reference(long: Json) -> None:
    definition = STRING | long
    references = {f"p{n}": {"$ref": "#/$defs/A", "description": "D"} for n in range(50)}
    assert fitted(of(**references), A=definition) is None
    references = {f"p{n}": {"$ref": "#/$defs/A"} for n in range(50)}
    assert fitted(of(**references), A=definition) is not None
    nested: Json = definition
    for _ in range(20):
        nested = {"type": "array", "prefixItems": [nested]}
    assert fitted(nested) is None


def strict_tools(*schemas: Json, **more: object) -> tuple[list[bool], Json, tuple[str, ...]]:
    """Whether each tool stays strict, the body, and the names of what was dropped."""
    tools = [
        {"type": "function", "function": {"name": f"t{n}", "strict": True, "parameters": schema}}
        for n, schema in enumerate(schemas)
    ]
    message = {"role": "user", "content": "Hi"}
    document = {"model": "m", "messages": [message], "tools": tools, **more}
    translation = chat_completions.translate_request(document)
    body = json.loads(translation.body)
    return [tool.get("strict", False) for tool in body["tools"]], body, translation.ignored


def optional(count: int) -> Json:
    return {"type": "object", "properties": {f"p{n}": STRING for n in range(count)}}


def unions(count: int) -> Json:
    return of(**{f"p{n}": {"type": ["string", "null"]} for n in range(count)})


@pytest.mark.parametrize(
    ("schemas", "strict"),
    [
        ([of()] * (MAX_STRICT + 2), [True] * MAX_STRICT + [False] * 2),
        ([optional(20), optional(5), optional(MAX_OPTIONAL - 20)], [True, False, True]),
        ([unions(MAX_UNIONS + 1), unions(MAX_UNIONS), unions(1)], [False, True, False]),
        ([{"anyOf": [of(), of(a=STRING)]}], [False]),
    ],
)
def test_tools_over_a_limit_are_plain_and_named(schemas: list[Json], strict: list[bool]) -> None:
    stays, body, ignored = strict_tools(*schemas)
    assert stays == strict
    assert ignored == (() if all(strict) else ("tools.strict",))
    plain = [tool["input_schema"] for tool in body["tools"] if "strict" not in tool]
    assert plain == [
        {"type": "object", **schema}
        for schema, kept in zip(schemas, strict, strict=True)
        if not kept
    ]


def test_format_is_fitted_before_the_tools() -> None:
    described = {"name": "x", "schema": optional(MAX_OPTIONAL), "strict": True}
    response_format = {"type": "json_schema", "json_schema": described}
    stays, body, ignored = strict_tools(optional(1), of(), response_format=response_format)
    assert stays == [False, True]
    assert body["output_config"]["format"]["type"] == "json_schema"
    assert ignored == ("tools.strict",)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(9, ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str | None = Field(None, pattern=r"\bx", description="Whose?")


class Household(BaseModel):
    pet: Cat | Dog = Field(discriminator="kind")
    owner: Dog = Field(description="The first one.")
    born: date
    position: tuple[float, float]
    tags: set[str] = Field(min_length=2)


def test_schemas_of_pydantic_and_the_openai_sdk_fit() -> None:
    for schema in (
        Household.model_json_schema(),
        type_to_response_format_param(Household)["json_schema"]["schema"],  # type: ignore[index, typeddict-item]  # it has both
    ):
        whole = Grammar().fit(schema)
        assert whole is not None
        assert_in_subset(whole, whole.get("$defs", {}))


NAMES = st.sampled_from(["a", "b"])


def schemas(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    values: dict[str, st.SearchStrategy[object]] = {
        "type": st.sampled_from([*sorted(TYPES), ["string", "null"], ["object", "null"]]),
        "properties": st.dictionaries(NAMES, inner),
        "required": st.lists(NAMES),
        "additionalProperties": st.booleans(),
        "$ref": st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#/properties/a"]),
        "enum": st.lists(st.one_of(st.text(max_size=3), st.none(), inner), max_size=3),
        "format": st.sampled_from(["date", "byte"]),
        "pattern": st.text("a(?=)\\1{9}", max_size=6),
    }
    values |= dict.fromkeys(["anyOf", "oneOf", "allOf", "prefixItems"], st.lists(inner, max_size=3))
    others = ["const", "items", "minItems", "minimum", "default", "title", "description", "not"]
    values |= dict.fromkeys(others, st.one_of(st.integers(0, 2), inner))
    return st.fixed_dictionaries({}, optional=values)


SCHEMAS = st.recursive(st.one_of(st.none(), st.booleans(), st.just(STRING)), schemas, max_leaves=8)


@holds_of(st.dictionaries(NAMES, SCHEMAS), st.dictionaries(NAMES, SCHEMAS))
def test_any_schema_is_in_the_subset_or_unfit(properties: Json, definitions: Json) -> None:
    whole = Grammar().fit({"type": "object", "properties": properties, "$defs": definitions})
    if whole is not None:
        assert_in_subset(whole, whole.get("$defs", {}))
        for definition in whole.get("$defs", {}).values():
            assert_in_subset(definition, whole["$defs"])
