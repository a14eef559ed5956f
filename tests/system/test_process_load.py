"""Signals, and steps of the wall clock, while the real program is under load."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
from asyncio.subprocess import PIPE
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import pytest
from load_content import Dialect, How, fault_of, request
from program import install, running
from proxy_process import Peer, peer_process

from tornadoproxy.testing import (
    TEST_TOKEN,
    RawConnection,
    ScriptedServer,
    Truncated,
    request_bytes,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path

    from program import Program

    from tornadoproxy.testing import RawResponse

HEALTH = request_bytes("GET", "/health")
STOPPING = "stopping: no new connections"
RELOADED = "SIGHUP: reloaded secrets and the settings of plugins"


@dataclass
class Asked:
    """A request on its connection, which `goes_on` unless the response says that it is closed."""

    connection: RawConnection
    dialect: Dialect
    how: How
    number: int
    goes_on: bool = True

    @property
    def data(self) -> bytes:
        return request(self.dialect, self.how, self.number)

    def check_whole(self, response: RawResponse) -> None:
        assert fault_of(self.dialect, self.how, self.number, response) is None

    async def finish(self) -> None:
        """Its response is whole; close the connection."""
        self.check_whole(await self.connection.response())
        await self.connection.close()

    async def result(self) -> Literal["whole", "refused", "closed"]:
        """Return how it ended: whole, refused by an error, or without a single byte."""
        try:
            await self.connection.send(self.data)
            response = await self.connection.response()
        except ConnectionError:
            return "closed"
        except Truncated as cut:
            if cut.response is None and str(cut).endswith("unread: b''"):
                return "closed"
            raise
        self.goes_on = response.header("Connection") != "close"
        if response.status == 200:
            self.check_whole(response)
            return "whole"
        assert response.status in {503, 529}
        assert json.loads(response.body)["error"]["message"]
        return "refused"


class Load:
    """Requests of all kinds at once, half in each dialect.

    :ivar results: what became of those that clients made again and again, by their numbers.
    """

    def __init__(self, upstream: Peer, port: int) -> None:
        self.upstream = upstream
        self.results: dict[int, str] = {}
        self._port = port
        self._numbers = itertools.count(1)
        self._dialects: Iterator[Dialect] = itertools.cycle(("anthropic", "openai"))

    async def new(self, how: How) -> Asked:
        connection = await RawConnection.open(self._port)
        return Asked(connection, next(self._dialects), how, next(self._numbers))

    async def hold(self, count: int, how: How) -> list[Asked]:
        """Make so many requests, and wait until all are upstream."""
        held = [await self.new(how) for _ in range(count)]
        for each in held:
            await each.connection.send(each.data)
        while not {each.number for each in held} <= {*await self.upstream.ask("answered")}:
            await asyncio.sleep(0.01)  # nothing reports it
        return held

    async def begin_uploads(self, count: int) -> list[Asked]:
        """Make so many requests but for their last bytes."""
        uploads = [await self.new("json") for _ in range(count)]
        for each in uploads:
            await each.connection.send(each.data[:-20])
        return uploads

    async def ask_again_and_again(self, *, new_connections: bool) -> None:
        """Be a client, until nobody listens or its only connection ends."""
        with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):
            asked = await self.new("json")
            while True:
                self.results[asked.number] = await asked.result()
                if new_connections:
                    await asked.connection.close()
                    asked = await self.new("json")
                elif self.results[asked.number] == "closed" or not asked.goes_on:
                    break
                else:
                    how: How = "stream" if asked.how == "json" else "json"
                    asked = Asked(asked.connection, asked.dialect, how, next(self._numbers))
            await asked.connection.close()

    async def until_answered(self, count: int) -> None:
        """Wait until so many more requests of these clients have ended."""
        before = len(self.results)
        while len(self.results) < before + count:
            await asyncio.sleep(0.01)  # nothing reports it


@asynccontextmanager
async def loaded(directory: Path, **variables: str | None) -> AsyncIterator[tuple[Program, Load]]:
    """Run the program, with as much time to drain as a test may take."""
    async with (
        peer_process("fast_upstream.py") as upstream,
        running(
            directory,
            f"http://127.0.0.1:{await upstream.says()}",
            stdout=PIPE,
            stderr=PIPE,
            wrapper=(),
            **{"DRAIN_TIMEOUT": "60", **variables},
        ) as program,
    ):
        yield program, Load(upstream, await program.port())


def records_of(lines: Iterable[str]) -> dict[int, dict[str, Any]]:
    """The access log's records by the number of their request, of which none is there twice."""
    records = [json.loads(line) for line in lines]
    by_number = {int(each["session_id"]): each for each in records}
    assert len(by_number) == len(records)
    return by_number


