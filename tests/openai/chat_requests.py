"""Chat completions requests and their translation, for the tests of this folder."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from accepted import accept, blocks_of

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import Capabilities, Options, Translation

__all__ = ["accept", "blocks_of"]

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
