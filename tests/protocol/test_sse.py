"""Server-sent events: their data, and the error in a stream that was cut, as the SDKs read it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anthropic
import httpx2
import openai
import pytest
from anthropic.types import RawMessageStreamEvent
from openai.types.chat import ChatCompletionChunk

from tornadoproxy.errors import UpstreamClosed, UpstreamProtocolError
from tornadoproxy.protocol import sse
from tornadoproxy.protocol.dialects import Dialect
from tornadoproxy.protocol.sse import PING, EventBoundary, EventReader
from tornadoproxy.testing import message_document, message_events

if TYPE_CHECKING:
    from collections.abc import Iterable

MESSAGE = "The upstream closed the connection in the middle of its answer: é 世 😀."
REQUEST_ID = "req_0123"

# characters of one to four bytes, at the edges of what UTF-8's lead bytes allow
TEXTS = ["Hello", "Grüße \u0080\u07ff", "世界 \u0800\ud7ff\ue000\uffff", "😀 \U00010000\U0010ffff"]


DOCUMENT = message_document(
    content=[
        {"type": "text", "text": " ".join(TEXTS)},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"q": "é😀"}},
    ],
    stop_reason="tool_use",
)
*BEGUN, LAST, STOP = message_events(DOCUMENT)
TOMORROW = b'event: an_event_of_tomorrow\ndata: {"type":"an_event_of_tomorrow"}\n\n'
EVENTS = [*BEGUN, b": a comment\n\n", TOMORROW, LAST, STOP]
STREAM = b"".join(EVENTS)

LINE_ENDS = {"LF": b"\n", "CRLF": b"\r\n", "CR": b"\r"}


def with_line_ends(stream: bytes, line_end: bytes) -> bytes:
    return stream.replace(b"\n", line_end)


@pytest.mark.parametrize("line_end", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 100_000])
def test_boundary_knows_the_end_of_each_event(size: int, line_end: bytes) -> None:
    stream = with_line_ends(STREAM, line_end)
    ends = {0, len(stream)}
    ends.update(i for i in range(len(stream)) if stream[:i].endswith(line_end * 2))
    boundary = EventBoundary()
    assert boundary.between_events
    for start in range(0, len(stream), size):
        boundary.feed(b"")
        piece = stream[start : start + size]
        boundary.feed(piece)
        assert boundary.between_events == (start + len(piece) in ends)
    boundary.feed(PING)
    assert boundary.between_events


CLIENT = anthropic.Anthropic(api_key="k", base_url="http://upstream.example")
OPENAI_CLIENT = openai.OpenAI(api_key="k", base_url="http://upstream.example")


def read_by_anthropic(pieces: Iterable[bytes], seen: list[RawMessageStreamEvent]) -> None:
    """Read a stream with the SDK's decoder; `seen` takes the events before an error."""
    response = httpx2.Response(
        200,
        headers={"content-type": "text/event-stream", "request-id": REQUEST_ID},
        content=iter(pieces),
        request=httpx2.Request("POST", "http://upstream.example/v1/messages"),
    )
    stream: anthropic.Stream[RawMessageStreamEvent] = anthropic.Stream(
        cast_to=RawMessageStreamEvent,  # type: ignore[arg-type]  # as the SDK itself does
        response=response,
        client=CLIENT,
    )
    seen.extend(stream)


def read_by_openai(stream: bytes, seen: list[ChatCompletionChunk]) -> None:
    response = httpx2.Response(
        200,
        headers={"content-type": "text/event-stream"},
        content=stream,
        request=httpx2.Request("POST", "http://upstream.example/chat/completions"),
    )
    seen.extend(openai.Stream(cast_to=ChatCompletionChunk, response=response, client=OPENAI_CLIENT))


def cut_off(sent: bytes) -> bytes:
    """The bytes after `sent` when the upstream disconnects."""
    boundary = EventBoundary()
    boundary.feed(sent)
    error = UpstreamClosed(MESSAGE)
    return boundary.discard() + Dialect.ANTHROPIC.stream_error(error, REQUEST_ID)


def dispatched(cut: int, line_end: bytes) -> int:
    """The number of events that the SDK returns of a stream of `cut` bytes."""
    count, end = 0, 0
    for each in EVENTS:
        end += len(with_line_ends(each, line_end))
        # the carriage return already ends a blank line
        whole = cut >= (end - 1 if line_end == b"\r\n" else end)
        count += whole and not each.startswith((b":", b"event: ping"))
    return count


def check_raises_the_error(pieces: list[bytes], whole_events: int) -> None:
    """The SDK raises the error: no decoding error of its own, and no clean end."""
    seen: list[RawMessageStreamEvent] = []
    with pytest.raises(anthropic.APIStatusError) as raised:
        read_by_anthropic(pieces, seen)
    error = raised.value
    assert (error.api_message, error.type) == (MESSAGE, "api_error")
    assert error.request_id == REQUEST_ID
    assert len(seen) == whole_events


