"""The rows of the ledger: of each request, whatever happens to it or to the database."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import signal
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import pytest
from people import CHAT, MESSAGES, MODEL, locked, message
from program import run, running
from tornadoproxy_ledger import LEDGER_DB, LEDGER_RETENTION_DAYS, Ledger
from tornadoproxy_ledger.rows import SCHEMA, STEP, delete_some, insert

from tornadoproxy import (
    INACTIVE,
    ConfigurationError,
    Database,
    Identity,
    RequestRecord,
    Settings,
    Usage,
    hookimpl,
)
from tornadoproxy.testing import (
    TEST_TOKEN,
    Truncated,
    error_response,
    message_document,
    message_events,
    request_bytes,
    request_record,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from program import Program

    from tornadoproxy.testing import Ask, OpenRaw, Records, ScriptedUpstream, StartProxy

HAVE_NO_COLUMN = {"traceparent", "tracestate", "scheme", "requested_model"}
OF_A_RECORD = [
    name
    for name in RequestRecord.__struct_fields__
    if name not in {"groups", "usage", "cost", *HAVE_NO_COLUMN}
]
OF_USAGE = [name for name in Usage.__struct_fields__ if name != "others"]
FIRST_EVENTS = message_events(message_document("Some words of a response"))[:3]
LOCKED = "it is locked by another program"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def ledger(path: Path) -> Database:
    return Database(path, SCHEMA, name="ledger")


def write(path: Path, *records: RequestRecord) -> None:
    with ledger(path) as opened, opened.transaction() as connection:
        insert(records, connection)


def rows(path: Path) -> list[sqlite3.Row]:
    """Return the rows of a database that is sound."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        assert [*connection.execute("PRAGMA integrity_check").fetchone()] == ["ok"]
        return connection.execute("SELECT * FROM requests ORDER BY id").fetchall()


def check_row(row: sqlite3.Row, record: RequestRecord) -> None:
    """Check that `row` is the row of `record`."""
    assert {name: row[name] for name in OF_A_RECORD} == {
        name: getattr(record, name) for name in OF_A_RECORD
    }
    assert {name: row[name] for name in OF_USAGE} == {
        name: getattr(record.usage, name) for name in OF_USAGE
    }
    assert (row["other_models"] is None) == (not record.usage.others)
    assert row["cost_nanos"] == record.cost
    assert tuple(json.loads(row["groups"] or "[]")) == record.groups
    further = ("id", "groups", "cost_nanos", "other_models")
    assert set(row.keys()) == {*further, *OF_A_RECORD, *OF_USAGE}


def request(session: str = "", *, stream: bool = False) -> bytes:
    """A request for a message in a session of Claude Code."""
    headers = {"X-Claude-Code-Session-Id": session}
    body = json.dumps(message(stream=stream)).encode()
    return request_bytes("POST", MESSAGES, headers, body, token=TEST_TOKEN)


class Team:
    """Everybody is Ada, in two groups; a token costs a millionth of a dollar."""

    @hookimpl(tryfirst=True)
    def authenticate(self) -> Identity:
        return Identity("ada", groups=("engineers", "früh"))

    @hookimpl(tryfirst=True)
    def price(self, usage: Usage) -> int:
        return 1000 * ((usage.input_tokens or 0) + (usage.output_tokens or 0))


# Rows


@pytest.mark.parametrize(
    ("route", "stream", "id_header"),
    [(MESSAGES, True, "request-id"), (CHAT, False, "x-request-id")],
)
async def test_row_has_the_values_of_its_record(
    route: str,
    stream: bool,
    id_header: str,
    start_proxy: StartProxy,
    ask: Ask,
    records: Records,
    path: Path,
) -> None:
    proxy = await start_proxy(plugins=[Team()], LEDGER_DB=path)
    prefix = "X-Claude-Code-"
    ids = {"Session-Id": "s-1", "Agent-Id": "agent-1", "Parent-Agent-Id": "agent-0"}
    headers = {f"{prefix}{name}": value for name, value in ids.items()}
    response = await ask(route, message(stream=stream), headers=headers)
    assert response.status == 200
    record = await records.finished()
    await proxy.server.drain()
    (row,) = rows(path)
    check_row(row, record)
    assert row["principal"] == "ada"
    assert json.loads(row["groups"]) == ["engineers", "früh"]
    assert (row["route"], row["method"], row["status"]) == (route, "POST", 200)
    assert (row["outcome"], row["error"], row["partial"]) == ("completed", None, 0)
    assert (row["model"], row["stop_reason"]) == (MODEL, "end_turn")
    assert row["cost_nanos"] == 1000 * (row["input_tokens"] + row["output_tokens"]) > 0
    assert [row[name] for name in ("session_id", "agent_id", "parent_agent_id")] == [*ids.values()]
    assert (row["time_to_first_token"] is not None) == stream
    assert row["request_id"] == response.header(id_header)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 100])
