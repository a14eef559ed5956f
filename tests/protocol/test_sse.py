"""Server-sent events: their data, and the error in a stream that was cut, as the SDKs read it."""

from __future__ import annotations

import json
from itertools import cycle

import anthropic
import httpx2
import openai
import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from properties import holds_of

from tornadoproxy.errors import UpstreamClosed, UpstreamProtocolError
from tornadoproxy.protocol import sse
from tornadoproxy.protocol.dialects import Dialect
from tornadoproxy.protocol.sse import EventBoundary, EventReader
from tornadoproxy.testing import message_document, message_events

MESSAGE = "The upstream closed the connection in the middle of its answer: é 世 😀."
REQUEST_ID = "req_0123"

# characters of one to four bytes, at the edges of what UTF-8's lead bytes allow
TEXT = "Hello \u0080\u07ff \u0800\ud7ff\ue000\uffff \U00010000\U0010ffff"
DOCUMENT = message_document(
    content=[
        {"type": "text", "text": TEXT},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"q": "é😀"}},
    ],
    stop_reason="tool_use",
)
*BEGUN, LAST, STOP = message_events(DOCUMENT)
TOMORROW = b'event: an_event_of_tomorrow\ndata: {"type":"an_event_of_tomorrow"}\n\n'
EVENTS = [*BEGUN, b": a comment\n\n", TOMORROW, LAST, STOP]
STREAM = b"".join(EVENTS)

line_ends = pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])


@line_ends
@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_boundary_knows_the_end_of_each_event(size: int, line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    ends = {0, len(stream)}
    ends.update(i for i in range(len(stream)) if stream[:i].endswith(line_end * 2))
    boundary = EventBoundary()
    for start in range(0, len(stream), size):
        assert boundary.between_events == (start in ends)
        assert (boundary.discard() == b"") == (start in ends)
        boundary.feed(b"")
        boundary.feed(stream[start : start + size])
    assert boundary.between_events


CLIENT = anthropic.Anthropic(api_key="k", base_url="http://upstream.example")
OPENAI_CLIENT = openai.OpenAI(api_key="k", base_url="http://upstream.example")


def response(stream: bytes) -> httpx2.Response:
    request = httpx2.Request("POST", "http://upstream.example/v1/messages")
    headers = {"content-type": "text/event-stream", "request-id": REQUEST_ID}
    return httpx2.Response(200, headers=headers, content=stream, request=request)


def read_by_anthropic(stream: bytes, seen: list[RawMessageStreamEvent]) -> None:
    """Read a stream with the SDK's decoder; `seen` takes the events before an error."""
    events: anthropic.Stream[RawMessageStreamEvent] = anthropic.Stream(
        cast_to=RawMessageStreamEvent,  # type: ignore[arg-type]  # as the SDK itself does
        response=response(stream),
        client=CLIENT,
    )
    seen.extend(events)


def with_error(sent: bytes, dialect: Dialect) -> bytes:
    """`sent`, and what follows it when the upstream disconnects."""
    boundary = EventBoundary()
    boundary.feed(sent)
    return sent + boundary.discard() + dialect.stream_error(UpstreamClosed(MESSAGE), REQUEST_ID)


@line_ends
def test_stream_cut_anywhere_raises_the_error_in_the_sdk(line_end: bytes) -> None:
    """Every byte around the ends of lines and events, and within characters; others sampled."""
    stream = STREAM.replace(b"\n", line_end)
    critical = (b"\n", b"\r", b"ev", b"da")
    for cut in range(len(stream) + 1):
        near = stream[max(cut - 2, 0) : cut + 2]
        if cut % 29 == 0 or not near.isascii() or any(each in near for each in critical):
            seen: list[RawMessageStreamEvent] = []
            with pytest.raises(anthropic.APIStatusError) as raised:
                read_by_anthropic(with_error(stream[:cut], Dialect.ANTHROPIC), seen)
            error = raised.value
            assert (error.api_message, error.type) == (MESSAGE, "api_error")
            assert error.request_id == REQUEST_ID
            names = [name for name, _ in events_of(stream[:cut])]
            assert len(seen) == len(names) - names.count(b"ping")


def test_character_cut_anywhere_is_completed() -> None:
    """Each pair of first bytes, which are all that matter; surrogates have no encoding."""
    for code in [*range(0x80, 0xD800, 0x40), *range(0xE000, 0x11_0000, 0x1000)]:
        encoded = chr(code).encode()
        for cut in range(1, len(encoded)):
            sent = b"event: content_block_delta\ndata: {" + encoded[:cut]
            with_error(sent, Dialect.ANTHROPIC).decode("utf-8", "strict")


def test_sdk_ignores_a_ping_of_ours() -> None:
    plain: list[RawMessageStreamEvent] = []
    pinged: list[RawMessageStreamEvent] = []
    read_by_anthropic(STREAM, plain)
    ping = Dialect.ANTHROPIC.ping
    read_by_anthropic(b"".join(part for each in EVENTS for part in (ping, each, ping)), pinged)
    assert pinged == plain


def test_chunks_cut_between_two_raise_the_error_in_the_sdk() -> None:
    choice = {"index": 0, "delta": {"content": TEXT}}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    sent = b"data: %b\n\n" % json.dumps({**chunk, "choices": [choice]}).encode() * 2
    seen: list[ChatCompletionChunk] = []
    stream = openai.Stream(
        cast_to=ChatCompletionChunk,
        response=response(with_error(sent, Dialect.OPENAI)),
        client=OPENAI_CLIENT,
    )
    with pytest.raises(openai.APIError) as raised:
        seen.extend(stream)
    assert (raised.value.message, raised.value.type) == (MESSAGE, "server_error")
    assert len(seen) == 2


def test_event_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 1000)
    EventReader().feed(b"x" * 1000)
    reader = EventReader()
    for _ in range(3):  # the limit is that of one event
        assert reader.feed(b"data: ".ljust(998, b"x") + b"\n\n")
    reader.feed(b"x" * 999)
    reader.feed(b"x")
    with pytest.raises(UpstreamProtocolError):
        reader.feed(b"x")


