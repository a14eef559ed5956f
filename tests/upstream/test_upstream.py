"""The client to the upstream: idle connections, requests that are sent again, ``fetch``."""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING

import pytest
from tornado.httpclient import HTTPClientError

from tornadoproxy import Settings, hookimpl
from tornadoproxy.config.core_settings import UPSTREAM_FIRST_BYTE_TIMEOUT
from tornadoproxy.errors import (
    UpstreamClosed,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tornadoproxy.handlers.relay import HELD_BODY
from tornadoproxy.testing import (
    TEST_TOKEN,
    bytes_response,
    event,
    json_response,
    raw_response,
    request_bytes,
    silent_response,
    sse_response,
)
from tornadoproxy.upstream import client as upstream_client
from tornadoproxy.upstream.call import UpstreamRequest
from tornadoproxy.upstream.client import UpstreamClient
from tornadoproxy.upstream.connector import Origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tornado.ioloop import IOLoop

    from tornadoproxy import IncomingRequest
    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawConnection,
        Records,
        Response,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )
    from tornadoproxy.upstream.call import Call
    from tornadoproxy.upstream.connection import ResponseHead

OK: Response = bytes_response(b"ok")
OK_BYTES = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
SO_ATTACH_FILTER = 26  # linux/socket.h; Python has no name for it

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="needs socket filters, and TCP_INFO to tell what was taken in"
)


def get(target: str = "/v1/x") -> bytes:
    return request_bytes("GET", target, token=TEST_TOKEN)


def post(body: bytes = b'{"a":1}') -> bytes:
    return request_bytes("POST", "/v1/messages", (), body, token=TEST_TOKEN)


