"""Bytes are equal on both sides, however they come; and no amount of them fills the memory."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import brotli  # type: ignore[import-untyped]  # it ships no types
import pytest
import zstandard

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    RawConnection,
    bytes_response,
    event,
    message_document,
    message_events,
    raw_response,
    request_bytes,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from tornado.ioloop import IOLoop

    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawResponse,
        Response,
        ScriptedUpstream,
        UpstreamExchange,
    )

MB = 1 << 20
OK: Response = bytes_response(b"ok")
BINARY = Random(2).randbytes(MB)
DOCUMENT = json.dumps(message_document("Häßlich, 😀 and \u2028 " * 300), indent=3).encode()
EVENTS = b"".join(message_events(message_document("Grüße 😀 ")))
STREAM = (
    b": comment\r\n\r\n"
    + event({"type": "ping"})
    + 'event: x\rdata: {"é": "😀\u2028"}\r\r'.encode()
)

SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def post(headers: dict[str, str], body: bytes = b"") -> bytes:
    return request_bytes("POST", "/v1/messages", headers, body, token=TEST_TOKEN)


async def ask(raw: OpenRaw, data: bytes) -> RawResponse:
    connection = await raw()
    await connection.send(data)
    return await connection.response()


def in_chunks(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


# -- equal, whatever they are


ENCODED: dict[str, Callable[[bytes], bytes]] = {
    "identity": lambda data: data,
    "gzip": gzip.compress,
    "br": lambda data: brotli.compress(data, quality=1),
    "zstd": zstandard.compress,
    "gzip, br": lambda data: brotli.compress(gzip.compress(data), quality=1),
    "made-up": lambda data: data[::-1],
}


@pytest.mark.parametrize(
    ("content_type", "plain"),
    [
        ("application/json", DOCUMENT),
        ("text/event-stream; charset=utf-8", EVENTS),
        ("application/octet-stream", BINARY),
    ],
    ids=["JSON", "SSE", "binary"],
)
async def test_bodies_cross_as_they_are_encoded(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, content_type: str, plain: bytes
) -> None:
    """In both directions; nothing is compressed or decompressed on the way."""
    for coding, encode in ENCODED.items():
        body = encode(plain)
        headers = {"Content-Type": content_type, "Content-Encoding": coding}
        upstream.script(bytes_response(body, headers))
        response = await ask(raw, post({**headers, "Accept-Encoding": "gzip, br, zstd"}, body))
        received = upstream.requests[-1]
        assert received.body_sha256 == sha256(response.body) == sha256(body), coding
        for name in ("Content-Type", "Content-Encoding"):
            assert received.header(name) == response.header(name) == headers[name]
        assert received.header("Accept-Encoding") == "gzip, br, zstd"
        for side in (received, response):
            assert side.header("Content-Length") == str(len(body))


async def test_an_event_stream_crosses_wherever_it_is_split(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """Within a line end, within a character, within a field, byte for byte."""
    splits = [
        *([STREAM[:at], STREAM[at:]] for at in range(1, len(STREAM))),
        [bytes([byte]) for byte in STREAM],
        [STREAM],
    ]
    upstream.script(*map(sse_response, splits))
    connection = await raw()
    for number, split in enumerate(splits, 1):
        await connection.send(post({}, b"{}"))
        response = await connection.response()
        assert response.body == STREAM, f"split {number}: {split[0]!r}"
    assert len(STREAM) > 80
    assert upstream.connections == 1


async def test_a_whole_message_crosses_in_pieces_of_any_size(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    connection = await raw()
    for size in (1, 2, 3, 5, 7, 64, 1000, len(EVENTS)):
        upstream.script(sse_response(EVENTS, split=size))
        await connection.send(post({}, b"{}"))
        assert sha256((await connection.response()).body) == sha256(EVENTS)


@pytest.mark.parametrize("size", [1, 255, 4096, 65_536, 65_537, MB])
async def test_an_answer_crosses_however_it_is_framed(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, size: int
) -> None:
    body = BINARY[:size]
    ok = b"HTTP/1.1 200 OK\r\n"
    upstream.script(
        raw_response(ok + b"Content-Length: %d\r\n\r\n" % size + body),
        raw_response(ok + b"Content-Length: %d\r\n\r\n" % size, body),
        raw_response(ok + b"Transfer-Encoding: chunked\r\n\r\n" + in_chunks(body, 1 + size // 9)),
        raw_response(ok + b"\r\n" + body, end="close"),
        raw_response(SSE_HEAD + in_chunks(body, 1 + size // 3)),
    )
    connection = await raw()
    for _ in range(5):
        await connection.send(post({}))
        response = await connection.response()
        assert (response.status, sha256(response.body)) == (200, sha256(body))


@pytest.mark.parametrize("size", [1, 65_537, MB, MB + 1, 5 * MB])
async def test_a_request_crosses_however_it_is_framed(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, size: int
) -> None:
    body = (BINARY * 6)[:size]
    upstream.script(OK, OK, OK)
    connection = await raw()
    for data in (
        post({}, body),
        post({"Transfer-Encoding": "chunked"}) + in_chunks(body, size),
        post({"Transfer-Encoding": "chunked"}) + in_chunks(body, 1 + size // 9),
    ):
        await connection.send(data)
        assert (await connection.response()).body == b"ok"
    for received in upstream.requests:
        assert (received.body_length, received.body_sha256) == (size, sha256(body))


# -- large ones, through a process of its own


@dataclass(frozen=True)
class ProxyProcess:
    """The program, as it is started by its users."""

    process: subprocess.Popen[str]
    port: int

    def memory(self, line: str) -> int:
        """What the kernel says of its memory, in bytes: ``VmRSS``, or ``VmHWM`` for its peak."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{line}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024


