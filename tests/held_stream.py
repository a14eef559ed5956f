"""Responses that a test begins or ends, or that do not end, and the request for a stream."""

from __future__ import annotations

import asyncio

from tornadoproxy.testing import (
    TEST_TOKEN,
    RawConnection,
    Response,
    UpstreamExchange,
    message_document,
    message_events,
    request_bytes,
)

REQUEST = request_bytes("POST", "/v1/messages", body=b"{}", token=TEST_TOKEN)
EVENT_STREAM = [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]
EVENTS = message_events(message_document())


class Stream:
    """A response that begins with `EVENTS[0]`, and ends when it may."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    async def __call__(self, exchange: UpstreamExchange) -> None:
        assert (await exchange.body()).startswith(b"{")
        await exchange.head(200, EVENT_STREAM)
        await exchange.chunk(EVENTS[0])
        await self.may_end.wait()
        for each in EVENTS[1:]:
            await exchange.chunk(each)
        await exchange.last_chunk()


class Held:
    """A response that begins, and reads the request's body, once it may."""

    def __init__(self, response: Response) -> None:
        self.may_begin = asyncio.Event()
        self._response = response

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await self.may_begin.wait()
        await self._response(exchange)


class Endless:
    """A response that goes on until it is aborted; `stalled` once nothing more can be sent.

    :param begin: its beginning.
    :param piece: what follows, again and again.
    """

    def __init__(self, begin: bytes = b"", piece: bytes = bytes(0x10000)) -> None:
        self.stalled = asyncio.Event()
        self._begin, self._piece = begin, piece

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        if self._begin:
            await exchange.chunk(self._begin)
        while True:
            sending = asyncio.create_task(exchange.chunk(self._piece))
            if not (await asyncio.wait({sending}, timeout=0.1))[0]:
                self.stalled.set()
            await sending


async def begin_stream(client: RawConnection) -> None:
    """Send `REQUEST`, and read the stream's head and first event."""
    await client.send(REQUEST)
    assert (await client.head()).status == 200
    assert await client.chunk() == EVENTS[0]


async def rest_of_stream(client: RawConnection) -> bytes:
    """Read the rest of the stream, to its clean end."""
    rest = b""
    while piece := await client.chunk():
        rest += piece
    return rest