class Bare:
    """An upstream of bare sockets, which do everything within a call."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.connections: list[socket.socket] = []

    async def accept(self) -> socket.socket:
        connection, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        self.connections.append(connection)
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


async def read_request(connection: socket.socket, body: bytes = b"") -> bytes:
    """Read one request whose body is `body`."""
    data = b""
    while b"\r\n\r\n" not in data or not data.endswith(body):
        piece = await asyncio.get_running_loop().sock_recv(connection, 65536)
        assert piece, f"closed after {data!r}"
        data += piece
    return data


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


class Meanwhile:
    """A plugin that calls `action` just before a request is sent to the upstream."""

    def __init__(self) -> None:
        self.action: Callable[[], object] | None = None

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> None:
        action, self.action = self.action, None
        if action is not None:
            action()


@pytest.fixture
def bare() -> Iterator[Bare]:
    bare = Bare()
    yield bare
    bare.close()


@pytest.fixture
def meanwhile() -> Meanwhile:
    return Meanwhile()


@pytest.fixture
def kept(
    io_loop: IOLoop, start_proxy: StartProxy, raw: OpenRaw, bare: Bare, meanwhile: Meanwhile
) -> tuple[RawConnection, socket.socket]:
    """A client's connection to a proxy, and the proxy's idle connection to `bare`."""

    async def prepare() -> tuple[RawConnection, socket.socket]:
        await start_proxy(plugins=[meanwhile], UPSTREAM_BASE_URL=bare.url)
        client = await raw()
        await client.send(get())
        upstream = await bare.accept()
        await read_request(upstream)
        await respond(upstream)
        assert (await client.response()).body == b"ok"
        return client, upstream

    result: tuple[RawConnection, socket.socket] = io_loop.run_sync(prepare)
    return result


Kept = tuple["RawConnection", socket.socket]


# -- idle connections


async def test_requests_one_after_the_other_use_one_connection(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    events = sse_response([event({"type": "ping"})] * 3)
    upstream.script(*[OK] * 100, events, OK, bytes_response(b"", status=204), OK)
    connection = await raw()
    for number in range(100):
        assert (await connection.ask(post() if number % 2 else get())).body == b"ok"
    assert (await connection.ask(get())).status == 200
    head = request_bytes("POST", "/v1/x", {"Transfer-Encoding": "chunked"}, token=TEST_TOKEN)
    assert (await connection.ask(head + b"1\r\nx\r\n0\r\n\r\n")).status == 200
    assert (await connection.ask(get())).status == 204
    assert (await connection.ask(get())).status == 200
    assert (len(upstream.requests), upstream.connections) == (104, 1)


async def test_most_recently_used_connection_is_used_first(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    gates = [asyncio.Event() for _ in range(10)]

    async def wait_at_the_gate(exchange: UpstreamExchange) -> None:
        await gates[exchange.request.connection - 1].wait()
        await OK(exchange)

    upstream.script(*[wait_at_the_gate] * 10)
    clients = [await raw() for _ in range(10)]
    for number, client in enumerate(clients, 1):
        await client.send(get())
        assert (await upstream.received(number)).connection == number
    order = [*range(0, 10, 2), *range(1, 10, 2)]
    for number in order:
        gates[number].set()
        assert (await clients[number].response()).status == 200
    assert upstream.open_connections == 10
    upstream.script(*[silent_response()] * 10)
    for client in clients:
        await client.send(get())
    await upstream.received(20)
    again = [request.connection - 1 for request in upstream.requests[10:]]
    assert again == order[::-1]
    assert upstream.connections == 10


async def test_idle_connection_is_closed_after_its_timeout(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(UPSTREAM_KEEPALIVE_TIMEOUT=0.05)
    upstream.script(OK, OK)
    connection = await raw()
    await connection.ask(get())
    assert upstream.open_connections == 1
    async with asyncio.timeout(2):
        await upstream.all_closed()
    assert (await connection.ask(get())).body == b"ok"
    assert upstream.connections == 2


async def test_connection_idle_too_long_is_not_used(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, meanwhile: Meanwhile
) -> None:
    """Even if a busy event loop has not closed it yet."""
    await start_proxy(plugins=[meanwhile], UPSTREAM_KEEPALIVE_TIMEOUT=0.05)
    upstream.script(OK, OK)
    connection = await raw()
    await connection.ask(get())
    meanwhile.action = lambda: time.sleep(0.05)
    assert (await connection.ask(get())).body == b"ok"
    assert upstream.connections == 2


async def test_keepalive_timeout_of_0_keeps_no_connection(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(UPSTREAM_KEEPALIVE_TIMEOUT=0)
    upstream.script(OK, OK)
    connection = await raw()
    for _ in range(2):
        await connection.ask(get())
    assert upstream.connections == 2
    async with asyncio.timeout(2):
        await upstream.all_closed()


@pytest.mark.parametrize(
    "first",
    [
        raw_response(OK_BYTES.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")),
        raw_response(OK_BYTES + FORGED),
        raw_response(OK_BYTES, FORGED),
    ],
    ids=["close", "a response follows", "a response follows later"],
)
async def test_connection_that_is_not_reusable_is_not_used(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, first: Response
) -> None:
    """Bytes without a request never become the response to the next one."""
    upstream.script(first, OK)
    connection = await raw()
    assert (await connection.ask(get())).body == b"ok"
    assert (await connection.ask(post())).body == b"ok"
    assert upstream.connections == 2


# -- requests that are sent again, because an idle connection turns out to be closed


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_connection_closed_while_idle_is_not_used(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records, how: str
) -> None:
    upstream.script(raw_response(OK_BYTES, end=how), OK)  # type: ignore[arg-type]  # one of Ending
    connection = await raw()
    assert (await connection.ask(get())).body == b"ok"
    await upstream.all_closed()
    assert (await connection.ask(post())).body == b"ok"
    assert len(upstream.requests) == 2
    assert (await records.finished(2)).outcome == "completed"


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(socket.socket.close, id="FIN"),
        pytest.param(reset, id="RST"),
        pytest.param(lambda upstream: upstream.send(FORGED), id="a response"),
        pytest.param(
            lambda upstream: (upstream.send(FORGED), upstream.close()), id="a response, then FIN"
        ),
    ],
)
async def test_request_on_a_connection_that_just_closed_is_sent_again(
    kept: Kept, bare: Bare, meanwhile: Meanwhile, end: Callable[[socket.socket], object]
) -> None:
    """The client sees no error, and the request is delivered exactly once."""
    client, upstream = kept
    meanwhile.action = lambda: end(upstream)
    await client.send(post())
    async with asyncio.timeout(2):
        again = await bare.accept()
    received = await read_request(again, post().partition(b"\r\n\r\n")[2])
    assert received.startswith(b"POST")
    await respond(again)
    assert (await client.response()).body == b"ok"
    assert bare.nobody_waits()


@linux_only
async def test_request_that_crossed_a_fin_is_sent_again(
    kept: Kept, bare: Bare, meanwhile: Meanwhile
) -> None:
    """The upstream has not received what its FIN does not acknowledge."""
    client, upstream = kept

    def cross() -> None:
        drop_what_arrives(upstream)
        asyncio.get_running_loop().call_soon(upstream.close)

    meanwhile.action = cross
    await client.send(get())
    async with asyncio.timeout(2):
        again = await bare.accept()
    await read_request(again)
    await respond(again)
    assert (await client.response()).body == b"ok"
    assert bare.nobody_waits()


@linux_only
async def test_request_that_crossed_a_reset_is_not_sent_again(
    kept: Kept, bare: Bare, meanwhile: Meanwhile
) -> None:
    client, upstream = kept

    def cross() -> None:
        drop_what_arrives(upstream)
        asyncio.get_running_loop().call_soon(reset, upstream)

    meanwhile.action = cross
    assert (await client.ask(get())).status == 502
    assert bare.nobody_waits()


@linux_only
async def test_streamed_body_is_not_sent_again(
    kept: Kept, bare: Bare, meanwhile: Meanwhile, records: Records
) -> None:
    """The part that was sent is no longer in memory."""
    client, upstream = kept
    meanwhile.action = lambda: drop_what_arrives(upstream)
    head = request_bytes("POST", "/v1/x", {"Transfer-Encoding": "chunked"}, token=TEST_TOKEN)
    await client.send(head + b"4\r\npart\r\n")
    for _ in range(50):  # turns of the loop: the proxy needs only a few
        await asyncio.sleep(0)
    upstream.close()
    assert (await client.response()).status == 502
    assert (await records.finished(2)).bytes_in == 4
    assert bare.nobody_waits()


@pytest.mark.parametrize(
    ("end", "began"),
    [(socket.socket.close, b""), (reset, b""), (socket.socket.close, b"HTTP/1.1 200 OK\r\n")],
    ids=["FIN", "RST", "half a head"],
)
async def test_request_that_the_upstream_received_is_not_sent_again(
    kept: Kept, bare: Bare, end: Callable[[socket.socket], object], began: bytes
) -> None:
    client, upstream = kept
    await client.send(post())
    await read_request(upstream, post().partition(b"\r\n\r\n")[2])
    await respond(upstream, began)
    end(upstream)
    response = await client.response()
    assert response.status == 502
    assert json.loads(response.body)["error"]["type"] == "api_error"
    assert bare.nobody_waits()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_request_on_a_new_connection_is_not_sent_again(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, how: str
) -> None:
    upstream.script(raw_response(end=how))  # type: ignore[arg-type]  # one of Ending
    assert (await (await raw()).ask(get())).status == 502
    assert len(upstream.requests) == 1


# -- held bodies


async def begin_response(exchange: UpstreamExchange) -> None:
    await exchange.read_all()
    await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
    await exchange.disconnected()


async def test_held_bodies_are_released_however_they_end(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    """Clients disconnect, responses end, or have only begun: no body is counted then."""
    proxy = await start_proxy(MAX_HELD_BODIES=80_000)
    holding = [await raw() for _ in range(4)]
    for connection in holding:
        await connection.send(post(b"x" * 10_000)[:-1])
    while proxy.server.status().held_bytes < 39_996:
        await asyncio.sleep(0)
    refused = await (await raw()).ask(post(b"x" * 20_000))
    assert (refused.status, refused.header("retry-after")) == (529, "1")

    await holding[0].close()
    upstream.script(OK, begin_response, OK)
    for connection in holding[1:]:
        await connection.send(b"x")
        assert (await connection.head()).status == 200
    await records.finished(4)
    assert proxy.server.status().held_bytes == 0


async def test_held_body_is_sent_when_it_is_whole(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(OK, OK)
    connection = await raw()
    body = b"x" * HELD_BODY
    data = post(body)
    await connection.send(data[:-1])
    await (await raw()).ask(get())
    assert [request.method for request in upstream.requests] == ["GET"]
    await connection.send(data[-1:])
    assert (await connection.response()).body == b"ok"
    assert upstream.requests[1].body == body


# -- fetch


@pytest.fixture
def client(io_loop: IOLoop) -> Iterator[UpstreamClient]:
    settings = Settings.defaults().replace({UPSTREAM_FIRST_BYTE_TIMEOUT: 0.2})

    async def make() -> UpstreamClient:
        return UpstreamClient(force_instance=True, settings=settings)

    client: UpstreamClient = io_loop.run_sync(make)
    yield client
    client.close()


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
    assert upstream.connections == 1


async def test_fetch_adds_decompresses_and_follows_nothing(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    elsewhere = {"Location": "/elsewhere", "Content-Encoding": "gzip"}
    upstream.script(bytes_response(b"not gzip", elsewhere, 307))
    response = await client.fetch(f"{upstream.url}/", raise_error=False)
    assert (response.code, response.body) == (307, b"not gzip")
    assert response.headers["Content-Encoding"] == "gzip"
    (request,) = upstream.requests
    assert request.headers == [("Host", f"127.0.0.1:{upstream.port}")]


async def test_fetch_raises_for_an_error_status(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    missing = bytes_response(b"nothing", status=404)
    upstream.script(missing, missing)
    with pytest.raises(HTTPClientError) as caught:
        await client.fetch(upstream.url)
    assert caught.value.code == 404
    assert caught.value.response is not None
    assert caught.value.response.body == b"nothing"
    response = await client.fetch(upstream.url, raise_error=False)
    assert response.code == 404


async def test_fetch_of_head_has_no_body(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    upstream.script(bytes_response(b"body"), OK)
    response = await client.fetch(upstream.url, method="HEAD")
    assert (response.headers["Content-Length"], response.body) == ("4", b"")
    assert (await client.fetch(upstream.url)).body == b"ok"


async def test_fetch_without_response_raises_upstream_error(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    upstream.script(raw_response(end="close"), silent_response())
    with pytest.raises(UpstreamClosed):
        await client.fetch(upstream.url, raise_error=False)
    with pytest.raises(UpstreamTimeout):
        await client.fetch(upstream.url, raise_error=False)
    await upstream.stop()
    with pytest.raises(UpstreamUnreachable):
        await client.fetch(upstream.url, raise_error=False)


async def test_idle_connections_beyond_the_limit_are_closed(
    client: UpstreamClient, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_client, "MAX_IDLE_CONNECTIONS", 4)
    gate = asyncio.Event()

    async def wait_at_the_gate(exchange: UpstreamExchange) -> None:
        await gate.wait()
        await OK(exchange)

    upstream.script(*[wait_at_the_gate] * 7)
    fetching = [asyncio.ensure_future(client.fetch(upstream.url)) for _ in range(7)]
    await upstream.received(7)
    gate.set()
    await asyncio.gather(*fetching)
    closing = [asyncio.create_task(request.disconnected()) for request in upstream.requests]
    for closed in asyncio.as_completed(closing[-3:]):
        await closed
    assert (upstream.connections, upstream.open_connections) == (7, 4)


async def test_closed_client_finishes_exchanges_and_keeps_nothing(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    closed = asyncio.Event()

    async def late(exchange: UpstreamExchange) -> None:
        await closed.wait()
        await OK(exchange)

    upstream.script(late, OK)
    in_flight = asyncio.ensure_future(client.fetch(upstream.url))
    await upstream.received()
    await client.fetch(upstream.url)
    assert upstream.open_connections == 2
    client.close()
    closed.set()
    assert (await in_flight).body == b"ok"
    async with asyncio.timeout(1):
        await upstream.all_closed()
    with pytest.raises(RuntimeError, match="closed"):
        await client.fetch(upstream.url)


class PausingReceiver:
    """Pauses its call when the response begins."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.ended = asyncio.Event()

    def on_head(self, head: ResponseHead, first: bytes) -> None:
        assert self.call is not None
        self.call.pause()

    def on_data(self, chunk: bytes) -> None:
        raise AssertionError("the body arrives with its head")

    def on_end(self) -> None:
        self.ended.set()

    def on_failure(self, error: UpstreamError) -> None:
        raise AssertionError(error)


async def test_paused_exchange_leaves_its_connection_readable(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    upstream.script(OK, OK)
    origin = Origin("http", "127.0.0.1", upstream.port)
    receiver = PausingReceiver()
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    receiver.call = client.send(UpstreamRequest(origin, "GET", head), receiver)
    async with asyncio.timeout(2):
        await receiver.ended.wait()
        assert (await client.fetch(upstream.url)).body == b"ok"
    assert upstream.connections == 1