def check_no_traceback(program: Program) -> None:
    assert "Traceback" not in "\n".join(program.errors.all)


# -- signals; tests/server/test_runner.py has what each of them does


async def test_signals_under_load_lose_nothing(tmp_path: Path) -> None:
    """Each SIGHUP finds another token and the access log moved; the last one follows a SIGTERM."""
    log, tokens = tmp_path / "access.log", tmp_path / "tokens"
    tokens.write_text(TEST_TOKEN)
    files = {"AUTH_TOKEN_FILE": str(tokens), "ACCESS_LOG": str(log)}
    async with loaded(tmp_path, AUTH_TOKEN=None, **files) as (program, load):
        held = [*await load.hold(40, "hold"), *await load.hold(20, "late")]
        uploads = await load.begin_uploads(10)
        clients = [
            asyncio.create_task(load.ask_again_and_again(new_connections=number % 3 == 0))
            for number in range(24)
        ]
        for rotation in range(1, 11):
            await load.until_answered(20)
            log.rename(tmp_path / f"access.log.{rotation}")
            tokens.write_text(f"another-token-for-a-while-{rotation} {TEST_TOKEN}")
            program.send_signal(signal.SIGHUP)
            await program.errors.wait_for(RELOADED, rotation)
        assert set(load.results.values()) == {"whole"}
        await load.until_answered(100)

        program.send_signal(signal.SIGTERM)
        await program.errors.wait_for(STOPPING)
        # clients that only ask end soon, whatever else is in flight
        await asyncio.gather(*clients)
        program.send_signal(signal.SIGHUP)
        await program.errors.wait_for(RELOADED, 11)
        for each in uploads:
            await each.connection.send(each.data[-20:])
        await load.upstream.ask("release")
        await asyncio.gather(*(each.finish() for each in (*held, *uploads)))
        answered = await load.upstream.ask("answered")
        assert await program.ended() == 0
    check_no_traceback(program)
    whole = {number for number, result in load.results.items() if result == "whole"}
    whole |= {each.number for each in (*held, *uploads)}
    refused = {number for number, result in load.results.items() if result == "refused"}
    # what was not answered by a byte has not gone upstream either
    assert Counter(answered) == Counter(whole)
    logs = [*tmp_path.glob("access.log*")]
    assert len(logs) == 11
    records = records_of(line for path in logs for line in path.read_text().splitlines())
    assert records.keys() == whole | refused
    assert {records[number]["outcome"] for number in whole} == {"completed"}


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
async def test_signals_while_it_ends_change_nothing(tmp_path: Path, number: signal.Signals) -> None:
    async with ScriptedServer() as upstream, running(tmp_path, upstream) as program:
        await program.port()
        program.send_signal(signal.SIGTERM)
        await program.errors.wait_for(STOPPING)
        with contextlib.suppress(ProcessLookupError):
            while True:
                program.send_signal(number)
                await asyncio.sleep(0.001)
        # whether one came in time to be the second depends on the moment; none ends it by default
        assert await program.ended() in {0, 1}
        check_no_traceback(program)


SLOW_START = """
import asyncio, pathlib, sys
from tornadoproxy import hookimpl

@hookimpl
async def startup():
    print("starting", file=sys.stderr, flush=True)
    while not pathlib.Path("may-start").exists():
        await asyncio.sleep(0.01)
"""


