"""The client to the upstream: an `AsyncHTTPClient` with persistent connections, for relaying.

Tornado's own clients do not suit a proxy: they open a connection for each request, limit its total
time, follow redirects with the credential, decompress, and cannot cancel. This one

- keeps connections open, and uses the most recently used one first; there is no queue;
- passes head and data on as they arrive, and stops reading while the receiver is paused;
- has timeouts for connecting, for the first byte and for the silence between bytes, none for the
  whole exchange;
- closes the connection at once when an exchange is cancelled;
- sends a request once more, as `tornadoproxy.upstream.call` describes.

The relay uses `UpstreamClient.send`; `fetch` works as on any `AsyncHTTPClient`::

    client = UpstreamClient(force_instance=True, settings=settings)
    response = await client.fetch("https://api.example/v1/models", raise_error=False)
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakSet

from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse

from tornadoproxy.config.core_settings import (
    UPSTREAM_BASE_URL,
    UPSTREAM_FIRST_BYTE_TIMEOUT,
    UPSTREAM_IDLE_TIMEOUT,
    UPSTREAM_KEEPALIVE_TIMEOUT,
)
from tornadoproxy.protocol.headers import headers_of
from tornadoproxy.upstream.call import Call, UpstreamRequest
from tornadoproxy.upstream.connector import Connector, Origin

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornadoproxy.config.settings import Settings
    from tornadoproxy.errors import UpstreamError
    from tornadoproxy.protocol.wire import ResponseHead
    from tornadoproxy.upstream.call import Receiver
    from tornadoproxy.upstream.connection import UpstreamConnection

MAX_IDLE_CONNECTIONS = 256
"""How many idle connections are kept for each origin at most."""


class UpstreamClient(AsyncHTTPClient):
    """The client of one proxy, created with ``force_instance=True``; see the module's docstring.

    :ivar origin: the upstream of the settings.
    """

    def initialize(  # type: ignore[override]  # the base class takes the defaults only
        self, *, settings: Settings, defaults: dict[str, Any] | None = None
    ) -> None:
        super().initialize(defaults=defaults)
        self.first_byte_timeout = settings[UPSTREAM_FIRST_BYTE_TIMEOUT]
        self.idle_timeout = settings[UPSTREAM_IDLE_TIMEOUT]
        self._keepalive_timeout = settings[UPSTREAM_KEEPALIVE_TIMEOUT]
        base = settings[UPSTREAM_BASE_URL]
        self.origin = Origin(base.scheme, base.host, base.port)
        self._connector = Connector(settings)
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Origin, list[UpstreamConnection]] = {}
        self._made: WeakSet[UpstreamConnection] = WeakSet()
        self._sweep: asyncio.TimerHandle | None = None
        self._keeps_connections = True

    def send(self, request: UpstreamRequest, receiver: Receiver) -> Call:
        """Start an exchange, whose response goes to `receiver`.

        The receiver is called before this returns only if writing to an idle connection fails at
        once.
        """
        call = Call(self, request, receiver)
        call.start()
        return call

    def close(self) -> None:
        """Close the idle connections; exchanges in flight continue."""
        super().close()
        self._keeps_connections = False
        if self._sweep is not None:
            self._sweep.cancel()
        for idle in self._idle.values():
            for connection in idle:
                connection.on_idle_closed = None
                connection.abort()
        self._idle.clear()

    def fetch_impl(self, request: HTTPRequest, callback: Callable[[HTTPResponse], None]) -> None:
        """Send a request of Tornado's, and call back with the whole response.

        Redirects are not followed, and nothing is decompressed. Errors are `UpstreamError`.
        """
        _Fetch(self, request, callback)

    @property
    def idle_connections(self) -> int:
        """How many connections are idle."""
        return sum(map(len, self._idle.values()))

    @property
    def busy_connections(self) -> int:
        """How many connections are in use."""
        return sum(not each.closed for each in self._made) - self.idle_connections

    # -- the pool, for `Call`

    def take(self, origin: Origin) -> UpstreamConnection | None:
        """Return the most recently used idle connection to `origin`, if there is one."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            connection.on_idle_closed = None
            age = self._loop.time() - connection.idle_since
            if age < self._keepalive_timeout and connection.is_quiet:
                return connection
            connection.abort()
        return None

    async def connect(self, origin: Origin) -> UpstreamConnection:
        """Return a new connection to `origin`."""
        connection = await self._connector.connect(origin)
        self._made.add(connection)
        return connection

    def give_back(self, origin: Origin, connection: UpstreamConnection) -> None:
        """Keep a connection whose exchange has ended."""
        idle = self._idle.setdefault(origin, [])
        if not self._keeps_connections or len(idle) >= MAX_IDLE_CONNECTIONS:
            connection.abort()
            return
        self._connector.keep_session(origin, connection)
        connection.idle_since = self._loop.time()
        connection.on_idle_closed = idle.remove
        idle.append(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._keepalive_timeout, self._close_expired)

    def _close_expired(self) -> None:
        oldest_allowed = self._loop.time() - self._keepalive_timeout
        for idle in self._idle.values():
            while idle and idle[0].idle_since <= oldest_allowed:
                connection = idle.pop(0)
                connection.on_idle_closed = None
                connection.abort()
        self._sweep = None
        if any(self._idle.values()):
            self._sweep = self._loop.call_later(self._keepalive_timeout, self._close_expired)


class _Fetch:
    """The receiver of a response for `AsyncHTTPClient.fetch`."""

    def __init__(
        self,
        client: UpstreamClient,
        request: HTTPRequest,
        callback: Callable[[HTTPResponse], None],
    ) -> None:
        self._request = request
        self._callback = callback
        self._head: ResponseHead | None = None
        self._pieces: list[bytes] = []
        url = urlsplit(request.url)
        port = url.port or (443 if url.scheme == "https" else 80)
        origin = Origin(url.scheme, url.hostname or "", port)
        body = request.body or b""
        headers = request.headers
        lines = [
            f"{request.method} {url.path or '/'}{'?' if url.query else ''}{url.query} HTTP/1.1",
            f"Host: {origin.authority}",
            *(f"{name}: {value}" for name, value in headers.get_all()),
        ]
        if body or request.method in {"POST", "PUT", "PATCH"}:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        client.send(UpstreamRequest(origin, request.method, head, body), self)

    def on_head(self, head: ResponseHead, first: bytes) -> None:
        self._head = head
        self._pieces.append(first)

    def on_data(self, chunk: bytes) -> None:
        self._pieces.append(chunk)

    def on_end(self) -> None:
        assert self._head is not None
        self._callback(
            HTTPResponse(
                self._request,
                self._head.status,
                headers=headers_of(self._head.fields),
                buffer=io.BytesIO(b"".join(self._pieces)),
                reason=self._head.reason or None,
            )
        )

    def on_failure(self, error: UpstreamError) -> None:
        self._callback(HTTPResponse(self._request, 599, error=error))
