"""The reasoning items in a response's output: a summary to read, and the block to send back.

Source: https://platform.openai.com/docs/api-reference/responses/object (``reasoning``)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.openai.responses import carrier
from tornadoproxy.openai.responses.output.items import Block
from tornadoproxy.openai.thinking import BLOCKS
from tornadoproxy.openai.writing import string

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tornadoproxy.openai.reading import Json
    from tornadoproxy.openai.responses.output.items import Items, Place


class Thought(Block):
    """A block of thinking: a reasoning item, with a summary if there is anything to read.

    :param given: the upstream's block, of one of the types in `BLOCKS`.
    """

    def __init__(self, items: Items, given: Json) -> None:
        self._items = items
        self._place = items.place("rs")
        kind = given["type"]
        self._block = {"type": kind, **{name: string(given.get(name)) for name in BLOCKS[kind]}}
        self._signed = BLOCKS[kind][-1]
        self._texts: list[str] = []
        self._where = {**self._place.fields, "summary_index": 0}
        self._head = b""

    def open(self) -> bytes:
        begun = self._items.begin(self._place, _item(self._place, []))
        return begun + self._add(self._block.get("thinking", ""))

    def grow(self, delta: Json) -> bytes:
        kind = delta.get("type")
        if kind == "thinking_delta" and "thinking" in self._block:
            return self._add(string(delta.get("thinking")))
        if kind == "signature_delta" and "signature" in self._block:
            self._block["signature"] += string(delta.get("signature"))
        return b""

    def close(self) -> bytes:
        event = self._items.events.event
        text = "".join(self._texts)
        out, parts = b"", []
        if self._texts:
            part = {"type": "summary_text", "text": text}
            parts = [part]
            out = event("response.reasoning_summary_text.done", {**self._where, "text": text})
            out += event("response.reasoning_summary_part.done", {**self._where, "part": part})
            self._block["thinking"] = text
        item = _item(self._place, parts)
        if self._block[self._signed]:  # without a signature the upstream would refuse it
            item["encrypted_content"] = carrier.pack([self._block])
        return out + self._items.finish(self._place, item)

    def _add(self, text: str) -> bytes:
        if not text:
            return b""
        events = self._items.events
        begun = b""
        if not self._texts:
            part = {**self._where, "part": {"type": "summary_text", "text": ""}}
            begun = events.event("response.reasoning_summary_part.added", part)
            self._head = events.head("response.reasoning_summary_text.delta", self._where)
        self._texts.append(text)
        return begun + events.delta(self._head, text)


def carry(items: Items, blocks: Sequence[Json]) -> bytes:
    """Add a reasoning item that only carries blocks."""
    place = items.place("rs")
    item = {**_item(place, []), "encrypted_content": carrier.pack(blocks)}
    return items.begin(place, _item(place, [])) + items.finish(place, item)


def _item(place: Place, summary: list[Json]) -> Json:
    return {"id": place.id, "type": "reasoning", "summary": summary}
