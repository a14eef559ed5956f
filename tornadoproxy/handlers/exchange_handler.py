"""The life of a request: who sends it, whether it may go on, and how it ends.

::

    initialize         the exchange begins
    run                calls the rest, and turns an exception into the end of the request
      prepare          plugins.authenticate → an identity, or 401; the target is validated;
                       plugins.admit; plugins.authorize, unless that needs the body;
                       `ExchangeHandler.admit` does the route's own work, and may have to wait
      data_received    the request's body, piece by piece
      serve            the body is whole
    end                the request is over, with an `Outcome`; its record is reported exactly once

What a route adds is in its own module; the relay is in `tornadoproxy.handlers.relay`.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from tornadoproxy.config.core_settings import TRUSTED_PROXIES
from tornadoproxy.errors import (
    BodyTooLarge,
    ClientError,
    InvalidRequest,
    Overloaded,
    UpstreamReported,
)
from tornadoproxy.handlers.base import BaseHandler
from tornadoproxy.handlers.body_budget import HeldBody
from tornadoproxy.handlers.body_digest import BodyDigest
from tornadoproxy.handlers.exchange import Exchange
from tornadoproxy.plugin.decisions import Permits
from tornadoproxy.plugin.request import Identity, IncomingRequest, Outcome
from tornadoproxy.protocol.browser_guard import check_not_from_web_page
from tornadoproxy.protocol.client_address import client_address, client_prefix, client_scheme
from tornadoproxy.protocol.request_target import check_target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tornadoproxy.errors import ProxyError
    from tornadoproxy.handlers.gateway import Gateway
    from tornadoproxy.plugin.decisions import AllowedModels, Pass
    from tornadoproxy.plugin.observing import Observers
    from tornadoproxy.plugin.request import ModelRequest
    from tornadoproxy.plugin.web.running_proxy import RequestInFlight
    from tornadoproxy.protocol.usage_reader import UsageReader
    from tornadoproxy.protocol.wire import ResponseHead

T = TypeVar("T")


class ExchangeHandler(BaseHandler):
    """A handler behind authentication; each of its requests is reported in exactly one record."""

    exchange: Exchange
    _authenticating: asyncio.Task[Any] | None = None  # Any: the task's result is not used
    _held: HeldBody | None = None
    _admission: Pass | None = None
    """What `authorize` waits for, before the request goes on: plugins that are still asked."""

    _observers: Observers | None = None
    _usage: UsageReader | None = None
    """What reads the usage in the response, if anything does."""

    def initialize(self, gateway: Gateway) -> None:
        super().initialize(gateway)
        request = self.request
        source = (request.remote_ip or "", request.headers, gateway.settings[TRUSTED_PROXIES])
        incoming = IncomingRequest(
            method=request.method or "",
            path=request.path,
            headers=request.headers,
            remote_ip=client_address(*source),
            dialect=self.dialect,
        )
        scheme = client_scheme(request.protocol, *source)
        self.exchange = Exchange(incoming, self.request_id, scheme)
        self.outcome: Outcome | None = None
        gateway.in_flight.add(self)
        self.request.connection.on_fault = self.end  # type: ignore[union-attr]  # ours

    # -- who sends the request, and whether it may go on

    async def prepare(self) -> None:
        result = self.gateway.plugins.authenticate(self.exchange.request)
        if not isinstance(result, Identity):
            result = await self.while_authenticating(result)
        identity = self.exchange.identity = result
        if self.ended:
            return
        self.request.connection.authenticated()  # type: ignore[union-attr]  # ours
        if identity.anonymous:
            check_not_from_web_page(
                self.request.headers, self.gateway.allowed_hosts, self.gateway.allowed_origins
            )
        check_target(self.request.uri or "")
        plugins = self.gateway.plugins
        if plugins.admits and not await self._admit_by_plugins(identity):
            return
        authorizes_now = plugins.authorizes and not self.asks_a_model()
        if authorizes_now and not await self.authorize(None):
            return
        if plugins.observes:
            self._observers = plugins.observe(self.exchange.request, identity)
            if self._observers is not None:
                self.add_transform(self._observers)
        if identity.body_sha256 is not None:
            digest = BodyDigest(identity.body_sha256)
            if self.has_body:
                self._digest = digest
            else:
                digest.end()  # the request is sent without waiting for a body
        waiting = self.admit()
        if waiting is not None:
            await waiting

    async def while_authenticating(self, waiting: Awaitable[T]) -> T:
        """Await a plugin's decision, which is cancelled if the request ends meanwhile."""
        self._authenticating = asyncio.current_task()
        self.request.connection.authenticating()  # type: ignore[union-attr]  # ours
        try:
            return await waiting
        finally:
            del self._authenticating

    def asks_a_model(self) -> bool:
        """Whether plugins need the body to authorize the request."""
        return False

    async def authorize(self, model_request: ModelRequest | None) -> bool:
        """Ask the plugins to authorize the request, and raise the error of one that refuses.

        :returns: whether the request goes on: the client may have disconnected meanwhile.
        """
        exchange = self.exchange
        assert exchange.identity is not None
        waiting = self.gateway.plugins.authorize(
            exchange.request, exchange.identity, model_request, self._permits()
        )
        if waiting is not None:
            await waiting
        if self._admission is not None:
            admission, self._admission = self._admission, None
            await admission
        return not self.ended

    async def response_of_plugin(self, body: bytes) -> tuple[ResponseHead, bytes] | None:
        """Ask the plugins for a response in place of the upstream's; see the hook `respond`.

        :param body: in the form of the Messages API; plugins have authorized the request.
        """
        exchange, asked = self.exchange, self.exchange.model_request
        if asked is None:  # it runs no model
            return None
        assert exchange.identity is not None
        found = self.gateway.plugins.respond(exchange.request, exchange.identity, asked, body)
        if inspect.isawaitable(found):
            found = await found
        if found is None:
            return None
        return found.in_http(asked.model, self.request_id, stream=asked.stream)

    async def allowed_models(self) -> list[AllowedModels]:
        """Ask the plugins for rules about the client's models, all of which hold."""
        rules: list[AllowedModels] = []
        if self.gateway.plugins.restricts:
            assert self.exchange.identity is not None
            waiting = self.gateway.plugins.allowed_models(self.exchange.identity, rules)
            if waiting is not None:
                await waiting
        return rules

    async def _admit_by_plugins(self, identity: Identity) -> bool:
        """Ask the plugins whether the body may be read; see `authorize`.

        What they have to wait for goes on meanwhile if the body is here already, so that a request
        waits once for what they ask others in `admit` and in `authorize`.
        """
        plugins = self.gateway.plugins
        waiting = plugins.admit(self.exchange.request, identity, self._permits())
        if waiting is not None:
            has_arrived: bool = self.request.connection.has_arrived  # type: ignore[union-attr]  # ours
            if has_arrived and plugins.authorizes and self.asks_a_model() and not plugins.observes:
                self._admission = waiting
            else:
                await waiting
        return not self.ended

    def _permits(self) -> Permits:
        """Return the permits of this request, all of which are settled when it ends."""
        exchange = self.exchange
        if exchange.permits is None:
            exchange.permits = Permits(self.gateway.plugins.teller.tell)
        return exchange.permits

    def admit(self) -> Awaitable[None] | None:
        """Do the route's own work, now that the client is authenticated.

        :returns: something to await before the request's body is read, if that has to wait.
        """
        raise NotImplementedError

    def base_url(self) -> str:
        """Return the URL under which the client reaches this proxy, without a trailing slash."""
        request, trusted = self.request, self.gateway.settings[TRUSTED_PROXIES]
        prefix = client_prefix(request.remote_ip or "", request.headers, trusted)
        return f"{self.exchange.scheme}://{request.host}{prefix}"

    @property
    def withheld_headers(self) -> tuple[str, ...]:
        """Lower-case name prefixes of response headers that plugins withhold from this client."""
        permits = self.exchange.permits
        return () if permits is None else permits.withheld_headers

    # -- the request's body

    def max_body(self) -> int:
        """Return the size of the largest request body, in bytes."""
        raise NotImplementedError

    def max_body_hint(self) -> str:
        """Return what the error about a larger body adds: which limit it is."""
        return ""

    def check_length(self) -> int:
        """Return the length that the request announces for its body; 0 if it announces none.

        :raises BodyTooLarge: the body is larger than `max_body`.
        """
        length = int(self.request.headers.get("Content-Length", "0"))
        if length > self.max_body():
            raise self._body_too_large()
        return length

    def check_body_is_plain(self) -> None:
        """Refuse a compressed request body, where the proxy has to read it."""
        if "Content-Encoding" in self.request.headers:
            raise InvalidRequest("Send the request body without a Content-Encoding.")

    def hold_body(
        self, principal: str | None, on_give_way: Callable[[], None] | None = None
    ) -> None:
        """Hold the request's body until it is whole, charged to `principal`."""
        self._held = HeldBody(self.gateway.body_budget, principal, on_give_way)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        exchange = self.exchange
        exchange.bytes_in += len(chunk)
        try:
            if exchange.bytes_in > self.max_body():
                raise self._body_too_large()
            if self._observers is not None:
                self._observers.request_body(chunk)
            if self._digest is not None:
                chunk = self._digest.feed(chunk)
            return self.take_body(chunk)
        except (BodyTooLarge, Overloaded) as error:
            self.end(error)
            return None

    async def body_ended(self) -> None:
        """Compare the whole body with the digest that the credential is for.

        :raises AuthenticationFailed: it is another one.
        """
        assert self._digest is not None
        waiting = self.take_body(self._digest.end())
        if waiting is not None:
            await waiting

    def take_body(self, chunk: bytes) -> Awaitable[None] | None:
        """Take a piece of the body.

        :returns: something to await before the next piece, if that has to wait.
        :raises BodyTooLarge: the body can never be held.
        :raises Overloaded: there is no room for it at present.
        """
        assert self._held is not None
        self._held.add(chunk)
        return None

    def _body_too_large(self) -> BodyTooLarge:
        hint = self.max_body_hint()
        which = f" ({hint})" if hint else ""
        return BodyTooLarge(f"The request body is larger than {self.max_body()} bytes{which}.")

    # -- the response

    def write(self, chunk: bytes) -> None:  # type: ignore[override]  # no text, no dictionary
        # not by Tornado's method, which looks for these: 6 % of an event's instructions
        if self.request.method != "HEAD":
            self.exchange.bytes_out += len(chunk)
        self._write_buffer.append(chunk)

    def ping(self) -> bytes:
        """Return the event that keeps a quiet stream open; empty if there can be none yet."""
        return self.dialect.ping

    def error_event(self, error: ProxyError) -> bytes:
        """Return the event that ends a stream that has begun."""
        return self.dialect.stream_error(error, self.request_id)

    def snapshot(self) -> RequestInFlight:
        """Return the state of the request at present."""
        if self._usage is not None:
            self.exchange.read(self._usage)
        return self.exchange.snapshot(self.get_status() if self.response_began else None)

    def on_finish(self) -> None:
        self._close()

    def on_connection_close(self) -> None:
        self.end(outcome=Outcome.ABANDONED)

    def end(self, error: ProxyError | None = None, outcome: Outcome | None = None) -> None:
        """End the request. The first call decides the outcome; the next one does not wait.

        :param outcome: of the request; by default it follows from `error`.
        """
        if self.ended:
            return
        if self.outcome is None:
            self.outcome = outcome or _outcome_of(error)
            self.exchange.error = None if error is None else _description(error)
        if outcome is Outcome.ABANDONED:
            self._close()
        else:
            super().end(error)

    def _close(self) -> None:
        """Release what the request held, and report its record to the plugins."""
        assert self.outcome is not None
        self.ended = True
        self.gateway.in_flight.discard(self)
        if self._authenticating is not None:
            self._authenticating.cancel()
        if self._admission is not None:
            self._admission.leave()
            self._admission = None
        exchange, plugins = self.exchange, self.gateway.plugins
        if self.response_began:
            exchange.status = self.get_status()
        self.release()
        if exchange.usage.others:
            exchange.usage = plugins.priced(exchange.usage)
        record = exchange.record(self.outcome, plugins.price(exchange.model, exchange.billed))
        if exchange.permits is not None:
            exchange.permits.settle(record)
        if self._observers is not None:
            self._observers.ended(record)
        plugins.request_finished(record)

    def release(self) -> None:
        """Release what the route held for this request."""
        if self._held is not None:
            self._held.release()


def _outcome_of(error: ProxyError | None) -> Outcome:
    if error is None:
        return Outcome.COMPLETED
    return Outcome.DENIED if isinstance(error, (ClientError, Overloaded)) else Outcome.FAILED


def _description(error: ProxyError) -> str:
    """Return what the record says of `error`: no words that may quote the client's request."""
    said = error.message
    if isinstance(error, UpstreamReported):
        said = f"status {error.status}"
    elif error.param is not None:
        said = f"at {error.param}"
    return f"{type(error).__name__}: {said}"
