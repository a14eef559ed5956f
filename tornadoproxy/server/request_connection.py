"""One request on a connection, and how its response gets out: what handlers write to."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tornado.httputil import (
    HTTPConnection,
    RequestStartLine,
    ResponseStartLine,
    format_timestamp,
)

from tornadoproxy.protocol.request_framing import ChunkedBody

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from tornado.httputil import HTTPHeaders, HTTPMessageDelegate

    from tornadoproxy.errors import ClientError
    from tornadoproxy.protocol.request_framing import RequestHead


class Peer(NamedTuple):
    """Who is at the other end, as `HTTPServerRequest` asks for it."""

    remote_ip: str
    protocol: str


@lru_cache(1)
def _http_date(seconds: int) -> str:
    """The time in seconds since the epoch, as HTTP writes it (RFC 9110 §5.6.7)."""
    return format_timestamp(seconds)


def date() -> tuple[str, str]:
    """What each response tells (RFC 9110 §6.6.1)."""
    return ("Date", _http_date(int(time.time())))


def response_head(status: int, reason: str, fields: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} {reason}", *[f"{name}: {value}" for name, value in fields], "\r\n"]
    return "\r\n".join(lines).encode("latin-1")


class Client(Protocol):
    """The connection that a request came on."""

    @property
    def is_draining(self) -> bool:
        """It takes no other request."""

    def send(self, data: bytes) -> asyncio.Future[None]:
        """Send; done when the system has taken everything."""

    def authenticating(self) -> None:
        """See `RequestConnection.authenticating`."""

    def authenticated(self) -> None:
        """See `RequestConnection.authenticated`."""

    def response_ended(self, request: RequestConnection) -> None:
        """The response has been sent; the rest of the request is dropped."""

    def abort(self, *, reset: bool = False) -> None:
        """Close at once."""


class RequestConnection(HTTPConnection):
    """One request on a connection, and how its answer gets out: what handlers write to."""

    __slots__ = (
        "_body",
        "_body_left",
        "_chunked",
        "_client",
        "_close_callback",
        "_left",
        "answered",
        "context",
        "delegate",
        "expects_continue",
        "is_ready",
        "is_whole",
        "method",
        "must_close",
        "on_fault",
        "response_began",
        "target",
        "version",
    )

    delegate: HTTPMessageDelegate
    """What the request is told to, until it is over."""

    def __init__(self, client: Client, head: RequestHead, peer: Peer) -> None:
        self._client = client
        # not the head itself: its headers need not live as long as a stream
        self.method = head.method
        self.target = head.target
        self.version = head.version
        self.expects_continue = head.expects_continue
        self.context = peer
        self._body = ChunkedBody() if head.chunked else None
        self._body_left = head.length
        self.is_ready = False
        """The handler takes the body."""
        self.is_whole = False
        """The handler has the body."""
        self.response_began = False
        self.answered = False
        self.must_close = not head.keeps_alive
        self.on_fault: Callable[[ClientError], None] | None = None
        """Told when the rest of the body is malformed, or does not come in time."""
        self._close_callback: Callable[[], None] | None = None
        self._chunked = False
        self._left: int | None = None  # of the answer's body, where its length is told

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Have `callback` called when the client leaves before it has its answer."""
        self._close_callback = callback

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
            self.abort()  # the length that was told cannot be kept
            return
        if self._chunked:
            self._client.send(b"0\r\n\r\n")
        self.answered = True
        self._client.response_ended(self)

    def authenticating(self) -> None:
        """It takes a while to find out who sent the request, or nobody does."""
        self._client.authenticating()

    def authenticated(self) -> None:
        """It is known who sent the request: it makes room for no other."""
        self._client.authenticated()

    def abort(self) -> None:
        """Close so that the client cannot take what it has for the whole answer."""
        self._client.abort(reset=self.response_began and self.version == "HTTP/1.0")

    @property
    def may_continue(self) -> bool:
        """Whether another request may follow this one, now that it is answered."""
        return not self.must_close and (self.is_whole or self._may_read_on)

    # -- for the connection

    @property
    def has_come(self) -> bool:
        """Whether nothing more of the body is to come."""
        return self._body.complete if self._body is not None else not self._body_left

    @property
    def is_answered_at_once(self) -> bool:
        """Whether the request is whole and its handler, such as a probe's, waits for nobody."""
        return self.has_come and self.on_fault is None

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Split `data` into what is of the body, and what came behind it.

        :raises MalformedChunk: it is not in the coding that the head named.
        """
        if self._body is not None:
            piece = self._body.feed(data)
            return piece, self._body.rest
        piece = data[: self._body_left]
        self._body_left -= len(piece)
        return piece, data[len(piece) :]

    def connection_lost(self) -> None:
        """The client has left, or was cut off: tell the handler that waits for it, if one does."""
        callback, self._close_callback = self._close_callback, None
        if callback is not None:
            callback()
        elif not self.is_whole:
            self.delegate.on_connection_close()
        self.release()

    def release(self) -> None:
        """It is over: let go of the handler, which refers to this, so that nothing is left."""
        del self.delegate
        self.on_fault = None

    @property
    def _may_read_on(self) -> bool:
        """Whether what still comes is certain to be the rest of the request's body."""
        # a client that expects a 100 may send its next request in place of the body
        return not self.expects_continue

    def _framed(self, chunk: bytes) -> bytes:
        if self._left is not None:
            self._left -= len(chunk)
            if self._left < 0:
                self.abort()
                raise ValueError("more was written than Content-Length told")
        return b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk
