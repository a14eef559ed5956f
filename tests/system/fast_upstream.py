"""An upstream that bears load: a script that responds as `load_content` has it, and little else.

It says its port. Then it hears ``count``, to say what is open, ``answered``, to say the numbers of
all requests so far, and ``release``, to let what it holds go on.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import resource
import sys
from collections import deque
from collections.abc import AsyncIterator
from typing import cast

from load_content import ASKED, events_of, message_of

from tornadoproxy.server import runner

_LENGTH = re.compile(rb"(?i)\ncontent-length: *([0-9]+)")
_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_BETWEEN = 0.05  # seconds between two pieces of a stream, for the proxy to read each for itself


class Upstream:
    """What its connections have in common."""

    def __init__(self) -> None:
        self.open: set[Connection] = set()
        self.held: dict[Connection, deque[bytes]] = {}
        self.answered: list[int] = []

    async def release(self) -> None:
        """Send what is held, a piece of each stream in turn, so that they run into each other."""
        while self.held:
            for connection, pieces in list(self.held.items()):
                connection.transport.write(pieces.popleft())
                if not pieces:
                    del self.held[connection]
            await asyncio.sleep(_BETWEEN)


class Connection(asyncio.Protocol):
    """One connection of the proxy."""

    transport: asyncio.Transport

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._arrived = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._upstream.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.open.discard(self)
        self._upstream.held.pop(self, None)

    def data_received(self, data: bytes) -> None:
        self._arrived += data
        head, end, body = bytes(self._arrived).partition(b"\r\n\r\n")
        if not end:
            return
        length = _LENGTH.search(head)
        # a body without a length is one that is never over, here
        if length and len(body) >= int(length[1]):
            self._arrived.clear()
            self._response(body)

    def _response(self, body: bytes) -> None:
        asked = ASKED.search(body)
        assert asked is not None, body
        how, number = asked[1].decode(), int(asked[2])
        self._upstream.answered.append(number)
        if how in {"json", "late"}:
            message = json.dumps(message_of(number)).encode()
            whole = _WHOLE % (len(message), message)
            if how == "late":
                self._upstream.held[self] = deque([whole])
            else:
                self.transport.write(whole)
        else:
            first, *rest = events_of(number)
            self.transport.write(_STREAM + _chunk(first))
            pieces = deque([*_pieces(b"".join(rest), number), b"0\r\n\r\n"])
            if how == "hold":
                self._upstream.held[self] = pieces
            else:
                for piece in pieces:
                    self.transport.write(piece)


def _pieces(whole: bytes, number: int) -> list[bytes]:
    """`whole` as chunks that end wherever it happens."""
    ends = sorted(random.Random(number).sample(range(1, len(whole)), 8))
    return [_chunk(whole[a:b]) for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def say(document: object) -> None:
    """Tell the test something."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


async def commands() -> AsyncIterator[str]:
    """The lines of the test, until it ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async for line in reader:
        yield line.decode().strip()


async def main() -> int:
    """Serve until the test says no more."""
    upstream = Upstream()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(upstream), "127.0.0.1", 0, backlog=4096
    )
    say(server.sockets[0].getsockname()[1])
    async for command in commands():
        if command == "release":
            await upstream.release()
        if command == "answered":
            say(upstream.answered)
        else:
            say({"open": len(upstream.open), "held": len(upstream.held)})
    return 0


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.exit(runner.run(main()))
