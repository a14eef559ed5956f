"""Stopping: what is in flight finishes within ``DRAIN_TIMEOUT``, everything else ends at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from tornado import netutil

from tornadoproxy import RequestRecord, hookimpl
from tornadoproxy.server import listening
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    RawConnection,
    Truncated,
    message_document,
    message_events,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tornado.ioloop import IOLoop

    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        Records,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

    class StartProgram(Protocol):
        """Starts the program with these variables; see `start_program`."""

        async def __call__(self, **variables: str) -> Program: ...


pytestmark = pytest.mark.usefixtures("no_errors_logged")

REQUEST = request_bytes("POST", "/v1/messages", {}, b"{}", token=TEST_TOKEN)
NOT_FOUND = request_bytes("GET", "/nowhere", token=TEST_TOKEN)
READY = request_bytes("GET", "/ready")
MODELS = request_bytes("GET", "/v1/models", token=TEST_TOKEN)
EVENT_STREAM = [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]
EVENTS = message_events(message_document())


class Stream:
    """An answer that begins with `EVENTS[0]`, and goes on to its end when it may."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        await exchange.chunk(EVENTS[0])
        await self.may_end.wait()
        for each in EVENTS[1:]:
            await exchange.chunk(each)
        await exchange.last_chunk()


class Ending:
    """A plugin that notes what comes at the end."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    @hookimpl
    def request_finished(self, record: RequestRecord) -> None:
        self.noted.append(record.outcome)

    @hookimpl
    async def shutdown(self) -> None:
        self.noted.append("shutdown")


async def begun(client: RawConnection) -> None:
    """Send a request; its stream's head and first event are there."""
    await client.send(REQUEST)
    assert (await client.head()).status == 200
    assert await client.chunk() == EVENTS[0]


async def whole(client: RawConnection) -> None:
    """The rest of the stream, to its clean end, and the connection's."""
    rest = b""
    while piece := await client.chunk():
        rest += piece
    assert rest == b"".join(EVENTS[1:])
    assert await client.read() == b""


async def answered(client: RawConnection) -> None:
    """A request on this connection has been answered: it is idle."""
    await client.send(request_bytes("GET", "/health"))
    assert (await client.response()).status == 200


# -- in one process


