"""A response that is a stream of server-sent events, and what the proxy adds between two of them.

Pings keep a quiet stream alive. A stream that fails ends with an error event. Neither is added
where a ``Content-Length`` leaves no room for it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tornadoproxy.config.core_settings import SSE_KEEPALIVE_INTERVAL
from tornadoproxy.protocol.sse import EventBoundary

if TYPE_CHECKING:
    from tornado.httputil import HTTPHeaders

    from tornadoproxy.errors import ProxyError
    from tornadoproxy.handlers.exchange_handler import ExchangeHandler


class EventStream:
    """The events of one response, as they are sent. Pings begin at once.

    :param handler: writes the response. It drops the stream when the request ends: a reference
        cycle would keep both until the next garbage collection.
    :param headers: of the response.
    :ivar has_failed: whether an error event has been sent.
    """

    # bound methods of the handler in place of itself would take 64 bytes each per open stream
    __slots__ = ("_boundary", "_handler", "_last_write", "_length", "_ping_timer", "has_failed")

    def __init__(self, handler: ExchangeHandler, headers: HTTPHeaders) -> None:
        self.has_failed = False
        self._handler = handler
        self._boundary = EventBoundary()
        self._length = int(headers["Content-Length"]) if "Content-Length" in headers else None
        self._ping_timer: asyncio.TimerHandle | None = None
        interval = handler.gateway.settings[SSE_KEEPALIVE_INTERVAL]
        if interval and self._length is None:
            self._last_write = time.monotonic()
            self._ping_in(interval)

    @property
    def between_events(self) -> bool:
        """Whether the last event that was sent is complete."""
        return self._boundary.between_events

    def feed(self, chunk: bytes) -> None:
        """Take note of what is sent."""
        self._boundary.feed(chunk)
        if self._ping_timer is not None:
            self._last_write = time.monotonic()

    def fail(self, error: ProxyError) -> asyncio.Future[None] | None:
        """End the stream with an error event, unless it has one.

        :returns: completed when the client has the event; ``None`` if there is no room for one.
        """
        self.stop_pings()
        handler = self._handler
        if not self.has_failed:
            ending = self._boundary.discard() + handler.error_event(error)
            if self._length is not None and handler.exchange.bytes_out + len(ending) > self._length:
                return None
            self.has_failed = True
            handler.write(ending)
        return handler.flush()

    def stop_pings(self) -> None:
        """Add no more pings; harmless the second time."""
        if self._ping_timer is not None:
            self._ping_timer.cancel()
            self._ping_timer = None

    def _ping_in(self, delay: float) -> None:
        self._ping_timer = asyncio.get_running_loop().call_later(delay, self._ping)

    def _ping(self) -> None:
        """Send a ping if nothing else was sent. The upstream's idle deadline still holds."""
        handler = self._handler
        interval = handler.gateway.settings[SSE_KEEPALIVE_INTERVAL]
        quiet_since = time.monotonic() - self._last_write
        if quiet_since >= interval and self._boundary.between_events:
            self._last_write = time.monotonic()
            if ping := handler.ping():
                handler.write(ping)
                handler.flush()
            quiet_since = 0.0
        self._ping_in(interval - quiet_since if quiet_since < interval else interval)
