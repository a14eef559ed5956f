"""The memory that large bodies take in the program: little, whichever side stops reading."""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from load_content import TOKEN
from proxy_process import proxy_process

from tornadoproxy.testing import RawConnection, bytes_response, request_bytes

if TYPE_CHECKING:
    from tornadoproxy.testing import ScriptedUpstream, UpstreamExchange

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="a process's memory is looked up in /proc"
)

MB = 1 << 20
SIZE = 64 * MB
MAX_GROWTH = 32 * MB
PIECE = Random(2).randbytes(256 * 1024)
PIECES = SIZE // len(PIECE)


def post(headers: dict[str, str]) -> bytes:
    return request_bytes("POST", "/v1/messages", headers, token=TOKEN)


@asynccontextmanager
async def bounded_program(directory: Path, upstream: ScriptedUpstream) -> AsyncIterator[int]:
    """Run the program; yield its port. Its peak is at most 32 MB above what it takes when idle."""
    async with proxy_process(directory, upstream.url) as proxy:

        def memory(line: str) -> int:
            status = Path(f"/proc/{proxy.pid}/status").read_text()
            found = re.search(rf"{line}:\s+(\d+) kB", status)
            assert found is not None
            return int(found[1]) * 1024

        await proxy.baseline()
        before = memory("VmRSS")
        yield proxy.port
        assert memory("VmHWM") - before < MAX_GROWTH


def digest_of_pieces() -> str:
    digest = hashlib.sha256()
    for _ in range(PIECES):
        digest.update(PIECE)
    return digest.hexdigest()


async def send_pieces(send: Callable[[bytes], Awaitable[None]]) -> None:
    for _ in range(PIECES):
        await send(PIECE)


async def check_stalled(*sending: asyncio.Task[None]) -> None:
    """None of them ends, although only the other side keeps it from that."""
    done, _ = await asyncio.wait(sending, timeout=0.3)
    assert not done


def responds_with_pieces(sending: list[asyncio.Task[None]]) -> Callable[..., Awaitable[None]]:
    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        headers = {"Content-Type": "text/event-stream", "Content-Length": str(SIZE)}
        await exchange.head(200, headers)
        sending.append(asyncio.create_task(send_pieces(exchange.send)))
        await sending[-1]

    return response


async def test_client_that_stops_reading_stalls_the_upstream(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    sending: list[asyncio.Task[None]] = []
    async with bounded_program(tmp_path, upstream) as port:
        client = await RawConnection.open(port, receive_buffer=16_384)
        upstream.script(responds_with_pieces(sending))
        await client.send(post({}))
        assert (await client.head()).header("Content-Length") == str(SIZE)
        await check_stalled(*sending)
        digest = hashlib.sha256()
        left = SIZE
        while left:
            piece = await client.read(left)
            assert piece, f"{left} bytes are missing"
            digest.update(piece)
            left -= len(piece)
        await client.close()
    assert digest.hexdigest() == digest_of_pieces()


async def test_upstream_that_stops_reading_stalls_the_client(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    reads_on = asyncio.Event()

    async def read_late(exchange: UpstreamExchange) -> None:
        await reads_on.wait()
        await bytes_response(b"ok")(exchange)

    async with bounded_program(tmp_path, upstream) as port:
        client = await RawConnection.open(port)

        async def send_chunk(piece: bytes) -> None:
            await client.send(b"%x\r\n%b\r\n" % (len(piece), piece))

        upstream.script(read_late, bytes_response(b"ok"))
        await client.send(post({"Content-Length": str(SIZE)}))
        sending = asyncio.create_task(send_pieces(client.send))
        await check_stalled(sending)
        reads_on.set()
        assert (await client.response()).body == b"ok"
        await client.send(post({"Transfer-Encoding": "chunked"}))
        await send_pieces(send_chunk)
        await client.send(b"0\r\n\r\n")
        assert (await client.response()).body == b"ok"
        await client.close()
    for received in upstream.requests[1:]:
        assert (received.body_length, received.body_sha256) == (SIZE, digest_of_pieces())


async def test_many_clients_that_do_not_read_take_little(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    sending: list[asyncio.Task[None]] = []
    clients = 20
    upstream_response = responds_with_pieces(sending)
    async with bounded_program(tmp_path, upstream) as port, AsyncExitStack() as stack:
        upstream.script(*[upstream_response] * clients)
        for _ in range(clients):
            client = await RawConnection.open(port, receive_buffer=4096)
            stack.push_async_callback(client.reset)
            await client.send(post({}))
            assert (await client.head()).status == 200
        await check_stalled(*sending)
