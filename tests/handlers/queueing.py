"""Clients that queue for a place, and what authenticates them and holds their places."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from served import CHUNKED, anthropic_error

from tornadoproxy import AuthenticationFailed, Identity, hookimpl
from tornadoproxy.testing import request_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tornado.httputil import HTTPHeaders

    from tornadoproxy import IncomingRequest
    from tornadoproxy.testing import (
        OpenRaw,
        RawConnection,
        RawResponse,
        ScriptedUpstream,
        UpstreamExchange,
    )


class Names:
    """Authenticates every request by the name in ``x-api-key``, and records them.

    No other task runs between this and the request's admission or its place in the queue, so a
    test that waits for `asked` finds the request there.
    """

    def __init__(self) -> None:
        self._heads: list[HTTPHeaders] = []
        self._changed = asyncio.Event()
        self.hanging = asyncio.Event()

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> Identity | Awaitable[Identity]:
        name = request.headers.get("X-Api-Key", "")
        self._heads.append(request.headers)
        self._changed.set()
        self._changed = asyncio.Event()
        if name == "stranger":
            raise AuthenticationFailed("Who are you?")
        return self._hang(name) if name == "slow" else Identity(name)

    async def _hang(self, name: str) -> Identity:
        await self.hanging.wait()
        return Identity(name)

    async def asked(self, count: int) -> None:
        """Wait until this many requests have come."""
        while len(self._heads) < count:
            await self._changed.wait()

    async def asked_for(self, number: str) -> None:
        """Wait until the request with this ``X-Number`` has come."""
        while all(head.get("X-Number") != number for head in self._heads):
            await self._changed.wait()


class Clients:
    """Clients of a proxy that admits few requests; each has a connection of its own.

    :ivar names: the plugin that authenticates them.
    """

    def __init__(self, raw: OpenRaw) -> None:
        self.names = Names()
        self._raw = raw
        self._count = 0

    async def send(self, request: bytes) -> RawConnection:
        """Send a request; return its connection once it is admitted or queued."""
        client = await self._raw()
        await client.send(request)
        self._count += 1
        await self.names.asked(self._count)
        return client

    async def ask(self, request: bytes) -> RawResponse:
        """Return the response to a request."""
        return await (await self.send(request)).response()


class Gate:
    """A response of the upstream that comes once it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.body()
        await self.open.wait()
        await exchange.head(200, {"Content-Length": "2"})
        await exchange.send(b"{}")


def get(target: str = "/v1/x", name: str = "me") -> bytes:
    return request_bytes("GET", target, {"x-api-key": name})


def post(target: str, body: bytes, name: str = "me") -> bytes:
    return request_bytes("POST", target, {"x-api-key": name}, body)


def upload(name: str, body: bytes = b"", *lines: tuple[str, str]) -> bytes:
    """Return a chunked request, which streams, with this part of its body."""
    return request_bytes("POST", "/v1/messages/x", [("x-api-key", name), CHUNKED, *lines]) + body


def targets(upstream: ScriptedUpstream) -> list[str]:
    return [request.target for request in upstream.requests]


def is_overloaded(response: RawResponse) -> bool:
    anthropic_error(response, 529, "overloaded_error")
    return int(response.header("Retry-After") or "") >= 1
