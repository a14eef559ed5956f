"""Steps of the wall clock while the real program serves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from numbered_load import Numbered, NumberingUpstream
from program import Program, install, running

from tornadoproxy.testing import (
    TEST_TOKEN,
    RawConnection,
    ScriptedUpstream,
    Truncated,
    UpstreamExchange,
    request_bytes,
)

if TYPE_CHECKING:
    from pathlib import Path

# USR1 sets the clock forwards by a day, USR2 back by a day
STEPPED = """
import os, signal, time

DAY = 86400.0
moved = 0.0
real, real_ns = time.time, time.time_ns

def step(by):
    global moved
    moved += by
    os.write(2, f"the clock is moved by {moved:.0f} s\\n".encode())

time.time = lambda: real() + moved
time.time_ns = lambda: real_ns() + int(moved * 1e9)
signal.signal(signal.SIGUSR1, lambda *_: step(DAY))
signal.signal(signal.SIGUSR2, lambda *_: step(-DAY))
"""
FORWARDS, BACK = signal.SIGUSR1, signal.SIGUSR2

HELD = [
    Numbered(1, "anthropic", stream=True, held=True),
    Numbered(2, "openai", stream=True, held=True),
    Numbered(3, "anthropic", held=True),
    Numbered(4, "openai", held=True),
]
PING = {"anthropic": b"event: ping", "openai": b": ping"}


def install_clock(directory: Path) -> None:
    (directory / "site").mkdir(exist_ok=True)
    (directory / "site" / "sitecustomize.py").write_text(STEPPED)


async def step(program: Program, number: signal.Signals, total: int) -> None:
    """Set the clock, by `total` days altogether, and see it set."""
    program.send_signal(number)
    await program.errors.wait_for(f"^the clock is moved by {total * 86400} s$")


async def ping(connection: RawConnection, dialect: str, count: int) -> None:
    """Wait for so many more of the proxy's own signs of life."""
    while count:
        count -= (await connection.chunk()).startswith(PING[dialect])


