"""The usage in a response's bytes, read as they are relayed. Sans-io.

The reader neither changes nor delays anything. It reads a stream event by event, and parses only
the events that hold a ``usage`` or change what is spent; it parses a JSON response at its end.
Compressed bodies are decompressed piece by piece (`tornadoproxy.protocol.decompression`).

A stream reports its output tokens at its end, and at its start only one or a few. So its content is
counted as well, in bytes: if the stream is cut, four bytes count as a token.

A response may take several calls to models, listed in ``iterations`` of its ``usage`` (see
`tornadoproxy.protocol.usage_fields`). Until a stream reports its iterations, the blocks of its
content show that there will be some.

Source: https://docs.anthropic.com/en/api/messages-streaming (``usage`` in ``message_delta`` is
cumulative: the last figure counts, and nothing is summed).
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tornadoproxy.protocol import json_codec
from tornadoproxy.protocol.decompression import CorruptBody, UnreadableCoding, decompressor
from tornadoproxy.protocol.headers import is_event_stream, is_json
from tornadoproxy.protocol.usage import BYTES_PER_TOKEN, NOTHING_REPORTED, ModelUsage, Usage
from tornadoproxy.protocol.usage_fields import parse_reported, updated, with_iterations

if TYPE_CHECKING:
    from tornado.httputil import HTTPHeaders

    from tornadoproxy.protocol.decompression import Decompress
    from tornadoproxy.protocol.usage_fields import Block, Iteration, MessageFields

MAX_JSON = 1024 * 1024
"""The largest JSON response that is read as a whole, in bytes.

Of a larger one, only the beginning (the model) and the end (the usage) are read.
"""

JSON_END = 64 * 1024
"""How much of the end of a larger response is kept, in bytes."""

MAX_EVENT = 64 * 1024
"""The longest event that is parsed, in bytes. Events with a ``usage`` are short."""

_MAX_PLACES = 20  # occurrences of a field's name that are tried at the end of a large document

_EVENT_END = re.compile(rb"\n\r?\n")

# Nearly all events of a stream are content in this form. The bytes around the text are not counted.
_CONTENT = b"event: content_block_delta"
_CONTENT_LINE = _CONTENT + b"\ndata:"
_AROUND_CONTENT = len(
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":""}}'
)

# The content blocks that change what a stream spends, or on which model.
_SPENDING_BLOCKS = (b'"fallback"', b'"advisor"', b'"compaction"')
_NOT_REPORTED = ModelUsage(None, Usage(partial=True))


class UsageReader:
    """Reader of one response: feed it each piece of the body, then read its attributes.

    :ivar model: the model that responded; within a stream, the model that responds at this point.
    :ivar stop_reason: why the model stopped.
    :ivar first_token_at: when a stream's first content arrived, in monotonic seconds.
    """

    __slots__ = (
        "_content",
        "_declined",
        "_decompress",
        "_given_up",
        "_is_stream",
        "_is_whole",
        "_iterations",
        "_kept",
        "_reported",
        "_skipping",
        "_skipping_content",
        "_unreported",
        "first_token_at",
        "model",
        "stop_reason",
    )

    def __init__(self, *, is_stream: bool, content_encoding: str = "identity") -> None:
        """
        :param is_stream: whether the body is server-sent events; otherwise it is one JSON document.
        :raises UnreadableCoding: `content_encoding` cannot be read here.
        """
        self.model: str | None = None
        self.stop_reason: str | None = None
        self.first_token_at: float | None = None
        self._reported = NOTHING_REPORTED
        self._content = 0  # bytes
        self._iterations: list[Iteration] = []
        self._declined: tuple[ModelUsage, ...] = ()
        self._unreported = False  # whether there are iterations that no usage has reported
        self._is_whole = False
        self._is_stream = is_stream
        self._decompress = (
            None if content_encoding == "identity" else decompressor(content_encoding)
        )
        self._kept = bytearray()
        self._skipping = False  # until the end of an event, or a document, that is too long
        self._skipping_content = False
        self._given_up = False

    @property
    def usage(self) -> Usage:
        """The usage reported so far; partial until the response has reported its end."""
        usage = self._reported if self._is_whole else self._seen()
        if self._iterations:
            usage = with_iterations(usage, self._iterations, self.model)
        if self._declined or self._unreported:
            unreported = (_NOT_REPORTED,) if self._unreported else ()
            usage = replace(usage, others=usage.others + self._declined + unreported)
        return usage

    def _seen(self) -> Usage:
        """Return the reported usage, with at least the output estimated from the content."""
        reported = self._reported
        seen = -(-self._content // BYTES_PER_TOKEN)
        if seen > (reported.output_tokens or 0):
            return replace(reported, output_tokens=seen, partial=True)
        return replace(reported, partial=True)

    @classmethod
    def for_response(cls, headers: HTTPHeaders) -> UsageReader | None:
        """Return a reader for a response with these headers; ``None`` if it is unreadable."""
        is_stream = is_event_stream(headers)
        if not is_stream and not is_json(headers):
            return None
        if "Content-Encoding" not in headers:
            return cls(is_stream=is_stream)
        try:
            encoding = headers["Content-Encoding"].lower()
            return cls(is_stream=is_stream, content_encoding=encoding)
        except UnreadableCoding:
            return None

    def feed(self, chunk: bytes) -> None:
        """Read the next piece of the body. Never raises: invalid input is skipped."""
        if self._decompress is not None:
            self._look_into(self._decompress, chunk)
        elif (
            chunk.startswith(_CONTENT_LINE)
            and chunk.find(b"\n", len(_CONTENT_LINE)) == len(chunk) - 2
            and chunk.endswith(b"\n\n")
            and self._is_stream
            and not (self._kept or self._given_up)
        ):
            # nearly always, a chunk is one event of content
            self._count_content(len(chunk) - 2)
        else:
            self._look(chunk)

    def finish(self) -> None:
        """Process the end of the body."""
        if not self._is_stream:
            learn = self._learn_end if self._skipping else self._learn
            self._is_whole = learn(self._kept) or self._is_whole
        else:
            self._look_at_rest(len(self._kept.rstrip(b"\r\n")))
        self._give_up()

    def _look_into(self, decompress: Decompress, chunk: bytes) -> None:
        try:
            for piece in decompress(chunk):
                self._look(piece)
        except CorruptBody:  # the client gets the bytes all the same
            self._give_up()

    def _look(self, chunk: bytes) -> None:
        if self._given_up:
            return
        if self._is_stream:
            self._look_for_events(chunk)
            return
        self._kept += chunk
        if len(self._kept) > MAX_JSON:
            if not self._skipping:
                self._skipping = True
                content = self._kept.find(b'"content"', 0, JSON_END)
                self._learn(self._kept[: max(content, 0)].rstrip(b", \t\r\n") + b"}")
            del self._kept[:-JSON_END]

    def _look_for_events(self, chunk: bytes) -> None:
        kept = self._kept
        searched = max(len(kept) - 2, 0)  # the kept bytes may end within an event's end
        kept += chunk
        start = 0
        while end := _EVENT_END.search(kept, searched):
            stop, searched = end.span()
            if self._skipping:
                if self._skipping_content:
                    self._content += stop - start
                self._skipping = self._skipping_content = False
            elif kept.startswith(_CONTENT, start):
                self._count_content(stop - start)
            else:
                self._look_at(kept[start:stop])
            start = searched
        del kept[:start]
        if len(kept) > MAX_EVENT and not self._skipping:
            self._skipping = True
            self._skipping_content = kept.startswith(_CONTENT)
            if self._skipping_content:
                self._content -= _AROUND_CONTENT
        if self._skipping:
            if self._skipping_content:
                self._content += max(len(kept) - 2, 0)
            del kept[:-2]

    def _count_content(self, length: int) -> None:
        if length > _AROUND_CONTENT:
            self._content += length - _AROUND_CONTENT
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()

    def _look_at(self, event: bytearray) -> None:
        # find(): on bytes, ``in`` takes three times as long
        if event.find(b'"usage"') >= 0:
            self._learn(_data(event))
        elif event.find(b"message_stop") >= 0:
            self._is_whole = _type(event) == "message_stop" or self._is_whole
        elif event.find(b"content_block_start") >= 0:
            if any(event.find(kind) >= 0 for kind in _SPENDING_BLOCKS):
                self._learn(_data(event))
        elif event.find(b"content_block_delta") >= 0 and _type(event) == "content_block_delta":
            self._count_content(len(event))

    def _look_at_rest(self, length: int) -> None:
        """Count the content of an event that was cut."""
        if self._skipping_content:
            self._content += length
        elif self._kept.startswith(_CONTENT):
            self._content += max(length - _AROUND_CONTENT, 0)

    def _give_up(self) -> None:
        self._given_up = True
        self._decompress = None
        self._kept = bytearray()

    def _learn(self, document: bytes | bytearray) -> bool:
        """Take in a document; return whether it is one."""
        fields = parse_reported(document)
        if fields is None:
            return False
        # message_start wraps the message that a JSON response is
        message: MessageFields = fields if fields.message is None else fields.message
        if message.model is not None:
            self.model = message.model
        # in message_delta, only the stop reason is below the top level
        stop_reason = message.stop_reason if fields.delta is None else fields.delta.stop_reason
        if stop_reason is not None:
            self.stop_reason = stop_reason
        if message.usage is not None:
            self._reported = updated(message.usage, self._reported)
            if message.usage.iterations is not None:
                self._take_iterations(message.usage.iterations)
        if fields.content_block is not None:
            self._take_block(fields.content_block)
        return True

    def _learn_end(self, end: bytearray) -> bool:
        """Take in the end of a document; return whether it has a usage.

        From a field of the top level on, and only from there, the rest of the document is an object
        without its opening brace.
        """
        found = False
        for name in (b'"stop_reason"', b'"usage"'):
            start = len(end)
            for _ in range(_MAX_PLACES):
                start = end.rfind(name, 0, start)
                if start < 0:
                    break
                if self._learn(b"{" + end[start:]):
                    found = name == b'"usage"'
                    break
        return found

    def _take_iterations(self, iterations: list[Iteration]) -> None:
        self._iterations = iterations
        self._unreported = False
        for each in iterations:
            if each.type == "fallback_message":
                self._declined = ()
                self.model = each.model or self.model

    def _take_block(self, block: Block) -> None:
        """Take in a block that names the next model, or shows a call to another one."""
        if block.type == "fallback":
            if self._content:
                self._declined += (ModelUsage(self.model, self._seen()),)
            self._reported = replace(self._reported, output_tokens=None)
            self._content = 0
            self.model = None if block.to is None else block.to.model
        elif block.type == "compaction" or (
            block.type == "server_tool_use" and block.name == "advisor"
        ):
            self._unreported = True


def _type(event: bytearray) -> object:
    try:
        data = json_codec.loads(_data(event))
    except (ValueError, RecursionError):
        return None
    return data.get("type") if isinstance(data, dict) else None


def _data(event: bytearray) -> bytes | bytearray:
    _, found, data = event.partition(b"\ndata:")
    if found and data.find(b"\n") < 0 and not event.startswith(b"data:"):
        return data
    lines = (line for line in event.splitlines() if line.startswith(b"data:"))
    return b"\n".join(line[5:] for line in lines)
