"""A request that is sent to the upstream: its limits, its call, and the way of the response.

Limits. A request that has passed this proxy before, or whose body is over the limit, is refused
before anything is sent to the upstream. If the body is held, it is read first
(`tornadoproxy.handlers.body_budget`), then the request takes its place in flight, or waits for one
(`tornadoproxy.handlers.admission`). A request whose body streams takes its place before its body is
read.

The response. Each piece is one write to the client, flushed at once. Until the client has taken it,
nothing more is read from the upstream. A response that fails is never ended cleanly: a stream gets
an error event, and then the connection is closed.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace
from tornado.httputil import HTTPHeaders

from tornadoproxy.config.core_settings import DEFAULT_ANTHROPIC_VERSION
from tornadoproxy.errors import LoopDetected
from tornadoproxy.handlers.dispatch import Dispatch
from tornadoproxy.handlers.exchange_handler import ExchangeHandler
from tornadoproxy.plugin.request import ESTIMATED_OUTPUT, MAX_OUTPUT, ModelRequest
from tornadoproxy.protocol.body_fields import IN_THREAD, NOTHING_READ, routed
from tornadoproxy.protocol.headers import forwarded, has_been_here
from tornadoproxy.protocol.request_fields import read_request
from tornadoproxy.upstream.call import Call
from tornadoproxy.upstream.target import failure_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

    from tornadoproxy.errors import ProxyError, UpstreamError
    from tornadoproxy.handlers.admission import Turn
    from tornadoproxy.handlers.event_stream import EventStream
    from tornadoproxy.handlers.gateway import Gateway
    from tornadoproxy.plugin.request import Outcome
    from tornadoproxy.protocol.wire import OutgoingRequest, ResponseHead
    from tornadoproxy.upstream.failover import Failover
    from tornadoproxy.upstream.target import Target

T = TypeVar("T")


class UpstreamHandler(ExchangeHandler):
    """A handler that asks the upstream. It is the `Receiver` of its own call."""

    # What few requests need is a class attribute. An object with more than thirty attributes of its
    # own takes a kilobyte more, and there may be thousands of streams.
    _turn: Turn | None = None
    _uploads = False
    _events: EventStream | None = None
    _working: asyncio.Future[Any] | None = None  # Any: what the work returns
    _routing = NOTHING_READ
    _target: Target | None = None
    _shown: Sequence[tuple[str, str]] = ()

    def initialize(self, gateway: Gateway) -> None:
        super().initialize(gateway)
        self._call: Call | Failover | None = None
        self._has_place = False

    def holds(self, length: int, *, chunked: bool) -> bool:
        """Decide whether the body is held until it is whole.

        :param length: of the body, in bytes; 0 if the request announces none.
        :param chunked: the body has the chunked transfer coding.
        """
        raise NotImplementedError

    def begin(self, *, has_body: bool, chunked: bool) -> None:
        """Send a request whose body is not held.

        :param has_body: there is a body, which is to be streamed.
        """
        raise NotImplementedError

    async def serve_held(self, body: bytes) -> None:
        """Send a request whose body was held, now that it is whole and has its place."""
        raise NotImplementedError

    def begin_response(self, head: ResponseHead) -> None:
        """Prepare the response to the client. It may end the request."""
        raise NotImplementedError

    def on_data(self, chunk: bytes) -> None:
        """See `Receiver`."""
        raise NotImplementedError

    def on_end(self) -> None:
        """See `Receiver`."""
        raise NotImplementedError

    # -- the request

    def prepare(self) -> Coroutine[Any, Any, None]:  # Any: what it yields is the loop's
        # before authentication: a looping request carries the upstream's key, which need not be a
        # credential here, and only the upstream knows this proxy's name in Via
        if has_been_here(self.request.headers, self.gateway.instance):
            raise LoopDetected(
                "This request has passed this proxy before: UPSTREAM_BASE_URL leads back to it. "
                "Set it to the API's URL."
            )
        return super().prepare()

    def admit(self) -> Awaitable[None] | None:
        length = self.check_length()
        chunked = "Transfer-Encoding" in self.request.headers
        if self.holds(length, chunked=chunked):
            self.hold_body(self._principal)
            return None
        has_body = chunked or length > 0
        if has_body:
            self.gateway.admission.begin_upload(self._principal)
            self._uploads = True
        waiting = self._take_place()
        if waiting is not None:
            return self._begin_in_turn(waiting, has_body=has_body, chunked=chunked)
        self.begin(has_body=has_body, chunked=chunked)
        return None

    async def _begin_in_turn(
        self, waiting: Awaitable[None], *, has_body: bool, chunked: bool
    ) -> None:
        await waiting
        if not self.ended:
            self.begin(has_body=has_body, chunked=chunked)

    @property
    def _principal(self) -> str:
        assert self.exchange.identity is not None
        return self.exchange.identity.principal

    def _take_place(self) -> Awaitable[None] | None:
        """Take a place in flight, which is returned when the request ends.

        :returns: something to await if none is free. The request may have ended by then.
        :raises Overloaded: the queue is full, or disabled.
        """
        admission, principal = self.gateway.admission, self._principal
        if admission.enter(principal):
            self._has_place = True
            return None
        self._turn = admission.queue(principal)
        return self._turn.wait()

    def _end_upload(self) -> None:
        self._uploads = False
        self.gateway.admission.end_upload(self._principal)

    def take_body(self, chunk: bytes) -> Awaitable[None] | None:
        if self._held is not None:
            # with a digest, the piece before the last one comes together with it
            is_last = self._digest is None and self.request.connection.has_come  # type: ignore[union-attr]  # ours
            self._held.add(chunk, is_last=is_last)
            return None
        return None if self._call is None else self._call.write(chunk)

    async def serve(self) -> None:
        held = self._held
        if held is None:
            if self._uploads:
                self._end_upload()
            if self._call is not None:
                await self._call.end_body()
            return
        waiting = self._take_place()
        if waiting is not None:
            await waiting
        if not self.ended:
            await self.serve_held(held.take())

    async def ask_plugins(self, body: bytes) -> bool:
        """Ask the plugins to authorize what is about to be sent to the upstream; see `authorize`.

        :param body: of a messages request.
        :raises InvalidRequest: its fields cannot be read.
        """
        plugins = self.gateway.plugins
        chooses = plugins.chooses and len(self.gateway.upstreams.targets) > 1
        if not (plugins.authorizes or plugins.responds or chooses):
            return True
        fields = await self.work_on(len(body), read_request, body)
        if fields is None:
            return False
        exchange = self.exchange
        if exchange.requested_model is None:
            exchange.requested_model = fields.model
        models = self.gateway.models
        if (fields.max_tokens or 0) > ESTIMATED_OUTPUT:
            # most requests ask for less than any model's limit, and need not know it
            await models.known()
            if self.ended:
                return False
        longest = models.max_tokens(fields.models) or MAX_OUTPUT
        exchange.model_request = ModelRequest.of(fields, exchange.bytes_in, longest, plugins.price)
        return not plugins.authorizes or await self.authorize(exchange.model_request)

    async def respond_by_plugin(self, body: bytes) -> bool:
        """Send a plugin's response, if one has one; return whether the request is served."""
        found = await self.response_of_plugin(body)
        if found is not None and not self.ended:
            head, content = found
            self.begin_response(head)
            self.on_data(content)
            self.on_end()
        return self.ended or found is not None

    async def work_on(self, size: int, work: Callable[..., T], *arguments: object) -> T | None:
        """Return what `work` returns. It runs in a thread for a body larger than `IN_THREAD`.

        :param size: of the body that it works on, in bytes.
        :returns: ``None`` if the request ended meanwhile.
        """
        if size <= IN_THREAD:
            return work(*arguments)
        thread = self.gateway.body_thread
        self._working = asyncio.ensure_future(thread.run(self._principal, work, *arguments))
        try:
            result: T = await self._working
        except asyncio.CancelledError:
            if self.ended:
                return None
            raise
        finally:
            self._working = None  # its result may hold the body
        return None if self.ended else result

    def send(
        self,
        target: str,
        body: bytes | None,
        *,
        chunked: bool = False,
        version: str | None = None,
        drop: frozenset[str] = frozenset(),
        add: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Start the call.

        :param target: the request target, below the upstream's path prefix.
        :param body: all of it; ``None`` if it is to be streamed.
        :param version: the ``anthropic-version`` where the client names none.
        :param drop: the names of client headers that are not forwarded this time.
        :param add: headers besides the client's.
        """
        gateway, exchange = self.gateway, self.exchange
        plugins = gateway.plugins
        method = self.request.method or ""
        if plugins.credential_headers:
            drop |= plugins.credential_headers
        lines = forwarded(
            self.request.headers,
            default_version=version or gateway.settings[DEFAULT_ANTHROPIC_VERSION],
            drop=drop,
            add=add,
        )
        exchange.upstream_started_at = time.monotonic()
        sole = gateway.upstreams.sole
        if sole is None or plugins.prepares:
            dispatch = Dispatch(
                gateway, exchange, method, target, lines, body, chunked, self._routing
            )
            self._call = dispatch.start(self)
            return
        self._target = sole
        exchange.upstream = sole.name
        exchange.attempts = 1
        request = sole.request(
            method, target, lines, body, chunked=chunked, instance=gateway.instance
        )
        self._call = sole.client.send(request, self)

    async def route(self, body: bytes, models: Mapping[str, str]) -> bytes | None:
        """Read what decides where a request goes.

        :param models: what models are called upstream, by their names in requests.
        :returns: the body, with that model; ``None`` if the request ended meanwhile.
        """
        found = await self.work_on(len(body), routed, body, models)
        if found is None:
            return None
        self._routing, body = found
        if self.exchange.requested_model is None:
            self.exchange.requested_model = self._routing.requested
        return body

    # -- the response

    def on_head(self, head: ResponseHead, first: bytes) -> None:
        """Begin the response; see `Receiver`."""
        exchange, target = self.exchange, self._target
        assert target is not None
        now = time.monotonic()
        if type(self._call) is Call:
            target.responded(head.status, now - exchange.upstream_started_at)  # type: ignore[operator]  # set by `send`
        refusal = target.check_key(head.status)
        if refusal is not None:
            self.end(refusal)
            return
        exchange.first_byte_at = now
        if self._held is not None:  # no further attempt needs it
            self._held.release()
            self._held = None
        self.begin_response(head)
        if not self.ended:
            self.on_data(first)
            self._free_headers()

    def on_failure(self, error: UpstreamError) -> None:
        """See `Receiver`."""
        if type(self._call) is Call and self._target is not None:
            self._target.broke(failure_name(error))
        self.end(error)

    def on_attempt(self, number: int) -> None:
        """See `FailoverReceiver`."""
        self.exchange.attempts = number

    def on_upstream(self, target: Target, outgoing: OutgoingRequest) -> None:
        """See `FailoverReceiver`."""
        self._target = target
        self._shown = [("X-Tornadoproxy-Upstream", target.name)]
        if ignored := outgoing.shown_ignored:
            self._shown.append(("X-Tornadoproxy-Ignored", ignored))
        self.exchange.upstream = target.name

    def on_failed_attempt(self, reason: str) -> None:
        """See `FailoverReceiver`."""
        self.exchange.failed_attempts = (*self.exchange.failed_attempts, reason)

    def pass_on(self, chunk: bytes) -> None:
        """Write and flush `chunk`, and read on from the upstream once the client has taken it."""
        if chunk:
            if self._events is not None:
                self._events.feed(chunk)
            self.write(chunk)
        flushed = self.flush()
        if not flushed.done() and self._call is not None:
            self._call.pause()
            flushed.add_done_callback(self._read_on)

    def _read_on(self, flushed: asyncio.Future[None]) -> None:
        if self._call is not None:
            self._call.resume()

    def _free_headers(self) -> None:
        """Free both header blocks of a stream once relayed: they are a fifth of its memory."""
        if self._events is not None and self.response_began:
            nothing = HTTPHeaders()
            self._headers = self.request.headers = nothing
            self.exchange.request = replace(self.exchange.request, headers=nothing)

    # -- the end

    def end(self, error: ProxyError | None = None, outcome: Outcome | None = None) -> None:
        if self._call is not None:
            self._call.cancel()
        if self.exchange.upstream_ended_at is None:
            self.exchange.upstream_ended_at = time.monotonic()
        super().end(error, outcome)

    def break_off(self, error: ProxyError) -> None:
        """End an event stream with an error event, and close once the client has it."""
        events, self._events = self._events, None  # the next call does not wait
        flushed = None if events is None else events.fail(error)
        if flushed is None or flushed.done():
            super().break_off(error)
        else:
            flushed.add_done_callback(lambda _: super(UpstreamHandler, self).break_off(error))

    def release(self) -> None:
        super().release()
        if self._turn is not None:
            self.gateway.admission.withdraw(self._turn)
        elif self._has_place:
            self.gateway.admission.leave(self._principal)
        if self._uploads:
            self._end_upload()
        if self._events is not None:
            self._events.stop_pings()
            self._events = None
        if self._working is not None:
            self._working.cancel()
        if self._usage is not None:
            self._usage.finish()
            self.exchange.read(self._usage)
        own, there = self._routing.model, self.exchange.model
        # a name that only the settings give to a model has no price
        if own and there and self._target and self._target.upstream.model(own) == there:
            self.exchange.model = own
