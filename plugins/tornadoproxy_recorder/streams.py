"""A stream of server-sent events, put together to the message that it is a stream of.

Whatever is unknown is kept: an event of an unknown type is in ``events``, as it came.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

Document = dict[str, Any]  # Any: JSON

_BOUNDARY = re.compile(r"(?:\r\n|\n|\r){2}")
_LINE = re.compile(r"\r\n|\n|\r")
_WHOLE = frozenset({"id", "index", "name", "object", "role", "type"})  # never in pieces


def assembled(text: str) -> Document:
    """Return the message of a stream of either API, as far as it came."""
    message: Document = {}
    for event in _events(text):
        try:
            if "choices" in event:
                _add_chunk(message, event)
            else:
                _add_event(message, event)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            message.setdefault("events", []).append(event)
    for block in message.get("content") or []:
        if isinstance(block, dict) and isinstance(written := block.get("input"), str):
            block["input"] = _value(written)
    return message


def _events(text: str) -> Iterator[Document]:
    for block in _BOUNDARY.split(text):
        lines = [line[5:] for line in _LINE.split(block) if line.startswith("data:")]
        event = _value("\n".join(lines))
        if isinstance(event, dict):
            yield event


def _value(text: str) -> object:
    """Return the value of JSON; the text itself if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _add_event(message: Document, event: Document) -> None:
    """Add an event of an Anthropic stream."""
    kind = event["type"]
    if kind == "message_start":
        message.update(event["message"])
    elif kind == "content_block_start":
        blocks = message.setdefault("content", [])
        if event["index"] != len(blocks):
            raise IndexError
        blocks.append(dict(event["content_block"]))
    elif kind == "content_block_delta":
        _add_delta(message["content"][event["index"]], event["delta"])
    elif kind == "message_delta":
        message.update(event["delta"])
        message.setdefault("usage", {}).update(event.get("usage") or {})
    elif kind not in ("content_block_stop", "message_stop", "ping"):
        message.setdefault("events", []).append(event)


def _add_delta(block: Document, delta: Document) -> None:
    if delta["type"] == "input_json_delta":
        before = block.get("input")
        block["input"] = (before if isinstance(before, str) else "") + delta["partial_json"]
        return
    for name, value in delta.items():
        if name == "citation":
            block["citations"] = [*(block.get("citations") or []), value]
        elif name != "type":
            block[name] = block.get(name, "") + value


def _add_chunk(message: Document, chunk: Document) -> None:
    """Add a chunk of a chat completion."""
    for name, value in chunk.items():
        if name != "choices":
            message[name] = value
            continue
        found = [*value]
        choices = message.setdefault("choices", [])
        for choice in found:
            if choice["index"] >= len(choices):
                choices.append({"index": len(choices), "message": {}})
            known = choices[choice["index"]]
            _merge(known["message"], choice.get("delta") or {})
            if choice.get("finish_reason") is not None:
                known["finish_reason"] = choice["finish_reason"]


def _merge(known: Document, delta: Document) -> None:
    """Add the pieces of `delta`: texts are continued, and lists by the index of their items."""
    for name, value in delta.items():
        before = known.get(name)
        if isinstance(value, str) and isinstance(before, str) and name not in _WHOLE:
            known[name] = before + value
        elif isinstance(value, dict):
            _merge(known.setdefault(name, {}), value)
        elif isinstance(value, list):
            items = known.setdefault(name, [])
            for item in value:
                if item.get("index", len(items)) >= len(items):
                    items.append({})
                _merge(items[item.get("index", -1)], item)
        elif value is not None or name not in known:
            known[name] = value
