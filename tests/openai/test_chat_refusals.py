"""Invalid chat completions requests: each is refused with 400 and the name of the place."""

from __future__ import annotations

from typing import Any

import pytest
from chat_requests import (
    HI,
    OTHER,
    THOUGHT,
    TOOL,
    Json,
    assistant,
    call,
    function_call,
    function_result,
    image,
    refused,
    result,
    system,
    text,
    user,
)

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai import chat_completions

PNG, PDF = "iVBORw0KGgoAAAAN", "JVBERi0xLjcKJeLj"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("model", [7, "", None]),
        ("messages", [None, [], {}, "Hi"]),
        ("max_tokens", [0, -1, 1.5, "5", True, float("inf")]),
        ("max_completion_tokens", [0]),
        ("temperature", [-0.1, 2.1, "1", True, 10**400]),
        ("top_p", [1.1, []]),
        ("top_k", [-1, 0.5]),
        ("n", [0, "1", 2]),
        ("logprobs", ["no", True]),
        ("top_logprobs", [3]),
        ("audio", [{"voice": "alloy", "format": "wav"}]),
        ("modalities", ["text", ["text", "audio"]]),
        ("stream", ["yes"]),
        ("stream_options", [{"include_usage": True}]),
        ("stop", [7]),
        ("user", [7]),
        ("safety_identifier", [7]),
        ("metadata", [7]),
        ("prompt_cache_options", [7]),
        ("service_tier", [7]),
        ("thinking", ["on"]),
        ("output_config", [[]]),
        ("reasoning_effort", ["most", 7]),
        ("response_format", ["json"]),
        ("parallel_tool_calls", ["yes", 1]),
        ("tools", [{}, "", [TOOL, {**OTHER, "function": {"name": "weather"}}]]),
        ("tool_choice", ["required"]),  # without tools
        ("function_call", [{"name": "a"}]),
    ],
)
def test_invalid_or_impossible_field_is_refused(name: str, values: list[object]) -> None:
    for value in values:
        document = {"model": "claude-test", "messages": [HI], name: value}
        with pytest.raises(InvalidRequest) as caught:
            chat_completions.translate_request(document)
        assert (caught.value.status, caught.value.param) == (400, name)
    if name in {"model", "messages"}:
        del document[name]
        with pytest.raises(InvalidRequest):
            chat_completions.translate_request(document)


def formatted(**more: object) -> Json:
    return {"response_format": {"type": "json_schema", **more}}


def tool(**function: object) -> Json:
    return {"tools": [TOOL, {"type": "function", "function": {"name": "a", **function}}]}


def choice(kind: str, **more: object) -> Json:
    return {"tools": [TOOL], "tool_choice": {"type": kind, **more}}


