"""What every request that goes upstream has in common: its limits, its call, its answer's way out.

Limits. A request that has been here before, and a body over the limit, are refused before anything
goes upstream. A body that is held is read first (`tornadoproxy.handlers.body_budget`), and then the
request takes its place in flight, or waits for its turn (`tornadoproxy.handlers.admission`). One
whose body streams takes its place first, and nothing of the body is read before.

The answer. Each piece is one write to the client, flushed at once. While the client has not taken
it, nothing more is read from the upstream. An answer that breaks off is never ended cleanly: a
stream gets an error event, and then the connection is cut.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace
from tornado.httputil import HTTPHeaders

from tornadoproxy.config.core_settings import DEFAULT_ANTHROPIC_VERSION, UPSTREAM_BASE_URL
from tornadoproxy.errors import BodyTooLarge, LoopDetected, Overloaded
from tornadoproxy.handlers.base import ExchangeHandler
from tornadoproxy.handlers.body_budget import HeldBody
from tornadoproxy.plugin.authorization import MAX_OUTPUT, UNTOLD_OUTPUT, ModelRequest
from tornadoproxy.protocol.headers import has_been_here, request_head
from tornadoproxy.protocol.request_fields import read_request
from tornadoproxy.upstream.call import Call, UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

    from tornadoproxy.errors import ProxyError, UpstreamError
    from tornadoproxy.handlers.admission import Turn
    from tornadoproxy.handlers.event_stream import EventStream
    from tornadoproxy.handlers.gateway import Gateway
    from tornadoproxy.protocol.usage_reader import UsageReader
    from tornadoproxy.upstream.connection import ResponseHead

T = TypeVar("T")

MAX_MESSAGE_BODY = 32 * 1024 * 1024
"""The largest messages request, in bytes, where its body has to be read: upstream's own limit."""

MESSAGE_HINT = "a messages request can be no larger, MAX_BODY_SIZE may be lower"
"""What is said of that limit."""

IN_THREAD = 256 * 1024
"""The largest body that is read in the event loop, in bytes. It takes at most 50 ms there."""


