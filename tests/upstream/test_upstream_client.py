"""The client to the upstream: idle connections, requests that are sent again, ``fetch``."""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from held_stream import Held
from tornado.httpclient import HTTPClientError
from tornado.ioloop import IOLoop
from upstream.conftest import MakeClient

from tornadoproxy.config.core_settings import (
    UPSTREAM_FIRST_BYTE_TIMEOUT,
    UPSTREAM_KEEPALIVE_TIMEOUT,
)
from tornadoproxy.errors import UpstreamClosed, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from tornadoproxy.protocol.wire import ResponseHead
from tornadoproxy.testing import (
    Response,
    ScriptedUpstream,
    UpstreamExchange,
    bytes_response,
    event,
    json_response,
    raw_response,
    silent_response,
    sse_response,
)
from tornadoproxy.upstream import client as upstream_client
from tornadoproxy.upstream.call import Call, UpstreamRequest
from tornadoproxy.upstream.client import UpstreamClient
from tornadoproxy.upstream.connector import Origin

OK: Response = bytes_response(b"ok")
OK_BYTES = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
HEAD = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
SO_ATTACH_FILTER = 26  # linux/socket.h; Python has no name for it

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="needs socket filters, and TCP_INFO to tell what was taken in"
)


class Bare:
    """An upstream of bare sockets, which do everything within a call."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.connections: list[socket.socket] = []

    async def accept(self) -> socket.socket:
        """Accept a connection, and read a request with the body ``body``, or none."""
        loop = asyncio.get_running_loop()
        connection, _ = await loop.sock_accept(self.listener)
        self.connections.append(connection)
        await read_request(connection)
        return connection

    def nobody_waits(self) -> bool:
        """Return whether no further connection has been made."""
        try:
            self.connections.append(self.listener.accept()[0])
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        for each in (self.listener, *self.connections):
            each.close()


async def read_request(connection: socket.socket) -> None:
    data = b""
    while not data.endswith((b"\r\n\r\n", b"body")):
        piece = await asyncio.get_running_loop().sock_recv(connection, 65536)
        assert piece, f"closed after {data!r}"
        data += piece


async def respond(connection: socket.socket, data: bytes = OK_BYTES) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, data)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def drop_what_arrives(connection: socket.socket) -> None:
    """Have the kernel drop what arrives, as if it was still on its way."""
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0
    program = struct.pack("HP", 1, ctypes.addressof(instruction))
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


@pytest.fixture
def bare() -> Iterator[Bare]:
    bare = Bare()
    yield bare
    bare.close()


@pytest.fixture
def kept(io_loop: IOLoop, client: UpstreamClient, bare: Bare) -> socket.socket:
    """The other end of an idle connection from `client` to `bare`."""

    async def prepare() -> socket.socket:
        fetching = client.fetch(bare.url)
        connection = await bare.accept()
        await respond(connection)
        await fetching
        return connection

    kept: socket.socket = io_loop.run_sync(prepare)
    return kept


class Receiver:
    """A receiver that pauses its call when the response begins."""

    call: Call

    def __init__(self) -> None:
        self.ended: asyncio.Future[UpstreamError | None] = asyncio.Future()

    def on_head(self, head: ResponseHead, first: bytes) -> None:
        self.call.pause()

    def on_data(self, chunk: bytes) -> None:
        raise AssertionError("the body arrives with its head")

    def on_end(self) -> None:
        self.ended.set_result(None)

    def on_failure(self, error: UpstreamError) -> None:
        self.ended.set_result(error)


def begin_upload(client: UpstreamClient, port: int, scheme: str = "http") -> Receiver:
    """Send the head of a request whose body is to be streamed."""
    receiver = Receiver()
    origin = Origin(scheme, "127.0.0.1", port)
    request = UpstreamRequest(origin, "POST", HEAD, body=None, chunked=True)
    receiver.call = client.send(request, receiver)
    return receiver


# -- idle connections


async def test_requests_one_after_the_other_use_one_connection(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    events = sse_response([event({"type": "ping"})] * 3)
    upstream.script(OK, OK, events, bytes_response(b"", status=204), bytes_response(b"long"), OK)
    assert (await client.fetch(upstream.url)).body == b"ok"
    assert (await client.fetch(upstream.url, method="POST", body=b"body")).body == b"ok"
    assert (await client.fetch(upstream.url)).body
    assert (await client.fetch(upstream.url)).code == 204
    head = await client.fetch(upstream.url, method="HEAD")
    assert (head.headers["Content-Length"], head.body) == ("4", b"")
    assert (await client.fetch(upstream.url)).body == b"ok"
    assert (len(upstream.requests), upstream.connections) == (6, 1)


async def test_most_recently_used_connections_are_kept(
    client: UpstreamClient, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_client, "MAX_IDLE_CONNECTIONS", 3)
    held = [Held(OK) for _ in range(4)]
    upstream.script(*held, *[silent_response()] * 3)
    fetching = [client.fetch(upstream.url) for _ in held]
    await upstream.received(4)
    for number, connection in enumerate((3, 1, 4)):
        held[connection - 1].may_begin.set()
        while client.idle_connections == number:
            await asyncio.sleep(0)
    held[1].may_begin.set()
    await asyncio.gather(*fetching)
    while upstream.open_connections > 3:  # the last one is closed
        await asyncio.sleep(0)
    for number in (5, 6, 7):
        client.fetch(upstream.url).cancel()
        await upstream.received(number)
    assert [request.connection for request in upstream.requests[4:]] == [4, 1, 3]


@pytest.mark.parametrize("seconds", [0, 0.05])
async def test_connection_idle_too_long_is_closed(
    make_client: MakeClient, upstream: ScriptedUpstream, seconds: float
) -> None:
    client = make_client({UPSTREAM_KEEPALIVE_TIMEOUT: seconds})
    upstream.script(OK, OK)
    await client.fetch(upstream.url)
    time.sleep(seconds)  # noqa: ASYNC251  # a busy loop closes nothing
    assert (await client.fetch(upstream.url)).body == b"ok"
    assert upstream.connections == 2
    await upstream.all_closed()


@pytest.mark.parametrize(
    "first",
    [
        raw_response(OK_BYTES.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")),
        raw_response(OK_BYTES + FORGED),
        raw_response(OK_BYTES, FORGED),
        raw_response(OK_BYTES, end="close"),
        raw_response(OK_BYTES, end="reset"),
    ],
    ids=["close", "a response follows", "a response follows later", "FIN", "RST"],
)
async def test_connection_that_is_not_reusable_is_not_used(
    client: UpstreamClient, upstream: ScriptedUpstream, first: Response
) -> None:
    """Bytes without a request never become the response to the next one."""
    upstream.script(first, OK)
    assert (await client.fetch(upstream.url)).body == b"ok"
    await upstream.all_closed()
    assert (await client.fetch(upstream.url)).body == b"ok"
    assert (upstream.connections, len(upstream.requests)) == (2, 2)


# -- requests that are sent again, because an idle connection turns out to be closed


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(socket.socket.close, id="FIN"),
        pytest.param(reset, id="RST"),
        pytest.param(lambda kept: kept.send(FORGED), id="a response"),
        pytest.param(lambda kept: (kept.send(FORGED), kept.close()), id="a response, then FIN"),
    ],
)
async def test_request_on_a_connection_that_just_closed_is_sent_again(
    client: UpstreamClient, bare: Bare, kept: socket.socket, end: Callable[[socket.socket], object]
) -> None:
    """The caller sees no error, and the request is delivered exactly once."""
    end(kept)
    fetching = client.fetch(bare.url, method="POST", body=b"body")
    await respond(await bare.accept())
    assert (await fetching).body == b"ok"
    assert bare.nobody_waits()


@linux_only
async def test_request_that_crossed_a_fin_is_sent_again(
    client: UpstreamClient, bare: Bare, kept: socket.socket
) -> None:
    """The upstream has not received what its FIN does not acknowledge."""
    drop_what_arrives(kept)
    fetching = client.fetch(bare.url, method="POST", body=b"body")
    kept.close()
    await respond(await bare.accept())
    assert (await fetching).body == b"ok"
    assert bare.nobody_waits()


@linux_only
async def test_request_that_crossed_a_reset_is_not_sent_again(
    client: UpstreamClient, bare: Bare, kept: socket.socket
) -> None:
    drop_what_arrives(kept)
    fetching = client.fetch(bare.url)
    reset(kept)
    with pytest.raises(UpstreamClosed):
        await fetching
    assert bare.nobody_waits()


@linux_only
async def test_streamed_body_is_not_sent_again(
    client: UpstreamClient, bare: Bare, kept: socket.socket
) -> None:
    """The part that was sent is no longer in memory."""
    drop_what_arrives(kept)
    receiver = begin_upload(client, bare.port)
    receiver.call.write(b"part")
    kept.close()
    assert isinstance(await receiver.ended, UpstreamClosed)
    assert bare.nobody_waits()


@pytest.mark.parametrize(
    ("end", "began"),
    [(socket.socket.close, b""), (reset, b""), (socket.socket.close, b"HTTP/1.1 200 OK\r\n")],
    ids=["FIN", "RST", "half a head"],
)
async def test_request_that_the_upstream_received_is_not_sent_again(
    client: UpstreamClient,
    bare: Bare,
    kept: socket.socket,
    end: Callable[[socket.socket], object],
    began: bytes,
) -> None:
    fetching = client.fetch(bare.url, method="POST", body=b"body")
    await read_request(kept)
    await respond(kept, began)
    end(kept)
    with pytest.raises(UpstreamClosed):
        await fetching
    assert bare.nobody_waits()


# -- fetch


async def test_fetch_sends_and_returns_what_tornado_does(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    scripted = json_response({"a": 1}, 201, [("X-A", "1"), ("X-A", "2"), ("Set-Cookie", "c=d")])
    upstream.script(scripted, OK)
    response = await client.fetch(
        f"{upstream.url}/v1/x?a=%2F", method="POST", body=b"\0body", headers={"X-Own": "1"}
    )
    assert (response.code, response.reason) == (201, "Created")
    assert response.headers.get_list("x-a") == ["1", "2"]
    assert json.loads(response.body) == {"a": 1}
    (request,) = upstream.requests
    assert (request.method, request.target) == ("POST", "/v1/x?a=%2F")
    assert (request.body, request.header("X-Own")) == (b"\0body", "1")
    assert (await client.fetch(upstream.url)).body == b"ok"
    assert upstream.requests[1].target == "/"


async def test_fetch_adds_decompresses_and_follows_nothing(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    elsewhere = {"Location": "/elsewhere", "Content-Encoding": "gzip"}
    upstream.script(*[bytes_response(b"not gzip", elsewhere, 307)] * 2)
    response = await client.fetch(f"{upstream.url}/", raise_error=False)
    assert (response.code, response.body) == (307, b"not gzip")
    assert response.headers["Content-Encoding"] == "gzip"
    (request,) = upstream.requests
    assert request.headers == [("Host", f"127.0.0.1:{upstream.port}")]
    with pytest.raises(HTTPClientError) as caught:
        await client.fetch(upstream.url)
    assert caught.value.response is not None
    assert (caught.value.code, caught.value.response.body) == (307, b"not gzip")


async def test_fetch_without_response_raises_upstream_error(
    make_client: MakeClient, upstream: ScriptedUpstream
) -> None:
    client = make_client({UPSTREAM_FIRST_BYTE_TIMEOUT: 0.05})
    upstream.script(raw_response(end="close"), raw_response(end="reset"), silent_response())
    for error in (UpstreamClosed, UpstreamClosed, UpstreamTimeout):
        with pytest.raises(error):
            await client.fetch(upstream.url, raise_error=False)
    assert len(upstream.requests) == 3, "none is sent again on a new connection"
    await upstream.stop()
    with pytest.raises(UpstreamUnreachable):
        await client.fetch(upstream.url, raise_error=False)


async def test_closed_client_finishes_exchanges_and_keeps_nothing(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    late = Held(OK)
    upstream.script(late, OK)
    in_flight = client.fetch(upstream.url)
    await upstream.received()
    await client.fetch(upstream.url)
    assert upstream.open_connections == 2
    client.close()
    late.may_begin.set()
    assert (await in_flight).body == b"ok"
    await upstream.all_closed()
    with pytest.raises(RuntimeError, match="closed"):
        await client.fetch(upstream.url)


async def test_paused_exchange_leaves_its_connection_readable(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    upstream.script(OK, OK)
    origin = Origin("http", "127.0.0.1", upstream.port)
    receiver = Receiver()
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    receiver.call = client.send(UpstreamRequest(origin, "GET", head), receiver)
    assert await receiver.ended is None
    assert (await client.fetch(upstream.url)).body == b"ok"
    assert upstream.connections == 1


async def test_response_before_the_body_ends_leaves_no_connection(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    """Its upstream still waits for the rest of the body."""

    async def early(exchange: UpstreamExchange) -> None:
        await exchange.send(OK_BYTES)
        await exchange.disconnected()

    upstream.script(early)
    assert await begin_upload(client, upstream.port).ended is None
    assert client.idle_connections == 0


async def test_cancelled_call_ends_the_handshake(client: UpstreamClient) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        began.set()
        await reader.read()
        ended.set()
        writer.close()

    async with await asyncio.start_server(stall, "127.0.0.1", 0) as server:
        call = begin_upload(client, server.sockets[0].getsockname()[1], "https").call
        await began.wait()
        call.cancel()
        await ended.wait()