FIELDS = [
    *(b"data: x", b"data:y", b"data:", b"data", b"data: {}", b"event: error", b"event:ping"),
    *(b"id: 1", b":", b": data: x", b" ", b" data: x", b"\xef\xbb\xbfdata: x"),
    *(b"data: \xe2\x82", b"data: \xf0", b"data: \xc3", b"data: \xed\x00"),
]
LINE_ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
LINES = st.tuples(st.sampled_from(FIELDS), LINE_ENDS).map(b"".join)
WHOLE = st.tuples(st.lists(LINES, max_size=3).map(b"".join), LINE_ENDS).map(b"".join)
SHREDS = st.binary(max_size=4) | st.sampled_from([b"data:", b"event: x", b"\n", b"\r", b"\xe2\x82"])
STREAMS = st.tuples(
    st.lists(WHOLE, max_size=8).map(b"".join), st.lists(SHREDS, max_size=30).map(b"".join)
).map(b"".join)
SIZES = st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 20]), min_size=1, max_size=8).filter(any)


def pieces_of(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in pieces of these sizes, over and over."""
    pieces: list[bytes] = []
    for size in cycle(sizes):
        if not data:
            break
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def events_of(stream: bytes) -> list[tuple[bytes, list[bytes]]]:
    """Each event's name and lines of data, as the standard reads them except for blanks.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """
    events = []
    name, lines = b"", []
    whole = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
    for line in whole:
        field, colon, value = line.partition(b":")
        if field == b"data" and colon:
            lines.append(value.strip())
        elif field == b"event":
            name = value.strip()
        elif not line:
            if any(lines):
                events.append((name, [each for each in lines if each]))
            name, lines = b"", []
    return events


FORMS = [
    *(b"data:a\n\n", b"event: x\ndata: a\ndata: b\nid: 7\n\n", b"event: x\ndata: a\nid: 7\n\n"),
    *(b": data: b\ndata: a\n\n", b"event: x\n\ndata\n\ndata:\n\n", b"\n\n\n\ndata: a\n\n\n"),
    *(b"data: a\n", b"data: a\r\ndata: b\r\n\r\n", b"data: x\r\r"),
]


@holds_of(
    *(STREAMS, SIZES),
    known=[(b"data: x\r\ndata: y\n\n", [8, 0, 1]), *((form, [1]) for form in FORMS)],
)
def test_events_are_the_same_at_any_split(stream: bytes, sizes: list[int]) -> None:
    whole = EventReader().feed(stream)
    reader = EventReader()
    assert [data for piece in pieces_of(stream, sizes) for data in reader.feed(piece)] == whole
    found = [[line for line in data.split(b"\n") if line] for data in whole]
    assert [lines for lines in found if lines] == [lines for _, lines in events_of(stream)]
