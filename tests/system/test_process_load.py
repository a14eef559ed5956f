"""Signals, and steps of the wall clock, while the real program is under load."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from load_content import Dialect, How, check_response, request
from program import Launch, Program, install, running
from proxy_process import FastUpstream, fast_upstream, until

from tornadoproxy.testing import TEST_TOKEN, RawConnection, RawResponse, Truncated, request_bytes

HEALTH = request_bytes("GET", "/health")
STOPPING = "stopping: no new connections"
RELOADED = "SIGHUP: reloaded secrets and the settings of plugins"

numbers = itertools.count(1)


class Asked(NamedTuple):
    """A request on a connection of its own; its number decides the dialect."""

    connection: RawConnection
    how: How
    number: int

    @property
    def dialect(self) -> Dialect:
        return "openai" if self.number % 4 > 1 else "anthropic"

    @property
    def data(self) -> bytes:
        return request(self.dialect, self.how, self.number)

    def check(self, response: RawResponse) -> None:
        """Assert that the response is whole, and this request's."""
        check_response(self.dialect, self.how, self.number, response.status, response.body)

    async def finish(self, rest: bytes = b"") -> None:
        """Send the `rest` of the request, see that its response is whole, close the connection."""
        self.check(await self.connection.ask(rest))
        await self.connection.close()


async def begin(program: Program, upstream: FastUpstream, how: How, count: int = 1) -> list[Asked]:
    """Make so many requests, and wait until all are upstream."""
    asked = [Asked(await program.connect(), how, next(numbers)) for _ in range(count)]
    for each in asked:
        await each.connection.send(each.data)
    while not {each.number for each in asked} <= {*await upstream.ask("answered")}:
        await asyncio.sleep(0.01)  # nothing reports it
    return asked


async def begin_uploads(program: Program, count: int) -> list[Asked]:
    """Make so many requests but for their last 20 bytes."""
    uploads = [Asked(await program.connect(), "json", next(numbers)) for _ in range(count)]
    for each in uploads:
        await each.connection.send(each.data[:-20])
    return uploads


async def ask_until_nobody_listens(program: Program, results: dict[int, str]) -> None:
    """Make requests, every third on a connection that is closed then; note the result of each."""
    with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):
        connection = await program.connect()
        while True:
            number = next(numbers)
            asked = Asked(connection, "stream" if number % 2 else "json", number)
            closes = number % 3 == 0
            try:
                response = await connection.ask(asked.data)
            except (ConnectionError, Truncated) as end:
                if isinstance(end, Truncated) and (end.response or "unread: b''" not in str(end)):
                    raise  # not even a byte may come of what is not answered
                closes, results[number] = True, "closed"
            else:
                closes |= response.header("Connection") == "close"
                if response.status == 200:
                    asked.check(response)
                    results[number] = "whole"
                else:
                    assert response.status in {503, 529}
                    assert json.loads(response.body)["error"]["message"]
                    results[number] = "refused"
            if closes:
                await connection.close()
                connection = await program.connect()


async def until_answered(results: dict[int, str], count: int) -> None:
    """Wait until so many more requests of these clients have ended."""
    wanted = len(results) + count
    await until(lambda: len(results) >= wanted, 60)


@asynccontextmanager
async def loaded(
    directory: Path, **variables: str | None
) -> AsyncIterator[tuple[Program, FastUpstream]]:
    """Run the program and its upstream, with as much time to drain as a test may take."""
    settings = {"DRAIN_TIMEOUT": "60", **variables}
    async with (
        fast_upstream() as upstream,
        running(
            directory, upstream.url, stdout=PIPE, stderr=PIPE, wrapper=(), **settings
        ) as program,
    ):
        yield program, upstream


def records_of(lines: Iterable[str]) -> dict[int, dict[str, Any]]:
    """The access log's records by the number of their request, of which none is there twice."""
    records = [json.loads(line) for line in lines]
    by_number = {int(each["session_id"]): each for each in records}
    assert len(by_number) == len(records)
    return by_number


# -- signals; tests/server/test_runner.py has what each of them does


async def test_signals_under_load_lose_nothing(tmp_path: Path) -> None:
    """Each SIGHUP finds another token and the access log moved; the last one follows a SIGTERM."""
    log, tokens = tmp_path / "access.log", tmp_path / "tokens"
    tokens.write_text(TEST_TOKEN)
    files = {"AUTH_TOKEN_FILE": str(tokens), "ACCESS_LOG": str(log)}
    results: dict[int, str] = {}
    async with loaded(tmp_path, AUTH_TOKEN=None, **files) as (program, upstream):
        held = await begin(program, upstream, "hold", 40) + await begin(
            program, upstream, "late", 20
        )
        uploads = await begin_uploads(program, 10)
        clients = [
            asyncio.create_task(ask_until_nobody_listens(program, results)) for _ in range(24)
        ]
        for rotation in range(1, 11):
            await until_answered(results, 20)
            log.rename(tmp_path / f"access.log.{rotation}")
            tokens.write_text(f"another-token-for-a-while-{rotation} {TEST_TOKEN}")
            program.send_signal(signal.SIGHUP)
            await program.errors.wait_for(RELOADED, rotation)
        assert set(results.values()) == {"whole"}
        await until_answered(results, 100)

        program.send_signal(signal.SIGTERM)
        await program.errors.wait_for(STOPPING)
        # clients that only ask end soon, whatever else is in flight
        await asyncio.gather(*clients)
        program.send_signal(signal.SIGHUP)
        await program.errors.wait_for(RELOADED, 11)
        await upstream.ask("release")
        await asyncio.gather(
            *(each.finish() for each in held), *(each.finish(each.data[-20:]) for each in uploads)
        )
        answered = await upstream.ask("answered")
        assert await program.ended() == 0
    assert "Traceback" not in program.said()
    whole = {number for number, result in results.items() if result == "whole"}
    whole |= {each.number for each in (*held, *uploads)}
    refused = {number for number, result in results.items() if result == "refused"}
    # what was not answered by a byte has not gone upstream either
    assert Counter(answered) == Counter(whole)
    logs = [*tmp_path.glob("access.log*")]
    assert len(logs) == 11
    records = records_of(line for path in logs for line in path.read_text().splitlines())
    assert records.keys() == whole | refused
    assert {records[number]["outcome"] for number in whole} == {"completed"}


