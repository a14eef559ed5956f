"""One HTTP/1.1 connection to an upstream: bytes in, answers out.

The theory. A connection carries one exchange at a time::

    idle ──begin──▶ waiting ──head──▶ answering ──end──▶ idle, or closed if it cannot be reused
                       └──────────────────┴──lost──▶ closed

While it is idle, whatever the peer does (bytes, end of file, reset) closes it. What one read
brought is parsed whole and then told at once: the head with the first bytes of the body, or more
of the body, then the end. So one read makes one write to the client.

llhttp parses, in its strict mode: a message with both Content-Length and Transfer-Encoding, with
two lengths or with bare line feeds is an error. It tolerates chunk extensions and trailers, which
end here. Interim answers (1xx) are skipped: ``Expect`` is not sent upstream.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import sys
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import httptools

from tornadoproxy.errors import UpstreamClosed, UpstreamError, UpstreamProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_HEAD = 128 * 1024
"""The most that an answer's head may take, interim answers included, in bytes."""


class ResponseHead(NamedTuple):
    """An answer's status and header fields, in the order and the case of the wire.

    :param ends_with_connection: the end of file ends the body (RFC 9112 §6.3, the last rule).
    """

    status: int
    reason: str
    fields: list[tuple[str, str]]
    ends_with_connection: bool


class ConnectionUser(Protocol):
    """Who is told what arrives on a connection, synchronously."""

    def response_began(self, head: ResponseHead, first: bytes) -> None:
        """The head, and what of the body came in the same read; it may be empty."""

    def response_continued(self, chunk: bytes) -> None:
        """More of the body."""

    def response_ended(self, *, reusable: bool) -> None:
        """The answer is whole. The connection is idle, and fit for another exchange or not."""

    def response_failed(self, error: UpstreamError, *, unheard: bool) -> None:
        """The answer will never be whole.

        :param unheard: the peer closed without having taken in a byte of the request.
        """

    def writing_resumed(self) -> None:
        """The peer takes data again."""

    def deadline_passed(self) -> None:
        """It was set by `UpstreamConnection.set_deadline`, and not again since."""


class _Response:
    """One answer, as llhttp parses it: what has come of it, and what has yet to be told."""

    __slots__ = (
        "_fields",
        "_head_only",
        "_parser",
        "_reason",
        "complete",
        "ends_with_connection",
        "has_head",
        "head",
        "keep_alive",
        "pieces",
        "received",
    )

    def __init__(self, *, head_only: bool) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._head_only = head_only
        self._reason = b""
        self._fields: list[tuple[str, str]] = []
        self.head: ResponseHead | None = None  # until it is told
        self.has_head = False
        self.ends_with_connection = False
        self.pieces: list[bytes] = []
        self.received = 0
        self.complete = False
        self.keep_alive = False

    def feed(self, data: bytes) -> UpstreamError | None:
        """Parse what has come; an error, if it is not HTTP."""
        self.received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return UpstreamProtocolError("The upstream's answer is not HTTP/1.1.")
        if not self.has_head and self.received > MAX_HEAD:
            return UpstreamProtocolError("The head of the upstream's answer has no end.")
        return None

    def release(self) -> None:
        """It is over: let go of the parser, which refers to this, so that nothing is left."""
        self._parser = cast("httptools.HttpResponseParser", None)

    def take_head(self) -> ResponseHead | None:
        """The head, once it is there, and once only: a long answer need not keep it."""
        head, self.head = self.head, None
        return head

    def take_body(self) -> bytes:
        """What has come of the body since the last call."""
        pieces = self.pieces
        if not pieces:
            return b""
        self.pieces = []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # -- called by the parser

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("an answer that nobody asked for")

    def on_status(self, status: bytes) -> None:
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_head:  # what comes later is a trailer
            self._fields.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            if status == 101:
                raise ValueError("an upgrade that nobody asked for")
            self._reason = b""
            self._fields = []
            return
        self.ends_with_connection = _ends_with_connection(self._fields)
        self.head = ResponseHead(
            status, self._reason.decode("latin-1"), self._fields, self.ends_with_connection
        )
        self._fields = []
        self.has_head = True
        self.keep_alive = self._parser.should_keep_alive()
        self.complete = self._head_only

    def on_body(self, body: bytes) -> None:
        if self._head_only:
            self.keep_alive = False  # it has a body after all, and who knows where that ends
        else:
            self.pieces.append(body)

    def on_message_complete(self) -> None:
        self.complete = self.has_head


def _ends_with_connection(fields: list[tuple[str, str]]) -> bool:
    """Whether the body lasts until the connection ends, since no header frames it.

    :raises ValueError: the response has a transfer coding that was not requested.
    """
    unframed = True
    for name, value in fields:
        name = name.lower()
        if name == "transfer-encoding":
            if value.strip().lower() != "chunked":
                raise ValueError("a transfer coding that was not requested")
            unframed = False
        elif name == "content-length":
            unframed = False
    return unframed


