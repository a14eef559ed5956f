"""Streams on their way through: flushed as they come, and never ended cleanly when they broke."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest
from scene import Scene
from served import (
    CHAT_STREAM,
    CHUNKED,
    EVENT_STREAM,
    EVENTS,
    MESSAGE,
    RESPONSES_STREAM,
    STREAM,
    chunks,
    split,
)

from tornadoproxy.config.core_settings import SSE_KEEPALIVE_INTERVAL
from tornadoproxy.testing import (
    Document,
    RawResponse,
    Truncated,
    UpstreamExchange,
    message_document,
    raw_response,
    response_head,
    sse_response,
)

pytestmark = pytest.mark.usefixtures("no_errors_logged", "proxy")

MESSAGE_1_0 = MESSAGE.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
BEGUN = b"".join(EVENTS[:4])
SSE, JSON = EVENT_STREAM[0], ("Content-Type", "application/json")


# -- each byte as it comes


@pytest.mark.parametrize(
    ("headers", "pieces"),
    [
        ([JSON, CHUNKED], [b"01234", b"56789"]),
        (EVENT_STREAM, [STREAM, b"event: error\ndata: {\n\n", b"event: new\ndata: \xff\n\n:\n\n"]),
        (EVENT_STREAM, list(split(STREAM[:500], 7))),
    ],
    ids=["JSON", "events of any kind", "pieces"],
)
async def test_head_and_each_piece_are_flushed_at_once(
    headers: list[tuple[str, str]], pieces: list[bytes], scene: Scene
) -> None:
    """The upstream sends the next one only when the client has the one before."""
    go_on = asyncio.Semaphore(0)

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, headers)
        for piece in pieces:
            await go_on.acquire()
            await exchange.chunk(piece)
        await go_on.acquire()
        await exchange.last_chunk()

    scene.upstream.script(response)
    client = await scene.send(MESSAGE)
    assert (await client.head()).status == 200
    for piece in [*pieces, b""]:
        go_on.release()
        assert await client.chunk() == piece
    assert (await scene.records.finished()).outcome == "completed"


@pytest.mark.parametrize("request_", [MESSAGE, CHAT_STREAM, RESPONSES_STREAM])
async def test_open_stream_keeps_small_handler(request_: bytes, scene: Scene) -> None:
    """Beyond thirty attributes in its dictionary, an object takes a kilobyte more."""
    proxy = await scene.start()
    scene.upstream.script(sse_response(EVENTS[:3], end="hang"))
    client = await scene.send(request_)
    await client.head()
    await client.chunk()
    gateway = proxy.server._gateway
    assert gateway is not None
    (handler,) = gateway.in_flight
    assert len(vars(handler)) < 30
    assert not [*handler.request.headers]  # type: ignore[attr-defined]  # a handler


# -- streams that break; tests/system has the ways in which an upstream breaks one


CUT = STREAM[: STREAM.index(b"text_delta", 900) + 4]
PACKED = gzip.compress(STREAM)[:-20]
GZIP = ("Content-Encoding", "gzip")
TO_CLOSE = response_head(200, [SSE])


def chunked(body: bytes, *headers: tuple[str, str]) -> bytes:
    """Return a response with these headers, and a chunked body that is not at its end."""
    return response_head(200, [*headers, CHUNKED]) + chunks(body)


def with_length(body: bytes, missing: int) -> bytes:
    """Return a stream with a length, of whose body so many bytes are missing."""
    return response_head(200, [SSE, ("Content-Length", str(len(body) + missing))]) + body


async def truncated(scene: Scene, request: bytes = MESSAGE, *, reset: bool = False) -> RawResponse:
    """Return what comes of a response that is cut short, with a RST or with a FIN."""
    with pytest.raises(Truncated) as cut:
        await scene.ask(request)
    assert cut.value.response is not None
    assert cut.value.reset == reset
    return cut.value.response


def error_after(sent: bytes, stream: bytes) -> Document:
    """Return the error that ends a stream."""
    assert stream.startswith(sent)
    error: Document = json.loads(stream[len(sent) :].partition(b"event: error\ndata: ")[2])
    assert stream.endswith(b"\n\n")
    assert error["error"]["type"] == "api_error"
    assert "upstream" in error["error"]["message"]
    return error


async def test_broken_stream_is_recorded_with_its_error(scene: Scene) -> None:
    scene.upstream.script(raw_response(chunked(BEGUN, SSE), end="close"))
    response = await truncated(scene)
    error = error_after(BEGUN, response.body)
    record = await scene.records.finished()
    assert (record.outcome, record.status, response.status) == ("failed", 200, 200)
    assert error["error"]["message"] in (record.error or "")
    assert record.bytes_out == len(response.body)
    assert (record.usage.input_tokens, record.usage.partial) == (10, True)
    assert record.usage.output_tokens in {1, 2}  # what was told, or what the word may be


async def test_stream_to_the_close_is_whole_between_events_only(scene: Scene) -> None:
    scene.upstream.script(
        raw_response(TO_CLOSE + STREAM, end="close"), raw_response(TO_CLOSE + CUT, end="close")
    )
    assert (await scene.ask(MESSAGE)).body == STREAM
    error_after(CUT, (await truncated(scene)).body)
    assert (await scene.records.finished(2)).outcome == "failed"


@pytest.mark.parametrize(
    ("begun", "sent"),
    [
        (with_length(STREAM, 1), STREAM),
        (with_length(STREAM, 100), STREAM),
        (chunked(PACKED, SSE, GZIP), PACKED),
    ],
    ids=["a byte is missing", "an error would not fit", "compressed"],
)
async def test_broken_stream_gets_no_error_without_room(
    begun: bytes, sent: bytes, scene: Scene
) -> None:
    scene.upstream.script(raw_response(begun, end="close"))
    assert (await truncated(scene)).body == sent
    record = await scene.records.finished()
    assert (record.outcome, record.bytes_out) == ("failed", len(sent))


async def test_broken_response_is_a_reset_for_http_1_0(scene: Scene) -> None:
    """The end of the connection is the only end of its body: a FIN would make it look whole."""
    document = json.dumps(message_document()).encode()
    for begun in (chunked(CUT, SSE), chunked(document, JSON)):
        scene.upstream.script(raw_response(begun, end="close"))
    error_after(CUT, (await truncated(scene, MESSAGE_1_0, reset=True)).body)
    assert (await truncated(scene, MESSAGE_1_0, reset=True)).body == document
    record = await scene.records.finished(2)
    assert {each.outcome for each in scene.records.all} == {"failed"}
    assert (record.bytes_out, record.usage.output_tokens) == (len(document), 1)


# -- pings of the proxy


async def test_pings_come_between_events_only(scene: Scene) -> None:
    """Silence after an event gets pings; silence within the next one gets the idle deadline."""
    await scene.start(SSE_KEEPALIVE_INTERVAL=0.02, UPSTREAM_IDLE_TIMEOUT=0.4)
    client_has_pings = asyncio.Event()
    half = EVENTS[4][:20]

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        await exchange.chunk(BEGUN)
        await client_has_pings.wait()
        await exchange.chunk(half)
        await exchange.disconnected()

    scene.upstream.script(response)
    client = await scene.send(MESSAGE)
    await client.head()
    assert [await client.chunk() for _ in range(3)] == [BEGUN, PING, PING]
    client_has_pings.set()
    while (piece := await client.chunk()) == PING:  # sent before that half came
        pass
    assert piece == half
    error_after(half, half + await client.chunk())
    with pytest.raises(Truncated):
        await client.chunk()
    assert (await scene.records.finished()).outcome == "failed"


async def test_pings_do_not_hide_a_dead_upstream(scene: Scene) -> None:
    assert SSE_KEEPALIVE_INTERVAL.default == 0
    await scene.start(UPSTREAM_IDLE_TIMEOUT=0.4, SSE_KEEPALIVE_INTERVAL=0.02)
    scene.upstream.script(sse_response(EVENTS[:4], end="hang"))
    response = await truncated(scene)
    assert response.body.count(PING) > BEGUN.count(PING) + 1
    error_after(BEGUN.replace(PING, b""), response.body.replace(PING, b""))
    assert (await scene.records.finished()).outcome == "failed"


PART = b"a: 1\n\n"


@pytest.mark.parametrize(
    "begun",
    [chunked(PART, JSON), chunked(PART, SSE, GZIP), with_length(PART, 10)],
    ids=["JSON", "compressed", "with a length"],
)
async def test_pings_are_for_plain_event_streams_only(begun: bytes, scene: Scene) -> None:
    await scene.start(SSE_KEEPALIVE_INTERVAL=0.02, UPSTREAM_IDLE_TIMEOUT=0.1)
    scene.upstream.script(raw_response(begun, end="hang"))
    assert (await truncated(scene)).body == PART
