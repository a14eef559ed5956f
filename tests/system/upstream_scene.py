"""How a client asks, in either dialect, and what it takes for a whole response, an error or a cut.

A scene has such a client, and checks all consequences of an upstream's fault.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tornadoproxy.testing import (
    TEST_TOKEN,
    RawResponse,
    ScriptedUpstream,
    Truncated,
    message_document,
    message_events,
    request_bytes,
)

if TYPE_CHECKING:
    from tornadoproxy.plugin.request import RequestRecord
    from tornadoproxy.testing import Document, OpenRaw, RawConnection, Records, UpstreamExchange

TEXT = "Half of this answer will do."
EVENTS = message_events(message_document(TEXT))
JSON = json.dumps(message_document(TEXT)).encode()
CHUNKED = b"Transfer-Encoding: chunked"
LAST_CHUNK = b"0\r\n\r\n"

WITHIN = 1.0
"""How soon after a fault all of its consequences are there, in seconds: they come within a few
milliseconds, and the rest is for a machine that is busy with other things."""

SILENCE = 0.3
"""How long the upstream may be silent, in seconds, where that is the fault. The next response may
take no longer than that, also on a busy machine."""


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def length(number: int) -> bytes:
    return b"Content-Length: %d" % number


@dataclass(frozen=True)
class Way:
    """How a client asks, and what it takes for a whole response, for an error and for a cut."""

    dialect: str
    stream: bool

    def __str__(self) -> str:
        return f"{self.dialect} {'SSE' if self.stream else 'JSON'}"

    @property
    def request(self) -> bytes:
        """The bytes of a request."""
        path = "/v1/messages" if self.dialect == "anthropic" else "/openai/v1/chat/completions"
        document = {
            "model": "claude-sonnet-5-5",
            "max_tokens": 50,
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": self.stream,
        }
        return request_bytes("POST", path, (), json.dumps(document).encode(), token=TEST_TOKEN)

    @property
    def shows_all(self) -> bool:
        """Whether the client gets the parts of a response before that is whole."""
        return self.dialect == "anthropic" or self.stream

    @property
    def body(self) -> bytes:
        """The body of the upstream's response."""
        return b"".join(EVENTS) if self.stream else JSON

    @property
    def part(self) -> bytes:
        """The first half of it; that of a stream ends within an event."""
        return b"".join(EVENTS[:6])[:-20] if self.stream else JSON[: len(JSON) // 2]

    def head(self, *lines: bytes) -> bytes:
        """The head of the upstream's response, with these further lines."""
        kind = b"text/event-stream" if self.stream else b"application/json"
        return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Type: " + kind, *lines, b"", b""])

    def check_whole(self, got: RawResponse | Truncated) -> None:
        """It is the upstream's response, and nothing besides."""
        assert isinstance(got, RawResponse)
        assert (got.status, got.interim) == (200, [])
        if self.dialect == "anthropic":
            assert got.body == self.body
        elif self.stream:
            chunks, done, rest = got.body.partition(b"data: [DONE]\n\n")
            assert (_text(_chunks(chunks)), bool(done), rest) == (TEXT, True, b"")
        else:
            assert json.loads(got.body)["choices"][0]["message"]["content"] == TEXT

    def check_refused(self, got: RawResponse | Truncated, status: int = 502) -> None:
        """It is an error document of the proxy's own."""
        assert isinstance(got, RawResponse)
        assert (got.status, got.interim) == (status, [])
        assert got.header("Content-Type") == "application/json"
        document = json.loads(got.body)
        if self.dialect == "anthropic":
            assert anthropic_type(document) == {502: "api_error", 504: "timeout_error"}[status]
            assert got.all("request-id") == [document["request_id"]]
        else:
            assert openai_type(document) == "server_error"
            assert len(got.all("x-request-id")) == 1

    def check_cut(self, got: RawResponse | Truncated, sent: bytes) -> None:
        """It is what came of the response's body, `sent`, and cannot be taken for the whole."""
        assert isinstance(got, Truncated)
        assert got.response is not None
        assert (got.response.status, got.response.interim) == (200, [])
        body = got.response.body
        if not self.stream:
            assert body == sent
        elif self.dialect == "anthropic":
            before, _, last = body.rpartition(b"event: error\ndata: ")
            assert before.startswith(sent)
            assert before == b"" or before.endswith(b"\n\n")
            assert last.endswith(b"\n\n")
            assert anthropic_type(json.loads(last)) == "api_error"
        else:
            *chunks, last_chunk = _chunks(body)
            assert openai_type(last_chunk) == "server_error"
            text = _text(chunks)
            assert TEXT.startswith(text)
            assert bool(text) == (b"text_delta" in sent)

    def check_broken(self, got: RawResponse | Truncated, sent: bytes, status: int = 502) -> None:
        """It is what a client sees of a response that broke off in its body, after `sent`."""
        if self.shows_all:
            self.check_cut(got, sent)
        else:
            self.check_refused(got, status)


WAYS = [Way(dialect, stream) for dialect in ("anthropic", "openai") for stream in (False, True)]


def anthropic_type(document: Document) -> object:
    """The type of an error, which is in Anthropic's shape."""
    assert document.keys() == {"type", "error", "request_id"}
    assert document["type"] == "error"
    assert document["request_id"]
    assert document["error"].keys() == {"type", "message"}
    assert document["error"]["message"]
    return document["error"]["type"]


def openai_type(document: Document) -> object:
    """The type of an error, which is in OpenAI's shape."""
    assert document.keys() == {"error"}
    assert document["error"].keys() == {"message", "type", "param", "code"}
    assert document["error"]["message"]
    return document["error"]["type"]


def _chunks(stream: bytes) -> list[Document]:
    """The data of each event, all of them JSON; comments are passed over."""
    *events, rest = stream.replace(b": ping\n\n", b"").split(b"\n\n")
    assert rest == b""
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def _text(chunks: list[Document]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


class Fault:
    """A response: these bytes, each piece a write, and then this end.

    :ivar happened: set when all that has.
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


@dataclass
class Scene:
    """A client, and the upstream that it asks in the end."""

    way: Way
    raw: OpenRaw
    upstream: ScriptedUpstream
    records: Records
    recorded: int = 0  # before the last request

    async def ask(self, fault: Fault) -> RawResponse | Truncated:
        """What the client gets in time if this is the response."""
        await self.begin(fault)
        return await self.result(fault)

    async def begin(self, fault: Fault) -> None:
        """Send a request on a new connection; its response is to be `fault`."""
        self.upstream.script(fault)
        self.recorded = len(self.records.all)
        self.client: RawConnection = await self.raw()
        await self.client.send(self.way.request)

    async def result(
        self, fault: Fault | None = None, *, patience: float = 0.0
    ) -> RawResponse | Truncated:
        """What the client gets in time.

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

    async def record(self) -> RequestRecord:
        """The one record of the last request."""
        return await self.records.finished(self.recorded + 1)

    async def check_failed(self, got: RawResponse | Truncated) -> None:
        """The request is recorded once, its connection closed, and the next request served."""
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
        """The next request is served, on the same connection if that is left."""
        requests, records = len(self.upstream.requests), len(self.records.all)
        response = Fault(self.way.head(CHUNKED) + chunk(self.way.body) + LAST_CHUNK, end="none")
        if isinstance(got, Truncated):
            await self.begin(response)
        else:
            self.upstream.script(response)
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