def allowed(mode: str, *tools: Json) -> Json:
    return choice("allowed_tools", allowed_tools={"mode": mode, "tools": list(tools)})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ["a", 7]}, "stop[1]"),
        ({"metadata": {"user_id": 7}}, "metadata.user_id"),
        ({"stream": True, "stream_options": {"include_usage": 7}}, "stream_options.include_usage"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        (formatted(), "response_format.json_schema"),
        (formatted(json_schema={"name": "a"}), "response_format.json_schema.schema"),
        ({"tools": ["a"]}, "tools[0]"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        (tool(name=None), "tools[1].function.name"),
        (tool(name="a.b"), "tools[1].function.name"),
        (tool(name="a" * 129), "tools[1].function.name"),
        (tool(description=7), "tools[1].function.description"),
        (tool(parameters=[]), "tools[1].function.parameters"),
        (tool(parameters={"type": "array"}), "tools[1].function.parameters.type"),
        (tool(strict="yes"), "tools[1].function.strict"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        (choice("custom", custom={"name": "a"}), "tool_choice.type"),
        (choice("function"), "tool_choice.function"),
        (choice("function", function={}), "tool_choice.function.name"),
        (choice("function", function={"name": "stock"}), "tool_choice.function.name"),
        (choice("allowed_tools"), "tool_choice.allowed_tools"),
        (allowed("x", TOOL), "tool_choice.allowed_tools.mode"),
        (allowed("auto"), "tool_choice.allowed_tools.tools"),
        (allowed("auto", OTHER), "tool_choice.allowed_tools.tools[0].function.name"),
    ],
)
def test_invalid_part_of_a_field_is_refused(fields: Json, param: str) -> None:
    assert refused(**fields).param == param


def thought(**fields: object) -> Json:
    return assistant("a", thinking_blocks=[{**THOUGHT, **fields}])


URLS = [
    *("", "ftp://a.example/b.png", "/etc/passwd", "data:image/png,AAAA", "data:;base64,A"),
    *("data:image/png;base64,", "data:image/png;base64,AA AA", "data:image/png;base64,äöüß"),
    *("data:image/bmp;base64,AAAA", f"data:image/png;base64,{PDF}"),
]
FILES = [
    *("", "not base64", "data:application/pdf,AAAA", f"data:image/png;base64,{PNG}"),
    *("data:application/zip;base64,AAAA", "//4="),  # not UTF-8
]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("Hi", ""),
        ({}, ".role"),
        ({"role": ["owner"], "content": "Hi"}, ".role"),
        (user(7), ".content"),
        (user(text("a")), ".content"),
        (user(["a"]), ".content[0]"),
        (user([{"type": "text", "text": None}]), ".content[0].text"),
        (user([{"type": ["text"]}]), ".content[0].type"),
        (user([{"type": "refusal", "refusal": "no"}]), ".content[0].type"),
        (system([image("https://a.example/")]), ".content[0].type"),
        (assistant([image("https://a.example/")]), ".content[0].type"),
        *((user([image(url)]), ".content[0].image_url.url") for url in URLS),
        *(
            (user([{"type": "file", "file": {"file_data": each}}]), ".content[0].file.file_data")
            for each in FILES
        ),
        ({**HI, "name": 7}, ".name"),
        (assistant(refusal=7), ".refusal"),
        (assistant(audio={"id": "a"}), ".audio"),
        ({**HI, "cache_control": "yes"}, ".cache_control"),
        (assistant("a", thinking_blocks="Hm."), ".thinking_blocks"),
        (assistant("a", thinking_blocks=["Hm."]), ".thinking_blocks[0]"),
        (thought(type=["thinking"]), ".thinking_blocks[0].type"),
        (thought(type="text"), ".thinking_blocks[0].type"),
        (thought(signature=7), ".thinking_blocks[0].signature"),
        (thought(text_before=-1), ".thinking_blocks[0].text_before"),
        (thought(calls_before="1"), ".thinking_blocks[0].calls_before"),
    ],
)
def test_invalid_message_is_refused(message: Any, param: str) -> None:  # Any: JSON
    assert refused(message).param == f"messages[0]{param}"


A, B = call("a"), call("b")
CALL = "messages[1].tool_calls[0]"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([result("a")], "messages[1].tool_call_id"),
        ([assistant(None, A), result("a"), result("a")], "messages[3].tool_call_id"),
        ([assistant(None, A), result("b")], "messages[2].tool_call_id"),
        ([assistant(None, A)], CALL),
        ([assistant(None, A), HI, result("a")], CALL),
        ([assistant(None, A, B), result("a"), assistant("x")], "messages[1].tool_calls[1]"),
        ([assistant(None, A, A)], "messages[1].tool_calls[1].id"),
        ([assistant(None, call(""))], f"{CALL}.id"),
        ([assistant(None, {"id": "a", "function": {}})], f"{CALL}.function.name"),
        ([assistant(None, {"id": "a"})], f"{CALL}.function"),
        ([assistant(None, {**A, "type": "custom"})], f"{CALL}.type"),
        ([assistant(None, call("a", arguments=7))], f"{CALL}.function.arguments"),
        ([assistant(tool_calls={})], "messages[1].tool_calls"),
        ([assistant(tool_calls=["a"])], CALL),
        ([{"role": "tool", "content": "x"}], "messages[1].tool_call_id"),
        ([function_result("f")], "messages[1].name"),
        ([function_call("f"), function_result("g")], "messages[2].name"),
        ([function_call("f"), HI], "messages"),
        ([assistant(function_call="f")], "messages[1].function_call"),
    ],
)
def test_invalid_or_unanswered_call_is_refused(messages: list[Json], param: str) -> None:
    assert refused(HI, *messages).param == param


def test_error_quotes_little_of_the_client() -> None:
    long = "x" * 100_000
    for message in (result(long), assistant(None, call(long)), function_call(long)):
        assert len(refused(HI, message).message) < 300
