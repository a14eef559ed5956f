"""The output of a response, made of the upstream's blocks as they come, whole or in pieces.

The theory. Blocks become items in their order::

    text, and text next to it   one message; citations become annotations when their block ends
    thinking                    a reasoning item, whose encrypted_content carries the block
    tool_use                    a call of the client's tool; see `tool_calls` for its end
    web search and its result   a web_search_call, and a reasoning item that carries both blocks
    any other                   nothing

An item is done when its last block is. A call that was cut has no place in the output, though a
stream may have begun it.

Each method returns the events of what it does, which are none if the response is not streamed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.openai.responses import carrier
from tornadoproxy.openai.responses.output.events import NoEvents
from tornadoproxy.openai.responses.output.items import Block, Items
from tornadoproxy.openai.responses.output.messages import Messages, Text
from tornadoproxy.openai.responses.output.searches import Searches
from tornadoproxy.openai.responses.output.thoughts import Thought
from tornadoproxy.openai.responses.output.tool_calls import Call, call_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tornadoproxy.openai.reading import Json
    from tornadoproxy.openai.responses.translation import Origin

LIMITS = frozenset({"max_tokens", "model_context_window_exceeded"})
"""The stop reasons of a response that reached a limit."""

_CUTTING = LIMITS | {"refusal"}


class Output:
    """The output of one response.

    :param items: where the items go.
    :param origins: the client's tools by the upstream's names.
    :ivar is_cut: whether a call was cut.
    """

    def __init__(self, items: Items, origins: Mapping[str, Origin]) -> None:
        self.is_cut = False
        self._items = items
        self._origins = origins
        self._messages = Messages(items)
        self._searches = Searches(items)
        self._calls: list[Call] = []  # closed, and without another block after them

    @property
    def is_shown(self) -> bool:
        """Whether there is an item that a client shows or runs."""
        return any(item["type"] != "reasoning" for item in self._items.finished)

    def open(self, given: Json) -> tuple[bytes, Block]:
        """Begin a block.

        :param given: the upstream's, which may be whole.
        """
        kind = given.get("type")
        out = b""
        if self._calls:
            if kind == "fallback" and not self._calls[-1].is_whole:
                self._cut()  # the model before declined in the middle of it
            out = self._finish_calls()
        if kind == "text":
            text = Text(self._messages, given)
            return out + text.open(), text
        if kind == "web_search_tool_result":
            return out + self._messages.finish("completed") + self._searches.find(given), Block()
        block = self._block(kind, given)
        if block is None:
            return out, Block()
        return out + self._messages.finish("completed") + block.open(), block

    def add(self, text: str) -> bytes:
        """Add text that comes without the beginning of its block."""
        return self._messages.add(text)

    def end(self, stop_reason: str) -> bytes:
        """Finish the items."""
        if self._calls and stop_reason in _CUTTING:
            self._cut()
        status = "incomplete" if stop_reason in LIMITS else "completed"
        out = (self._finish_calls() if self._calls else b"") + self._messages.finish(status)
        return out + self._searches.end(paused=stop_reason == "pause_turn")

    def refuse(self, explanation: str) -> bytes:
        """Add the model's refusal."""
        return self._messages.refuse(explanation)

    def _block(self, kind: object, given: Json) -> Block | None:
        if kind in ("thinking", "redacted_thinking"):
            return Thought(self._items, given)
        if kind == "tool_use":
            return call_of(given, self._items, self._origins, self._calls)
        if kind == "server_tool_use" and given.get("name") == "web_search":
            return self._searches.begin(given)
        return None

    def _cut(self) -> None:
        self._calls.pop()
        self.is_cut = True

    def _finish_calls(self) -> bytes:
        calls, self._calls[:] = self._calls[:], []
        return b"".join([call.finish() for call in calls])


class Summary(Output):
    """The output of a response that is one compaction item, which carries the message's text."""

    def __init__(self, items: Items, origins: Mapping[str, Origin]) -> None:
        super().__init__(Items("", NoEvents()), origins)
        self._shown = items

    def end(self, stop_reason: str) -> bytes:
        super().end(stop_reason)
        messages = [item for item in self._items.finished if item["type"] == "message"]
        text = "\n\n".join([part["text"] for item in messages for part in item["content"]])
        if not text.strip():
            return b""
        place = self._shown.place("cmp")
        packed = carrier.pack_summary(text)
        item = {"id": place.id, "type": "compaction", "encrypted_content": packed}
        return self._shown.begin(place, item) + self._shown.finish(place, item)
