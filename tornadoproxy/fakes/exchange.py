"""One request that a scripted server received, and the means to answer it."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from tornadoproxy.fakes.byte_stream import ByteStream

KEEP_BODY = 1024 * 1024

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(%b) ([\x21-\x7e\x80-\xff]+) HTTP/(1\.[01])" % _TOKEN)
_HEADER_LINE = re.compile(rb"(%b):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*" % _TOKEN)
_LENGTH = re.compile(r"[0-9]+")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\t\x20-\x7e\x80-\xff]*)?")

Headers = Mapping[str, str] | Iterable[tuple[str, str]]
"""Header lines in wire order; a mapping will do where no name is repeated."""

Ending = Literal["keep", "close", "reset", "hang"]
"""What follows an answer's last piece: the connection lives on, FIN, RST, or silence."""


class ProtocolError(Exception):
    """What arrived is not a request that RFC 9112 leaves in no doubt."""


class NumberedStream(ByteStream):
    """An accepted connection, and its number."""

    number = 0


class ReceivedRequest:
    """One request as it arrived. Its body may still be on its way.

    :ivar method: as sent.
    :ivar target: the request target as on the wire, latin-1.
    :ivar version: ``"1.1"`` or ``"1.0"``.
    :ivar headers: name and value in wire order and wire case, latin-1.
    :ivar raw_head: the head's bytes, the empty line included.
    :ivar connection: the accepted connection that it came by, counted from 1.
    :ivar body_length: the body bytes read so far, chunk framing excluded.
    """

    def __init__(self, raw_head: bytes, connection: NumberedStream, keep_body: int) -> None:
        self.raw_head = raw_head
        self.method, self.target, self.version, self.headers = _parse_head(raw_head)
        self.connection = connection.number
        self.body_length = 0
        self._framing = _framing(self)
        self._link = connection
        self._keep_body = keep_body
        self._kept = bytearray()
        self._digest = hashlib.sha256()
        self._whole = self._framing == 0
        self._settled = asyncio.Event()
        if self._whole:
            self._settled.set()

    def header(self, name: str) -> str | None:
        """The first value of the header `name`, whatever its case; ``None`` if it is absent."""
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> list[str]:
        """Every value of the header `name`, a line each."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def body(self) -> bytes:
        """The body as far as it was read.

        :raises ValueError: it is longer than the server keeps; its digest and length are known.
        """
        if self.body_length > self._keep_body:
            raise ValueError(
                f"a body of {self.body_length} bytes is not kept:"
                " compare body_sha256 and body_length, or raise keep_body"
            )
        return bytes(self._kept)

    @property
    def body_sha256(self) -> str:
        """The hexadecimal SHA-256 of the body as far as it was read."""
        return self._digest.hexdigest()

    def json(self) -> Any:  # a JSON document may be anything
        """The body's JSON document."""
        return json.loads(self.body)

    async def complete(self) -> None:
        """Wait until the answer has read the whole body.

        :raises ConnectionError: the connection ended first.
        """
        await self._settled.wait()
        if not self._whole:
            raise ConnectionError(f"the connection ended after {self.body_length} body bytes")

    async def gone(self) -> None:
        """Wait until this request's connection has ended, be it by FIN or by RST.

        From here on the connection is read without a limit: a socket that is not read does not
        tell of its end.
        """
        await self._link.gone()

    @property
    def gone_at(self) -> float | None:
        """When the connection ended, by `time.monotonic`; ``None`` while it lives."""
        return self._link.ended_at

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
    """One request, and the means to answer it.

    :ivar request: what arrived.
    :ivar keep_alive: whether the connection outlives the answer: what the request asks for,
        unless the answer decides otherwise.
    :ivar expects_continue: whether ``100 Continue`` goes out before the body is read: what the
        request asks for, unless the answer decides otherwise.
    """

    def __init__(self, request: ReceivedRequest, connection: NumberedStream, delay: float) -> None:
        self.request = request
        options = [
            option.strip().lower()
            for value in request.all("Connection")
            for option in value.split(",")
        ]
        self.keep_alive = "close" not in options and (
            request.version == "1.1" or "keep-alive" in options
        )
        self.expects_continue = (request.header("Expect") or "").lower() == "100-continue"
        self._connection = connection
        self._delay = delay
        self._body = _BodyReader(connection, request._framing)
        self._ended = False

    @property
    def dead(self) -> bool:
        """Whether the connection has ended."""
        return self._connection.ended_at is not None

    async def read(self) -> bytes:
        """The next piece of the request's body as it arrives; ``b""`` when it is whole.

        What is not read here stays with the sender, but for 64 kB and what the sockets hold.

        :raises ConnectionError: the connection ended first.
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
        """The request's whole body, within `ReceivedRequest.body`'s bounds."""
        await self.read_all()
        return self.request.body

    async def send(self, data: bytes) -> None:
        """Send `data`, and wait until the operating system has taken it all.

        :raises ConnectionError: the connection has ended.
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
        """Let the other side read what was sent before more follows.

        That is the server's ``delay``; without one, the turns of a loop that a peer in the same
        loop needs for a read.
        """
        if self._delay:
            await asyncio.sleep(self._delay)
            return
        # asyncio looks at its sockets between two turns, and runs what it finds in the later one
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def gone(self) -> None:
        """Wait until the peer has ended the connection; see `ReceivedRequest.gone`."""
        await self._connection.gone()

    def close(self) -> None:
        """End the connection with FIN, after what was sent."""
        self._ended = True
        if self._body.whole:
            self._connection.close()
        else:
            # to close a socket with something unread would send RST
            self._connection.half_close()

    def reset(self) -> None:
        """End the connection with RST."""
        self._ended = True
        self._connection.reset()

    async def end(self, how: Ending) -> None:
        """End the answer in one of the ways of `Ending`."""
        match how:
            case "close":
                self.close()
            case "reset":
                await self.pause()
                self.reset()
            case "hang":
                await self.gone()
            case "keep":
                pass


