"""Streams on their way through: each byte as it comes, and never a clean end that was none."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
from typing import TYPE_CHECKING, Literal, NamedTuple

import anthropic
import pytest

from tornadoproxy import Permit, hookimpl
from tornadoproxy.config.core_settings import SSE_KEEPALIVE_INTERVAL
from tornadoproxy.testing import (
    TEST_TOKEN,
    Truncated,
    clean_environment,
    event,
    json_response,
    message_document,
    message_events,
    raw_response,
    request_bytes,
    response_head,
    sse_response,
)

if TYPE_CHECKING:
    from tornadoproxy.testing import (
        Document,
        OpenRaw,
        Proxy,
        RawConnection,
        RawResponse,
        Records,
        Response,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

pytestmark = pytest.mark.usefixtures("no_errors_logged")


class Permits:
    """Permits whatever is asked for."""

    @hookimpl
    def authorize(self) -> Permit:
        return Permit(lambda _: None)


BODY = b'{"model":"claude-sonnet-5-5","max_tokens":9,"messages":[],"stream":true}'
REQUEST = request_bytes("POST", "/v1/messages", {}, BODY, token=TEST_TOKEN)
REQUEST_1_0 = REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
EVENT_STREAM = [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]

EVENTS = message_events(message_document("Grüße, 世界 und 😀!"))
STREAM = b"".join(EVENTS)
PING = b'event: ping\ndata: {"type": "ping"}\n\n'


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

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        await client_has_head.wait()
        await exchange.chunk(STREAM)
        await exchange.last_chunk()

    upstream.script(response)
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

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        for piece in pieces:
            await exchange.chunk(piece)
            await go.get()
        await exchange.last_chunk()

    upstream.script(response)
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

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, {"Content-Type": "application/json", "Content-Length": "10"})
        await exchange.send(b"01234")
        await client_has_half.wait()
        await exchange.send(b"56789")

    upstream.script(response)
    client = await raw()
    await client.send(REQUEST)
    await client.head()
    assert await client.read() == b"01234"
    client_has_half.set()
    assert await client.read() == b"56789"


async def test_event_stream_is_not_compressed(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    upstream.script(sse_response(EVENTS))
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
    upstream.script(raw_response(head + b"0\r\n\r\n"))
    client = await raw()
    await client.send(REQUEST)
    response = await client.response()
    assert {name: response.all(name) for name in expected} == expected


@pytest.mark.parametrize("plugins", [[], [Permits()]])
@pytest.mark.parametrize("page", ["/v1/messages", "/openai/v1/chat/completions"])
async def test_open_stream_takes_no_object_of_the_larger_kind(
    page: str,
    plugins: list[object],
    raw: OpenRaw,
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
) -> None:
    """Beyond thirty attributes in its dictionary, an object takes a kilobyte more."""
    proxy = await start_proxy(plugins=plugins)
    upstream.script(sse_response(EVENTS[:3], end="hang"))
    client = await raw()
    body = BODY.replace(b"[]", b'[{"role":"user","content":"Hi"}]')
    await client.send(request_bytes("POST", page, body=body, token=TEST_TOKEN))
    await client.head()
    await client.chunk()
    gateway = proxy.server._gateway
    assert gateway is not None
    (handler,) = gateway.in_flight
    assert len(vars(handler)) < 30


async def test_other_answers_are_not_marked(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    upstream.script(json_response({}))
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
    upstream.script(sse_response([*EVENTS[:3], extra]))
    client = await raw()
    await client.send(REQUEST)
    assert (await client.response()).body == b"".join(EVENTS[:3]) + extra
    record = await records.finished()
    assert (record.outcome, record.status, record.error) == ("completed", 200, None)


async def test_error_event_of_the_upstream_reaches_the_sdk(
    anthropic_client: anthropic.AsyncAnthropic, upstream: ScriptedUpstream
) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    upstream.script(sse_response([*EVENTS[:3], event(error)]))
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        await consumed(anthropic_client)


async def test_usage_in_a_stream_is_cumulative(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    deltas = [
        event({"type": "message_delta", "delta": {}, "usage": {"output_tokens": count}})
        for count in (3, 5, 8)
    ]
    upstream.script(sse_response([*EVENTS[:-2], *deltas, EVENTS[-1]], split=11))
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
    "inside a line end": b"event: message_stop\r\ndata: {}\r\n\r\nevent: c\r\ndata: {}\r",
    "inside the blank line": b"event: message_stop\r\ndata: {}\r\n\r\nevent: c\r\ndata: {}\r\n\r",
}
CHUNKED = response_head(200, EVENT_STREAM)
CLOSE_DELIMITED = response_head(200, EVENT_STREAM[:1])


def with_length_of(length: int) -> bytes:
    return response_head(200, [EVENT_STREAM[0], ("Content-Length", str(length))])


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def breaks(sent: bytes) -> dict[str, Response]:
    """The ways in which an answer breaks off after these bytes of its body."""
    with_length = with_length_of(len(sent) + 100_000)
    return {
        "chunked, FIN": raw_response(CHUNKED + chunk(sent), end="close"),
        "chunked, FIN inside a chunk": raw_response(CHUNKED + b"fffff\r\n" + sent, end="close"),
        "chunked, RST": raw_response(CHUNKED + chunk(sent), end="reset"),
        "chunked, silence": raw_response(CHUNKED + chunk(sent), end="hang"),
        "chunked, garbage": raw_response(CHUNKED + chunk(sent), b"so long\r\n", end="hang"),
        "to the close, RST": raw_response(CLOSE_DELIMITED + sent, end="reset"),
        "with a length, FIN": raw_response(with_length + sent, end="close"),
        "with a length, RST": raw_response(with_length + sent, end="reset"),
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
async def test_broken_stream_ends_in_an_error_and_never_cleanly(
    how: str,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    await start_proxy(UPSTREAM_IDLE_TIMEOUT=0.05)
    for count, (where, sent) in enumerate(CUTS.items(), 1):
        upstream.script(breaks(sent)[how])
        response = partial(await truncated(await raw()))
        assert response.status == 200, where
        error = error_after(sent, response.body)
        assert error["type"] == "api_error", where
        assert "upstream" in error["message"], where
        record = await records.finished(count)
        assert (record.outcome, record.status) == ("failed", 200), where
        assert record.error, where
        assert error["message"] in record.error, where
        assert record.bytes_out == len(response.body), where


@pytest.mark.parametrize("how", BREAKS)
async def test_broken_stream_raises_the_sdks_own_error(
    how: str,
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clean_environment(monkeypatch)
    proxy = await start_proxy(UPSTREAM_IDLE_TIMEOUT=0.05)
    url = proxy.url
    async with anthropic.AsyncAnthropic(base_url=url, api_key=TEST_TOKEN, max_retries=0) as client:
        for sent in CUTS.values():
            upstream.script(breaks(sent)[how])
            with pytest.raises(anthropic.APIStatusError, match="upstream") as caught:
                await consumed(client)
            body = caught.value.body
            assert isinstance(body, dict)
            assert body["error"]["type"] == "api_error"


async def test_stream_that_lasts_to_the_close_is_whole_only_between_two_events(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    upstream.script(raw_response(CLOSE_DELIMITED + STREAM, end="close"))
    client = await raw()
    await client.send(REQUEST)
    assert (await client.response()).body == STREAM

    sent = CUTS["inside the data"]
    upstream.script(raw_response(CLOSE_DELIMITED + sent, end="close"))
    response = partial(await truncated(await raw()))
    assert error_after(sent, response.body)["type"] == "api_error"
    assert (await records.finished(2)).outcome == "failed"


async def test_broken_stream_raises_in_the_sdks_stream_helper(
    anthropic_client: anthropic.AsyncAnthropic, upstream: ScriptedUpstream
) -> None:
    upstream.script(breaks(CUTS["inside the data"])["chunked, RST"])
    texts: list[str] = []

    async def read(stream: anthropic.AsyncMessageStream[None]) -> None:
        async for text in stream.text_stream:
            texts.append(text)

    async with anthropic_client.messages.stream(
        model="claude-sonnet-5-5", max_tokens=9, messages=[{"role": "user", "content": "Hi"}]
    ) as stream:
        with pytest.raises(anthropic.APIStatusError, match="upstream"):
            await read(stream)
    assert texts == ["Grüße,", " 世界"]


@pytest.mark.parametrize("left", [1, 100])
async def test_error_that_exceeds_the_announced_length_is_left_out(
    left: int, raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    upstream.script(raw_response(with_length_of(len(STREAM) + left) + STREAM, end="close"))
    response = partial(await truncated(await raw()))
    assert response.body == STREAM
    record = await records.finished()
    assert (record.outcome, record.bytes_out) == ("failed", len(STREAM))


@pytest.mark.parametrize("how", BREAKS)
async def test_broken_stream_is_a_reset_to_a_client_of_http_1_0(
    how: str, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """Its answer ends with the connection, so that an orderly end would be a clean one."""
    await start_proxy(UPSTREAM_IDLE_TIMEOUT=0.05)
    sent = CUTS["inside the data"]
    upstream.script(breaks(sent)[how])
    cut = await truncated(await raw(), REQUEST_1_0)
    assert cut.reset
    assert error_after(sent, partial(cut).body)["type"] == "api_error"


async def test_tokens_of_a_broken_stream_are_counted(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    upstream.script(breaks(b"".join(EVENTS[:4]))["chunked, RST"])
    await truncated(await raw())
    record = await records.finished()
    assert record.model == "claude-sonnet-5-5"
    assert record.usage.input_tokens == 10
    assert record.usage.output_tokens in {1, 2}  # what was told, or what the one word may be
    assert record.usage.partial


JSON = json.dumps(message_document()).encode()
JSON_TYPE = ("Content-Type", "application/json")
BROKEN_JSON: dict[str, tuple[bytes, Literal["close", "reset", "hang"]]] = {
    "length, FIN": (
        response_head(200, [JSON_TYPE, ("Content-Length", str(len(JSON) + 1))]) + JSON,
        "close",
    ),
    "length, RST": (
        response_head(200, [JSON_TYPE, ("Content-Length", str(len(JSON) + 1))]) + JSON,
        "reset",
    ),
    "length, silence": (
        response_head(200, [JSON_TYPE, ("Content-Length", str(len(JSON) + 1))]) + JSON,
        "hang",
    ),
    "chunked, FIN": (response_head(200, [JSON_TYPE, EVENT_STREAM[1]]) + chunk(JSON), "close"),
    "chunked, RST": (response_head(200, [JSON_TYPE, EVENT_STREAM[1]]) + chunk(JSON), "reset"),
    "chunked, garbage": (
        response_head(200, [JSON_TYPE, EVENT_STREAM[1]]) + chunk(JSON) + b"\r\n\r\n",
        "hang",
    ),
    "to the close, RST": (response_head(200, [JSON_TYPE]) + JSON, "reset"),
}


@pytest.mark.parametrize("request_head", [REQUEST, REQUEST_1_0], ids=["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("how", BROKEN_JSON)
async def test_broken_json_is_cut_and_nothing_added(
    how: str,
    request_head: bytes,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    await start_proxy(UPSTREAM_IDLE_TIMEOUT=0.05)
    response, end = BROKEN_JSON[how]
    upstream.script(raw_response(response, end=end))
    cut = await truncated(await raw(), request_head)
    assert partial(cut).body == JSON
    record = await records.finished()
    assert (record.outcome, record.status, record.bytes_out) == ("failed", 200, len(JSON))
    assert record.error
    assert record.usage.output_tokens == 1


async def test_broken_compressed_stream_is_cut_and_nothing_added(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    packed = gzip.compress(STREAM)[:-20]
    head = response_head(200, [*EVENT_STREAM, ("Content-Encoding", "gzip")])
    upstream.script(raw_response(head + chunk(packed), end="close"))
    assert partial(await truncated(await raw())).body == packed
    assert (await records.finished()).outcome == "failed"


async def test_silent_upstream_is_let_go(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(UPSTREAM_IDLE_TIMEOUT=0.05)
    upstream.script(breaks(CUTS["between two events"])["chunked, silence"])
    await truncated(await raw())
    async with asyncio.timeout(1):
        await upstream.requests[0].gone()


# -- pings of our own


async def test_pings_come_between_events_and_only_there(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    """Silence after an event gets pings; silence within the next one gets the idle deadline."""
    await start_proxy(SSE_KEEPALIVE_INTERVAL=0.05, UPSTREAM_IDLE_TIMEOUT=0.4)
    client_has_pings = asyncio.Event()
    half = EVENTS[4][:20]

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        await exchange.chunk(b"".join(EVENTS[:4]))
        await client_has_pings.wait()
        await exchange.chunk(half)
        await exchange.gone()

    upstream.script(response)
    client = await raw()
    await client.send(REQUEST)
    await client.head()
    assert await client.chunk() == b"".join(EVENTS[:4])
    assert await client.chunk() == PING
    assert await client.chunk() == PING
    client_has_pings.set()
    assert await client.chunk() == half
    assert error_after(half, half + await client.chunk())["type"] == "api_error"
    with pytest.raises(Truncated):
        await client.chunk()
    assert (await records.finished()).outcome == "failed"


async def test_pings_do_not_hide_a_dead_upstream(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    await start_proxy(SSE_KEEPALIVE_INTERVAL=0.05, UPSTREAM_IDLE_TIMEOUT=0.3)
    upstream.script(sse_response(EVENTS[:4], end="hang"))
    response = partial(await truncated(await raw()))
    sent = b"".join(EVENTS[:4])
    pinged = re.fullmatch(
        b"(%b)+(event: error.*)" % re.escape(PING), response.body[len(sent) :], re.S
    )
    assert pinged is not None
    assert error_after(b"", pinged[2])["type"] == "api_error"
    assert (await records.finished()).outcome == "failed"


async def test_pings_are_off_unless_asked_for(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy(UPSTREAM_IDLE_TIMEOUT=0.2)
    assert proxy.settings[SSE_KEEPALIVE_INTERVAL] == 0
    upstream.script(sse_response(EVENTS[:4], end="hang"))
    response = partial(await truncated(await raw()))
    sent = b"".join(EVENTS[:4])
    assert PING not in response.body
    assert response.body[len(sent) :].startswith(b"event: error\n")


@pytest.mark.parametrize(
    "headers",
    [
        [JSON_TYPE, EVENT_STREAM[1]],
        [*EVENT_STREAM, ("Content-Encoding", "gzip")],
        [EVENT_STREAM[0], ("Content-Length", "16")],
    ],
    ids=["JSON", "compressed", "with a length"],
)
async def test_pings_are_for_plain_event_streams_alone(
    headers: list[tuple[str, str]],
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
) -> None:
    await start_proxy(SSE_KEEPALIVE_INTERVAL=0.02, UPSTREAM_IDLE_TIMEOUT=0.2)
    part = b"a: 1\n\n"
    body = part if ("Content-Length", "16") in headers else chunk(part)
    upstream.script(raw_response(response_head(200, headers) + body, end="hang"))
    assert partial(await truncated(await raw())).body == part


async def test_sdk_passes_over_pings(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clean_environment(monkeypatch)
    proxy = await start_proxy(SSE_KEEPALIVE_INTERVAL=0.02)

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        for each in EVENTS:
            await exchange.chunk(each)
            await asyncio.sleep(0.05)  # the silence that pings fill
        await exchange.last_chunk()

    upstream.script(response)
    async with (
        anthropic.AsyncAnthropic(base_url=proxy.url, api_key=TEST_TOKEN, max_retries=0) as client,
        client.messages.stream(
            model="claude-sonnet-5-5", max_tokens=9, messages=[{"role": "user", "content": "Hi"}]
        ) as stream,
    ):
        assert await stream.get_final_text() == "Grüße, 世界 und 😀!"
    record = await records.finished()
    assert record.outcome == "completed"
    assert record.bytes_out >= len(STREAM) + len(PING) * len(EVENTS)


# -- a slow client slows the upstream down

PIECE = bytes(range(256)) * 256
PIECES = 1024


@pytest.mark.parametrize("content_type", ["text/event-stream", "application/octet-stream"])
async def test_upstream_waits_for_a_client_that_does_not_read(
    content_type: str, raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    """It stalls with most of 64 MB unsent, goes on when the client reads, and all bytes arrive."""
    sent = 0
    all_sent = asyncio.Event()

    async def response(exchange: UpstreamExchange) -> None:
        nonlocal sent
        await exchange.read_all()
        await exchange.head(
            200, [("Content-Type", content_type), ("Content-Length", str(len(PIECE) * PIECES))]
        )
        for _ in range(PIECES):
            await exchange.send(PIECE)
            sent += len(PIECE)
        all_sent.set()

    upstream.script(response)
    client = await raw(receive_buffer=16_384)
    await client.send(REQUEST)
    await client.head()
    before = -1
    while before < sent:  # once nothing more is taken, it stalls for good
        before = sent
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await all_sent.wait()
    assert sent < len(PIECE) * PIECES / 2
    left = len(PIECE) * PIECES
    digest = hashlib.sha256()
    while left:
        received = await client.read()
        left -= len(received)
        digest.update(received)
    assert digest.digest() == hashlib.sha256(PIECE * PIECES).digest()
    assert all_sent.is_set()
    assert (await records.finished()).outcome == "completed"
