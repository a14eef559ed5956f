"""Pages that send their bodies piece by piece, and pages that ask the proxy and other pages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from held_stream import EVENT_STREAM, Held
from msgspec.structs import replace
from scene import Scene
from served import request
from tornado.httputil import HTTPHeaders

from tornadoproxy import (
    Denied,
    Page,
    PageRequest,
    PageResponse,
    PluginState,
    RunningProxy,
    hookimpl,
)
from tornadoproxy.handlers import plugin_pages
from tornadoproxy.testing import (
    TEST_TOKEN,
    RawConnection,
    UpstreamExchange,
    json_response,
    message_document,
    message_events,
    request_bytes,
)


class Streams:
    """A page that sends a piece whenever the test says so, and ``b""`` to fail."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.closed = asyncio.Event()

    @hookimpl
    def pages(self) -> tuple[Page, ...]:
        return (Page("/live", lambda _: PageResponse(b"first", stream=self._stream())),)

    async def _stream(self) -> AsyncGenerator[bytes, None]:
        try:
            while (piece := await self.pieces.get()) is not None:
                if not piece:
                    raise KeyError("piece")
                yield piece
        finally:
            self.closed.set()


async def test_pieces_of_a_stream_are_sent_as_they_come(scene: Scene) -> None:
    streams = Streams()
    await scene.start(plugins=[streams])
    client = await scene.send(request("GET", "/live"))
    assert (await client.head()).header("transfer-encoding") == "chunked"
    assert await client.chunk() == b"first"
    for piece in (b"second", b"third"):
        streams.pieces.put_nowait(piece)
        assert await client.chunk() == piece
    streams.pieces.put_nowait(None)
    assert await client.chunk() == b""
    assert (await scene.records.finished()).outcome == "completed"
    assert streams.closed.is_set()


async def test_head_of_a_stream_sends_no_piece(scene: Scene) -> None:
    await scene.start(plugins=[Streams()])
    client = await scene.raw()
    assert (await client.ask(request("HEAD", "/live"), to_head=True)).status == 200
    assert (await scene.records.finished()).outcome == "completed"


async def test_failed_stream_is_cut_off(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    streams = Streams()
    proxy = await scene.start(plugins=[streams])
    client = await scene.send(request("GET", "/live"))
    await client.head()
    await client.chunk()
    streams.pieces.put_nowait(b"")
    await client.disconnected()
    assert (await scene.records.finished()).outcome == "failed"
    assert sum(proxy.server.status().plugin_failures.values()) == 1
    assert "KeyError" in caplog.text


async def test_stream_of_a_client_that_disconnected_is_closed(scene: Scene) -> None:
    streams = Streams()
    await scene.start(plugins=[streams])
    client = await scene.send(request("GET", "/live"))
    await client.head()
    await client.close()
    assert (await scene.records.finished()).outcome == "abandoned"
    await streams.closed.wait()


async def test_client_that_takes_nothing_is_disconnected(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_pages, "MAX_SILENCE", 0.05)
    streams = Streams()
    proxy = await scene.start(plugins=[streams])
    client = await scene.send(request("GET", "/live"), receive_buffer=4096)
    for _ in range(100):
        streams.pieces.put_nowait(bytes(100_000))
    assert (await scene.records.finished()).outcome == "abandoned"
    await streams.closed.wait()
    assert not any(proxy.server.status().plugin_failures.values()), "it is not the plugin's fault"
    await client.close()


class Asking:
    """A page that lets the test ask the proxy."""

    def __init__(self) -> None:
        self.asked: list[PageRequest] = []
        self.proxy: RunningProxy | None = None

    @hookimpl
    def configure(self) -> str:
        return "asks"

    @hookimpl
    def pages(self, proxy: RunningProxy) -> tuple[Page, ...]:
        self.proxy = proxy

        def serve(request: PageRequest) -> PageResponse:
            self.asked.append(request)
            return PageResponse(request.arguments[0].encode())

        async def refuse(_: object) -> None:
            raise Denied("Not now.")

        return (
            Page("/one/(.*)", serve),
            Page("/closed", serve, public=True, admit=refuse),
        )


async def test_page_asks_other_pages_and_who_sends_a_request(scene: Scene) -> None:
    asking = Asking()
    await scene.start(plugins=[asking])
    assert (await scene.ask("/one/a%20b")).body == b"a b"
    (page_request,) = asking.asked
    assert page_request.base_url == "http://127.0.0.1"  # as in Host
    running = asking.proxy
    assert running is not None

    def to(path: str, **changed: Any) -> PageRequest:
        return replace(page_request, incoming=replace(page_request.incoming, path=path, **changed))

    assert (await running.ask(to("/one/x"))).body == b"x"
    refusals: list[tuple[Callable[[], Any], str]] = [
        (lambda: running.ask(to("/closed")), "Not now"),
        (lambda: running.ask(to("/none")), "There is no page at /none"),
        (lambda: running.ask(to("/one/x", method="POST")), "supports only GET"),
        (lambda: running.authenticate(to("/", headers=HTTPHeaders()).incoming), "No credential"),
    ]
    for ask, text in refusals:
        with pytest.raises(Exception, match=text):
            await ask()
    headers = HTTPHeaders({"X-Api-Key": TEST_TOKEN})
    assert (await running.authenticate(to("/", headers=headers).incoming)).principal == "token"
    assert list(running.in_flight()) == []
    states = {each.name: each for each in running.plugins()}
    assert [each for each in states.values() if each.line == "asks"]
    assert states["otel"] == PluginState("otel", "inactive", states["otel"].version, None)
    assert running.warnings() == ()


class Counting:
    """A stream that stops after 400 bytes of content, and goes on when the test says so."""

    def __init__(self) -> None:
        self.may_go_on = asyncio.Event()

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        events = message_events(message_document("word " * 80))
        await exchange.chunk(b"".join(events[:-3]))
        await self.may_go_on.wait()
        await exchange.chunk(b"".join(events[-3:]))
        await exchange.last_chunk()


@pytest.mark.parametrize("path", ["/v1/messages", "/openai/v1/chat/completions"])
async def test_page_sees_the_requests_in_flight(path: str, scene: Scene) -> None:
    asking, stream = Asking(), Counting()
    held = Held(json_response(message_document("Hi")))
    await scene.start(plugins=[asking])
    assert asking.proxy is not None
    clients: list[RawConnection] = []
    for response in (stream, held):
        scene.upstream.script(response)
        client = await scene.raw()
        body = json.dumps(
            {
                "model": "claude-sonnet-5-5",
                "max_tokens": 9,
                "stream": response is stream,
                "messages": [{"role": "user", "content": "Hi"}],
            }
        ).encode()
        await client.send(request_bytes("POST", path, body=body, token=TEST_TOKEN))
        await scene.upstream.received(len(clients) + 1)
        clients.append(client)
    while next(asking.proxy.in_flight()).usage.output_tokens != 100:
        await asyncio.sleep(0)
    first, second = asking.proxy.in_flight()
    assert (first.principal, first.method, first.route) == ("token", "POST", path)
    assert (first.status, first.upstream, first.model) == (200, "default", "claude-sonnet-5-5")
    assert first.usage.partial
    assert (second.status, second.model, second.usage.output_tokens) == (None, None, None)
    assert first.time <= second.time
    assert first.duration >= second.duration > 0
    assert first.request_id != second.request_id
    stream.may_go_on.set()
    held.may_begin.set()
    for client in clients:
        assert (await client.response()).status == 200
    assert list(asking.proxy.in_flight()) == []
    for number in (1, 2):
        assert not (await scene.records.finished(number)).usage.partial
