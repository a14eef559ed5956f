"""The bytes of one client connection: reading, writing, its deadline, and the memory they take.

What the bytes mean is in `tornadoproxy.server.client_connection`.

There is one timer per connection. It is moved, not created anew, for each request.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, cast

from tornadoproxy.handlers.body_budget import Holding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornadoproxy.handlers.body_budget import BodyBudget
    from tornadoproxy.server.app import GatewayApplication
    from tornadoproxy.server.hangup import HangupWatch
    from tornadoproxy.server.request_connection import Peer

LINGER = 30.0
"""How long the rest of a request is read after its response, in seconds."""

MAX_PENDING = 64 * 1024
"""With so many bytes waiting to be used, no more are read."""


State: TypeAlias = Literal[
    "idle",  # it waits for a request's head; a part of it may have arrived
    "yielding",  # the next request has arrived already, but other connections take their turn first
    "preparing",  # the handler decides whether it takes the body
    "body",  # the body is read: for the handler, or to be dropped if the response has been sent
    "blocked",  # the handler is busy with a part of the body
    "serving",  # the handler has the whole body, and responds
    "closing",  # nothing is sent any more, and whatever arrives is dropped
]
"""What a connection is doing. Not an enum: on Python 3.11 each look at a member takes long."""


class Host(Protocol):
    """What a connection needs of the listener that accepted it."""

    app: GatewayApplication
    idle_timeout: float
    body_timeout: float
    min_body_rate: int
    body_budget: BodyBudget
    max_head: int
    request_ids: Iterator[str]
    hangups: HangupWatch
    unnamed_peer: str
    """The address of a client whose connection has none."""

    @property
    def is_draining(self) -> bool:
        """Whether no connection takes another request."""

    def opened(self, connection: ClientTransport) -> None:
        """Note that the connection is open, and waits for a request."""

    def became_busy(self, connection: ClientTransport) -> None:
        """Note that a request has arrived."""

    def became_known(self, connection: ClientTransport) -> None:
        """Note that the request is authenticated."""

    def became_idle(self, connection: ClientTransport) -> None:
        """Note that the response to the last request has been sent, whole or not."""

    def closed(self, connection: ClientTransport) -> None:
        """Note that the connection is closed."""

    def refused_tls(self, peer: Peer) -> None:
        """Note that a client spoke TLS to a port without it, and was disconnected."""


class ClientTransport(asyncio.Protocol):
    """The I/O of one client connection."""

    __slots__ = (
        "_deadline",
        "_flushed",
        "_holding",
        "_host",
        "_is_half_closed",
        "_is_paused",
        "_loop",
        "_pending",
        "_state",
        "_timer",
        "_transport",
    )

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._transport = cast("asyncio.Transport", None)  # until made
        self._state: State = "idle"
        self._pending = b""
        self._holding: Holding | None = None  # of pending bytes, while they are charged
        self._is_paused = False
        self._is_half_closed = False  # by the client, which still waits for its response
        self._flushed = self._loop.create_future()
        self._flushed.set_result(None)
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a request is being served, or its response is still being sent."""
        raise NotImplementedError

    def close_if_unused(self) -> None:
        """Close, unless a part of a request has arrived."""
        raise NotImplementedError

    def deadline_passed(self) -> None:
        """Act on the deadline."""
        raise NotImplementedError

    def send(self, data: bytes) -> asyncio.Future[None]:
        """Send `data`.

        :returns: completed when the system has taken everything.
        """
        if data and self._state != "closing":
            self._transport.write(data)
        return self._flushed

    def abort(self, *, reset: bool = False) -> None:
        """Close at once.

        :param reset: so that the client cannot take it for the end of its response.
        """
        if reset and not self._transport.is_closing():
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._state = "closing"
        self._pending = b""  # or it would be charged again until the connection is lost
        self._transport.abort()

    def _close_when_read(self) -> None:
        """Send no more, and close when the client has closed, or after `LINGER` seconds.

        To close with unread bytes would reset the connection (RFC 9112 §9.6), and could take the
        response away from the client.
        """
        self._state = "closing"
        self._pending = b""
        self._set_reading(True)
        self._linger()
        if self._transport.can_write_eof() and not self._is_half_closed:
            with suppress(OSError):  # a reset, which `connection_lost` is about to report
                self._transport.write_eof()
        else:  # TLS ends in both directions at once, after what has been written
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # `_flushed` is to mean all of it. At 0, asyncio's TLS pauses with nothing to write.
        secure = transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=1 if secure else 0, low=0)

    def pause_writing(self) -> None:
        self._flushed = self._loop.create_future()

    def resume_writing(self) -> None:
        self._flushed.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = "closing"
        self._pending = b""
        self._release_charge()
        if self._timer is not None:
            self._timer.cancel()
        if self._is_paused:
            self._host.hangups.remove(self._fd(), self._hung_up)
        if not self._flushed.done():
            from tornado.iostream import StreamClosedError  # a start does without it

            self._flushed.set_exception(StreamClosedError(exc))
            self._flushed.exception()  # retrieved here: it need not be awaited

    # -- the memory of pending bytes

    def _charge(self) -> None:
        """Charge pending bytes to the unauthenticated clients, now and from now on."""
        if self._holding is None:
            self._holding = Holding(self._host.body_budget, None, self.abort)
        self._holding.resize(len(self._pending))

    def _release_charge(self) -> None:
        if self._holding is not None:
            self._holding.resize(0)
            self._holding = None

    # -- reading

    def _set_reading(self, on: bool) -> None:
        if on is not self._is_paused or self._transport.is_closing():
            return
        self._is_paused = not on
        if on:
            self._host.hangups.remove(self._fd(), self._hung_up)
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
            self._host.hangups.add(self._fd(), self._hung_up)

    def _hung_up(self) -> None:
        self.abort()

    def _fd(self) -> int:
        return cast("int", self._transport.get_extra_info("socket").fileno())

    # -- the deadline

    def _set_deadline(self, seconds: float) -> None:
        deadline = self._deadline = self._loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._check_deadline)

    def _linger(self) -> None:
        """Set the deadline for the rest of a request whose response has ended."""
        self._set_deadline(LINGER)

    def _check_deadline(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)
            return
        self._deadline = None
        self.deadline_passed()
