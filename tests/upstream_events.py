"""The events of the upstream's stream, for tests that translate them."""

from __future__ import annotations

import json
from typing import Any

from tornadoproxy.testing import message_document

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

USAGE: Json = {"input_tokens": 10, "output_tokens": 1}
MESSAGE = message_document(id="msg_01AbC", model="claude-test", content=[], usage=USAGE)
START: Json = {"type": "message_start", "message": MESSAGE}
STOP: Json = {"type": "message_stop"}
PING: Json = {"type": "ping"}


def wire(*events: Json) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode())
        for event in events
    )


def opened(index: object, kind: object = "text", **block: object) -> Json:
    block = {"type": kind, **({"text": ""} if kind == "text" else {}), **block}
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: object, kind: str, **fields: object) -> Json:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def closed(index: object) -> Json:
    return {"type": "content_block_stop", "index": index}


def stopped(reason: object, **usage: object) -> Json:
    usage = usage or {"output_tokens": 5}
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}


def text(index: int, content: str) -> Json:
    return delta(index, "text_delta", text=content)


def tool(index: int, call_id: str, **tool_input: object) -> Json:
    return opened(index, "tool_use", id=call_id, name="weather", input=tool_input)


def fragment(index: int, content: str) -> Json:
    return delta(index, "input_json_delta", partial_json=content)


END = (stopped("end_turn"), STOP)


def error_event(kind: str) -> Json:
    return {"type": "error", "error": {"type": kind, "message": "It says why."}}
