"""One HTTP/1.1 connection from a client: bytes in, requests to the handlers, responses out.

The theory. A connection carries one request at a time, and is in one `State`::

    idle ──head──▶ preparing ──▶ body ⇄ blocked ──▶ serving ──response──▶ yielding ──▶ idle
                                                                 │
                       any of them ─────────────────────────────▶ closing

A response may end before the body does. Then the rest of the body is read and dropped.

Bytes that have arrived are pending until they can be used: the handler may not be ready, or wait
for the upstream, or the previous response may not have been sent. Beyond `MAX_PENDING` nothing is
read. A client that disconnects is noticed at once all the same: while reading, by the end of file,
otherwise by the listener's `HangupWatch`.

A request that is refused before it has a handler gets an error in the dialect's shape.

A client that is not authenticated takes nothing from others: its pending bytes, such as an
incomplete head, are charged to the unauthenticated clients' part of
`tornadoproxy.handlers.body_budget`, and the listener may close the connection to make room for
another. A client's next request begins only when the client has taken the previous response:
otherwise unread responses would pile up.

A body has two deadlines: one for silence, and one for the whole, by a minimum rate, since a client
that sends a byte now and then is never silent for long.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tornado.httputil import RequestStartLine

from tornadoproxy.errors import ClientError, ClientTimeout, InvalidRequest
from tornadoproxy.protocol.request_framing import (
    MalformedChunk,
    MalformedRequest,
    blank_lines,
    end_of_head,
    head_too_large,
    parse_head,
)
from tornadoproxy.server.client_transport import MAX_PENDING, ClientTransport, Host
from tornadoproxy.server.request_connection import Peer, RequestConnection, refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable

logger = logging.getLogger(__name__)

_CR = 13
_TLS_HANDSHAKE = 22  # the first byte of a client's hello (RFC 8446 §5.1)


class ClientConnection(ClientTransport):
    """A client's connection. See the module's docstring."""

    __slots__ = (
        "_blocked_since",
        "_body_began",
        "_body_size",
        "_peer",
        "_request",
        "_searched",
    )

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._peer = Peer("", "http")
        self._searched = 0  # so many pending bytes are known to hold no end of a head
        self._request: RequestConnection | None = None
        self._body_began = 0.0
        self._body_size = 0
        self._blocked_since = 0.0

    # -- for the listener

    @property
    def is_busy(self) -> bool:
        """Whether a request is being served, or its response is still being sent."""
        request = self._request
        return (request is not None and not request.response_ended) or not self._flushed.done()

    def close_if_unused(self) -> None:
        """Close, unless a part of a request has arrived."""
        if self._request is None and not self.is_busy and not self._pending:
            self.abort()

    # -- for the request that is being served

    @property
    def is_draining(self) -> bool:
        """Whether the connection takes no other request."""
        return self._host.is_draining

    def has_pending(self, size: int) -> bool:
        """See `RequestConnection.has_arrived`."""
        return len(self._pending) >= size

    def authenticating(self) -> None:
        """See `RequestConnection.authenticating`."""
        self._charge()

    def authenticated(self) -> None:
        """See `RequestConnection.authenticated`."""
        self._host.became_known(self)
        self._release_charge()

    def response_ended(self, request: RequestConnection) -> None:
        """Go on to the next request, or close. The rest of this one is dropped."""
        self._release_charge()
        if self._state == "closing":
            return
        if not request.is_whole:
            # the handler waits for the body; not now, since it is in the middle of finishing
            self._loop.call_soon(request.delegate.on_connection_close)
        if not request.may_continue:
            self._close_when_read()
        elif request.is_whole:
            self._await_request()
        else:
            self._linger()
            if self._flushed.done():
                self._host.became_idle(self)

    # -- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        address = transport.get_extra_info("peername")
        secure = transport.get_extra_info("sslcontext") is not None
        remote_ip = address[0] if isinstance(address, tuple) else self._host.unnamed_peer
        self._peer = Peer(remote_ip, "https" if secure else "http")
        self._host.opened(self)
        self._set_deadline(self._host.idle_timeout)

    def data_received(self, data: bytes) -> None:
        if self._state == "closing":
            return
        self._pending = self._pending + data if self._pending else data
        self._use_pending()

    def eof_received(self) -> bool:
        """Take this for a disconnect, unless the handler waits for nothing.

        :return: whether the connection stays open for that handler's response.
        """
        request = self._request
        if (
            request is not None
            and request.responds_at_once
            and not request.response_ended
            and self._transport.can_write_eof()  # TLS ends in both directions at once
        ):
            self._is_half_closed = request.must_close = True
            return True
        if self.is_busy:
            self.abort()
        return False

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._state == "closing":
            self._linger()
        elif self._request is None:
            self._await_head()
            return
        if not self.is_busy:
            self._host.became_idle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        request, self._request = self._request, None
        self._host.closed(self)
        if request is not None:
            request.connection_lost()

    def deadline_passed(self) -> None:
        request = self._request
        if self._state == "closing" or request is None or request.response_ended:
            if self._flushed.done():
                self.abort()
        else:
            self._fail(request, ClientTimeout("The request body did not arrive in time."))

    # -- the head

    def _use_pending(self) -> None:
        """Use pending bytes as far as possible now."""
        while self._pending:
            if self._state == "idle":
                if not (self._flushed.done() and self._take_head()):
                    break
            elif self._state != "body" or not self._take_body():
                break
        self._set_reading(len(self._pending) < MAX_PENDING)
        if self._holding is not None or (self._request is None and self._pending):
            self._charge()

    def _take_head(self) -> bool:
        """Begin with the request whose head has arrived.

        :returns: whether there is one.
        """
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
        self._release_charge()
        self._pending = data[end:]
        try:
            head = parse_head(data[:end])
        except MalformedRequest as error:
            self._refuse(error)
            return False
        self._state = "preparing"
        self._deadline = None
        self._host.became_busy(self)
        request = self._request = RequestConnection(self, head, self._peer)
        request.delegate = self._host.app.start_request(request)
        start_line = RequestStartLine(head.method, head.target, head.version)
        prepared = request.delegate.headers_received(start_line, head.headers)
        assert prepared is None or isinstance(prepared, asyncio.Future), "bodies come in pieces"
        if prepared is None or prepared.done():
            self._begin_body(request)
        else:
            prepared.add_done_callback(lambda _: self._begin_body_later(request))
        return True

    def _await_request(self) -> None:
        """Wait for the next request, or close if there is to be none."""
        if self._host.is_draining:
            self._close_when_read()
            return
        assert self._request is not None
        self._request.release()
        self._request = None
        self._state = "idle"
        self._await_head()

    def _await_head(self) -> None:
        self._set_deadline(self._host.idle_timeout)
        if self._pending:
            self._charge()
        if not self._flushed.done():
            return  # `resume_writing` comes back here
        self._host.became_idle(self)
        if self._pending:
            # requests that have arrived already must not starve other connections
            self._state = "yielding"
            self._loop.call_soon(self._take_next)

    def _take_next(self) -> None:
        if self._state == "yielding":
            self._state = "idle"
            self._use_pending()

    # -- the body

    def _begin_body_later(self, request: RequestConnection) -> None:
        self._begin_body(request)
        self._use_pending()

    def _begin_body(self, request: RequestConnection) -> None:
        """Read the body, which the handler takes now, or drop it if the response has ended."""
        if self._state == "closing":
            return
        self._state = "body"
        if request.has_come:
            self._end_body(request)
        elif not request.response_ended:
            if request.expects_continue and not request.response_began:
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._body_began = self._loop.time()
            self._body_size = 0
            if not self._pending:
                self._await_body()

    def _take_body(self) -> bool:
        """Give the handler the part of the body that has arrived.

        :returns: whether the handler takes more.
        """
        request = self._request
        assert request is not None
        try:
            piece, self._pending = request.take(self._pending)
        except MalformedChunk:
            self._fail(request, InvalidRequest("A chunk of the request's body is malformed."))
            return False
        if self._holding is not None:
            self._charge()  # from now on the piece is charged by the handler
        if piece and not request.response_ended:
            self._body_size += len(piece)
            busy = request.delegate.data_received(piece)
            if busy is not None:
                self._wait(request, busy)
                return False
        if request.has_come:
            self._end_body(request)
        elif not request.response_ended:
            self._await_body()
        return True

    def _wait(self, request: RequestConnection, busy: Awaitable[None]) -> None:
        if self._state == "body":
            self._state = "blocked"
        self._blocked_since = self._loop.time()
        self._deadline = None  # the client is not to blame for the wait
        asyncio.ensure_future(busy).add_done_callback(lambda _: self._go_on(request))

    def _go_on(self, request: RequestConnection) -> None:
        if self._state == "closing":
            return
        self._state = "body"
        if request.has_come:
            self._end_body(request)
        elif not request.response_ended:
            self._body_began += self._loop.time() - self._blocked_since
            self._await_body()
        self._use_pending()

    def _await_body(self) -> None:
        """Set the deadline for more of the body."""
        timeout, rate = self._host.body_timeout, self._host.min_body_rate
        if rate:
            # the first seconds are free, so that a body may begin with a silence
            due = self._body_began + timeout + self._body_size / rate
            timeout = min(timeout, due - self._loop.time())
        self._set_deadline(timeout)

    def _end_body(self, request: RequestConnection) -> None:
        request.is_whole = True
        if self._state == "closing":
            return
        if request.response_ended:
            self._await_request()
            return
        self._state = "serving"
        self._deadline = None
        request.delegate.finish()

    # -- faults of the client

    def _fail(self, request: RequestConnection, error: ClientError) -> None:
        """End a request the rest of which cannot be read, and the connection with it."""
        request.must_close = True
        if request.response_ended:
            self._close_when_read()
        elif request.on_fault is not None:
            request.on_fault(error)
        else:
            self._refuse(MalformedRequest(error.message, request.target, error.status))

    def _refuse(self, malformed: MalformedRequest) -> None:
        logger.info("refused a malformed request from %s: %s", self._peer.remote_ip, malformed)
        self.send(refusal(malformed, next(self._host.request_ids)))
        self._close_when_read()

    def _close_when_read(self) -> None:
        super()._close_when_read()
        if not self.is_busy:
            self._host.became_idle(self)