def test_rows_written_together_keep_their_values(path: Path, count: int) -> None:
    records = [
        request_record(bytes_in=at, usage=Usage(at, 2, 3, 9, 5, 6, 7, partial=bool(at % 2)))
        for at in range(count)
    ]
    write(path, *records)
    for row, record in zip(rows(path), records, strict=True):
        check_row(row, record)


def test_texts_of_a_row_are_cut_and_escaped(path: Path) -> None:
    sessions = ["'; DROP TABLE requests; --", "x" * 5_000, "größe", "{}[]\"'"]
    for session in sessions:
        write(path, request_record(session_id=session, route="/" + "y" * 5_000))
    write(path, request_record(principal="\udcff", groups=("\udcff",), error="\ud800 x"))
    *cut, odd = rows(path)
    assert [row["session_id"] for row in cut] == [session[:256] for session in sessions]
    assert {row["route"] for row in cut} == {"/" + "y" * 255}
    assert (odd["principal"], odd["error"]) == ("\\udcff", "\\ud800 x")


async def test_row_of_a_request_that_ends_otherwise(
    start_proxy: StartProxy,
    ask: Ask,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    path: Path,
) -> None:
    proxy = await start_proxy(LEDGER_DB=path)
    assert (await ask(MESSAGES, message(), token="wrong")).status == 401
    upstream.script(
        error_response(429, "rate_limit_error", "slower"),
        sse_response(FIRST_EVENTS, end="reset"),
        silent_response(),
    )
    assert (await ask(CHAT, message(stream=True))).status == 429
    with contextlib.suppress(Truncated):
        await ask(CHAT, message(stream=True))
    client = await raw()
    await client.send(request())
    await upstream.received(3)
    await client.close()
    await records.finished(4)
    await proxy.server.drain()
    ends = [(row["outcome"], row["status"], row["partial"]) for row in rows(path)]
    assert ends == [
        ("denied", 401, 0),
        ("completed", 429, 0),
        ("failed", 200, 1),
        ("abandoned", None, 0),
    ]
    for row, record in zip(rows(path), records.all, strict=True):
        check_row(row, record)


async def test_each_of_many_aborted_streams_has_one_row(
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    path: Path,
) -> None:
    count = 200
    proxy = await start_proxy(LEDGER_DB=path)
    upstream.script(*[sse_response(FIRST_EVENTS, end="hang") for _ in range(count)])
    turns = asyncio.Semaphore(50)

    async def abort(number: int) -> None:
        async with turns:
            connection = await raw()
            await connection.send(request(f"s-{number}", stream=True))
            if number % 4:  # the others disconnect before the response
                await connection.head()
                for _ in range(number % 4 - 1):
                    await connection.chunk()
            await connection.close()

    await asyncio.gather(*(abort(number) for number in range(count)))
    await records.finished(count)
    await proxy.server.drain()
    found = rows(path)
    assert sorted(row["session_id"] for row in found) == sorted(f"s-{n}" for n in range(count))
    assert {row["outcome"] for row in found} == {"abandoned"}
    by_session = {record.session_id: record for record in records.all}
    for row in found:
        check_row(row, by_session[row["session_id"]])


# An unusable database


