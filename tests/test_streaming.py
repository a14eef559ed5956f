"""Streams on their way through: each byte as it comes, and never a clean end that was none."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
from typing import TYPE_CHECKING, NamedTuple

import anthropic
import pytest

from tornadoproxy.settings import SSE_KEEPALIVE_INTERVAL
from tornadoproxy.testing import (
    TEST_TOKEN,
    Truncated,
    event,
    json_answer,
    message_document,
    message_events,
    raw_answer,
    request_bytes,
    response_head,
    sse_answer,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tornadoproxy.testing import (
        Answer,
        OpenRaw,
        Proxy,
        RawConnection,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

pytestmark = pytest.mark.usefixtures("no_errors_logged")

BODY = b'{"model":"claude-sonnet-5-5","max_tokens":9,"messages":[],"stream":true}'
REQUEST = request_bytes("POST", "/v1/messages", {}, BODY, token=TEST_TOKEN)
REQUEST_1_0 = REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
EVENT_STREAM = [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]

EVENTS = message_events(message_document("Grüße, 世界 und 😀!"))
STREAM = b"".join(EVENTS)
PING = b'event: ping\ndata: {"type": "ping"}\n\n'


@pytest.fixture
def no_errors_logged(caplog: pytest.LogCaptureFixture) -> object:
    """What upstreams and clients do wrong is not an error of the proxy."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


class Event(NamedTuple):
    """A server-sent event as a client dispatches it."""

    name: str
    data: str


def dispatched(stream: bytes) -> list[Event]:
    """The events of a stream, by the letter of the HTML standard, decoded strictly."""
    events = []
    name, data = "", []
    *lines, _ = re.split(rb"\r\n|\n|\r", stream)
    for line in lines:
        field, _, value = line.decode("utf-8", "strict").partition(":")
        match field:
            case "event":
                name = value.removeprefix(" ")
            case "data":
                data.append(value.removeprefix(" "))
            case "" if not line:
                if data:
                    events.append(Event(name, "\n".join(data)))
                name, data = "", []
    return events


# -- each byte as it comes


