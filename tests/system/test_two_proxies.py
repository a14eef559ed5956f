"""Two proxies in one process: they share neither tokens, keys, upstreams, limits nor plugins."""

from __future__ import annotations

import asyncio
import functools
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


async def test_settings_secrets_and_plugins_are_own(
    ask: Ask,
    proxy: Proxy,
    other: Proxy,
    upstream: ScriptedUpstream,
    other_upstream: ScriptedUpstream,
    start_proxy: StartProxy,
) -> None:
    """Also when one of them is reloaded."""

    async def statuses(token: str) -> list[int]:
        return [(await ask("/v1/models", token=token, to=to)).status for to in (proxy, other)]

    assert await statuses(TEST_TOKEN) == [200, 401]
    assert await statuses(OTHER_TOKEN) == [401, 200]
    other.reload(AUTH_TOKEN=THIRD_TOKEN)
    assert await statuses(TEST_TOKEN) == [200, 401]
    assert await statuses(THIRD_TOKEN) == [401, 200]
    assert {each.header("x-api-key") for each in upstream.requests} == {TEST_UPSTREAM_KEY}
    assert {each.header("x-api-key") for each in other_upstream.requests} == {OTHER_KEY}
    observed = Records()
    await ask("/v1/models", to=await start_proxy(plugins={"observer": observed}))
    await ask("/v1/models", to=proxy)
    assert len(observed.all) == 1


async def test_limits_and_drains_are_own(
    ask: Ask, raw: OpenRaw, proxy: Proxy, other: Proxy, upstream: ScriptedUpstream
) -> None:
    """The first serves on, over the upstream connections that it has kept."""
    assert (await ask("/v1/x", body=b"x" * 11, token=OTHER_TOKEN, to=other)).status == 413
    assert (await ask("/v1/x", body=b"x" * 11, to=proxy)).status == 404
    upstream.script(silent_response())
    await (await raw(proxy)).send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
    await upstream.received(2)
    # what the one has in flight does not count for the other, whose limit is one
    assert (await ask("/v1/models", token=OTHER_TOKEN, to=other)).status == 200
    idle = await raw(proxy)
    async with asyncio.timeout(1):
        await other.server.drain()
    with pytest.raises(ConnectionRefusedError):
        await raw(other)
    assert (await idle.ask(request_bytes("GET", "/ready"))).status == 200
    assert (await ask("/v1/models", to=proxy)).status == 200
