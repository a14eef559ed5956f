"""One HTTP/1.1 connection to an upstream: bytes in, responses out.

A connection carries one exchange at a time::

    idle ──begin──▶ waiting ──head──▶ responding ──end──▶ idle, or closed if it cannot be reused
                       └──────────────────┴──lost──▶ closed

While it is idle, anything from the peer (bytes, end of file, reset) closes it. The bytes of one
read are parsed completely, and passed on in one call: the head with the first bytes of the body, or
more of the body. The end follows. So one read causes one write to the client.

llhttp parses in its strict mode: a message with both Content-Length and Transfer-Encoding, with
two lengths or with bare line feeds is an error. It accepts chunk extensions and trailers, which are
not passed on. Interim responses (1xx) are skipped: ``Expect`` is not sent upstream.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import sys
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from tornadoproxy.errors import UpstreamClosed, UpstreamError, UpstreamProtocolError
from tornadoproxy.protocol.wire import ResponseHead

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_HEAD = 128 * 1024
"""The longest head of a response in bytes, interim responses included."""


class ConnectionUser(Protocol):
    """Callbacks for what happens on a connection."""

    def response_began(self, head: ResponseHead, first: bytes) -> None:
        """Handle the head, and the part of the body that arrived with it, which may be empty."""

    def response_continued(self, chunk: bytes) -> None:
        """Handle more of the body."""

    def response_ended(self, *, reusable: bool) -> None:
        """Handle the end of the response; the connection is idle now, or cannot be reused."""

    def response_failed(self, error: UpstreamError, *, unreceived: bool) -> None:
        """Handle a response that is missing or cut short.

        :param unreceived: the peer closed without having received a byte of the request.
        """

    def writing_resumed(self) -> None:
        """Continue to write, since the peer receives data again."""

    def deadline_passed(self) -> None:
        """Handle the end of the time set by `UpstreamConnection.set_deadline`."""


class _Response:
    """One response while llhttp parses it: what has arrived, and has not been passed on."""

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
        self.head: ResponseHead | None = None  # until it is passed on
        self.has_head = False
        self.ends_with_connection = False
        self.pieces: list[bytes] = []
        self.received = 0
        self.complete = False
        self.keep_alive = False

    def feed(self, data: bytes) -> UpstreamError | None:
        """Parse what has arrived; return an error if it is not HTTP."""
        self.received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return UpstreamProtocolError("The upstream's response is not HTTP/1.1.")
        if not self.has_head and self.received > MAX_HEAD:
            return UpstreamProtocolError("The head of the upstream's response is too long.")
        return None

    def release(self) -> None:
        """Drop the parser, whose reference to this would leave a cycle to the garbage collector."""
        self._parser = cast("httptools.HttpResponseParser", None)

    def take_head(self) -> ResponseHead | None:
        """Return the head once; afterwards a long response does not keep it in memory."""
        head, self.head = self.head, None
        return head

    def take_body(self) -> bytes:
        """Return the part of the body that has arrived since the last call."""
        pieces = self.pieces
        if not pieces:
            return b""
        self.pieces = []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # -- called by the parser

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("a response without a request")

    def on_status(self, status: bytes) -> None:
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_head:  # later ones are trailers
            self._fields.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            if status == 101:
                raise ValueError("an upgrade that was not requested")
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
            self.keep_alive = False  # a body despite HEAD, and nothing says where it ends
        else:
            self.pieces.append(body)

    def on_message_complete(self) -> None:
        self.complete = self.has_head


def _ends_with_connection(fields: list[tuple[str, str]]) -> bool:
    """Return whether no header field says where the body ends.

    :raises ValueError: the transfer coding is another than chunked.
    """
    framed = False
    for name, value in fields:
        name = name.lower()
        if name == "transfer-encoding" and value.strip().lower() != "chunked":
            raise ValueError("a transfer coding that was not requested")
        framed = framed or name in ("content-length", "transfer-encoding")
    return not framed


class UpstreamConnection(asyncio.Protocol):
    """One connection, whose user begins an exchange, sends, and gets called with the response."""

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
        self._unreceived = False
        # one timer serves all exchanges: creating and cancelling one for each read costs more
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # -- for the user

    def begin(self, user: ConnectionUser, *, head_only: bool) -> None:
        """Start an exchange. `head_only`: whatever its headers say, the response has no body."""
        self._reused = self._response is not None
        self._user = user
        self._response = _Response(head_only=head_only)
        if self._reused:
            self._acknowledged = self._bytes_acknowledged()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing arrived while it was idle: no byte, no end of file, no reset.

        The kernel is asked because the event loop reports them only in its next turn. Bytes that
        are already there would be parsed as the beginning of the next response.
        """
        return not (self._transport.is_closing() or self._arrival.poll(0))

    def send(self, data: bytes) -> None:
        """Send `data`, or queue it; see `writing_paused`."""
        self._transport.write(data)

    def pause(self) -> None:
        """Stop reading, so that the peer has to wait."""
        if not self.closed:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Continue to read."""
        if not self.closed:
            self._transport.resume_reading()

    def set_deadline(self, seconds: float) -> None:
        """Set the deadline to `seconds` from now; see `ConnectionUser.deadline_passed`."""
        self._deadline = self._loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= self._deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._check_deadline)

    def abort(self) -> None:
        """Close at once, without a call of the user."""
        self._user = None
        if self._response is not None:
            self._response.release()
        self.closed = True
        self._transport.abort()

    def tls_session(self) -> ssl.SSLSession | None:
        """Return the current TLS session, if there is one."""
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
            self._transport.abort()  # bytes without a request
            return
        error = response.feed(data)
        head, chunk = response.take_head(), response.take_body()
        if head is not None:
            user.response_began(head, chunk)
        elif chunk:
            user.response_continued(chunk)
        if self._user is None:
            return  # the user has aborted
        if response.complete:
            self._user = None
            response.release()
            user.response_ended(reusable=response.keep_alive and error is None and not self.closed)
        elif error is not None:
            self.abort()
            user.response_failed(error, unreceived=False)

    def eof_received(self) -> None:
        self._eof = self._is_clean_end()
        self._unreceived = self._reused and self._nothing_acknowledged()

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
            "The upstream closed the connection in the middle of its response."
            if response.has_head
            else "The upstream closed the connection without a response."
        )
        unreceived = self._unreceived and not response.received
        user.response_failed(UpstreamClosed(message), unreceived=unreceived)

    # -- internal

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

    def _is_clean_end(self) -> bool:
        """Return whether the peer itself ended the stream.

        With TLS, anybody on the way can cut the connection. Then there was no ``close_notify``
        (RFC 8446 §6.1), and TLS still expects more.
        """
        ssl_object = self._ssl_object()
        if ssl_object is None:
            return True
        try:
            return ssl_object.read(1) == b""
        except ssl.SSLError:
            return False

    def _nothing_acknowledged(self) -> bool:
        """Return whether the peer's kernel received nothing of this exchange before its FIN.

        That happens if the peer closed an idle connection while the request was on its way. A FIN
        acknowledges everything received before it, so the result is certain; a reset does not,
        since acknowledgements are delayed. On systems without TCP_INFO the result is False.
        """
        return 0 < self._acknowledged == self._bytes_acknowledged()

    def _bytes_acknowledged(self) -> int:
        """Return how many bytes the peer's kernel has acknowledged; 0 if that is unknown."""
        if self._socket is None or not hasattr(socket, "TCP_INFO"):
            return 0
        try:
            # struct tcp_info of linux/tcp.h: tcpi_bytes_acked is the u64 at offset 120
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        except OSError:
            return 0
        return int.from_bytes(info[120:128], sys.byteorder)
