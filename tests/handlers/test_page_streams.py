"""Pages that send their bodies piece by piece, and pages that ask the proxy and other pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
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
from tornadoproxy.testing import TEST_TOKEN


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
    states = {each.name: each for each in running.plugins()}
    assert [each for each in states.values() if each.line == "asks"]
    assert states["otel"] == PluginState("otel", "inactive", states["otel"].version, None)
    assert running.warnings() == ()
