"""Streams on their way through: flushed as they come, and never ended cleanly when they broke."""

from __future__ import annotations

import asyncio
import gzip
import json

import anthropic
import pytest
from scene import Scene
from served import (
    CHAT_STREAM,
    CHUNKED,
    EVENT_STREAM,
    EVENTS,
    MESSAGE,
    MESSAGE_FIELDS,
    STREAM,
    chunks,
    split,
)

from tornadoproxy.config.core_settings import SSE_KEEPALIVE_INTERVAL
from tornadoproxy.testing import (
    Document,
    RawResponse,
    Response,
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


# -- each byte as it comes


@pytest.mark.parametrize(
    ("headers", "pieces"),
    [
        ([("Content-Type", "application/json"), CHUNKED], [b"01234", b"56789"]),
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


@pytest.mark.parametrize("request_", [MESSAGE, CHAT_STREAM])
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


# -- streams that break


CUTS = {
    "before the first event": b"",
    "between two events": BEGUN,
    "inside the data": STREAM[: STREAM.index(b"text_delta", 900) + 4],
    "between the two line ends": b"".join(EVENTS[:5])[:-1],
    "inside a character": STREAM[: STREAM.index("😀".encode()) + 2],
}
CUT = CUTS["inside the data"]
TO_CLOSE = response_head(200, EVENT_STREAM[:1])


def length_head(length: int, content_type: str = "text/event-stream") -> bytes:
    return response_head(200, {"Content-Type": content_type, "Content-Length": str(length)})


def breaks(sent: bytes, content_type: str = "text/event-stream") -> dict[str, Response]:
    """Return the ways in which a response breaks off after these bytes of its body."""
    kind = [("Content-Type", content_type)]
    chunked = response_head(200, [*kind, CHUNKED]) + chunks(sent)
    with_length = length_head(len(sent) + 100_000, content_type) + sent
    return {
        "chunked, FIN": raw_response(chunked, end="close"),
        "chunked, RST": raw_response(chunked, end="reset"),
        "chunked, silence": raw_response(chunked, end="hang"),
        "chunked, garbage": raw_response(chunked, b"so long\r\n", end="hang"),
        "to the close, RST": raw_response(response_head(200, kind) + sent, end="reset"),
        "with a length, FIN": raw_response(with_length, end="close"),
        "with a length, silence": raw_response(with_length, end="hang"),
    }


each_break = pytest.mark.parametrize("how", breaks(b""))


async def truncated(scene: Scene, request: bytes = MESSAGE) -> Truncated:
    with pytest.raises(Truncated) as caught:
        await scene.ask(request)
    return caught.value


def partial(cut: Truncated) -> RawResponse:
    assert cut.response is not None
    return cut.response


def error_after(sent: bytes, stream: bytes) -> Document:
    """Return the error that ends a stream."""
    assert stream.startswith(sent)
    error: Document = json.loads(stream[len(sent) :].partition(b"event: error\ndata: ")[2])
    assert stream.endswith(b"\n\n")
    assert error["error"]["type"] == "api_error"
    assert "upstream" in error["error"]["message"]
    return error


@pytest.mark.parametrize(
    ("where", "how"),
    [*(("inside the data", how) for how in breaks(b"")), *((cut, "chunked, RST") for cut in CUTS)],
)
async def test_broken_stream_ends_in_an_error_event(where: str, how: str, scene: Scene) -> None:
    sent = CUTS[where]
    await scene.start(UPSTREAM_IDLE_TIMEOUT=0.05)
    scene.upstream.script(breaks(sent)[how])
    response = partial(await truncated(scene))
    assert response.status == 200
    error = error_after(sent, response.body)
    record = await scene.records.finished()
    assert (record.outcome, record.status) == ("failed", 200)
    assert record.error
    assert error["error"]["message"] in record.error
    assert record.bytes_out == len(response.body)
    if where == "between two events":
        assert record.usage.input_tokens == 10
        assert record.usage.output_tokens in {1, 2}  # what was told, or what the word may be
        assert record.usage.partial
    async with asyncio.timeout(1):
        await scene.upstream.requests[-1].disconnected()


async def test_broken_stream_raises_the_sdks_own_error(
    anthropic_client: anthropic.AsyncAnthropic, scene: Scene
) -> None:
    scene.upstream.script(breaks(CUT)["chunked, FIN"])
    stream = await anthropic_client.messages.create(stream=True, **MESSAGE_FIELDS)
    with pytest.raises(anthropic.APIStatusError, match="upstream") as caught:
        _ = [each async for each in stream]
    assert caught.value.type == "api_error"


async def test_stream_to_the_close_is_whole_between_events_only(scene: Scene) -> None:
    scene.upstream.script(
        raw_response(TO_CLOSE + STREAM, end="close"), raw_response(TO_CLOSE + CUT, end="close")
    )
    assert (await scene.ask(MESSAGE)).body == STREAM
    error_after(CUT, partial(await truncated(scene)).body)
    assert (await scene.records.finished(2)).outcome == "failed"


@pytest.mark.parametrize("left", [1, 100])
async def test_error_event_beyond_the_length_is_left_out(left: int, scene: Scene) -> None:
    scene.upstream.script(raw_response(length_head(len(STREAM) + left) + STREAM, end="close"))
    assert partial(await truncated(scene)).body == STREAM
    record = await scene.records.finished()
    assert (record.outcome, record.bytes_out) == ("failed", len(STREAM))


@each_break
async def test_broken_stream_is_a_reset_for_http_1_0(how: str, scene: Scene) -> None:
    """The end of the connection is the only end of its body: a FIN would make it look whole."""
    await scene.start(UPSTREAM_IDLE_TIMEOUT=0.05)
    scene.upstream.script(breaks(CUT)[how])
    cut = await truncated(scene, MESSAGE_1_0)
    assert cut.reset
    error_after(CUT, partial(cut).body)


@each_break
async def test_broken_json_is_cut_and_nothing_added(how: str, scene: Scene) -> None:
    await scene.start(UPSTREAM_IDLE_TIMEOUT=0.05)
    document = json.dumps(message_document()).encode()
    for count, request in enumerate((MESSAGE, MESSAGE_1_0), 1):
        scene.upstream.script(breaks(document, "application/json")[how])
        cut = await truncated(scene, request)
        assert partial(cut).body == document
        assert cut.reset or request == MESSAGE
        record = await scene.records.finished(count)
        assert (record.outcome, record.status) == ("failed", 200)
        assert (record.bytes_out, record.usage.output_tokens) == (len(document), 1)
        assert record.error


async def test_broken_compressed_stream_is_cut_and_nothing_added(scene: Scene) -> None:
    packed = gzip.compress(STREAM)[:-20]
    head = response_head(200, [*EVENT_STREAM, ("Content-Encoding", "gzip")])
    scene.upstream.script(raw_response(head + chunks(packed), end="close"))
    assert partial(await truncated(scene)).body == packed
    assert (await scene.records.finished()).outcome == "failed"


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


@pytest.mark.parametrize(("interval", "silence"), [(0, 0.05), (0.02, 0.4)])
async def test_pings_if_any_do_not_hide_a_dead_upstream(
    interval: float, silence: float, scene: Scene
) -> None:
    assert SSE_KEEPALIVE_INTERVAL.default == 0
    await scene.start(UPSTREAM_IDLE_TIMEOUT=silence, SSE_KEEPALIVE_INTERVAL=interval)
    scene.upstream.script(sse_response(EVENTS[:4], end="hang"))
    response = partial(await truncated(scene))
    assert response.body.startswith(BEGUN)
    pings, error = response.body[len(BEGUN) :].split(b"event: error", 1)
    assert pings == PING * (len(pings) // len(PING))
    assert bool(pings) == bool(interval)
    error_after(b"", b"event: error" + error)
    assert (await scene.records.finished()).outcome == "failed"


PART = b"a: 1\n\n"


@pytest.mark.parametrize(
    "begun",
    [
        response_head(200, [("Content-Type", "application/json"), CHUNKED]) + chunks(PART),
        response_head(200, [*EVENT_STREAM, ("Content-Encoding", "gzip")]) + chunks(PART),
        length_head(16) + PART,
    ],
    ids=["JSON", "compressed", "with a length"],
)
async def test_pings_are_for_plain_event_streams_only(begun: bytes, scene: Scene) -> None:
    await scene.start(SSE_KEEPALIVE_INTERVAL=0.02, UPSTREAM_IDLE_TIMEOUT=0.1)
    scene.upstream.script(raw_response(begun, end="hang"))
    assert partial(await truncated(scene)).body == PART
