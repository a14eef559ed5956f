"""A scripted HTTP/1.1 server: it answers as it is told, and records exactly what reached it.

Requests are framed here by hand, strictly by RFC 9112, and with none of the parsers that the
proxy uses: the record holds the bytes of the wire, and what two readings of one message could
disagree about is found instead of shared. Such a message, and an answer that raises, is put in
`ScriptedServer.failures`.

An answer is an async function of an `UpstreamExchange`. It starts when the request's head has
arrived, so that it may answer before the body has, or never::

    async def half_a_response(exchange: UpstreamExchange) -> None:
        await exchange.body()
        await exchange.head(200, [("Content-Length", "10")])
        await exchange.send(b"hello")
        exchange.reset()

    server.script(half_a_response)

Requests that share a connection are answered one after the other.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from tornadoproxy.fakes.byte_stream import ByteStream

if TYPE_CHECKING:
    from ssl import SSLContext

KEEP_BODY = 1024 * 1024

# connections that may arrive at once: one more than fit would knock again after a second
_BACKLOG = 4096

# of the event loop, until a connection that it has accepted is made, and so known here
_TURNS_TO_BE_MADE = 2

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

    def __init__(self, raw_head: bytes, connection: _Connection, keep_body: int) -> None:
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

    def __init__(self, request: ReceivedRequest, connection: _Connection, delay: float) -> None:
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


Response = Callable[[UpstreamExchange], Awaitable[None]]


class ScriptedServer:
    """The server. One instance listens once at a time; its record stays after `stop`.

    :param ssl: makes it speak TLS.
    :param delay: seconds between the events of a streamed answer.
    :param keep_body: bytes of each request's body that the record keeps; longer ones are known
        by digest and length alone.
    :ivar requests: in the order in which their heads arrived.
    :ivar connections: accepted so far.
    :ivar open_connections: accepted and not yet ended.
    :ivar failures: what should not have happened: a `ProtocolError` for each thing that is not
        HTTP, and each exception of an answer other than that its peer left.
    """

    def __init__(
        self, *, ssl: SSLContext | None = None, delay: float = 0.0, keep_body: int = KEEP_BODY
    ) -> None:
        self.requests: list[ReceivedRequest] = []
        self.connections = 0
        self.failures: list[Exception] = []
        self.host = ""
        self.port = 0
        self._ssl = ssl
        self._delay = delay
        self._keep_body = keep_body
        self._script: deque[Response] = deque()
        self._live: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        """The server's origin, without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._ssl else 'http'}://{host}:{self.port}"

    @property
    def open_connections(self) -> int:
        """Connections accepted and not yet ended."""
        return len(self._live)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen. Port 0 lets the system choose one.

        :raises OSError: the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: _Connection(self), host, port, ssl=self._ssl, backlog=_BACKLOG
        )
        self.host = host
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the socket and every connection, and wait until nothing is left."""
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        # asyncio loses, unclosed, a connection that it has accepted and not made when it closes
        for sock in listener.sockets:
            asyncio.get_running_loop().remove_reader(sock.fileno())
        for _ in range(_TURNS_TO_BE_MADE):
            await asyncio.sleep(0)
        listener.close()
        for connection in self._live:
            connection.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.all_closed()

    async def __aenter__(self) -> Self:
        """Listen on a free port of the loopback interface until the block's end."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def script(self, *responses: Response) -> None:
        """Answer the next requests so, in the order in which their heads arrive.

        After those, `default_response` answers again.
        """
        self._script.extend(responses)

    async def default_response(self, exchange: UpstreamExchange) -> None:
        """Answer a request that nothing was scripted for: 404."""
        await bytes_response(b"", status=404)(exchange)

    async def received(self, count: int = 1) -> ReceivedRequest:
        """Wait until `count` heads have arrived since the server was made; return that one."""
        while len(self.requests) < count:
            await self._change()
        return self.requests[count - 1]

    async def all_closed(self) -> None:
        """Wait until no connection is open."""
        while self._live:
            await self._change()

    async def _change(self) -> None:
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _opened(self, connection: _Connection) -> None:
        self.connections += 1
        connection.number = self.connections
        self._live.add(connection)
        task = asyncio.create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _closed(self, connection: _Connection) -> None:
        self._live.discard(connection)
        self._notify()

    async def _serve(self, connection: _Connection) -> None:
        try:
            while await self._respond_next(connection):
                pass
            # what still arrives is read, for the sake of a FIN instead of an RST
            await connection.discard()
        except ConnectionError:
            pass  # the peer has left, as peers may
        except Exception as error:
            self.failures.append(error)
            connection.reset()
        finally:
            connection.close()

    async def _respond_next(self, connection: _Connection) -> bool:
        """Answer the connection's next request; whether another one may follow."""
        raw_head = await connection.until(b"\r\n\r\n")
        request = ReceivedRequest(raw_head, connection, self._keep_body)
        exchange = UpstreamExchange(request, connection, self._delay)
        self.requests.append(request)
        self._notify()
        response = self._script.popleft() if self._script else self.default_response
        try:
            await response(exchange)
            if not exchange.keep_alive and not exchange._ended:
                exchange.close()
            if exchange._ended:
                return False
            exchange.expects_continue = False
            await exchange.read_all()
        finally:
            request._settle(whole=False)
        return True


def response_head(status: int, headers: Headers = (), reason: str = "") -> bytes:
    """A response head's bytes: these header lines and no others."""
    reason = reason or http.client.responses.get(status, "")
    lines = [f"{name}: {value}" for name, value in header_lines(headers)]
    return "\r\n".join([f"HTTP/1.1 {status} {reason}", *lines, "", ""]).encode("latin-1")


def bytes_response(body: bytes, headers: Headers = (), status: int = 200) -> Response:
    """Reads the request, then answers with `body` and its length, and with `headers`.

    A 204, a 304 and any 1xx have no body; the answer to HEAD has its length alone.
    """
    lines = header_lines(headers)
    bodiless = status < 200 or status in {204, 304}
    if not bodiless and not _has(lines, "Content-Length"):
        lines.append(("Content-Length", str(len(body))))

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        head = response_head(status, lines)
        await exchange.send(head if bodiless or exchange.request.method == "HEAD" else head + body)

    return response


def json_response(
    document: Any,  # a JSON document may be anything
    status: int = 200,
    headers: Headers = (),
) -> Response:
    """Reads the request, then answers with `document` as JSON."""
    lines = _with_default(header_lines(headers), "Content-Type", "application/json")
    return bytes_response(json.dumps(document).encode(), lines, status)


def sse_response(
    events: bytes | Sequence[bytes],
    *,
    split: int | None = None,
    headers: Headers = (),
    end: Ending = "keep",
) -> Response:
    """Reads the request, then streams server-sent events, each piece a chunk and a write.

    :param events: the pieces; bytes are one piece.
    :param split: cut the whole into pieces of so many bytes instead.
    :param headers: further header lines.
    :param end: ``"keep"`` ends the body; any other leaves it without its last chunk.
    """
    pieces = [events] if isinstance(events, bytes) else list(events)
    if split is not None:
        whole = b"".join(pieces)
        pieces = [whole[start : start + split] for start in range(0, len(whole), split)]
    lines = _with_default(header_lines(headers), "Content-Type", "text/event-stream; charset=utf-8")
    lines = _with_default(lines, "Cache-Control", "no-cache")
    lines = _with_default(lines, "Transfer-Encoding", "chunked")

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, lines)
        for piece in pieces:
            await exchange.pause()
            await exchange.chunk(piece)
        if end == "keep":
            await exchange.last_chunk()
        await exchange.end(end)

    return response


def raw_response(*pieces: bytes, end: Ending = "keep") -> Response:
    """Reads the request, then sends exactly these bytes, each piece a write."""

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        for piece in pieces:
            await exchange.send(piece)
            await exchange.pause()
        await exchange.end(end)

    return response


def silent_response() -> Response:
    """Reads the request, and never answers; ends when the peer leaves."""
    return raw_response(end="hang")


class _Connection(ByteStream):
    """One accepted connection."""

    number = 0

    def __init__(self, server: ScriptedServer) -> None:
        super().__init__()
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server._opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._server._closed(self)


class _BodyReader:
    """Reads one request's body off its connection, piece by piece."""

    def __init__(self, connection: _Connection, framing: int | None) -> None:
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


def _has(headers: list[tuple[str, str]], name: str) -> bool:
    return any(key.lower() == name.lower() for key, _ in headers)


def _with_default(headers: list[tuple[str, str]], name: str, value: str) -> list[tuple[str, str]]:
    return headers if _has(headers, name) else [(name, value), *headers]
