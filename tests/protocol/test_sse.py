"""Event boundaries, and how an error is put into a stream that was cut off anywhere.

What counts is what real clients make of it, so the SDKs' own decoders read the streams here.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import openai
import pytest
from anthropic.types import RawMessageStreamEvent
from openai.types.chat import ChatCompletionChunk

from tornadoproxy.errors import UpstreamClosed
from tornadoproxy.protocol.dialects import Dialect
from tornadoproxy.protocol.sse import PING, EventBoundary

if TYPE_CHECKING:
    from collections.abc import Iterable

MESSAGE = "The upstream closed the connection in the middle of its answer: é 世 😀."
REQUEST_ID = "req_0123"

# characters of one to four bytes, at the edges of what UTF-8's lead bytes allow
TEXTS = ["Hello", "Grüße \u0080\u07ff", "世界 \u0800\ud7ff\ue000\uffff", "😀 \U00010000\U0010ffff"]


def event(name: str, data: dict[str, Any]) -> bytes:  # Any: JSON
    document = json.dumps({"type": name, **data}, ensure_ascii=False)
    return f"event: {name}\ndata: {document}\n\n".encode()


def delta(index: int, kind: str, value: dict[str, str]) -> bytes:
    return event("content_block_delta", {"index": index, "delta": {"type": kind, **value}})


def block(index: int, start: dict[str, Any], deltas: Iterable[bytes]) -> list[bytes]:  # Any: JSON
    return [
        event("content_block_start", {"index": index, "content_block": start}),
        *deltas,
        event("content_block_stop", {"index": index}),
    ]


EVENTS = [
    event(
        "message_start",
        {
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "claude-sonnet-5-5",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 25, "output_tokens": 1},
            }
        },
    ),
    *block(0, {"type": "text", "text": ""}, (delta(0, "text_delta", {"text": t}) for t in TEXTS)),
    event("ping", {}),
    b": a comment\n\n",
    *block(
        1,
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
        (delta(1, "input_json_delta", {"partial_json": part}) for part in ('{"q": ', '"é😀"}')),
    ),
    event("an_event_of_tomorrow", {"x": 1}),
    event("message_delta", {"delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}}),
    event("message_stop", {}),
]
STREAM = b"".join(EVENTS)

LINE_ENDS = {"LF": b"\n", "CRLF": b"\r\n", "CR": b"\r"}


def with_line_ends(stream: bytes, line_end: bytes) -> bytes:
    return stream.replace(b"\n", line_end)


def chunks(*events: dict[str, Any]) -> bytes:  # Any: JSON
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events)


class TestBetweenEvents:
    def test_before_anything(self) -> None:
        assert EventBoundary().between_events

    @pytest.mark.parametrize("line_end", LINE_ENDS.values(), ids=LINE_ENDS)
    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 64, 100_000])
    def test_in_pieces_of(self, size: int, line_end: bytes) -> None:
        stream = with_line_ends(STREAM, line_end)
        ends = {0, len(stream)}
        ends.update(i for i in range(len(stream)) if stream[:i].endswith(line_end * 2))
        boundary = EventBoundary()
        for start in range(0, len(stream), size):
            piece = stream[start : start + size]
            boundary.feed(piece)
            assert boundary.between_events == (start + len(piece) in ends)

    @pytest.mark.parametrize("seed", range(20))
    def test_in_random_pieces_some_of_them_empty(self, seed: int) -> None:
        pick = random.Random(seed)
        boundary, fed = EventBoundary(), 0
        while fed < len(STREAM):
            piece = STREAM[fed : fed + pick.choice([0, 1, 2, 3, 5, 50, 500])]
            fed += len(piece)
            boundary.feed(piece)
            assert boundary.between_events == (STREAM[:fed].endswith(b"\n\n") or not fed)

    def test_a_ping_of_ours_leaves_it_between_events(self) -> None:
        boundary = EventBoundary()
        boundary.feed(STREAM + PING)
        assert boundary.between_events


CLIENT = anthropic.Anthropic(api_key="k", base_url="http://upstream.example")
OPENAI_CLIENT = openai.OpenAI(api_key="k", base_url="http://upstream.example")


def read_by_anthropic(pieces: Iterable[bytes], seen: list[RawMessageStreamEvent]) -> None:
    """Read a stream with the SDK's decoder; `seen` is what it got out before it raised."""
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
    """What goes out after `sent` when the upstream leaves."""
    boundary = EventBoundary()
    boundary.feed(sent)
    error = UpstreamClosed(MESSAGE)
    return boundary.discard() + Dialect.ANTHROPIC.stream_error(error, REQUEST_ID)


