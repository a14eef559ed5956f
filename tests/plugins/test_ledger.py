"""The ledger: that each request has its row, whatever happens, and what the rows come to."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from tornadoproxy_ledger import LEDGER_DB, LEDGER_RETENTION_DAYS, Ledger
from tornadoproxy_ledger.rows import SCHEMA, STEP, delete_some, insert

from tornadoproxy import (
    INACTIVE,
    ConfigurationError,
    Database,
    Identity,
    ModelUsage,
    Outcome,
    RequestRecord,
    Settings,
    Usage,
    hookimpl,
    usd,
)
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    RawConnection,
    Truncated,
    error_response,
    message_document,
    message_events,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from tornadoproxy.testing import (
        OpenRaw,
        RawResponse,
        Records,
        Response,
        ScriptedUpstream,
        StartProxy,
    )

MODEL = "claude-sonnet-5-5"
PATHS = {"anthropic": "/v1/messages", "openai": "/openai/v1/chat/completions"}
OF_A_RECORD = [
    name
    for name in RequestRecord.__struct_fields__
    if name
    not in {*("groups", "usage", "cost", "traceparent", "tracestate", "scheme", "requested_model")}
]
OF_USAGE = [name for name in Usage.__struct_fields__ if name != "others"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def rows(path: Path) -> list[sqlite3.Row]:
    """What is in the file, which is sound."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        assert [*connection.execute("PRAGMA integrity_check").fetchone()] == ["ok"]
        return connection.execute("SELECT * FROM requests ORDER BY id").fetchall()


def check_row(row: sqlite3.Row, record: RequestRecord) -> None:
    """That `row` says what `record` says, and nothing else."""
    assert {name: row[name] for name in OF_A_RECORD} == {
        name: getattr(record, name) for name in OF_A_RECORD
    }
    assert {name: row[name] for name in OF_USAGE} == {
        name: getattr(record.usage, name) for name in OF_USAGE
    }
    assert (row["other_models"] is None) == (not record.usage.others)
    assert row["cost_nanos"] == record.cost
    assert tuple(json.loads(row["groups"] or "[]")) == record.groups
    assert set(row.keys()) == {
        *("id", "groups", "cost_nanos", "other_models", *OF_A_RECORD, *OF_USAGE)
    }


