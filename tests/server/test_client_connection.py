"""A client's connection: malformed, slow and large requests, and what follows a request on it."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from held_stream import Held
from scene import Scene
from served import MESSAGE_FIELDS, anthropic_error, openai_error

from tornadoproxy import IncomingRequest, Page, PageRequest, PageResponse, hookimpl
from tornadoproxy.server import client_transport
from tornadoproxy.testing import (
    TEST_TOKEN,
    Proxy,
    RawConnection,
    RawResponse,
    json_response,
    request_bytes,
)

pytestmark = pytest.mark.usefixtures("no_errors_logged", "proxy")

TOKEN = b"Authorization: Bearer %b\r\n" % TEST_TOKEN.encode()
HEAD = b"POST %b HTTP/1.1\r\nHost: a\r\n" + TOKEN
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nHost: a\r\n" + TOKEN + b"\r\n"
MODELS = request_bytes("GET", "/v1/models", token=TEST_TOKEN)
HEALTH = request_bytes("GET", "/health")


def check_refused(response: RawResponse, path: str, status: int = 400) -> None:
    """See that the request is refused, and that the end of the connection is announced."""
    check_error = openai_error if path.startswith("/openai") else anthropic_error
    check_error(response, status, "invalid_request_error")
    assert response.header("Connection") == "close"
    assert response.header("Date")


async def ended(client: RawConnection) -> None:
    """See that the proxy ends the connection, and sends nothing more."""
    assert await client.read() == b""


# -- malformed requests; tests/system has what each of them leads to


async def test_refusal_reaches_a_client_that_goes_on_sending(scene: Scene) -> None:
    """A reset, because of unread bytes, would take the response away from the client."""
    malformed = HEAD % b"/v1/messages" + b"Content-Length: +5\r\n\r\n"
    client = await scene.send(malformed + bytes(0x100000))
    check_refused(await client.response(), "/v1/messages")
    await ended(client)


async def test_tls_on_plain_port_is_cut_and_logged_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    context = ssl.create_default_context()
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await scene.raw(ssl=context)
    (line,) = [each for each in caplog.messages if "TLS" in each]
    assert line.startswith("a client at 127.0.0.1 speaks TLS, but this port does not: give it")
    assert (await scene.ask(HEALTH)).status == 200


async def test_malformed_chunk_is_400_and_aborts_the_call(scene: Scene) -> None:
    head = HEAD % b"/v1/files" + b"Transfer-Encoding: chunked\r\n\r\n"
    client = await scene.send(head + b"5\r\nhelloo\r\n0\r\n\r\n" + SMUGGLED)
    check_refused(await client.response(), "/v1/files")
    await ended(client)
    record = await scene.records.finished()
    assert (record.outcome, record.status) == ("denied", 400)
    assert record.error
    for request in scene.upstream.requests:
        await request.disconnected()
        with pytest.raises(ConnectionError):
            await request.complete()
    assert len(scene.upstream.requests) <= len(scene.records.all) == 1


async def test_request_behind_a_refused_body_is_not_served(scene: Scene) -> None:
    """The last piece of the body is the one that is too large."""
    await scene.start(MAX_BODY_SIZE="1kB")
    client = await scene.raw()
    head = HEAD % b"/v1/files" + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    await client.send(head + b"7d0\r\n" + bytes(2000) + b"\r\n0\r\n\r\n" + SMUGGLED)
    assert (await client.response()).status == 413
    await client.send(SMUGGLED)
    await ended(client)
    assert (await scene.ask(HEALTH)).status == 200  # by now the proxy has read it
    assert len(scene.records.all) == 1


async def test_head_over_the_limit_is_431(scene: Scene) -> None:
    await scene.start(MAX_HEADER_SIZE="1kB")
    small = request_bytes("GET", "/health", {"X-Large": "x" * 900})
    padded = small.replace(b"xx", b"x" * (2 + 1024 - len(small)), 1)
    assert (await scene.ask(padded)).status == 200
    for path in ("/health", "/openai/health"):
        client = await scene.send(
            padded.replace(b"xx", b"xxx", 1).replace(b"/health", path.encode())
        )
        check_refused(await client.response(), path, 431)
        await ended(client)


# -- clients that are not authenticated


class SlowAuthenticator:
    """A plugin that hangs, and fails when it is cancelled; so do its public pages."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.cancelled = asyncio.Event()

    @hookimpl(tryfirst=True)
    async def authenticate(self, request: IncomingRequest) -> None:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
            raise RuntimeError

    @hookimpl
    def pages(self) -> list[Page]:
        async def serve(request: PageRequest) -> PageResponse:
            await self.authenticate(request.incoming)
            return PageResponse(b"")

        admitting = Page("/admitting", serve, ("POST",), public=True, admit=self.authenticate)
        return [Page("/serving", serve, public=True), admitting]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v1/models HTTP/1.1\r\nX: ".ljust(400, b"x"),
        request_bytes("POST", "/v1/files", body=b"x" * 400, token=TEST_TOKEN),
        request_bytes("POST", "/admitting", body=b"x" * 400),
        request_bytes("GET", "/serving") + b"x" * 400,
    ],
    ids=["head", "authenticator", "admit of a page", "behind a page"],
)
async def test_oldest_unauthenticated_client_gives_way(sent: bytes, scene: Scene) -> None:
    """Unauthenticated clients share a sixteenth of the room for held bodies."""
    proxy = await scene.start(MAX_HELD_BODIES=16_000, plugins=[SlowAuthenticator()])
    clients = []
    for held in (400, 800):
        clients.append(await scene.raw())
        await clients[-1].send(sent)
        while proxy.server.status().held_bytes < held:
            await asyncio.sleep(0)
    third = await scene.send(sent)
    await ended(clients[0])
    assert proxy.server.status().held_bytes == 800
    assert not any(proxy.server.status().plugin_refusals.values())
    for client in (clients[1], third):
        await client.close()
    while proxy.server.status().held_bytes:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("path", "end", "outcome"),
    [
        ("/v1/messages", lambda client, _: client.close(), "abandoned"),
        ("/admitting", lambda client, _: client.reset(), "abandoned"),
        ("/v1/messages", lambda _, proxy: proxy.server.drain(), "drained"),
        ("/admitting", lambda _, proxy: proxy.server.drain(), "drained"),
    ],
    ids=["close", "reset", "drain", "drain of a page"],
)
async def test_authenticator_is_cancelled_with_its_request(
    path: str, end: Callable[[RawConnection, Proxy], Awaitable[None]], outcome: str, scene: Scene
) -> None:
    """What the plugin raises then does not count as its failure."""
    plugin = SlowAuthenticator()
    proxy = await scene.start(plugins=[plugin], DRAIN_TIMEOUT=0.05)
    client = await scene.send(request_bytes("POST", path, body=b"{}", token=TEST_TOKEN))
    await plugin.asked.wait()
    await end(client, proxy)
    await plugin.cancelled.wait()
    assert (await scene.records.finished()).outcome == outcome
    assert not any([*proxy.plugins.refusals.values(), *proxy.plugins.failures.values()])


