"""The command ``records``, and streams that are put together to show or redact them."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from in_process import Commands
from recording import CHAT, EVENTS, MESSAGE, recorded, start
from scene import Scene
from tornadoproxy_recorder import files, streams

from tornadoproxy.testing import (
    TEST_TOKEN,
    json_response,
    sse_response,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "records"


# -- streams, put together

TOOL = [
    {"type": "message_start", "message": {"id": "m", "content": [], "usage": {"input_tokens": 3}}},
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}},
    *(
        {"type": "content_block_delta", "index": 0, "delta": {"type": f"{name}_delta", name: text}}
        for name, text in (("thinking", "Hm"), ("thinking", "m."), ("signature", "sig"))
    ),
    {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "input": {}}},
    *(
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": text},
        }
        for text in ('{"a"', ": 1}")
    ),
    {"type": "content_block_stop", "index": 1},
    {"type": "content_block_delta", "index": 7, "delta": {"type": "text_delta", "text": "lost"}},
    {"type": "of_tomorrow", "x": 1},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
    {"type": "message_stop"},
]
CHUNKS: list[Any] = [
    {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "He"}}]},
    {"id": "c", "choices": [{"index": 0, "delta": {"content": "llo"}}]},
    *(
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **call}]}}]}
        for call in ({"id": "t", "function": {"name": "f", "arguments": "{"}},)
    ),
    {
        "choices": [
            {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}}
        ]
    },
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"total_tokens": 5}},
]


CUT = {"id": "r", "status": "in_progress"}
MESSAGE_ITEM = {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}
CALL = {"type": "function_call", "arguments": "{}"}
IN_MESSAGE = {"output_index": 0, "content_index": 0}
RESPONSE: list[dict[str, Any]] = [
    {"type": "response.created", "response": {**CUT, "output": []}},
    {"type": "response.output_item.added", "item": {"type": "message", "content": []}},
    {
        "type": "response.content_part.added",
        "part": {"type": "output_text", "text": ""},
        **IN_MESSAGE,
    },
    {"type": "response.output_text.delta", "delta": "Hel", **IN_MESSAGE},
    {"type": "response.output_text.delta", "delta": "lo", **IN_MESSAGE},
    {"type": "response.output_text.done", "text": "Hello", **IN_MESSAGE},
    {"type": "keepalive"},
    {"type": "response.output_item.added", "item": {"type": "function_call", "arguments": ""}},
    {"type": "error", "message": "so it is"},
    {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{}"},
    {"type": "response.output_item.done", "output_index": 1, "item": CALL},
    {"type": "response.failed", "response": {"id": "r", "status": "failed", "output": []}},
]
for number, each in enumerate(RESPONSE):
    each["sequence_number"] = number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "".join(f"event: x\r\ndata: {json.dumps(each)}\r\n\r\n" for each in TOOL),
            {
                "id": "m",
                "content": [
                    {"type": "thinking", "thinking": "Hmm.", "signature": "sig"},
                    {"type": "tool_use", "input": {"a": 1}},
                ],
                "usage": {"input_tokens": 3, "output_tokens": 9},
                "stop_reason": "tool_use",
                "events": TOOL[-4:-2],
            },
        ),
        (
            "".join(f"data: {json.dumps(each)}\n\n" for each in CHUNKS) + "data: [DONE]\n\n",
            {
                "id": "c",
                "usage": {"total_tokens": 5},
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {
                            "role": "assistant",
                            "content": "Hello",
                            "tool_calls": [
                                {
                                    "index": 0,
                                    "id": "t",
                                    "function": {"name": "f", "arguments": "{}"},
                                }
                            ],
                        },
                    }
                ],
            },
        ),
        (
            "".join(f"event: x\ndata: {json.dumps(each)}\n\n" for each in RESPONSE[:-2]),
            {**CUT, "output": [MESSAGE_ITEM, CALL], "events": [RESPONSE[-4]]},
        ),
        (
            "".join(f"event: x\ndata: {json.dumps(each)}\n\n" for each in RESPONSE),
            {**RESPONSE[-1]["response"], "events": [RESPONSE[-4]]},
        ),
        ('data: {"type": 1}\n\ndata: {"choices": 7}\n\ndata: []\n\nnonsense\n\ndata: {"ty', None),
    ],
)
def test_stream_is_put_together(text: str, expected: Any) -> None:
    found = streams.assembled(text)
    assert found == (expected or {"events": [{"type": 1}, {"choices": 7}]})


# -- the command


async def test_records_are_listed_shown_and_sent_again(
    scene: Scene, directory: Path, commands: Commands
) -> None:
    proxy = await start(scene, directory, RECORD_REDACT="never-there")
    scene.upstream.script(sse_response(EVENTS, headers={"Request-Id": "req_stream"}))
    await scene.ask("/v1/messages", {**MESSAGE, "stream": True}, headers={"X-Own": "it's"})
    scene.upstream.script(json_response({"type": "error"}, 400, headers={"Request-Id": "req_chat"}))
    await scene.ask(CHAT, {**MESSAGE, "model": "claude-haiku-4-5"}, headers={"X-Badge": "ada"})
    await recorded(proxy, directory)
    proxy = await start(scene, directory)

    async def run(*arguments: str, **more: str) -> tuple[int, str, str]:
        variables = {"RECORD_DIR": str(directory), "PORT": str(proxy.port), **more}
        return await asyncio.to_thread(commands.run, "records", *arguments, **variables)

    async def listed(*arguments: str) -> list[str]:
        _, output, _ = await run("list", "--format", "json", *arguments)
        return [each["request_id"] for each in json.loads(output)]

    assert await listed() == ["req_chat", "req_stream"]
    assert await listed("--limit", "1") == await listed("--principal", "ada") == ["req_chat"]
    assert await listed("--model", "claude-sonnet-5-5") == await listed("--status", "200")
    assert await listed("--status", "200") == ["req_stream"]
    assert await listed("--since", "1h", "--principal", "nobody") == []

    status, output, _ = await run("show", "req_s")
    assert (status, "A secret-12345 word" in output) == (0, True)
    assert "POST /v1/messages" in output
    _, output, _ = await run("show", "--part", "request", "last")
    assert json.loads(output)["model"] == "claude-haiku-4-5"

    _, output, _ = await run("curl", "req_stream")
    words = shlex.split(output)
    assert f"http://127.0.0.1:{proxy.port}/v1/messages" in words
    assert {"x-api-key: $AUTH_TOKEN", "X-Own: it's"} <= set(words)
    assert json.loads(words[-1]) == {**MESSAGE, "stream": True}
    assert '"Authorization: Bearer $AUTH_TOKEN"' in (await run("curl", "req_chat"))[1]

    scene.upstream.script(sse_response(EVENTS))
    status, output, errors = await run("replay", "req_stream", AUTH_TOKEN=f"{TEST_TOKEN} other")
    assert (status, output.encode()) == (0, b"".join(EVENTS))
    assert errors == "HTTP 200\n"
    assert scene.upstream.requests[-1].json() == {**MESSAGE, "stream": True}
    status, output, _ = await run("replay", "req_stream", AUTH_TOKEN="wrong-token")
    assert (status, json.loads(output)["error"]["type"]) == (1, "authentication_error")


def write(
    directory: Path, name: str, body: dict[str, object], *headers: list[str], method: str = "POST"
) -> None:
    """Write an exchange without a response."""
    record = {"time": 1.0, "request_id": name, "dialect": "anthropic", "principal": "ada"}
    more = {"outcome": "completed", "duration": 1.0, "error": None, "upstream": "eu"}
    request = {"method": method, "path": "/v1/x", "headers": headers, "body": body}
    whole = {"record": {**record, **more}, "request": request, "response": None}
    files.write(directory, whole)


LARGE = "x" * 100_001
STREAM = ["content-type", "text/event-stream"]
PIPE = "python -m tornadoproxy records show req_1 --part request |\n  curl "


@pytest.mark.parametrize(
    ("method", "headers", "body", "shown", "curl", "raw"),
    [
        ("POST", [], {"text": "it's"}, "it's", "--data-raw 'it'\"'\"'s'\n", "it's"),
        ("POST", [], {"base64": "AP8="}, "[binary]", PIPE, "\0"),
        ("POST", [], {"text": LARGE}, LARGE, PIPE, LARGE),
        ("POST", [], {"text": "a\0"}, "a\\x00", PIPE, "a\0"),
        ("HEAD", [], {"text": ""}, "HEAD /v1/x", "curl -sS -N --head ", ""),
        ("POST", [STREAM], {"text": 'data: {"type": "x"}\n\n'}, '"type": "x"', "data:", "data: "),
        ("POST", [["x-y", "[redacted]"]], {"text": "a"}, "x-y: [red", "x-y: [red", "a"),
        ("POST", [], {"omitted": "too long", "size": 9}, "[not recorded: too long]", None, ""),
        ("POST", [], {"text": "a", "size": 9, "truncated": True}, "[truncated: 9 b", None, "a"),
    ],
)
def test_request_is_shown_and_repeated(
    directory: Path,
    commands: Commands,
    method: str,
    headers: list[list[str]],
    body: dict[str, object],
    shown: str,
    curl: str | None,
    raw: str,
) -> None:
    directory.mkdir(mode=0o700)
    write(directory, "req_1", body, *headers, method=method)

    def run(*arguments: str) -> tuple[int, str, str]:
        return commands.run("records", *arguments, "last", RECORD_DIR=str(directory))

    assert shown in run("show")[1]
    assert "upstream: eu" in run("show")[1]
    assert run("show", "--part", "request")[1].startswith(raw)
    assert run("show", "--part", "response")[1] == ""
    status, output, errors = run("curl")
    assert (status, curl is None) == ((2, True) if "not all of its body" in errors else (0, False))
    assert curl is None or curl in output
    assert ("parts of this request were redacted" in errors) == ("[redacted]" in str(headers))


def test_command_says_what_cannot_be_done(directory: Path, commands: Commands) -> None:
    def refusal(*arguments: str, **more: str) -> str:
        given = {"RECORD_DIR": str(directory), **more}
        return commands.refusal("records", *arguments, **given)

    assert refusal("list", RECORD_DIR="/nowhere").startswith("/nowhere cannot be read")
    directory.mkdir(mode=0o700)
    assert "see records list" in refusal("show", "last")
    assert commands.refusal("records", "list").startswith("RECORD_DIR is not set")
    for name in ("req_1", "req_1", "req_12"):
        write(directory, name, {"truncated": True})
    write(directory, "b/c", {"text": "\x1b[31m", "size": 5, "truncated": False})
    assert "3 ids begin with 'req'" in refusal("show", "req")
    assert "Raise RECORD_MAX_BODY" in refusal("curl", "req_12")
    assert refusal("replay", "b/").startswith("AUTH_TOKEN is not set")
    assert "say with --to" in refusal("curl", "b", HOST="unix:/tmp/x")
    assert "must be an http or https URL" in refusal(
        "replay", "b", "--to", "ftp://x", AUTH_TOKEN="some-token-of-mine"
    )
    answer = refusal("replay", "b", "--to", "http://127.0.0.1:1", AUTH_TOKEN="some-token-of-mine")
    assert "did not respond" in answer
    assert "\\x1b[31m" in commands.run("records", "show", "b", RECORD_DIR=str(directory)).output
    (directory / "1970-01-01" / "x.json").write_text("[]")
    assert "is left out" in commands.run("records", "list", RECORD_DIR=str(directory)).errors
