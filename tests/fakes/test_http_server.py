"""The scripted server and the raw client: exact bytes, connections and failures."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import socket
import time

import pytest

from tornadoproxy.testing import (
    Ask,
    OpenRaw,
    ProtocolError,
    ScriptedUpstream,
    Truncated,
    UpstreamExchange,
    bytes_response,
    event,
    json_response,
    raw_response,
    request_bytes,
    sse_response,
)

GET = request_bytes("GET", "/")
MODELS = request_bytes("GET", "/v1/models", token="a-key")


@pytest.mark.parametrize("size", [1, 3, 10_000])
async def test_chunked_body_is_read_at_every_split(
    raw: OpenRaw, upstream: ScriptedUpstream, size: int
) -> None:
    body = b"5;ext=1\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\nTrailer: x\r\n\r\n"
    request = request_bytes("POST", "/", {"Transfer-Encoding": "chunked"}, body)
    connection = await raw(upstream)
    for start in range(0, len(request), size):
        await connection.send(request[start : start + size])
    assert (await connection.response()).status == 401
    assert upstream.requests[0].body == b"hello world"


async def test_long_body_is_recorded_by_digest_only(ask: Ask, upstream: ScriptedUpstream) -> None:
    body = b"0123456789abcdef" * 100_000
    upstream.script(bytes_response(b"ok"))
    assert (await ask("/", body=body, token=None, to=upstream)).body == b"ok"
    request = upstream.requests[0]
    assert request.body_length == len(body)
    assert request.body_sha256 == hashlib.sha256(body).hexdigest()
    with pytest.raises(ValueError, match="1600000 bytes is not kept"):
        _ = request.body


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nbad trailer\r\n\r\n",
    ],
)
async def test_ambiguous_request_is_a_failure_of_its_connection(
    raw: OpenRaw, ask: Ask, upstream: ScriptedUpstream, garbage: bytes
) -> None:
    connection = await raw(upstream)
    await connection.send(garbage)
    await connection.disconnected()
    assert [type(failure) for failure in upstream.failures] == [ProtocolError]
    upstream.failures.clear()
    assert (await ask(MODELS, to=upstream)).status == 200


async def test_continue_is_sent_when_the_body_is_read(
    raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    head = request_bytes("POST", "/", {"Expect": "100-continue", "Content-Length": "4"})
    connection = await raw(upstream)
    await connection.send(head)
    assert await connection.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await connection.send(b"body")
    assert (await connection.response()).status == 401


async def test_disconnect_is_seen_behind_an_unread_body(
    raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(UpstreamExchange.disconnected)
    connection = await raw(upstream)
    head = request_bytes("POST", "/", {"Content-Length": "9999999"})
    sending = asyncio.ensure_future(connection.send(head + bytes(2_000_000)))
    request = await upstream.received()
    await sending
    before = request.disconnected_at
    assert before is None
    await connection.reset()
    await request.disconnected()
    assert request.disconnected_at is not None
    await upstream.all_closed()


async def test_incomplete_body_is_a_connection_error(
    raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    connection = await raw(upstream)
    await connection.send(request_bytes("POST", "/", {"Content-Length": "9"}, b"part"))
    request = await upstream.received()
    await connection.close()
    with pytest.raises(ConnectionError, match="after 4 body bytes"):
        await request.complete()


async def test_head_and_204_have_no_body(raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    connection = await raw(upstream)
    response = await connection.ask(MODELS.replace(b"GET", b"HEAD"), to_head=True)
    assert int(response.header("Content-Length") or "") > 100
    upstream.script(bytes_response(b"never sent", status=204), json_response({"whole": True}))
    await connection.send(GET * 2)
    empty = await connection.response()
    assert (empty.status, empty.header("Content-Length")) == (204, None)
    assert json.loads((await connection.response()).body) == {"whole": True}


async def test_each_piece_of_a_stream_is_a_chunk(raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    events = [event({"type": "ping"}), event({"type": "ping", "é": "ü"})]
    upstream.script(
        sse_response(events),
        sse_response(b"whole"),
        sse_response(events, split=1),
        sse_response(b"", headers={"CONTENT-TYPE": "text/plain"}),
    )
    connection = await raw(upstream)
    await connection.send(GET * 4)
    received = []
    for _ in range(4):
        head = await connection.head()
        received.append([(head.header("content-type") or "").encode()])
        while chunk := await connection.chunk():
            received[-1].append(chunk)
    sse = b"text/event-stream; charset=utf-8"
    each_byte = [b"%c" % byte for byte in b"".join(events)]
    assert received == [[sse, *events], [sse, b"whole"], [sse, *each_byte], [b"text/plain"]]


async def test_http_1_0_connection_ends_with_its_response(
    raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    connection = await raw(upstream)
    await connection.send(MODELS.replace(b"/1.1", b"/1.0"))
    assert (await connection.response()).status == 200
    assert await connection.read_to_end() == b""


async def test_end_of_a_response_is_fin_or_rst_after_its_bytes(
    ask: Ask, upstream: ScriptedUpstream
) -> None:
    short = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"
    upstream.script(
        sse_response([b"part"], end="reset"),
        raw_response(short, end="reset"),
        sse_response([b"part"], end="close"),
        raw_response(end="close"),
    )
    for reset, body in ((True, b"part"), (True, b"short"), (False, b"part"), (False, None)):
        with pytest.raises(Truncated) as cut:
            await ask(GET, to=upstream)
        assert cut.value.reset is reset
        assert (cut.value.response and cut.value.response.body) == body
    upstream.script(raw_response(b"HTTP/1.1 200 OK\r\n\r\nto the end", end="close"))
    assert (await ask(GET, to=upstream)).body == b"to the end"


async def test_server_stops_at_once_and_starts_again(ask: Ask) -> None:
    for turns in range(6):  # of the loop, to accept a connection and serve it
        async with ScriptedUpstream() as upstream:
            with socket.create_connection((upstream.host, upstream.port)):
                for _ in range(turns):
                    await asyncio.sleep(0)
                await upstream.stop()
            assert asyncio.all_tasks() == {asyncio.current_task()}, turns
            assert upstream.open_connections == 0, turns
            await upstream.start(port=upstream.port)
            assert (await ask(MODELS, to=upstream)).status == 200
    gc.collect()  # a leaked connection would be a ResourceWarning, which is an error


async def test_delay_is_between_the_events_of_a_stream(ask: Ask) -> None:
    async with ScriptedUpstream(delay=0.01) as upstream:
        upstream.script(sse_response([b"a", b"b", b"c"]))
        before = time.monotonic()
        assert (await ask(GET, to=upstream)).body == b"abc"
        assert time.monotonic() - before >= 0.025
