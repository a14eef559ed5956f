"""One request on a connection, and how its response is sent: what handlers write to."""

from __future__ import annotations

import time
from functools import lru_cache
from http.client import responses
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct
from tornado.httputil import (
    HTTPConnection,
    RequestStartLine,
    ResponseStartLine,
    format_timestamp,
)

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.protocol.dialects import Dialect
from tornadoproxy.protocol.request_framing import ChunkedBody

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from tornado.httputil import HTTPHeaders, HTTPMessageDelegate

    from tornadoproxy.errors import ClientError
    from tornadoproxy.protocol.request_framing import MalformedRequest, RequestHead


class Peer(Struct, frozen=True):
    """The other end of a connection, with the names that `HTTPServerRequest` reads."""

    remote_ip: str
    protocol: str


@lru_cache(1)
def _http_date(seconds: int) -> str:
    """Return the time in seconds since the epoch in HTTP's format (RFC 9110 §5.6.7)."""
    return format_timestamp(seconds)


def date() -> tuple[str, str]:
    """Return the header that every response has (RFC 9110 §6.6.1)."""
    return ("Date", _http_date(int(time.time())))


def response_head(status: int, reason: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """Return the bytes of a response's status line and headers."""
    lines = [f"HTTP/1.1 {status} {reason}", *[f"{name}: {value}" for name, value in fields], "\r\n"]
    return "\r\n".join(lines).encode("latin-1")


def refusal(malformed: MalformedRequest, request_id: str) -> bytes:
    """Return the response to a malformed request, in the shape of its path's dialect."""
    dialect = Dialect.of_path(malformed.path)
    error = InvalidRequest(str(malformed), status=malformed.status)
    body = dialect.error_body(error, request_id)
    fields = [
        *dialect.error_headers(error, request_id).items(),
        date(),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    return response_head(error.status, responses[error.status], fields) + body


class Client(Protocol):
    """The connection that a request came on."""

    @property
    def is_draining(self) -> bool:
        """Whether it takes no other request."""

    def has_pending(self, size: int) -> bool:
        """Whether so many bytes have arrived that were not used yet."""

    def send(self, data: bytes) -> asyncio.Future[None]:
        """Send `data`; completed when the system has taken everything."""

    def authenticating(self) -> None:
        """See `RequestConnection.authenticating`."""

    def authenticated(self) -> None:
        """See `RequestConnection.authenticated`."""

    def response_ended(self, request: RequestConnection) -> None:
        """Go on to the next request: the response has been sent, and the rest is dropped."""

    def abort(self, *, reset: bool = False) -> None:
        """Close at once."""


class RequestConnection(HTTPConnection):
    """One request on a connection, and how its response is sent."""

    __slots__ = (
        "_body",
        "_body_left",
        "_chunked",
        "_client",
        "_is_served",
        "_left",
        "context",
        "delegate",
        "expects_continue",
        "is_whole",
        "method",
        "must_close",
        "on_fault",
        "response_began",
        "response_ended",
        "target",
        "version",
    )

    delegate: HTTPMessageDelegate
    """Receives the parts of the request, until it ends."""

    def __init__(self, client: Client, head: RequestHead, peer: Peer) -> None:
        self._client = client
        # not the head itself: its headers would take memory as long as a stream lasts
        self.method = head.method
        self.target = head.target
        self.version = head.version
        self.expects_continue = head.expects_continue
        self.context = peer
        self._body = ChunkedBody() if head.chunked else None
        self._body_left = head.length
        self.is_whole = False
        """Whether the handler has the whole body."""
        self.response_began = False
        self.response_ended = False
        self.must_close = not head.keeps_alive
        self.on_fault: Callable[[ClientError], None] | None = None
        """Called when the rest of the body is malformed, or does not arrive in time."""
        self._is_served = False
        self._chunked = False
        self._left: int | None = None  # of the response's body, if its length is known

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Note whether the handler is to be told of a disconnect; Tornado calls this."""
        self._is_served = callback is not None

    def write_headers(
        self,
        start_line: RequestStartLine | ResponseStartLine,
        headers: HTTPHeaders,
        chunk: bytes | None = None,
    ) -> asyncio.Future[None]:
        assert isinstance(start_line, ResponseStartLine)
        client, status = self._client, start_line.code
        self.response_began = True
        if client.is_draining or not (self.is_whole or self._may_read_on):
            self.must_close = True
        bodyless = self.method == "HEAD" or status in (204, 304)
        length = headers.get("Content-Length")
        if bodyless:
            self._left = 0
        elif length is not None:
            self._left = int(length)
        else:
            self._chunked = self.version == "HTTP/1.1"
            self.must_close = self.must_close or not self._chunked
        fields = [*headers.get_all()]
        if "Date" not in headers:
            fields.append(date())
        if self._chunked:
            fields.append(("Transfer-Encoding", "chunked"))
        if self.must_close and self.version == "HTTP/1.1":
            fields.append(("Connection", "close"))
        data = response_head(status, start_line.reason, fields)
        return client.send(data + self._framed(chunk) if chunk else data)

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        return self._client.send(self._framed(chunk) if chunk else b"")

    def finish(self) -> None:
        if self._left:
            self.abort()  # the body is shorter than its Content-Length
            return
        if self._chunked:
            self._client.send(b"0\r\n\r\n")
        self.response_ended = True
        self._client.response_ended(self)

    def authenticating(self) -> None:
        """Charge what arrives to the unauthenticated clients while authentication waits."""
        self._client.authenticating()

    def authenticated(self) -> None:
        """Note that the request is authenticated: its connection makes room for no other."""
        self._client.authenticated()

    def abort(self) -> None:
        """Close so that the client cannot take what it has for the whole response."""
        self._client.abort(reset=self.response_began and self.version == "HTTP/1.0")

    @property
    def may_continue(self) -> bool:
        """Whether another request may follow this one, now that its response has ended."""
        return not self.must_close and (self.is_whole or self._may_read_on)

    # -- for the connection

    @property
    def has_come(self) -> bool:
        """Whether the whole body has arrived."""
        return self._body.complete if self._body is not None else not self._body_left

    @property
    def has_arrived(self) -> bool:
        """Whether all of a body whose length is known is here, for the handler to take."""
        return self._body is None and self._client.has_pending(self._body_left)

    @property
    def responds_at_once(self) -> bool:
        """Whether the request is whole and its handler, such as a probe's, waits for nothing."""
        return self.has_come and self.on_fault is None

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Split `data` into a piece of the body, and the bytes behind the body.

        :raises MalformedChunk: the body does not follow the chunked transfer coding.
        """
        if self._body is not None:
            piece = self._body.feed(data)
            return piece, self._body.rest
        piece = data[: self._body_left]
        self._body_left -= len(piece)
        return piece, data[len(piece) :]

    def connection_lost(self) -> None:
        """Tell the handler, if it still serves the request, that the connection is closed."""
        if self._is_served or not self.is_whole:
            self.delegate.on_connection_close()
        self.release()

    def release(self) -> None:
        """Drop the handler, which refers to this: a reference cycle would keep both."""
        del self.delegate
        self.on_fault = None

    @property
    def _may_read_on(self) -> bool:
        """Whether what still arrives is certain to be the rest of the request's body."""
        # a client that expects a 100 may send its next request in place of the body
        return not self.expects_continue

    def _framed(self, chunk: bytes) -> bytes:
        if self._left is not None:
            self._left -= len(chunk)
            if self._left < 0:
                self.abort()
                raise ValueError("the response is longer than its Content-Length")
        return b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk
