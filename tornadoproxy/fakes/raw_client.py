"""A client connection for tests that sends exactly the bytes it is given.

Responses are parsed strictly (`tornadoproxy.fakes.http_message`). A response that is cut short
raises `Truncated` and never looks whole::

    connection = await RawConnection.open(proxy.port)
    await connection.send(b"GET /health HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    response = await connection.response()
    assert response.status == 200
    await connection.close()
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from tornadoproxy.fakes.body_reader import BodyReader
from tornadoproxy.fakes.byte_stream import ByteStream, PeerClosed
from tornadoproxy.fakes.http_message import HeaderLines, all_values, framing, parse_response_head

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from ssl import SSLContext

T = TypeVar("T")

_BODILESS = {101, 204, 304}  # statuses whose responses have no body


@dataclass
class RawResponse:
    """One response as it arrived.

    :ivar headers: names and values in wire order and wire case, decoded as latin-1.
    :ivar raw_head: the bytes of the head, its empty line included.
    :ivar body: the body without chunk framing.
    :ivar interim: the 1xx responses before it.
    """

    version: str
    status: int
    reason: str
    headers: HeaderLines
    raw_head: bytes
    body: bytes = b""
    interim: list[RawResponse] = field(default_factory=list)

    def header(self, name: str) -> str | None:
        """Return the first value of the header `name`; ``None`` if it is absent."""
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> list[str]:
        """Return every value of the header `name`, one for each line."""
        return all_values(self.headers, name)

    @property
    def chunked(self) -> bool:
        """Whether the body is chunked."""
        return (self.header("Transfer-Encoding") or "").lower() == "chunked"


class Truncated(Exception):
    """A connection that closed before the response was whole.

    :ivar response: the part that arrived, body included; ``None`` without a whole head.
    :ivar reset: whether the connection was closed by RST.
    """

    def __init__(self, message: str, response: RawResponse | None, *, reset: bool) -> None:
        super().__init__(message)
        self.response = response
        self.reset = reset


class RawConnection:
    """One connection, made by `open`."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    @classmethod
    async def open(
        cls,
        port: int,
        host: str = "127.0.0.1",
        *,
        ssl: SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> RawConnection:
        """Connect.

        :param ssl: the connection uses TLS with this context.
        :param receive_buffer: size of the socket's receive buffer in bytes: small for a client
            that reads slowly. 64 kB more are read ahead.
        """
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            sock.setblocking(False)
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (host, port))
            _, stream = await loop.create_connection(
                ByteStream, sock=sock, ssl=ssl, server_hostname=host if ssl else None
            )
        except BaseException:
            sock.close()
            raise
        return cls(stream)

    @property
    def local_port(self) -> int:
        """The port of the client's end."""
        port: int = self._stream.transport.get_extra_info("sockname")[1]
        return port

    async def send(self, data: bytes) -> None:
        """Send exactly `data`, and wait until the operating system has accepted all of it."""
        await self._stream.send(data)

    async def read(self, most: int = 65536) -> bytes:
        """Return what has arrived, at most `most` bytes; ``b""`` after the peer's FIN.

        :raises ConnectionResetError: the peer sent RST.
        """
        try:
            return await self._stream.some(most)
        except PeerClosed:
            return b""

    async def read_until(self, separator: bytes) -> bytes:
        """Return the bytes up to `separator`, which is included.

        :raises ConnectionError: the connection closed first.
        """
        return await self._stream.until(separator)

    async def read_to_end(self) -> bytes:
        """Return all bytes up to the peer's FIN.

        :raises ConnectionResetError: the peer sent RST.
        """
        whole = bytearray()
        while piece := await self.read():
            whole += piece
        return bytes(whole)

    async def head(self) -> RawResponse:
        """Return the next response without its body; interim responses are in its ``interim``.

        :raises Truncated: the connection closed first.
        """
        interim: list[RawResponse] = []
        while True:
            raw_head = await self._whole(self._stream.until(b"\r\n\r\n"), None)
            response = RawResponse(*parse_response_head(raw_head), raw_head)
            if response.status >= 200 or response.status == 101:
                response.interim = interim
                return response
            interim.append(response)

    async def chunk(self) -> bytes:
        """Return the next chunk of a chunked body; ``b""`` after the last one and its trailers.

        :raises Truncated: the body is not whole.
        """
        return await self._whole(BodyReader(self._stream, "chunked").read_chunk(), None)

    async def response(self, *, to_head: bool = False) -> RawResponse:
        """Return the next response with its whole body.

        :param to_head: the request was HEAD, so the response has no body.
        :raises Truncated: the response is cut short.
        """
        response = await self.head()
        if not to_head and response.status not in _BODILESS:
            await self._whole(self._read_body(response), response)
        return response

    async def ask(self, data: bytes, *, to_head: bool = False) -> RawResponse:
        """Send `data`, and return the next response; see `response`."""
        await self.send(data)
        return await self.response(to_head=to_head)

    async def disconnected(self) -> None:
        """Wait until the peer has disconnected. What it sent before can still be read."""
        await self._stream.disconnected()

    gone = disconnected  # the earlier name, until 0.2

    def half_close(self) -> None:
        """Send FIN, and continue to read."""
        self._stream.half_close()

    async def reset(self) -> None:
        """Close the connection with RST."""
        self._stream.reset()
        await self._stream.closed()

    async def close(self) -> None:
        """Close the connection with FIN, or with RST if something is unread."""
        self._stream.close()
        await self._stream.closed()

    async def _whole(self, reading: Awaitable[T], response: RawResponse | None) -> T:
        try:
            return await reading
        except ConnectionError as error:
            message = f"the connection closed early; unread: {self._stream.unread()[-200:]!r}"
            reset = isinstance(error, ConnectionResetError)
            raise Truncated(message, response, reset=reset) from error

    async def _read_body(self, response: RawResponse) -> None:
        kind = framing(response.version, response.headers)
        if kind is None:
            while piece := await self.read():
                response.body += piece
            return
        body = BodyReader(self._stream, kind)
        while piece := await body.read():
            response.body += piece