async def test_streams_finish_and_all_else_ends(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    stream = Stream()
    upstream.script(stream)
    idle, unused, streaming = await raw(), await raw(), await raw()
    await answered(idle)
    await begun(streaming)
    drain = asyncio.create_task(proxy.server.drain())
    async with asyncio.timeout(1):
        assert await idle.read() == b""
        assert await unused.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await raw()
    assert not drain.done()
    stream.may_end.set()
    await whole(streaming)
    async with asyncio.timeout(1):
        await drain
        await upstream.all_closed()
    assert (await records.finished()).outcome == "completed"


async def test_nothing_in_flight_stops_at_once(start_proxy: StartProxy, raw: OpenRaw) -> None:
    proxy = await start_proxy(DRAIN_TIMEOUT=600)
    idle = await raw()
    await answered(idle)
    async with asyncio.timeout(5):
        await proxy.server.drain()
        assert await idle.read() == b""


@pytest.mark.parametrize("turns", range(8))
async def test_connection_that_has_just_had_its_answer_is_closed(
    turns: int, start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    """However many turns of the loop ago that was: it is neither idle nor busy for some."""
    proxy = await start_proxy(DRAIN_TIMEOUT=600)
    client = await raw()
    await client.send(NOT_FOUND)
    await records.finished()
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(2):
        await proxy.server.drain()
    assert (await client.response()).status == 404
    assert await client.read() == b""


async def test_who_was_about_to_ask_is_told(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """Readiness is 503 on a connection that had begun to send its request; then it is closed."""
    stream = Stream()
    upstream.script(stream)
    asking, other, idle, streaming = await raw(), await raw(), await raw(), await raw()
    await asking.send(READY[:10])
    await other.send(NOT_FOUND[:10])
    await begun(streaming)  # by now what the others sent has been read
    drain = asyncio.create_task(proxy.server.drain())
    assert await idle.read() == b""
    await asking.send(READY[10:])
    response = await asking.response()
    assert response.status == 503
    assert json.loads(response.body) == {"status": "draining"}
    assert response.header("Connection") == "close"
    assert await asking.read() == b""
    await other.send(NOT_FOUND[10:])
    response = await other.response()
    assert (response.status, response.header("Connection")) == (404, "close")
    assert await other.read() == b""
    stream.may_end.set()
    await whole(streaming)
    await drain


async def test_answers_that_begin_while_draining_say_close(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    may_begin = asyncio.Event()

    async def scripted(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await may_begin.wait()
        await sse_response(EVENTS)(exchange)

    upstream.script(scripted)
    idle, client = await raw(), await raw()
    await client.send(REQUEST)
    await upstream.received()
    drain = asyncio.create_task(proxy.server.drain())
    assert await idle.read() == b""
    may_begin.set()
    response = await client.response()
    assert response.header("Connection") == "close"
    assert response.body == b"".join(EVENTS)
    assert await client.read() == b""
    await drain


async def test_upload_under_way_is_in_flight(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    idle, client = await raw(), await raw()
    await client.send(REQUEST[:-1])
    await answered(idle)
    drain = asyncio.create_task(proxy.server.drain())
    assert await idle.read() == b""
    await client.send(REQUEST[-1:])
    assert (await client.response()).status == 400
    await drain
    assert upstream.requests[0].body == b"{}"


async def test_pipelined_request_is_not_begun(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    stream = Stream()
    upstream.script(stream)
    idle, client = await raw(), await raw()
    await begun(client)
    await client.send(REQUEST)
    drain = asyncio.create_task(proxy.server.drain())
    assert await idle.read() == b""
    stream.may_end.set()
    rest = b""
    while piece := await client.chunk():
        rest += piece
    assert rest == b"".join(EVENTS[1:])
    await drain
    assert len(upstream.requests) == len(records.all) == 1


async def test_streams_are_cut_when_the_time_is_over(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    proxy = await start_proxy(DRAIN_TIMEOUT=0.2)
    upstream.script(sse_response(EVENTS[:1], end="hang"))
    client = await raw()
    await begun(client)
    async with asyncio.timeout(2):
        await proxy.server.drain()
    last = (await client.chunk()).split(b"\n")
    assert last[0] == b"event: error"
    document = json.loads(last[1].removeprefix(b"data: "))
    assert document["type"] == "error"
    assert "stopping" in document["error"]["message"]
    with pytest.raises(Truncated):
        await client.chunk()
    record = await records.finished()
    assert (record.outcome, record.status) == ("drained", 200)
    assert record.usage.input_tokens == 10
    async with asyncio.timeout(1):
        await upstream.all_closed()


@pytest.mark.parametrize("sent", [REQUEST, REQUEST[:-1]], ids=["waiting", "uploading"])
async def test_who_still_waits_is_told_when_the_time_is_over(
    sent: bytes, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    proxy = await start_proxy(DRAIN_TIMEOUT=0.2)
    upstream.script(silent_response())
    client, other = await raw(), await raw()
    await client.send(sent)
    await answered(other)
    async with asyncio.timeout(2):
        await proxy.server.drain()
    response = await client.response()
    assert response.status == 503
    assert response.header("Content-Type") == "application/json"
    assert response.header("Connection") == "close"
    assert response.header("Retry-After") == "1"
    error = json.loads(response.body)["error"]
    assert error["type"] == "overloaded_error"
    assert "stopping" in error["message"]
    record = await records.finished()
    assert (record.outcome, record.status) == ("drained", 503)
    async with asyncio.timeout(1):
        await upstream.all_closed()


@pytest.fixture
def small_send_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client does not read soon fits into the proxy's sockets no more."""

    def bind_sockets(*args: Any, **kwargs: Any) -> list[socket.socket]:  # as Tornado's takes them
        sockets = netutil.bind_sockets(*args, **kwargs)
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return sockets

    monkeypatch.setattr(listening, "bind_sockets", bind_sockets)


class Endless:
    """A stream that goes on until it is cut; `stalled` once it is taken in no more."""

    def __init__(self) -> None:
        self.stalled = asyncio.Event()

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        while True:
            sending = asyncio.create_task(exchange.chunk(bytes(0x10000)))
            if not (await asyncio.wait({sending}, timeout=0.1))[0]:
                self.stalled.set()
            await sending


@pytest.mark.usefixtures("small_send_buffers")
async def test_client_that_does_not_read_cannot_hold_it_up(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    """Not even the error event fits into its buffers any more."""
    proxy = await start_proxy(DRAIN_TIMEOUT=0.2, SSE_KEEPALIVE_INTERVAL=0.05)
    endless = Endless()
    upstream.script(endless)
    client = await raw(receive_buffer=16_384)
    await client.send(REQUEST)
    await endless.stalled.wait()
    async with asyncio.timeout(5):
        await proxy.server.drain()
    assert (await records.finished()).outcome == "drained"
    with pytest.raises(Truncated):
        await client.response()


@pytest.mark.usefixtures("small_send_buffers")
async def test_client_that_reads_slowly_gets_the_last_words(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    proxy = await start_proxy(DRAIN_TIMEOUT=0.1)
    endless = Endless()
    upstream.script(endless)
    client = await raw(receive_buffer=16_384)
    await client.send(REQUEST)
    await endless.stalled.wait()
    drain = asyncio.create_task(proxy.server.drain())
    await asyncio.sleep(0.4)  # a client that takes its time
    with pytest.raises(Truncated) as caught:
        await client.response()
    assert caught.value.response is not None
    assert b"\n\nevent: error\ndata: " in caught.value.response.body[-500:]
    await drain
    assert (await records.finished()).outcome == "drained"


async def test_plugins_are_shut_down_once_and_last(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    ending = Ending()
    proxy = await start_proxy(plugins=[ending], DRAIN_TIMEOUT=0.2)
    stream = Stream()
    upstream.script(stream, sse_response(EVENTS[:1], end="hang"))
    idle, finishing, hanging = await raw(), await raw(), await raw()
    await begun(finishing)
    await begun(hanging)
    drain = asyncio.create_task(proxy.server.drain())
    assert await idle.read() == b""
    stream.may_end.set()
    await whole(finishing)
    await drain
    assert ending.noted == ["completed", "drained", "shutdown"]
    await proxy.server.drain()
    assert ending.noted == ["completed", "drained", "shutdown"]


async def test_abort_cuts_everything_now(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    proxy = await start_proxy(DRAIN_TIMEOUT=60)
    upstream.script(sse_response(EVENTS[:1], end="hang"), silent_response())
    idle, streaming, waiting = await raw(), await raw(), await raw()
    await begun(streaming)
    await waiting.send(REQUEST)
    await upstream.received(2)
    drain = asyncio.create_task(proxy.server.drain())
    assert await idle.read() == b""
    assert not records.all
    proxy.server.abort()
    async with asyncio.timeout(1):
        await drain
        await upstream.all_closed()
    assert (await streaming.chunk()).startswith(b"event: error\n")
    with pytest.raises(Truncated):
        await streaming.chunk()
    assert (await waiting.response()).status == 503
    assert [record.outcome for record in records.all] == ["drained", "drained"]


# -- as a program


SECRETS = {"AUTH_TOKEN": TEST_TOKEN, "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY}


class Program:
    """``python -m tornadoproxy`` in a process of its own, in front of `upstream`."""

    def __init__(self, upstream: ScriptedUpstream, variables: dict[str, str]) -> None:
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PORT": "0",
            "UPSTREAM_BASE_URL": upstream.url,
            "ACCESS_LOG": "off",
            **{name: text for name, text in os.environ.items() if name.startswith("COVERAGE")},
            **variables,
        }
        self.process: asyncio.subprocess.Process
        self.port = 0

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tornadoproxy", "--env-file", os.devnull),
            env=self._environment,
            stderr=asyncio.subprocess.PIPE,
        )
        self.port = int((await self.said(b"address")).rpartition(b":")[2])
        await self.said(b"curl")

    async def said(self, text: bytes) -> bytes:
        """Wait until it has written a line with `text` to standard error; return that line."""
        assert self.process.stderr is not None
        while text not in (line := await self.process.stderr.readline()):
            assert line, f"it ended before it said {text!r}"
        return line

    async def connect(self) -> RawConnection:
        return await RawConnection.open(self.port)

    async def end(self) -> None:
        """Take it down, if it has not ended."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()


@pytest.fixture
def programs(io_loop: IOLoop) -> Iterator[list[Program]]:
    """The programs to take down after the test."""
    programs: list[Program] = []
    yield programs
    for program in programs:
        io_loop.run_sync(program.end)


@pytest.fixture
def start_program(programs: list[Program], upstream: ScriptedUpstream) -> StartProgram:
    """Starts the program: ``await start_program(DRAIN_TIMEOUT="60")``."""

    async def start(**variables: str) -> Program:
        program = Program(upstream, variables)
        await program.start()
        programs.append(program)
        return program

    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_drains_and_the_status_is_0(
    number: signal.Signals, start_program: StartProgram, upstream: ScriptedUpstream
) -> None:
    program = await start_program(**SECRETS)
    stream = Stream()
    upstream.script(stream)
    idle, streaming = await program.connect(), await program.connect()
    await answered(idle)
    await begun(streaming)
    program.process.send_signal(number)
    async with asyncio.timeout(5):
        assert await idle.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await program.connect()
    stream.may_end.set()
    await whole(streaming)
    async with asyncio.timeout(5):
        assert await program.process.wait() == 0
    for client in (idle, streaming):
        await client.close()


async def test_shutdown_delay_accepts_requests_unready(
    start_program: StartProgram,
) -> None:
    program = await start_program(**SECRETS, SHUTDOWN_DELAY="600")
    kept = await program.connect()
    await answered(kept)
    program.process.send_signal(signal.SIGTERM)
    await program.said(b"stopping in 600 seconds")
    new = await program.connect()
    for client, request, status in ((new, READY, 503), (kept, MODELS, 200)):
        await client.send(request)
        response = await client.response()
        assert (response.status, response.header("Connection")) == (status, "close")
        await client.close()
    program.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(5):
        assert await program.process.wait() == 1


async def test_shutdown_delay_ends_in_a_drain(start_program: StartProgram) -> None:
    program = await start_program(**SECRETS, SHUTDOWN_DELAY="0.01")
    program.process.send_signal(signal.SIGTERM)
    await program.said(b"stopping: no new connections")
    async with asyncio.timeout(5):
        assert await program.process.wait() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_ends_it_now(
    second: signal.Signals, start_program: StartProgram, upstream: ScriptedUpstream
) -> None:
    program = await start_program(**SECRETS, DRAIN_TIMEOUT="600")
    upstream.script(sse_response(EVENTS[:1], end="hang"))
    idle, streaming = await program.connect(), await program.connect()
    await begun(streaming)
    program.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(5):
        assert await idle.read() == b""
    program.process.send_signal(second)
    async with asyncio.timeout(5):
        assert await program.process.wait() == 1
    assert (await streaming.chunk()).startswith(b"event: error\n")
    with pytest.raises(Truncated):
        await streaming.chunk()
    await upstream.all_closed()
    for client in (idle, streaming):
        await client.close()


async def test_sighup_reads_tokens_anew_and_drops_no_stream(
    start_program: StartProgram, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    tokens, key = tmp_path / "tokens", tmp_path / "key"
    tokens.write_text(TEST_TOKEN)
    key.write_text(TEST_UPSTREAM_KEY)
    program = await start_program(AUTH_TOKEN_FILE=str(tokens), UPSTREAM_API_KEY_FILE=str(key))
    stream = Stream()
    upstream.script(stream)
    streaming, client = await program.connect(), await program.connect()
    await begun(streaming)
    tokens.write_text("another-token-that-is-long-enough")
    key.write_text("another-key")
    program.process.send_signal(signal.SIGHUP)
    await program.said(b"reloaded")
    stream.may_end.set()
    rest = b""
    while piece := await streaming.chunk():
        rest += piece
    assert rest == b"".join(EVENTS[1:])
    for connection in (streaming, client):
        await connection.send(REQUEST)
        assert (await connection.response()).status == 401
    models = request_bytes("GET", "/v1/models", token="another-token-that-is-long-enough")
    await client.send(models)
    assert (await client.response()).status == 200
    assert [request.header("x-api-key") for request in upstream.requests] == [
        TEST_UPSTREAM_KEY,
        "another-key",
    ]
    for connection in (streaming, client):
        await connection.close()


async def test_what_has_come_is_served_on_connections_not_yet_accepted(
    proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    """To close a socket resets those who wait in its queue."""
    request = request_bytes("GET", "/v1/models", token=TEST_TOKEN)
    clients = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(20)]
    for client in clients:
        client.sendall(request)
    # nobody else has run since
    await proxy.server.drain()
    for client in clients:
        with client, client.makefile("rb") as response:
            assert response.readline().startswith(b"HTTP/1.1 200 ")
    assert len(records.all) == len(clients)
