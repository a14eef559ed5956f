"""One request that a scripted server received, and the means to respond to it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any, Literal

from tornadoproxy.fakes.body_reader import BodyReader
from tornadoproxy.fakes.byte_stream import ByteStream
from tornadoproxy.fakes.http_message import (
    Headers,
    all_values,
    framing,
    is_persistent,
    parse_request_head,
    response_head,
)

KEEP_BODY = 1024 * 1024
"""How many bytes of each request's body are kept by default."""

Ending = Literal["keep", "close", "reset", "hang"]
"""What follows the last piece of a response: the connection stays open, FIN, RST, or silence."""


class NumberedStream(ByteStream):
    """An accepted connection and its number."""

    number = 0


class ReceivedRequest:
    """One request as it arrived. Its body may still be arriving.

    :ivar method: as sent.
    :ivar target: the request target as on the wire, decoded as latin-1.
    :ivar version: ``"1.1"`` or ``"1.0"``.
    :ivar headers: names and values in wire order and wire case, decoded as latin-1.
    :ivar raw_head: the bytes of the head, its empty line included.
    :ivar connection: the number of the connection that carried it, counted from 1.
    :ivar body_length: how many body bytes have been read, without chunk framing.
    """

    def __init__(self, raw_head: bytes, connection: NumberedStream, keep_body: int) -> None:
        self.raw_head = raw_head
        self.method, self.target, self.version, self.headers = parse_request_head(raw_head)
        self.connection = connection.number
        self.body_length = 0
        self._framing = framing(self.version, self.headers) or 0
        self._link = connection
        self._keep_body = keep_body
        self._kept = bytearray()
        self._digest = hashlib.sha256()
        self._whole = self._framing == 0
        self._settled = asyncio.Event()
        if self._whole:
            self._settled.set()

    def header(self, name: str) -> str | None:
        """Return the first value of the header `name`; ``None`` if it is absent."""
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> list[str]:
        """Return every value of the header `name`, one for each line."""
        return all_values(self.headers, name)

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def body(self) -> bytes:
        """The body as far as it has been read.

        :raises ValueError: it is longer than the server keeps; use its digest and length.
        """
        if self.body_length > self._keep_body:
            raise ValueError(
                f"a body of {self.body_length} bytes is not kept:"
                " compare body_sha256 and body_length, or raise keep_body"
            )
        return bytes(self._kept)

    @property
    def body_sha256(self) -> str:
        """The hexadecimal SHA-256 of the body as far as it has been read."""
        return self._digest.hexdigest()

    def json(self) -> Any:  # a JSON document may be anything
        """Return the JSON document in the body."""
        return json.loads(self.body)

    async def complete(self) -> None:
        """Wait until the response has read the whole body.

        :raises ConnectionError: the connection closed first.
        """
        await self._settled.wait()
        if not self._whole:
            raise ConnectionError(f"the connection closed after {self.body_length} body bytes")

    async def disconnected(self) -> None:
        """Wait until the connection of this request has closed, by FIN or by RST.

        From here on the connection is read without a limit, because a socket reports its end only
        to a reader.
        """
        await self._link.disconnected()

    @property
    def disconnected_at(self) -> float | None:
        """When the connection closed, by `time.monotonic`; ``None`` while it is open."""
        return self._link.ended_at

    # the earlier names, until 0.2
    gone = disconnected
    gone_at = disconnected_at

    def _read(self, piece: bytes) -> None:
        self.body_length += len(piece)
        self._digest.update(piece)
        if self.body_length <= self._keep_body:
            self._kept += piece
        else:
            self._kept.clear()

    def _settle(self, *, whole: bool) -> None:
        self._whole = self._whole or whole
        self._settled.set()

    def __repr__(self) -> str:
        return f"<ReceivedRequest {self.method} {self.target}>"


class UpstreamExchange:
    """One request, and the means to respond to it.

    :ivar request: what arrived.
    :ivar keep_alive: whether the connection stays open after the response: what the request asks
        for, unless the response changes it.
    :ivar expects_continue: whether ``100 Continue`` is sent before the body is read: what the
        request asks for, unless the response changes it.
    """

    def __init__(self, request: ReceivedRequest, connection: NumberedStream, delay: float) -> None:
        self.request = request
        self.keep_alive = is_persistent(request.version, request.headers)
        self.expects_continue = (request.header("Expect") or "").lower() == "100-continue"
        self._connection = connection
        self._delay = delay
        self._body = BodyReader(connection, request._framing)
        self._ended = False

    @property
    def dead(self) -> bool:
        """Whether the connection has closed."""
        return self._connection.ended_at is not None

    async def read(self) -> bytes:
        """Return the next piece of the request's body as it arrives; ``b""`` when it is whole.

        What is not read stays with the sender, except for 64 kB and what the sockets hold.

        :raises ConnectionError: the connection closed first.
        """
        if self.expects_continue:
            await self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        piece = await self._body.read()
        self.request._read(piece)
        if self._body.whole:
            self.request._settle(whole=True)
        return piece

    async def read_all(self) -> None:
        """Read the request's body to its end."""
        while await self.read():
            pass

    async def body(self) -> bytes:
        """Return the request's whole body; see `ReceivedRequest.body` for its limit."""
        await self.read_all()
        return self.request.body

    async def send(self, data: bytes) -> None:
        """Send `data`, and wait until the operating system has accepted all of it.

        :raises ConnectionError: the connection has closed.
        """
        self.expects_continue = False
        await self._connection.send(data)

    async def head(self, status: int = 200, headers: Headers = (), reason: str = "") -> None:
        """Send a response head with these header lines and no others."""
        await self.send(response_head(status, headers, reason))

    async def chunk(self, data: bytes) -> None:
        """Send `data` as one chunk of a chunked body."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def last_chunk(self) -> None:
        """End a chunked body."""
        await self.send(b"0\r\n\r\n")

    async def pause(self) -> None:
        """Let the peer read what was sent before more follows.

        Waits for the server's ``delay``; without one, for as many turns of the event loop as a
        peer in the same loop needs to read.
        """
        if self._delay:
            await asyncio.sleep(self._delay)
            return
        # asyncio polls its sockets between two turns, and handles them in the second
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def disconnected(self) -> None:
        """Wait until the peer has disconnected; see `ReceivedRequest.disconnected`."""
        await self._connection.disconnected()

    gone = disconnected  # the earlier name, until 0.2

    def close(self) -> None:
        """Close the connection with FIN, after what was sent."""
        self._ended = True
        if self._body.whole:
            self._connection.close()
        else:
            # closing a socket with unread bytes would send RST
            self._connection.half_close()

    def reset(self) -> None:
        """Close the connection with RST."""
        self._ended = True
        self._connection.reset()

    async def end(self, how: Ending) -> None:
        """End the response in one of the ways of `Ending`."""
        match how:
            case "close":
                self.close()
            case "reset":
                await self.pause()
                self.reset()
            case "hang":
                await self.disconnected()
            case "keep":
                pass
