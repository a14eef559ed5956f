"""Two proxies in one process: they share neither tokens, keys, upstreams, limits nor plugins."""

from __future__ import annotations

import pytest
from scene import Scene

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    Proxy,
    Records,
    ScriptedUpstream,
    request_bytes,
    silent_response,
)

OTHER_TOKEN = "other-token-that-clients-present"
THIRD_TOKEN = "third-token-that-clients-present"


async def test_second_proxy_changes_nothing_for_the_first(proxy: Proxy, scene: Scene) -> None:
    """The second one is also reloaded, refuses a body, and stops."""
    observed = Records()
    async with ScriptedUpstream() as other_upstream:
        other = await scene.start(
            AUTH_TOKEN=OTHER_TOKEN,
            UPSTREAM_BASE_URL=other_upstream.url,
            UPSTREAM_API_KEY="other-key-that-the-upstream-gets",
            MAX_CONCURRENT_REQUESTS=1,
            QUEUE_TIMEOUT=0,
            MAX_BODY_SIZE=10,
            plugins={"observer": observed},
        )

        async def statuses(token: str) -> list[int]:
            both = (proxy, other)
            return [(await scene.ask("/v1/models", token=token, to=to)).status for to in both]

        assert await statuses(TEST_TOKEN) == [200, 401]
        assert await statuses(OTHER_TOKEN) == [401, 200]
        other.reload(AUTH_TOKEN=THIRD_TOKEN)
        assert await statuses(TEST_TOKEN) == [200, 401]
        assert await statuses(THIRD_TOKEN) == [401, 200]
        assert len(observed.all) == 4
        for token, to, status in ((THIRD_TOKEN, other, 413), (TEST_TOKEN, proxy, 404)):
            assert (await scene.ask("/v1/x", body=b"x" * 11, token=token, to=to)).status == status
        scene.upstream.script(silent_response())
        waiting = await scene.raw(proxy)
        await waiting.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
        await scene.upstream.received(len(scene.upstream.requests) + 1)
        # what the one has in flight does not count for the other, whose limit is one
        assert await statuses(THIRD_TOKEN) == [401, 200]

        idle = await scene.raw(proxy)
        await other.server.drain()
        with pytest.raises(ConnectionRefusedError):
            await scene.raw(other)
        assert (await idle.ask(request_bytes("GET", "/ready"))).status == 200
        assert (await scene.ask("/v1/models", to=proxy)).status == 200
        keys = {each.header("x-api-key") for each in scene.upstream.requests}
        assert keys == {TEST_UPSTREAM_KEY}
        keys = {each.header("x-api-key") for each in other_upstream.requests}
        assert keys == {"other-key-that-the-upstream-gets"}
