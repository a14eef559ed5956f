"""The limit of connections, and which connection makes room for the next."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from tornadoproxy import Page, PageResponse, hookimpl
from tornadoproxy.server import listener
from tornadoproxy.server.server import _raise_descriptor_limit
from tornadoproxy.testing import (
    TEST_TOKEN,
    RawConnection,
    json_response,
    request_bytes,
    silent_response,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

    from tornadoproxy import IncomingRequest
    from tornadoproxy.testing import (
        OpenRaw,
        Records,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

HEALTH = request_bytes("GET", "/health")
REQUEST = request_bytes("POST", "/v1/messages", body=b"{}", token=TEST_TOKEN)


async def served(connection: RawConnection) -> None:
    """Use `connection`, which is open."""
    async with asyncio.timeout(2):
        assert (await connection.ask(HEALTH)).status == 200


async def ended(connection: RawConnection) -> None:
    async with asyncio.timeout(2):
        await connection.disconnected()


async def test_connection_idle_longest_makes_room(start_proxy: StartProxy, raw: OpenRaw) -> None:
    await start_proxy(MAX_CONNECTIONS=3)
    first, second, third = [await raw() for _ in range(3)]
    for connection in (second, first, third, second):  # first and not second is idle longest
        await served(connection)
    fourth = await raw()
    await served(fourth)
    await ended(first)
    for connection in (second, third, fourth):
        await served(connection)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_host_of_all_interfaces_takes_both_families(
    start_proxy: StartProxy, records: Records, host: str
) -> None:
    proxy = await start_proxy(HOST="::")
    connection = await RawConnection.open(proxy.port, host)
    response = await connection.ask(request_bytes("GET", "/nothing", token=TEST_TOKEN))
    assert response.status == 404
    assert (await records.finished()).remote_ip == host
    await connection.close()


class Slow:
    """An authenticator that hangs if there is an ``X-Slow`` header, and a public page."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    @hookimpl(tryfirst=True)
    def authenticate(self, request: IncomingRequest) -> Awaitable[None] | None:
        return self._hang() if "X-Slow" in request.headers else None

    @hookimpl
    def pages(self) -> list[Page]:
        return [Page("/page", lambda _: PageResponse(b""), ("POST",), public=True)]

    async def _hang(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise RuntimeError from None  # not reported: the connection is closed


BODY = {"Content-Length": "1000000"}
UNKNOWN = {
    "half a head": b"GET /v1/models HTTP/1.1\r\nX: ",
    "a probe's endless body": request_bytes("GET", "/ready", {"Transfer-Encoding": "chunked"}),
    "a body behind a 401": request_bytes("POST", "/v1/messages", BODY),
    "a body behind a 404": request_bytes("POST", "/nowhere", BODY, token=TEST_TOKEN),
    "a public page's body": request_bytes("POST", "/page", BODY | {"Content-Length": "100"}),
    "an authenticator": request_bytes("GET", "/v1/models", {"X-Slow": "1"}, token=TEST_TOKEN),
}


@pytest.mark.parametrize("sent", UNKNOWN.values(), ids=UNKNOWN)
async def test_unauthenticated_connections_make_room(
    sent: bytes, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """In the order in which they came; an authenticated request stays."""
    slow = Slow()
    proxy = await start_proxy(MAX_CONNECTIONS=3, plugins={"slow": slow})
    upstream.script(silent_response())
    known = await raw()
    await known.send(REQUEST)
    await upstream.received()
    held = [await raw() for _ in range(2)]
    for connection in held:
        await connection.send(sent + b"a" * 10)
    for _ in range(3):
        await served(await raw())
    for connection in held:
        await ended(connection)
    if b"X-Slow" in sent:
        await slow.cancelled.wait()
    assert proxy.server.status().upstream_connections == 1
    assert not any(proxy.server.status().plugin_refusals.values())


async def test_silent_tls_handshakes_make_room(
    start_proxy: StartProxy, raw: OpenRaw, tmp_path: Path
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(key)
    for part in issued.cert_chain_pems:
        part.write_to_path(cert, append=True)
    proxy = await start_proxy(MAX_CONNECTIONS=3, TLS_CERT=cert, TLS_KEY=key)
    context = ssl.create_default_context()
    authority.configure_trust(context)

    silent = [await raw() for _ in range(3)]
    for _ in range(4):
        await served(await raw(ssl=context))
    for connection in silent:
        await ended(connection)
    assert proxy.server.status().client_connections <= 3


async def test_authenticated_slow_body_makes_no_room(start_proxy: StartProxy, raw: OpenRaw) -> None:
    await start_proxy(MAX_CONNECTIONS=2)
    known = await raw()
    await known.send(REQUEST[:-1])
    for _ in range(3):
        await served(await raw())
    await known.send(REQUEST[-1:])
    assert (await known.response()).status == 400  # the upstream's: the body is not a message


async def test_served_request_makes_no_room_for_another(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """The next connection waits to be accepted until there is room."""
    await start_proxy(MAX_CONNECTIONS=2)
    go_on = asyncio.Event()

    async def stream_response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, {"Content-Type": "text/event-stream", "Content-Length": "2"})
        await exchange.send(b"a")
        await go_on.wait()
        await exchange.send(b"b")

    upstream.script(stream_response, silent_response(), json_response({"a": 1}))
    stream, silent = await raw(), await raw()
    await stream.send(REQUEST)
    await stream.head()
    await silent.send(REQUEST)
    await upstream.received(2)
    third = await raw()  # accepted by the system, but not yet by the proxy
    await third.send(REQUEST)
    go_on.set()
    assert await stream.read_until(b"b") == b"ab"
    assert len(upstream.requests) == 2
    await silent.close()
    async with asyncio.timeout(2):
        assert json.loads((await third.response()).body) == {"a": 1}


async def test_closed_connections_leave_no_place_taken(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(MAX_CONNECTIONS=2)
    for _ in range(10):
        left, reset, refused = await raw(), await raw(), await raw()
        await left.close()
        await reset.reset()
        await refused.send(b"no\r\n\r\n")
        assert (await refused.response()).status == 400
        await refused.close()
    both = [await raw(), await raw()]
    for connection in (*both, *both):
        await served(connection)


async def test_connection_cancelled_while_opening_frees_its_place(
    start_proxy: StartProxy, raw: OpenRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop may open it before it cancels the task that opens it."""
    monkeypatch.setattr(listener, "_GRACE", 0.0)
    proxy = await start_proxy(MAX_CONNECTIONS=1)
    clients = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(10)]
    await served(await raw())
    assert proxy.server.status().client_connections <= 1
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("files", "connections"), [(1024, 480), (1_048_576, 20_000), (resource.RLIM_INFINITY, 20_000)]
)
def test_default_of_max_connections_has_a_ceiling(
    files: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert _raise_descriptor_limit() == connections
