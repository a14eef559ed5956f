"""A response that is a stream of events, to which more can be added between two of them.

Pings keep a quiet stream alive. A stream that breaks off ends with an error event. Neither fits
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
    from tornadoproxy.handlers.base import ExchangeHandler


class EventStream:
    """The events of one response, as they go out. Pings begin at once.

    :param handler: writes the response. It drops the stream when the request ends: a reference
        circle would keep both until the next garbage collection.
    :param headers: the response's.
    """

    # bound methods of the handler instead of itself would take 64 bytes each for each open stream
    __slots__ = ("_boundary", "_handler", "_last_write", "_length", "_ping_timer")

    def __init__(self, handler: ExchangeHandler, headers: HTTPHeaders) -> None:
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
        """Whether the last event that went out is whole."""
        return self._boundary.between_events

    def feed(self, chunk: bytes) -> None:
        """Take note of what goes out."""
        self._boundary.feed(chunk)
        if self._ping_timer is not None:
            self._last_write = time.monotonic()

    def last_words(self, error: ProxyError) -> bytes:
        """Return what ends the stream with `error`; nothing if there is no room for it."""
        handler = self._handler
        event = handler.dialect.stream_error(error, handler.request_id)
        last_words = self._boundary.discard() + event
        if self._length is not None and handler.exchange.bytes_out + len(last_words) > self._length:
            return b""
        return last_words

    def stop_pings(self) -> None:
        """Add no more pings; harmless the second time."""
        if self._ping_timer is not None:
            self._ping_timer.cancel()
            self._ping_timer = None

    def _ping_in(self, delay: float) -> None:
        self._ping_timer = asyncio.get_running_loop().call_later(delay, self._ping)

    def _ping(self) -> None:
        """Keep a quiet stream alive. A dead upstream still runs into its idle deadline."""
        handler = self._handler
        interval = handler.gateway.settings[SSE_KEEPALIVE_INTERVAL]
        quiet_since = time.monotonic() - self._last_write
        if quiet_since >= interval and self._boundary.between_events:
            self._last_write = time.monotonic()
            handler.write(handler.dialect.ping)
            handler.flush()
            quiet_since = 0.0
        self._ping_in(interval - quiet_since if quiet_since < interval else interval)
