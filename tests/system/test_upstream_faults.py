"""Whatever goes wrong upstream, a client of either dialect is told so, at once and in its own way.

A fault happens at a moment of an answer: before its head, in it, or in its body. What the client
has to see follows from how it asked:

=============== ============================== ================================================
 asked for       the head was not whole         the body was not whole
=============== ============================== ================================================
Anthropic JSON  an error document, 502 or 504  what came of it, and the connection cut
Anthropic SSE   the same                       what came of it, ``event: error``, and a cut
OpenAI JSON     the same, in OpenAI's shape    an error document: nothing has gone out yet
OpenAI SSE      the same, in OpenAI's shape    chunks of it, ``data: {"error": …}``, and a cut
=============== ============================== ================================================

And each time: one record of it, the upstream's connection closed, and the next request answered.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trustme
import uvloop
from way_of_asking import WAYS, Way, openai_type

from tornadoproxy.testing import (
    TEST_TOKEN,
    RawResponse,
    ScriptedUpstream,
    Truncated,
    request_bytes,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawConnection,
        Records,
        StartProxy,
        UpstreamExchange,
    )

WITHIN = 1.0
"""How soon after a fault all of its consequences are there, in seconds. They are to be there within
0.3 and come within a few milliseconds; the rest is for a machine that is busy with other things."""

SILENCE = 0.3
"""How long the upstream may be silent, in seconds, where that is the fault. The answer to the next
request may be no slower than that, also on a busy machine."""

pytestmark = pytest.mark.usefixtures("no_errors_logged")


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

    async def ask(self, fault: Fault) -> RawResponse | Truncated:
        """What the client gets if this is the answer, and gets in time."""
        self.upstream.script(fault)
        await self.connect()
        await self.client.send(self.way.request)
        return await self.result(fault)

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
            record = await self.records.finished()
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


@pytest.fixture(params=["asyncio", pytest.param("uvloop", marks=pytest.mark.long)])
def asyncio_loop(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoop:
    """Either loop. All of it together takes long enough for one of them to be left for later."""
    return uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()


@pytest.fixture(params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    way: Way = request.param
    return way


@pytest.fixture
def scene(way: Way, raw: OpenRaw, upstream: ScriptedUpstream, records: Records) -> Scene:
    return Scene(way, raw, upstream, records)


# -- there is no connection


async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        await reader.read()
    writer.close()


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ESMTP\r\n")
    await say_nothing(reader, writer)


@asynccontextmanager
async def listening(
    port: int, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[None]:
    """At this port connections are served so; at the end the proxy has let go of them."""
    served: list[asyncio.Event] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over = asyncio.Event()
        served.append(over)
        await serve(reader, writer)
        over.set()

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
    async with asyncio.timeout(WITHIN):
        for over in served:
            await over.wait()


@asynccontextmanager
async def showing(port: int, certificate: trustme.LeafCert) -> AsyncIterator[None]:
    """At this port is somebody with this certificate, who must not be told anything."""
    server = ScriptedUpstream(ssl=server_context(certificate))
    await server.start(port=port)
    try:
        yield
    finally:
        await server.stop()
    assert server.requests == []


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The one that the proxy trusts."""
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]
        return number


NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
NO_CONNECTION: dict[
    str, tuple[str, int, Callable[[int, trustme.CA], AbstractAsyncContextManager[None]]]
] = {
    "refused": ("http", 502, lambda port, ca: nullcontext()),
    "closed": ("http", 502, lambda port, ca: listening(port, close)),
    "reset": ("http", 502, lambda port, ca: listening(port, reset)),
    "spoken to": ("http", 502, lambda port, ca: listening(port, greet)),
    "TLS, refused": ("https", 502, lambda port, ca: nullcontext()),
    "TLS, closed": ("https", 502, lambda port, ca: listening(port, close)),
    "TLS, reset": ("https", 502, lambda port, ca: listening(port, reset)),
    "TLS, not spoken": ("https", 502, lambda port, ca: listening(port, greet)),
    "TLS, silence": ("https", 504, lambda port, ca: listening(port, say_nothing)),
    "TLS, not trusted": (
        "https",
        502,
        lambda port, ca: showing(port, trustme.CA().issue_cert("127.0.0.1")),
    ),
    "TLS, another host": (
        "https",
        502,
        lambda port, ca: showing(port, ca.issue_cert("other.example", "127.0.0.2")),
    ),
    "TLS, expired": (
        "https",
        502,
        lambda port, ca: showing(
            port, ca.issue_cert("127.0.0.1", not_before=NOW - 2 * HOUR, not_after=NOW - HOUR)
        ),
    ),
    "TLS, not valid yet": (
        "https",
        502,
        lambda port, ca: showing(port, ca.issue_cert("127.0.0.1", not_before=NOW + HOUR)),
    ),
}
"""The scheme of the upstream's address, the status that follows, and who is there instead."""


@pytest.mark.parametrize("fault", NO_CONNECTION)
async def test_no_connection(
    fault: str,
    way: Way,
    start_proxy: StartProxy,
    raw: OpenRaw,
    records: Records,
    authority: trustme.CA,
    ca_file: Path,
    port: int,
) -> None:
    scheme, status, somebody = NO_CONNECTION[fault]
    patience = SILENCE if status == 504 else 0.0
    await start_proxy(
        UPSTREAM_BASE_URL=f"{scheme}://127.0.0.1:{port}",
        UPSTREAM_CA_FILE=ca_file,
        UPSTREAM_CONNECT_TIMEOUT=patience or 30,
    )
    secure = scheme == "https"
    upstream = ScriptedUpstream(
        ssl=server_context(authority.issue_cert("127.0.0.1")) if secure else None
    )
    scene = Scene(way, raw, upstream, records)
    await scene.connect()
    async with somebody(port, authority):
        await scene.client.send(way.request)
        got = await scene.result(patience=patience)
    way.check_refused(got, status)
    await upstream.start(port=port)
    try:
        await scene.check_over(got)
    finally:
        await upstream.stop()
    assert upstream.failures == []


async def test_a_name_that_nobody_knows(
    scene: Scene, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    await start_proxy(UPSTREAM_BASE_URL=f"http://localhost:{scene.upstream.port}")
    await scene.connect()
    with monkeypatch.context() as resolver:
        resolver.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
        await scene.client.send(scene.way.request)
        got = await scene.result()
    scene.way.check_refused(got)
    await scene.check_over(got)


# -- before the head, and in it

HEAD_MOMENTS = {
    "before it": b"",
    "in the status line": b"HTTP/1.1 20",
    "in a header": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "after 100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "after 103": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
}


@pytest.mark.parametrize("end", ["FIN", "RST"])
@pytest.mark.parametrize("moment", HEAD_MOMENTS)
async def test_an_end_before_the_head_is_whole(
    moment: str, end: str, proxy: Proxy, scene: Scene
) -> None:
    got = await scene.ask(Fault(HEAD_MOMENTS[moment], end=end))
    scene.way.check_refused(got)
    await scene.check_over(got)


OK = b"HTTP/1.1 200 OK\r\n"
NOT_HTTP = {
    "garbage": b"\0so long\r\n\r\n",
    "a page": b"<html>hello</html>\r\n",
    "a TLS alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "garbage in the status line": b"HTTP/1.1 20\0so long\r\n\r\n",
    "garbage between headers": OK + b"Content-Type: text/event-stream\r\n\0so long\r\n\r\n",
    "garbage after 103": b"HTTP/1.1 103 Early Hints\r\n\r\n\0so long\r\n\r\n",
    "a header without a colon": OK + b"so long\r\n\r\n",
    "NUL in a header": OK + b"X-Id: a\0b\r\nContent-Length: 0\r\n\r\n",
    "ESC in a header": OK + b"X-Id: a\x1bb\r\nContent-Length: 0\r\n\r\n",
    "DEL in a header": OK + b"X-Id: a\x7fb\r\nContent-Length: 0\r\n\r\n",
    "bare CR in a header": OK + b"X-Id: a\rb: c\r\nContent-Length: 0\r\n\r\n",
    "bare LF in a header": OK + b"X-Id: a\nb: c\r\nContent-Length: 0\r\n\r\n",
    "a folded header": OK + b"X-Id: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a blank in a name": OK + b"X Id: a\r\nContent-Length: 0\r\n\r\n",
    "a blank after a name": OK + b"X-Id : a\r\nContent-Length: 0\r\n\r\n",
    "a name beyond ASCII": OK + b"X-\xe4: a\r\nContent-Length: 0\r\n\r\n",
    "a header without a name": OK + b": a\r\nContent-Length: 0\r\n\r\n",
    "a length that is no number": OK + b"Content-Length: many\r\n\r\n{}",
    "a negative length": OK + b"Content-Length: -2\r\n\r\n{}",
    "two different lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
    "a length beside chunks": OK + b"Content-Length: 2\r\n" + CHUNKED + b"\r\n\r\n2\r\n{}\r\n",
    "chunks in a coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "101 and the other protocol": (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00"
    ),
}


