"""Looks at what reached the scripted upstream: which requests are whole, and are they clean."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from strict_reading import Request

from tornadoproxy.testing import TEST_UPSTREAM_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tornadoproxy.testing import ReceivedRequest

# what ends at this hop; a Transfer-Encoding is the proxy's own
_ENDS_HERE = frozenset(
    {
        "authorization",
        "connection",
        "cookie",
        "expect",
        "http2-settings",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
    }
)


async def settled(received: Iterable[ReceivedRequest]) -> tuple[list[Request], list[Request]]:
    """Wait until each has come to its end; those that are whole, and those that were cut."""
    whole: list[Request] = []
    cut: list[Request] = []
    for each in received:
        try:
            async with asyncio.timeout(5):
                await each.complete()
            kind = whole
        except ConnectionError:
            kind = cut
        kind.append(Request(each.method, each.target, each.body))
    return whole, cut


def check_clean(received: ReceivedRequest, authority: str) -> None:
    """One framing, one credential, and one Host, the upstream's; nothing of the last hop."""
    assert received.version == "1.1"
    assert received.all("Host") == [authority]
    assert received.all("X-Api-Key") == [TEST_UPSTREAM_KEY]
    assert len(received.all("Via")) >= 1
    assert len(received.all("Content-Length") + received.all("Transfer-Encoding")) <= 1
    assert not _ENDS_HERE & {name.lower() for name, _ in received.headers}