def response_head(status: int, headers: Headers = (), reason: str = "") -> bytes:
    """A response head's bytes: these header lines and no others."""
    reason = reason or http.client.responses.get(status, "")
    lines = [f"{name}: {value}" for name, value in header_lines(headers)]
    return "\r\n".join([f"HTTP/1.1 {status} {reason}", *lines, "", ""]).encode("latin-1")


class _BodyReader:
    """Reads one request's body off its connection, piece by piece."""

    def __init__(self, connection: NumberedStream, framing: int | None) -> None:
        self.whole = framing == 0
        self._connection = connection
        self._chunked = framing is None
        self._left = framing or 0

    async def read(self) -> bytes:
        if self._chunked and not self.whole and not self._left:
            await self._next_chunk()
        if self.whole:
            return b""
        piece = await self._connection.some(self._left)
        self._left -= len(piece)
        if not self._left:
            await self._end_chunk()
        return piece

    async def _next_chunk(self) -> None:
        line = (await self._connection.until(b"\r\n"))[:-2]
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(f"not the head of a chunk: {line[:80]!r}")
        self._left = int(match[1], 16)
        if self._left:
            return
        while line := (await self._connection.until(b"\r\n"))[:-2]:
            if not _HEADER_LINE.fullmatch(line):
                raise ProtocolError(f"not a trailer: {line[:80]!r}")
        self.whole = True

    async def _end_chunk(self) -> None:
        if not self._chunked:
            self.whole = True
        elif (end := await self._connection.exactly(2)) != b"\r\n":
            raise ProtocolError(f"a chunk is longer than it said: {end!r}")


def _parse_head(raw_head: bytes) -> tuple[str, str, str, list[tuple[str, str]]]:
    first, *lines = raw_head[:-4].split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise ProtocolError(f"not a request line: {first[:80]!r}")
    method, target, version = (part.decode("latin-1") for part in match.groups())
    headers = []
    for line in lines:
        match = _HEADER_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(f"not a header line: {line[:80]!r}")
        headers.append((match[1].decode("latin-1"), match[2].decode("latin-1")))
    return method, target, version, headers


def _framing(request: ReceivedRequest) -> int | None:
    """The body's length, or ``None`` if it is chunked. Every doubt is a fault."""
    if request.version == "1.1" and len(request.all("Host")) != 1:
        raise ProtocolError(f"not exactly one Host header: {request.all('Host')}")
    codings, lengths = request.all("Transfer-Encoding"), request.all("Content-Length")
    if codings:
        if (
            lengths
            or request.version == "1.0"
            or [coding.lower() for coding in codings] != ["chunked"]
        ):
            raise ProtocolError(f"Transfer-Encoding {codings} with Content-Length {lengths}")
        return None
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(length) for length in lengths):
        raise ProtocolError(f"Content-Length {lengths}")
    return int(lengths[0]) if lengths else 0


def header_lines(headers: Headers) -> list[tuple[str, str]]:
    """The header lines, each a name and a value."""
    return list(headers.items() if isinstance(headers, Mapping) else headers)