# -- slow clients


@pytest.mark.parametrize(
    "sent", [b"", MODELS[:10], MODELS[:-2], HEALTH], ids=["0", "10", "-2", "idle"]
)
async def test_slow_head_is_closed_without_a_response(sent: bytes, scene: Scene) -> None:
    await scene.start(CLIENT_IDLE_TIMEOUT=0.05)
    client = await scene.raw()
    if sent:
        await client.send(sent)
    if sent == HEALTH:
        assert (await client.response()).status == 200
    await ended(client)
    assert not scene.upstream.requests


@pytest.mark.parametrize(
    ("start", "drop"), [(b"GET /health HTTP/1.1\r\nX: ", b"x"), (b"", b"\r\n")]
)
async def test_dripping_head_is_closed(start: bytes, drop: bytes, scene: Scene) -> None:
    """The timeout is for the whole head, and blank lines before it do not count."""
    await scene.start(CLIENT_IDLE_TIMEOUT=0.1)
    client = await scene.send(start)

    async def drip() -> None:
        while True:
            await client.send(drop)
            await asyncio.sleep(0.02)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(drip(), 5)


@pytest.mark.parametrize("rate", [0, 1_000_000_000])
async def test_dripping_body_is_408_below_the_minimum_rate(rate: int, scene: Scene) -> None:
    """Such a body is never silent for long; a rate of 0 permits it."""
    await scene.start(MIN_BODY_RATE=rate, CLIENT_BODY_TIMEOUT=0.2)
    client = await scene.raw()
    chunked = {"Transfer-Encoding": "chunked"}
    await client.send(request_bytes("POST", "/v1/files", chunked, token=TEST_TOKEN))
    response = asyncio.ensure_future(client.response())
    clock = asyncio.get_running_loop().time
    until = clock() + (5 if rate else 0.4)
    while not response.done() and clock() < until:
        await client.send(b"1\r\n \r\n")
        await asyncio.sleep(0.02)
    assert response.done() == bool(rate)
    await client.send(b"0\r\n\r\n")
    assert (await response).status == (408 if rate else 404)