class UpstreamConnection(asyncio.Protocol):
    """One connection. Its user begins an exchange, sends, and is told what comes back."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.writing_paused = False
        self.closed = False
        self.on_idle_closed: Callable[[UpstreamConnection], None] | None = None
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)  # until made
        self._socket: socket.socket | None = None
        self._arrival = select.poll()
        self._user: ConnectionUser | None = None
        self._response: _Response | None = None
        self._eof = False
        self._reused = False
        self._acknowledged = 0
        self._loop = asyncio.get_running_loop()
        self._unheard = False
        # the timer outlives an exchange: to make and cancel one for each takes longer
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # -- for the user

    def begin(self, user: ConnectionUser, *, head_only: bool) -> None:
        """Start an exchange. `head_only`: the answer has no body whatever it says (``HEAD``)."""
        self._reused = self._response is not None
        self._user = user
        self._response = _Response(head_only=head_only)
        if self._reused:
            self._acknowledged = self._bytes_acknowledged()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has come while it was idle: no byte, no end of file, no reset.

        The kernel knows what the event loop tells only with its next turn. Bytes that wait now
        would be taken for the beginning of the next answer.
        """
        return not (self._transport.is_closing() or self._arrival.poll(0))

    def send(self, data: bytes) -> None:
        """Send, or queue to be sent. See `writing_paused`."""
        self._transport.write(data)

    def pause(self) -> None:
        """Stop reading: the peer will have to wait."""
        if not self.closed:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if not self.closed:
            self._transport.resume_reading()

    def set_deadline(self, seconds: float) -> None:
        """Have the user told in so many seconds, in place of what was set before."""
        self._deadline = self._loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= self._deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._check_deadline)

    def abort(self) -> None:
        """Close at once. Nobody is told."""
        self._user = None
        if self._response is not None:
            self._response.release()
        self.closed = True
        self._transport.abort()

    def tls_session(self) -> ssl.SSLSession | None:
        """The TLS session as it is now, if there is one."""
        ssl_object = self._ssl_object()
        return None if ssl_object is None else ssl_object.session

    # -- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._socket = transport.get_extra_info("socket")
        self._arrival.register(self._socket, select.POLLIN)

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self._user is not None:
            self._user.writing_resumed()

    def data_received(self, data: bytes) -> None:
        response, user = self._response, self._user
        if response is None or user is None:
            self._transport.abort()  # bytes that nobody asked for
            return
        error = response.feed(data)
        head, chunk = response.take_head(), response.take_body()
        if head is not None:
            user.response_began(head, chunk)
        elif chunk:
            user.response_continued(chunk)
        if self._user is None:
            return  # what it was told made the user abort
        if response.complete:
            self._user = None
            response.release()
            user.response_ended(reusable=response.keep_alive and error is None and not self.closed)
        elif error is not None:
            self.abort()
            user.response_failed(error, unheard=False)

    def eof_received(self) -> None:
        self._eof = self._is_peers_own_end()
        self._unheard = self._reused and self._nothing_acknowledged()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        response, user = self._response, self._user
        if response is None or user is None:
            if self.on_idle_closed is not None:
                self.on_idle_closed(self)
            return
        self._user = None
        response.release()
        if self._eof and exc is None and response.ends_with_connection:
            user.response_ended(reusable=False)
            return
        message = (
            "The upstream closed the connection in the middle of its answer."
            if response.has_head
            else "The upstream closed the connection without an answer."
        )
        unheard = self._unheard and not response.received
        user.response_failed(UpstreamClosed(message), unheard=unheard)

    # -- within

    def _check_deadline(self) -> None:
        self._timer = None
        if self._user is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)
        else:
            self._user.deadline_passed()

    def _ssl_object(self) -> ssl.SSLObject | None:
        return cast("ssl.SSLObject | None", self._transport.get_extra_info("ssl_object"))

    def _is_peers_own_end(self) -> bool:
        """Whether the end of file is the peer's: with TLS, anybody on the way may have cut it.

        Then there was no ``close_notify`` (RFC 8446 §6.1), and TLS still waits for more.
        """
        ssl_object = self._ssl_object()
        if ssl_object is None:
            return True
        try:
            return ssl_object.read(1) == b""
        except ssl.SSLError:
            return False

    def _nothing_acknowledged(self) -> bool:
        """Whether the peer's kernel took in nothing of what this exchange sent before its FIN.

        A kept connection can turn out like that: the peer had given it up while it was idle, and
        what we sent met a closed socket. A FIN acknowledges all that came before it, so the answer
        is certain; a reset does not, since acknowledgements are delayed. Where the system does not
        tell, the answer is no.
        """
        return 0 < self._acknowledged == self._bytes_acknowledged()

    def _bytes_acknowledged(self) -> int:
        """The bytes that the peer's kernel has acknowledged so far; 0 where it is not known."""
        if self._socket is None or not hasattr(socket, "TCP_INFO"):
            return 0
        try:
            # struct tcp_info of linux/tcp.h: tcpi_bytes_acked is the u64 at offset 120
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        except OSError:
            return 0
        return int.from_bytes(info[120:128], sys.byteorder)
