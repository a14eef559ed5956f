"""One HTTP/1.1 connection from a client: bytes in, requests to the handlers, answers out.

The theory. A connection carries one request at a time::

    idle ──bytes──▶ head ──▶ body ──▶ answered? ──yes──▶ idle, or closing
                              └─answered early: the rest of the body is read and dropped

Bytes are taken from what has come (`_pending`) as far as they can be used now. While they cannot
(the handler is not ready, or waits for the upstream, or the answer to the request before is not
out) they stay there, up to `MAX_PENDING`; beyond that nothing is read. A client that hangs up is
noticed at once all the same: while reading, by the end of file, and otherwise by the listener's
`HangupWatch`.

What is refused before there is a handler gets an error in the dialect's shape. A connection that
ends after an answer is closed only when the client has had its time to read it: to close with
something unread would reset it (RFC 9112 §9.6).

A client that is not authenticated takes nothing from others: what waits of it, such as a head that
is not whole, is charged to the unauthenticated clients' part of
`tornadoproxy.handlers.body_budget`, and the listener may close the connection to make room for
another. No client has a request begun before it has taken the response to the one before: responses
that nobody reads would pile up.

There is one timer for each connection. It is moved, not made anew, for each request. A body has two
deadlines: for the silence within it, and for the whole, by a least rate, since a client that sends
a byte now and then is never silent for long.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from contextlib import suppress
from http.client import responses
from typing import TYPE_CHECKING, Protocol, cast

from tornado.httputil import (
    RequestStartLine,
)
from tornado.iostream import StreamClosedError

from tornadoproxy.errors import ClientError, ClientTimeout, InvalidRequest
from tornadoproxy.handlers.body_budget import Holding
from tornadoproxy.protocol.dialects import Dialect
from tornadoproxy.protocol.request_framing import (
    MalformedChunk,
    MalformedRequest,
    blank_lines,
    end_of_head,
    head_too_large,
    parse_head,
)
from tornadoproxy.server.request_connection import (
    Peer,
    RequestConnection,
    date,
    response_head,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from tornado.httputil import (
        HTTPServerConnectionDelegate,
    )

    from tornadoproxy.handlers.body_budget import BodyBudget
    from tornadoproxy.server.hangup import HangupWatch

logger = logging.getLogger(__name__)

_CR = 13
_TLS_HANDSHAKE = 22  # the first byte of a client's hello (RFC 8446 §5.1)

LINGER = 30.0
"""How long the rest of a request is read after its answer, in seconds."""

MAX_PENDING = 64 * 1024
"""With so many bytes waiting to be used, no more are read."""


class Host(Protocol):
    """Whom the connections belong to: the listener."""

    app: HTTPServerConnectionDelegate
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
        """No connection takes another request."""

    def opened(self, connection: ClientConnection) -> None:
        """It is there, and waits for a request."""

    def became_busy(self, connection: ClientConnection) -> None:
        """A request has come."""

    def became_known(self, connection: ClientConnection) -> None:
        """It is known who sent the request."""

    def became_idle(self, connection: ClientConnection) -> None:
        """The answer to its last request is out, be that whole or not."""

    def closed(self, connection: ClientConnection) -> None:
        """It is no more."""

    def refused_tls(self, peer: Peer) -> None:
        """A client has begun with TLS where none is spoken, and is cut off."""


class ClientConnection(asyncio.Protocol):
    """A client's connection. See the module's docstring."""

    __slots__ = (
        "_body_began",
        "_body_size",
        "_deadline",
        "_flushed",
        "_holding",
        "_host",
        "_is_closing",
        "_is_half_closed",
        "_is_paused",
        "_is_waiting",
        "_is_yielding",
        "_loop",
        "_peer",
        "_pending",
        "_request",
        "_searched",
        "_timer",
        "_transport",
        "_waiting_since",
    )

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._transport = cast("asyncio.Transport", None)  # until made
        self._peer = Peer("", "http")
        self._pending = b""
        self._searched = 0  # so much of it is known to hold no end of a head
        self._request: RequestConnection | None = None
        self._holding: Holding | None = None  # of what waits, while it is charged
        self._body_began = 0.0
        self._body_size = 0
        self._is_waiting = False  # for the handler, to be done with a part of the body
        self._waiting_since = 0.0
        self._is_yielding = False  # to other connections, before the next request
        self._is_paused = False
        self._is_half_closed = False  # by the client, which still waits for its response
        self._is_closing = False  # nothing is sent any more, and what comes is dropped
        self._flushed = self._loop.create_future()
        self._flushed.set_result(None)
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    # -- for the listener

    @property
    def is_busy(self) -> bool:
        """Whether a request is being served, or its answer is still on its way out."""
        request = self._request
        return (request is not None and not request.answered) or not self._flushed.done()

    def close_if_unused(self) -> None:
        """Close, unless something of a request has come."""
        if self._request is None and not self.is_busy and not self._pending:
            self.abort()

    def abort(self, *, reset: bool = False) -> None:
        """Close at once.

        :param reset: so that the client cannot take it for the end of its answer.
        """
        if reset and not self._transport.is_closing():
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._is_closing = True
        self._pending = b""  # or it would be charged again until the connection is lost
        self._transport.abort()

    # -- for the request that is being served

    @property
    def is_draining(self) -> bool:
        """Whether it takes no other request."""
        return self._host.is_draining

    def send(self, data: bytes) -> asyncio.Future[None]:
        """Send; done when the system has taken everything."""
        if data and not self._is_closing:
            self._transport.write(data)
        return self._flushed

    def authenticating(self) -> None:
        """See `RequestConnection.authenticating`."""
        self._charge()

    def authenticated(self) -> None:
        """See `RequestConnection.authenticated`."""
        self._host.became_known(self)
        if self._holding is not None:
            self._charge_no_more()

    def response_ended(self, request: RequestConnection) -> None:
        """The answer has been sent; what still comes of the request is dropped."""
        if self._holding is not None:
            self._charge_no_more()
        if self._is_closing:
            return
        if not request.is_whole:
            # the handler waits for it; not now, since it is in the middle of finishing
            self._loop.call_soon(request.delegate.on_connection_close)
        if not request.may_continue:
            self._close_when_read()
        elif request.is_whole:
            self._await_request()
        else:
            self._set_deadline(LINGER)
            if self._flushed.done():
                self._host.became_idle(self)

    # -- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        address = transport.get_extra_info("peername")
        secure = transport.get_extra_info("sslcontext") is not None
        # `_flushed` is to mean all of it. At 0, asyncio's TLS pauses with nothing to write.
        self._transport.set_write_buffer_limits(high=1 if secure else 0, low=0)
        remote_ip = address[0] if isinstance(address, tuple) else self._host.unnamed_peer
        self._peer = Peer(remote_ip, "https" if secure else "http")
        self._host.opened(self)
        self._set_deadline(self._host.idle_timeout)

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        self._pending = self._pending + data if self._pending else data
        self._use_pending()

    def eof_received(self) -> bool:
        """A client that sends no more has left, unless its request is answered at once.

        :return: whether the connection stays open for that response.
        """
        request = self._request
        if (
            request is not None
            and request.is_answered_at_once
            and not request.answered
            and self._transport.can_write_eof()  # TLS ends in both directions at once
        ):
            self._is_half_closed = request.must_close = True
            return True
        if self.is_busy:
            self.abort()
        return False

    def pause_writing(self) -> None:
        self._flushed = self._loop.create_future()

    def resume_writing(self) -> None:
        self._flushed.set_result(None)
        if self._is_closing:
            self._set_deadline(LINGER)
        elif self._request is None:
            self._await_head()
            return
        if not self.is_busy:
            self._host.became_idle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        self._pending = b""
        if self._holding is not None:
            self._charge_no_more()
        if self._timer is not None:
            self._timer.cancel()
        if self._is_paused:
            self._host.hangups.remove(self._fd(), self._hung_up)
        if not self._flushed.done():
            self._flushed.set_exception(StreamClosedError(exc))
            self._flushed.exception()  # whoever awaits it is told; nobody has to
        request, self._request = self._request, None
        self._host.closed(self)
        if request is not None:
            request.connection_lost()

    # -- within

    def _use_pending(self) -> None:
        """Take what has come as far as it can be used now."""
        while self._pending and not (self._is_closing or self._is_yielding):
            request = self._request
            if request is None:
                if not (self._flushed.done() and self._take_head()):
                    break
            elif request.is_whole or not self._take_body(request):
                break
        self._set_reading(len(self._pending) < MAX_PENDING)
        if self._holding is not None or (self._request is None and self._pending):
            self._charge()

    def _charge(self) -> None:
        """Charge what waits, now and from now on."""
        if self._holding is None:
            self._holding = Holding(self._host.body_budget, None, self.abort)
        self._holding.resize(len(self._pending))

    def _charge_no_more(self) -> None:
        assert self._holding is not None
        self._holding.resize(0)
        self._holding = None

    def _take_head(self) -> bool:
        """Begin with the request whose head has come; whether there is one."""
        data = self._pending
        if data[0] == _CR:
            data = self._pending = data[blank_lines(data) :]
        elif data[0] == _TLS_HANDSHAKE and self._peer.protocol == "http":
            self._host.refused_tls(self._peer)
            self.abort()
            return False
        end = end_of_head(data, self._searched)
        if (end or len(data)) > self._host.max_head:
            self._refuse(head_too_large(data, self._host.max_head))
            return False
        if not end:
            if data and not self._searched:
                self._set_deadline(self._host.idle_timeout)
            self._searched = len(data)
            return False
        self._searched = 0
        if self._holding is not None:
            self._charge_no_more()
        self._pending = data[end:]
        try:
            head = parse_head(data[:end])
        except MalformedRequest as error:
            self._refuse(error)
            return False
        self._deadline = None
        self._host.became_busy(self)
        request = self._request = RequestConnection(self, head, self._peer)
        request.delegate = self._host.app.start_request(self, request)
        start_line = RequestStartLine(head.method, head.target, head.version)
        prepared = request.delegate.headers_received(start_line, head.headers)
        assert isinstance(prepared, asyncio.Future), "handlers take bodies as they come"
        if prepared.done():
            self._begin_body(request)
        else:
            prepared.add_done_callback(lambda _: self._begin_body_later(request))
        return True

    def _begin_body_later(self, request: RequestConnection) -> None:
        if not self._is_closing:
            self._begin_body(request)
            self._use_pending()

    def _begin_body(self, request: RequestConnection) -> None:
        """The handler takes the body now, or has answered without."""
        request.is_ready = True
        if request.has_come:
            self._end_body(request)
        elif not request.answered:
            if request.expects_continue and not request.response_began:
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._body_began = self._loop.time()
            self._body_size = 0
            if not self._pending:
                self._await_body()

    def _take_body(self, request: RequestConnection) -> bool:
        """Give the handler what has come of the body; whether it takes more."""
        if not request.is_ready or self._is_waiting:
            return False
        try:
            piece, self._pending = request.take(self._pending)
        except MalformedChunk:
            self._give_up(request, InvalidRequest("A chunk of the request's body is malformed."))
            return False
        if self._holding is not None:
            self._charge()  # the piece is the handler's to charge now
        if piece and not request.answered:
            self._body_size += len(piece)
            busy = request.delegate.data_received(piece)
            if busy is not None:
                self._wait(request, busy)
                return False
        if request.has_come:
            self._end_body(request)
        elif not request.answered:
            self._await_body()
        return True

    def _wait(self, request: RequestConnection, busy: Awaitable[None]) -> None:
        self._is_waiting = True
        self._waiting_since = self._loop.time()
        self._deadline = None  # it is not the client that is waited for
        asyncio.ensure_future(busy).add_done_callback(lambda _: self._go_on(request))

    def _go_on(self, request: RequestConnection) -> None:
        self._is_waiting = False
        if self._is_closing:
            return
        if request.has_come:
            self._end_body(request)
        elif not request.answered:
            self._body_began += self._loop.time() - self._waiting_since
            self._await_body()
        self._use_pending()

    def _await_body(self) -> None:
        """Set the deadline for more of the body."""
        patience, rate = self._host.body_timeout, self._host.min_body_rate
        if rate:
            # the first seconds are free, so that a body may begin with a silence
            due = self._body_began + patience + self._body_size / rate
            patience = min(patience, due - self._loop.time())
        self._set_deadline(patience)

    def _end_body(self, request: RequestConnection) -> None:
        request.is_whole = True
        if request.answered:
            self._await_request()
        else:
            self._deadline = None
            request.delegate.finish()

    def _give_up(self, request: RequestConnection, error: ClientError) -> None:
        """The rest of a request cannot be read: it ends here, and so does the connection."""
        request.must_close = True
        if request.answered:
            self._close_when_read()
        elif request.on_fault is not None:
            request.on_fault(error)
        else:
            self._refuse(MalformedRequest(error.message, request.target, error.status))

    def _await_request(self) -> None:
        if self._host.is_draining:
            self._close_when_read()
            return
        assert self._request is not None
        self._request.release()
        self._request = None
        self._await_head()

    def _await_head(self) -> None:
        self._set_deadline(self._host.idle_timeout)
        if self._pending:
            self._charge()
        if not self._flushed.done():
            return  # `resume_writing` comes back here
        self._host.became_idle(self)
        if self._pending:
            # requests that have come already must not starve other connections
            self._is_yielding = True
            self._loop.call_soon(self._take_next)

    def _take_next(self) -> None:
        self._is_yielding = False
        self._use_pending()

    def _refuse(self, malformed: MalformedRequest) -> None:
        logger.info("refused a malformed request from %s: %s", self._peer.remote_ip, malformed)
        dialect = Dialect.of_path(malformed.path)
        error = InvalidRequest(str(malformed), status=malformed.status)
        request_id = next(self._host.request_ids)
        body = dialect.error_body(error, request_id)
        fields = [
            *dialect.error_headers(error, request_id).items(),
            date(),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        self.send(response_head(error.status, responses[error.status], fields) + body)
        self._close_when_read()

    def _close_when_read(self) -> None:
        """Send no more, and close when the client has done so, or after `LINGER` seconds."""
        self._is_closing = True
        self._pending = b""
        self._set_reading(True)
        self._set_deadline(LINGER)
        if self._transport.can_write_eof() and not self._is_half_closed:
            with suppress(OSError):  # a reset, which `connection_lost` is about to tell of
                self._transport.write_eof()
        else:  # TLS has an end of its own, and is closed behind what waits to be sent
            self._transport.close()
        if not self.is_busy:
            self._host.became_idle(self)

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

    def _set_deadline(self, seconds: float) -> None:
        deadline = self._deadline = self._loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)
            return
        self._deadline = None
        request = self._request
        if self._is_closing or request is None or request.answered:
            if self._flushed.done():
                self.abort()
        else:
            self._give_up(request, ClientTimeout("The request body did not arrive in time."))