@pytest.fixture
def program(upstream: ScriptedUpstream) -> Iterator[ProxyProcess]:
    if sys.platform != "linux":
        pytest.skip("a process's memory is looked up in /proc")
    environment = {
        "PORT": "0",
        "AUTH_TOKEN": TEST_TOKEN,
        "UPSTREAM_BASE_URL": upstream.url,
        "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY,
        "PATH": os.environ["PATH"],
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tornadoproxy", "serve", "--env-file", os.devnull],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr:
        found = None
        while found is None:
            line = process.stderr.readline()
            assert line, "it did not start"
            found = re.search(r"http://127\.0\.0\.1:(\d+)$", line.strip())
        yield ProxyProcess(process, int(found[1]))
        process.terminate()
        assert process.wait(20) == 0


@pytest.fixture
def connection(io_loop: IOLoop, program: ProxyProcess) -> Iterator[RawConnection]:
    """A connection to the program, which has served a request already."""

    async def warm_up() -> RawConnection:
        connection = await RawConnection.open(program.port, receive_buffer=64 * 1024)
        for data in (request_bytes("GET", "/v1/models", token=TEST_TOKEN), post({}, b"{}")):
            await connection.send(data)
            assert (await connection.response()).status in {200, 400}
        return connection

    connection: RawConnection = io_loop.run_sync(warm_up)
    yield connection
    io_loop.run_sync(connection.close)


MOST_GROWTH = 32 * MB
PIECE = BINARY[: 256 * 1024]


class Growth:
    """Within it, the program's memory grows by less than 32 MB, at its peak as well."""

    def __init__(self, program: ProxyProcess) -> None:
        self._program = program

    def __enter__(self) -> None:
        self._before = self._program.memory("VmRSS")

    def __exit__(self, kind: object, *_: object) -> None:
        growth = self._program.memory("VmHWM") - self._before
        assert kind is not None or growth < MOST_GROWTH


@pytest.fixture
def bounded(program: ProxyProcess, connection: RawConnection) -> Growth:
    return Growth(program)


async def send_pieces(send: Callable[[bytes], Awaitable[None]], count: int) -> str:
    """Send `PIECE` so many times; the digest of it all."""
    digest = hashlib.sha256()
    for _ in range(count):
        await send(PIECE)
        digest.update(PIECE)
    return digest.hexdigest()


async def read_digest(connection: RawConnection, size: int) -> str:
    """The digest of the next `size` bytes."""
    digest = hashlib.sha256()
    while size:
        piece = await connection.read(min(size, 256 * 1024))
        assert piece, f"{size} bytes are missing"
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()


async def stall(*sending: asyncio.Task[str]) -> None:
    """None of them comes to its end, although nothing but the other side keeps it from it."""
    done, _ = await asyncio.wait(sending, timeout=0.5)
    assert not done


async def test_256_mb_down(
    connection: RawConnection, upstream: ScriptedUpstream, bounded: Growth
) -> None:
    count = 256 * MB // len(PIECE)
    digests = []

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, {"Content-Length": str(256 * MB)})
        digests.append(await send_pieces(exchange.send, count))

    upstream.script(response)
    with bounded:
        await connection.send(post({}))
        assert (await connection.head()).header("Content-Length") == str(256 * MB)
        digest = await read_digest(connection, 256 * MB)
    assert [digest] == digests


