"""Bodies of HTTP/1.1 messages, read piece by piece from a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.fakes.http_message import ProtocolError, parse_chunk_line, parse_trailer

if TYPE_CHECKING:
    from tornadoproxy.fakes.byte_stream import ByteStream
    from tornadoproxy.fakes.http_message import Framing


class BodyReader:
    """The body of one message.

    :ivar whole: whether nothing is left to be read.
    """

    def __init__(self, stream: ByteStream, framing: Framing) -> None:
        self._stream = stream
        self._chunked = framing == "chunked"
        self._left = framing if isinstance(framing, int) else 0  # of the body, or of the chunk
        self.whole = not self._chunked and not self._left

    async def read(self) -> bytes:
        """Return the next piece as it arrives; ``b""`` if the body is whole."""
        if self._chunked and not self.whole and not self._left:
            await self._begin_chunk()
        if self.whole:
            return b""
        piece = await self._stream.some(self._left)
        self._left -= len(piece)
        if not self._left:
            await self._end_chunk()
        return piece

    async def read_chunk(self) -> bytes:
        """Return the next whole chunk; ``b""`` after the last one."""
        chunk = await self.read()
        while self._left:
            chunk += await self.read()
        return chunk

    async def _begin_chunk(self) -> None:
        self._left, _ = parse_chunk_line(await self._line())
        if self._left:
            return
        while line := await self._line():
            parse_trailer(line)
        self.whole = True

    async def _end_chunk(self) -> None:
        if not self._chunked:
            self.whole = True
        elif (end := await self._stream.exactly(2)) != b"\r\n":
            raise ProtocolError(f"a chunk is longer than its size: {end!r}")

    async def _line(self) -> bytes:
        return (await self._stream.until(b"\r\n"))[:-2]
