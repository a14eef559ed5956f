"""Messages and streams that report usage, and their reading, for the tests of usage."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tornadoproxy.protocol.usage import Usage
from tornadoproxy.protocol.usage_reader import UsageReader

Document = dict[str, Any]  # Any: JSON

MODEL = "claude-sonnet-5-5"


def dump(document: Document) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def event(name: str, document: Document) -> bytes:
    return f"event: {name}\ndata: ".encode() + dump({"type": name, **document}) + b"\n\n"


def message_start(**usage: object) -> bytes:
    message = {"id": "msg_1", "type": "message", "model": MODEL, "content": [], "usage": usage}
    return event("message_start", {"message": message})


def block_start(**block: object) -> bytes:
    return event("content_block_start", {"index": 0, "content_block": block})


def text_delta(text: str) -> bytes:
    delta = {"type": "text_delta", "text": text}
    return event("content_block_delta", {"index": 0, "delta": delta})


def content_event(text: str) -> bytes:
    """The same in the API's own form, without blanks."""
    return text_delta(text).replace(b'": ', b'":').replace(b', "', b',"')


def message_delta(**usage: object) -> bytes:
    return event("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": usage})


MESSAGE_STOP = event("message_stop", {})


def in_pieces(size: int, body: bytes) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


def read(
    pieces: Iterable[bytes], *, is_stream: bool = False, coding: str = "identity"
) -> tuple[str | None, Usage]:
    reader = UsageReader(is_stream=is_stream, content_encoding=coding)
    for piece in pieces:
        reader.feed(piece)
    reader.finish()
    return reader.model, reader.usage


def read_stream(*pieces: bytes) -> tuple[str | None, Usage]:
    """Model and usage of a stream of these pieces and its end."""
    return read([*pieces, MESSAGE_STOP], is_stream=True)


def read_cut(body: bytes) -> tuple[str | None, Usage]:
    """Model and usage of a stream that ends there, whole or byte by byte."""
    found = read([body], is_stream=True)
    assert found == read(in_pieces(1, body), is_stream=True)
    return found
