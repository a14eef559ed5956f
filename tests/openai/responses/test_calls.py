"""Calls of tools and their outputs, as items of the Responses API."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from openai.types.responses import ResponseInputItemParam, ResponseOutputItem
from pydantic import TypeAdapter
from tool_requests import Json

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai.responses.calls import (
    CALLS,
    OUTPUTS,
    call_of_item,
    item_of_call,
    output_of_item,
)
from tornadoproxy.openai.responses.names import name_among
from tornadoproxy.openai.responses.translation import Origin, ToolKind

SENT: TypeAdapter[Any] = TypeAdapter(ResponseOutputItem)
TAKEN: TypeAdapter[Any] = TypeAdapter(ResponseInputItemParam)

SHELL = Origin(ToolKind.SHELL, "shell")
LOCAL_SHELL = Origin(ToolKind.LOCAL_SHELL, "local_shell")
PATCH = Origin(ToolKind.APPLY_PATCH, "apply_patch")
FIND = Origin(ToolKind.TOOL_SEARCH, "tool_search")

CASES: list[tuple[Origin, Json, Json]] = [
    (
        Origin(ToolKind.FUNCTION, "weather"),
        {"city": "Bern", "n": [1.5, None]},
        {"type": "function_call", "arguments": '{"city":"Bern","n":[1.5,null]}', "name": "weather"},
    ),
    (
        Origin(ToolKind.FUNCTION, "weather", "crm"),
        {},
        {"type": "function_call", "arguments": "{}", "name": "weather", "namespace": "crm"},
    ),
    (
        Origin(ToolKind.CUSTOM, "run", "crm"),
        {"input": 'print("é😀")\n'},
        {
            "type": "custom_tool_call",
            "input": 'print("é😀")\n',
            "name": "run",
            "namespace": "crm",
        },
    ),
    (
        FIND,
        {"query": "agents", "limit": 3},
        {
            "type": "tool_search_call",
            "arguments": {"query": "agents", "limit": 3},
            "execution": "client",
        },
    ),
    (
        SHELL,
        {"commands": ["ls", "wc -l"], "timeout_ms": 500, "max_output_length": 80},
        {
            "type": "shell_call",
            "action": {"commands": ["ls", "wc -l"], "timeout_ms": 500, "max_output_length": 80},
        },
    ),
    (SHELL, {"commands": ["ls"]}, {"type": "shell_call", "action": {"commands": ["ls"]}}),
    (
        LOCAL_SHELL,
        {"command": ["ls", "-l"], "working_directory": "/", "env": {"A": "b"}, "user": "me"},
        {
            "type": "local_shell_call",
            "action": {
                "type": "exec",
                "command": ["ls", "-l"],
                "working_directory": "/",
                "env": {"A": "b"},
                "user": "me",
            },
        },
    ),
    (
        LOCAL_SHELL,
        {"command": ["ls"], "timeout_ms": 9},
        {
            "type": "local_shell_call",
            "action": {"type": "exec", "command": ["ls"], "env": {}, "timeout_ms": 9},
        },
    ),
    (
        PATCH,
        {"type": "update_file", "path": "a.py", "diff": "@@\n-a\n+b\n"},
        {
            "type": "apply_patch_call",
            "operation": {"type": "update_file", "path": "a.py", "diff": "@@\n-a\n+b\n"},
        },
    ),
    (
        PATCH,
        {"type": "delete_file", "path": "a.py"},
        {"type": "apply_patch_call", "operation": {"type": "delete_file", "path": "a.py"}},
    ),
]


def plain(tool_input: object) -> object:
    return json.loads(bytes(tool_input)) if isinstance(tool_input, msgspec.Raw) else tool_input


def blocks_of_item(item: Json) -> object:
    if item["type"] in CALLS:
        return call_of_item(item, "input[0]")
    return output_of_item(item, "input[0]", [])


@pytest.mark.parametrize(("origin", "tool_input", "fields"), CASES)
def test_call_becomes_an_item_and_comes_back(
    origin: Origin, tool_input: Json, fields: Json
) -> None:
    item = item_of_call(origin, "x_1", "toolu_1", tool_input, "completed")
    assert item == {"id": "x_1", "call_id": "toolu_1", "status": "completed", **fields}
    SENT.validate_python(item)
    TAKEN.validate_python(item)
    name, returned = call_of_item(item, "input[0]")
    assert (name, plain(returned)) == (name_among(origin, {}), tool_input)
    streamed = json.dumps(tool_input, separators=(",", ":"))
    assert item_of_call(origin, "x_1", "toolu_1", streamed, "completed") == (
        {**item, "arguments": streamed} if "arguments" in item and origin is not FIND else item
    )


@pytest.mark.parametrize("origin", {case[0]: None for case in CASES})
@pytest.mark.parametrize(
    "tool_input",
    [
        "",
        '{"type": "crea',
        *({}, [], None, {"input": 1, "commands": 7, "command": [1, "ls"], "timeout_ms": "x"}),
        {"type": {}, "path": 1, "diff": [], "env": {"a": 1}, "user": 5, "timeout_ms": True},
    ],
)
@pytest.mark.parametrize("status", ["in_progress", "completed", "incomplete"])
def test_input_of_another_form_gives_an_item_all_the_same(
    origin: Origin, tool_input: object, status: str
) -> None:
    item = item_of_call(origin, "x_1", "toolu_1", tool_input, status)
    SENT.validate_python(item)
    assert item["status"] in (status, "in_progress")
    assert call_of_item(item, "input[0]")[0] == name_among(origin, {})


def test_single_command_becomes_a_list() -> None:
    item = item_of_call(SHELL, "x_1", "toolu_1", {"commands": "ls"}, "completed")
    assert item["action"] == {"commands": ["ls"]}


def test_call_finds_the_tool_whose_name_another_has() -> None:
    first, second = Origin(ToolKind.FUNCTION, "crm__run"), Origin(ToolKind.CUSTOM, "run", "crm")
    hashed = name_among(second, {"crm__run": first})
    offered = {"crm__run": first, hashed: second}
    item = {"type": "custom_tool_call", "name": "run", "namespace": "crm", "input": ""}
    assert call_of_item(item, "input[0]", offered)[0] == hashed
    item = {"type": "function_call", "name": "crm__run", "namespace": "", "arguments": ""}
    assert call_of_item(item, "input[0]", offered) == ("crm__run", {})


def test_arguments_of_a_search_can_be_text() -> None:
    item = {"type": "tool_search_call", "arguments": '{"query": "a"}'}
    name, tool_input = call_of_item(item, "input[0]")
    assert (name, plain(tool_input)) == ("tool_search", {"query": "a"})


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "function_call"}, "input[0].name"),
        ({"type": "function_call", "name": "a", "arguments": {}}, "input[0].arguments"),
        ({"type": "function_call", "name": "a", "namespace": 1}, "input[0].namespace"),
        ({"type": "custom_tool_call", "name": "a", "input": {}}, "input[0].input"),
        ({"type": "tool_search_call", "arguments": []}, "input[0].arguments"),
        ({"type": "shell_call"}, "input[0].action"),
        ({"type": "apply_patch_call", "operation": "x"}, "input[0].operation"),
        ({"type": "function_call_output", "output": 1}, "input[0].output"),
        ({"type": "shell_call_output", "output": [{"stdout": "a"}]}, "input[0].output[0].stderr"),
        ({"type": "local_shell_call_output"}, "input[0].output"),
        ({"type": "apply_patch_call_output", "output": []}, "input[0].output"),
        ({"type": "tool_search_output"}, "input[0].tools"),
        ({"type": "tool_search_output", "tools": [{"name": 1}]}, "input[0].tools[0].name"),
    ],
)
def test_invalid_item_is_refused(item: Json, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        blocks_of_item(item)
    assert caught.value.param == param


EXIT: Json = {"type": "exit", "exit_code": 2}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"type": "function_call_output", "output": "fine"}, "fine"),
        ({"type": "function_call_output", "output": ""}, None),
        (
            {"type": "custom_tool_call_output", "output": [{"type": "input_text", "text": "a"}]},
            "a",
        ),
        ({"type": "local_shell_call_output", "output": '{"output": "a"}'}, '{"output": "a"}'),
        (
            {
                "type": "shell_call_output",
                "output": [
                    {"stdout": "a\n", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}},
                    {"stdout": "", "stderr": "b", "outcome": {"type": "timeout"}},
                ],
            },
            "a\nexit code: 0\nstderr:\nb\ntimed out",
        ),
        ({"type": "shell_call_output", "output": []}, None),
        ({"type": "apply_patch_call_output", "status": "completed"}, None),
        ({"type": "apply_patch_call_output", "status": "completed", "output": "ok"}, "ok"),
        (
            {"type": "apply_patch_call_output", "status": "failed", "output": "no"},
            "The patch failed.\nno",
        ),
        (
            {
                "type": "tool_search_output",
                "tools": [
                    {"type": "function", "name": "clock"},
                    {"type": "namespace", "name": "crm", "tools": [{"name": "run"}]},
                ],
            },
            "These tools can be called now: clock, crm__run",
        ),
        ({"type": "tool_search_output", "tools": []}, "No tool was found."),
    ],
)
def test_output_is_shown_to_the_model(item: Json, expected: str | None) -> None:
    found = output_of_item(item, "input[0]", [])
    assert found == ([{"type": "text", "text": expected}] if expected else [])


def test_output_can_hold_an_image() -> None:
    parts = [{"type": "input_image", "image_url": "https://a.org/a.png", "detail": "high"}]
    ignored: list[str] = []
    found = output_of_item({"type": "function_call_output", "output": parts}, "input[0]", ignored)
    assert found == [{"type": "image", "source": {"type": "url", "url": "https://a.org/a.png"}}]
    assert ignored == ["input_image.detail"]


def test_every_call_has_its_output() -> None:
    assert list(CALLS.values()) == list(OUTPUTS.values())
    assert len(CALLS) == len(OUTPUTS) == 6