@pytest.mark.parametrize("fault", NOT_HTTP)
async def test_a_head_that_is_not_http(fault: str, proxy: Proxy, scene: Scene) -> None:
    """The upstream stays there: it is the proxy that has to see that nothing will come of it."""
    got = await scene.ask(Fault(NOT_HTTP[fault]))
    scene.way.check_refused(got)
    await scene.check_over(got)


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        pytest.param(OK, b"X-Endless: " + b"x" * 4000 + b"\r\n", id="headers"),
        pytest.param(OK + b"X-Endless: ", b"x" * 4000, id="a header"),
        pytest.param(b"HTTP/1.1 200 ", b"x" * 4000, id="a reason"),
        pytest.param(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 90, id="103"),
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 160, id="100"),
    ],
)
async def test_a_head_without_an_end(
    begins: bytes, goes_on: bytes, proxy: Proxy, scene: Scene
) -> None:
    """No head is a megabyte long: then at the latest it is a fault."""
    got = await scene.ask(Fault(begins, *[goes_on] * 256))
    scene.way.check_refused(got)
    await scene.check_over(got)


# -- in the body

FRAMINGS: dict[str, Callable[[Way, bytes], tuple[bytes, bytes]]] = {
    # room for the error is in this length, and in none that is a stream's own
    "a length": lambda way, part: (way.head(length(len(way.body) + 1000)), part),
    "chunks": lambda way, part: (way.head(CHUNKED), chunk(part)),
    "a chunk": lambda way, part: (way.head(CHUNKED), b"%x\r\n" % len(way.body) + part),
    "to the close": lambda way, part: (way.head(), part),
}
BODY_MOMENTS = {
    f"{framing}, {'half of it' if half else 'nothing yet'}": (framing, half)
    for framing in FRAMINGS
    for half in (False, True)
}


def begun(way: Way, moment: str) -> tuple[bytes, bytes, bytes]:
    """An answer that has come so far: what was sent of its body, and that and its head framed."""
    framing, half = BODY_MOMENTS[moment]
    part = way.part if half else b""
    return (part, *FRAMINGS[framing](way, part))


@pytest.mark.parametrize(
    ("moment", "end"),
    [
        pytest.param(moment, end, id=f"{moment}, {end}")
        for moment in BODY_MOMENTS
        for end in ("FIN", "FIN at once", "RST")
        if not (moment.startswith("to the close") and end != "RST")  # so it ends: see below
    ],
)
async def test_an_end_before_the_body_is_whole(
    moment: str, end: str, proxy: Proxy, scene: Scene
) -> None:
    part, head, body = begun(scene.way, moment)
    pieces = [head + body] if end == "FIN at once" else [head, body]
    got = await scene.ask(Fault(*pieces, end=end[:3]))
    scene.way.check_broken(got, part)
    await scene.check_over(got)


