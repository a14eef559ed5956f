"""The limit of connections, and which connection makes room for the next."""

from __future__ import annotations

import resource
import socket

import pytest
from held_stream import EVENTS, REQUEST, Stream, begin_stream, rest_of_stream
from scene import Scene
from tls import OwnTLS

from tornadoproxy.server import listener
from tornadoproxy.server.server import _raise_descriptor_limit
from tornadoproxy.testing import (
    TEST_TOKEN,
    RawConnection,
    request_bytes,
    silent_response,
)

HEALTH = request_bytes("GET", "/health")


async def served(connection: RawConnection) -> None:
    """Use `connection`, which is open."""
    assert (await connection.ask(HEALTH)).status == 200


async def test_connection_idle_longest_makes_room(scene: Scene) -> None:
    await scene.start(MAX_CONNECTIONS=3)
    first, second, third = [await scene.raw() for _ in range(3)]
    for connection in (second, first, third, second):  # first and not second is idle longest
        await served(connection)
    fourth = await scene.raw()
    await served(fourth)
    await first.disconnected()
    for connection in (second, third, fourth):
        await served(connection)


BODY = {"Content-Length": "1000000"}
UNKNOWN = {
    "half a head": b"GET /v1/models HTTP/1.1\r\nX: ",
    "a probe's endless body": request_bytes("GET", "/ready", {"Transfer-Encoding": "chunked"}),
    "a body behind a 401": request_bytes("POST", "/v1/messages", BODY),
    "a body behind a 404": request_bytes("POST", "/nowhere", BODY, token=TEST_TOKEN),
}


@pytest.mark.parametrize("sent", UNKNOWN.values(), ids=UNKNOWN)
async def test_unauthenticated_connections_make_room(sent: bytes, scene: Scene) -> None:
    """In the order in which they came; an authenticated request stays."""
    proxy = await scene.start(MAX_CONNECTIONS=3)
    scene.upstream.script(silent_response())
    await scene.send(REQUEST)
    await scene.upstream.received()
    held = [await scene.raw() for _ in range(2)]
    for connection in held:
        await connection.send(sent + b"a" * 10)
    for _ in range(3):
        await served(await scene.raw())
    for connection in held:
        await connection.disconnected()
    assert proxy.server.status().upstream_connections == 1


async def test_silent_tls_handshakes_make_room(scene: Scene, own_tls: OwnTLS) -> None:
    proxy = await scene.start(MAX_CONNECTIONS=3, **own_tls.settings)
    silent = [await scene.raw() for _ in range(3)]
    for _ in range(4):
        await served(await scene.raw(ssl=own_tls.trusting))
    for connection in silent:
        await connection.disconnected()
    assert proxy.server.status().client_connections <= 3


async def test_authenticated_slow_body_makes_no_room(scene: Scene) -> None:
    await scene.start(MAX_CONNECTIONS=2)
    known = await scene.send(REQUEST[:-1])
    for _ in range(3):
        await served(await scene.raw())
    await known.send(REQUEST[-1:])
    assert (await known.response()).status == 400  # the upstream's: the body is not a message


async def test_served_request_makes_no_room_for_another(scene: Scene) -> None:
    """The next connection waits to be accepted until there is room."""
    await scene.start(MAX_CONNECTIONS=2)
    stream = Stream()
    scene.upstream.script(stream, silent_response())
    streaming, silent = await scene.raw(), await scene.raw()
    await begin_stream(streaming)
    await silent.send(REQUEST)
    await scene.upstream.received(2)
    third = await scene.raw()  # accepted by the system, but not yet by the proxy
    await third.send(REQUEST)
    stream.may_end.set()
    assert await rest_of_stream(streaming) == b"".join(EVENTS[1:])
    assert len(scene.upstream.requests) == 2
    await silent.close()
    assert (await third.response()).status == 400


async def test_closed_connections_leave_no_place_taken(scene: Scene) -> None:
    await scene.start(MAX_CONNECTIONS=2)
    for _ in range(10):
        left, reset, refused = await scene.raw(), await scene.raw(), await scene.raw()
        await left.close()
        await reset.reset()
        await refused.send(b"no\r\n\r\n")
        assert (await refused.response()).status == 400
        await refused.close()
    both = [await scene.raw(), await scene.raw()]
    for connection in (*both, *both):
        await served(connection)


async def test_connection_cancelled_while_opening_frees_its_place(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop may open it before it cancels the task that opens it."""
    monkeypatch.setattr(listener, "_GRACE", 0.0)
    proxy = await scene.start(MAX_CONNECTIONS=1)
    clients = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(10)]
    await served(await scene.raw())
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
