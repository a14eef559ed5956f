"""The way of a request to its handler, which runs at once, up to its first wait."""

from __future__ import annotations

import asyncio
import sys
from functools import cached_property
from http.client import responses
from typing import TYPE_CHECKING, Any

from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)

from tornadoproxy.handlers.probes import PROBE_HEADERS, PROBE_METHODS, probe_response
from tornadoproxy.protocol.request_target import PROBES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from tornado.httputil import HTTPConnection

    from tornadoproxy.handlers.gateway import Gateway
    from tornadoproxy.handlers.routes import Routes
    from tornadoproxy.server.request_connection import RequestConnection


class GatewayApplication:
    """The application that serves the requests of one proxy. Two can live in one process."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        # a plugin's page may override a probe, and pages of web sites need headers of their own
        self._has_plain_probes = not (gateway.plugins.pages() or gateway.allowed_origins)

    @cached_property
    def routes(self) -> Routes:
        """The routes of all requests; they are loaded with the first one that is not a probe."""
        from tornadoproxy.handlers.routes import Routes

        return Routes(self._gateway)

    def start_request(self, connection: RequestConnection) -> HTTPMessageDelegate:
        """Return the delegate that receives the parts of a request."""
        if (
            connection.target in PROBES
            and self._has_plain_probes
            and connection.method in PROBE_METHODS
            and connection.has_come
        ):
            return _ProbeDelegate(self._gateway, connection)
        return _RequestDelegate(self, connection)


class _Request(HTTPServerRequest):
    """A request as Tornado's handlers need it, without the fields of its query and its form.

    Tornado's constructor parses the query, which takes 2 ms for 990 fields, and refuses more than
    1,000 fields, which is for the upstream to decide. It also validates ``Host`` once more.
    """

    def __init__(
        self, start_line: RequestStartLine, headers: HTTPHeaders, connection: HTTPConnection
    ) -> None:
        self.method, self.uri, self.version = start_line
        self.path, _, self.query = start_line.path.partition("?")
        self.headers = headers
        peer = connection.context  # type: ignore[attr-defined]  # ours: see request_connection
        self.remote_ip = peer.remote_ip
        self.protocol = peer.protocol
        self.host = headers.get("Host", "127.0.0.1")  # HTTP/1.0 may have none
        self.connection = connection

    def __repr__(self) -> str:
        """Return the request without its query, which Tornado's own shows."""
        return f"{type(self).__name__}({self.method} {self.path})"


class _ProbeDelegate(HTTPMessageDelegate):
    """The response to a probe without a body, for which Tornado's handlers need not be loaded."""

    def __init__(self, gateway: Gateway, connection: RequestConnection) -> None:
        self._gateway = gateway
        self._connection = connection

    def finish(self) -> None:
        connection = self._connection
        status, body = probe_response(self._gateway, connection.target)
        headers = HTTPHeaders({**PROBE_HEADERS, "Content-Length": str(len(body))})
        connection.write_headers(
            ResponseStartLine("HTTP/1.1", status, responses[status]),
            headers,
            None if connection.method == "HEAD" else body,
        )
        connection.finish()


class _RequestDelegate(HTTPMessageDelegate):
    """The way of one request's parts to its handler."""

    def __init__(self, app: GatewayApplication, connection: HTTPConnection) -> None:
        self._app = app
        self._connection = connection

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None]:
        assert isinstance(start_line, RequestStartLine)
        loop = asyncio.get_running_loop()
        handler = self._handler = self._app.routes.handler_of(
            _Request(start_line, headers, self._connection)
        )
        body: asyncio.Future[bool] = loop.create_future()
        self._body = body
        prepared: asyncio.Future[None] = loop.create_future()
        _run(handler.run(prepared, body))
        return prepared

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._handler.data_received(chunk)

    def finish(self) -> None:
        if not self._body.done():
            self._body.set_result(True)

    def on_connection_close(self) -> None:
        if not self._body.done():
            self._body.set_result(False)
        self._handler.on_connection_close()


def _run(coroutine: Coroutine[Any, Any, None]) -> None:  # Any: what it yields is the loop's
    """Run `coroutine` up to its first wait, and the rest in a task."""
    # whatever the task waits for keeps the task alive
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        asyncio.Task(coroutine, loop=loop, eager_start=True)
    else:
        loop.create_task(coroutine)  # noqa: RUF006  # see above
