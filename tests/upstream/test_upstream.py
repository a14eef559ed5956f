"""The client to the upstream: what is kept, what is tried again, what is no answer, ``fetch``."""

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
from tornadoproxy.errors import UpstreamClosed, UpstreamTimeout, UpstreamUnreachable
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
from tornadoproxy.upstream.client import MAX_IDLE_CONNECTIONS, UpstreamClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tornado.ioloop import IOLoop

    from tornadoproxy import IncomingRequest
    from tornadoproxy.testing import (
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


async def ask(connection: RawConnection, data: bytes) -> RawResponse:
    await connection.send(data)
    return await connection.response()


class Bare:
    """An upstream of bare sockets: what happens on them happens within a call."""

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
        """Whether no connection has been made that was not accepted."""
        try:
            self.connections.append(self.listener.accept()[0])
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        for each in (self.listener, *self.connections):
            each.close()


async def read_request(connection: socket.socket, body: bytes = b"") -> bytes:
    """One request, whose body is known to be `body`."""
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
    """From now on its kernel sees nothing of what it is sent, as if that was still on its way."""
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0
    program = struct.pack("HP", 1, ctypes.addressof(instruction))
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class Meanwhile:
    """Does something while a request is being decided on: after that nothing waits any more."""

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
    """A client's connection to a proxy, and the idle connection that the proxy keeps to `bare`."""

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


# -- what is kept


async def test_a_thousand_requests_cost_one_connection(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(*[OK] * 1000)
    connection = await raw()
    for number in range(1000):
        response = await ask(connection, post() if number % 2 else get())
        assert response.body == b"ok"
    assert (len(upstream.requests), upstream.connections) == (1000, 1)


async def test_a_streamed_answer_and_a_streamed_request_leave_their_connection_usable(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(
        sse_response([event({"type": "ping"})] * 3), OK, bytes_response(b"", status=204), OK
    )
    connection = await raw()
    assert (await ask(connection, get())).status == 200
    head = request_bytes("POST", "/v1/x", {"Transfer-Encoding": "chunked"}, token=TEST_TOKEN)
    assert (await ask(connection, head + b"1\r\nx\r\n0\r\n\r\n")).status == 200
    assert (await ask(connection, get())).status == 204
    assert (await ask(connection, get())).status == 200
    assert upstream.connections == 1


async def test_fifty_at_once_have_fifty_connections_and_the_last_one_goes_first(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    gates = [asyncio.Event() for _ in range(50)]

    async def wait_at_the_gate(exchange: UpstreamExchange) -> None:
        await gates[exchange.request.connection - 1].wait()
        await OK(exchange)

    upstream.script(*[wait_at_the_gate] * 50)
    clients = [await raw() for _ in range(50)]
    for number, client in enumerate(clients, 1):
        await client.send(get())
        assert (await upstream.received(number)).connection == number
    order = [*range(0, 50, 2), *range(1, 50, 2)]
    for number in order:
        gates[number].set()
        assert (await clients[number].response()).status == 200
    assert upstream.open_connections == 50
    upstream.script(*[silent_response()] * 50)
    for client in clients:
        await client.send(get())
    await upstream.received(100)
    again = [request.connection - 1 for request in upstream.requests[50:]]
    assert again == order[::-1]
    assert upstream.connections == 50


async def test_an_idle_connection_is_closed_after_a_while(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(UPSTREAM_KEEPALIVE_TIMEOUT=0.1)
    upstream.script(OK, OK)
    connection = await raw()
    await ask(connection, get())
    assert upstream.open_connections == 1
    async with asyncio.timeout(2):
        await upstream.all_closed()
    assert (await ask(connection, get())).body == b"ok"
    assert upstream.connections == 2


async def test_a_connection_that_has_been_idle_too_long_is_not_used(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, meanwhile: Meanwhile
) -> None:
    """Also if nothing has had the time to close it."""
    await start_proxy(plugins=[meanwhile], UPSTREAM_KEEPALIVE_TIMEOUT=0.1)
    upstream.script(OK, OK)
    connection = await raw()
    await ask(connection, get())
    meanwhile.action = lambda: time.sleep(0.1)
    assert (await ask(connection, get())).body == b"ok"
    assert upstream.connections == 2


async def test_none_is_kept_if_so_configured(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(UPSTREAM_KEEPALIVE_TIMEOUT=0)
    upstream.script(OK, OK)
    connection = await raw()
    for _ in range(2):
        await ask(connection, get())
    assert upstream.connections == 2
    async with asyncio.timeout(2):
        await upstream.all_closed()


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(
            raw_response(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"),
            id="it says close",
        ),
        pytest.param(
            raw_response(b"HTTP/1.1 200 OK\r\nConnection: x, CLOSE\r\nContent-Length: 2\r\n\r\nok"),
            id="it says close among others",
        ),
        pytest.param(
            raw_response(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"), id="it speaks HTTP/1.0"
        ),
        pytest.param(raw_response(OK_BYTES + FORGED), id="another answer follows"),
        pytest.param(raw_response(OK_BYTES, FORGED), id="another answer follows later"),
        pytest.param(raw_response(OK_BYTES + b"\0"), id="a byte follows"),
        pytest.param(
            raw_response(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
                + FORGED
            ),
            id="another answer follows the last chunk",
        ),
    ],
)
async def test_what_is_not_fit_for_another_request_is_not_kept(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, first: Response
) -> None:
    """Bytes that nobody asked for never become the answer to the next request."""
    upstream.script(first, OK)
    connection = await raw()
    assert (await ask(connection, get())).body == b"ok"
    assert (await ask(connection, post())).body == b"ok"
    assert upstream.connections == 2


@pytest.mark.parametrize(
    ("request_line", "head"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 52\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 52\r\n\r\n"),
    ],
)
async def test_a_body_where_there_is_none_is_not_taken_for_an_answer(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, request_line: str, head: bytes
) -> None:
    upstream.script(raw_response(head + FORGED), OK)
    connection = await raw()
    await connection.send(request_bytes(request_line, "/v1/x", token=TEST_TOKEN))
    await connection.response(to_head=True)
    assert (await ask(connection, get())).body == b"ok"
    assert upstream.connections == 2


# -- what is tried again: a kept connection that turns out to be closed


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_connection_that_ends_while_idle_is_noticed(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records, how: str
) -> None:
    upstream.script(raw_response(OK_BYTES, end=how), OK)  # type: ignore[arg-type]  # one of Ending
    connection = await raw()
    assert (await ask(connection, get())).body == b"ok"
    await upstream.all_closed()
    assert (await ask(connection, post())).body == b"ok"
    assert len(upstream.requests) == 2
    assert (await records.finished(2)).outcome == "completed"


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(socket.socket.close, id="FIN"),
        pytest.param(reset, id="RST"),
        pytest.param(lambda upstream: upstream.send(FORGED), id="an answer to nothing"),
        pytest.param(lambda upstream: (upstream.send(FORGED), upstream.close()), id="and FIN"),
    ],
)
@pytest.mark.parametrize("data", [get(), post()], ids=["GET", "POST"])
async def test_a_connection_that_ends_as_the_next_request_arrives(
    kept: Kept,
    bare: Bare,
    meanwhile: Meanwhile,
    end: Callable[[socket.socket], object],
    data: bytes,
) -> None:
    """The client has no error of it, and the request is delivered exactly once."""
    client, upstream = kept
    meanwhile.action = lambda: end(upstream)
    await client.send(data)
    async with asyncio.timeout(2):
        again = await bare.accept()
    received = await read_request(again, data.partition(b"\r\n\r\n")[2])
    assert received.startswith(data[:4])
    await respond(again)
    assert (await client.response()).body == b"ok"
    assert bare.nobody_waits()


@linux_only
async def test_a_request_that_crossed_a_fin_is_sent_again(
    kept: Kept, bare: Bare, meanwhile: Meanwhile
) -> None:
    """What the FIN does not acknowledge was not there when the upstream closed."""
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
async def test_a_reset_tells_nothing_of_what_was_read_before_it(
    kept: Kept, bare: Bare, meanwhile: Meanwhile
) -> None:
    client, upstream = kept

    def cross() -> None:
        drop_what_arrives(upstream)
        asyncio.get_running_loop().call_soon(reset, upstream)

    meanwhile.action = cross
    assert (await ask(client, get())).status == 502
    assert bare.nobody_waits()


@linux_only
async def test_a_streamed_body_is_not_sent_again(
    kept: Kept, bare: Bare, meanwhile: Meanwhile, records: Records
) -> None:
    """A part of it has gone out, and nobody has kept it."""
    client, upstream = kept
    meanwhile.action = lambda: drop_what_arrives(upstream)
    head = request_bytes("POST", "/v1/x", {"Transfer-Encoding": "chunked"}, token=TEST_TOKEN)
    await client.send(head + b"4\r\npart\r\n")
    for _ in range(50):  # turns of the loop: everything that the proxy does takes but a few
        await asyncio.sleep(0)
    upstream.close()
    assert (await client.response()).status == 502
    assert (await records.finished(2)).bytes_in == 4
    assert bare.nobody_waits()


@pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("data", [get(), post()], ids=["GET", "POST"])
@pytest.mark.parametrize("began", [b"", b"HTTP/1.1 200 OK\r\n"], ids=["nothing", "half a head"])
async def test_a_request_that_the_upstream_has_read_is_not_sent_again(
    kept: Kept, bare: Bare, end: Callable[[socket.socket], object], data: bytes, began: bytes
) -> None:
    client, upstream = kept
    await client.send(data)
    await read_request(upstream, data.partition(b"\r\n\r\n")[2])
    await respond(upstream, began)
    end(upstream)
    response = await client.response()
    assert response.status == 502
    assert json.loads(response.body)["error"]["type"] == "api_error"
    assert bare.nobody_waits()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_nothing_is_tried_again_on_a_new_connection(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, how: str
) -> None:
    upstream.script(raw_response(end=how))  # type: ignore[arg-type]  # one of Ending
    assert (await ask(await raw(), get())).status == 502
    assert len(upstream.requests) == 1


# -- what is no answer


HEADERS = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            HEADERS + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", id="two lengths"
        ),
        pytest.param(HEADERS + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", id="twice"),
        pytest.param(HEADERS + b"Content-Length: 1, 2\r\n\r\nx", id="a list of lengths"),
        pytest.param(HEADERS + b"Content-Length: one\r\n\r\nx", id="a word as length"),
        pytest.param(HEADERS + b"Content-Length: -1\r\n\r\n", id="a negative length"),
        pytest.param(HEADERS + b"Content-Length: +1\r\n\r\nx", id="a signed length"),
        pytest.param(HEADERS + b"Content-Length: 0x1\r\n\r\nx", id="a hexadecimal length"),
        pytest.param(HEADERS + b"Content-Length: %d\r\n\r\n" % 10**30, id="a length without end"),
        pytest.param(HEADERS + b"Content-Length:\r\n\r\n", id="an empty length"),
        pytest.param(
            HEADERS + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="a length beside chunks",
        ),
        pytest.param(
            HEADERS + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            id="chunks beside a length",
        ),
        pytest.param(HEADERS + b"Transfer-Encoding: gzip\r\n\r\n", id="gzip as transfer coding"),
        pytest.param(
            HEADERS + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="gzip and chunked"
        ),
        pytest.param(
            HEADERS + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
            id="two transfer codings",
        ),
        pytest.param(HEADERS + b"no colon\r\n\r\n", id="a header without colon"),
        pytest.param(HEADERS + b"Name : value\r\n\r\n", id="a blank before the colon"),
        pytest.param(HEADERS + b"X: a\0b\r\nContent-Length: 0\r\n\r\n", id="NUL in a header"),
        pytest.param(HEADERS + b": value\r\n\r\n", id="a header without name"),
        pytest.param(HEADERS[:-2] + b"\nContent-Length: 0\n\n", id="bare line feeds"),
        pytest.param(b"\0\x01\x02garbage\r\n\r\n", id="garbage"),
        pytest.param(b"<html>hello</html>", id="HTTP/0.9"),
        pytest.param(b"HTTP/2 200 OK\r\n\r\n", id="HTTP/2"),
        pytest.param(b"HTTP/1.1 2000 OK\r\n\r\n", id="four digits"),
        pytest.param(b"HTTP/1.1 20 OK\r\n\r\n", id="two digits"),
        pytest.param(b"SSH-2.0-OpenSSH_9.9\r\n", id="SSH"),
        pytest.param(b"\x15\x03\x03\x00\x02\x02\x28", id="a TLS alert"),
        pytest.param(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
            id="an upgrade",
        ),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", id="101"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + OK_BYTES, id="101 and more"),
    ],
)
async def test_what_is_not_http_is_502(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records, data: bytes
) -> None:
    upstream.script(raw_response(data, end="close"), OK)
    connection = await raw()
    response = await ask(connection, post())
    assert response.status == 502
    assert json.loads(response.body)["error"]["type"] == "api_error"
    assert (await records.finished()).outcome == "failed"
    # and it is not heard of again
    assert (await ask(connection, get())).body == b"ok"
    assert [request.method for request in upstream.requests] == ["POST", "GET"]


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-Endless: " + b"x" * 1000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Endless: ", b"x" * 1000),
        (b"HTTP/1.1 200 ", b"x" * 1000),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 10),
    ],
    ids=["headers", "a header", "a reason", "interim answers"],
)
async def test_a_head_without_end_is_502(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, begins: bytes, goes_on: bytes
) -> None:
    async def never_end(exchange: UpstreamExchange) -> None:
        await exchange.send(begins)
        while True:
            await exchange.send(goes_on)

    upstream.script(never_end)
    async with asyncio.timeout(5):
        assert (await ask(await raw(), get())).status == 502


