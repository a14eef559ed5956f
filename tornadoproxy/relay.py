"""``/v1/*``: the request goes upstream as it is, and so does the answer to the client.

The request's body. Without one, the request goes upstream as soon as it is admitted. A body up to
`HELD_BODY` bytes is held until it is whole, so that the request goes out in one write and can be
sent again if a kept connection turns out to be dead; all held bodies together take at most
`HELD_BODIES` bytes. Everything else streams: a part is read from the client only when the upstream
has room for it.

The answer. Each read from the upstream is one write to the client, flushed at once. While the
client has not taken it, nothing more is read. An answer that breaks off is never ended cleanly: a
stream gets an error event, and then the connection is cut.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tornado.httputil import HTTPHeaders, HTTPInputError

from tornadoproxy import results_url
from tornadoproxy.connector import Origin
from tornadoproxy.errors import (
    BodyTooLarge,
    ClientTimeout,
    LoopDetected,
    Overloaded,
    ProxyError,
    UpstreamError,
    UpstreamProtocolError,
)
from tornadoproxy.forwarded import client_scheme
from tornadoproxy.handlers import ExchangeHandler
from tornadoproxy.headers import (
    has_been_here,
    is_encoded,
    is_event_stream,
    request_head,
    response_headers,
)
from tornadoproxy.settings import (
    CLIENT_BODY_TIMEOUT,
    DEFAULT_ANTHROPIC_VERSION,
    MAX_BODY_SIZE,
    MAX_CONCURRENT_REQUESTS,
    REWRITE_RESULTS_URL,
    SSE_KEEPALIVE_INTERVAL,
    TRUSTED_PROXIES,
    UPSTREAM_BASE_URL,
)
from tornadoproxy.sse import PING, EventBoundary
from tornadoproxy.upstream import Call, UpstreamRequest
from tornadoproxy.usage import UsageReader

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tornadoproxy.state import Gateway
    from tornadoproxy.upstream_connection import ResponseHead

HELD_BODY = 1024 * 1024
"""The largest request body that is held until it is whole, in bytes."""

HELD_BODIES = 64 * 1024 * 1024
"""The most that all held bodies take together, in bytes."""


class RelayHandler(ExchangeHandler):
    """Relays one exchange. It is the `Receiver` of its own call."""

    def initialize(self, gateway: Gateway) -> None:
        super().initialize(gateway)
        self._loop = asyncio.get_running_loop()
        self._call: Call | None = None
        self._held: list[bytes] | None = None
        self._promised = 0
        self._body_timer: asyncio.TimerHandle | None = None
        self._body_deadline = 0.0
        self._usage: UsageReader | None = None
        self._boundary: EventBoundary | None = None
        self._ping_timer: asyncio.TimerHandle | None = None
        self._last_write = 0.0
        self._rewriting: list[bytes] | None = None
        self._over: asyncio.Future[None] = self._loop.create_future()

    # -- the request

    async def prepare(self) -> None:
        # before it is asked who that is: a loop comes with the upstream's key, which need not be
        # a credential here, and nobody else knows this proxy's name in Via
        if has_been_here(self.request.headers, self.gateway.instance):
            raise LoopDetected(
                "This request has been here before: UPSTREAM_BASE_URL leads back to this proxy."
            )
        await super().prepare()

    def admit(self) -> None:
        headers = self.request.headers
        settings = self.gateway.settings
        if len(self.gateway.in_flight) > settings[MAX_CONCURRENT_REQUESTS]:
            raise Overloaded("Too many requests are in flight. Try again shortly.", retry_after=1)
        length = int(headers.get("Content-Length", "0"))
        if length > settings[MAX_BODY_SIZE]:
            raise self._too_large()
        chunked = "Transfer-Encoding" in headers
        if not chunked and length == 0:
            self._call = self._send(b"")
            return
        if not chunked and length <= HELD_BODY and self._hold(length):
            self._held = []
        else:
            self._call = self._send(None)
        self._await_body()

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        self._body_deadline = self._loop.time() + self.gateway.settings[CLIENT_BODY_TIMEOUT]
        exchange = self.exchange
        exchange.bytes_in += len(chunk)
        if exchange.bytes_in > self.gateway.settings[MAX_BODY_SIZE]:
            self.fail(self._too_large())
            return None
        if self._held is not None:
            self._held.append(chunk)
            return None
        return None if self._call is None else self._call.write(chunk)

    async def serve(self) -> None:
        self._stop_awaiting_body()
        if self._held is not None:
            body = b"".join(self._held)
            self._held = None
            self._call = self._send(body)
        elif self._call is not None:
            await self._call.end_body()
        await self._over

    def _send(self, body: bytes | None) -> Call:
        settings = self.gateway.settings
        base = settings[UPSTREAM_BASE_URL]
        headers = self.request.headers
        if settings[REWRITE_RESULTS_URL] and self.request.path.startswith(results_url.PATH_PREFIX):
            self._rewriting = []
            headers = HTTPHeaders(headers)
            headers["Accept-Encoding"] = "identity"
        head = request_head(
            self.request.method or "",
            base.prefix + (self.request.uri or ""),
            headers,
            authority=base.authority,
            instance=self.gateway.instance,
            credential=self.gateway.credential,
            default_version=settings[DEFAULT_ANTHROPIC_VERSION],
        )
        self.exchange.upstream_started_at = time.monotonic()
        request = UpstreamRequest(
            origin=Origin(base.scheme, base.host, base.port),
            method=self.request.method or "",
            head=head,
            body=body,
            chunked="Transfer-Encoding" in headers,
        )
        return self.gateway.upstream.send(request, self)

    def _hold(self, length: int) -> bool:
        if self.gateway.held_bytes + length > HELD_BODIES:
            return False
        self.gateway.held_bytes += length
        self._promised = length
        return True

    def _give_room_back(self) -> None:
        self.gateway.held_bytes -= self._promised
        self._promised = 0

    def _too_large(self) -> BodyTooLarge:
        limit = self.gateway.settings[MAX_BODY_SIZE]
        return BodyTooLarge(f"The request body is larger than {limit} bytes (MAX_BODY_SIZE).")

    def _await_body(self) -> None:
        timeout = self.gateway.settings[CLIENT_BODY_TIMEOUT]
        self._body_deadline = self._loop.time() + timeout
        self._body_timer = self._loop.call_at(self._body_deadline, self._check_body_deadline)

    def _stop_awaiting_body(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _check_body_deadline(self) -> None:
        now = self._loop.time()
        if self._call is not None and self._call.is_full:  # it is the upstream that we wait for
            self._body_deadline = now + self.gateway.settings[CLIENT_BODY_TIMEOUT]
        if now >= self._body_deadline:
            self.fail(ClientTimeout("The request body did not arrive in time."))
            return
        self._body_timer = self._loop.call_at(self._body_deadline, self._check_body_deadline)

    # -- the answer, as the upstream's `Receiver`

    def on_head(self, head: ResponseHead, first: bytes) -> None:
        self.exchange.first_byte_at = time.monotonic()
        self._give_room_back()
        try:
            headers = response_headers(head.status, head.fields)
        except HTTPInputError:
            assert self._call is not None
            self._call.cancel()
            self.on_failure(UpstreamProtocolError("The upstream's answer has a broken header."))
            return
        self._headers = headers
        self.set_status(head.status, head.reason)
        if not head.reason:
            self._reason = ""
        self.exchange.request_id = headers.get("Request-Id", self.request_id)
        if self.request.method == "POST" and self.request.path == "/v1/messages":
            self._usage = UsageReader.for_answer(headers)
        if is_event_stream(headers) and not is_encoded(headers):
            self._follow_events()
        if self._rewriting is not None and not _is_json(headers):
            self._rewriting = None
        if self._rewriting is None:
            self._relay(first)
        else:
            self._rewriting.append(first)

    def on_data(self, chunk: bytes) -> None:
        if self._rewriting is None:
            self._relay(chunk)
        else:
            self._rewriting.append(chunk)

    def on_end(self) -> None:
        self.exchange.upstream_ended_at = time.monotonic()
        if self._rewriting is not None:
            self._relay_rewritten(b"".join(self._rewriting))
        if not self._finished:
            self.finish()

    def on_failure(self, error: UpstreamError) -> None:
        self.exchange.upstream_ended_at = time.monotonic()
        self.fail(error)

    def _relay(self, chunk: bytes) -> None:
        """Write and flush; head included if it is the first. Read on when the client took it."""
        if chunk:
            if self._usage is not None:
                self._usage.feed(chunk)
            if self._boundary is not None:
                self._boundary.feed(chunk)
                self._last_write = self._loop.time()
            self.write(chunk)
        flushed = self.flush()
        if not flushed.done() and self._call is not None:
            self._call.pause()
            flushed.add_done_callback(self._read_on)

    def _read_on(self, flushed: asyncio.Future[None]) -> None:
        if self._call is not None:
            self._call.resume()

    def _relay_rewritten(self, body: bytes) -> None:
        scheme = client_scheme(
            self.request.protocol,
            self.request.remote_ip or "",
            self.request.headers,
            self.gateway.settings[TRUSTED_PROXIES],
        )
        body = results_url.rewrite(body, f"{scheme}://{self.request.host}")
        if "Content-Length" in self._headers and self.request.method != "HEAD":
            self._headers["Content-Length"] = str(len(body))
        self._relay(body)

    # -- event streams

    def _follow_events(self) -> None:
        self._boundary = EventBoundary()
        interval = self.gateway.settings[SSE_KEEPALIVE_INTERVAL]
        if interval and "Content-Length" not in self._headers:
            self._last_write = self._loop.time()
            self._ping_timer = self._loop.call_later(interval, self._ping)

    def _ping(self) -> None:
        """Keep a quiet stream alive. A dead upstream still runs into its idle deadline."""
        assert self._boundary is not None
        interval = self.gateway.settings[SSE_KEEPALIVE_INTERVAL]
        quiet_since = self._loop.time() - self._last_write
        if quiet_since >= interval and self._boundary.between_events:
            self._last_write = self._loop.time()
            self.write(PING)
            self.flush()
            quiet_since = 0.0
        delay = interval - quiet_since if quiet_since < interval else interval
        self._ping_timer = self._loop.call_later(delay, self._ping)

    # -- the end

    def break_off(self, error: ProxyError) -> None:
        if self._call is not None:
            self._call.cancel()
        if self._boundary is None or self._finished:
            super().break_off(error)
            return
        last_words = self._boundary.discard() + self.dialect.stream_error(error, self.request_id)
        length = self._headers.get("Content-Length")
        if length is not None and self.exchange.bytes_out + len(last_words) > int(length):
            super().break_off(error)
            return
        self.write(last_words)
        self._boundary = None
        flushed = self.flush()
        if flushed.done():
            super().break_off(error)
        else:
            flushed.add_done_callback(lambda _: super(RelayHandler, self).break_off(error))

    def release(self) -> None:
        self._stop_awaiting_body()
        if self._ping_timer is not None:
            self._ping_timer.cancel()
            self._ping_timer = None
        if self._call is not None:
            self._call.cancel()
        self._held = None
        self._give_room_back()
        if self._usage is not None:
            self._usage.finish()
            self.exchange.model = self._usage.model
            self.exchange.usage = self._usage.usage
        if not self._over.done():
            self._over.set_result(None)


def _is_json(headers: HTTPHeaders) -> bool:
    return headers.get("Content-Type", "").lower().startswith("application/json")