class Awaited(logging.Handler):
    """A handler that waits for a line of the log."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self._loop = asyncio.get_running_loop()
        self.seen = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self._loop.call_soon_threadsafe(self.seen.set)


@contextlib.asynccontextmanager
async def logged(text: str) -> AsyncIterator[None]:
    """Wait at the end until a line with `text` has been logged."""
    awaited = Awaited(text)
    logger = logging.getLogger("tornadoproxy")
    logger.addHandler(awaited)
    try:
        yield
        await awaited.seen.wait()
    finally:
        logger.removeHandler(awaited)


async def test_lock_loses_no_row(start_proxy: StartProxy, raw: OpenRaw, path: Path) -> None:
    proxy = await start_proxy(LEDGER_DB=path)
    numbers = iter(range(30))
    async with logged(LOCKED):
        with locked(path):
            for _ in range(2):
                async with logged(LOCKED):
                    for _ in range(15):
                        connection = await raw()
                        response = await connection.ask(request(f"s-{next(numbers)}"))
                        assert response.status == 200
            assert rows(path) == []
    await proxy.server.drain()
    assert [row["session_id"] for row in rows(path)] == [f"s-{n}" for n in range(30)]


async def test_deleted_database_costs_rows_but_no_request(
    start_proxy: StartProxy, ask: Ask, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = await start_proxy(LEDGER_DB=path)
    async with logged("it was deleted or moved"):
        path.unlink()
        assert (await ask(MESSAGES, message())).status == 200
    await proxy.server.drain()
    assert not path.exists()
    assert f"LEDGER_DB={path}: 1 items were lost" in caplog.text


@pytest.mark.gen_test(timeout=60)
async def test_killed_process_loses_the_last_second_at_most(
    upstream: ScriptedUpstream, path: Path
) -> None:
    done: dict[str, float] = {}

    async def load(program: Program, worker: int) -> None:
        """Send requests one after the other until the proxy is gone."""
        for number in range(100_000):
            session = f"{worker}-{number}"
            try:
                response = await program.ask(request(session, stream=bool(number % 2)))
            except (OSError, Truncated):
                return
            assert response.status == 200
            done[session] = time.monotonic()

    async with running(path.parent, upstream, LEDGER_DB=str(path), ACCESS_LOG="off") as program:
        await program.port()
        workers = [asyncio.create_task(load(program, worker)) for worker in range(4)]
        await asyncio.wait(workers, timeout=1.5)
        killed_at = time.monotonic()
        program.send_signal(signal.SIGKILL)
        await asyncio.gather(*workers)
        await program.ended()
    written = [row["session_id"] for row in rows(path)]
    assert len(set(written)) == len(written)
    due = {session for session, at in done.items() if at < killed_at - 1}
    assert due, "there was load before"
    assert due <= set(written)


@pytest.mark.gen_test(timeout=60)
async def test_terminated_process_writes_all_rows(upstream: ScriptedUpstream, path: Path) -> None:
    async with running(path.parent, upstream, LEDGER_DB=str(path), ACCESS_LOG="off") as program:
        for number in range(20):
            assert (await program.ask(request(f"s-{number}"))).status == 200
        program.send_signal(signal.SIGTERM)
        assert await program.ended() == 0
    assert [row["session_id"] for row in rows(path)] == [f"s-{n}" for n in range(20)]


# Settings


async def test_without_a_database_the_plugin_is_inactive(
    start_proxy: StartProxy, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    proxy = await start_proxy()
    assert "ledger" not in dict(proxy.lines)
    assert (await ask(MESSAGES, message())).status == 200
    await proxy.server.drain()
    assert list(tmp_path.iterdir()) == []
    assert Ledger().configure(Settings.defaults(LEDGER_DB, LEDGER_RETENTION_DAYS)) is INACTIVE


async def test_invalid_settings_end_the_start(start_proxy: StartProxy, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a database" * 100)
    faults: dict[str, dict[str, Any]] = {  # Any: variables are whatever has a text
        f"LEDGER_DB={tmp_path} cannot be used: it is a directory": {"LEDGER_DB": tmp_path},
        f"LEDGER_DB={tmp_path}/notes cannot be used: it is not an SQLite database": {
            "LEDGER_DB": tmp_path / "notes"
        },
        "LEDGER_RETENTION_DAYS is set without LEDGER_DB": {"LEDGER_RETENTION_DAYS": 1},
        "LEDGER_RETENTION_DAYS must be a whole number from 1": {
            "LEDGER_DB": tmp_path / "ledger.db",
            "LEDGER_RETENTION_DAYS": 0,
        },
    }
    for fault, variables in faults.items():
        with pytest.raises(ConfigurationError, match=re.escape(fault)) as caught:
            await start_proxy(**variables)
        assert len(caught.value.faults) == 1


async def test_reload_changes_the_retention_but_not_the_database(
    start_proxy: StartProxy, path: Path
) -> None:
    proxy = await start_proxy(LEDGER_DB=path)
    assert dict(proxy.lines)["ledger"] == f"a row for each request in {path}, kept forever"
    proxy.reload(LEDGER_RETENTION_DAYS=30)
    for other in (path.with_name("other.db"), None):
        with pytest.raises(ConfigurationError, match=r"^LEDGER_DB cannot change while"):
            proxy.reload(LEDGER_DB=other, LEDGER_RETENTION_DAYS=None)


def test_check_writes_nothing(tmp_path: Path) -> None:
    variables = {"LEDGER_DB": "./ledger.db", "LEDGER_RETENTION_DAYS": "30"}
    done = run(tmp_path, "check", UPSTREAM_API_KEY="x", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a row for each request in ledger.db, kept for 30 days" in done.stdout
    assert list(tmp_path.iterdir()) == []


# Retention


async def test_only_old_rows_are_deleted(start_proxy: StartProxy, path: Path) -> None:
    day = 86_400
    now = time.time()
    ages = [0.0, day, 6.9 * day] + [7.1 * day] * (2 * STEP + 1)
    write(path, *(request_record(time=now - age) for age in ages))
    await start_proxy(LEDGER_DB=path, LEDGER_RETENTION_DAYS=7)
    while len(rows(path)) > 3:  # no event tells of it; the test's own limit ends this
        await asyncio.sleep(0.02)
    assert [now - row["time"] for row in rows(path)] == pytest.approx(ages[:3], abs=1)


def test_rows_are_deleted_in_steps_the_oldest_first(path: Path) -> None:
    write(path, *(request_record(time=at) for at in reversed(range(STEP + 10))))
    with ledger(path) as opened, opened.transaction() as connection:
        assert delete_some(STEP + 5, connection)
        left = "SELECT time FROM requests ORDER BY time"
        assert [at for (at,) in connection.execute(left)] == [*range(STEP, STEP + 10)]
        assert not delete_some(STEP + 5, connection)
        assert [at for (at,) in connection.execute(left)] == [*range(STEP + 5, STEP + 10)]
