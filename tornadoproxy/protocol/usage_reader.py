"""Reads what an answer consumed from its bytes as they pass by. Sans-io.

It looks, and never changes or delays: a stream is read event by event, and only those that hold
a ``usage`` are parsed; a JSON answer is parsed when it is over. What is compressed is decompressed
on the side, a little at a time (`tornadoproxy.protocol.decompression`).

A stream tells its output tokens at its end. One that is cut before has told of one or a few, so
that its content is counted as well, in bytes: a token is about four of them.

A response may take several calls to models, and its ``usage`` says so in ``iterations``. Its top
level has the ``message`` entries of the model that answered, and no others: see `_all_spent`. Until
a stream reports its iterations, the blocks of its content tell that there will be some.

Sources: https://docs.anthropic.com/en/api/messages-streaming (``usage`` in ``message_delta`` is
cumulative: the last figure counts, and nothing is summed);
https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool#usage-and-billing;
https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback (each attempt that had
output is billed at its own model's price, and one without is not billed).
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec.structs import asdict, replace

from tornadoproxy.protocol import json_codec
from tornadoproxy.protocol.decompression import CorruptBody, UnreadableCoding, decompressor
from tornadoproxy.protocol.headers import is_event_stream, is_json
from tornadoproxy.protocol.usage import NOTHING_TOLD, ModelUsage, Usage

if TYPE_CHECKING:
    from tornado.httputil import HTTPHeaders

    from tornadoproxy.protocol.decompression import Decompress

MAX_JSON = 1024 * 1024
"""The largest JSON response that is read as a whole, in bytes.

