"""The rows of the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import pytest
from people import MESSAGES, MODEL, Scene, message
from tornadoproxy_ledger import LEDGER_DB, LEDGER_RETENTION_DAYS, Ledger
from tornadoproxy_ledger.rows import SCHEMA, STEP, delete_some, insert

from tornadoproxy import (
    ConfigurationError,
    Database,
    Identity,
    ModelUsage,
    Outcome,
    RequestRecord,
    Settings,
    Usage,
    hookimpl,
)
from tornadoproxy.testing import request_record

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ("people",)

HAVE_NO_COLUMN = {"traceparent", "tracestate", "scheme", "requested_model"}
OF_A_RECORD = [
    name
    for name in RequestRecord.__struct_fields__
    if name not in {"groups", "usage", "cost", *HAVE_NO_COLUMN}
]
OF_USAGE = [name for name in Usage.__struct_fields__ if name != "others"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def ledger(path: Path) -> Database:
    return Database(path, SCHEMA, name="ledger")


def write(path: Path, *records: RequestRecord) -> None:
    with ledger(path) as opened, opened.transaction() as connection:
        insert(records, connection)


def rows(path: Path) -> list[sqlite3.Row]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
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


class Team:
    """Everybody is Ada, in two groups; a token costs a millionth of a dollar."""

    @hookimpl(tryfirst=True)
    def authenticate(self) -> Identity:
        return Identity("ada", groups=("engineers", "früh"))

    @hookimpl(tryfirst=True)
    def price(self, usage: Usage) -> int:
        return 1000 * ((usage.input_tokens or 0) + (usage.output_tokens or 0))


# Rows


async def test_row_has_the_values_of_its_record(scene: Scene, path: Path) -> None:
    proxy = await scene.start_proxy(plugins=[Team()], LEDGER_DB=path)
    headers = {"X-Claude-Code-Session-Id": "s-1"}
    assert (await scene.request(MESSAGES, message(stream=True), headers=headers)).status == 200
    record = await scene.records.finished()
    await proxy.server.drain()
    (row,) = rows(path)
    check_row(row, record)
    assert row["principal"] == "ada"
    assert json.loads(row["groups"]) == ["engineers", "früh"]
    assert (row["route"], row["method"], row["status"]) == (MESSAGES, "POST", 200)
    assert (row["outcome"], row["error"], row["partial"]) == ("completed", None, 0)
    assert (row["model"], row["stop_reason"], row["session_id"]) == (MODEL, "end_turn", "s-1")
    assert row["cost_nanos"] == 1000 * (row["input_tokens"] + row["output_tokens"]) > 0


@pytest.mark.parametrize("count", [0, 1, 31, 32, 100])
def test_rows_written_together_keep_their_values(path: Path, count: int) -> None:
    others = (ModelUsage("opus", Usage(1), 7),)
    records = [
        request_record(bytes_in=at, usage=Usage(at, 2, 3, 9, 5, 6, 7, partial=bool(at % 2)))
        for at in range(count)
    ]
    records[:2] = [
        request_record(principal=None, groups=(), status=401, outcome=Outcome.DENIED, error="x"),
        request_record(status=None, outcome=Outcome.ABANDONED, usage=Usage(others=others)),
    ][:count]
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


# Settings


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({"LEDGER_DB": "."}, "LEDGER_DB=. cannot be used: it is a directory"),
        ({"LEDGER_RETENTION_DAYS": 1}, "LEDGER_RETENTION_DAYS is set without LEDGER_DB"),
        (
            {"LEDGER_DB": "ledger.db", "LEDGER_RETENTION_DAYS": 0},
            "LEDGER_RETENTION_DAYS must be a whole number from 1",
        ),
    ],
)
async def test_invalid_settings_end_the_start(
    variables: dict[str, Any], fault: str, scene: Scene
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(fault)) as caught:
        await scene.start_proxy(**variables)
    assert len(caught.value.faults) == 1


def test_configure_writes_nothing(path: Path) -> None:
    defaults = Settings.defaults(LEDGER_DB, LEDGER_RETENTION_DAYS)
    line = Ledger().configure(defaults.replace({LEDGER_DB: path, LEDGER_RETENTION_DAYS: 30}))
    assert line == f"a row for each request in {path}, kept for 30 days"
    line = Ledger().configure(defaults.replace({LEDGER_DB: path}))
    assert line == f"a row for each request in {path}, kept forever"
    assert list(path.parent.iterdir()) == []


# Retention


async def test_only_old_rows_are_deleted(scene: Scene, path: Path) -> None:
    day = 86_400
    now = time.time()
    ages = [0.0, day, 6.9 * day] + [7.1 * day] * (2 * STEP + 1)
    write(path, *(request_record(time=now - age) for age in ages))
    await scene.start_proxy(LEDGER_DB=path, LEDGER_RETENTION_DAYS=7)
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