def message(
    dialect: str = "anthropic",
    *,
    stream: bool = False,
    session: str = "",
    token: str | None = TEST_TOKEN,
) -> bytes:
    """A request for a message."""
    body = {
        "model": MODEL,
        "max_tokens": 100,
        "stream": stream,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    headers = [
        ("anthropic-version", "2023-06-01"),
        ("Content-Type", "application/json"),
        ("X-Claude-Code-Session-Id", session),
        ("X-Claude-Code-Agent-Id", "agent-1"),
        ("X-Claude-Code-Parent-Agent-Id", "agent-0"),
    ]
    return request_bytes("POST", PATHS[dialect], headers, json.dumps(body).encode(), token=token)


async def ask(raw: OpenRaw, request: bytes) -> RawResponse:
    connection = await raw()
    await connection.send(request)
    response = await connection.response()
    await connection.close()
    return response


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have another connection in the middle of a transaction that writes."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


class Team:
    """Lets everybody in as Ada, who is in two groups; a token costs a millionth of a dollar."""

    @hookimpl(tryfirst=True)
    def authenticate(self) -> Identity:
        return Identity("ada", groups=("engineers", "früh"))

    @hookimpl(tryfirst=True)
    def price(self, usage: Usage) -> int:
        return 1000 * ((usage.input_tokens or 0) + (usage.output_tokens or 0))


# Rows


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
@pytest.mark.parametrize("dialect", PATHS)
async def test_a_row_says_what_the_record_says(
    start_proxy: StartProxy, raw: OpenRaw, records: Records, path: Path, dialect: str, stream: bool
) -> None:
    proxy = await start_proxy(plugins=[Team()], LEDGER_DB=path)
    response = await ask(raw, message(dialect, stream=stream, session="s-1"))
    assert response.status == 200
    record = await records.finished()
    await proxy.server.drain()
    (row,) = rows(path)
    check_row(row, record)
    # and that is what it was, by the upstream's own count
    assert row["principal"] == "ada"
    assert json.loads(row["groups"]) == ["engineers", "früh"]
    assert (row["dialect"], row["route"], row["method"]) == (dialect, PATHS[dialect], "POST")
    assert (row["status"], row["outcome"], row["error"]) == (200, "completed", None)
    assert (row["model"], row["stop_reason"], row["partial"]) == (MODEL, "end_turn", 0)
    assert row["input_tokens"] > 0
    assert row["output_tokens"] > 0
    assert row["cost_nanos"] == 1000 * (row["input_tokens"] + row["output_tokens"])
    assert (row["session_id"], row["agent_id"], row["parent_agent_id"]) == (
        "s-1", "agent-1", "agent-0",
    )  # fmt: skip
    assert (row["time_to_first_token"] is not None) == stream
    assert row["request_id"] == response.header(
        "request-id" if dialect == "anthropic" else "x-request-id"
    )


@pytest.mark.parametrize("dialect", PATHS)
async def test_all_kinds_of_tokens(
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    path: Path,
    dialect: str,
) -> None:
    usage = {
        "input_tokens": 1,
        "output_tokens": 2,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 9,
        "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 5},
        "server_tool_use": {"web_search_requests": 6, "web_fetch_requests": 7},
    }
    proxy = await start_proxy(LEDGER_DB=path)
    upstream.script(sse_response(message_events(message_document("Hi", usage=usage))))
    await ask(raw, message(dialect, stream=True))
    record = await records.finished()
    await proxy.server.drain()
    (row,) = rows(path)
    check_row(row, record)
    assert [row[name] for name in OF_USAGE] == [1, 2, 3, 9, 5, 6, 7, 0]


@pytest.mark.parametrize("dialect", PATHS)
async def test_a_row_for_who_was_not_let_in(
    start_proxy: StartProxy, raw: OpenRaw, records: Records, path: Path, dialect: str
) -> None:
    proxy = await start_proxy(LEDGER_DB=path)
    assert (await ask(raw, message(dialect, token="wrong"))).status == 401
    record = await records.finished()
    await proxy.server.drain()
    (row,) = rows(path)
    check_row(row, record)
    assert (row["principal"], row["status"], row["outcome"]) == (None, 401, "denied")
    assert (row["cost_nanos"], row["input_tokens"], row["partial"]) == (None, None, 0)


FIRST_EVENTS = message_events(message_document("Some words of an answer"))[:3]
FAILURES: Mapping[str, tuple[Response, str, int]] = {
    "refused": (error_response(429, "rate_limit_error", "slower"), "completed", 429),
    "cut": (sse_response(FIRST_EVENTS, end="reset"), "failed", 200),
}


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("dialect", PATHS)
async def test_a_row_for_what_failed(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    records: Records,
    path: Path,
    dialect: str,
    kind: str,
) -> None:
    response, outcome, status = FAILURES[kind]
    proxy = await start_proxy(LEDGER_DB=path)
    upstream.script(response)
    connection = await RawConnection.open(proxy.port)
    await connection.send(message(dialect, stream=True))
    with contextlib.suppress(Truncated):
        await connection.response()
    await connection.close()
    record = await records.finished()
    await proxy.server.drain()
    (row,) = rows(path)
    check_row(row, record)
    assert (row["outcome"], row["status"]) == (outcome, status)
    assert row["partial"] == (kind == "cut")


async def test_a_row_for_who_left(
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    path: Path,
) -> None:
    proxy = await start_proxy(LEDGER_DB=path)
    upstream.script(silent_response(), sse_response(FIRST_EVENTS, end="hang"))
    first = await raw()
    await first.send(message(stream=True, session="before the head"))
    await upstream.received(1)
    await first.close()
    await records.finished(1)
    second = await raw()
    await second.send(message(stream=True, session="within the answer"))
    await second.head()
    await second.chunk()
    await second.close()
    await records.finished(2)
    await proxy.server.drain()
    for row, record in zip(rows(path), records.all, strict=True):
        check_row(row, record)
        assert row["outcome"] == "abandoned"
        assert row["session_id"] in {"before the head", "within the answer"}


async def test_what_a_client_chooses_neither_breaks_a_row_nor_fills_the_disk(
    start_proxy: StartProxy, raw: OpenRaw, path: Path
) -> None:
    proxy = await start_proxy(LEDGER_DB=path)
    sessions = ["'; DROP TABLE requests; --", "x" * 5_000, "größe", "{}[]\"'"]
    for session in sessions:
        connection = await raw()
        headers = [("X-Claude-Code-Session-Id", session)]
        target = f"/v1/models/{'y' * 5_000}"
        await connection.send(request_bytes("GET", target, headers, token=TEST_TOKEN))
        await connection.response()
        await connection.close()
    await proxy.server.drain()
    written = [row["session_id"] for row in rows(path)]
    assert written == [session[:256] for session in sessions]
    assert {row["route"] for row in rows(path)} == {f"/v1/models/{'y' * 5_000}"[:256]}


def test_what_is_no_text_at_all_can_be_written(path: Path) -> None:
    record = replace(RECORD, principal="\udcff", groups=("\udcff",), error="\ud800 x")
    with ledger(path) as opened, opened.transaction() as connection:
        insert([record], connection)
    (row,) = rows(path)
    assert (row["principal"], row["error"]) == ("\\udcff", "\\ud800 x")


async def test_each_of_a_thousand_aborted_streams_has_exactly_one_row(
    start_proxy: StartProxy, upstream: ScriptedUpstream, records: Records, path: Path
) -> None:
    proxy = await start_proxy(LEDGER_DB=path)
    upstream.script(*[sse_response(FIRST_EVENTS, end="hang") for _ in range(1_000)])
    turns = asyncio.Semaphore(50)

    async def abort(number: int) -> None:
        async with turns:
            connection = await RawConnection.open(proxy.port)
            await connection.send(message(stream=True, session=f"s-{number}"))
            if number % 4:  # else before anything came
                await connection.head()
                for _ in range(number % 4 - 1):
                    await connection.chunk()
            await connection.close()

    await asyncio.gather(*(abort(number) for number in range(1_000)))
    await records.finished(1_000)
    await proxy.server.drain()
    found = rows(path)
    assert sorted(row["session_id"] for row in found) == sorted(f"s-{n}" for n in range(1_000))
    assert {row["outcome"] for row in found} == {"abandoned"}
    by_session = {record.session_id: record for record in records.all}
    for row in found:
        check_row(row, by_session[row["session_id"]])


# When the file cannot be used


class Awaited(logging.Handler):
    """Waits for a line of the log."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self._loop = asyncio.get_running_loop()
        self._seen = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self._loop.call_soon_threadsafe(self._seen.set)

    async def seen(self) -> None:
        """Wait until it has been logged since this was made."""
        await self._seen.wait()


@contextlib.asynccontextmanager
async def logged(text: str) -> AsyncIterator[None]:
    """Leave only when a line with `text` has been logged."""
    awaited = Awaited(text)
    logger = logging.getLogger("tornadoproxy")
    logger.addHandler(awaited)
    try:
        yield
        await awaited.seen()
    finally:
        logger.removeHandler(awaited)


async def test_nothing_is_lost_through_a_lock(
    start_proxy: StartProxy, raw: OpenRaw, path: Path
) -> None:
    proxy = await start_proxy(LEDGER_DB=path)
    async with logged("it is locked by another program"):
        with locked(path):
            async with logged("it is locked by another program"):
                for number in range(100):
                    response = await ask(raw, message(session=f"s-{number}"))
                    assert response.status == 200
            assert rows(path) == []
            for number in range(100, 150):
                assert (await ask(raw, message(session=f"s-{number}"))).status == 200
    await proxy.server.drain()
    assert [row["session_id"] for row in rows(path)] == [f"s-{n}" for n in range(150)]


async def test_a_file_that_is_gone_costs_rows_and_no_request_and_is_told(
    start_proxy: StartProxy, raw: OpenRaw, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = await start_proxy(LEDGER_DB=path)
    async with logged("it was deleted or moved"):
        path.unlink()
        assert (await ask(raw, message())).status == 200
    await proxy.server.drain()
    assert not path.exists()
    assert f"LEDGER_DB={path}: 1 items were lost" in caplog.text


# Its settings


async def test_it_does_nothing_unless_it_is_asked_to(
    start_proxy: StartProxy, raw: OpenRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    proxy = await start_proxy()
    assert "ledger" not in dict(proxy.lines)
    assert (await ask(raw, message())).status == 200
    await proxy.server.drain()
    assert list(tmp_path.iterdir()) == []
    assert Ledger().configure(Settings.defaults(LEDGER_DB, LEDGER_RETENTION_DAYS)) is INACTIVE


async def test_the_line_at_start(start_proxy: StartProxy, path: Path) -> None:
    proxy = await start_proxy(LEDGER_DB=path)
    assert dict(proxy.lines)["ledger"] == f"a row for each request, to {path}, kept for ever"
    proxy = await start_proxy(LEDGER_DB=path, LEDGER_RETENTION_DAYS=30)
    assert dict(proxy.lines)["ledger"] == f"a row for each request, to {path}, kept for 30 days"


async def test_mistakes_end_the_start(start_proxy: StartProxy, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a database" * 100)
    faults: dict[str, dict[str, Any]] = {  # Any: variables are whatever has a text
        f"LEDGER_DB={tmp_path} cannot be used: it is a directory": {"LEDGER_DB": tmp_path},
        f"LEDGER_DB={tmp_path}/notes cannot be used: it is not an SQLite database": {
            "LEDGER_DB": tmp_path / "notes"
        },
        "LEDGER_RETENTION_DAYS is set and LEDGER_DB is not": {"LEDGER_RETENTION_DAYS": 1},
        "LEDGER_RETENTION_DAYS must be a whole number from 1": {
            "LEDGER_DB": tmp_path / "ledger.db",
            "LEDGER_RETENTION_DAYS": 0,
        },
    }
    for fault, variables in faults.items():
        with pytest.raises(ConfigurationError, match=re.escape(fault)) as caught:
            await start_proxy(**variables)
        assert len(caught.value.faults) == 1


async def test_only_a_start_changes_the_file(start_proxy: StartProxy, path: Path) -> None:
    proxy = await start_proxy(LEDGER_DB=path)
    proxy.reload(LEDGER_RETENTION_DAYS=30)
    for other in (path.with_name("other.db"), None):
        with pytest.raises(ConfigurationError, match=r"^LEDGER_DB cannot change from .* again\.$"):
            proxy.reload(LEDGER_DB=other, LEDGER_RETENTION_DAYS=None)


def test_checking_writes_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "check", LEDGER_DB="./ledger.db", UPSTREAM_API_KEY="x")
    assert (done.returncode, done.stderr) == (0, "")
    assert "a row for each request, to ledger.db, kept for ever" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 100])
def test_many_rows_are_each_their_own(path: Path, count: int) -> None:
    records = [
        replace(RECORD, request_id=f"req_{at}", bytes_in=at, usage=Usage(at, partial=bool(at % 2)))
        for at in range(count)
    ]
    with ledger(path) as opened, opened.transaction() as connection:
        insert(records, connection)
    written = rows(path)
    assert len(written) == count
    for row, record in zip(written, records, strict=True):
        check_row(row, record)


# What is kept, and for how long


async def test_old_rows_are_deleted_and_no_others(start_proxy: StartProxy, path: Path) -> None:
    day = 86_400
    now = time.time()
    ages = [0.0, day, 6.9 * day] + [7.1 * day] * (2 * STEP + 1)
    with ledger(path) as opened, opened.transaction() as connection:
        for age in ages:
            insert([replace(RECORD, time=now - age)], connection)
    await start_proxy(LEDGER_DB=path, LEDGER_RETENTION_DAYS=7)
    while len(rows(path)) > 3:  # no event tells of it; the test's own limit ends this
        await asyncio.sleep(0.05)
    assert [now - row["time"] for row in rows(path)] == pytest.approx(ages[:3], abs=1)


def test_they_are_deleted_in_small_steps_the_oldest_first(path: Path) -> None:
    with ledger(path) as opened, opened.transaction() as connection:
        for at in reversed(range(STEP + 10)):
            insert([replace(RECORD, time=at)], connection)
        assert delete_some(STEP + 5, connection)
        left = "SELECT time FROM requests ORDER BY time"
        assert [at for (at,) in connection.execute(left)] == [*range(STEP, STEP + 10)]
        assert not delete_some(STEP + 5, connection)
        assert [at for (at,) in connection.execute(left)] == [*range(STEP + 5, STEP + 10)]


# The program, in a process of its own


def environment(**variables: str) -> dict[str, str]:
    coverage = {name: text for name, text in os.environ.items() if name.startswith("COVERAGE")}
    return {"PATH": os.defpath, **coverage, **variables}


def run(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end in `directory`."""
    return subprocess.run(
        [sys.executable, "-m", "tornadoproxy", *arguments],
        cwd=directory,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@contextlib.asynccontextmanager
async def serving(
    upstream: ScriptedUpstream, path: Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A proxy in a process of its own, and its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tornadoproxy", "serve",
        cwd=path.parent,
        env=environment(
            PORT="0",
            ACCESS_LOG="off",
            AUTH_TOKEN=TEST_TOKEN,
            UPSTREAM_API_KEY=TEST_UPSTREAM_KEY,
            UPSTREAM_BASE_URL=upstream.url,
            LEDGER_DB=str(path),
        ),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        said = await process.stderr.readuntil(b"\ncurl ")
        (port,) = re.findall(rb"^  address +https?://\S+:(\d+)$", said, re.MULTILINE)
        yield process, int(port)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def load(port: int, done: dict[str, float], worker: int) -> None:
    """Send requests one after the other until the proxy is gone; note when each was answered."""
    for number in range(100_000):
        session = f"{worker}-{number}"
        try:
            connection = await RawConnection.open(port)
            try:
                await connection.send(message(stream=bool(number % 2), session=session))
                response = await connection.response()
            finally:
                await connection.close()
        except (OSError, Truncated):
            return
        assert response.status == 200
        done[session] = time.monotonic()


async def test_after_kill_nine_the_file_is_sound_and_the_last_second_at_most_is_missing(
    upstream: ScriptedUpstream, path: Path
) -> None:
    done: dict[str, float] = {}
    async with serving(upstream, path) as (process, port):
        workers = [asyncio.create_task(load(port, done, worker)) for worker in range(4)]
        await asyncio.wait(workers, timeout=2.5)  # it is under load for so long
        killed_at = time.monotonic()
        process.send_signal(signal.SIGKILL)
        await asyncio.gather(*workers)
        await process.wait()
    written = [row["session_id"] for row in rows(path)]
    assert len(set(written)) == len(written)
    due = {session for session, at in done.items() if at < killed_at - 1}
    assert due, "there was some load before"
    assert due <= set(written)


async def test_all_rows_are_written_when_it_is_told_to_stop(
    upstream: ScriptedUpstream, path: Path
) -> None:
    async with serving(upstream, path) as (process, port):
        for number in range(20):
            connection = await RawConnection.open(port)
            await connection.send(message(session=f"s-{number}"))
            assert (await connection.response()).status == 200
            await connection.close()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert [row["session_id"] for row in rows(path)] == [f"s-{n}" for n in range(20)]


# The command

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()
RECORD = RequestRecord(
    time=NOON,
    request_id="req_1",
    principal="ada",
    groups=("engineers", "leads"),
    method="POST",
    route="/v1/messages",
    dialect="anthropic",
    remote_ip="127.0.0.1",
    status=200,
    outcome=Outcome.COMPLETED,
    error=None,
    model="opus",
    usage=Usage(100, 10, 1000, 50),
    cost=1_500_000_000,
    stop_reason="end_turn",
    bytes_in=1,
    bytes_out=1,
    duration=1.0,
    time_to_first_byte=0.5,
    time_to_first_token=None,
    upstream_time=0.9,
    session_id=None,
    agent_id=None,
    parent_agent_id=None,
    traceparent=None,
    tracestate=None,
)
NOTHING = replace(
    RECORD, model=None, usage=Usage(), cost=None, stop_reason=None, upstream_time=None
)
HALF_A_DAY = 43_200
RECORDS = [
    RECORD,
    replace(RECORD, cost=1, usage=Usage(1, 1)),
    # a cut answer of a model that nobody knows the price of
    replace(
        RECORD,
        time=NOON + HALF_A_DAY,
        model="new",
        outcome=Outcome.FAILED,
        usage=Usage(7, 3, partial=True),
        cost=None,
    ),
    replace(
        RECORD, time=NOON + HALF_A_DAY - 1, principal="bob", groups=("leads",), cost=250_000_000
    ),
    # it costs nothing, and that is known
    replace(NOTHING, principal="bob", groups=("leads",), route="/v1/models"),
    replace(NOTHING, principal=None, groups=(), status=401, outcome=Outcome.DENIED),
    # given up before it told of anything: what that costs, nobody knows
    replace(
        NOTHING, principal="cy", groups=(), status=None, outcome=Outcome.ABANDONED, upstream_time=1
    ),
]
KEYS = [
    # key, requests, errors, input, output, cache read, cache created, cost, unknown, partial
    (None, 1, 1, 0, 0, 0, 0, "0.00", 0, 0),
    ("ada", 3, 1, 108, 14, 1000, 50, "1.500000001", 1, 1),
    ("bob", 2, 0, 100, 10, 1000, 50, "0.25", 0, 0),
    ("cy", 1, 0, 0, 0, 0, 0, None, 1, 0),
]
TOTAL = (7, 2, 208, 24, 2000, 100, "1.750000001", 2, 1)
FIGURES = (
    "requests", "errors", "input_tokens", "output_tokens", "cache_read_tokens",
    "cache_creation_tokens", "cost_usd", "unpriced_requests", "partial",
)  # fmt: skip


def ledger(path: Path) -> Database:
    return Database(path, SCHEMA, name="ledger")


@pytest.fixture
def filled(path: Path) -> Path:
    with ledger(path) as opened, opened.transaction() as connection:
        for record in RECORDS:
            insert([record], connection)
    return path


def usage(path: Path, *arguments: str, zone: str = "UTC") -> str:
    done = run(path.parent, "usage", *arguments, LEDGER_DB=str(path), TZ=zone, COLUMNS="150")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def lines(path: Path, *arguments: str, zone: str = "UTC") -> list[list[object]]:
    """The lines of the JSON form, without their names."""
    document = json.loads(usage(path, *arguments, "--format", "json", zone=zone))
    return [list(line.values()) for line in document["lines"]]


def test_the_sums_as_json(filled: Path) -> None:
    assert json.loads(usage(filled, "--format", "json")) == {
        "by": ["key"],
        "lines": [dict(zip(("key", *FIGURES), line, strict=True)) for line in KEYS],
        "total": dict(zip(FIGURES, TOTAL, strict=True)),
    }


def test_the_sums_as_csv(filled: Path) -> None:
    found = list(csv.reader(io.StringIO(usage(filled, "--by", "key", "--format=csv"))))
    assert found == [
        ["key", *FIGURES],
        *([("" if cell is None else str(cell)) for cell in line] for line in KEYS),
    ]


def test_the_sums_as_a_table(filled: Path) -> None:
    assert usage(filled) == (
        "key    requests  errors  input  output  cache read  cache written          cost  "
        "unpriced  partial\n"
        "-             1       1      0       0           0              0         $0.00  "
        "       0        0\n"
        "ada           3       1    108      14        1000             50  $1.500000001  "
        "       1        1\n"
        "bob           2       0    100      10        1000             50         $0.25  "
        "       0        0\n"
        "cy            1       0      0       0           0              0      unpriced  "
        "       1        0\n"
        "total         7       2    208      24        2000            100  $1.750000001  "
        "       2        1\n"
        "\n"
        "Unpriced requests are not in the cost: nobody knows what they cost.\n"
        "Partial answers were cut: their tokens are those that had been seen.\n"
    )


def test_who_is_in_several_groups_counts_for_each_and_once_in_the_total(filled: Path) -> None:
    table = usage(filled, "--by", "group")
    found = [line.split()[:2] for line in table.splitlines()[1:5]]
    assert found == [["-", "2"], ["engineers", "3"], ["leads", "5"], ["total", "7"]]
    assert "A request of somebody in several groups counts for each, and once" in table
    assert "several groups" not in usage(filled, "--by", "key")


def test_by_model(filled: Path) -> None:
    assert [(line[0], line[1], line[7], line[8]) for line in lines(filled, "--by=model")] == [
        (None, 3, None, 1),
        ("new", 1, None, 1),
        ("opus", 3, "1.750000001", 0),
    ]


ADVISED = Usage(
    *(1, 2, 3, 4),
    others=(
        ModelUsage("opus", Usage(10, 20), cost=500_000_000),
        ModelUsage("opus", Usage(10, 20), cost=500_000_000),
        ModelUsage("haiku", Usage(5, 6, 7, 8), cost=3),
    ),
)
UNPRICED = Usage(1, 2, others=(ModelUsage("haiku", Usage(5, 6), cost=3), ModelUsage(None, Usage())))


def test_several_models_of_a_request_are_summed_each_by_itself(path: Path) -> None:
    with ledger(path) as opened, opened.transaction() as connection:
        advised = replace(RECORD, model="sonnet", usage=ADVISED, cost=1_000_000_010)
        unpriced = replace(RECORD, model="sonnet", usage=UNPRICED, cost=None)
        insert([advised, replace(unpriced, principal="bob")], connection)
    both: list[object] = ["ada", 1, 0, 26, 48, 10, 12, "1.00000001", 0, 0]
    assert lines(path) == [both, ["bob", 1, 0, 6, 8, 0, 0, None, 1, 0]]
    by_model: list[list[object]] = [
        [None, 1, 0, 0, 0, 0, 0, None, 1, 0],
        ["haiku", 2, 0, 10, 12, 7, 8, "0.000000003", 1, 0],
        ["opus", 1, 0, 20, 40, 0, 0, "1.00", 0, 0],
        ["sonnet", 2, 0, 2, 4, 3, 4, "0.000000007", 1, 0],
    ]
    assert lines(path, "--by", "model") == by_model
    assert lines(path, "--by", "model", "--group", "leads") == by_model
    assert lines(path, "--model", "opus") == [["ada", *by_model[2][1:]]]
    assert lines(path, "--model", "haiku", "--principal", "bob") == [
        ["bob", 1, 0, 5, 6, 0, 0, None, 1, 0]
    ]
    totals = usage(path, "--by", "model").splitlines()[5].split()
    assert totals == ["total", "2", "0", "32", "56", "10", "12", "$1.00000001", "1", "0"]


def test_ledger_of_the_first_version_is_brought_up_to_date(path: Path) -> None:
    with (
        Database(path, SCHEMA[:1], name="ledger") as opened,
        opened.transaction() as connection,
    ):
        names = [row[1] for row in connection.execute("PRAGMA table_info(requests)")]
        values = dict.fromkeys(names, 0) | {"model": "old", "input_tokens": 7, "cost_nanos": 9}
        connection.execute(
            f"INSERT INTO requests ({', '.join(map(repr, values))}) "
            f"VALUES ({', '.join('?' for _ in values)})",
            list(values.values()),
        )
    with ledger(path) as opened, opened.transaction() as connection:
        insert([replace(RECORD, model="new", usage=ADVISED, cost=1_000_000_010)], connection)
    assert [(line[0], line[3], line[7]) for line in lines(path, "--by", "model")] == [
        ("haiku", 5, "0.000000003"),
        ("new", 1, "0.000000007"),
        ("old", 7, "0.000000009"),
        ("opus", 20, "1.00"),
    ]


def test_days_and_months_are_those_of_the_time_zone(filled: Path) -> None:
    by_day = [line[:2] for line in lines(filled, "--by", "day", "--tz", "utc", zone="Asia/Tokyo")]
    assert by_day == [["2026-11-29", 6], ["2026-11-30", 1]]
    # there midnight is 09:00 before UTC's, and 29th's noon in UTC is 21:00
    by_day = [line[:2] for line in lines(filled, "--by", "day", zone="Asia/Tokyo")]
    assert by_day == [["2026-11-29", 5], ["2026-11-30", 2]]
    assert [line[:2] for line in lines(filled, "--by", "month")] == [["2026-11", 7]]


@pytest.mark.parametrize(
    ("zone", "options", "count"),
    [
        ("UTC", ("--since", "2026-11-29", "--until", "2026-11-29"), 6),
        ("UTC", ("--since", "2026-11-30"), 1),
        ("UTC", ("--until", "2026-11-28"), 0),
        ("Asia/Tokyo", ("--since", "2026-11-30"), 2),
        ("Asia/Tokyo", ("--since", "2026-11-30", "--tz", "utc"), 1),
        ("UTC", ("--principal", "ada"), 3),
        ("UTC", ("--group", "leads"), 5),
        ("UTC", ("--model", "opus"), 3),
        ("UTC", ("--model", "opus", "--principal", "ada", "--group", "engineers"), 2),
        ("UTC", ("--principal", "nobody"), 0),
        ("UTC", ("--principal", "' OR 1=1 --"), 0),
    ],
)
def test_only_what_is_asked_for_counts(
    filled: Path, zone: str, options: tuple[str, ...], count: int
) -> None:
    document = json.loads(usage(filled, "--format=json", *options, zone=zone))
    assert document["total"]["requests"] == count
    assert sum(line["requests"] for line in document["lines"]) == count


def test_of_one_group_there_is_one_line(filled: Path) -> None:
    assert [line[:2] for line in lines(filled, "--by", "group", "--group", "leads")] == [
        ["leads", 5]
    ]


def test_several_groupings(filled: Path) -> None:
    for options in (["--by", "day,model"], ["--by", "day", "--by", "model", "--by", "day"]):
        found = [line[:3] for line in lines(filled, *options, "--principal", "ada")]
        assert found == [["2026-11-29", "opus", 2], ["2026-11-30", "new", 1]]
    table = usage(filled, "--by", "day,model").splitlines()
    assert table[0].split()[:3] == ["day", "model", "requests"]
    assert table[4].split()[:2] == ["total", "7"]


def test_an_empty_ledger_has_a_total_of_nothing(path: Path) -> None:
    with ledger(path):
        pass
    assert usage(path).splitlines()[1].split() == ["total", *"000000", "$0.00", "0", "0"]
    assert lines(path) == []


def test_usage_since_an_age_counts_from_then_on(path: Path) -> None:
    now = time.time()
    with ledger(path) as opened, opened.transaction() as connection:
        insert([replace(RECORD, time=now - hours * 3600) for hours in (1, 25, 200)], connection)
    for options, count in (
        (["--since", "24h"], 1),
        (["--since", "7d"], 2),
        (["--since", "4w", "--until", "2h"], 2),
    ):
        (line,) = lines(path, *options)
        assert line[1] == count


def test_what_a_client_chose_gives_a_terminal_no_orders(path: Path) -> None:
    with ledger(path) as opened, opened.transaction() as connection:
        insert([replace(RECORD, model="\x1b[31mred\nline")], connection)
    table = usage(path, "--by", "model")
    assert "\\x1b[31mred\\nline" in table
    assert table.replace("\n", "").isprintable()


def test_what_somebody_chose_is_no_formula_of_a_spreadsheet(path: Path) -> None:
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "ada=1", None]
    with ledger(path) as opened, opened.transaction() as connection:
        for name in names:
            insert([replace(RECORD, principal=name)], connection)
    rows = csv.reader(io.StringIO(usage(path, "--format=csv")))
    cells = {row[0] for row in list(rows)[1:]}
    assert cells == {"'=1+1", "'+1", "'-1", "'@SUM(A1)", "\\t=1", "ada=1", ""}


async def test_it_reads_while_the_proxy_writes(
    start_proxy: StartProxy, raw: OpenRaw, path: Path
) -> None:
    proxy = await start_proxy(plugins=[Team()], LEDGER_DB=path)
    for _ in range(2):
        await ask(raw, message())
    with locked(path):
        found = await asyncio.to_thread(usage, path, "--format", "json")
    assert json.loads(found)["total"]["requests"] <= 2
    await proxy.server.drain()
    assert json.loads(await asyncio.to_thread(usage, path, "--format", "json"))["total"] == {
        **dict.fromkeys(FIGURES, 0),
        "requests": 2,
        "input_tokens": sum(row["input_tokens"] for row in rows(path)),
        "output_tokens": sum(row["output_tokens"] for row in rows(path)),
        "cost_usd": usd(sum(row["cost_nanos"] for row in rows(path))),
    }


def test_reading_changes_nothing(filled: Path) -> None:
    before = filled.read_bytes()
    usage(filled)
    assert filled.read_bytes() == before


def test_mistakes_are_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a database" * 100)
    with Database(tmp_path / "other.db", ("CREATE TABLE a (b);",), name="other"):
        pass
    mistakes: dict[str, tuple[list[str], dict[str, str]]] = {
        "LEDGER_DB is not set: name the file": ([], {}),
        "LEDGER_DB=none.db cannot be used: there is no such file": ([], {"LEDGER_DB": "none.db"}),
        "LEDGER_DB=notes cannot be used: it is not an SQLite": ([], {"LEDGER_DB": "notes"}),
        "LEDGER_DB=other.db cannot be used: ledger has never": ([], {"LEDGER_DB": "other.db"}),
        "--until is before --since: exchange them": (
            ["--since", "2026-01-02", "--until=2026-01-01"], {"LEDGER_DB": "none.db"},
        ),
        "--since: must be a time ago such as 7d, or a": (["--since=2026-02-30"], {}),
        "--until: must be a time ago such as 7d, or a": (["--until=today"], {}),
        "--by: must be key, group, model, day, month, or several of them": (["--by=key,x"], {}),
    }  # fmt: skip
    for fault, (arguments, variables) in mistakes.items():
        done = run(tmp_path, "usage", *arguments, **variables)
        assert (done.returncode, done.stdout) == (2, "")
        assert fault in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "none.db").exists()