@pytest.mark.parametrize(
    "data",
    [
        b"2\r\nok\r\nx\r\n",
        b"2\r\nokay\r\n0\r\n\r\n",
        b"-2\r\nok\r\n0\r\n\r\n",
        b"2\nok\n0\n\n",
        b"2\r\nok\r\n0\r\nno trailer\r\n\r\n",
        b"f" * 17 + b"\r\nok\r\n",
    ],
)
async def test_a_broken_chunk_never_ends_cleanly(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records, data: bytes
) -> None:
    head = HEADERS + b"Transfer-Encoding: chunked\r\n\r\n"
    upstream.script(raw_response(head, data, end="close"))
    connection = await raw()
    await connection.send(get())
    everything = await connection.read_to_end()
    assert everything.startswith(b"HTTP/1.1 200 OK")
    assert not everything.endswith(b"0\r\n\r\n")
    assert (await records.finished()).outcome == "failed"


# -- held bodies


async def begin_response(exchange: UpstreamExchange) -> None:
    await exchange.read_all()
    await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
    await exchange.disconnected()


async def test_held_bodies_give_room_back_however_they_end(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    """Some disconnect, some end, and for some the answer has begun: none is charged then."""
    proxy = await start_proxy(MAX_HELD_BODIES=80_000)
    holding = [await raw() for _ in range(4)]
    for connection in holding:
        await connection.send(post(b"x" * 10_000)[:-1])
    while proxy.server.status().held_bytes < 39_996:
        await asyncio.sleep(0)
    refused = await ask(await raw(), post(b"x" * 20_000))
    assert (refused.status, refused.header("retry-after")) == (529, "1")

    await holding[0].close()
    upstream.script(OK, begin_response, OK)
    for connection in holding[1:]:
        await connection.send(b"x")
        assert (await connection.head()).status == 200
    await records.finished(4)
    assert proxy.server.status().held_bytes == 0


async def test_a_held_body_goes_out_whole(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(OK, OK)
    connection = await raw()
    body = b"x" * HELD_BODY
    data = post(body)
    await connection.send(data[:-1])
    await ask(await raw(), get())
    assert [request.method for request in upstream.requests] == ["GET"]
    await connection.send(data[-1:])
    assert (await connection.response()).body == b"ok"
    assert upstream.requests[1].body == body


# -- fetch


@pytest.fixture
def client(io_loop: IOLoop) -> Iterator[UpstreamClient]:
    settings = Settings.defaults().replace({UPSTREAM_FIRST_BYTE_TIMEOUT: 0.5})

    async def make() -> UpstreamClient:
        return UpstreamClient(force_instance=True, settings=settings)

    client: UpstreamClient = io_loop.run_sync(make)
    yield client
    client.close()


async def test_fetch_is_that_of_any_async_http_client(
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


async def test_fetch_adds_nothing_decompresses_nothing_and_follows_nothing(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    elsewhere = {"Location": "/elsewhere", "Content-Encoding": "gzip"}
    upstream.script(bytes_response(b"not gzip", elsewhere, 307))
    response = await client.fetch(f"{upstream.url}/", raise_error=False)
    assert (response.code, response.body) == (307, b"not gzip")
    assert response.headers["Content-Encoding"] == "gzip"
    (request,) = upstream.requests
    assert request.headers == [("Host", f"127.0.0.1:{upstream.port}")]


async def test_fetch_raises_for_a_status_unless_told(
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


async def test_fetch_raises_an_upstream_error_if_there_is_no_answer(
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


async def test_no_more_than_a_few_hundred_connections_are_kept(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    client.first_byte_timeout = 10  # the first has to wait until the last is there
    count = MAX_IDLE_CONNECTIONS + 3
    gate = asyncio.Event()

    async def wait_at_the_gate(exchange: UpstreamExchange) -> None:
        await gate.wait()
        await OK(exchange)

    upstream.script(*[wait_at_the_gate] * count)
    fetching = []
    for number in range(1, count + 1):
        fetching.append(asyncio.ensure_future(client.fetch(upstream.url)))
        if number % 50 == 0:  # no more at once than the socket's backlog takes
            await upstream.received(number)
    await upstream.received(count)
    gate.set()
    await asyncio.gather(*fetching)
    closing = [asyncio.create_task(request.disconnected()) for request in upstream.requests]
    for closed in asyncio.as_completed(closing[-3:]):
        await closed
    assert (upstream.connections, upstream.open_connections) == (count, MAX_IDLE_CONNECTIONS)


async def test_a_closed_client_closes_its_connections(
    client: UpstreamClient, upstream: ScriptedUpstream
) -> None:
    upstream.script(OK)
    await client.fetch(upstream.url)
    assert upstream.open_connections == 1
    client.close()
    async with asyncio.timeout(1):
        await upstream.all_closed()
    with pytest.raises(RuntimeError, match="closed"):
        await client.fetch(upstream.url)
