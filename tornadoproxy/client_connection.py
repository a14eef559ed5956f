"""One HTTP/1.1 connection from a client: Tornado's, made strict and attentive.

What differs from Tornado's own, and why:

- A message that two servers could frame differently is refused before a handler sees it: bare
  line feeds, ``Transfer-Encoding`` beside ``Content-Length`` or with HTTP/1.0, several or
  malformed lengths. (RFC 9112 §6, §11.2.)
- What is refused gets an error in the dialect's shape, not a bare status line.
- An HTTP/1.0 connection ends with its answer, which may have no other end.
- A client that hangs up is noticed at once, whatever of its bytes waits unread.
- An answer that ends before its request does not reset the connection: what still comes of the
  request is read and dropped for `LINGER` seconds, so that the client can read the answer.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import struct
from http.client import responses
from typing import TYPE_CHECKING

from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httputil import (
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import StreamClosedError, UnsatisfiableReadError

from tornadoproxy.dialects import Dialect
from tornadoproxy.errors import InvalidRequest
from tornadoproxy.handlers import new_request_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornado.concurrent import Future
    from tornado.http1connection import HTTP1ConnectionParameters
    from tornado.httputil import HTTPServerConnectionDelegate
    from tornado.iostream import IOStream

logger = logging.getLogger(__name__)

MAX_REQUEST_HEAD = 64 * 1024
"""The largest request line with headers, in bytes."""

LINGER = 30.0
"""How long the rest of a request is read after its answer, in seconds."""

MAX_QUERY_FIELDS = 1000
"""Tornado parses the query string and refuses more fields than that."""

_BARE_LF = re.compile(rb"(?<!\r)\n")
_DIGITS = re.compile(r"[0-9]{1,18}")
# what Tornado takes; anything else it would answer with a bare status line
_REQUEST_LINE = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [\x21-\x7e\x80-\xff]+ HTTP/1\.[01]")
_HOST = re.compile(r"([A-Za-z0-9\-._~!$&'()*+;=\[\]:]|%[0-9A-Fa-f]{2})*")


class MalformedRequest(Exception):
    """A request that cannot be framed or read safely."""

    def __init__(self, message: str, path: str, status: int = 400) -> None:
        super().__init__(message)
        self.path = path
        self.status = status


class ClientConnection(HTTP1Connection):
    """One request and its answer on a client's connection."""

    def __init__(
        self,
        stream: IOStream,
        params: HTTP1ConnectionParameters,
        context: object,
        is_draining: Callable[[], bool],
    ) -> None:
        super().__init__(stream, False, params, context)
        self._is_draining = is_draining
        self.on_malformed: Callable[[InvalidRequest], None] | None = None
        # Tornado listens for it only once the whole request has been read
        stream.set_close_callback(self._on_connection_close)

    @property
    def has_request(self) -> bool:
        """Whether a request's head has been read."""
        return self._request_start_line is not None

    @property
    def must_close(self) -> bool:
        """Whether the connection has to end once the answer is out."""
        return self._disconnect_on_finish

    def peer_left(self) -> None:
        """The client hung up: tell the handler, and close."""
        self._on_connection_close()
        self.close()

    def abort(self) -> None:
        """Close so that the client cannot take what it has for the whole answer."""
        line = self._request_start_line
        if line is not None and line.version == "HTTP/1.0" and not self.stream.closed():
            # its answer ends with the connection: a reset is the only end that is not clean
            self.stream.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self.close()

    def write_headers(
        self,
        start_line: RequestStartLine | ResponseStartLine,
        headers: HTTPHeaders,
        chunk: bytes | None = None,
    ) -> Future[None]:
        line = self._request_start_line
        if line is not None and line.version == "HTTP/1.0":
            self._request_headers = HTTPHeaders()  # so that no keep-alive is promised
        if self._is_draining() or not (self._read_finished or self._may_read_on):
            self._disconnect_on_finish = True
        return super().write_headers(start_line, headers, chunk)

    def _can_keep_alive(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> bool:
        if start_line.version == "HTTP/1.0":
            return False
        options = {
            option.strip().lower()
            for line in headers.get_list("Connection")
            for option in line.split(",")
        }
        return "close" not in options

    def _parse_headers(self, data: bytes) -> tuple[str, HTTPHeaders]:
        if self.stream.closed():
            raise StreamClosedError  # the client left while its head was on its way
        if len(data) > MAX_REQUEST_HEAD:
            raise MalformedRequest(
                f"The request's head is larger than {MAX_REQUEST_HEAD} bytes.", _path(data), 431
            )
        if _BARE_LF.search(data):
            raise MalformedRequest(
                "A line of the request's head ends in a bare line feed.", _path(data)
            )
        try:
            start_line, headers = super()._parse_headers(data)
        except HTTPInputError:
            # its text quotes the line, which may hold a credential
            raise MalformedRequest(
                "A header line of the request is malformed.", _path(data)
            ) from None
        fault = _fault_of_head(start_line, headers)
        if fault is not None:
            raise MalformedRequest(fault, _path(data))
        if headers.get("Expect", "").lower() == "100-continue":
            # RFC 9110 §10.1.1 minds the version and not the case; Tornado does the opposite
            del headers["Expect"]
            if start_line.endswith("HTTP/1.1"):
                headers["Expect"] = "100-continue"
        return start_line, headers

    async def _read_chunked_body(self, delegate: HTTPMessageDelegate) -> None:
        try:
            await super()._read_chunked_body(delegate)
        except HTTPInputError:
            assert self._request_start_line is not None
            fault = "A chunk of the request's body is malformed."
            self._disconnect_on_finish = True
            if self.on_malformed is not None and not self._write_finished:
                self.on_malformed(InvalidRequest(fault))
            raise MalformedRequest(fault, self._request_start_line.path) from None

    @property
    def _may_read_on(self) -> bool:
        """Whether what still comes is certain to be the rest of the request's body."""
        # a client that expects a 100 may send its next request in place of the body
        return self._request_headers is not None and "Expect" not in self._request_headers

    def _finish_request(self, future: Future[None] | None) -> None:
        line, headers = self._request_start_line, self._request_headers
        if (
            self._read_finished
            or self.stream.closed()
            or line is None
            or headers is None
            or not self._may_read_on
        ):
            super()._finish_request(future)
            return
        self._disconnect_on_finish = False
        super()._finish_request(future)
        self._disconnect_on_finish = not self._can_keep_alive(line, headers)
        self.stream.io_loop.call_later(LINGER, self._stop_lingering)

    def _stop_lingering(self) -> None:
        if not self._read_finished:
            self.close()


def _path(head: bytes) -> str:
    """The path in a head's first line, as far as that can be told."""
    target = head.lstrip(b"\r\n").partition(b"\n")[0].partition(b" ")[2].partition(b" ")[0]
    return target.strip().partition(b"?")[0].decode("latin-1")


def _fault_of_head(start_line: str, headers: HTTPHeaders) -> str | None:
    if not _REQUEST_LINE.fullmatch(start_line):
        return "The request line is not one of HTTP/1.1."
    _, target, version = start_line.split(" ")
    lengths = headers.get_list("Content-Length")
    if len(lengths) > 1 or any(not _DIGITS.fullmatch(length) for length in lengths):
        return "The request needs one Content-Length, a whole number."
    if "Transfer-Encoding" in headers:
        if lengths:
            return "The request has both Transfer-Encoding and Content-Length."
        if version == "HTTP/1.0":
            return "Transfer-Encoding needs HTTP/1.1."
        if [line.lower() for line in headers.get_list("Transfer-Encoding")] != ["chunked"]:
            return "The only Transfer-Encoding supported is chunked."
    hosts = headers.get_list("Host")
    if len(hosts) > 1 or (not hosts and version == "HTTP/1.1"):
        return "The request needs one Host header."
    if hosts and not _HOST.fullmatch(hosts[0]):
        return "The request's Host header is malformed."
    if target.count("&") >= MAX_QUERY_FIELDS:
        return f"The query string has more than {MAX_QUERY_FIELDS} fields."
    return None


class ClientConnectionLoop(HTTP1ServerConnection):
    """The requests of one client connection, one after the other."""

    def __init__(
        self,
        stream: IOStream,
        params: HTTP1ConnectionParameters,
        context: object,
        is_draining: Callable[[], bool],
    ) -> None:
        super().__init__(stream, params, context)
        self.fd: int = stream.socket.fileno()
        self._is_draining = is_draining
        self._current: ClientConnection | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a request is being served, or its answer is still on its way out."""
        return self._current is not None and self._current.has_request

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a request has come yet."""
        return not self.is_busy and self.stream._read_buffer_size == 0

    def peer_left(self) -> None:
        """The client hung up."""
        if self._current is not None:
            self._current.peer_left()
        else:
            self.stream.close()

    async def _server_request_loop(self, delegate: HTTPServerConnectionDelegate) -> None:
        try:
            while await self._serve_one(delegate):
                # requests that wait in the buffer already must not starve other connections
                await asyncio.sleep(0)
                # asked here and not before: no turn of the loop lies between this and being idle
                if self._is_draining():
                    break
        except (StreamClosedError, UnsatisfiableReadError, TimeoutError):
            pass
        except Exception:
            logger.exception("a client connection failed")
        finally:
            self.stream.close()
            delegate.on_close(self)

    async def _serve_one(self, delegate: HTTPServerConnectionDelegate) -> bool:
        """Read a request and see it answered; whether another may follow."""
        connection = ClientConnection(self.stream, self.params, self.context, self._is_draining)
        self._current = connection
        try:
            is_open = await connection.read_response(delegate.start_request(self, connection))
        except MalformedRequest as error:
            logger.info("refused a malformed request from %s: %s", self.context, error)
            if not self.stream.closed():
                if connection._response_start_line is None:
                    await self._refuse(error)
                await self._linger()
            return False
        return is_open and not connection.must_close

    async def _refuse(self, malformed: MalformedRequest) -> None:
        dialect = Dialect.of_path(malformed.path)
        error = InvalidRequest(str(malformed), status=malformed.status)
        request_id = new_request_id()
        body = dialect.error_body(error, request_id)
        headers = {
            **dialect.error_headers(error, request_id),
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        status_line = f"HTTP/1.1 {error.status} {responses[error.status]}"
        lines = [status_line, *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        await self.stream.write("\r\n".join(lines).encode("latin-1") + body)

    async def _linger(self) -> None:
        """Read on and drop it: to close with something unread would reset the connection."""
        await self.stream.write(b"")  # until all before it has gone out
        self.stream.socket.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(LINGER):
            while True:
                await self.stream.read_bytes(self.params.chunk_size, partial=True)