def dispatched(cut: int, line_end: bytes) -> int:
    """How many of the stream's events the SDK hands on if it is cut after `cut` bytes."""
    count, end = 0, 0
    for each in EVENTS:
        end += len(with_line_ends(each, line_end))
        # a blank line is one at its carriage return: the line feed is not waited for
        whole = cut >= (end - 1 if line_end == b"\r\n" else end)
        count += whole and not each.startswith((b":", b"event: ping"))
    return count


class TestAnthropicReadsTheError:
    """Cut anywhere, the SDK raises our error: no decoding error of its own, and no clean end."""

    def check(self, pieces: list[bytes], whole_events: int) -> None:
        seen: list[RawMessageStreamEvent] = []
        with pytest.raises(anthropic.APIStatusError) as raised:
            read_by_anthropic(pieces, seen)
        error = raised.value
        assert error.api_message == MESSAGE
        assert MESSAGE in error.message
        assert error.type == "api_error"
        assert error.request_id == REQUEST_ID
        assert len(seen) == whole_events

    @pytest.mark.parametrize("line_end", LINE_ENDS.values(), ids=LINE_ENDS)
    def test_cut_at_every_byte(self, line_end: bytes) -> None:
        stream = with_line_ends(STREAM, line_end)
        for cut in range(len(stream) + 1):
            sent = stream[:cut]
            self.check([sent, cut_off(sent)], dispatched(cut, line_end))

    @pytest.mark.parametrize("cut", range(0, len(STREAM), 97))
    def test_byte_by_byte(self, cut: int) -> None:
        sent = STREAM[:cut]
        whole = sent + cut_off(sent)
        self.check([bytes([byte]) for byte in whole], dispatched(cut, b"\n"))

    def test_cut_in_any_character(self) -> None:
        """Each pair of first bytes is tried, which are all that matter; no surrogates exist."""
        for code in [*range(0x80, 0xD800, 0x20), *range(0xE000, 0x11_0000, 0x40)]:
            encoded = chr(code).encode()
            for cut in range(1, len(encoded)):
                sent = b"event: content_block_delta\ndata: {" + encoded[:cut]
                (sent + cut_off(sent)).decode("utf-8", "strict")

    def test_whole_events_are_not_touched(self) -> None:
        boundary = EventBoundary()
        assert boundary.discard() == b""
        for each in EVENTS:
            boundary.feed(each)
            assert boundary.discard() == b""

    def test_without_it_the_sdk_takes_the_stream_for_whole(self) -> None:
        """Why an error has to be put in: the SDK sees nothing wrong with half an answer."""
        seen: list[RawMessageStreamEvent] = []
        read_by_anthropic(EVENTS[:5], seen)
        assert len(seen) == 5

    def test_a_ping_of_ours_is_not_seen(self) -> None:
        plain: list[RawMessageStreamEvent] = []
        pinged: list[RawMessageStreamEvent] = []
        read_by_anthropic(EVENTS, plain)
        read_by_anthropic([part for each in EVENTS for part in (PING, each, PING)], pinged)
        assert pinged == plain
        assert len(plain) == dispatched(len(STREAM), b"\n")


CHAT_CHUNKS = [
    {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "claude-sonnet-5-5",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    }
    for text in TEXTS
]


class TestOpenAIReadsTheError:
    """Its streams are made here, event by event, so that they break off between two."""

    @pytest.mark.parametrize("whole", range(len(CHAT_CHUNKS) + 1))
    def test_after_any_event(self, whole: int) -> None:
        sent = chunks(*CHAT_CHUNKS[:whole])
        boundary = EventBoundary()
        boundary.feed(sent)
        error = Dialect.OPENAI.stream_error(UpstreamClosed(MESSAGE), REQUEST_ID)
        assert b"[DONE]" not in error
        seen: list[ChatCompletionChunk] = []
        with pytest.raises(openai.APIError) as raised:
            read_by_openai(sent + boundary.discard() + error, seen)
        assert raised.value.message == MESSAGE
        assert raised.value.type == "server_error"
        assert len(seen) == whole
