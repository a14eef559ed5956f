"""A stream of server-sent events, put together to the message or response that it is a stream of.

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
# of the Responses API: the list that a part joins, what a delta makes longer and in which list of
# parts, and the event's index in that list
_PARTS = {
    "response.content_part.added": "content",
    "response.reasoning_summary_part.added": "summary",
}
_DELTAS = {
    "response.custom_tool_call_input.delta": ("input", ""),
    "response.function_call_arguments.delta": ("arguments", ""),
    "response.output_text.delta": ("text", "content"),
    "response.reasoning_summary_text.delta": ("text", "summary"),
    "response.refusal.delta": ("refusal", "content"),
}
_INDEXES = {"content": "content_index", "summary": "summary_index"}
_WHOLE = frozenset({"id", "index", "name", "object", "role", "type"})  # never in pieces


def assembled(text: str) -> Document:
    """Return the message of a stream of any of the APIs, as far as it came."""
    message: Document = {}
    for event in _events(text):
        try:
            if "choices" in event:
                _add_chunk(message, event)
            elif "sequence_number" in event:
                _add_to_response(message, event)
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


def _add_to_response(message: Document, event: Document) -> None:
    """Add an event of OpenAI's Responses API. What only repeats the events before is dropped."""
    kind = event["type"]
    if "response" in event:
        message.update(event["response"])
    elif kind == "response.output_item.added":
        message.setdefault("output", []).append(event["item"])
    elif kind == "response.output_item.done":
        message["output"][event["output_index"]] = event["item"]
    elif kind in _PARTS:
        message["output"][event["output_index"]].setdefault(_PARTS[kind], []).append(event["part"])
    elif kind in _DELTAS:
        name, parts = _DELTAS[kind]
        grown = message["output"][event["output_index"]]
        if parts:
            grown = grown[parts][event[_INDEXES[parts]]]
        grown[name] = grown.get(name, "") + event["delta"]
    elif not kind.endswith((".done", ".added", "keepalive")):
        message.setdefault("events", []).append(event)


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
