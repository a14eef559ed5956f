"""Requests of the Responses API and their translation, for the tests of this folder."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from accepted import accept

from tornadoproxy.errors import ClientError
from tornadoproxy.openai import responses
from tornadoproxy.openai.models import Capabilities
from tornadoproxy.openai.options import Options
from tornadoproxy.openai.responses import Translation
from tornadoproxy.openai.responses.carrier import pack

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

THOUGHT: Json = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
SEARCHED: list[Json] = [
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
    {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
]
TAKES_SYSTEM = Capabilities(system_messages=True)


def translate(
    *items: Json | str,
    options: Options | None = None,
    able: Capabilities | None = None,
    earlier: list[Json] | None = None,
    known: dict[str, Json] | None = None,
    has_store: bool = False,
    **fields: Any,  # Any: JSON
) -> Translation:
    """Translate a request, and assert that the upstream accepts the result.

    :param items: the input; a text is a message of the user's.
    :param known: the stored items.
    """
    listed = [user(item) if isinstance(item, str) else item for item in items or ("Hi",)]
    document = {"model": "claude-test", "input": listed, **fields}
    parsed = responses.parse(json.dumps(document).encode())
    before = copy.deepcopy(parsed)
    translation = responses.translate_request(
        parsed,
        options=options,
        capabilities=able,
        earlier=earlier,
        items=known,
        has_store=has_store,
    )
    assert parsed == before, "the request stays unchanged"
    prefill = bool(options and options.prefill)
    accept(json.loads(translation.body), own=fields, prefill=prefill)
    return translation


def sent(*items: Json | str, **more: Any) -> Json:  # Any: as `translate`
    body: Json = json.loads(translate(*items, **more).body)
    return body


def turns(*items: Json | str, **more: Any) -> list[tuple[str, Any]]:  # Any: JSON
    """Return the role and content of each message."""
    return [(each["role"], each["content"]) for each in sent(*items, **more)["messages"]]


def refused(*items: Json | str, **more: Any) -> ClientError:  # Any: as `translate`
    with pytest.raises(ClientError) as caught:
        translate(*items, **more)
    assert caught.value.param
    return caught.value


def message(role: str, content: object, **more: object) -> Json:
    return {"type": "message", "role": role, "content": content, **more}


def user(content: object) -> Json:
    return message("user", content)


def developer(content: object) -> Json:
    return message("developer", content)


def said(content: str, **more: object) -> Json:
    part = {"type": "output_text", "text": content, "annotations": [], "logprobs": []}
    return message("assistant", [part], id="msg_1", status="completed", **more)


def reasoning(*blocks: Json) -> Json:
    return {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": pack(blocks)}


def call(call_id: str, name: str = "weather", arguments: str = "{}", **more: object) -> Json:
    named = {"call_id": call_id, "name": name, "arguments": arguments}
    return {"type": "function_call", "id": f"fc_{call_id}", "status": "completed", **named, **more}


def output(call_id: str, result: object = "fine") -> Json:
    return {"type": "function_call_output", "call_id": call_id, "output": result}


def tool_use(call_id: str, name: str = "weather") -> Json:
    return {"type": "tool_use", "id": call_id, "name": name, "input": {}}


def tool_result(call_id: str, content: object = "fine") -> Json:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content}


def text(content: str) -> Json:
    return {"type": "text", "text": content}
