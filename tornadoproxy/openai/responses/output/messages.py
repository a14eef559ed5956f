"""The messages in a response's output: the model's texts with their annotations, and refusals.

Source: https://platform.openai.com/docs/api-reference/responses/object (``output_text``)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.openai.responses.output.items import Block
from tornadoproxy.openai.writing import string

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json
    from tornadoproxy.openai.responses.output.items import Items, Place


class Messages:
    """The message that the model's text is added to, if one is open."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._message: _Message | None = None

    @property
    def length(self) -> int:
        """The number of characters of the open message."""
        return 0 if self._message is None else self._message.length

    def add(self, text: str) -> bytes:
        """Add text to the open message, or to a new one."""
        if not text:
            return b""
        message = self._message
        if message is not None:
            return message.add(text)
        message = self._message = _Message(self._items)
        return message.open() + message.add(text)

    def annotate(self, start: int, citations: list[Json]) -> bytes:
        """Annotate the open message's text from the character `start` on."""
        if self._message is None:
            return b""
        length = self._message.length
        found = [_annotation(each, min(start, length), length) for each in citations]
        return b"".join([self._message.annotate(each) for each in found if each is not None])

    def finish(self, status: str) -> bytes:
        """Finish the open message."""
        message = self._message
        if message is None:
            return b""
        self._message = None
        return message.close(status)

    def refuse(self, explanation: str) -> bytes:
        """Add the model's refusal, as a message of its own: Codex shows no message that has one."""
        items = self._items
        place = items.place("msg")
        where = {**place.fields, "content_index": 0}
        part = {"type": "refusal", "refusal": explanation}
        event = items.events.event
        head = items.events.head("response.refusal.delta", where)
        return b"".join(
            [
                items.begin(place, _item(place, [], "in_progress")),
                event("response.content_part.added", {**where, "part": {**part, "refusal": ""}}),
                items.events.delta(head, explanation),
                event("response.refusal.done", {**where, "refusal": explanation}),
                event("response.content_part.done", {**where, "part": part}),
                items.finish(place, _item(place, [part], "completed")),
            ]
        )


class Text(Block):
    """A block of text, which may cite documents and pages."""

    def __init__(self, messages: Messages, given: Json) -> None:
        self._messages = messages
        self._given = string(given.get("text"))
        citations = given.get("citations")
        self._citations = [*citations] if isinstance(citations, list) else []
        self._start = messages.length

    def open(self) -> bytes:
        return self._messages.add(self._given)

    def grow(self, delta: Json) -> bytes:
        kind = delta.get("type")
        if kind == "text_delta":
            return self._messages.add(string(delta.get("text")))
        if kind == "citations_delta":
            self._citations.append(delta.get("citation"))
        return b""

    def close(self) -> bytes:
        if not self._citations:
            return b""
        # where the message ends only now: a citation can precede the text that it is for
        return self._messages.annotate(self._start, self._citations)


class _Message:
    """An open message of one text."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._place = items.place("msg")
        self._texts: list[str] = []
        self._annotations: list[Json] = []
        self.length = 0
        self._where: Json = {}
        self._head = b""
        self._delta = items.events.delta

    def open(self) -> bytes:
        events = self._items.events
        if events.is_silent:
            return b""
        self._where = {**self._place.fields, "content_index": 0}
        # the same in each delta, and deltas are most of a stream
        self._head = events.head("response.output_text.delta", {**self._where, "logprobs": []})
        begun = self._items.begin(self._place, _item(self._place, [], "in_progress"))
        part = {**self._where, "part": _text_part("", [])}
        return begun + events.event("response.content_part.added", part)

    def add(self, text: str) -> bytes:
        self._texts.append(text)
        self.length += len(text)
        return self._delta(self._head, text)

    def annotate(self, annotation: Json) -> bytes:
        index = len(self._annotations)
        self._annotations.append(annotation)
        fields = {**self._where, "annotation_index": index, "annotation": annotation}
        return self._items.events.event("response.output_text.annotation.added", fields)

    def close(self, status: str) -> bytes:
        events = self._items.events
        text = "".join(self._texts)
        part = _text_part(text, self._annotations)
        out = b""
        if not events.is_silent:
            done = {**self._where, "text": text, "logprobs": []}
            out = events.event("response.output_text.done", done)
            out += events.event("response.content_part.done", {**self._where, "part": part})
        return out + self._items.finish(self._place, _item(self._place, [part], status))


def _item(place: Place, content: list[Json], status: str) -> Json:
    return {
        "id": place.id,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _text_part(text: str, annotations: list[Json]) -> Json:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}


def _annotation(citation: object, start: int, end: int) -> Json | None:
    """Return the annotation for a citation; ``None`` if OpenAI has none for its kind.

    :param start: the character of the message that the citing text begins with.
    :param end: the character after the citing text.
    """
    if not isinstance(citation, dict):
        return None
    url, file_id = citation.get("url"), citation.get("file_id")
    if citation.get("type") == "web_search_result_location" and isinstance(url, str):
        return {
            "type": "url_citation",
            "url": url,
            "title": string(citation.get("title")),
            "start_index": start,
            "end_index": end,
        }
    index = citation.get("document_index")
    if isinstance(file_id, str) and isinstance(index, int):
        filename = string(citation.get("document_title"))
        return {"type": "file_citation", "file_id": file_id, "filename": filename, "index": index}
    return None
