"""The routes, and how a request gets to its handler.

Tornado's own way there is a rule for each route, three delegates one behind the other, and two
turns of the event loop: a fifth of a small request's time. Here it is a look at the path and one
delegate, which runs the handler at once, as far as that comes without waiting.
"""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest, RequestStartLine
from tornado.web import Application

from tornadoproxy.handlers.chat import ChatHandler, ModelsHandler
from tornadoproxy.handlers.cors import PreflightHandler, ResponseToPages, is_preflight
from tornadoproxy.handlers.plugin_pages import PageFinder, PageHandler
from tornadoproxy.handlers.probes import NotFoundHandler, ProbeHandler, ReadyHandler
from tornadoproxy.handlers.relay import RelayHandler
from tornadoproxy.protocol.request_target import CHAT, MODELS, PROBES, RELAY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from tornado.httputil import (
        HTTPConnection,
        HTTPHeaders,
        ResponseStartLine,
    )

    from tornadoproxy.handlers.base import BaseHandler
    from tornadoproxy.handlers.gateway import Gateway

_PROBES: dict[str, type[BaseHandler]] = {
    **dict.fromkeys(PROBES, ProbeHandler),
    "/ready": ReadyHandler,
}


class GatewayApplication(Application):
    """The Tornado application of one proxy. Two can live in one process."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._origins = gateway.allowed_origins
        pages = gateway.plugins.pages()
        self._pages = PageFinder(pages) if pages else None
        super().__init__(
            # it is called, and that is all
            transforms=[partial(ResponseToPages, self._origins)] if self._origins else [],  # type: ignore[list-item]
            log_function=lambda handler: None,  # the access log is a plugin's
        )

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        return _RequestDelegate(self, server_conn, request_conn)

    def make_handler(self, request: HTTPServerRequest) -> BaseHandler:
        """The handler of `request`, which streams its body."""
        if self._origins and is_preflight(request, self._origins):
            return PreflightHandler(self, request, gateway=self._gateway)
        if self._pages and (found := self._pages.find(request.path)) is not None:
            return PageHandler(self, request, gateway=self._gateway, found=found)
        return self._handler_class(request.path)(self, request, gateway=self._gateway)

    def _handler_class(self, path: str) -> type[BaseHandler]:
        if path.startswith(RELAY):
            # a base URL that ends in /v1 where the client adds it
            is_double = path.startswith("/v1/v1/") or path == "/v1/v1"
            return NotFoundHandler if is_double else RelayHandler
        if path in _PROBES:
            return _PROBES[path]
        if CHAT.fullmatch(path):
            return ChatHandler
        if MODELS.fullmatch(path):
            return ModelsHandler
        return NotFoundHandler


class _Request(HTTPServerRequest):
    """A request as Tornado's handlers want it, but for the fields of its query and its form.

    Tornado's own constructor takes them apart, which nobody here asks for, and checks once more
    the Host that `request_framing` has checked: a hundredth of a small request's time.
    """

    def __init__(
        self,
        start_line: RequestStartLine,
        headers: HTTPHeaders,
        connection: HTTPConnection,
        server_connection: object,
    ) -> None:
        self.method, self.uri, self.version = start_line
        self.path, _, self.query = start_line.path.partition("?")
        self.headers = headers
        self.body = b""
        peer = connection.context  # type: ignore[attr-defined]  # ours: see request_connection
        self.remote_ip = peer.remote_ip
        self.protocol = peer.protocol
        # only HTTP/1.0 can do without
        self.host = headers.get("Host", "127.0.0.1")
        self.connection = connection
        self.server_connection = server_connection
        self._start_time = time.time()
        self._finish_time = None

    def __repr__(self) -> str:
        # Tornado's shows the query
        return f"{type(self).__name__}({self.method} {self.path})"


class _RequestDelegate(HTTPMessageDelegate):
    """Brings one request to its handler, as Tornado does for those that stream the body."""

    def __init__(
        self, app: GatewayApplication, server_connection: object, connection: HTTPConnection
    ) -> None:
        self._app = app
        self._server_connection = server_connection
        self._connection = connection

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None]:
        assert isinstance(start_line, RequestStartLine)
        request = _Request(start_line, headers, self._connection, self._server_connection)
        self._whole = request._body_future = asyncio.Future()
        handler = self._handler = self._app.make_handler(request)
        transforms = [transform(request) for transform in self._app.transforms]
        prepared: asyncio.Future[None] = asyncio.Future()
        handler._prepared_future = prepared  # type: ignore[assignment]  # declared as None
        _run(handler._execute(transforms))
        return prepared

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._handler.data_received(chunk)

    def finish(self) -> None:
        if not self._whole.done():
            self._whole.set_result(None)

    def on_connection_close(self) -> None:
        self._handler.on_connection_close()


def _run(coroutine: Coroutine[Any, Any, None]) -> None:  # Any: what it yields is the loop's
    """Run `coroutine`, which raises nothing, as far as it goes at once, and the rest in a task."""
    # what a task waits for keeps it alive
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        asyncio.Task(coroutine, loop=loop, eager_start=True)
    else:
        loop.create_task(coroutine)  # noqa: RUF006  # see above