Of a larger one its beginning, which names the model, and its end, which has the usage, are read.
"""

JSON_END = 64 * 1024
"""How much of a larger one is kept for its end, in bytes."""

MAX_EVENT = 64 * 1024
"""The longest event that is looked into, in bytes. Those with a ``usage`` are short."""

BYTES_PER_TOKEN = 4
"""How many bytes are taken for a token, where none has told how many there are."""

_MAX_COUNT = 2**63 - 1
_MAX_PLACES = 20  # within the end of a document, where a field may begin

_EVENT_END = re.compile(rb"\n\r?\n")

# Content is by far the most of a stream, and comes in this form. What stands around the text is
# not counted.
_CONTENT = b"event: content_block_delta"
_CONTENT_LINE = _CONTENT + b"\ndata:"
_AROUND_CONTENT = len(
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":""}}'
)

# The blocks of content that change what a stream spends, and on what.
_SPENDING_BLOCKS = (b'"fallback"', b'"advisor"', b'"compaction"')
_NOT_REPORTED = ModelUsage(None, Usage(partial=True))

S = TypeVar("S", bound=msgspec.Struct)


class UsageReader:
    """Reads one answer. Feed it each piece of the body; its attributes are what it found.

    :ivar model: the model that answered; of a stream, the one that answers at this point.
    :ivar stop_reason: why the model stopped.
    :ivar first_token_at: when the first piece of a stream's content came, in monotonic seconds.
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
        "_skipping",
        "_skipping_content",
        "_told",
        "_unreported",
        "first_token_at",
        "model",
        "stop_reason",
    )

    def __init__(self, *, is_stream: bool, content_encoding: str = "identity") -> None:
        """
        :param is_stream: server-sent events; otherwise one JSON document.
        :raises UnreadableCoding: `content_encoding` cannot be read here.
        """
        self.model: str | None = None
        self.stop_reason: str | None = None
        self.first_token_at: float | None = None
        self._told = NOTHING_TOLD
        self._content = 0  # bytes
        self._iterations: list[_Iteration] = []
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
        """What the response has reported so far; partial until it has reported that it is over."""
        usage = self._told if self._is_whole else self._seen()
        if self._iterations:
            usage = _all_spent(usage, self._iterations, self.model)
        if self._declined or self._unreported:
            unreported = (_NOT_REPORTED,) if self._unreported else ()
            usage = replace(usage, others=usage.others + self._declined + unreported)
        return usage

    def _seen(self) -> Usage:
        """What has been reported, with at least the output that the content seen is worth."""
        told = self._told
        seen = -(-self._content // BYTES_PER_TOKEN)
        if seen > (told.output_tokens or 0):
            return replace(told, output_tokens=seen, partial=True)
        return replace(told, partial=True)

    @classmethod
    def for_response(cls, headers: HTTPHeaders) -> UsageReader | None:
        """The reader for an answer with these headers; ``None`` if it cannot be read."""
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
        """Look at the next piece of the body. Never raises: what makes no sense is passed over."""
        if self._decompress is not None:
            self._look_into(self._decompress, chunk)
        elif (
            chunk.startswith(_CONTENT_LINE)
            and chunk.find(b"\n", len(_CONTENT_LINE)) == len(chunk) - 2
            and chunk.endswith(b"\n\n")
            and self._is_stream
            and not (self._kept or self._given_up)
        ):
            # nearly always: one event of content
            self._count_content(len(chunk) - 2)
        else:
            self._look(chunk)

    def finish(self) -> None:
        """Say that the body is over."""
        if not self._is_stream:
            learn = self._learn_end if self._skipping else self._learn
            self._is_whole = learn(self._kept) or self._is_whole
        else:
            self._look_at_rest(len(self._kept.rstrip(b"\r\n")))
        self._give_up()

    def _look_into(self, decompress: Decompress, chunk: bytes) -> None:
        try:
            for piece in decompress(chunk):
                if self._given_up:
                    return
                self._look(piece)
        except CorruptBody:  # the client has the bytes
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
        searched = max(len(kept) - 2, 0)  # an event's end may have begun in what is kept
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
        """Count what there is of an event that has no end."""
        if self._skipping_content:
            self._content += length
        elif self._kept.startswith(_CONTENT):
            self._content += max(length - _AROUND_CONTENT, 0)

    def _give_up(self) -> None:
        self._given_up = True
        self._decompress = None
        self._kept = bytearray()

    def _learn(self, document: bytes | bytearray) -> bool:
        """Whether it is a document at all."""
        told = _told_by(document)
        if told is None:
            return False
        # message_start wraps what a JSON answer is
        message: _Message = told if told.message is None else told.message
        if message.model is not None:
            self.model = message.model
        # of message_delta, where the rest is at its top
        stop_reason = message.stop_reason if told.delta is None else told.delta.stop_reason
        if stop_reason is not None:
            self.stop_reason = stop_reason
        if message.usage is not None:
            self._told = _with(message.usage, self._told)
            if message.usage.iterations is not None:
                self._take_iterations(message.usage.iterations)
        if told.content_block is not None:
            self._take_block(told.content_block)
        return True

    def _learn_end(self, end: bytearray) -> bool:
        """Learn from the end of a document; return whether it has a usage.

        From a field of the top level on, and nowhere else, the end is an object without its brace.
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

    def _take_iterations(self, iterations: list[_Iteration]) -> None:
        self._iterations = iterations
        self._unreported = False
        for each in iterations:
            if each.type == "fallback_message":
                self._declined = ()
                self.model = each.model or self.model

    def _take_block(self, block: _Block) -> None:
        """Take note of a block that tells which model goes on, or that another one was asked."""
        if block.type == "fallback":
            if self._content:
                self._declined += (ModelUsage(self.model, self._seen()),)
            self._told = replace(self._told, output_tokens=None)
            self._content = 0
            self.model = None if block.to is None else block.to.model
        elif block.type == "compaction" or (
            block.type == "server_tool_use" and block.name == "advisor"
        ):
            self._unreported = True


_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=_MAX_COUNT)]


class _ByLifetime(msgspec.Struct):
    ephemeral_1h_input_tokens: _Count | None = None


class _ServerTools(msgspec.Struct):
    web_search_requests: _Count | None = None
    web_fetch_requests: _Count | None = None


class _Tokens(msgspec.Struct):
    """Counts in the API's names."""

    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None
    cache_creation: _ByLifetime | None = None
    server_tool_use: _ServerTools | None = None


class _Iteration(_Tokens):
    """An entry of ``iterations``."""

    type: str | None = None
    model: str | None = None


class _Counts(_Tokens):
    """A ``usage``."""

    iterations: list[_Iteration] | None = None


class _Hop(msgspec.Struct):
    model: str | None = None


class _Block(msgspec.Struct):
    """What of a ``content_block`` is looked at."""

    type: str | None = None
    name: str | None = None
    to: _Hop | None = None


class _Delta(msgspec.Struct):
    stop_reason: str | None = None


class _Message(msgspec.Struct):
    """What of a message is looked at."""

    model: str | None = None
    stop_reason: str | None = None
    usage: _Counts | None = None


class _Told(_Message):
    """What of a message, or of an event of a stream, is looked at."""

    message: _Message | None = None
    delta: _Delta | None = None
    content_block: _Block | None = None


_PARTS: dict[str, type[msgspec.Struct]] = {
    "usage": _Counts,
    "cache_creation": _ByLifetime,
    "server_tool_use": _ServerTools,
    "iterations": _Iteration,
    "message": _Message,
    "delta": _Delta,
    "content_block": _Block,
    "to": _Hop,
}

_decode = msgspec.json.Decoder(_Told).decode


def _told_by(document: bytes | bytearray) -> _Told | None:
    """What `document` tells; ``None`` if it is none."""
    try:
        return _decode(document)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass
    try:
        return _picked(json_codec.loads(document), _Told)
    except (ValueError, RecursionError):
        return None


def _picked(document: object, kind: type[S]) -> S:
    """What `document` tells, whatever else of it makes no sense."""
    told = kind()
    if not isinstance(document, dict):
        return told
    for name in kind.__struct_fields__:
        value = document.get(name)
        try:
            setattr(told, name, getattr(msgspec.convert({name: value}, kind), name))
        except (msgspec.ValidationError, UnicodeError):  # half of a surrogate pair
            if name in _PARTS and isinstance(value, dict):
                setattr(told, name, _picked(value, _PARTS[name]))
            elif name == "iterations" and isinstance(value, list):
                setattr(told, name, [_picked(each, _Iteration) for each in value])
    return told


def _with(counts: _Tokens, before: Usage) -> Usage:
    """`before`, and over it what `counts` tells."""
    tools = counts.server_tool_use
    by_lifetime = counts.cache_creation
    told = Usage(
        counts.input_tokens,
        counts.output_tokens,
        counts.cache_read_input_tokens,
        counts.cache_creation_input_tokens,
        None if by_lifetime is None else by_lifetime.ephemeral_1h_input_tokens,
        None if tools is None else tools.web_search_requests,
        None if tools is None else tools.web_fetch_requests,
    )
    if before is NOTHING_TOLD:
        return told
    news = {name: count for name, count in asdict(told).items() if count is not None}
    # message_delta has no lifetimes: what server tools add to a one-hour cache is kept as long
    written, for_an_hour = before.cache_creation_input_tokens, before.cache_creation_1h_input_tokens
    if for_an_hour and for_an_hour == written and told.cache_creation_input_tokens is not None:
        news.setdefault("cache_creation_1h_input_tokens", told.cache_creation_input_tokens)
    return replace(before, **news)


def _all_spent(top: Usage, iterations: list[_Iteration], model: str | None) -> Usage:
    """`top`, the top level's counts, with all that `iterations` report besides.

    A ``compaction`` is a call of its own to the model that answered, and has a price of its own. An
    entry of any other model is apart, also if its type is not known yet; but an attempt that
    declined without any output is not billed. Without a fallback each ``message`` is in the top
    level, whatever alias of the model it names.

    :param model: the one that answered.
    """
    answered = [each.model for each in iterations if each.type == "fallback_message"]
    within: list[_Iteration] = []
    others: list[ModelUsage] = []
    for each in iterations:
        if each.type == "fallback_message" or (
            each.type == "message" and (not answered or each.model in answered)
        ):
            within.append(each)
        elif each.type != "message" or each.output_tokens != 0:
            spent_on = model if each.type == "compaction" else each.model
            others.append(ModelUsage(spent_on, _with(each, NOTHING_TOLD)))
    lifetimes = [each.cache_creation for each in within if each.cache_creation is not None]
    if within and len(lifetimes) == len(within):
        hourly = sum(each.ephemeral_1h_input_tokens or 0 for each in lifetimes)
        written = top.cache_creation_input_tokens or 0
        top = replace(top, cache_creation_1h_input_tokens=min(hourly, written))
    return replace(top, others=tuple(others)) if others else top


class Message(NamedTuple):
    """What a whole message tells."""

    model: str | None
    stop_reason: str | None
    usage: Usage


def read_message(message: dict[str, Any]) -> Message:  # Any: JSON
    """What `message`, a whole one, tells of itself."""
    try:
        told = msgspec.convert(message, _Message)
    except (msgspec.ValidationError, UnicodeError):
        told = _picked(message, _Message)
    usage = NOTHING_TOLD
    if told.usage is not None:
        usage = _with(told.usage, usage)
        if told.usage.iterations:
            usage = _all_spent(usage, told.usage.iterations, told.model)
    return Message(told.model, told.stop_reason, usage)


def read_usage(usage: dict[str, Any]) -> Usage:  # Any: JSON
    """What `usage`, a whole message's, reports."""
    return read_message({"usage": usage}).usage


def _type(event: bytearray) -> object:
    try:
        data = json_codec.loads(_data(event))
    except (ValueError, RecursionError):
        return None
    return data.get("type") if isinstance(data, dict) else None


def _data(event: bytearray) -> bytes | bytearray:
    _, found, data = event.partition(b"\ndata:")
    if found and data.find(b"\n") < 0:
        return data
    lines = (line for line in event.splitlines() if line.startswith(b"data:"))
    return b"\n".join(line[5:] for line in lines)