@pytest.mark.parametrize("line_end", LINE_ENDS.values(), ids=LINE_ENDS)
def test_stream_cut_anywhere_raises_the_error_in_the_sdk(line_end: bytes) -> None:
    """Every byte around the ends of lines and events, and within characters; others sampled."""
    stream = with_line_ends(STREAM, line_end)
    critical = (b"\n", b"\r", b"ev", b"da")
    for cut in range(len(stream) + 1):
        near = stream[max(cut - 2, 0) : cut + 2]
        if cut % 29 == 0 or not near.isascii() or any(each in near for each in critical):
            sent = stream[:cut]
            check_raises_the_error([sent, cut_off(sent)], dispatched(cut, line_end))


@pytest.mark.parametrize("cut", range(0, len(STREAM), 397))
def test_stream_cut_and_read_byte_by_byte_raises_the_error(cut: int) -> None:
    sent = STREAM[:cut]
    whole = sent + cut_off(sent)
    check_raises_the_error([bytes([byte]) for byte in whole], dispatched(cut, b"\n"))


def test_character_cut_anywhere_is_completed() -> None:
    """Each pair of first bytes, which are all that matter; surrogates have no encoding."""
    for code in [*range(0x80, 0xD800, 0x40), *range(0xE000, 0x11_0000, 0x1000)]:
        encoded = chr(code).encode()
        for cut in range(1, len(encoded)):
            boundary = EventBoundary()
            sent = b"event: content_block_delta\ndata: {" + encoded[:cut]
            boundary.feed(sent)
            (sent + boundary.discard()).decode("utf-8", "strict")


def test_whole_events_need_no_repair() -> None:
    boundary = EventBoundary()
    assert boundary.discard() == b""
    for each in EVENTS:
        boundary.feed(each)
        assert boundary.discard() == b""


def test_sdk_takes_a_cut_stream_without_error_for_whole() -> None:
    """Why an error has to be inserted."""
    seen: list[RawMessageStreamEvent] = []
    read_by_anthropic(EVENTS[:5], seen)
    assert len(seen) == 4  # all but a ping


def test_sdk_ignores_a_ping_of_ours() -> None:
    plain: list[RawMessageStreamEvent] = []
    pinged: list[RawMessageStreamEvent] = []
    read_by_anthropic(EVENTS, plain)
    read_by_anthropic([part for each in EVENTS for part in (PING, each, PING)], pinged)
    assert pinged == plain
    assert len(plain) == dispatched(len(STREAM), b"\n")


CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
CHUNKS = [
    b"data: %b\n\n" % json.dumps({**CHUNK, "choices": [choice]}).encode()
    for choice in ({"index": 0, "delta": {"content": text}} for text in TEXTS)
]


@pytest.mark.parametrize("whole", range(len(CHUNKS) + 1))
def test_chunks_cut_between_two_raise_the_error_in_the_sdk(whole: int) -> None:
    sent = b"".join(CHUNKS[:whole])
    boundary = EventBoundary()
    boundary.feed(sent)
    error = Dialect.OPENAI.stream_error(UpstreamClosed(MESSAGE), REQUEST_ID)
    assert b"[DONE]" not in error
    seen: list[ChatCompletionChunk] = []
    with pytest.raises(openai.APIError) as raised:
        read_by_openai(sent + boundary.discard() + error, seen)
    assert (raised.value.message, raised.value.type) == (MESSAGE, "server_error")
    assert len(seen) == whole


# -- reading events

SHORT = b"".join([EVENTS[0], PING, *EVENTS[2:6]])
DATA = [line[6:] for line in SHORT.split(b"\n") if line.startswith(b"data: ")]


@pytest.mark.parametrize("newline", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100_000])
def test_events_are_read_at_any_split(newline: bytes, size: int) -> None:
    stream = with_line_ends(SHORT, newline)
    reader = EventReader()
    found: list[bytes] = []
    for begin in range(0, len(stream), size):
        found += reader.feed(b"")
        found += reader.feed(stream[begin : begin + size])
    assert found == DATA


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data:a\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"event: x\ndata: a\ndata: b\nid: 7\n\n", [b"a\nb"]),
        (b"event: x\ndata: a\nid: 7\n\n", [b"a"]),
        (b": a comment\n\ndata: a\n\n", [b"a"]),
        (b": data: b\ndata: a\n\n", [b"a"]),
        (b"event: x\n\n", []),
        (b"data\n\ndata:\n\n", []),
        (b"\n\n\n\ndata: a\n\n\n", [b"a"]),
        (b"data: a\n", []),
        (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
    ],
)
def test_event_of_any_form_is_read(stream: bytes, data: list[bytes]) -> None:
    assert EventReader().feed(stream) == data
    reader = EventReader()
    assert [each for byte in stream for each in reader.feed(bytes([byte]))] == data


def test_event_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 1000)
    reader = EventReader()
    reader.feed(b"data: " + b"x" * 900)
    with pytest.raises(UpstreamProtocolError):
        reader.feed(b"x" * 200)
    reader = EventReader()
    for _ in range(10):  # the limit is that of one event
        assert reader.feed(b"data: " + b"x" * 900 + b"\n\n")
