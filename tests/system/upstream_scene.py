"""A client, the upstream that it asks in the end, and what is checked of every fault there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from way_of_asking import WAYS, Way

from tornadoproxy.testing import (
    RawResponse,
    ScriptedUpstream,
    Truncated,
)

if TYPE_CHECKING:
    from tornadoproxy.plugin.request import RequestRecord
    from tornadoproxy.testing import (
        OpenRaw,
        RawConnection,
        Records,
        UpstreamExchange,
    )

WITHIN = 1.0
"""How soon after a fault all of its consequences are there, in seconds. They are to be there within
0.3 and come within a few milliseconds; the rest is for a machine that is busy with other things."""

SILENCE = 0.3
"""How long the upstream may be silent, in seconds, where that is the fault. The answer to the next
request may be no slower than that, also on a busy machine."""

OK = b"HTTP/1.1 200 OK\r\n"


class Fault:
    """An answer: these bytes, each piece a write, and then this end.

    :ivar happened: when all that has.
    """

    def __init__(self, *pieces: bytes, end: str = "silence") -> None:
        self.happened = asyncio.Event()
        self._pieces = pieces
        self._end = end

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        try:
            for piece in self._pieces:
                await exchange.send(piece)
                await exchange.pause()
            if self._end == "FIN":
                exchange.close()
            elif self._end == "RST":
                exchange.reset()
        finally:
            self.happened.set()
        if self._end == "silence":
            await exchange.disconnected()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


CHUNKED = b"Transfer-Encoding: chunked"
LAST_CHUNK = b"0\r\n\r\n"


def length(number: int) -> bytes:
    return b"Content-Length: %d" % number


@dataclass
class Scene:
    """A client, and the upstream that it asks in the end."""

    way: Way
    raw: OpenRaw
    upstream: ScriptedUpstream
    records: Records
    recorded: int = 0  # before what was asked last

    async def ask(self, fault: Fault) -> RawResponse | Truncated:
        """What the client gets if this is the answer, and gets in time."""
        self.upstream.script(fault)
        self.recorded = len(self.records.all)
        await self.connect()
        await self.client.send(self.way.request)
        return await self.result(fault)

    async def record(self) -> RequestRecord:
        """The one record of what was asked last."""
        return await self.records.finished(self.recorded + 1)

    async def connect(self) -> None:
        """Have the client open a new connection."""
        self.client: RawConnection = await self.raw()

    async def result(
        self, fault: Fault | None = None, *, patience: float = 0.0
    ) -> RawResponse | Truncated:
        """What the client gets, and gets in time.

        :param fault: the time starts when this has happened, else now.
        :param patience: how many seconds the proxy waits before it is a fault.
        """
        reading = asyncio.ensure_future(self.client.response())
        if fault is not None:
            await fault.happened.wait()
        async with asyncio.timeout(patience + WITHIN):
            try:
                return await reading
            except Truncated as cut:
                return cut

    async def check_over(self, got: RawResponse | Truncated) -> None:
        """What failed has one record, and no connection any more; and the next is an answer."""
        async with asyncio.timeout(WITHIN):
            record = await self.record()
            await self.upstream.all_closed()
        response = got.response if isinstance(got, Truncated) else got
        assert response is not None
        assert (record.outcome, record.status) == ("failed", response.status)
        assert record.error
        assert record.dialect == self.way.dialect
        await self.check_next(got)

    async def check_next(self, got: RawResponse | Truncated) -> None:
        """The next request is answered, on the same connection if that is left."""
        requests, records = len(self.upstream.requests), len(self.records.all)
        response = Fault(self.way.head(CHUNKED) + chunk(self.way.body) + LAST_CHUNK, end="none")
        self.upstream.script(response)
        if isinstance(got, Truncated):
            await self.connect()
        await self.client.send(self.way.request)
        self.way.check_whole(await self.result(response))
        assert (await self.records.finished(records + 1)).outcome == "completed"
        # nothing was asked or recorded a second time
        assert (len(self.upstream.requests), len(self.records.all)) == (requests + 1, records + 1)


@pytest.fixture(params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    way: Way = request.param
    return way


@pytest.fixture
def scene(way: Way, raw: OpenRaw, upstream: ScriptedUpstream, records: Records) -> Scene:
    return Scene(way, raw, upstream, records)
