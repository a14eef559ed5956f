"""JSON Schemas fitted to the subset that strict tools and structured output accept."""

from __future__ import annotations

import json
from datetime import date
from typing import Any, Literal

import pytest
from chat_requests import Json, translate
from hypothesis import strategies as st
from openai.lib._parsing._completions import type_to_response_format_param
from properties import holds_of
from pydantic import BaseModel, Field

from tornadoproxy.openai.schema import MAX_OPTIONAL, MAX_UNIONS, Grammar
from tornadoproxy.openai.tools import MAX_STRICT

SCALARS = (str, int, float, bool, type(None))
FORMATS = "date-time time date duration email hostname uri ipv4 ipv6 uuid"
TYPES = {"object", "array", "string", "integer", "number", "boolean", "null"}


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
    inner: list[object] = []
    if "anyOf" in keys:
        assert keys == {"anyOf"}
        inner = schema["anyOf"]
    elif keys & {"enum", "const"}:
        assert keys <= {"enum", "const"}
        assert all(isinstance(value, SCALARS) for value in schema.get("enum", []))
    elif schema["type"] == "object":
        assert keys <= {"type", "properties", "required", "additionalProperties"}
        assert schema["additionalProperties"] is False
        assert set(schema.get("required", [])) <= schema["properties"].keys()
        inner = [*schema["properties"].values()]
    elif schema["type"] == "array":
        assert keys <= {"type", "items", "minItems"}
        assert schema.get("minItems", 0) in (0, 1)
        inner = [schema["items"]]
    else:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert set(kinds) <= TYPES - {"object", "array"}
        assert keys <= ({"type", "format", "pattern"} if "string" in kinds else {"type"})
    for each in inner:
        assert_in_subset(each, definitions)


def of(**properties: object) -> Json:
    return {"type": "object", "properties": properties, "required": [*properties]}


def fitted(part: Json, **definitions: object) -> object:
    schema = of(a=part) | ({"$defs": definitions} if definitions else {})
    whole = Grammar().fit(schema)
    if whole is None:
        return None
    assert_in_subset(whole, whole.get("$defs", {}))
    return whole["properties"]["a"]


CLOSED = {"type": "object", "properties": {}, "additionalProperties": False}
OBJECT = {"type": "object", "properties": {}}
STRING = {"type": "string"}
NULL = {"type": "null"}


def closed(**properties: object) -> Json:
    return {**CLOSED, "properties": properties}


def array(**more: object) -> Json:
    return {"type": "array", **more}


def described(schema: Json, **rest: object) -> Json:
    """A schema, with the keywords in its description that the subset has not."""
    return {**schema, "description": json.dumps(rest)}


@pytest.mark.parametrize(
    "part",
    [
        *({"type": "string", "format": name} for name in FORMATS.split()),
        {"type": "string", "pattern": r"^\d{3}-[a-z]+$"},
        {"type": ["string", "null"], "format": "date"},
        {"enum": ["a", 1, None]},
        {"const": "a"},
        array(items=STRING, minItems=1),
        CLOSED,
    ],
    ids=json.dumps,
)
def test_schema_of_the_subset_stays(part: Json) -> None:
    assert fitted(part) == part


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (
            {"type": "string", "minLength": 1, "description": "Whose?"},
            {"type": "string", "description": 'Whose?\n\n{"minLength": 1}'},
        ),
        (array(items=STRING, minItems=2), described(array(items=STRING), minItems=2)),
        *(
            (STRING | {key: value}, described(STRING, **{key: value}))
            for key, value in (
                *(("format", "binary"), ("format", {}), ("pattern", "^(?=a)b")),
                *(("pattern", r"(a)\1"), ("pattern", "a{1000}")),
            )
        ),
        ({"oneOf": [STRING, NULL]}, {"anyOf": [STRING, NULL]}),
        ({"anyOf": [STRING], "discriminator": {}, "title": "T"}, {"title": "T", "anyOf": [STRING]}),
        ({"type": "string", "enum": ["a", "b"]}, {"enum": ["a", "b"]}),
        ({"type": "string", "const": "a"}, {"const": "a"}),
        ({"const": 0, "enum": [{}]}, described({"const": 0}, enum=[{}])),
        ({**OBJECT, "const": {"a": 1}}, described(CLOSED, const={"a": 1})),
        (
            array(prefixItems=[STRING], items=NULL, maxItems=1),
            array(
                items={"anyOf": [STRING, NULL]},
                description='{"prefixItems": [{"type": "string"}], "maxItems": 1}',
            ),
        ),
        (
            {"type": ["object", "null"], "properties": {}, "description": "D"},
            {"description": "D", "anyOf": [CLOSED, NULL]},
        ),
        ({"properties": {}}, CLOSED),
        ({**OBJECT, "required": ["b"]}, CLOSED),
        (
            {**OBJECT, "anyOf": [{"required": ["b"]}]},
            described(CLOSED, anyOf=[{"required": ["b"]}]),
        ),
        ({"$ref": "#/$defs/A", "title": "T"}, {"$ref": "#/$defs/A"}),
        ({"$ref": "#/$defs/A", "description": "D"}, closed(x=STRING) | {"description": "D"}),
        (
            {"allOf": [{"$ref": "#/$defs/A"}, of(y=STRING)], "description": "D"},
            closed(x=STRING, y=STRING) | {"description": "D", "required": ["y"]},
        ),
        (
            {"allOf": [{"title": "T", "type": "string"}, {"title": "U"}, {"description": "D"}]},
            {"title": "T", "type": "string", "description": "D"},
        ),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_schema_is_rewritten_into_the_subset(part: Json, expected: Json) -> None:
    assert fitted(part, A={"type": "object", "properties": {"x": STRING}}) == expected


