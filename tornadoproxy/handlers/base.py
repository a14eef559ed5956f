"""The life of a request: who asks, may it pass, what became of it.

::

    initialize    the exchange begins
    prepare       plugins.authenticate → an identity, or the dialect's 401; the target is checked;
                  plugins.admit; plugins.authorize, unless that takes the body;
                  `ExchangeHandler.admit` does the route's own work, and may have to wait
    data_received the request's body, piece by piece
    serve         its body is whole
    finish        the answer is whole → the exchange ends in its record, exactly once

An exception raised anywhere becomes an error in the dialect's shape (`BaseHandler.write_error`).
What a route does beyond that is in its own module; the relay is in `tornadoproxy.handlers.relay`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from tornado.httputil import HTTPHeaders
from tornado.web import HTTPError, RequestHandler, stream_request_body

from tornadoproxy.config.core_settings import TRUSTED_PROXIES
from tornadoproxy.errors import (
    BodyTooLarge,
    ClientError,
    InvalidRequest,
    MethodNotAllowed,
    Overloaded,
    ProxyError,
)
from tornadoproxy.handlers.exchange import Exchange
from tornadoproxy.plugin.authorization import Permits
from tornadoproxy.plugin.request import (
    Identity,
    IncomingRequest,
    Outcome,
    presents_both_credentials,
)
from tornadoproxy.protocol.browser_guard import check_not_from_web_page
from tornadoproxy.protocol.client_address import client_address, client_prefix, client_scheme
from tornadoproxy.protocol.dialects import Dialect
from tornadoproxy.protocol.request_target import check_target

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import TracebackType

    from tornadoproxy.handlers.gateway import Gateway
    from tornadoproxy.plugin.authorization import ModelRequest

T = TypeVar("T")

logger = logging.getLogger(__name__)

_REASONS = {529: "Overloaded"}

# The HTTP Method Registry of IANA, without CONNECT and TRACE, which a gateway does not forward,
# and without those that are no methods (PRI, "*").
METHODS = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PROPFIND",
    "PROPPATCH",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
]


@stream_request_body
class BaseHandler(RequestHandler):
    """Errors in the dialect's shape, and none of a web framework's own additions."""

    gateway: Gateway
    dialect: Dialect
    request_id: str

    def initialize(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.dialect = Dialect.of_path(self.request.path)
        self.request_id = next(gateway.request_ids)

    def clear(self) -> None:
        """Begin the answer anew, as Tornado does, but with nothing that tells who serves."""
        self._headers = HTTPHeaders()
        self._headers["Content-Type"] = "application/json"
        self.set_default_headers()
        self._write_buffer: list[bytes] = []
        self._status_code = 200
        self._reason = "OK"

    def compute_etag(self) -> None:
        """No tag: what is relayed has its own."""

    def refuse_body(self) -> None:
        """Refuse a request with a body, on a route that has no use for one.

        The connection ends with the answer: the body may have no end.

        :raises BodyTooLarge: there is a body (RFC 9110 §15.5.14; §9.3.1 on those of GET).
        """
        headers = self.request.headers
        if "Transfer-Encoding" in headers or int(headers.get("Content-Length", "0")):
            self.request.connection.must_close = True  # type: ignore[union-attr]  # ours
            raise BodyTooLarge("This takes no request body: send none.")

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # Any: Tornado's signature
        exception = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        error = exception if isinstance(exception, ProxyError) else self._as_error(status_code)
        self.describe_error(error)
        self.write_proxy_error(error)

    def write_proxy_error(self, error: ProxyError) -> None:
        """Answer with `error`, in the dialect's shape."""
        status = self.dialect.error_status(error)
        self.set_status(status, _REASONS.get(status))
        if status == 401 and not presents_both_credentials(self.request.headers):
            # Claude Code otherwise repeats the same credential for three minutes, and shows nothing
            self.set_header("X-Should-Retry", "false")
        for name, value in self.dialect.error_headers(error, self.request_id).items():
            self.set_header(name, value)
        self.finish(self.dialect.error_body(error, self.request_id))

    def _as_error(self, status: int) -> ProxyError:
        """What Tornado raised, as an error of ours. It raises one: for an unknown method."""
        if status == 405:
            return MethodNotAllowed("This method is not supported here.", self.SUPPORTED_METHODS)
        if status < 500:
            return InvalidRequest("The request cannot be read.", status=status)
        return ProxyError("The proxy failed to handle this request.", status=status)

    def describe_error(self, error: ProxyError) -> None:
        """Take note of the error that the answer is about to be."""

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if value is not None and not isinstance(value, (ProxyError, HTTPError)):
            where = f"{self.request.method} {self.request.path}"
            logger.error("%s failed", where, exc_info=(type(value), value, tb))


