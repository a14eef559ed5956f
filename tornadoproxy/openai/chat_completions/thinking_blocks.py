"""Thinking blocks in an assistant message, which a client sends back unchanged.

The upstream signs its thinking, and accepts it back only unchanged and in its place
among the other blocks of its turn. A chat completion has no blocks: it has one text and a list of
calls. So each entry of a response's ``thinking_blocks`` has the fields of a block of Anthropic's
API, and its place: after how many characters of the text (``text_before``), and after how many of
the calls (``calls_before``). Thinking that comes first, as it mostly does, has neither.

``reasoning_content`` is the plain text alone, for people to read.

Source: https://docs.anthropic.com/en/docs/build-with-claude/extended-thinking
"""

from __future__ import annotations

import sys

from tornadoproxy.openai.reading import Json, array, integer, obj, one_of, text
from tornadoproxy.openai.thinking import BLOCKS
from tornadoproxy.openai.turns import drop_last_thinking


def shown(block: Json, text_before: int, calls_before: int) -> Json:
    """Return the entry of a thinking block for a response.

    :param block: the upstream's.
    :param text_before: the number of characters of the response's text before it.
    :param calls_before: the number of the response's calls before it.
    """
    entry: Json = {"type": block["type"]}
    for key in BLOCKS[block["type"]]:
        value = block.get(key)
        entry[key] = value if isinstance(value, str) else ""
    if text_before:
        entry["text_before"] = text_before
    if calls_before:
        entry["calls_before"] = calls_before
    return entry


def put_back(
    entries: object, param: str, texts: list[Json], calls: list[Json], ignored: list[str]
) -> list[Json]:
    """Return the blocks of an assistant's turn: its thinking among its texts and calls.

    Thinking that the upstream would refuse is dropped: without a signature, as in a stream that was
    cut, or at the end of the turn.

    :param entries: the client's ``thinking_blocks``.
    :param ignored: takes the names of what is dropped.
    :raises InvalidRequest: an entry is invalid.
    """
    turn: list[Json] = []
    remaining = _Text(texts)
    position = used_calls = 0
    for index, entry in enumerate(array(entries, param)):
        where = f"{param}[{index}]"
        entry = obj(entry, where)
        kind = one_of(entry.get("type"), f"{where}.type", BLOCKS)
        text_before = integer(entry.get("text_before", 0), f"{where}.text_before", 0)
        calls_before = integer(entry.get("calls_before", 0), f"{where}.calls_before", 0)
        block: Json = {"type": kind}
        for key in BLOCKS[kind]:
            value = entry.get(key)
            block[key] = "" if value is None else text(value, f"{where}.{key}")
        if not block[BLOCKS[kind][-1]]:
            ignored.append("messages.thinking_blocks")
            continue
        turn += remaining.take(text_before - position)
        turn += calls[used_calls:calls_before]
        position = max(position, text_before)
        used_calls = max(used_calls, calls_before)
        turn.append(block)
    turn += remaining.take(sys.maxsize) + calls[used_calls:]
    turn = [block for block in turn if block["type"] != "text" or block["text"].strip()]
    if drop_last_thinking(turn):
        ignored.append("messages.thinking_blocks")
    return turn


class _Text:
    """The text blocks of a turn, taken piece by piece from the beginning."""

    def __init__(self, blocks: list[Json]) -> None:
        self._blocks = blocks
        self._index = 0
        self._start = 0  # in the block at that index, in characters

    def take(self, length: int) -> list[Json]:
        """Return the blocks of the next `length` characters."""
        taken: list[Json] = []
        while self._index < len(self._blocks):
            block = self._blocks[self._index]
            left = len(block["text"]) - self._start
            end = self._start + max(min(length, left), 0)
            piece = block["text"][self._start : end]
            if length < left:
                taken.append({"type": "text", "text": piece})
                self._start = end
                break
            taken.append({**block, "text": piece})
            self._index += 1
            self._start = 0
            length -= left
        return taken