async def test_wait_for_upstream_does_not_count_as_slow_body(scene: Scene) -> None:
    await scene.start(MIN_BODY_RATE=1_000_000_000, CLIENT_BODY_TIMEOUT=0.5)
    slow = Held(json_response({}))
    scene.upstream.script(slow)
    client = await scene.raw()
    body = bytes(8_000_000)
    sending = asyncio.ensure_future(
        client.send(request_bytes("POST", "/v1/files", body=body, token=TEST_TOKEN))
    )
    response = asyncio.ensure_future(client.response())
    done, _ = await asyncio.wait({response}, timeout=0.7)
    assert not done
    slow.may_begin.set()
    assert (await response).status == 200
    await sending


# -- what follows a request


async def test_connection_is_kept_alive_unless_the_client_closes(scene: Scene) -> None:
    client = await scene.raw()
    for line, close in (("foo", None), ("foo, Close", "close")):
        response = await client.ask(request_bytes("GET", "/health", {"Connection": line}))
        assert response.header("Connection") == close
    await ended(client)


@pytest.mark.parametrize(("token", "status"), [(TEST_TOKEN, 404), ("wrong", 401)])
async def test_pipelined_requests_are_answered_in_turn(
    token: str, status: int, scene: Scene
) -> None:
    """Each one, whether or not the handler waits for its body."""
    request = request_bytes("POST", "/nowhere", body=b"{}", token=token)
    client = await scene.raw()
    sending = asyncio.create_task(client.send(request * 500))
    assert {(await client.response()).status for _ in range(500)} == {status}
    await sending


async def test_unread_responses_do_not_pile_up(scene: Scene) -> None:
    served = []

    class Figures:
        @hookimpl
        def pages(self) -> list[Page]:
            return [Page("/figures", self._serve, public=True)]

        def _serve(self, request: PageRequest) -> PageResponse:
            served.append(request)
            return PageResponse(bytes(100_000))

    proxy = await scene.start(plugins=[Figures()])
    client, other = await scene.raw(receive_buffer=4096), await scene.raw()
    await client.send(request_bytes("GET", "/figures") * 200)
    for _ in range(300):  # each takes a turn of the event loop at least
        assert (await other.ask(HEALTH)).status == 200
    assert 0 < len(served) < 150
    assert proxy.server.status().held_bytes > 0
    for _ in range(200):
        assert len((await client.response()).body) == 100_000
    assert proxy.server.status().held_bytes == 0


