"""The tools of a Responses request: what goes upstream, and what is refused."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from openai.types.responses import ToolParam
from openai.types.responses.response_create_params import ToolChoice
from tool_requests import CLOCK, RUN, SCHEMA, WEATHER, Json, namespace, offered, refused

from tornadoproxy.openai.models import Capabilities
from tornadoproxy.openai.responses.names import upstream_name
from tornadoproxy.openai.responses.tool_choice import CHOICES
from tornadoproxy.openai.responses.tools import TOOLS
from tornadoproxy.openai.responses.translation import Origin, ToolKind
from tornadoproxy.openai.treatment import Treatment

FUNCTION, CUSTOM = ToolKind.FUNCTION, ToolKind.CUSTOM
PLAIN = Capabilities(structured_outputs=False)
SEARCH: Json = {"type": "web_search"}
CONTAINER: Json = {"type": "container_auto"}
DROPPED: Json = {"allowed_callers": ["programmatic"], "async": True, "output_schema": {}}


def types_of(union: object) -> set[str]:
    """Return the values of ``type`` in a union of typed dictionaries, and its plain words."""
    found: set[str] = set()
    for member in get_args(union):
        if get_origin(member) is Literal:
            found.update(get_args(member))
        else:
            found.update(get_args(get_type_hints(member)["type"]))
    return found


def test_every_tool_and_choice_of_openais_has_a_treatment() -> None:
    assert TOOLS.keys() == types_of(ToolParam)
    choices = types_of(ToolChoice)
    assert choices <= CHOICES.keys()
    # tools that a client may choose by their type, though the types do not list it
    assert CHOICES.keys() - choices <= TOOLS.keys()


def test_function_is_a_tool() -> None:
    strict = {**CLOCK, "name": "strict", "strict": True, "parameters": {"properties": {}}}
    found = offered({**WEATHER, "description": "Tells it.", "strict": False}, CLOCK, strict)
    assert found.tools == [
        {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA, "strict": False},
        {"name": "clock", "input_schema": {"type": "object", "properties": {}}},
        {
            "name": "strict",
            "input_schema": {"type": "object", "properties": {}, "additionalProperties": False},
            "strict": True,
        },
    ]
    assert found.origins["clock"] == Origin(FUNCTION, "clock")
    assert (found.choice, found.ignored) == (None, [])


def test_tool_that_cannot_be_strict_is_plain_and_named() -> None:
    found = offered({**WEATHER, "strict": True}, able=PLAIN)
    assert found.tools == [{"name": "weather", "input_schema": SCHEMA}]
    assert found.ignored == ["tools.strict"]


def test_custom_tool_takes_its_text_as_input() -> None:
    found = offered({**RUN, "format": {"type": "text"}, "cache_control": {"type": "ephemeral"}})
    [tool] = found.tools
    assert tool["name"] == "run"
    assert tool["description"] == "Runs code."
    assert tool["input_schema"]["required"] == ["input"]
    assert tool["input_schema"]["properties"]["input"]["type"] == "string"
    assert tool["cache_control"] == {"type": "ephemeral"}
    assert found.origins == {"run": Origin(CUSTOM, "run")}
    assert found.ignored == []


@pytest.mark.parametrize(("syntax", "word"), [("lark", "Lark"), ("regex", "regular expression")])
def test_grammar_is_described_and_named(syntax: str, word: str) -> None:
    grammar = {"type": "grammar", "syntax": syntax, "definition": 'start: "x"'}
    found = offered({**RUN, "format": grammar}, {"type": "custom", "name": "b", "format": grammar})
    assert found.tools[0]["description"].startswith("Runs code.\n\n")
    for tool in found.tools:
        assert word in tool["description"]
        assert tool["description"].endswith('\nstart: "x"')
    assert set(found.ignored) == {"tools.format"}


def test_fields_that_say_nothing_to_claude_are_named() -> None:
    nothing = {"allowed_callers": ["direct"], "async": False, "output_schema": None}
    assert offered({**WEATHER, **nothing, "defer_loading": True}).ignored == []
    expected = [f"tools.{name}" for name in DROPPED]
    assert offered({**WEATHER, **DROPPED}).ignored == expected
    assert offered({**RUN, **DROPPED}).ignored == expected


def test_tools_of_a_namespace_get_its_name() -> None:
    found = offered(CLOCK, namespace("crm", WEATHER, RUN, CLOCK))
    assert found.names == ["clock", "crm__weather", "crm__run", "crm__clock"]
    assert found.origins["crm__weather"] == Origin(FUNCTION, "weather", "crm")
    assert found.origins["crm__run"] == Origin(CUSTOM, "run", "crm")
    assert found.tools[1]["input_schema"] == SCHEMA


def test_namespace_is_described_once() -> None:
    found = offered(namespace("crm", CLOCK, RUN, description="Customers."))
    assert found.tools[0]["description"] == "About all tools crm__...: Customers."
    assert found.tools[1]["description"] == "Runs code."
    found = offered(namespace("crm", RUN, description="Customers."))
    assert found.tools[0]["description"] == "About all tools crm__...: Customers.\n\nRuns code."


@pytest.mark.parametrize("name", ["x" * 129, "a.b", "größe", " ", "\ud83d"])
def test_name_that_the_upstream_refuses_gets_a_hash(name: str) -> None:
    found = offered({**CLOCK, "name": name}, {**CLOCK, "name": f"{name}."})
    assert list(found.origins.values()) == [Origin(FUNCTION, name), Origin(FUNCTION, f"{name}.")]
    assert found.names[0] == upstream_name(name) != name
    assert len(upstream_name("x" * 100, "y" * 100)) == 128


def test_tools_that_share_a_name_upstream_stay_apart() -> None:
    plain = {**CLOCK, "name": "crm__run"}
    found = offered(plain, namespace("crm", RUN, {**CLOCK, "name": "run"}))
    assert found.names[0] == "crm__run"
    assert all(name.startswith("crm__run_") for name in found.names[1:])
    assert [each.kind for each in found.origins.values()] == [FUNCTION, CUSTOM, FUNCTION]
    found = offered({**CLOCK, "name": "web_search"}, SEARCH)
    assert found.names[0].startswith("web_search_")
    assert found.names[1] == "web_search"
    assert found.origins["web_search"].kind is ToolKind.WEB_SEARCH


def test_tool_that_is_listed_later_keeps_its_first_place() -> None:
    changed = {**CLOCK, "description": "Newer."}
    found = offered(CLOCK, WEATHER, later=[RUN, changed, WEATHER, RUN])
    assert found.names == ["clock", "weather", "run"]
    assert found.tools[0]["description"] == "Newer."
    before = offered(CLOCK, WEATHER, SEARCH, later=[namespace("crm", RUN, description="C.")])
    after = offered(
        *(CLOCK, WEATHER, SEARCH),
        later=[namespace("crm", RUN, description="C."), namespace("crm", CLOCK, description="C.")],
    )
    assert after.tools[: len(before.tools)] == before.tools
    assert len(after.tools) == len(before.tools) + 1


def test_search_for_tools_is_a_tool_if_the_client_searches() -> None:
    found = offered({"type": "tool_search", "execution": "client"}, CLOCK)
    assert found.tools[0]["input_schema"]["required"] == ["query"]
    assert found.tools[0]["description"]
    assert found.origins["tool_search"].kind is ToolKind.TOOL_SEARCH
    own = {"type": "tool_search", "execution": "client", "description": "Finds."}
    found = offered({**own, "parameters": SCHEMA})
    assert found.tools == [{"name": "tool_search", "description": "Finds.", "input_schema": SCHEMA}]
    found = offered({"type": "tool_search"}, {**CLOCK, "defer_loading": True})
    assert (found.names, found.ignored) == (["clock"], ["tools.tool_search"])


@pytest.mark.parametrize(
    ("tool", "required"),
    [
        ({"type": "shell"}, ["commands"]),
        ({"type": "shell", "environment": {"type": "local"}}, ["commands"]),
        ({"type": "local_shell"}, ["command"]),
        ({"type": "apply_patch"}, ["type", "path"]),
    ],
)
def test_tool_that_the_client_runs_is_a_function(tool: Json, required: list[str]) -> None:
    found = offered(tool)
    assert found.names == [tool["type"]]
    assert found.origins[tool["type"]] == Origin(ToolKind[tool["type"].upper()], tool["type"])
    assert found.tools[0]["input_schema"]["required"] == required
    assert ("V4A" in found.tools[0]["description"]) == (tool["type"] == "apply_patch")


def test_skills_of_a_shell_are_described() -> None:
    skill = {"name": "pdf", "description": "Fills forms.", "path": "skills/pdf"}
    local = {"type": "shell", "environment": {"type": "local", "skills": [skill]}}
    [tool] = offered(local).tools
    assert tool["description"].endswith("\n- pdf (skills/pdf): Fills forms.")


def test_web_search_is_the_upstreams() -> None:
    for kind in (name for name in TOOLS if name.startswith("web_search")):
        assert offered({"type": kind}).tools == [
            {"type": "web_search_20250305", "name": "web_search"}
        ]
    bern = {"type": "approximate", "city": "Bern", "country": "CH"}
    location = {**bern, "region": "", "timezone": None}
    found = offered(
        {**SEARCH, "filters": {"allowed_domains": ["a.org"], "blocked_domains": None}}
        | {"user_location": location, "external_web_access": True, "search_context_size": "medium"},
        max_tool_calls=3,
    )
    assert found.tools[0]["allowed_domains"] == ["a.org"]
    assert found.tools[0]["max_uses"] == 3
    assert found.tools[0]["user_location"] == bern
    assert found.ignored == []
    found = offered(
        {**SEARCH, "filters": {"blocked_domains": ["a.org"]}, "search_context_size": "high"}
        | {"user_location": {"type": "approximate"}, "search_content_types": ["text", "image"]}
    )
    assert found.tools[0].keys() == {"type", "name", "blocked_domains"}
    assert found.ignored == ["tools.search_context_size", "tools.search_content_types"]


def test_web_search_that_is_not_possible_is_left_out_and_named() -> None:
    for found in (
        offered(CLOCK, SEARCH, web_search=False, max_tool_calls=0),
        offered(CLOCK, {**SEARCH, "external_web_access": False}),
    ):
        assert (found.names, found.ignored) == (["clock"], ["tools.web_search"])


@pytest.mark.parametrize("kind", [name for name in TOOLS if TOOLS[name][0] is Treatment.REFUSED])
def test_tool_that_does_not_exist_here_is_refused_by_name(kind: str) -> None:
    error = refused(CLOCK, {"type": kind})
    assert error.param == "tools[1].type"
    assert kind in str(error)
    assert TOOLS[kind][1] in str(error)
    assert refused(later=[{"type": kind}]).param == "input[0].tools[0].type"


@pytest.mark.parametrize(
    ("listed", "param"),
    [
        ([7], "tools[0]"),
        ([{"type": "magic"}], "tools[0].type"),
        ([{"type": "function"}], "tools[0].name"),
        ([{**CLOCK, "name": ""}], "tools[0].name"),
        ([{**CLOCK, "parameters": {"type": "array"}}], "tools[0].parameters.type"),
        ([CLOCK, {**CLOCK, "description": "Other."}], "tools[1].name"),
        ([{**RUN, "format": {"type": "json"}}], "tools[0].format.type"),
        ([{**RUN, "format": {"type": "grammar", "syntax": "x"}}], "tools[0].format.syntax"),
        ([namespace("")], "tools[0].name"),
        ([{**namespace("a"), "tools": None}], "tools[0].tools"),
        ([namespace("a", SEARCH)], "tools[0].tools[0].type"),
        (
            [{"type": "shell", "environment": {"type": "container_auto"}}],
            "tools[0].environment.type",
        ),
        ([{**SEARCH, "external_web_access": "no"}], "tools[0].external_web_access"),
        ([{**SEARCH, "user_location": {"city": 1}}], "tools[0].user_location.city"),
        (
            [{**SEARCH, "filters": {"allowed_domains": ["a"], "blocked_domains": ["b"]}}],
            "tools[0].filters",
        ),
    ],
)
def test_invalid_tool_is_refused(listed: list[Any], param: str) -> None:
    assert refused(*listed).param == param


def test_limit_of_calls_must_be_a_number_above_zero() -> None:
    assert refused(SEARCH, max_tool_calls=0).param == "max_tool_calls"
    assert offered(CLOCK, max_tool_calls=3).ignored == []
