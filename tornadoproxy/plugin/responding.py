"""A plugin's own response to a request for a model, in the form of the Messages API.

Sources: https://platform.claude.com/docs/en/api/messages and
https://platform.claude.com/docs/en/build-with-claude/streaming
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct

from tornadoproxy.protocol.wire import ResponseHead

STOP_REASONS = ("end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal")

Block = dict[str, Any]  # Any: JSON

# what clients read of a block without looking whether it is there
_REQUIRED: dict[str, dict[str, type]] = {
    "text": {"text": str},
    "thinking": {"thinking": str},
    "tool_use": {"id": str, "name": str, "input": dict},
}

# how each type of block is streamed: the field that begins empty, and the delta that brings it
_STREAMED = {
    "text": (("text", "text_delta"),),
    "thinking": (("thinking", "thinking_delta"), ("signature", "signature_delta")),
}


class ModelResponse(Struct, frozen=True):
    """A message that a plugin sends in place of the upstream's. It costs nothing.

    The core sends it as the client expects it: as JSON or as a stream, in the form of the API that
    was called.

    :param content: a text, or content blocks as in the Messages API.
    :param stop_reason: why the message ends, in the words of the Messages API.
    :raises ValueError: it is not such a message.
    """

    content: str | Sequence[Block]
    stop_reason: str = "end_turn"

    def __post_init__(self) -> None:
        if self.stop_reason not in STOP_REASONS:
            raise ValueError(f"stop_reason must be one of {', '.join(STOP_REASONS)}")
        if isinstance(self.content, str):
            return
        if not isinstance(self.content, (list, tuple)) or not all(
            isinstance(block, dict) and isinstance(block.get("type"), str) for block in self.content
        ):
            raise ValueError("content must be a text or a list of content blocks")
        for block in self.content:
            for name, kind in _REQUIRED.get(block["type"], {}).items():
                if not isinstance(block.get(name), kind):
                    fault = f"a block of type {block['type']} must have a valid {name}"
                    raise ValueError(fault)  # noqa: TRY004  # as the other faults
        try:
            json.dumps(self.content, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise ValueError("content has a value that JSON does not have") from None

    def in_http(self, model: str | None, request_id: str, *, stream: bool) -> _InHTTP:
        """Return head and body of the response, in the form of the Messages API.

        :param model: the requested one.
        """
        text = isinstance(self.content, str)
        message: Block = {
            "id": f"msg_{request_id.removeprefix('req_')}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [{"type": "text", "text": self.content}] if text else self.content,
            "stop_reason": self.stop_reason,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        if stream:
            kind, body = "text/event-stream; charset=utf-8", b"".join(map(_event, _parts(message)))
            length = []
        else:
            kind, body = "application/json", json.dumps(message).encode()
            length = [("Content-Length", str(len(body)))]
        fields = [("Content-Type", kind), *length, ("Request-Id", request_id)]
        return ResponseHead(200, "OK", fields), body


_InHTTP = tuple[ResponseHead, bytes]


def _event(part: Block) -> bytes:
    return f"event: {part['type']}\ndata: {json.dumps(part)}\n\n".encode()


def _parts(message: Block) -> Iterator[Block]:
    """Yield the events that stream a message."""
    begun = {**message, "content": [], "stop_reason": None}
    yield {"type": "message_start", "message": begun}
    for index, block in enumerate(message["content"]):
        deltas = list(_deltas(block))
        fields = _STREAMED.get(block["type"], ())
        empty: Block = {field: "" for field, _ in fields if field in block}
        if deltas and not empty:
            empty = {"input": {}}
        yield {"type": "content_block_start", "index": index, "content_block": {**block, **empty}}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {name: message[name] for name in ("stop_reason", "stop_sequence")}
    yield {"type": "message_delta", "delta": stop, "usage": message["usage"]}
    yield {"type": "message_stop"}


def _deltas(block: Block) -> Iterator[Block]:
    """Yield what completes a block that began empty; nothing for one that comes whole."""
    for field, kind in _STREAMED.get(block["type"], ()):
        if field in block:
            yield {"type": kind, field: block[field]}
    if block["type"] in ("tool_use", "server_tool_use", "mcp_tool_use"):
        yield {"type": "input_json_delta", "partial_json": json.dumps(block.get("input", {}))}
