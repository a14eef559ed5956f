"""Two proxies in one process share nothing: no token, key, upstream, limit, plugin or end."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tornadoproxy import RequestRecord, hookimpl
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    ScriptedUpstream,
    request_bytes,
    silent_response,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornado.ioloop import IOLoop

    from tornadoproxy.testing import OpenRaw, Proxy, RawResponse, StartProxy

OTHER_TOKEN = "other-token-that-clients-present"
OTHER_KEY = "other-key-that-the-upstream-gets"


@pytest.fixture
def other_upstream(io_loop: IOLoop) -> Iterator[ScriptedUpstream]:
    upstream = ScriptedUpstream()
    io_loop.run_sync(upstream.start)
    yield upstream
    io_loop.run_sync(upstream.stop)
    assert not upstream.failures


@pytest.fixture
def other(
    io_loop: IOLoop, proxy: Proxy, start_proxy: StartProxy, other_upstream: ScriptedUpstream
) -> Proxy:
    """A second proxy, different from `proxy` in everything."""

    async def start() -> Proxy:
        return await start_proxy(
            AUTH_TOKEN=OTHER_TOKEN,
            UPSTREAM_BASE_URL=other_upstream.url,
            UPSTREAM_API_KEY=OTHER_KEY,
            MAX_CONCURRENT_REQUESTS=1,
            QUEUE_TIMEOUT=0,
            MAX_BODY_SIZE=10,
            DEFAULT_ANTHROPIC_VERSION="2026-10-21",
        )

    result: Proxy = io_loop.run_sync(start)
    return result


async def ask(
    raw: OpenRaw, proxy: Proxy, token: str, method: str = "GET", body: bytes = b""
) -> RawResponse:
    client = await raw(proxy)
    await client.send(request_bytes(method, "/v1/models", {}, body, token=token))
    return await client.response()


async def test_tokens_keys_and_upstreams(
    raw: OpenRaw,
    proxy: Proxy,
    other: Proxy,
    upstream: ScriptedUpstream,
    other_upstream: ScriptedUpstream,
) -> None:
    assert (await ask(raw, proxy, TEST_TOKEN)).status == 200
    assert (await ask(raw, other, OTHER_TOKEN)).status == 200
    assert (await ask(raw, proxy, OTHER_TOKEN)).status == 401
    assert (await ask(raw, other, TEST_TOKEN)).status == 401
    seen = [
        [(each.header("x-api-key"), each.header("anthropic-version")) for each in server.requests]
        for server in (upstream, other_upstream)
    ]
    assert seen == [[(TEST_UPSTREAM_KEY, "2023-06-01")], [(OTHER_KEY, "2026-10-21")]]


async def test_limits(raw: OpenRaw, proxy: Proxy, other: Proxy, upstream: ScriptedUpstream) -> None:
    assert (await ask(raw, other, OTHER_TOKEN, "POST", b"x" * 11)).status == 413
    assert (await ask(raw, proxy, TEST_TOKEN, "POST", b"x" * 11)).status == 404
    upstream.script(silent_response(), silent_response())
    waiting = [await raw(proxy) for _ in range(2)]
    for client in waiting:
        await client.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
    await upstream.received(3)
    # what the one has in flight does not count for the other, whose limit is one
    assert (await ask(raw, other, OTHER_TOKEN)).status == 200


async def test_reload(raw: OpenRaw, proxy: Proxy, other: Proxy) -> None:
    other.reload(AUTH_TOKEN="third-token-that-clients-present")
    assert (await ask(raw, other, OTHER_TOKEN)).status == 401
    assert (await ask(raw, other, "third-token-that-clients-present")).status == 200
    assert (await ask(raw, proxy, TEST_TOKEN)).status == 200
    assert (await ask(raw, proxy, "third-token-that-clients-present")).status == 401


async def test_end(raw: OpenRaw, proxy: Proxy, other: Proxy, upstream: ScriptedUpstream) -> None:
    """One stops; the other serves on, over the upstream connections that it has kept."""
    assert (await ask(raw, proxy, TEST_TOKEN)).status == 200
    idle = await raw(proxy)
    async with asyncio.timeout(1):
        await other.server.drain()
    with pytest.raises(ConnectionRefusedError):
        await raw(other)
    await idle.send(request_bytes("GET", "/ready"))
    assert (await idle.response()).status == 200
    assert (await ask(raw, proxy, TEST_TOKEN)).status == 200
    assert upstream.connections == 1


async def test_plugins(
    raw: OpenRaw, proxy: Proxy, start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    class Counter:
        def __init__(self) -> None:
            self.records: list[RequestRecord] = []

        @hookimpl
        def request_finished(self, record: RequestRecord) -> None:
            self.records.append(record)

    counter = Counter()
    counted = await start_proxy(plugins=[counter])
    assert (await ask(raw, proxy, TEST_TOKEN)).status == 200
    assert (await ask(raw, counted, TEST_TOKEN)).status == 200
    assert len(counter.records) == 1


async def test_one_may_lead_to_the_other(
    raw: OpenRaw, proxy: Proxy, start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """A loop is a proxy that meets itself, not one that meets its like."""
    first = await start_proxy(UPSTREAM_BASE_URL=proxy.url, UPSTREAM_API_KEY=TEST_TOKEN)
    response = await ask(raw, first, TEST_TOKEN)
    assert response.status == 200
    assert len(json.loads(response.body)["data"]) == 4
    assert len(upstream.requests[0].all("Via")) == 2