async def test_40_mb_up(
    connection: RawConnection, upstream: ScriptedUpstream, bounded: Growth
) -> None:
    count = 40 * MB // len(PIECE)
    upstream.script(OK, OK)
    with bounded:
        await connection.send(post({"Content-Length": str(40 * MB)}))
        digest = await send_pieces(connection.send, count)
        assert (await connection.response()).body == b"ok"
        await connection.send(post({"Transfer-Encoding": "chunked"}))
        assert await send_pieces(chunks_on(connection), count) == digest
        await connection.send(b"0\r\n\r\n")
        assert (await connection.response()).body == b"ok"
    for received in upstream.requests[-2:]:
        assert (received.body_length, received.body_sha256) == (40 * MB, digest)


def chunks_on(connection: RawConnection) -> Callable[[bytes], Awaitable[None]]:
    async def send(piece: bytes) -> None:
        await connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))

    return send


async def test_a_client_that_does_not_read_holds_the_upstream_back(
    connection: RawConnection, upstream: ScriptedUpstream, bounded: Growth
) -> None:
    """Memory stays bounded meanwhile, and nothing is lost when it reads on."""
    sending: asyncio.Future[asyncio.Task[str]] = asyncio.get_running_loop().create_future()
    count = 128 * MB // len(PIECE)

    async def stream(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        await exchange.send(b"Content-Length: %d\r\n\r\n" % (128 * MB))
        task = asyncio.create_task(send_pieces(exchange.send, count))
        sending.set_result(task)
        await task

    upstream.script(stream)
    with bounded:
        await connection.send(post({}))
        assert (await connection.head()).status == 200
        task = await sending
        await stall(task)
        digest = await read_digest(connection, 128 * MB)
    assert await task == digest


async def test_an_upstream_that_does_not_read_holds_the_client_back(
    connection: RawConnection, upstream: ScriptedUpstream, bounded: Growth
) -> None:
    reads_on = asyncio.Event()
    count = 128 * MB // len(PIECE)

    async def read_late(exchange: UpstreamExchange) -> None:
        await reads_on.wait()
        await OK(exchange)

    upstream.script(read_late)
    with bounded:
        await connection.send(post({"Content-Length": str(128 * MB)}))
        task = asyncio.create_task(send_pieces(connection.send, count))
        await upstream.received(3)
        await stall(task)
        reads_on.set()
        assert (await connection.response()).body == b"ok"
    assert upstream.requests[-1].body_sha256 == await task


async def test_many_answers_at_once_to_clients_that_do_not_read(
    program: ProxyProcess, connection: RawConnection, upstream: ScriptedUpstream, bounded: Growth
) -> None:
    """What is read ahead for each is little."""
    sending = []
    clients = 20

    async def stream(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, {"Content-Length": str(64 * MB)})
        task = asyncio.create_task(send_pieces(exchange.send, 64 * MB // len(PIECE)))
        sending.append(task)
        await task

    upstream.script(*[stream] * clients)
    async with AsyncExitStack() as stack:
        readers = []
        for _ in range(clients):
            reader = await RawConnection.open(program.port, receive_buffer=4096)
            stack.push_async_callback(reader.reset)
            readers.append(reader)
        with bounded:
            for reader in readers:
                await reader.send(post({}))
                assert (await reader.head()).status == 200
            await stall(*sending)