# a signal to the process may be delivered to any of its threads
THREAD = """
import threading, time
from tornadoproxy import hookimpl

@hookimpl
def startup():
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
"""


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
async def test_signals_while_it_ends_change_nothing(
    tmp_path: Path, launch: Launch, number: signal.Signals
) -> None:
    install(tmp_path, "thread", THREAD)
    async with launch() as program:
        await program.port()
        program.send_signal(signal.SIGTERM)
        await program.errors.wait_for(STOPPING)
        with contextlib.suppress(ProcessLookupError):
            while True:
                program.send_signal(number)
                await asyncio.sleep(0.001)
        # whether one came in time to be the second depends on the moment; none ends it by default
        assert await program.ended() in {0, 1}
    assert "Traceback" not in program.said()


SLOW_START = """
import asyncio, pathlib, sys
from tornadoproxy import hookimpl

@hookimpl
async def startup():
    print("starting", file=sys.stderr, flush=True)
    while not pathlib.Path("may-start").exists():
        await asyncio.sleep(0.01)
"""


async def test_sighup_before_it_serves_is_applied_then(tmp_path: Path, launch: Launch) -> None:
    install(tmp_path, "slow", SLOW_START)
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-that-is-soon-replaced")
    async with launch(AUTH_TOKEN=None, AUTH_TOKEN_FILE=str(tokens)) as program:
        await program.errors.wait_for("^starting$")
        tokens.write_text(TEST_TOKEN)
        program.send_signal(signal.SIGHUP)
        (tmp_path / "may-start").touch()
        await program.errors.wait_for(RELOADED)
        response = await program.ask(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
        assert response.status == 200


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


async def test_steps_of_the_clock_move_no_deadline(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(STEPPED)
    names = (
        *("UPSTREAM_CONNECT_TIMEOUT", "UPSTREAM_FIRST_BYTE_TIMEOUT", "UPSTREAM_IDLE_TIMEOUT"),
        *("UPSTREAM_KEEPALIVE_TIMEOUT", "CLIENT_IDLE_TIMEOUT", "CLIENT_BODY_TIMEOUT"),
        "PLUGIN_TIMEOUT",
    )
    deadlines = dict.fromkeys(names, "2")
    async with loaded(tmp_path, SSE_KEEPALIVE_INTERVAL="0.1", **deadlines) as (program, upstream):
        (stream,) = await begin(program, upstream, "hold")
        (late,) = await begin(program, upstream, "late")
        upload, stalled = await begin_uploads(program, 2)
        idle, asking = [await program.connect() for _ in range(2)]
        assert (await idle.ask(HEALTH)).status == 200
        await asking.send(HEALTH[:9])

        program.send_signal(signal.SIGUSR1)
        await program.errors.wait_for("^the clock is moved$", 1)

        # a clock that is a day ahead ends nothing
        assert (await asking.ask(HEALTH[9:])).status == 200
        assert (await idle.ask(HEALTH)).status == 200
        await upload.finish(upload.data[-20:])
        (tomorrow,) = await begin(program, upstream, "json")
        await tomorrow.finish()

        program.send_signal(signal.SIGUSR2)
        await program.errors.wait_for("^the clock is moved$", 2)

        # one that is set back by a day keeps nothing from ending
        with pytest.raises(Truncated) as cut:
            await stream.connection.response()
        assert cut.value.response is not None
        assert cut.value.response.body.count(b"ping\n") > 1
        assert b"fell silent" in cut.value.response.body
        assert (await late.connection.response()).status == 504
        assert (await stalled.connection.response()).status == 408
        assert [await idle.read(), await asking.read()] == [b"", b""]
        for connection in (stream.connection, late.connection, stalled.connection, idle, asking):
            await connection.close()
        assert await program.stop() == 0

    records = records_of(program.output.all)
    assert len(records) == 5
    for number, record in records.items():
        assert 0 <= record["duration_ms"] < 60_000
        # which is the time of day by the clock that there is
        away = datetime.fromisoformat(record["time"]) - datetime.now(UTC)
        assert round(away.total_seconds() / 86400) == (number == tomorrow.number)