class ExchangeHandler(BaseHandler):
    """A route behind authentication; each request ends in exactly one record."""

    SUPPORTED_METHODS = tuple(METHODS)

    exchange: Exchange
    _authenticating: asyncio.Task[Any] | None = None  # Any: the task's result is not asked for

    def initialize(self, gateway: Gateway) -> None:
        super().initialize(gateway)
        request = self.request
        told = (request.remote_ip or "", request.headers, gateway.settings[TRUSTED_PROXIES])
        incoming = IncomingRequest(
            method=request.method or "",
            path=request.path,
            headers=request.headers,
            remote_ip=client_address(*told),
            dialect=self.dialect,
        )
        scheme = client_scheme(request.protocol, *told)
        self.exchange = Exchange(incoming, self.request_id, scheme)
        self.outcome = Outcome.COMPLETED
        self.ended = False
        gateway.in_flight.add(self)
        self.request.connection.on_fault = self.fail  # type: ignore[union-attr]  # ours

    async def prepare(self) -> None:
        response = self.gateway.plugins.authenticate(self.exchange.request)
        identity = response if isinstance(response, Identity) else await self.until_known(response)
        self.exchange.identity = identity
        if self.ended:
            return
        self.request.connection.authenticated()  # type: ignore[union-attr]  # ours
        if identity.anonymous:
            check_not_from_web_page(
                self.request.headers, self.gateway.allowed_hosts, self.gateway.allowed_origins
            )
        check_target(self.request.uri or "")
        plugins = self.gateway.plugins
        if plugins.admits and not await self._is_admitted(identity):
            return
        head_decides = plugins.authorizes and not self.asks_a_model()
        if head_decides and not await self.is_permitted(None):
            return
        waiting = self.admit()
        if waiting is not None:
            await waiting

    async def until_known(self, waiting: Awaitable[T]) -> T:
        """Wait for an authenticator; that is cancelled if the request ends meanwhile."""
        self._authenticating = asyncio.current_task()
        self.request.connection.authenticating()  # type: ignore[union-attr]  # ours
        try:
            return await waiting
        finally:
            del self._authenticating

    def asks_a_model(self) -> bool:
        """Whether it takes the body to say whether the request is permitted."""
        return False

    def base_url(self) -> str:
        """Return the URL at which the client finds this proxy, without a slash at its end."""
        request, trusted = self.request, self.gateway.settings[TRUSTED_PROXIES]
        prefix = client_prefix(request.remote_ip or "", request.headers, trusted)
        return f"{self.exchange.scheme}://{request.host}{prefix}"

    def check_body_is_plain(self) -> None:
        """Refuse a compressed request body, where it has to be read."""
        if "Content-Encoding" in self.request.headers:
            raise InvalidRequest("Send the request body without a Content-Encoding.")

    async def is_permitted(self, model_request: ModelRequest | None) -> bool:
        """Ask the plugins whether the request may go on; what they refuse with is raised.

        :returns: whether it does: the client may have left meanwhile.
        """
        exchange = self.exchange
        assert exchange.identity is not None
        permitted = self.gateway.plugins.authorize(
            exchange.request, exchange.identity, model_request, self._permits()
        )
        if permitted is not None:
            await permitted
        return not self.ended

    async def _is_admitted(self, identity: Identity) -> bool:
        """Ask the plugins whether the body may be read; see `is_permitted`."""
        admitted = self.gateway.plugins.admit(self.exchange.request, identity, self._permits())
        if admitted is not None:
            await admitted
        return not self.ended

    def _permits(self) -> Permits:
        """The permits of this request, all of which are settled when it ends."""
        exchange = self.exchange
        if exchange.permits is None:
            exchange.permits = Permits(self.gateway.plugins.tell)
        return exchange.permits

    def admit(self) -> Awaitable[None] | None:
        """The route's own work, once it is known who asks.

        :returns: something to await before the request's body is read, if that has to wait.
        """
        raise NotImplementedError

    async def serve(self) -> None:
        """The request's body is whole; see to the answer."""

    def write(self, chunk: str | bytes | dict[str, object]) -> None:
        if self.request.method != "HEAD":
            self.exchange.bytes_out += len(chunk)
        super().write(chunk)

    def describe_error(self, error: ProxyError) -> None:
        # a message about a field may quote what the client put into it
        about_field = isinstance(error, InvalidRequest) and error.param
        what = f"at {error.param}" if about_field else error.message
        self.exchange.error = f"{type(error).__name__}: {what}"
        if self.outcome is Outcome.COMPLETED:
            refused = isinstance(error, (ClientError, Overloaded))
            self.outcome = Outcome.DENIED if refused else Outcome.FAILED

    def fail(self, error: ProxyError) -> None:
        """Answer with `error`; if an answer has begun, cut it."""
        self.send_error(error.status, exc_info=(type(error), error, None))

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:  # Any: Tornado's signature
        if not self._headers_written:
            super().send_error(status_code, **kwargs)
            return
        exception = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        error = exception if isinstance(exception, ProxyError) else self._as_error(status_code)
        self.describe_error(error)
        self.break_off(error)

    def break_off(self, error: ProxyError) -> None:
        """End an answer that has begun, in a way that cannot be taken for its clean end."""
        assert self.request.connection is not None
        self.request.connection.abort()  # type: ignore[attr-defined]  # ours: see request_connection
        if not self._finished:
            self.finish()

    def cut(self, outcome: Outcome) -> None:
        """End the request now: the process stops."""
        if self.ended:
            return
        self.outcome = outcome
        self.fail(ProxyError("The proxy is stopping. Try again.", status=503, retry_after=1))

    def on_connection_close(self) -> None:
        super().on_connection_close()
        # an answer that was being cut when its client left has its outcome already
        self.end(Outcome.ABANDONED if self.outcome is Outcome.COMPLETED else self.outcome)

    def on_finish(self) -> None:
        self.end(self.outcome)

    def end(self, outcome: Outcome) -> None:
        """The exchange is over: let go of what it held, and tell the plugins, once."""
        if self.ended:
            return
        self.ended = True
        self.gateway.in_flight.discard(self)
        if self._authenticating is not None:
            self._authenticating.cancel()
        if self._headers_written:
            self.exchange.status = self.get_status()
        self.release()
        exchange, plugins = self.exchange, self.gateway.plugins
        if exchange.usage.others:
            exchange.usage = plugins.priced(exchange.usage)
        record = exchange.record(outcome, plugins.price(exchange.model, exchange.billed))
        if exchange.permits is not None:
            exchange.permits.settle(record)
        plugins.request_finished(record)

    def release(self) -> None:
        """Let go of what the route held for this request."""


for _method in METHODS:
    setattr(ExchangeHandler, _method.lower(), lambda handler: handler.serve())
