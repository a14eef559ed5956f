"""Chat completions requests and their translation, for the tests of this folder."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from anthropic.types.message_create_params import (
    MessageCreateParamsNonStreaming,
    MessageCreateParamsStreaming,
)
from pydantic import TypeAdapter

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import Capabilities, Options, Translation

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

HI: Json = {"role": "user", "content": "Hi"}
TOOL: Json = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
OTHER: Json = {"type": "function", "function": {"name": "clock"}}
THOUGHT: Json = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
PLAIN = Capabilities(structured_outputs=False, thinking=frozenset(), efforts=())
ALWAYS_THINKS = Capabilities(forced_tools=False)


WHOLE: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsNonStreaming)
STREAMED: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsStreaming)


def read_through(value: Any) -> None:  # Any: what pydantic has validated
    """Validate the items of each iterable, which pydantic leaves for later."""
    if isinstance(value, dict):
        for each in value.values():
            read_through(each)
    elif not isinstance(value, str) and hasattr(value, "__iter__"):
        for each in value:
            read_through(each)


def blocks_of(message: Json, *kinds: str) -> list[Json]:
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [block for block in blocks if not kinds or block["type"] in kinds]


def accept(body: Json, own: Json | None = None, *, prefill: bool = False) -> None:
    """Assert that the upstream accepts a request: its types, and the rules beyond types.

    :param own: the client's fields, whose own ``thinking`` is not asserted.
    """
    adapter = STREAMED if body.get("stream") else WHOLE
    read_through(adapter.validate_python(copy.deepcopy(body)))
    assert None not in body.values()
    assert 0 <= body.get("temperature", 0) <= 1
    assert not {"temperature", "top_p"} <= body.keys()
    assert all(each.strip() for each in body.get("stop_sequences", ["x"]))
    if body.get("thinking", {}).get("type") == "enabled" and "thinking" not in (own or {}):
        assert 1024 <= body["thinking"]["budget_tokens"] < body["max_tokens"]
    names = [tool["name"] for tool in body.get("tools", [])]
    assert len(set(names)) == len(names)
    turns = body["messages"]
    assert prefill or len(turns) % 2, "the user speaks first and last"
    ids: list[str] = []
    for number, turn in enumerate(turns):
        assert turn["role"] == ("assistant" if number % 2 else "user")
        assert all(block["text"].strip() for block in blocks_of(turn, "text"))
        assert all(block["signature"] for block in blocks_of(turn, "thinking"))
        assert blocks_of(turn)[-1]["type"] not in ("thinking", "redacted_thinking")
        results = blocks_of(turn, "tool_result")
        calls = blocks_of(turns[number - 1], "tool_use") if number else []
        answered = [block["tool_use_id"] for block in results]
        assert sorted(answered) == sorted(block["id"] for block in calls)
        assert blocks_of(turn)[: len(results)] == results
        ids += [block["id"] for block in blocks_of(turn, "tool_use")]
        names += [block["name"] for block in blocks_of(turn, "tool_use")]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[a-zA-Z0-9_-]{1,128}", each) for each in ids + names)
    assert names or not ids


def translate(
    *messages: Json,
    options: Options | None = None,
    able: Capabilities | None = None,
    **fields: Any,  # Any: JSON
) -> Translation:
    """Translate a request, and assert that the upstream accepts the result."""
    document = {"model": "claude-test", "messages": list(messages or (HI,)), **fields}
    before = copy.deepcopy(parsed := chat_completions.parse(json.dumps(document).encode()))
    translation = chat_completions.translate_request(parsed, options=options, capabilities=able)
    assert parsed == before, "the request stays unchanged"
    accept(json.loads(translation.body), own=fields, prefill=bool(options and options.prefill))
    return translation


def sent(*messages: Json, able: Capabilities | None = None, **fields: Any) -> Json:  # Any: JSON
    body: Json = json.loads(translate(*messages, able=able, **fields).body)
    return body


def turns(*messages: Json) -> list[Json]:
    found: list[Json] = sent(*messages)["messages"]
    return found


def refused(*messages: Json, able: Capabilities | None = None, **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        translate(*messages, able=able, **fields)
    assert caught.value.status == 400
    return caught.value


def user(content: object) -> Json:
    return {"role": "user", "content": content}


def system(content: object, **more: object) -> Json:
    return {"role": "system", "content": content, **more}


def assistant(content: object = None, *calls: Json, **more: Any) -> Json:  # Any: JSON
    message: Json = {"role": "assistant", "content": content, **more}
    return {**message, "tool_calls": list(calls)} if calls else message


def call(call_id: str, name: str = "weather", arguments: object = "{}") -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(call_id: str, content: object = "fine") -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def function_call(name: str, **more: object) -> Json:
    return assistant(function_call={"name": name, **more})


def function_result(name: str) -> Json:
    return {"role": "function", "name": name, "content": "fine"}


def text(content: str) -> Json:
    return {"type": "text", "text": content}


def image(url: str, **more: str) -> Json:
    return {"type": "image_url", "image_url": {"url": url, **more}}
