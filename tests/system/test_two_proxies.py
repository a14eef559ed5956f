"""Two proxies in one process: they share neither tokens, keys, upstreams, limits nor plugins."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import TYPE_CHECKING

import pytest

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    Records,
    ScriptedUpstream,
    request_bytes,
    silent_response,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornado.ioloop import IOLoop

    from tornadoproxy.testing import Ask, OpenRaw, Proxy, StartProxy

OTHER_TOKEN = "other-token-that-clients-present"
OTHER_KEY = "other-key-that-the-upstream-gets"
THIRD_TOKEN = "third-token-that-clients-present"


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
    start = functools.partial(
        start_proxy,
        AUTH_TOKEN=OTHER_TOKEN,
        UPSTREAM_BASE_URL=other_upstream.url,
        UPSTREAM_API_KEY=OTHER_KEY,
        MAX_CONCURRENT_REQUESTS=1,
        QUEUE_TIMEOUT=0,
        MAX_BODY_SIZE=10,
    )
    result: Proxy = io_loop.run_sync(start)
    return result


async def test_tokens_keys_and_upstreams_are_own(
    ask: Ask,
    proxy: Proxy,
    other: Proxy,
    upstream: ScriptedUpstream,
    other_upstream: ScriptedUpstream,
) -> None:
    statuses = [
        (await ask("/v1/models", token=token, to=to)).status
        for to in (proxy, other)
        for token in (TEST_TOKEN, OTHER_TOKEN)
    ]
    assert statuses == [200, 401, 401, 200]
    (received,), (other_received,) = upstream.requests, other_upstream.requests
    assert received.all("x-api-key") == [TEST_UPSTREAM_KEY]
    assert other_received.all("x-api-key") == [OTHER_KEY]


async def test_plugins_are_own(ask: Ask, proxy: Proxy, start_proxy: StartProxy) -> None:
    observed = Records()
    other = await start_proxy(plugins={"observer": observed})
    for to in (proxy, other):
        assert (await ask("/v1/models", to=to)).status == 200
    assert len(observed.all) == 1


async def test_limits_are_own(
    ask: Ask, raw: OpenRaw, proxy: Proxy, other: Proxy, upstream: ScriptedUpstream
) -> None:
    assert (await ask("/v1/x", body=b"x" * 11, token=OTHER_TOKEN, to=other)).status == 413
    assert (await ask("/v1/x", body=b"x" * 11, to=proxy)).status == 404
    upstream.script(silent_response(), silent_response())
    for _ in range(2):
        client = await raw(proxy)
        await client.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
    await upstream.received(3)
    # what the one has in flight does not count for the other, whose limit is one
    assert (await ask("/v1/models", token=OTHER_TOKEN, to=other)).status == 200


async def test_reload_changes_one_proxy_only(ask: Ask, proxy: Proxy, other: Proxy) -> None:
    other.reload(AUTH_TOKEN=THIRD_TOKEN)
    assert (await ask("/v1/models", token=OTHER_TOKEN, to=other)).status == 401
    assert (await ask("/v1/models", token=THIRD_TOKEN, to=other)).status == 200
    assert (await ask("/v1/models", to=proxy)).status == 200
    assert (await ask("/v1/models", token=THIRD_TOKEN, to=proxy)).status == 401


async def test_drain_ends_one_proxy_only(
    ask: Ask, raw: OpenRaw, proxy: Proxy, other: Proxy, upstream: ScriptedUpstream
) -> None:
    """The other serves on, over the upstream connections that it has kept."""
    assert (await ask("/v1/models", to=proxy)).status == 200
    idle = await raw(proxy)
    async with asyncio.timeout(1):
        await other.server.drain()
    with pytest.raises(ConnectionRefusedError):
        await raw(other)
    assert (await idle.ask(request_bytes("GET", "/ready"))).status == 200
    assert (await ask("/v1/models", to=proxy)).status == 200
    assert upstream.connections == 1


async def test_proxy_may_lead_to_another(
    ask: Ask, proxy: Proxy, start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """A loop is a proxy that meets itself, not one that meets its like."""
    first = await start_proxy(UPSTREAM_BASE_URL=proxy.url, UPSTREAM_API_KEY=TEST_TOKEN)
    response = await ask("/v1/models", to=first)
    assert response.status == 200
    assert len(json.loads(response.body)["data"]) == 4
    assert len(upstream.requests[0].all("Via")) == 2