async def test_sighup_before_it_serves_is_applied_then(tmp_path: Path) -> None:
    install(tmp_path, "slow", SLOW_START)
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-that-is-soon-replaced")
    async with (
        ScriptedServer() as upstream,
        running(tmp_path, upstream, AUTH_TOKEN=None, AUTH_TOKEN_FILE=str(tokens)) as program,
    ):
        await program.errors.wait_for("^starting$")
        tokens.write_text(TEST_TOKEN)
        program.send_signal(signal.SIGHUP)
        (tmp_path / "may-start").touch()
        await program.errors.wait_for(RELOADED)
        # the upstream's own 404, and not the proxy's 401
        response = await program.ask(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
        assert (response.status, len(upstream.requests)) == (404, 1)


# -- steps of the clock

# USR1 sets it forwards by a day, USR2 back by a day
STEPPED = """
import os, signal, time

DAY = 86400.0
moved = 0.0
real, real_ns = time.time, time.time_ns

def step(by):
    global moved
    moved += by
    os.write(2, b"the clock is moved\\n")

time.time = lambda: real() + moved
time.time_ns = lambda: real_ns() + int(moved * 1e9)
signal.signal(signal.SIGUSR1, lambda *_: step(DAY))
signal.signal(signal.SIGUSR2, lambda *_: step(-DAY))
"""
FORWARDS, BACK = signal.SIGUSR1, signal.SIGUSR2


async def step_clock(program: Program, number: signal.Signals) -> None:
    program.send_signal(number)
    await program.errors.wait_for("^the clock is moved$")


@pytest.fixture
def clock(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(STEPPED)


@pytest.mark.usefixtures("clock")
async def test_clock_set_forwards_by_a_day_ends_nothing(tmp_path: Path) -> None:
    # to none of which the test comes near, except by a clock that is a day ahead
    minutes = dict.fromkeys(
        (
            *("UPSTREAM_CONNECT_TIMEOUT", "UPSTREAM_FIRST_BYTE_TIMEOUT", "UPSTREAM_IDLE_TIMEOUT"),
            *("UPSTREAM_KEEPALIVE_TIMEOUT", "CLIENT_IDLE_TIMEOUT", "CLIENT_BODY_TIMEOUT"),
            "PLUGIN_TIMEOUT",
        ),
        "60",
    )
    async with loaded(tmp_path, **minutes) as (program, load):
        held = [*await load.hold(2, "hold"), *await load.hold(2, "late")]
        (upload,) = await load.begin_uploads(1)
        idle, asking = [await program.connect() for _ in range(2)]
        assert (await idle.ask(HEALTH)).status == 200
        await asking.send(HEALTH[:9])

        await step_clock(program, FORWARDS)

        assert (await asking.ask(HEALTH[9:])).status == 200
        assert (await idle.ask(HEALTH)).status == 200
        await upload.connection.send(upload.data[-20:])
        await upload.finish()
        (later,) = await load.hold(1, "json")
        await later.finish()
        program.send_signal(signal.SIGTERM)
        await program.errors.wait_for(STOPPING)
        await load.upstream.ask("release")
        await asyncio.gather(*(each.finish() for each in held))
        assert await program.ended() == 0
        for connection in (idle, asking):
            await connection.close()

    records = records_of(program.output.all)
    assert records.keys() == {*range(1, 7)}
    for record in records.values():
        assert record["outcome"] == "completed"
        assert 0 <= record["time_to_first_byte_ms"] <= record["duration_ms"] < 60_000
        assert 0 <= record["upstream_time_ms"] <= record["duration_ms"]
    # which is the time of day by the clock that there is
    for at, moved in ((held[0].number, 0), (later.number, 1)):
        away = datetime.fromisoformat(records[at]["time"]) - datetime.now(UTC)
        assert round(away.total_seconds() / 86400) == moved


@pytest.mark.usefixtures("clock")
async def test_clock_set_back_keeps_deadlines_and_pings(tmp_path: Path) -> None:
    async with loaded(
        tmp_path,
        UPSTREAM_FIRST_BYTE_TIMEOUT="1",
        UPSTREAM_IDLE_TIMEOUT="1",
        SSE_KEEPALIVE_INTERVAL="0.1",
        CLIENT_IDLE_TIMEOUT="1",
        CLIENT_BODY_TIMEOUT="1",
    ) as (program, load):
        (stream,) = await load.hold(1, "hold")
        (late,) = await load.hold(1, "late")
        (upload,) = await load.begin_uploads(1)
        asking = await program.connect()
        await asking.send(HEALTH[:9])

        await step_clock(program, BACK)

        with pytest.raises(Truncated) as cut:
            await stream.connection.response()
        assert cut.value.response is not None
        assert cut.value.response.body.count(b"event: ping\n") > 1
        assert b"event: error\n" in cut.value.response.body
        assert (await late.connection.response()).status == 504
        assert (await upload.connection.response()).status == 408
        assert await asking.read() == b""
        for each in (stream, late, upload):
            await each.connection.close()
        await asking.close()
