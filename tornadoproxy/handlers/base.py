"""The base of all handlers: one method that runs a request, and one that ends it.

An exception raised anywhere in `BaseHandler.run` ends the request with an error in the dialect's
shape. Handlers of authenticated requests are in `tornadoproxy.handlers.exchange_handler`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tornado.httputil import HTTPHeaders
from tornado.web import RequestHandler

from tornadoproxy.errors import BodyTooLarge, MethodNotAllowed, ProxyError
from tornadoproxy.plugin.request import presents_both_credentials
from tornadoproxy.protocol.dialects import Dialect

if TYPE_CHECKING:
    from tornado.web import OutputTransform

    from tornadoproxy.handlers.body_digest import BodyDigest
    from tornadoproxy.handlers.gateway import Gateway

logger = logging.getLogger(__name__)

_REASONS = {529: "Overloaded"}

# The HTTP Method Registry of IANA, without CONNECT and TRACE, which a gateway does not forward,
# and without the entries that are no methods (PRI, "*").
METHODS: tuple[str, ...] = (
    *("ACL", "BASELINE-CONTROL", "BIND", "CHECKIN", "CHECKOUT", "COPY", "DELETE", "GET", "HEAD"),
    *("LABEL", "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MKREDIRECTREF"),
    *("MKWORKSPACE", "MOVE", "OPTIONS", "ORDERPATCH", "PATCH", "POST", "PROPFIND", "PROPPATCH"),
    *("PUT", "QUERY", "REBIND", "REPORT", "SEARCH", "UNBIND", "UNCHECKOUT", "UNLINK", "UNLOCK"),
    *("UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL"),
)


class BaseHandler(RequestHandler):
    """A handler whose errors have the dialect's shape, without a web framework's own headers."""

    SUPPORTED_METHODS: tuple[str, ...] = METHODS

    gateway: Gateway
    dialect: Dialect
    request_id: str

    ended = False
    """Whether the request is over."""

    _digest: BodyDigest | None = None
    """What the body is compared with, if the credential is valid for one body only."""

    _transforms: list[OutputTransform] = []  # noqa: RUF012  # replaced, and not changed

    def initialize(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.dialect = Dialect.of_path(self.request.path)
        self.request_id = next(gateway.request_ids)

    def add_transform(self, transform: OutputTransform) -> None:
        """Have `transform` change the response's headers before they are sent."""
        self._transforms = [*self._transforms, transform]

    async def run(self, prepared: asyncio.Future[None], body: asyncio.Future[bool]) -> None:
        """Serve the request.

        :param prepared: completed when the body may be read.
        :param body: whether the body came whole; completed when it did, or no longer can.
        """
        try:
            self._check_method()
            waiting = self.prepare()
            if waiting is not None:
                await waiting
            prepared.set_result(None)
            if not self.ended and await body:
                if self._digest is not None:
                    await self.body_ended()
                if not self.ended:
                    await self.serve()
        except ProxyError as error:
            self.end(error)
        except (Exception, asyncio.CancelledError) as error:
            self._fail(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            if not prepared.done():
                prepared.set_result(None)

    def _check_method(self) -> None:
        if self.request.method not in self.SUPPORTED_METHODS:
            raise MethodNotAllowed("This method is not supported here.", self.SUPPORTED_METHODS)

    def _fail(self, error: BaseException) -> None:
        """End the request because of a fault in the proxy."""
        cancelled = isinstance(error, asyncio.CancelledError)
        if not (self.ended and cancelled):  # the end of a request cancels what it waits for
            where = f"{self.request.method} {self.request.path}"
            logger.error("%s failed", where, exc_info=error)
        self.end(ProxyError("The proxy failed to handle this request."))

    async def body_ended(self) -> None:
        """Take the last piece of the body, which is whole; see `_digest`."""

    async def serve(self) -> None:
        """Respond to the request, whose body is whole."""

    def clear(self) -> None:
        """Begin the response anew, without Tornado's ``Server`` and ``Date``.

        To let Tornado set them and remove them takes 38 µs, an eighth of a small request's time.
        """
        self._headers = HTTPHeaders()
        self._headers["Content-Type"] = "application/json"
        self.set_default_headers()
        self._write_buffer: list[bytes] = []
        self._status_code = 200
        self._reason = "OK"

    def compute_etag(self) -> None:
        """Add no tag: the upstream's responses have their own."""

    @property
    def response_began(self) -> bool:
        """Whether the response's headers have been sent."""
        began: bool = self.request.connection.response_began  # type: ignore[union-attr]  # ours
        return began

    @property
    def has_body(self) -> bool:
        """Whether the request has a body, which may turn out to be empty if it is chunked."""
        headers = self.request.headers
        return "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0"

    def refuse_body(self) -> None:
        """Refuse a request with a body, on a route that takes none.

        The connection is closed after the response: the body may have no end.

        :raises BodyTooLarge: there is a body (RFC 9110 §15.5.14; §9.3.1 on those of GET).
        """
        if self.has_body:
            self.request.connection.must_close = True  # type: ignore[union-attr]  # ours
            raise BodyTooLarge("This path takes no request body; send none.")

    def write_error_response(self, error: ProxyError) -> None:
        """Write a response with `error`, in the dialect's shape."""
        status = self.dialect.error_status(error)
        self.set_status(status, _REASONS.get(status))
        if status == 401 and not presents_both_credentials(self.request.headers):
            # Claude Code otherwise repeats the same credential for three minutes, and shows nothing
            self.set_header("X-Should-Retry", "false")
        for name, value in self.dialect.error_headers(error, self.request_id).items():
            self.set_header(name, value)
        self.write(self.dialect.error_body(error, self.request_id))

    def end(self, error: ProxyError | None = None) -> None:
        """End the request. Everything that ends one comes here.

        :param error: sent to the client as the response, or at the end of one that has begun.
            Without an error, what has been written is the whole response.
        """
        if self.ended:
            return
        if error is None:
            self.finish()
        elif self.response_began:
            self.break_off(error)
        else:
            self.clear()
            self.write_error_response(error)
            self.finish()

    def break_off(self, error: ProxyError) -> None:
        """Close the connection, so that the response cannot be taken for a whole one."""
        if self.ended:
            return
        assert self.request.connection is not None
        self.request.connection.abort()  # type: ignore[attr-defined]  # ours: see request_connection
        self.finish()

    def on_finish(self) -> None:
        """Note that the response is complete; Tornado calls this."""
        self.ended = True

    def on_connection_close(self) -> None:
        """Note that the client has disconnected."""
        self.ended = True