@pytest.mark.parametrize(
    "part",
    [
        *({}, {"type": "any"}, {"type": {}}, {"type": [{}]}, {"type": []}),
        *({"enum": [{"a": 1}]}, {"anyOf": []}, array(), array(prefixItems=[])),
        *({"type": "object"}, {**OBJECT, "additionalProperties": True}),
        *({**OBJECT, "patternProperties": {"^x": {}}}, {**OBJECT, "required": "x"}),
        {"type": "object", "properties": 5, "additionalProperties": False},
        *({"allOf": [STRING, {"type": "integer"}]}, {"allOf": 5}, {"allOf": [5]}),
        *({"allOf": [{"required": 5}]}, {"allOf": [{"properties": [5]}]}),
        {"allOf": [{"$ref": "#/$defs/A"}, {"properties": {"x": CLOSED}}]},
        *({"$ref": "https://example.com/a.json"}, {"$ref": "#/$defs/missing"}, {"$ref": {}}),
        # two definitions of one name
        {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A/properties/A"}]},
    ],
    ids=lambda part: json.dumps(part)[:40],
)
def test_schema_beyond_the_subset_is_unfit(part: Json) -> None:
    definition = {"type": "object", "properties": {"x": STRING, "A": STRING}}
    assert fitted(part, A=definition) is None


@pytest.mark.parametrize(
    "definition",
    [
        *({"$ref": "#"}, {"$ref": "#/$defs/A"}, {"allOf": [{"$ref": "#/$defs/A"}]}),
        of(next={"anyOf": [{"$ref": "#/$defs/A"}, NULL]}),
        of(next={"$ref": "#/$defs/A", "description": "D"}),
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
    [{"description": "x" * 100_000}, {"minLength": [0] * 50_000}, {"enum": ["a"] * 50_000}],
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
        nested = array(prefixItems=[nested])
    assert fitted(nested) is None


def strict_tools(
    *schemas: Json,
    **more: Any,  # Any: JSON
) -> tuple[list[bool], Json, tuple[str, ...]]:
    """Whether each tool stays strict, the body, and the names of what was dropped."""
    tools = [
        {"type": "function", "function": {"name": f"t{n}", "strict": True, "parameters": schema}}
        for n, schema in enumerate(schemas)
    ]
    translation = translate(tools=tools, **more)
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
    assert (stays, ignored) == (strict, ("tools.strict",))
    for tool, schema in zip(body["tools"], schemas, strict=True):
        assert "strict" in tool or tool["input_schema"] == {"type": "object", **schema}


def test_format_is_fitted_before_the_tools() -> None:
    described = {"name": "x", "schema": optional(MAX_OPTIONAL), "strict": True}
    response_format = {"type": "json_schema", "json_schema": described}
    stays, body, ignored = strict_tools(optional(1), of(), response_format=response_format)
    assert stays == [False, True]
    assert body["output_config"]["format"]["type"] == "json_schema"
    assert ignored == ("tools.strict",)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str | None = Field(None, pattern=r"\bx", description="Whose?")


class Cat(BaseModel):
    kind: Literal["cat"]
    friend: Dog = Field(description="The first one.")


class Household(BaseModel):
    pet: Cat | Dog = Field(discriminator="kind")
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


def schemas(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    names = st.sampled_from(["a", "b"])
    values: dict[str, st.SearchStrategy[object]] = {
        "type": st.sampled_from([*sorted(TYPES), ["string", "null"], ["object", "null"]]),
        "properties": st.dictionaries(names, inner),
        "required": st.lists(names),
        "additionalProperties": st.booleans(),
        "$ref": st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#/properties/a"]),
        "enum": st.lists(st.text(max_size=3) | st.none() | inner, max_size=3),
        "format": st.sampled_from(["date", "byte"]),
        "pattern": st.text("a(?=)\\1{9}", max_size=6),
    }
    values |= dict.fromkeys(["anyOf", "oneOf", "allOf", "prefixItems"], st.lists(inner, max_size=3))
    others = ["const", "items", "minItems", "minimum", "default", "title", "description", "not"]
    values |= dict.fromkeys(others, st.integers(0, 2) | inner)
    return st.fixed_dictionaries({}, optional=values)


SCHEMAS = st.recursive(st.none() | st.booleans() | st.just(STRING), schemas, max_leaves=8)
PROPERTIES = st.dictionaries(st.sampled_from(["a", "b"]), SCHEMAS)


@holds_of(PROPERTIES, PROPERTIES)
def test_any_schema_is_in_the_subset_or_unfit(properties: Json, definitions: Json) -> None:
    whole = Grammar().fit({"type": "object", "properties": properties, "$defs": definitions})
    if whole is not None:
        assert_in_subset(whole, whole.get("$defs", {}))
        for definition in whole.get("$defs", {}).values():
            assert_in_subset(definition, whole["$defs"])
