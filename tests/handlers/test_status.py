"""The current figures that plugins are given."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec.structs import replace
from served import request

from tornadoproxy import Identity, Status, hookimpl
from tornadoproxy.handlers.body_budget import UNCHARGED_BODY
from tornadoproxy.testing import json_response, silent_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from scene import Scene

    from tornadoproxy.testing import (
        Proxy,
        UpstreamExchange,
    )

IDLE = Status(0, 0, 0, 0, 0, 0, {}, {}, draining=False)


async def test_status_is_known_from_startup_to_shutdown(scene: Scene) -> None:
    class Watcher:
        def __init__(self) -> None:
            self.seen: list[Status] = []

        @hookimpl
        def startup(self, status: Callable[[], Status]) -> None:
            self.status = status
            self.seen.append(status())

        @hookimpl
        def shutdown(self) -> None:
            self.seen.append(self.status())

    watcher = Watcher()
    proxy = await scene.start(plugins=[watcher])
    (first,) = watcher.seen
    assert set(first.plugin_failures) == set(first.plugin_refusals) > {"token", "access_log"}
    assert not any((*first.plugin_failures.values(), *first.plugin_refusals.values()))
    assert replace(first, plugin_failures={}, plugin_refusals={}) == IDLE
    await proxy.server.drain()
    assert watcher.seen[1].draining
    assert watcher.seen[1].client_connections == 0


async def test_status_counts_requests_bytes_and_connections(scene: Scene) -> None:
    proxy = await scene.start(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=15, CLIENT_IDLE_TIMEOUT=60)
    may_respond = asyncio.Event()

    async def response(exchange: UpstreamExchange) -> None:
        await may_respond.wait()
        await json_response({})(exchange)

    def figures() -> tuple[int, ...]:
        now = proxy.server.status()
        upstreams = now.upstream_connections, now.idle_upstream_connections
        return now.in_flight, now.waiting, *upstreams, now.held_bytes

    scene.upstream.script(response)
    first, second = await scene.raw(), await scene.raw()
    size = UNCHARGED_BODY + 1
    post = request("POST", "/v1/messages", body=bytes(size))
    await first.send(post)
    await scene.upstream.received()
    assert figures() == (1, 0, 1, 0, size)
    await second.send(post)
    while not proxy.server.status().waiting:
        await asyncio.sleep(0)
    assert figures()[:2] == (2, 1)
    assert proxy.server.status().client_connections == 2
    may_respond.set()
    await first.response()
    await second.response()
    await scene.records.finished(2)
    assert figures() == (0, 0, 0, 1, 0)
    for client in (first, second):
        await client.close()
    while proxy.server.status().client_connections:
        await asyncio.sleep(0)


async def test_status_does_not_count_lost_upstream_connection(proxy: Proxy, scene: Scene) -> None:
    scene.upstream.script(silent_response())
    client = await scene.raw()
    await client.send(request("POST", "/v1/messages", body=b"{}"))
    await scene.upstream.received()
    assert proxy.server.status().upstream_connections == 1
    await client.close()
    await scene.records.finished()
    status = proxy.server.status()
    assert (status.upstream_connections, status.idle_upstream_connections) == (0, 0)


async def test_status_counts_failures_and_refusals_by_plugin(scene: Scene) -> None:
    class Fails:
        @hookimpl
        def request_finished(self) -> None:
            raise KeyError

    class Refuses:
        @hookimpl(tryfirst=True)
        def authenticate(self) -> Identity:
            raise KeyError

    proxy = await scene.start(plugins={"fails": Fails(), "refuses": Refuses()})
    assert (await scene.ask("/v1/models")).status == 503
    await scene.records.finished()
    status = proxy.server.status()
    assert (status.plugin_failures["fails"], status.plugin_refusals["fails"]) == (1, 0)
    assert (status.plugin_failures["refuses"], status.plugin_refusals["refuses"]) == (0, 1)
