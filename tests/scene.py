"""The fixtures of `tornadoproxy.testing` in one, for tests that need several of them."""

from __future__ import annotations

from dataclasses import dataclass
from ssl import SSLContext

import pytest

from tornadoproxy.testing import (
    Ask,
    OpenRaw,
    RawConnection,
    Records,
    ScriptedUpstream,
    StartProxy,
)


@dataclass(frozen=True)
class Scene:
    """Proxies in front of a scripted upstream, and their clients.

    :ivar start: starts a proxy.
    :ivar ask: sends a request to the proxy started last, and returns the response.
    :ivar raw: opens a connection to it.
    :ivar upstream: the upstream of all proxies.
    :ivar records: the records of the requests that have finished.
    """

    start: StartProxy
    ask: Ask
    raw: OpenRaw
    upstream: ScriptedUpstream
    records: Records

    async def send(
        self, data: bytes, *, ssl: SSLContext | None = None, receive_buffer: int | None = None
    ) -> RawConnection:
        """Send `data` on a connection of its own, and return the connection."""
        client = await self.raw(ssl=ssl, receive_buffer=receive_buffer)
        await client.send(data)
        return client


@pytest.fixture
def scene(
    start_proxy: StartProxy, ask: Ask, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> Scene:
    return Scene(start_proxy, ask, raw, upstream, records)
