"""A client connection for tests that sends exactly the bytes it is given.

Responses are taken apart by hand, strictly, and with their end in mind: an answer that was cut
short raises `Truncated` and never looks whole::

    connection = await RawConnection.open(proxy.port)
    await connection.send(b"GET /health HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    response = await connection.response()
    assert response.status == 200
    await connection.close()
"""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from tornadoproxy.fakes.byte_stream import ByteStream, PeerClosed
from tornadoproxy.fakes.exchange import Headers, header_lines

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from ssl import SSLContext

T = TypeVar("T")

_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([0-9]{3}) ([^\r\n]*)")
_HEADER_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\r\n]*?)[ \t]*")


@dataclass
class RawResponse:
    """One response as it came.

    :ivar headers: name and value in wire order and wire case, latin-1.
    :ivar raw_head: the head's bytes, the empty line included.
    :ivar body: without chunk framing.
    :ivar interim: the 1xx responses that came before it.
    """

    version: str
    status: int
    reason: str
    headers: list[tuple[str, str]]
    raw_head: bytes
    body: bytes = b""
    interim: list[RawResponse] = field(default_factory=list)

    def header(self, name: str) -> str | None:
        """The first value of the header `name`, whatever its case; ``None`` if it is absent."""
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> list[str]:
        """Every value of the header `name`, a line each."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def chunked(self) -> bool:
        """Whether the body is chunked."""
        return (self.header("Transfer-Encoding") or "").lower() == "chunked"


class Truncated(Exception):
    """The connection ended before the answer was whole.

    :ivar response: as much of it as came, its body included; ``None`` without a whole head.
    :ivar reset: whether it ended by RST.
    """

    def __init__(self, message: str, response: RawResponse | None, *, reset: bool) -> None:
        super().__init__(message)
        self.response = response
        self.reset = reset


class RawConnection:
    """One connection. Made by `open`."""

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

        :param ssl: speak TLS.
        :param receive_buffer: bytes that the socket takes in before somebody reads: small for a
            client that reads slowly. 64 kB more are read ahead.
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
        """This side's port."""
        port: int = self._stream.transport.get_extra_info("sockname")[1]
        return port

    async def send(self, data: bytes) -> None:
        """Send exactly `data`, and wait until the operating system has all of it."""
        await self._stream.send(data)

    async def read(self, most: int = 65536) -> bytes:
        """What has arrived, at most so many bytes; ``b""`` after the peer's FIN.

        :raises ConnectionResetError: the connection ended by RST.
        """
        try:
            return await self._stream.some(most)
        except PeerClosed:
            return b""

    async def read_until(self, separator: bytes) -> bytes:
        """The bytes up to and with `separator`.

        :raises ConnectionError: the connection ended first.
        """
        return await self._stream.until(separator)

    async def read_to_end(self) -> bytes:
        """All bytes up to the peer's FIN.

        :raises ConnectionResetError: the connection ended by RST.
        """
        whole = bytearray()
        while piece := await self.read():
            whole += piece
        return bytes(whole)

    async def head(self) -> RawResponse:
        """The next response's head, interim ones passed over; its body is still to be read.

        :raises Truncated: there is none.
        """
        interim: list[RawResponse] = []
        while True:
            response = _parse_head(await self._whole(self._stream.until(b"\r\n\r\n"), None))
            if response.status >= 200 or response.status == 101:
                response.interim = interim
                return response
            interim.append(response)

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; ``b""`` after the last one and its trailers.

        :raises Truncated: the body is not whole.
        """
        return await self._whole(self._chunk(), None)

    async def response(self, *, to_head: bool = False) -> RawResponse:
        """The next response with its whole body.

        :param to_head: it answers a HEAD request, and so has no body.
        :raises Truncated: it is not whole.
        """
        response = await self.head()
        if not to_head and response.status not in {101, 204, 304}:
            await self._whole(self._read_body(response), response)
        return response

    async def ask(self, data: bytes, *, to_head: bool = False) -> RawResponse:
        """Send `data`, and return the next response; see `response`."""
        await self.send(data)
        return await self.response(to_head=to_head)

    async def gone(self) -> None:
        """Wait until the peer has ended the connection. What it sent before is kept."""
        await self._stream.gone()

    def half_close(self) -> None:
        """Send FIN, and go on reading."""
        self._stream.half_close()

    async def reset(self) -> None:
        """End the connection with RST."""
        self._stream.reset()
        await self._stream.closed()

    async def close(self) -> None:
        """End the connection with FIN, or with RST if there is something unread."""
        self._stream.close()
        await self._stream.closed()

    async def _whole(self, reading: Awaitable[T], response: RawResponse | None) -> T:
        try:
            return await reading
        except ConnectionError as error:
            left = f"the connection ended early; unread: {self._stream.unread()[-200:]!r}"
            reset = isinstance(error, ConnectionResetError)
            raise Truncated(left, response, reset=reset) from error

    async def _read_body(self, response: RawResponse) -> None:
        length = response.header("Content-Length")
        if response.chunked:
            while chunk := await self._chunk():
                response.body += chunk
        elif length is not None:
            while (left := int(length) - len(response.body)) > 0:
                response.body += await self._stream.some(left)
        else:
            while piece := await self.read():
                response.body += piece

    async def _chunk(self) -> bytes:
        line = await self._stream.until(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if size:
            chunk = await self._stream.exactly(size)
            if await self._stream.exactly(2) != b"\r\n":
                raise ValueError("a chunk is longer than it said")
            return chunk
        while await self._stream.until(b"\r\n") != b"\r\n":
            pass
        return b""


def request_bytes(
    method: str,
    target: str,
    headers: Headers = (),
    body: bytes = b"",
    *,
    token: str | None = None,
) -> bytes:
    """A request's bytes: these header lines, and `Host`, `Content-Length` and a Bearer `token`.

    What the headers name themselves is not added.
    """
    lines = header_lines(headers)
    named = {name.lower() for name, _ in lines}
    added = [("Host", "127.0.0.1")]
    if token is not None:
        added.append(("Authorization", f"Bearer {token}"))
    if (body or method not in {"GET", "HEAD"}) and "transfer-encoding" not in named:
        added.append(("Content-Length", str(len(body))))
    lines = [*(line for line in added if line[0].lower() not in named), *lines]
    text = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return f"{method} {target} HTTP/1.1\r\n{text}\r\n".encode("latin-1") + body


def _parse_head(raw_head: bytes) -> RawResponse:
    first, *lines = raw_head[:-4].split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    headers = [_HEADER_LINE.fullmatch(line) for line in lines]
    if status is None or None in headers:
        raise ValueError(f"not a response head: {raw_head[:500]!r}")
    return RawResponse(
        version=status[1].decode(),
        status=int(status[2]),
        reason=status[3].decode("latin-1"),
        headers=[
            (line[1].decode("latin-1"), line[2].decode("latin-1")) for line in headers if line
        ],
        raw_head=raw_head,
    )