@pytest.mark.parametrize("end", ["FIN", "RST"])
async def test_an_error_of_the_upstreams_that_is_not_whole(
    end: str, proxy: Proxy, scene: Scene
) -> None:
    way = scene.way
    head = (
        b"HTTP/1.1 529 Overloaded\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    )
    got = await scene.ask(Fault(head, b'{"type":"error",', end=end))
    if way.dialect == "anthropic":
        assert isinstance(got, Truncated)
        assert got.response is not None
        assert (got.response.status, got.response.body) == (529, b'{"type":"error",')
    else:
        way.check_refused(got)
    await scene.check_over(got)


BAD_CHUNKS: dict[str, Callable[[bytes], bytes]] = {
    "garbage for a size": lambda part: chunk(part) + b"so long\r\n",
    "no size": lambda part: chunk(part) + b"\r\n",
    "a negative size": lambda part: chunk(part) + b"-2\r\n",
    "a size without an end": lambda part: chunk(part) + b"f" * 17 + b"\r\n",
    "a bare line feed": lambda part: chunk(part) + b"2\n",
    "more than its size": lambda part: chunk(part)[:-2] + b"so long\r\n",
    "a trailer that is none": lambda part: chunk(part) + b"0\r\nso long\r\n\r\n",
}


@pytest.mark.parametrize("fault", BAD_CHUNKS)
async def test_a_chunk_that_is_none(fault: str, proxy: Proxy, scene: Scene) -> None:
    """The upstream stays there, as above."""
    way = scene.way
    got = await scene.ask(Fault(way.head(CHUNKED), BAD_CHUNKS[fault](way.part)))
    way.check_broken(got, way.part)
    await scene.check_over(got)


# -- silence


async def test_silence(
    way: Way,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    subtests: pytest.Subtests,
) -> None:
    """At each moment of an answer. They all last at the same time, and so no longer than one."""
    await start_proxy(UPSTREAM_FIRST_BYTE_TIMEOUT=SILENCE, UPSTREAM_IDLE_TIMEOUT=SILENCE)
    pieces = {moment: [sent] for moment, sent in HEAD_MOMENTS.items()}
    parts = {}
    for moment in BODY_MOMENTS:
        parts[moment], *pieces[moment] = begun(way, moment)
    scenes = {}
    for moment in pieces:
        scene, fault = Scene(way, raw, upstream, records), Fault(*pieces[moment])
        upstream.script(fault)
        await scene.connect()
        await scene.client.send(way.request)
        await fault.happened.wait()
        scenes[moment] = scene
    async with asyncio.timeout(SILENCE + WITHIN):
        got = {moment: await scenes[moment].result(patience=SILENCE) for moment in scenes}
        await records.finished(len(scenes))
        await upstream.all_closed()
    shown = 200 if way.shows_all else 504
    expected = [504] * len(HEAD_MOMENTS) + [shown] * len(BODY_MOMENTS)
    assert sorted(record.status or 0 for record in records.all) == sorted(expected)
    assert {record.outcome for record in records.all} == {"failed"}
    for moment, each in got.items():
        with subtests.test(moment):
            if moment in parts:
                way.check_broken(each, parts[moment], 504)
            else:
                way.check_refused(each, 504)
            await scenes[moment].check_next(each)


# -- what looks like a fault, and is none

FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
TOLERATED: dict[str, Callable[[Way], Fault]] = {
    "100": lambda way: interim(b"100 Continue\r\n", way),
    "102": lambda way: interim(b"102 Processing\r\n", way),
    "103": lambda way: interim(b"103 Early Hints\r\nLink: </a>\r\nX-Hint: 1\r\n", way),
    "a hundred of 103": lambda way: interim(b"103 Early Hints\r\nLink: </a>\r\n", way, count=100),
    "the end of the connection": lambda way: Fault(way.head(), way.body, end="FIN"),
    "the end of the connection, at once": lambda way: Fault(way.head() + way.body, end="FIN"),
    "HTTP/1.0": lambda way: Fault(
        way.head(length(len(way.body))).replace(b"/1.1", b"/1.0", 1), way.body, end="none"
    ),
    "trailers": lambda way: Fault(
        way.head(b"Trailer: X-Hint", CHUNKED),
        chunk(way.body) + b"0\r\nX-Hint: 1\r\nServer-Timing: a;dur=1\r\n\r\n",
        end="none",
    ),
    "chunk extensions": lambda way: Fault(
        way.head(CHUNKED),
        b'%x;a=b;c="d;e"\r\n%b\r\n0;last\r\n\r\n' % (len(way.body), way.body),
        end="none",
    ),
    "more than it said": lambda way: Fault(
        way.head(length(len(way.body))), way.body + FORGED, end="none"
    ),
    "more than it said, later": lambda way: Fault(
        way.head(length(len(way.body))), way.body, FORGED, end="none"
    ),
    "more after the last chunk": lambda way: Fault(
        way.head(CHUNKED), chunk(way.body) + LAST_CHUNK + FORGED, end="none"
    ),
}


def interim(head: bytes, way: Way, count: int = 1) -> Fault:
    response = way.head(length(len(way.body))) + way.body
    return Fault(*[b"HTTP/1.1 " + head + b"\r\n"] * count, response, end="none")


@pytest.mark.parametrize("oddity", TOLERATED)
async def test_what_is_tolerated(oddity: str, proxy: Proxy, scene: Scene) -> None:
    got = await scene.ask(TOLERATED[oddity](scene.way))
    scene.way.check_whole(got)
    assert isinstance(got, RawResponse)
    assert got.header("X-Hint") is None
    assert (await scene.records.finished()).outcome == "completed"
    if oddity.startswith("more"):  # nobody knows what its connection has in store
        async with asyncio.timeout(WITHIN):
            await scene.upstream.all_closed()
    await scene.check_next(got)


# -- an answer whose framing is whole, and that is none


TOO_SHORT: dict[str, Callable[[Way], Fault]] = {
    "its length": lambda way: Fault(way.head(length(len(way.part))), way.body, end="none"),
    "its chunks": lambda way: Fault(way.head(CHUNKED), chunk(way.part) + LAST_CHUNK, end="none"),
    "its connection": lambda way: Fault(way.head(), way.part, end="FIN"),
}


@pytest.mark.parametrize("fault", TOO_SHORT)
async def test_an_answer_that_is_too_short(fault: str, proxy: Proxy, scene: Scene) -> None:
    """What was framed as a whole is one to the relay, unless the end may be an accident."""
    way = scene.way
    got = await scene.ask(TOO_SHORT[fault](way))
    if way.dialect == "openai" or (way.stream and fault == "its connection"):
        way.check_broken(got, way.part)
    else:
        assert isinstance(got, RawResponse)
        assert (got.status, got.body) == (200, way.part)
    whole = way.dialect == "anthropic" and isinstance(got, RawResponse)
    assert (await scene.records.finished()).outcome == ("completed" if whole else "failed")
    await scene.check_next(got)


NO_MESSAGE = {
    "HTML": OK + b"Content-Type: text/html\r\nContent-Length: 18\r\n\r\n<html>hello</html>",
    "nothing": OK + b"Content-Length: 0\r\n\r\n",
    "no chunk": OK + CHUNKED + b"\r\n\r\n" + LAST_CHUNK,
    "201": b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\n\r\n",
} | {
    f"a redirect, {status}": b"HTTP/1.1 %d Moved\r\nLocation: /v1/elsewhere\r\n"
    b"Content-Length: 5\r\n\r\nmoved" % status
    for status in (301, 302, 307)
}


@pytest.mark.parametrize("fault", NO_MESSAGE)
async def test_what_is_no_message(fault: str, proxy: Proxy, scene: Scene) -> None:
    """The relay passes it on and follows nothing. To a chat completion it can only be an error."""
    response = NO_MESSAGE[fault]
    got = await scene.ask(Fault(response, end="none"))
    if scene.way.dialect == "openai":
        scene.way.check_refused(got)
        assert isinstance(got, RawResponse)
        assert got.header("Location") is None
    else:
        assert isinstance(got, RawResponse)
        assert got.status == int(response[9:12])
        assert got.body == (b"" if fault == "no chunk" else response.partition(b"\r\n\r\n")[2])
        assert got.header("Location") == ("/v1/elsewhere" if "redirect" in fault else None)
    expected = "failed" if scene.way.dialect == "openai" else "completed"
    assert (await scene.records.finished()).outcome == expected
    assert len(scene.upstream.requests) == 1
    await scene.check_next(got)


@pytest.mark.parametrize("fault", NO_MESSAGE)
async def test_what_is_no_list_of_models(
    fault: str, proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    upstream.script(Fault(NO_MESSAGE[fault], end="none"))
    scene = Scene(Way("openai", stream=False), raw, upstream, records)
    await scene.connect()
    await scene.client.send(request_bytes("GET", "/openai/v1/models", token=TEST_TOKEN))
    got = await scene.result()
    scene.way.check_refused(got)
    assert (await records.finished()).outcome == "failed"
    assert len(upstream.requests) == 1
    await scene.check_next(got)


@pytest.mark.parametrize("framing", ["a length", "chunks", "the connection"])
async def test_a_message_of_nothing(framing: str, proxy: Proxy, scene: Scene) -> None:
    """Its head promises a message, or a stream of one."""
    way = scene.way
    responses = {
        "a length": Fault(way.head(length(0)), end="none"),
        "chunks": Fault(way.head(CHUNKED) + LAST_CHUNK, end="none"),
        "the connection": Fault(way.head(), end="FIN"),
    }
    got = await scene.ask(responses[framing])
    if way.dialect == "openai":
        way.check_broken(got, b"")
    else:
        assert isinstance(got, RawResponse)
        assert (got.status, got.body) == (200, b"")
    expected = "failed" if way.dialect == "openai" else "completed"
    assert (await scene.records.finished()).outcome == expected
    await scene.check_next(got)


# -- the upstream's own errors

ERRORS = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
HEADERS = {
    "retry-after": "7",
    "retry-after-ms": "7000",
    "x-should-retry": "true",
    "anthropic-ratelimit-requests-remaining": "0",
    "anthropic-organization-id": "org",
}


@pytest.mark.parametrize(
    ("status", "kind"), [*ERRORS.items(), (404, "a page"), (502, "a page"), (503, "a page")]
)
async def test_an_error_of_the_upstreams(
    status: int, kind: str, proxy: Proxy, scene: Scene
) -> None:
    error = {"type": kind, "message": "It says why."}
    document = {"type": "error", "error": error, "request_id": "req_upstream"}
    page = kind == "a page"
    body = b"<h1>It says why.</h1>" if page else json.dumps(document, indent=1).encode()
    content_type = "text/html" if page else "application/json"
    named = {"content-type": content_type, "request-id": "req_upstream", "date": "x", **HEADERS}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    head = f"HTTP/1.1 {status} Of its own\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    got = await scene.ask(Fault(head.encode() + body, end="none"))
    assert isinstance(got, RawResponse)
    assert got.status == status
    assert {name: got.header(name) for name in HEADERS} == HEADERS
    if scene.way.dialect == "anthropic":
        assert (got.reason, got.body) == ("Of its own", body)
        expected = [*named.items(), ("content-length", str(len(body)))]
        assert [(name.lower(), value) for name, value in got.headers] == expected
    else:
        assert got.header("Content-Type") == "application/json"
        assert got.all("x-request-id") == ["req_upstream"]
        told = json.loads(got.body)
        assert "It says why." in told["error"]["message"]
        assert (openai_type(told) == "server_error") == (status >= 500)
    record = await scene.records.finished()
    assert (record.outcome, record.status) == ("completed", status)
    assert record.request_id == "req_upstream"
    await scene.check_next(got)
