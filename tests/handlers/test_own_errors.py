"""The proxy's own errors: a body too large or too slow, an upstream that fails or is late."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scene import Scene
from served import (
    CHAT,
    CHAT_BODY,
    CHAT_PATH,
    CHUNKED,
    EVENT_STREAM,
    MESSAGE,
    UPLOAD,
    anthropic_error,
    chunks,
    in_chunks,
    openai_error,
    request,
)

from tornadoproxy.testing import (
    Proxy,
    Response,
    UpstreamExchange,
    event,
    raw_response,
    response_head,
    silent_response,
)

pytestmark = pytest.mark.usefixtures("no_errors_logged")

PING = event({"type": "ping"})


# -- 413: the size of a body


async def test_chunks_over_limit_are_413_at_once(scene: Scene) -> None:
    await scene.start(MAX_BODY_SIZE=1000)
    client = await scene.send(request("POST", "/v1/messages", CHUNKED) + chunks(bytes(1000)))
    received = await scene.upstream.received()
    anthropic_error(await client.ask(chunks(b"x")), 413, "request_too_large")
    with pytest.raises(ConnectionError):
        await received.complete()
    assert received.body_length <= 1000
    assert (await scene.records.finished()).outcome == "denied"
    for _ in range(64):  # the client has not looked at the response yet
        await client.send(chunks(bytes(65536)))
    assert (await client.ask(b"0\r\n\r\n" + request("GET", "/health"))).status == 200


@pytest.mark.parametrize("path", ["/v1/messages", CHAT_PATH])
@pytest.mark.parametrize("chunked", [False, True])
async def test_limit_itself_is_allowed(path: str, scene: Scene, *, chunked: bool) -> None:
    await scene.start(MAX_BODY_SIZE=1000)
    for size, status in ((1000, 200), (1001, 413)):
        body = b'{"max_tokens":9,' + CHAT_BODY[1:].ljust(size - 16)
        whole = request("POST", path, body=body)
        in_pieces = request("POST", path, CHUNKED) + in_chunks(body, size)
        response = await scene.ask(in_pieces if chunked else whole)
        assert response.status == status
    hint = b"MAX_BODY_SIZE may be lower" if path == CHAT_PATH else b"1000 bytes (MAX_BODY_SIZE)"
    assert hint in response.body


# -- 408: a client that is silent


async def test_client_silent_within_its_body_is_408(scene: Scene) -> None:
    await scene.start(CLIENT_BODY_TIMEOUT=0.1)
    openai_error(await scene.ask(CHAT[:-1]), 408)
    response = await scene.ask(UPLOAD + chunks(b"half"))
    anthropic_error(response, 408, "invalid_request_error")
    record = await scene.records.finished(2)
    assert (record.outcome, record.status) == ("denied", 408)
    (received,) = scene.upstream.requests  # a held body has not been sent
    with pytest.raises(ConnectionError):
        await received.complete()


# -- 502: an upstream that fails


@pytest.mark.parametrize(
    "response",
    [
        raw_response(end="reset"),
        raw_response(b"HTTP/1.1 200 OK\r\nConten", end="close"),
        raw_response(b"HTTP/1.1 100 Continue\r\n\r\n", end="close"),
        raw_response(b"garbage\r\n\r\n"),
    ],
    ids=["reset", "half a head", "interim", "garbage"],
)
async def test_upstream_without_a_whole_head_is_502(
    response: Response, proxy: Proxy, scene: Scene
) -> None:
    scene.upstream.script(response, response)
    anthropic_error(await scene.ask("/v1/messages", body=b"{}"), 502, "api_error")
    openai_error(await scene.ask(CHAT_PATH, body=CHAT_BODY), 502, "server_error")
    await scene.records.finished(2)
    assert [(each.outcome, each.status) for each in scene.records.all] == [("failed", 502)] * 2
    assert len(scene.upstream.requests) == 2


# -- 504: an upstream that is late


def pausing(before_head: float, *before_pings: float) -> Response:
    """Make a response that is silent for that many seconds."""

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await asyncio.sleep(before_head)
        await exchange.head(200, EVENT_STREAM)
        for pause in before_pings:
            await asyncio.sleep(pause)
            await exchange.chunk(PING)
        await exchange.last_chunk()

    return response


@pytest.mark.parametrize(
    ("response", "sent"),
    [
        (silent_response(), MESSAGE),
        (raw_response(b"HTTP/1.1 200 OK\r\nCo", end="hang"), MESSAGE),
        (silent_response(), UPLOAD + b"1\r\nx\r\n0\r\n\r\n"),
    ],
    ids=["silent", "half a head", "after an upload"],
)
async def test_no_first_byte_in_time_is_504(response: Response, sent: bytes, scene: Scene) -> None:
    """The client's connection goes on, the upstream's does not."""
    await scene.start(UPSTREAM_FIRST_BYTE_TIMEOUT=0.05)
    scene.upstream.script(response)
    client = await scene.raw()
    async with asyncio.timeout(3):
        anthropic_error(await client.ask(sent), 504, "timeout_error")
        await scene.upstream.requests[0].disconnected()
    record = await scene.records.finished()
    assert (record.outcome, record.status) == ("failed", 504)
    assert (await client.ask(request("GET", "/v1/models"))).status == 200


async def test_response_may_last_longer_than_any_deadline(scene: Scene) -> None:
    limit = 0.3
    names = (
        *("UPSTREAM_FIRST_BYTE_TIMEOUT", "UPSTREAM_IDLE_TIMEOUT", "CLIENT_IDLE_TIMEOUT"),
        *("CLIENT_BODY_TIMEOUT", "PLUGIN_TIMEOUT", "DRAIN_TIMEOUT"),
    )
    deadlines: dict[str, Any] = dict.fromkeys(names, limit)
    await scene.start(**deadlines)
    scene.upstream.script(pausing(0, *[limit / 5] * 8))
    assert (await scene.ask("/v1/messages", body=b"{}")).body == PING * 8
    record = await scene.records.finished()
    assert record.outcome == "completed"
    assert record.duration > limit


async def test_first_byte_deadline_is_whole_after_slow_upload(scene: Scene) -> None:
    await scene.start(UPSTREAM_FIRST_BYTE_TIMEOUT=0.4)
    scene.upstream.script(pausing(0.2, 0))
    client = await scene.send(UPLOAD)
    for pause in (0.45, 0.25):  # the client is slow
        await client.send(chunks(b"x"))
        await asyncio.sleep(pause)
    assert (await client.ask(b"0\r\n\r\n")).status == 200
    assert scene.upstream.requests[0].body == b"xx"


async def test_upstream_that_takes_no_body_is_504(scene: Scene) -> None:
    """The upload waits for the upstream, not for the client."""
    await scene.start(UPSTREAM_FIRST_BYTE_TIMEOUT=0.2, CLIENT_BODY_TIMEOUT=0.1)
    released = asyncio.Event()

    async def deaf(exchange: UpstreamExchange) -> None:
        await released.wait()

    scene.upstream.script(deaf)
    client = await scene.send(UPLOAD)
    answered = asyncio.create_task(client.response())
    while not answered.done():
        sending = asyncio.create_task(client.send(chunks(bytes(0x40000))))
        await asyncio.wait({answered, sending}, return_when=asyncio.FIRST_COMPLETED)
    sending.cancel()
    released.set()
    anthropic_error(await answered, 504, "timeout_error")


async def test_idle_deadline_stops_while_client_does_not_read(scene: Scene) -> None:
    """It holds again once the client reads on."""
    await scene.start(UPSTREAM_IDLE_TIMEOUT=0.2)
    size = 24 << 20  # more than the buffers between upstream and client hold

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        head = response_head(200, {"Content-Length": str(size + 1)})
        await exchange.send(head + bytes(size))
        await exchange.disconnected()

    scene.upstream.script(response)
    client = await scene.send(MESSAGE, receive_buffer=16_384)
    await client.head()
    await asyncio.sleep(0.5)  # longer than the deadline
    assert not scene.records.all
    async with asyncio.timeout(10):
        assert len(await client.read_to_end()) == size
        assert (await scene.records.finished()).outcome == "failed"
