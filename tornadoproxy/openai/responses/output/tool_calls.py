"""The calls of the client's tools in a response's output.

A call is done when another block opens, or when the message ends, and not with its own block: only
then is it known that the model was not cut off in it, and clients run a call when it is done,
whatever its status.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.openai.responses.calls import item_of_call
from tornadoproxy.openai.responses.custom_input import InputText
from tornadoproxy.openai.responses.output.items import Block
from tornadoproxy.openai.responses.translation import Origin, ToolKind
from tornadoproxy.openai.writing import arguments, string
from tornadoproxy.protocol import json_codec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tornadoproxy.openai.reading import Json
    from tornadoproxy.openai.responses.output.items import Items, Place

_PREFIXES = {
    ToolKind.FUNCTION: "fc",
    ToolKind.CUSTOM: "ctc",
    ToolKind.TOOL_SEARCH: "tsc",
    ToolKind.SHELL: "sh",
    ToolKind.LOCAL_SHELL: "lsh",
    ToolKind.APPLY_PATCH: "apc",
}

# The events that stream a call's input, and the field that has it.
_STREAMED = {
    ToolKind.FUNCTION: ("response.function_call_arguments", "arguments"),
    ToolKind.CUSTOM: ("response.custom_tool_call_input", "input"),
}


class Call(Block):
    """A call whose item is sent when its input is whole.

    :param closed: takes the call when its block has ended.
    """

    _place: Place

    def __init__(self, items: Items, origin: Origin, given: Json, closed: list[Call]) -> None:
        self._items = items
        self._origin = origin
        self._call_id = string(given.get("id"))
        self._given = given.get("input")
        self._closed = closed
        self._fragments: list[str] = []

    @property
    def is_whole(self) -> bool:
        """Whether the input is a JSON object."""
        try:
            return isinstance(json_codec.loads(self._written().encode()), dict)
        except (ValueError, RecursionError):
            return False

    def grow(self, delta: Json) -> bytes:
        fragment = string(delta.get("partial_json"))
        if not fragment:
            return b""
        self._fragments.append(fragment)
        return self._send(fragment)

    def close(self) -> bytes:
        self._closed.append(self)
        return b""

    def finish(self) -> bytes:
        """Finish the item: the model was not cut off in the call."""
        self._place = self._items.place(_PREFIXES[self._origin.kind])
        item = self._item(self._written(), "completed")
        return self._items.begin(self._place, item) + self._items.finish(self._place, item)

    def _send(self, fragment: str) -> bytes:
        return b""

    def _written(self) -> str:
        """Return the input's JSON text."""
        return "".join(self._fragments) or arguments(self._given)

    def _item(self, written: str, status: str) -> Json:
        return item_of_call(self._origin, self._place.id, self._call_id, written, status)


class StreamedCall(Call):
    """A call whose input is a text, which is streamed: of a function, or of a custom tool."""

    def __init__(self, items: Items, origin: Origin, given: Json, closed: list[Call]) -> None:
        super().__init__(items, origin, given, closed)
        self._place = items.place(_PREFIXES[origin.kind])
        self._name, self._field = _STREAMED[origin.kind]
        self._text = None if origin.kind is ToolKind.FUNCTION else InputText()
        self._head = items.events.head(f"{self._name}.delta", self._place.fields)

    def open(self) -> bytes:
        return self._items.begin(self._place, self._item("", "in_progress"))

    def finish(self) -> bytes:
        item = self._item(self._written(), "completed")
        # a client may take the input from the deltas alone
        out = b"" if self._fragments else self._delta(item[self._field])
        done = {**self._place.fields, self._field: item[self._field]}
        out += self._items.events.event(f"{self._name}.done", done)
        return out + self._items.finish(self._place, item)

    def _send(self, fragment: str) -> bytes:
        return self._delta(fragment if self._text is None else self._text.feed(fragment))

    def _delta(self, text: str) -> bytes:
        return self._items.events.delta(self._head, text) if text else b""


def call_of(given: Json, items: Items, origins: Mapping[str, Origin], closed: list[Call]) -> Call:
    """Return the call for an upstream's block.

    :param given: a block of the type ``tool_use``.
    :param origins: the client's tools by the upstream's names.
    :param closed: takes the call when its block has ended.
    """
    name = string(given.get("name"))
    origin = origins.get(name)
    if origin is None or origin.kind not in _PREFIXES:
        origin = Origin(ToolKind.FUNCTION, name)
    kind = StreamedCall if origin.kind in _STREAMED else Call
    return kind(items, origin, given, closed)