async def test_head_goes_out_before_any_event(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    client_has_head = asyncio.Event()

    async def answer(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        await client_has_head.wait()
        await exchange.chunk(STREAM)
        await exchange.last_chunk()

    upstream.script(answer)
    client = await raw()
    await client.send(REQUEST)
    assert (await client.head()).status == 200
    client_has_head.set()
    assert await client.chunk() == STREAM
    assert await client.chunk() == b""


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_every_read_is_flushed_and_none_waits_for_a_whole_event(
    size: int, raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    """The upstream sends a piece only when the client has the one before."""
    pieces = [STREAM[start : start + size] for start in range(0, 500, size)]
    go: asyncio.Queue[None] = asyncio.Queue()

    async def answer(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        for piece in pieces:
            await exchange.chunk(piece)
            await go.get()
        await exchange.last_chunk()

    upstream.script(answer)
    client = await raw()
    await client.send(REQUEST)
    await client.head()
    for piece in pieces:
        assert await client.chunk() == piece
        go.put_nowait(None)
    assert await client.chunk() == b""


async def test_plain_answers_are_not_held_back_either(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    client_has_half = asyncio.Event()

    async def answer(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, {"Content-Type": "application/json", "Content-Length": "10"})
        await exchange.send(b"01234")
        await client_has_half.wait()
        await exchange.send(b"56789")

    upstream.script(answer)
    client = await raw()
    await client.send(REQUEST)
    await client.head()
    assert await client.read() == b"01234"
    client_has_half.set()
    assert await client.read() == b"56789"


async def test_event_stream_is_not_compressed(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    upstream.script(sse_answer(EVENTS))
    client = await raw()
    headers = {"Accept-Encoding": "gzip, br, zstd, *"}
    await client.send(request_bytes("POST", "/v1/messages", headers, BODY, token=TEST_TOKEN))
    response = await client.response()
    assert response.header("Content-Encoding") is None
    assert response.body == STREAM


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, {"Cache-Control": ["no-cache"], "X-Accel-Buffering": ["no"]}),
        (
            {"Cache-Control": "private, no-store"},
            {"Cache-Control": ["private, no-store"], "X-Accel-Buffering": ["no"]},
        ),
        (
            {"cache-control": "max-age=1", "X-Accel-Buffering": "yes"},
            {"Cache-Control": ["max-age=1"], "X-Accel-Buffering": ["yes"]},
        ),
    ],
)
async def test_stream_is_marked_where_the_upstream_says_nothing(
    said: dict[str, str],
    expected: dict[str, list[str]],
    raw: OpenRaw,
    proxy: Proxy,
    upstream: ScriptedUpstream,
) -> None:
    head = response_head(200, [*EVENT_STREAM, *said.items()])
    upstream.script(raw_answer(head + b"0\r\n\r\n"))
    client = await raw()
    await client.send(REQUEST)
    response = await client.response()
    assert {name: response.all(name) for name in expected} == expected


async def test_other_answers_are_not_marked(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    upstream.script(json_answer({}))
    client = await raw()
    await client.send(REQUEST)
    response = await client.response()
    assert response.header("Cache-Control") is None
    assert response.header("X-Accel-Buffering") is None


@pytest.mark.parametrize(
    "extra",
    [
        event({"type": "ping"}),
        event({"type": "heartbeat_of_tomorrow", "beats": [1, 2.50, 1e3]}),
        event({"type": "content_block_delta", "index": 0, "delta": {"type": "smell_delta"}}),
        event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        b": a comment\n\n",
        b"data: {without: a name}\n\n",
        b"event: crlf\r\ndata: 1\r\n\r\n",
        b"id: 7\nretry: 10\n\n",
        b"event: not-utf-8\ndata: \xff\xfe\n\n",
        b"event: unfinished\ndata: the end",
    ],
)
async def test_whatever_the_stream_holds_passes(
    extra: bytes, raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    """Pings, an error after a 200, unknown events and deltas: byte for byte, to a clean end."""
    upstream.script(sse_answer([*EVENTS[:3], extra]))
    client = await raw()
    await client.send(REQUEST)
    assert (await client.response()).body == b"".join(EVENTS[:3]) + extra
    record = await records.finished()
    assert (record.outcome, record.status, record.error) == ("completed", 200, None)


async def test_error_event_of_the_upstream_reaches_the_sdk(
    anthropic_client: anthropic.AsyncAnthropic, upstream: ScriptedUpstream
) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    upstream.script(sse_answer([*EVENTS[:3], event(error)]))
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        await consumed(anthropic_client)


async def test_usage_in_a_stream_is_cumulative(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    deltas = [
        event({"type": "message_delta", "delta": {}, "usage": {"output_tokens": count}})
        for count in (3, 5, 8)
    ]
    upstream.script(sse_answer([*EVENTS[:-2], *deltas, EVENTS[-1]], split=11))
    client = await raw()
    await client.send(REQUEST)
    await client.response()
    record = await records.finished()
    assert record.model == "claude-sonnet-5-5"
    assert (record.usage.input_tokens, record.usage.output_tokens) == (10, 8)


# -- an end that is none


async def consumed(client: anthropic.AsyncAnthropic) -> list[str]:
    stream = await client.messages.create(
        model="claude-sonnet-5-5",
        max_tokens=9,
        messages=[{"role": "user", "content": "Hi"}],
        stream=True,
    )
    return [part.type async for part in stream]


CUTS = {
    "before the first event": b"",
    "between two events": b"".join(EVENTS[:4]),
    "after an event's first line": b"".join(EVENTS[:4]) + EVENTS[4].split(b"\n")[0] + b"\n",
    "inside a field's name": b"".join(EVENTS[:4]) + EVENTS[4].split(b"\n")[0] + b"\nda",
    "inside the data": STREAM[: STREAM.index(b"text_delta", 900) + 4],
    "at the end of the data": b"".join(EVENTS[:5])[:-2],
    "between the two line ends": b"".join(EVENTS[:5])[:-1],
    "inside a character of two bytes": STREAM[: STREAM.index("ü".encode()) + 1],
    "inside a character of three bytes": STREAM[: STREAM.index("世".encode()) + 2],
    "inside a character of four bytes": STREAM[: STREAM.index("😀".encode()) + 1],
    "inside a line end": b"event: a\r\ndata: b\r\n\r\nevent: c\r\ndata: d\r",
    "inside the blank line": b"event: a\r\ndata: b\r\n\r\nevent: c\r\ndata: d\r\n\r",
}
CHUNKED = response_head(200, EVENT_STREAM)
CLOSE_DELIMITED = response_head(200, EVENT_STREAM[:1])
LENGTH = response_head(200, [EVENT_STREAM[0], ("Content-Length", "100000")])


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def breaks(sent: bytes) -> dict[str, Answer]:
    """The ways in which an answer breaks off after these bytes of its body."""
    return {
        "chunked, FIN": raw_answer(CHUNKED + chunk(sent), end="close"),
        "chunked, FIN inside a chunk": raw_answer(
            CHUNKED + b"fffff\r\n" + sent, end="close"
        ),
        "chunked, RST": raw_answer(CHUNKED + chunk(sent), end="reset"),
        "chunked, silence": raw_answer(CHUNKED + chunk(sent), end="hang"),
        "chunked, garbage": raw_answer(CHUNKED + chunk(sent), b"so long\r\n", end="hang"),
        "to the close, RST": raw_answer(CLOSE_DELIMITED + sent, end="reset"),
        "with a length, FIN": raw_answer(LENGTH + sent, end="close"),
        "with a length, RST": raw_answer(LENGTH + sent, end="reset"),
    }


BREAKS = list(breaks(b""))


async def truncated(client: RawConnection, request: bytes = REQUEST) -> Truncated:
    await client.send(request)
    with pytest.raises(Truncated) as caught:
        await client.response()
    return caught.value


def partial(cut: Truncated) -> RawResponse:
    assert cut.response is not None
    return cut.response


def error_after(sent: bytes, stream: bytes) -> Document:
    """The error that ends `stream`. Nothing else that matters follows what the upstream sent.

    A ping may: it is what an event that was cut off becomes, and no client looks at its data.
    """
    assert stream.startswith(sent)
    whole = dispatched(sent)
    *before, last = dispatched(stream)
    assert before[: len(whole)] == whole
    assert [each.name for each in before[len(whole) :]] in ([], ["ping"])
    assert last.name == "error"
    document: Document = json.loads(last.data)
    assert document["type"] == "error"
    error: Document = document["error"]
    return error


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("where", CUTS)
async def test_broken_stream_ends_in_an_error_and_never_cleanly(
    where: str,
    how: str,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    await start_proxy(UPSTREAM_IDLE_TIMEOUT=0.1)
    sent = CUTS[where]
    upstream.script(breaks(sent)[how])
    response = partial(await truncated(await raw()))
    assert response.status == 200
    error = error_after(sent, response.body)
    assert error["type"] == "api_error"
    assert "upstream" in error["message"]
    record = await records.finished()
    assert (record.outcome, record.status) == ("failed", 200)
    assert record.error
    assert error["message"] in record.error
    assert record.bytes_out == len(response.body)