async def test_early_response_is_readable_and_keeps_the_connection(scene: Scene) -> None:
    """The client sends the whole body before it reads the response."""
    body = bytes(4 * 1024 * 1024)
    client = await scene.raw()
    for target, token, status in (("/v1/messages", "wrong", 401), ("/v1/../x", TEST_TOKEN, 400)):
        await client.send(request_bytes("POST", target, {}, body, token=token))
        response = await client.response()
        assert response.status == status
        assert response.header("Connection") is None
    assert (await client.ask(MODELS)).status == 200
    assert [request.target for request in scene.upstream.requests] == ["/v1/models"]


async def test_body_after_its_response_is_not_read_forever(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_transport, "LINGER", 0.05)
    client = await scene.raw()
    headers = {"Content-Length": "1000000"}
    request = request_bytes("POST", "/nowhere", headers, b"half", token=TEST_TOKEN)
    assert (await client.ask(request)).status == 404
    await ended(client)


@pytest.mark.parametrize("path", ["/health", "/ready", "/api/hello"])
async def test_half_close_after_probe_is_answered(path: str, scene: Scene) -> None:
    for pause in range(5):
        client = await scene.send(request_bytes("GET", path))
        for _ in range(pause):  # so that the end arrives with the request, or behind it
            await asyncio.sleep(0)
        client.half_close()
        assert (await client.response()).status == 200
        await client.disconnected()


async def test_expectation_of_http_1_0_is_ignored(scene: Scene) -> None:
    """Such a client would take the 100 for its response (RFC 9110 §10.1.1)."""
    scene.upstream.script(json_response({}))
    headers = {"Expect": "100-continue"}
    request = request_bytes("POST", "/v1/messages", headers, b"hello", token=TEST_TOKEN)
    response = await scene.ask(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (response.status, response.interim) == (200, [])


async def test_refused_expectation_ends_the_connection(scene: Scene) -> None:
    """The body may arrive all the same, or not."""
    client = await scene.raw()
    headers = {"Expect": "100-continue", "Content-Length": str(len(SMUGGLED))}
    response = await client.ask(request_bytes("POST", "/v1/messages", headers, token="wrong"))
    assert (response.status, response.interim) == (401, [])
    assert response.header("Connection") == "close"
    await ended(client)
    assert not scene.upstream.requests


async def test_disconnect_before_refusal_is_no_error(scene: Scene, proxy: Proxy) -> None:
    headers = {"Expect": "100-continue"}
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.setblocking(False)  # the kernel keeps more than the proxy reads at once
        client.send(request_bytes("POST", "/v1/messages", headers, bytes(400_000), token="wrong"))
    assert (await scene.records.finished()).status == 401
    assert (await scene.ask(HEALTH)).status == 200


@pytest.mark.parametrize(
    ("path", "stream"), [("/v1/messages", False), ("/openai/v1/chat/completions", True)]
)
async def test_ended_request_leaves_no_reference_cycle(
    path: str, stream: bool, scene: Scene
) -> None:
    """The garbage collector would take a tenth of a request's time."""
    body = json.dumps({**MESSAGE_FIELDS, "stream": stream}).encode()
    client = await scene.raw()
    gc.collect()
    before = _requests_in_memory()
    gc.disable()
    try:
        for count in range(1, 4):
            request = request_bytes("POST", path, body=body, token=TEST_TOKEN)
            assert (await client.ask(request)).status == 200
            await scene.records.finished(count)
        await scene.ask(HEALTH)
        assert _requests_in_memory() == before
    finally:
        gc.enable()


def _requests_in_memory() -> int:
    parts = {"RelayHandler", "ChatHandler", "RequestConnection", "_Request"}
    kinds = Counter(map(type, gc.get_objects()))
    return sum(count for kind, count in kinds.items() if kind.__name__ in parts)
