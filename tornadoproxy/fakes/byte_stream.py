"""A socket for a scripted peer: exact reads, awaited writes, and an end by FIN or RST.

asyncio's own streams do not suffice: they drop what arrived before an RST, report no end while
nothing is read, and their writes return before the operating system has the bytes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from typing import cast

READ_AHEAD = 64 * 1024
MAX_LINE = 1024 * 1024


class PeerClosed(ConnectionError):
    """A read after the peer's FIN, when everything before it has been read."""


class ByteStream(asyncio.Protocol):
    """One end of a connection.

    :ivar ended_at: when the connection closed, by `time.monotonic`; ``None`` while it is open.
    """

    def __init__(self) -> None:
        self.ended_at: float | None = None
        self._made: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._limit: float = READ_AHEAD
        self._ended = asyncio.Event()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()
        self._was_reset = False

    @property
    def transport(self) -> asyncio.Transport:
        """The transport of the connection."""
        assert self._made is not None, "not connected yet"
        return self._made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # not isinstance: uvloop's transports are not derived from asyncio's
        self._made = cast("asyncio.Transport", transport)
        # `send` waits until the operating system has all bytes: an RST would drop the others
        # (asyncio's TLS treats a limit of 0 as one that is always reached)
        self._made.set_write_buffer_limits(high=1 if self._is_tls() else 0, low=0)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._arrived.set()
        if len(self._buffer) > self._limit:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._end()
        # a half-closed connection can still be written to, but not with TLS
        return not self._is_tls()

    def connection_lost(self, exc: Exception | None) -> None:
        self._was_reset = exc is not None
        self._lost.set()
        self._end()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _is_tls(self) -> bool:
        return self.transport.get_extra_info("sslcontext") is not None

    def _end(self) -> None:
        if self.ended_at is None:
            self.ended_at = time.monotonic()
        self._ended.set()
        self._arrived.set()

    async def disconnected(self) -> None:
        """Wait until either side has closed the connection.

        From here on it is read without a limit, because a socket reports its end only to a reader.
        """
        self._limit = float("inf")
        self._resume()
        await self._ended.wait()

    async def some(self, most: int) -> bytes:
        """Return at least one byte, and at most `most`.

        :raises PeerClosed: the peer sent FIN.
        :raises ConnectionResetError: the connection was reset.
        """
        while not self._buffer:
            await self._more()
        return self._take(min(most, len(self._buffer)))

    async def exactly(self, count: int) -> bytes:
        """Return `count` bytes; raises as `some` does."""
        while len(self._buffer) < count:
            await self._more()
        return self._take(count)

    async def until(self, separator: bytes) -> bytes:
        """Return the bytes up to `separator`, which is included; raises as `some` does.

        :raises ValueError: `separator` is not within the next `MAX_LINE` bytes.
        """
        searched = 0
        while (found := self._buffer.find(separator, searched)) < 0:
            searched = max(0, len(self._buffer) - len(separator) + 1)
            if searched > MAX_LINE:
                raise ValueError(f"no {separator!r} within {MAX_LINE} bytes")
            await self._more()
        return self._take(found + len(separator))

    async def discard(self) -> None:
        """Drop what arrives until the connection closes."""
        try:
            while True:
                self._buffer.clear()
                await self._more()
        except ConnectionError:
            return

    def unread(self) -> bytes:
        """Return what has arrived and was not read."""
        return bytes(self._buffer)

    async def send(self, data: bytes) -> None:
        """Send `data`, and wait until the operating system has accepted all of it.

        :raises ConnectionResetError: the connection has closed.
        """
        if self.transport.is_closing():
            raise ConnectionResetError("the connection has closed")
        self.transport.write(data)
        await self._writable.wait()
        if self._lost.is_set():
            raise ConnectionResetError("the connection closed during a write")

    def half_close(self) -> None:
        """Send FIN, and continue to read. With TLS, which cannot, close the connection."""
        if not self.transport.can_write_eof():
            self.transport.close()
        elif not self.transport.is_closing():
            self.transport.write_eof()

    def close(self) -> None:
        """Send FIN and read no more; if something is unread, the kernel sends RST."""
        self.transport.close()

    def reset(self) -> None:
        """Send RST."""
        if not self.transport.is_closing():
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    async def closed(self) -> None:
        """Wait until the connection is closed on this side."""
        await self._lost.wait()

    def _resume(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    async def _more(self) -> None:
        if self._was_reset:
            raise ConnectionResetError("the connection was reset")
        if self._ended.is_set():
            raise PeerClosed("the peer has closed the connection")
        self._resume()
        self._arrived.clear()
        await self._arrived.wait()

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken
