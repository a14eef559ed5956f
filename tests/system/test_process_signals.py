"""Signals under load."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from numbered_load import DIALECTS, Client, Dialect, Numbered, NumberingUpstream, Result
from program import install, running

from tornadoproxy.testing import (
    TEST_TOKEN,
    RawConnection,
    ScriptedServer,
    Truncated,
    request_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

STREAMS = 40
RESPONSES = 20
UPLOADS = 10
CLIENTS = 16  # that ask again and again, each on one connection
NEWCOMERS = 8  # that come on a new connection each time


def sessions(lines: Sequence[str]) -> dict[int, dict[str, Any]]:
    """The access log's records by the number of their request, of which none is there twice."""
    records = [json.loads(line) for line in lines]
    twice = [
        item for item in Counter(each["session_id"] for each in records).items() if item[1] > 1
    ]
    assert not twice
    return {int(each["session_id"]): each for each in records}


class Held:
    """A request whose answer waits for the upstream."""

    def __init__(self, connection: RawConnection, request: Numbered) -> None:
        self.connection = connection
        self.request = request

    async def finish(self) -> None:
        """Its answer is whole, and the connection's end is clean."""
        self.request.check_whole(await self.connection.response())
        assert await self.connection.read() == b""
        await self.connection.close()


class Load:
    """Everything that goes on at once."""

    def __init__(self, upstream: NumberingUpstream, port: int) -> None:
        self.upstream = upstream
        self.results: dict[int, Result] = {}
        self.numbers = itertools.count(1)
        self.held: list[Held] = []
        self.uploads: list[Held] = []
        self._port = port

    async def hold(self, count: int, *, stream: bool) -> list[Held]:
        """Ask so many requests, half in each dialect, and wait until all are upstream."""
        new = []
        already = len(self.upstream.answered)
        for dialect in in_turn(count):
            request = Numbered(next(self.numbers), dialect, stream=stream, held=True)
            connection = await RawConnection.open(self._port)
            await connection.send(request.data)
            new.append(Held(connection, request))
        while len(self.upstream.answered) < already + count:
            # nothing tells of it
            await asyncio.sleep(0.01)
        self.held += new
        return new

    async def begin_uploads(self, count: int) -> None:
        """Send the first half of so many requests."""
        for dialect in in_turn(count):
            request = Numbered(next(self.numbers), dialect)
            connection = await RawConnection.open(self._port)
            await connection.send(request.data[:-20])
            self.uploads.append(Held(connection, request))

    async def end_uploads(self) -> None:
        for each in self.uploads:
            await each.connection.send(each.request.data[-20:])

    def clients(self, count: int) -> list[Client]:
        return [Client(self._port, self.numbers, self.results) for _ in range(count)]


def in_turn(count: int) -> Iterator[Dialect]:
    """So many dialects, one after the other."""
    return itertools.islice(itertools.cycle(DIALECTS), count)


async def until_each_was_answered(clients: Sequence[Client], results: dict[int, Result]) -> None:
    while len(results) < 5 * len(clients):
        # nothing tells of it
        await asyncio.sleep(0.01)


async def until_cut(connection: RawConnection) -> bytes:
    """What comes of a chunked body before it is cut short."""
    rest = b""
    try:
        while piece := await connection.chunk():
            rest += piece
    except Truncated:
        return rest
    raise AssertionError("it ended as if it were whole")


async def test_sigterm_under_load_loses_nothing(tmp_path: Path) -> None:
    async with (
        NumberingUpstream() as upstream,
        running(tmp_path, upstream, DRAIN_TIMEOUT="60") as program,
    ):
        load = Load(upstream, await program.port())
        await load.hold(STREAMS, stream=True)
        await load.hold(RESPONSES, stream=False)
        await load.begin_uploads(UPLOADS)
        clients, newcomers = load.clients(CLIENTS), load.clients(NEWCOMERS)
        asking = [
            *(
                asyncio.create_task(client.ask_until_closed(dialect))
                for client, dialect in zip(clients, in_turn(CLIENTS), strict=True)
            ),
            *(
                asyncio.create_task(client.come_again_until_refused(dialect))
                for client, dialect in zip(newcomers, in_turn(NEWCOMERS), strict=True)
            ),
        ]
        await until_each_was_answered(clients, load.results)

        program.send_signal(signal.SIGTERM)
        await program.errors.wait_for("stopping: no new connections")
        # everybody who only asks is soon through, whatever else is still in flight
        await asyncio.gather(*asking)
        assert program.process.returncode is None
        await load.end_uploads()
        upstream.may_end.set()
        await asyncio.gather(*(each.finish() for each in (*load.held, *load.uploads)))

        assert await program.ended() == 0
        assert "Traceback" not in "\n".join(program.errors.all)
        answered = {number for number, result in load.results.items() if result == "whole"}
        refused = {number for number, result in load.results.items() if result == "refused"}
        answered |= {each.request.number for each in (*load.held, *load.uploads)}
        # what was not answered by a byte has not been done either
        assert Counter(upstream.answered) == Counter(answered)
        records = sessions(program.output.all)
        assert records.keys() == answered | refused
        assert {records[number]["outcome"] for number in answered} == {"completed"}
        assert not upstream.failures


async def test_second_sigterm_under_load_cuts_and_logs_all(tmp_path: Path) -> None:
    async with (
        NumberingUpstream() as upstream,
        running(tmp_path, upstream, DRAIN_TIMEOUT="600") as program,
    ):
        load = Load(upstream, await program.port())
        streams = await load.hold(STREAMS, stream=True)
        responses = await load.hold(RESPONSES, stream=False)
        await asyncio.gather(*(each.connection.head() for each in streams))
        await asyncio.gather(*(each.connection.chunk() for each in streams))

        program.send_signal(signal.SIGTERM)
        await program.errors.wait_for("stopping: no new connections")
        program.send_signal(signal.SIGTERM)

        for each in streams:
            rest = await until_cut(each.connection)
            if each.request.dialect == "anthropic":
                assert rest.startswith(b"event: error\n")
            else:
                assert b'data: {"error":' in rest
                assert b"[DONE]" not in rest
        for each in responses:
            each.request.check_refused(await each.connection.response())
        assert await program.ended() == 1
        records = sessions(program.output.all)
        assert records.keys() == {each.request.number for each in load.held}
        assert {record["outcome"] for record in records.values()} == {"drained"}
        assert "Traceback" not in "\n".join(program.errors.all)
        await upstream.all_closed()
        for each in load.held:
            await each.connection.close()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
async def test_signals_while_it_ends_change_nothing(tmp_path: Path, number: signal.Signals) -> None:
    async with ScriptedServer() as upstream, running(tmp_path, upstream) as program:
        await program.port()
        program.send_signal(signal.SIGTERM)
        await program.errors.wait_for("stopping: no new connections")
        while program.process.returncode is None:
            try:
                program.send_signal(number)
            except ProcessLookupError:
                break
            await asyncio.sleep(0.001)
        # whether one came in time to be the second depends on the moment; none ends it by default
        assert await program.ended() in {0, 1}
        assert "Traceback" not in "\n".join(program.errors.all)


async def test_sighup_under_load_changes_no_response(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    tokens = tmp_path / "tokens"
    tokens.write_text(TEST_TOKEN)
    async with (
        NumberingUpstream() as upstream,
        running(
            tmp_path,
            upstream,
            AUTH_TOKEN=None,
            AUTH_TOKEN_FILE=str(tokens),
            ACCESS_LOG=str(log),
            DRAIN_TIMEOUT="60",
        ) as program,
    ):
        load = Load(upstream, await program.port())
        await load.hold(20, stream=True)
        await load.hold(20, stream=False)
        clients = load.clients(CLIENTS)
        asking = [
            asyncio.create_task(client.ask_until_closed(dialect))
            for client, dialect in zip(clients, in_turn(CLIENTS), strict=True)
        ]
        await until_each_was_answered(clients, load.results)

        rotations = 10
        for rotation in range(1, rotations + 1):
            log.rename(tmp_path / f"access.log.{rotation}")
            tokens.write_text(f"another-token-for-a-while-{rotation} {TEST_TOKEN}")
            program.send_signal(signal.SIGHUP)
            await program.errors.wait_for("SIGHUP: reloaded secrets and the settings", rotation)
        seen = len(load.results)
        while len(load.results) < seen + 5 * CLIENTS:
            await asyncio.sleep(0.01)
        for client in clients:
            client.may_end = True
        await asyncio.gather(*asking)
        upstream.may_end.set()
        for each in load.held:
            each.request.check_whole(await each.connection.response())
            await each.connection.close()

        program.send_signal(signal.SIGTERM)
        assert await program.ended() == 0
        assert set(load.results.values()) == {"whole"}
        lines = [
            line for path in tmp_path.glob("access.log*") for line in path.read_text().splitlines()
        ]
        records = sessions(lines)
        assert records.keys() == load.results.keys() | {each.request.number for each in load.held}
        assert {record["outcome"] for record in records.values()} == {"completed"}
        assert len([*tmp_path.glob("access.log*")]) == rotations + 1
        assert "Traceback" not in "\n".join(program.errors.all)


async def test_sighup_before_it_serves_is_applied_then(tmp_path: Path) -> None:
    install(
        tmp_path,
        "slow",
        """
import asyncio, pathlib, sys
from tornadoproxy import hookimpl

@hookimpl
async def startup():
    print("starting", file=sys.stderr, flush=True)
    while not pathlib.Path("may-start").exists():
        await asyncio.sleep(0.01)
""",
    )
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
        await program.errors.wait_for("SIGHUP: reloaded secrets and the settings of plugins")
        # the upstream's own 404, and not the proxy's 401
        response = await program.ask(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
        assert (response.status, len(upstream.requests)) == (404, 1)


async def test_sighup_while_draining_cuts_nothing(tmp_path: Path) -> None:
    async with (
        NumberingUpstream() as upstream,
        running(tmp_path, upstream, DRAIN_TIMEOUT="60") as program,
    ):
        load = Load(upstream, await program.port())
        await load.hold(10, stream=True)
        program.send_signal(signal.SIGTERM)
        await program.errors.wait_for("stopping: no new connections")
        program.send_signal(signal.SIGHUP)
        await program.errors.wait_for("SIGHUP: reloaded secrets and the settings")
        upstream.may_end.set()
        await asyncio.gather(*(each.finish() for each in load.held))
        assert await program.ended() == 0
        assert len(sessions(program.output.all)) == 10
