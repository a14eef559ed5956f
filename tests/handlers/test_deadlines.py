"""Deadlines: to connect, for the first byte, between bytes, for clients; none for the whole."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tornadoproxy.testing import (
    TEST_TOKEN,
    Truncated,
    event,
    json_response,
    raw_response,
    request_bytes,
    response_head,
    silent_response,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornadoproxy.testing import (
        Document,
        OpenRaw,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

pytestmark = pytest.mark.usefixtures("no_errors_logged")

REQUEST = request_bytes("POST", "/v1/messages", {}, b"{}", token=TEST_TOKEN)
CHUNKED_UPLOAD = request_bytes(
    "POST", "/v1/files", {"Transfer-Encoding": "chunked"}, token=TEST_TOKEN
)
EVENT_STREAM = [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]


def error_of(response: RawResponse) -> Document:
    """The error that a response holds, in Anthropic's shape."""
    assert response.header("Content-Type") == "application/json"
    document: Document = json.loads(response.body)
    assert document["type"] == "error"
    assert document["request_id"] == response.header("Request-Id")
    error: Document = document["error"]
    return error


@pytest.fixture
def full_backlog() -> Iterator[int]:
    """The port of somebody who listens, and whose queue has no room for another connection."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture
def mute_listener() -> Iterator[int]:
    """The port of somebody who accepts connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def test_connect_deadline(
    full_backlog: int, start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    await start_proxy(
        UPSTREAM_BASE_URL=f"http://127.0.0.1:{full_backlog}", UPSTREAM_CONNECT_TIMEOUT=0.2
    )
    client = await raw()
    await client.send(REQUEST)
    async with asyncio.timeout(3):
        response = await client.response()
    assert response.status == 504
    assert error_of(response)["type"] == "timeout_error"
    record = await records.finished()
    assert (record.outcome, record.status) == ("failed", 504)


async def test_connect_deadline_includes_tls(
    mute_listener: int, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    await start_proxy(
        UPSTREAM_BASE_URL=f"https://127.0.0.1:{mute_listener}", UPSTREAM_CONNECT_TIMEOUT=0.2
    )
    client = await raw()
    await client.send(REQUEST)
    async with asyncio.timeout(3):
        response = await client.response()
    assert response.status == 504
    assert error_of(response)["type"] == "timeout_error"


async def test_first_byte_deadline(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    await start_proxy(UPSTREAM_FIRST_BYTE_TIMEOUT=0.2)
    upstream.script(silent_response())
    client = await raw()
    await client.send(REQUEST)
    async with asyncio.timeout(3):
        response = await client.response()
    assert response.status == 504
    assert error_of(response)["type"] == "timeout_error"
    async with asyncio.timeout(1):
        await upstream.requests[0].gone()
    record = await records.finished()
    assert (record.outcome, record.status) == ("failed", 504)
    await client.send(REQUEST)  # it was not the client's fault: its connection goes on
    assert (await client.response()).status == 400


async def test_interim_answers_and_half_a_head_are_no_first_byte(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(UPSTREAM_FIRST_BYTE_TIMEOUT=0.2)
    upstream.script(
        raw_response(b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 200 OK\r\nConte", end="hang")
    )
    client = await raw()
    await client.send(REQUEST)
    async with asyncio.timeout(3):
        assert (await client.response()).status == 504


async def test_first_byte_deadline_does_not_hold_for_what_follows(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(UPSTREAM_FIRST_BYTE_TIMEOUT=0.2)

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        await asyncio.sleep(0.5)  # longer than the first byte may take
        await exchange.chunk(b"data: 1\n\n")
        await exchange.last_chunk()

    upstream.script(response)
    client = await raw()
    await client.send(REQUEST)
    assert (await client.response()).body == b"data: 1\n\n"


async def test_idle_deadline_does_not_hold_for_the_first_byte(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(UPSTREAM_IDLE_TIMEOUT=0.1)

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await asyncio.sleep(0.3)  # longer than an answer may fall silent
        await json_response({})(exchange)

    upstream.script(response)
    client = await raw()
    await client.send(REQUEST)
    assert (await client.response()).status == 200


async def test_no_deadline_for_the_whole(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    """An answer lasts longer than each deadline, as long as bytes come, pings included."""
    limit = 0.4
    await start_proxy(
        UPSTREAM_CONNECT_TIMEOUT=limit,
        UPSTREAM_FIRST_BYTE_TIMEOUT=limit,
        UPSTREAM_IDLE_TIMEOUT=limit,
        CLIENT_IDLE_TIMEOUT=limit,
        CLIENT_BODY_TIMEOUT=limit,
        PLUGIN_TIMEOUT=limit,
        DRAIN_TIMEOUT=limit,
    )
    ping = event({"type": "ping"})

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        for _ in range(8):
            await asyncio.sleep(limit / 4)
            await exchange.chunk(ping)
        await exchange.last_chunk()

    upstream.script(response)
    client = await raw()
    await client.send(REQUEST)
    assert (await client.response()).body == ping * 8
    record = await records.finished()
    assert record.outcome == "completed"
    assert record.duration > limit


async def test_slow_upload_is_not_the_upstreams_fault(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """The first byte's deadline starts when the body has been sent, and is a whole one then."""
    await start_proxy(UPSTREAM_FIRST_BYTE_TIMEOUT=0.4)

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await asyncio.sleep(0.25)
        await json_response({"id": "file"})(exchange)

    upstream.script(response)
    client = await raw()
    await client.send(CHUNKED_UPLOAD)
    for pause in (0.6, 0.25):  # a client that takes its time
        await client.send(b"1\r\nx\r\n")
        await asyncio.sleep(pause)
    await client.send(b"0\r\n\r\n")
    assert (await client.response()).status == 200
    assert upstream.requests[0].body == b"xx"


async def test_first_byte_deadline_starts_with_the_bodys_end(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(UPSTREAM_FIRST_BYTE_TIMEOUT=0.2)
    upstream.script(silent_response())
    client = await raw()
    await client.send(CHUNKED_UPLOAD + b"1\r\nx\r\n0\r\n\r\n")
    async with asyncio.timeout(3):
        assert (await client.response()).status == 504


async def test_upstream_that_takes_no_body_is_too_slow(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """It is the upstream that the upload waits for, not the client."""
    await start_proxy(UPSTREAM_FIRST_BYTE_TIMEOUT=0.2, CLIENT_BODY_TIMEOUT=0.1)
    released = asyncio.Event()

    async def deaf(exchange: UpstreamExchange) -> None:
        await released.wait()

    upstream.script(deaf)
    client = await raw()
    await client.send(CHUNKED_UPLOAD)
    piece = b"40000\r\n" + bytes(0x40000) + b"\r\n"
    answered = asyncio.create_task(client.head())
    while not answered.done():
        sending = asyncio.create_task(client.send(piece))
        await asyncio.wait({answered, sending}, return_when=asyncio.FIRST_COMPLETED)
    sending.cancel()
    released.set()
    assert (await answered).status == 504


async def test_slow_client_is_not_the_upstreams_fault(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    """While the client takes nothing, the idle deadline stands still."""
    await start_proxy(UPSTREAM_IDLE_TIMEOUT=0.2)
    body = bytes(24 * 1024 * 1024)

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.send(response_head(200, {"Content-Length": str(len(body))}) + body)

    upstream.script(response)
    client = await raw(receive_buffer=16_384)
    await client.send(REQUEST)
    await client.head()
    await asyncio.sleep(0.6)  # three times the deadline, and the client reads nothing
    assert not records.all
    received = 0
    while received < len(body):
        received += len(await client.read())
    assert (await records.finished()).outcome == "completed"


async def test_idle_deadline_holds_again_once_the_client_reads(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(UPSTREAM_IDLE_TIMEOUT=0.2)
    body = bytes(24 * 1024 * 1024)

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        head = response_head(200, {"Content-Length": str(len(body) + 1)})
        await exchange.send(head + body)
        await exchange.gone()

    upstream.script(response)
    client = await raw()
    await client.send(REQUEST)
    with pytest.raises(Truncated):
        async with asyncio.timeout(10):
            await client.response()


# -- the client's own silence


@pytest.mark.parametrize(
    "sent",
    [
        request_bytes("POST", "/v1/messages", {"Content-Length": "10"}, b"half", token=TEST_TOKEN),
        request_bytes(
            "POST", "/v1/messages", {"Content-Length": "9999999"}, b"half", token=TEST_TOKEN
        ),
        CHUNKED_UPLOAD + b"4\r\nhalf\r\n",
        CHUNKED_UPLOAD,
    ],
    ids=["held", "with a length", "chunked", "nothing"],
)
async def test_client_that_falls_silent_within_its_body(
    sent: bytes, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    await start_proxy(CLIENT_BODY_TIMEOUT=0.2)
    client = await raw()
    await client.send(sent)
    async with asyncio.timeout(3):
        response = await client.response()
    assert response.status == 408
    assert error_of(response)["type"] == "invalid_request_error"
    record = await records.finished()
    assert (record.outcome, record.status) == ("denied", 408)
    async with asyncio.timeout(1):
        for request in upstream.requests:
            await request.gone()


async def test_slow_upload_lasts_longer_than_the_silence_it_may_hold(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(CLIENT_BODY_TIMEOUT=0.3, MIN_BODY_RATE=10)
    client = await raw()
    await client.send(
        request_bytes("POST", "/v1/messages", {"Content-Length": "8"}, token=TEST_TOKEN)
    )
    for _ in range(8):
        await client.send(b"x")
        await asyncio.sleep(0.08)  # a client that takes its time
    assert (await client.response()).status == 400
    assert upstream.requests[0].body == b"xxxxxxxx"
