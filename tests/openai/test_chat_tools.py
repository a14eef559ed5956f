"""Tools of chat completions, the choice among them, and legacy functions."""

from __future__ import annotations

import json

import pytest
from chat_requests import (
    ALWAYS_THINKS,
    HI,
    OTHER,
    PLAIN,
    TOOL,
    Json,
    assistant,
    call,
    function_call,
    function_result,
    result,
    sent,
    system,
    translate,
)


def tool(name: str, **more: object) -> Json:
    return {"type": "function", "function": {"name": name, **more}}


def test_tools_are_translated() -> None:
    strict = tool("clock", strict=True, parameters={"properties": {}})
    assert sent(tools=[TOOL, strict, tool("bare", parameters=None)])["tools"] == [
        {
            "name": "weather",
            "description": "Tells the weather.",
            "input_schema": TOOL["function"]["parameters"],
        },
        {
            "name": "clock",
            "input_schema": {"type": "object", "properties": {}, "additionalProperties": False},
            "strict": True,
        },
        {"name": "bare", "input_schema": {"type": "object", "properties": {}}},
    ]


def test_tool_that_cannot_be_strict_is_plain_and_named() -> None:
    """Other schemas that do not fit, and tools over a limit: see test_chat_schema."""
    schema = {"type": "object", "properties": {}}
    translation = translate(tools=[tool("a", strict=True, parameters=schema)], able=PLAIN)
    assert json.loads(translation.body)["tools"] == [{"name": "a", "input_schema": schema}]
    assert translation.ignored == ("tools.strict",)


def test_tool_listed_twice_counts_once() -> None:
    translation = translate(tools=[TOOL, OTHER, TOOL], functions=[OTHER["function"]])
    assert not translation.legacy_functions
    body = json.loads(translation.body)
    assert [tool["name"] for tool in body["tools"]] == ["weather", "clock"]


def test_tools_are_made_up_for_calls_without_them() -> None:
    body = sent(HI, assistant(None, call("a"), call("b")), result("a"), result("b"))
    assert [tool["name"] for tool in body["tools"]] == ["weather"]
    assert body["tool_choice"] == {"type": "none"}


@pytest.mark.parametrize(
    ("wanted", "choice"),
    [
        (None, None),
        ("none", {"type": "none"}),
        ("auto", {"type": "auto"}),
        ("required", {"type": "any"}),
        (OTHER, {"type": "tool", "name": "clock"}),
    ],
)
def test_choice_is_translated_with_or_without_parallel_calls(
    wanted: object, choice: Json | None
) -> None:
    fields: Json = {"tools": [TOOL, OTHER], "tool_choice": wanted}
    single = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    single = {"type": "none"} if wanted == "none" else single
    for parallel, expected in ((None, choice), (True, choice), (False, single)):
        body = sent(**fields, parallel_tool_calls=parallel)
        assert body.get("tool_choice") == expected
        assert len(body["tools"]) == 2
    if wanted in ("none", "auto"):  # without tools there is no choice
        assert "tool_choice" not in sent(tool_choice=wanted, tools=[], parallel_tool_calls=False)


@pytest.mark.parametrize(("mode", "kind"), [("auto", "auto"), ("required", "any")])
def test_only_allowed_tools_go_upstream(mode: str, kind: str) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [OTHER]}}
    body = sent(tools=[TOOL, OTHER], tool_choice=choice)
    assert [tool["name"] for tool in body["tools"]] == ["clock"]
    assert body["tool_choice"] == {"type": kind}


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (OTHER, "\nCall the tool clock now."),
        ("required", "\nCall at least one of the tools now."),
        ("none", ""),
    ],
)
def test_model_that_cannot_be_forced_is_asked_to_call(wanted: object, sentence: str) -> None:
    fields: Json = {"tools": [TOOL, OTHER], "tool_choice": wanted, "parallel_tool_calls": False}
    translation = translate(system("Be."), HI, able=ALWAYS_THINKS, **fields)
    body = json.loads(translation.body)
    auto = {"type": "auto", "disable_parallel_tool_use": True}
    assert body["system"] == f"Be.{sentence}"
    assert body["tool_choice"] == (auto if sentence else {"type": "none"})
    assert translation.ignored == (("tool_choice",) if sentence else ())


def test_legacy_functions_are_tools_with_one_call() -> None:
    schema = {"type": "object", "properties": {}}
    translation = translate(
        HI,
        *(function_call("weather", arguments="{}"), function_result("weather")),
        *(function_call("weather", arguments=""), function_result("weather")),
        functions=[{"name": "weather", "parameters": schema}],
        function_call={"name": "weather"},
    )
    body = json.loads(translation.body)
    assert translation.legacy_functions
    assert body["tools"] == [{"name": "weather", "input_schema": schema}]
    assert body["tool_choice"] == {
        "type": "tool",
        "name": "weather",
        "disable_parallel_tool_use": True,
    }
    used = [turn["content"][0] for turn in body["messages"][1:]]
    first, second = used[0]["id"], used[2]["id"]
    assert [used[1]["tool_use_id"], used[3]["tool_use_id"]] == [first, second]
    assert first != second