@pytest.mark.parametrize(("number", "total"), [(FORWARDS, 1), (BACK, -1)])
async def test_clock_step_of_a_day_changes_no_deadline(
    tmp_path: Path, number: signal.Signals, total: int
) -> None:
    install_clock(tmp_path)
    whole, after = Numbered(5, "anthropic"), Numbered(6, "anthropic")
    async with (
        NumberingUpstream() as upstream,
        # a minute to none of which the test comes near, but for a clock that is a day ahead
        running(
            tmp_path,
            upstream,
            UPSTREAM_CONNECT_TIMEOUT="60",
            UPSTREAM_FIRST_BYTE_TIMEOUT="60",
            UPSTREAM_IDLE_TIMEOUT="60",
            UPSTREAM_KEEPALIVE_TIMEOUT="60",
            CLIENT_IDLE_TIMEOUT="60",
            CLIENT_BODY_TIMEOUT="60",
            PLUGIN_TIMEOUT="60",
            DRAIN_TIMEOUT="60",
        ) as program,
    ):
        held = []
        for request in HELD:
            connection = await program.connect()
            await connection.send(request.data)
            held.append((connection, request))
        idle, uploading, asking = [await program.connect() for _ in range(3)]
        await uploading.send(whole.data[:-20])
        await asking.send(b"GET /heal")
        await idle.send(request_bytes("GET", "/health"))
        assert (await idle.response()).status == 200
        # each stream has begun, and each of the others is upstream
        assert [(await held[index][0].head()).status for index in (0, 1)] == [200, 200]
        await upstream.received(4)

        await step(program, number, total)

        assert (await program.ask(request_bytes("GET", "/health"))).status == 200
        await asking.send(b"th HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await asking.response()).status == 200
        await idle.send(request_bytes("GET", "/health"))
        assert (await idle.response()).status == 200
        await uploading.send(whole.data[-20:])
        whole.check_whole(await uploading.response())
        after.check_whole(await program.ask(after.data))
        program.send_signal(signal.SIGTERM)
        await program.errors.wait_for("stopping: no new connections")
        upstream.may_end.set()
        for connection, request in held[2:]:
            request.check_whole(await connection.response())
        for connection, _ in held[:2]:
            while await connection.chunk():
                pass
        assert await program.ended() == 0
        for connection in (idle, uploading, asking, *(connection for connection, _ in held)):
            await connection.close()

    records = [json.loads(line) for line in program.output.all]
    assert sorted(record["session_id"] for record in records) == ["1", "2", "3", "4", "5", "6"]
    for record in records:
        assert record["outcome"] == "completed"
        assert 0 <= record["time_to_first_byte_ms"] <= record["duration_ms"] < 60_000
        assert 0 <= record["upstream_time_ms"] <= record["duration_ms"]
        # which is the time of day by the clock that there is; the upload's head may be read late
        away = datetime.fromisoformat(record["time"]) - datetime.now(UTC)
        if record["session_id"] != "5":
            moved = total if record["session_id"] == "6" else 0
            assert round(away.total_seconds() / 86400) == moved


async def test_clock_set_back_keeps_deadlines_and_pings(tmp_path: Path) -> None:
    install_clock(tmp_path)

    async def falls_silent(exchange: UpstreamExchange) -> None:
        await exchange.body()
        await exchange.head(
            200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}
        )
        await exchange.chunk(b'event: ping\ndata: {"type": "ping"}\n\n')
        await exchange.disconnected()

    async with (
        NumberingUpstream() as upstream,
        running(
            tmp_path,
            upstream,
            UPSTREAM_FIRST_BYTE_TIMEOUT="1",
            UPSTREAM_IDLE_TIMEOUT="1",
            SSE_KEEPALIVE_INTERVAL="0.1",
            CLIENT_IDLE_TIMEOUT="1",
            CLIENT_BODY_TIMEOUT="1",
        ) as program,
    ):
        clients = [await program.connect() for _ in range(4)]
        silent, waiting, uploading, asking = clients
        upstream.script(falls_silent)
        await silent.send(Numbered(1, "anthropic", stream=True).data)
        assert (await silent.head()).status == 200
        await waiting.send(Numbered(2, "anthropic", held=True).data)
        await uploading.send(Numbered(3, "anthropic").data[:-20])
        await asking.send(b"GET /heal")
        await upstream.received(2)

        await step(program, BACK, -1)

        # the stream's own, and at least one of the proxy's
        await ping(silent, "anthropic", 2)
        rest = b""
        with contextlib.suppress(Truncated):
            while piece := await silent.chunk():
                rest += piece
            raise AssertionError("it ended as if it were whole")
        assert b"event: error\n" in rest
        assert (await waiting.response()).status == 504
        assert (await uploading.response()).status == 408
        assert (await asking.read()) == b"" or b" 408 " in (await asking.read_until(b"\r\n"))
        for client in clients:
            await client.close()


FIRST = """
import asyncio, pathlib, sys
from tornadoproxy import hookimpl

@hookimpl
async def authenticate(request):
    print("asked", file=sys.stderr, flush=True)
    while not pathlib.Path("may-answer").exists():
        await asyncio.sleep(0.01)
"""
# what is left of the time is told to the second by the clock that told it to the first
SECOND = """
import asyncio
from tornadoproxy import hookimpl

@hookimpl
async def authenticate(request):
    await asyncio.sleep(0.01 if request.path == "/v1/models" else 1000)
"""


@pytest.mark.parametrize(
    ("number", "total", "seconds", "path", "status"),
    [(FORWARDS, 1, "60", "/v1/models", 200), (BACK, -1, "0.5", "/v1/never", 503)],
)
async def test_clock_step_keeps_the_plugin_timeout(
    tmp_path: Path, number: signal.Signals, total: int, seconds: str, path: str, status: int
) -> None:
    install(tmp_path, "first", FIRST)
    install(tmp_path, "second", SECOND)
    install_clock(tmp_path)
    async with (
        ScriptedUpstream() as upstream,
        running(tmp_path, upstream, PLUGIN_TIMEOUT=seconds) as program,
    ):
        request = request_bytes("GET", path, token=TEST_TOKEN)
        asking = asyncio.create_task(program.ask(request))
        await program.errors.wait_for("^asked$")
        await step(program, number, total)
        (tmp_path / "may-answer").touch()
        assert (await asking).status == status
