"""Clients that do not read, or are too many, and those beside them.

`tests/handlers/test_disconnects.py` has what one client may leave unread, and how that is recorded.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import resource
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from random import Random

import pytest
from held_stream import EVENTS, Held, Stream, begin_stream, rest_of_stream
from load_content import TOKEN
from proxy_process import ProxyProcess, proxy_process, until

from tornadoproxy.testing import (
    RawConnection,
    ScriptedUpstream,
    UpstreamExchange,
    bytes_response,
    request_bytes,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")

MB = 1 << 20


# -- clients or upstreams that do not read: the program takes little memory

UPLOAD = 64 * MB  # of one client
DOWNLOAD = 24 * MB  # of each of twenty
PIECE = Random(2).randbytes(256 * 1024)


def post(headers: dict[str, str]) -> bytes:
    return request_bytes("POST", "/v1/messages", headers, token=TOKEN)


@asynccontextmanager
async def bounded_program(directory: Path, upstream: ScriptedUpstream) -> AsyncIterator[int]:
    """Run the program; yield its port. Its peak is at most 32 MB above what it takes when idle."""
    async with proxy_process(directory, upstream.url) as proxy:
        await proxy.baseline()
        before = proxy.memory()
        yield proxy.port
        status = Path(f"/proc/{proxy.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None
        assert int(peak[1]) * 1024 - before < 32 * MB


@cache
def digest_of_pieces(size: int) -> str:
    return hashlib.sha256(PIECE * (size // len(PIECE))).hexdigest()


async def send_pieces(send: Callable[[bytes], Awaitable[None]], size: int) -> None:
    for _ in range(size // len(PIECE)):
        await send(PIECE)


async def check_stalled(*sending: asyncio.Task[None]) -> None:
    """None of them ends, although only the other side keeps it from that."""
    done, _ = await asyncio.wait(sending, timeout=0.3)
    assert not done


async def test_clients_that_stop_reading_stall_the_upstream(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Twenty of them, of which the last reads on in the end."""
    sending: list[asyncio.Task[None]] = []

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        headers = {"Content-Type": "text/event-stream", "Content-Length": str(DOWNLOAD)}
        await exchange.head(200, headers)
        sending.append(asyncio.create_task(send_pieces(exchange.send, DOWNLOAD)))
        await sending[-1]

    async with bounded_program(tmp_path, upstream) as port, AsyncExitStack() as stack:
        upstream.script(*[response] * 20)
        for _ in range(20):
            client = await RawConnection.open(port, receive_buffer=16_384)
            stack.push_async_callback(client.reset)
            await client.send(post({}))
            assert (await client.head()).header("Content-Length") == str(DOWNLOAD)
        await check_stalled(*sending)
        digest, left = hashlib.sha256(), DOWNLOAD
        while left:
            piece = await client.read(left)
            assert piece, f"{left} bytes are missing"
            digest.update(piece)
            left -= len(piece)
    assert digest.hexdigest() == digest_of_pieces(DOWNLOAD)


async def test_upstream_that_stops_reading_stalls_the_client(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    read_late = Held(bytes_response(b"ok"))
    async with bounded_program(tmp_path, upstream) as port:
        client = await RawConnection.open(port)
        upstream.script(read_late, bytes_response(b"ok"))
        await client.send(post({"Content-Length": str(UPLOAD)}))
        sending = asyncio.create_task(send_pieces(client.send, UPLOAD))
        await check_stalled(sending)
        read_late.may_begin.set()
        assert (await client.response()).body == b"ok"
        await client.send(post({"Transfer-Encoding": "chunked"}))
        await send_pieces(lambda piece: client.send(b"%x\r\n%b\r\n" % (len(piece), piece)), UPLOAD)
        assert (await client.ask(b"0\r\n\r\n")).body == b"ok"
        await client.close()
    for received in upstream.requests[1:]:
        assert (received.body_length, received.body_sha256) == (UPLOAD, digest_of_pieces(UPLOAD))


# -- clients that are too many

LIMIT = 256  # descriptors that the proxy may have
CROWD = 400  # clients that come


async def open_many(stack: AsyncExitStack, port: int, count: int) -> list[RawConnection]:
    """So many connections, which are closed with `stack`."""
    connections = [await RawConnection.open(port) for _ in range(count)]
    for connection in connections:
        stack.push_async_callback(connection.close)
    return connections


async def check_calm(proxy: ProxyProcess) -> None:
    """For half a second the proxy does next to nothing; and it has not logged much so far."""
    began = proxy.cpu()
    await asyncio.sleep(0.5)  # what is measured takes place in it
    assert proxy.cpu() - began < 0.15
    assert len(proxy.log()) < 10_000
    assert len(proxy.log().splitlines()) < 40


@asynccontextmanager
async def streams(upstream: ScriptedUpstream, port: int) -> AsyncIterator[None]:
    """Ten streams that are open during the block, and whole at its end."""
    stream = Stream()
    upstream.script(*[stream] * 10)
    async with AsyncExitStack() as stack:
        clients = await open_many(stack, port, 10)
        for client in clients:
            await begin_stream(client)
        yield
        stream.may_end.set()
        for client in clients:
            assert await rest_of_stream(client) == b"".join(EVENTS[1:])


@pytest.mark.gen_test(timeout=40)
async def test_oldest_idle_connection_makes_room(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """More connections than there are descriptors: streams and new clients are served."""
    async with proxy_process(tmp_path, upstream.url, open_files=LIMIT) as proxy:
        before = await proxy.baseline()
        async with streams(upstream, proxy.port), AsyncExitStack() as waiting:
            idle = await open_many(waiting, proxy.port, CROWD)
            async with asyncio.timeout(10):
                await idle[0].disconnected()
                assert (await proxy.ask()).status == 200
                assert (await idle[-1].ask(request_bytes("GET", "/health"))).status == 200
            assert proxy.descriptors() <= LIMIT
            await check_calm(proxy)
        await until(lambda: proxy.descriptors() <= before, 5)
        assert (await proxy.ask()).status == 200


@pytest.mark.gen_test(timeout=40)
async def test_accepting_waits_for_descriptors(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """They run out earlier than the proxy could know at its start."""
    async with proxy_process(tmp_path, upstream.url) as proxy:
        await proxy.baseline()
        async with streams(upstream, proxy.port):
            # from now on there is room for five more
            highest = max(map(int, os.listdir(f"/proc/{proxy.pid}/fd")))
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (highest + 6, hard))
            async with AsyncExitStack() as waiting:
                await open_many(waiting, proxy.port, CROWD)
                await check_calm(proxy)
            async with asyncio.timeout(10):
                while (await proxy.ask()).status != 200:
                    await asyncio.sleep(0.01)  # nothing reports it from outside
        await check_calm(proxy)
