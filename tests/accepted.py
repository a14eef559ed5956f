"""What the upstream accepts of a translated request, for the tests of translations."""

from __future__ import annotations

import copy
import itertools
import re
from typing import Any

from anthropic.types.message_create_params import (
    MessageCreateParamsNonStreaming,
    MessageCreateParamsStreaming,
)
from pydantic import TypeAdapter

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

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
    turns = _without_system(body["messages"])
    is_paused = blocks_of(turns[-1])[-1]["type"] == "server_tool_use"
    assert prefill or is_paused or len(turns) % 2, "the user speaks first and last"
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


def _without_system(messages: list[Json]) -> list[Json]:
    """Return the turns; each system message must stand between a user's turn and an assistant's."""
    roles = [message["role"] for message in messages]
    assert roles[0] == "user"
    for pair in itertools.pairwise([*roles, "assistant"]):
        assert pair in (("user", "system"), ("system", "assistant")) or "system" not in pair
    return [message for message in messages if message["role"] != "system"]
