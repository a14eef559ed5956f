"""Upstream faults, and what a client of either API sees of each.

A fault happens before the response's head, in it, or in its body. What the client sees depends on
how it asked:

=============== ============================== ================================================
 asked for       the head was not whole         the body was not whole
=============== ============================== ================================================
Anthropic JSON  an error document, 502 or 504  the part that came, and the connection cut
Anthropic SSE   the same                       the part that came, ``event: error``, and a cut
OpenAI JSON     the same, in OpenAI's shape    an error document: nothing has been sent yet
OpenAI SSE      the same, in OpenAI's shape    chunks of it, ``data: {"error": …}``, and a cut
=============== ============================== ================================================

Each time there is one record, the upstream connection is closed, and the next request is served.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Literal

import pytest
import trustme
import uvloop
from upstream_scene import CHUNKED, OK, SILENCE, WITHIN, Fault, Scene, chunk, length
from way_of_asking import WAYS, Way

from tornadoproxy.testing import (
    ScriptedUpstream,
    Truncated,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        Records,
        StartProxy,
    )

pytest_plugins = ("upstream_scene",)
pytestmark = pytest.mark.usefixtures("no_errors_logged")


@pytest.fixture(params=["asyncio", pytest.param("uvloop", marks=pytest.mark.long)])
def asyncio_loop(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoop:
    """Either loop. All of it together takes long enough for one of them to be left for later."""
    return uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()


# -- there is no connection; tests/upstream/test_connector.py has the certificates


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


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(
    port: int, serve: Serve | None, context: ssl.SSLContext | None = None
) -> AsyncIterator[None]:
    """Serve connections at `port`; at the end see that the proxy has closed each of its own."""
    if serve is None:
        yield
        return
    served: list[asyncio.Event] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over = asyncio.Event()
        served.append(over)
        await serve(reader, writer)
        over.set()

    server = await asyncio.start_server(accept, "127.0.0.1", port, ssl=context)
    try:
        yield
    finally:
        server.close()
    assert context is None or not served  # a TLS connection to it was never established
    async with asyncio.timeout(WITHIN):
        for over in served:
            await over.wait()


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize("way", [WAYS[0], WAYS[3]], ids=str)
@pytest.mark.parametrize(
    ("scheme", "status", "serve"),
    [
        *[("http", 502, serve) for serve in (None, close, reset, greet)],
        *[("https", 502, serve) for serve in (None, close, reset, greet, "untrusted")],
        ("https", 504, say_nothing),
    ],
)
async def test_upstream_that_cannot_be_connected_is_502_or_504(
    scheme: str,
    status: int,
    serve: Serve | Literal["untrusted"] | None,
    way: Way,
    start_proxy: StartProxy,
    raw: OpenRaw,
    records: Records,
    tmp_path: Path,
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    patience = SILENCE if status == 504 else 0.0
    await start_proxy(
        UPSTREAM_BASE_URL=f"{scheme}://127.0.0.1:{port}",
        UPSTREAM_CA_FILE=tmp_path / "ca.pem",
        UPSTREAM_CONNECT_TIMEOUT=patience or 30,
    )
    upstream = ScriptedUpstream(ssl=server_context(authority) if scheme == "https" else None)
    scene = Scene(way, raw, upstream, records)
    await scene.connect()
    async with listening(
        port,
        say_nothing if serve == "untrusted" else serve,
        server_context(trustme.CA()) if serve == "untrusted" else None,
    ):
        await scene.client.send(way.request)
        got = await scene.result(patience=patience)
    way.check_refused(got, status)
    await upstream.start(port=port)
    try:
        await scene.check_over(got)
    finally:
        await upstream.stop()
    assert upstream.failures == []


async def test_upstream_name_that_does_not_resolve_is_502(
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


ENDLESS = {
    "headers": (OK, b"X-Endless: " + b"x" * 4000 + b"\r\n"),
    "a header": (OK + b"X-Endless: ", b"x" * 4000),
    "a reason": (b"HTTP/1.1 200 ", b"x" * 4000),
    "103": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 90),
    "100": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 160),
}


def head_faults() -> Iterator[tuple[str, Fault]]:
    for moment, sent in HEAD_MOMENTS.items():
        for end in ("FIN", "RST"):
            yield f"{end} {moment}", Fault(sent, end=end)
    # the connection stays open: the proxy has to see that nothing valid will follow
    for name, sent in NOT_HTTP.items():
        yield name, Fault(sent)
    # a head of a megabyte is refused at the latest
    for name, (begins, goes_on) in ENDLESS.items():
        yield f"endless {name}", Fault(begins, *[goes_on] * 256)


async def test_fault_in_upstream_head_is_502(
    proxy: Proxy, scene: Scene, subtests: pytest.Subtests
) -> None:
    for name, fault in head_faults():
        with subtests.test(name):
            got = await scene.ask(fault)
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


@pytest.mark.parametrize("end", ["FIN", "RST"])
async def test_truncated_error_of_upstream_is_cut_or_502(
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


def body_faults(way: Way) -> Iterator[tuple[str, bytes, Fault]]:
    """Each with what came of the body."""
    for moment in BODY_MOMENTS:
        part, head, body = begun(way, moment)
        yield f"RST: {moment}", part, Fault(head, body, end="RST")
        if not moment.startswith("to the close"):  # which is how such a body ends
            yield f"FIN: {moment}", part, Fault(head, body, end="FIN")
            yield f"FIN at once: {moment}", part, Fault(head + body, end="FIN")
    for name, chunks in BAD_CHUNKS.items():
        yield name, way.part, Fault(way.head(CHUNKED), chunks(way.part))


async def test_fault_in_upstream_body_is_cut_or_502(
    proxy: Proxy, scene: Scene, subtests: pytest.Subtests
) -> None:
    for name, part, fault in body_faults(scene.way):
        with subtests.test(name):
            got = await scene.ask(fault)
            scene.way.check_broken(got, part)
            await scene.check_over(got)


# -- silence


async def test_upstream_silence_is_504_or_cut_at_each_moment(
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
