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
import contextlib
import re
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssl import SSLContext

MAX_HEAD = 1024 * 1024

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


class Truncated(Exception):  # noqa: N818 - says what happened to the answer
    """The connection ended, or spoke no HTTP, before the answer was whole.

    :ivar response: as much of it as came, its body included; ``None`` without a whole head.
    :ivar reset: whether it ended by RST.
    """

    def __init__(self, message: str, response: RawResponse | None, *, reset: bool) -> None:
        super().__init__(message)
        self.response = response
        self.reset = reset


class RawConnection:
    """One connection. Made by `open`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

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
        :param receive_buffer: bytes that the socket takes in before somebody reads; small for a
            client that reads slowly.
        """
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            sock.setblocking(False)
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=ssl, server_hostname=host if ssl else None
            )
        except BaseException:
            sock.close()
            raise
        return cls(reader, writer)

    async def send(self, data: bytes) -> None:
        """Send exactly `data`."""
        self._writer.write(data)
        await self._writer.drain()

    async def read(self, most: int = 65536) -> bytes:
        """What has arrived, at most so many bytes; ``b""`` at the connection's end.

        :raises ConnectionResetError: it ended by RST.
        """
        return await self._reader.read(most)

    async def read_until(self, separator: bytes) -> bytes:
        """The bytes up to and with `separator`.

        :raises asyncio.IncompleteReadError: the connection ended first; has what came.
        """
        read = bytearray()
        while not read.endswith(separator):
            byte = await self._reader.read(1)
            if not byte:
                raise asyncio.IncompleteReadError(bytes(read), None)
            read += byte
        return bytes(read)

    async def read_to_end(self) -> bytes:
        """All bytes up to the connection's end.

        :raises ConnectionResetError: it ended by RST.
        """
        return await self._reader.read()

    async def head(self) -> RawResponse:
        """The next response's head, interim ones passed over; its body is still to be read.

        :raises Truncated: there is none.
        """
        interim: list[RawResponse] = []
        while True:
            response = _parse_head(await self._head_bytes())
            if response.status >= 200 or response.status == 101:
                response.interim = interim
                return response
            interim.append(response)

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; ``b""`` after the last one and its trailers.

        :raises Truncated: the body is not whole.
        """
        return await self._guarded(self._chunk(), None)

    async def response(self, *, to_head: bool = False) -> RawResponse:
        """The next response with its whole body.

        :param to_head: it answers a HEAD request, and so has no body.
        :raises Truncated: it is not whole.
        """
        response = await self.head()
        if not to_head and response.status not in {101, 204, 304}:
            await self._guarded(self._read_body(response), response)
        return response

    def half_close(self) -> None:
        """Send FIN, and go on reading."""
        self._writer.write_eof()

    async def reset(self) -> None:
        """End the connection with RST."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        await self._closed()

    async def close(self) -> None:
        """End the connection with FIN, or with RST if there is something unread."""
        self._writer.close()
        await self._closed()

    async def _closed(self) -> None:
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _head_bytes(self) -> bytes:
        try:
            return await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            what = f"half a head: {error.partial[:200]!r}" if error.partial else "no answer at all"
            raise Truncated(what, None, reset=False) from error
        except ConnectionResetError as error:
            raise Truncated("reset before the head was whole", None, reset=True) from error

    async def _read_body(self, response: RawResponse) -> None:
        length = response.header("Content-Length")
        if response.chunked:
            while chunk := await self._chunk():
                response.body += chunk
        elif length is not None:
            while (left := int(length) - len(response.body)) > 0:
                response.body += await self._some(left)
        else:
            while piece := await self._reader.read(65536):
                response.body += piece

    async def _chunk(self) -> bytes:
        size = int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16)
        if not size:
            while await self._reader.readuntil(b"\r\n") != b"\r\n":
                pass
            return b""
        chunk = await self._reader.readexactly(size)
        if await self._reader.readexactly(2) != b"\r\n":
            raise ValueError("a chunk is longer than it said")
        return chunk

    async def _some(self, most: int) -> bytes:
        piece = await self._reader.read(most)
        if not piece:
            raise asyncio.IncompleteReadError(b"", most)
        return piece