class UpstreamHandler(ExchangeHandler):
    """Serves a request by asking the upstream. It is the `Receiver` of its own call."""

    # What few requests need stands here. An object with more than thirty attributes of its own
    # takes a kilobyte more, and there may be thousands of streams.
    _turn: Turn | None = None
    _held: HeldBody | None = None
    _uploads = False
    _events: EventStream | None = None
    _working: asyncio.Future[Any] | None = None  # Any: what the work returns

    def initialize(self, gateway: Gateway) -> None:
        super().initialize(gateway)
        self._call: Call | None = None
        self._has_place = False
        self._usage: UsageReader | None = None
        self._auto_finish = False  # the answer's end is its own, and not the end of `serve`

    # -- for the routes

    def holds(self, length: int, *, chunked: bool) -> bool:
        """Decide what becomes of the body: whether it is held until it is whole.

        :param length: of the body, in bytes; 0 if it is not told.
        :param chunked: it comes in the chunked transfer coding.
        """
        raise NotImplementedError

    def begin(self, *, has_body: bool, chunked: bool) -> None:
        """Send a request whose body is not held.

        :param has_body: there is one, which is to be streamed.
        """
        raise NotImplementedError

    async def serve_held(self, body: bytes) -> None:
        """Send a request whose body was held, now that it is whole and has its place."""
        raise NotImplementedError

    def max_body(self) -> int:
        """The largest request body, in bytes."""
        raise NotImplementedError

    def max_body_hint(self) -> str:
        """What is said of that limit."""
        raise NotImplementedError

    def on_head(self, head: ResponseHead, first: bytes) -> None:
        """See `Receiver`."""
        raise NotImplementedError

    def on_data(self, chunk: bytes) -> None:
        """See `Receiver`."""
        raise NotImplementedError

    def on_end(self) -> None:
        """See `Receiver`."""
        raise NotImplementedError

    # -- the request

    def prepare(self) -> Coroutine[Any, Any, None]:  # Any: what it yields is the loop's
        # before it is asked who that is: a loop comes with the upstream's key, which need not be
        # a credential here, and nobody else knows this proxy's name in Via
        if has_been_here(self.request.headers, self.gateway.instance):
            raise LoopDetected(
                "This request has been here before: UPSTREAM_BASE_URL leads back to this proxy."
            )
        return super().prepare()

    def admit(self) -> Awaitable[None] | None:
        length = int(self.request.headers.get("Content-Length", "0"))
        if length > self.max_body():
            raise self._too_large()
        chunked = "Transfer-Encoding" in self.request.headers
        if self.holds(length, chunked=chunked):
            self._held = HeldBody(self.gateway.body_budget, self._principal)
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
        """Take a place in flight, which is given back when the request is over.

        :returns: something to await if none is free. The request may be over then.
        :raises Overloaded: it cannot even wait.
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

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        exchange = self.exchange
        exchange.bytes_in += len(chunk)
        if exchange.bytes_in > self.max_body():
            self.fail(self._too_large())
            return None
        if self._held is None:
            return None if self._call is None else self._call.write(chunk)
        try:
            self._held.add(chunk, is_last=self.request.connection.has_come)  # type: ignore[union-attr]  # ours
        except (BodyTooLarge, Overloaded) as error:
            self.fail(error)
        return None

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

    async def is_permitted_to_send(self, body: bytes) -> bool:
        """Ask the plugins, as `is_permitted` does, now that it is known what goes upstream.

        :param body: a messages request's.
        :raises InvalidRequest: nobody could judge it.
        """
        fields = await self.work_on(len(body), read_request, body)
        if fields is None:
            return False
        if self.exchange.requested_model is None:
            self.exchange.requested_model = fields.model
        models = self.gateway.models
        if (fields.max_tokens or 0) > UNTOLD_OUTPUT:
            # most requests ask for less than any model's limit, and need not know it
            await models.known()
            if self.ended:
                return False
        return await self.is_permitted(
            ModelRequest(
                model=fields.model,
                models=fields.models,
                max_tokens=fields.max_tokens,
                stream=bool(fields.stream),
                size=self.exchange.bytes_in,
                input_tokens=fields.input_tokens,
                max_output=models.max_tokens(fields.models) or MAX_OUTPUT,
                price=self.gateway.plugins.price,
            )
        )

    async def work_on(self, size: int, work: Callable[..., T], *arguments: object) -> T | None:
        """Return what `work` returns. It is done in a thread for a body larger than `IN_THREAD`.

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
        :param drop: the names of the client's headers that do not cross this time.
        :param add: headers besides the client's.
        """
        gateway = self.gateway
        base = gateway.settings[UPSTREAM_BASE_URL]
        method = self.request.method or ""
        if gateway.plugins.credential_headers:
            drop |= gateway.plugins.credential_headers
        head = request_head(
            method,
            base.prefix + target,
            self.request.headers,
            authority=base.authority,
            instance=gateway.instance,
            credential=gateway.credential,
            default_version=version or gateway.settings[DEFAULT_ANTHROPIC_VERSION],
            drop=drop,
            add=add,
        )
        self.exchange.upstream_started_at = time.monotonic()
        request = UpstreamRequest(
            origin=gateway.origin, method=method, head=head, body=body, chunked=chunked
        )
        self._call = gateway.upstream.send(request, self)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The request body is larger than {self.max_body()} bytes ({self.max_body_hint()})."
        )

    # -- the answer

    def fields_for_client(self, head: ResponseHead) -> Sequence[tuple[str, str]]:
        """The answer's header fields but for those that a plugin withholds from this client."""
        permits = self.exchange.permits
        if permits is None or not permits.withheld_headers:
            return head.fields
        withheld = permits.withheld_headers
        return [field for field in head.fields if not field[0].lower().startswith(withheld)]

    def credential_is_accepted(self, status: int) -> bool:
        """Return whether the upstream took the proxy's credential; fail the request if not.

        :param status: the response's.
        """
        if status == 401:
            self.on_failure(self.gateway.refuse_credential())
            return False
        if self.gateway.credential_refused and status < 400:
            self.gateway.credential_refused = False
        return True

    def response_began(self) -> None:
        """Take note of it: the request's body will not be needed again."""
        self.exchange.first_byte_at = time.monotonic()
        if self._held is not None:
            self._held.release()
            self._held = None

    def response_ended(self) -> None:
        """The client has been given everything."""
        self.exchange.upstream_ended_at = time.monotonic()
        if not self._finished:
            self.finish()

    def on_failure(self, error: UpstreamError) -> None:
        self.exchange.upstream_ended_at = time.monotonic()
        self.fail(error)

    def pass_on(self, chunk: bytes) -> None:
        """Write and flush; head included if it is the first. Read on when the client took it."""
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

    def forget_heads(self) -> None:
        """A stream may be long, and what its two heads said has been passed on: a fifth of it."""
        if self._events is not None and self._headers_written:
            nothing = HTTPHeaders()
            self._headers = self.request.headers = nothing
            self.exchange.request = replace(self.exchange.request, headers=nothing)

    # -- the end

    def break_off(self, error: ProxyError) -> None:
        if self._call is not None:
            self._call.cancel()
        last_words = b""
        if self._events is not None and not self._finished:
            last_words = self._events.last_words(error)
        if not last_words:
            super().break_off(error)
            return
        self.write(last_words)
        self.cut_when_flushed(error)
        self._events = None  # no second error event

    def cut_when_flushed(self, error: ProxyError) -> None:
        """Cut the answer short once the client has what was written of it."""
        if self._call is not None:
            self._call.cancel()
        if self._events is not None:
            self._events.stop_pings()
        flushed = self.flush()
        if flushed.done():
            super().break_off(error)
        else:
            flushed.add_done_callback(lambda _: super(UpstreamHandler, self).break_off(error))

    def release(self) -> None:
        if self._turn is not None:
            self.gateway.admission.withdraw(self._turn)
        elif self._has_place:
            self.gateway.admission.leave(self._principal)
        if self._uploads:
            self._end_upload()
        if self._events is not None:
            self._events.stop_pings()
            self._events = None
        if self._call is not None:
            self._call.cancel()
        if self._working is not None:
            self._working.cancel()
        if self._held is not None:
            self._held.release()
        if self._usage is not None:
            self._usage.finish()
            self.exchange.model = self._usage.model
            self.exchange.usage = self._usage.usage
            self.exchange.stop_reason = self._usage.stop_reason
            self.exchange.first_token_at = self._usage.first_token_at
