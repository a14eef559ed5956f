"""Draining: requests in flight finish within ``DRAIN_TIMEOUT``, idle connections end at once."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from held_stream import EVENTS, REQUEST, Endless, Stream, begin_stream, rest_of_stream
from scene import Scene
from served import anthropic_error
from tornado import netutil

from tornadoproxy import hookimpl
from tornadoproxy.server import listening, server
from tornadoproxy.testing import (
    TEST_TOKEN,
    Proxy,
    RawConnection,
    Truncated,
    request_bytes,
    silent_response,
    sse_response,
)

pytestmark = pytest.mark.usefixtures("no_errors_logged")

NOT_FOUND = request_bytes("GET", "/nowhere", token=TEST_TOKEN)
HEALTH = request_bytes("GET", "/health")


async def end_stream(client: RawConnection) -> None:
    """Read the rest of the stream, to its clean end, and the connection's."""
    assert await rest_of_stream(client) == b"".join(EVENTS[1:])
    assert await client.read() == b""


async def test_drain_ends_idle_connections_and_lets_streams_finish(
    proxy: Proxy, scene: Scene
) -> None:
    stream = Stream()
    scene.upstream.script(stream)
    idle, unused, streaming = await scene.raw(), await scene.raw(), await scene.raw()
    assert (await idle.ask(HEALTH)).status == 200
    await begin_stream(streaming)
    drain = asyncio.create_task(proxy.server.drain())
    assert await idle.read() == b""
    assert await unused.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await scene.raw()
    assert not drain.done()
    stream.may_end.set()
    await end_stream(streaming)
    await drain
    await scene.upstream.all_closed()
    assert (await scene.records.finished()).outcome == "completed"


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
async def test_drain_right_after_response_closes_connection(turns: int, scene: Scene) -> None:
    """For some turns of the event loop it is neither idle nor busy."""
    proxy = await scene.start(DRAIN_TIMEOUT=600)
    client = await scene.send(NOT_FOUND)
    await scene.records.finished()
    for _ in range(turns):
        await asyncio.sleep(0)
    await proxy.server.drain()
    assert (await client.response()).status == 404
    assert await client.read() == b""


async def test_drain_answers_half_sent_requests_with_close(proxy: Proxy, scene: Scene) -> None:
    """Readiness is 503, health is not, and a body is still read."""
    stream = Stream()
    scene.upstream.script(stream)
    probes = [request_bytes(*each) for each in (("GET", "/ready"), ("HEAD", "/ready"))]
    half_sent = [(HEALTH, 200), *((probe, 503) for probe in probes), (REQUEST, 400)]
    clients = [await scene.send(request[:-1]) for request, _ in half_sent]
    idle, streaming = await scene.raw(), await scene.raw()
    await begin_stream(streaming)  # by now what the others sent has been read
    drain = asyncio.create_task(proxy.server.drain())
    assert await idle.read() == b""
    for client, (request, status) in zip(clients, half_sent, strict=True):
        is_head = request.startswith(b"HEAD")
        response = await client.ask(request[-1:], to_head=is_head)
        assert (response.status, response.header("Connection")) == (status, "close")
        if request == probes[0]:
            assert json.loads(response.body) == {"status": "draining"}
        assert await client.read() == b""
    assert scene.upstream.requests[1].body == b"{}"
    stream.may_end.set()
    await end_stream(streaming)
    await drain


async def test_drain_begins_no_pipelined_request(proxy: Proxy, scene: Scene) -> None:
    stream = Stream()
    scene.upstream.script(stream)
    idle, client = await scene.raw(), await scene.raw()
    await begin_stream(client)
    await client.send(REQUEST)
    drain = asyncio.create_task(proxy.server.drain())
    assert await idle.read() == b""
    stream.may_end.set()
    await end_stream(client)
    await drain
    assert len(scene.upstream.requests) == len(scene.records.all) == 1


@pytest.mark.parametrize("seconds", [0.05, 60])
async def test_end_of_drain_aborts_all_requests(seconds: float, scene: Scene) -> None:
    """By its timeout or an abort: a stream gets an error event, any other request 503."""
    proxy = await scene.start(DRAIN_TIMEOUT=seconds)
    scene.upstream.script(sse_response(EVENTS[:1], end="hang"), silent_response())
    idle, streaming, uploading, waiting = [await scene.raw() for _ in range(4)]
    await begin_stream(streaming)
    await uploading.send(REQUEST[:-1])
    await waiting.send(REQUEST)
    await scene.upstream.received(2)
    drain = asyncio.create_task(proxy.server.drain())
    assert await idle.read() == b""
    assert not scene.records.all
    if seconds == 60:
        proxy.server.abort()
    await drain
    await scene.upstream.all_closed()
    kind, data, *_ = (await streaming.chunk()).split(b"\n")
    assert kind == b"event: error"
    assert "stopping" in json.loads(data.removeprefix(b"data: "))["error"]["message"]
    with pytest.raises(Truncated):
        await streaming.chunk()
    for client in (uploading, waiting):
        response = await client.response()
        assert "stopping" in anthropic_error(response, 503, "overloaded_error")
        assert (response.header("Connection"), response.header("Retry-After")) == ("close", "1")
    assert {record.outcome for record in scene.records.all} == {"drained"}
    ends = {(record.status, record.usage.input_tokens) for record in scene.records.all}
    assert ends == {(200, 10), (503, None)}


@pytest.fixture
def small_send_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill the proxy's sockets soon when a client does not read."""

    def bind_sockets(*args: Any, **kwargs: Any) -> list[socket.socket]:  # as Tornado's takes them
        sockets = netutil.bind_sockets(*args, **kwargs)
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return sockets

    monkeypatch.setattr(listening, "bind_sockets", bind_sockets)


async def stalled_client(scene: Scene) -> RawConnection:
    """A client that reads nothing of an endless stream, of which nothing more can be sent."""
    endless = Endless()
    scene.upstream.script(endless)
    client = await scene.send(REQUEST, receive_buffer=16_384)
    await endless.stalled.wait()
    return client


@pytest.mark.usefixtures("small_send_buffers")
async def test_drain_timeout_does_not_wait_for_stalled_client(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the error event fits into the client's buffers."""
    monkeypatch.setattr(server, "_FLUSH_TIMEOUT", 0.1)
    proxy = await scene.start(DRAIN_TIMEOUT=0.05, SSE_KEEPALIVE_INTERVAL=0.05)
    client = await stalled_client(scene)
    await proxy.server.drain()
    assert (await scene.records.finished()).outcome == "drained"
    with pytest.raises(Truncated):
        await client.response()


@pytest.mark.usefixtures("small_send_buffers")
async def test_drain_timeout_error_event_reaches_slow_client(scene: Scene) -> None:
    proxy = await scene.start(DRAIN_TIMEOUT=0.1)
    client = await stalled_client(scene)
    drain = asyncio.create_task(proxy.server.drain())
    await asyncio.sleep(0.2)  # a slow client
    with pytest.raises(Truncated) as caught:
        await client.response()
    assert caught.value.response is not None
    assert b"\n\nevent: error\ndata: " in caught.value.response.body[-500:]
    await drain
    assert (await scene.records.finished()).outcome == "drained"


@pytest.mark.usefixtures("small_send_buffers")
async def test_second_abort_does_not_wait_for_slow_client(scene: Scene) -> None:
    proxy = await scene.start(DRAIN_TIMEOUT=60)
    await stalled_client(scene)
    proxy.server.abort()
    assert not scene.records.all  # the error event waits for the client
    proxy.server.abort()
    assert (await scene.records.finished()).outcome == "drained"


async def test_drain_shuts_plugins_down_once_and_last(scene: Scene) -> None:
    ended: list[list[str]] = []

    class Plugin:
        @hookimpl
        async def shutdown(self) -> None:
            ended.append([each.outcome for each in scene.records.all])

    proxy = await scene.start(plugins=[Plugin()], DRAIN_TIMEOUT=0.05)
    scene.upstream.script(sse_response(EVENTS[:1], end="hang"))
    await begin_stream(await scene.raw())
    for _ in range(2):
        await proxy.server.drain()
        assert ended == [["drained"]]


async def test_drain_serves_connections_not_yet_accepted(proxy: Proxy, scene: Scene) -> None:
    """Closing a socket resets the connections in its queue."""
    request = request_bytes("GET", "/v1/models", token=TEST_TOKEN)
    clients = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(20)]
    for client in clients:
        client.sendall(request)
    # no other code has run since
    await proxy.server.drain()
    for client in clients:
        with client, client.makefile("rb") as response:
            assert response.readline().startswith(b"HTTP/1.1 200 ")
    assert len(scene.records.all) == len(clients)
