"""The plugin ledger: its rows, and their sums by the command ``usage``."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from people import MESSAGES, MODEL, People, locked, message, run_command
from postgres import sqlite_only
from scene import Scene
from tornadoproxy_ledger import LEDGER_DB, LEDGER_RETENTION_DAYS, Ledger
from tornadoproxy_ledger.rows import SCHEMA, STEP, delete_some, insert

from tornadoproxy import (
    ConfigurationError,
    Database,
    DatabaseLocation,
    ModelUsage,
    Outcome,
    RequestRecord,
    Settings,
    Usage,
)
from tornadoproxy.testing import request_record

HAVE_NO_COLUMN = {"traceparent", "tracestate", "scheme", "requested_model", "failed_attempts"}
OF_A_RECORD = [
    name
    for name in RequestRecord.__struct_fields__
    if name not in {"groups", "usage", "cost", *HAVE_NO_COLUMN}
]
OF_USAGE = [name for name in Usage.__struct_fields__ if name != "others"]


def ledger(where: DatabaseLocation) -> Database:
    return Database(where, SCHEMA, name="ledger")


def write(where: DatabaseLocation, *records: RequestRecord) -> None:
    with ledger(where) as opened, opened.transaction() as connection:
        insert(records, connection)


Row = dict[str, Any]  # Any: each column has a type of its own


def rows(where: DatabaseLocation) -> list[Row]:
    with ledger(where).reading() as connection:
        found = connection.execute("SELECT * FROM requests ORDER BY id")
        names = [name for name, *_ in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found]


def rounded(value: object) -> object:
    """Return seconds to the microsecond."""
    return round(value * 1e6) / 1e6 if isinstance(value, float) else value


def check_row(row: Row, record: RequestRecord) -> None:
    assert {name: row[name] for name in OF_A_RECORD} == {
        name: rounded(getattr(record, name)) for name in OF_A_RECORD
    }
    assert {name: row[name] for name in OF_USAGE} == {
        name: getattr(record.usage, name) for name in OF_USAGE
    }
    assert (row["other_models"] is None) == (not record.usage.others)
    assert row["cost_nanos"] == record.cost
    assert tuple(json.loads(row["groups"] or "[]")) == record.groups
    assert json.loads(row["failed_attempts"] or "[]") == [*record.failed_attempts]
    further = ("id", "groups", "cost_nanos", "other_models", "failed_attempts")
    assert set(row.keys()) == {*further, *OF_A_RECORD, *OF_USAGE}


# Rows


async def test_row_has_the_values_of_its_record(scene: Scene, where: DatabaseLocation) -> None:
    proxy = await scene.start(plugins=[People()], LEDGER_DB=where)
    proxy.reload(LEDGER_RETENTION_DAYS=30)
    headers = {"X-Claude-Code-Session-Id": "s-1"}
    asked = message(stream=True)
    await scene.ask(MESSAGES, asked, headers=headers, token="ada+engineers+leads")
    record = await scene.records.finished()
    await proxy.server.drain()
    (row,) = rows(where)
    check_row(row, record)
    assert row["principal"] == "ada"
    assert json.loads(row["groups"]) == ["engineers", "leads"]
    assert (row["route"], row["method"], row["status"]) == (MESSAGES, "POST", 200)
    assert (row["outcome"], row["error"], row["partial"]) == ("completed", None, 0)
    assert (row["model"], row["stop_reason"], row["session_id"]) == (MODEL, "end_turn", "s-1")
    assert row["cost_nanos"] > 0


@pytest.mark.parametrize("count", [0, 1, 31, 32, 100])
def test_rows_written_together_keep_their_values(where: DatabaseLocation, count: int) -> None:
    others = (ModelUsage("opus", Usage(1), 7),)
    records = [
        request_record(bytes_in=at, usage=Usage(at, 2, 3, 9, 5, 6, 7, partial=bool(at % 2)))
        for at in range(count)
    ]
    records[:2] = [
        request_record(principal=None, groups=(), status=401, outcome=Outcome.DENIED, error="x"),
        request_record(status=None, outcome=Outcome.ABANDONED, usage=Usage(others=others)),
    ][:count]
    write(where, *records)
    for row, record in zip(rows(where), records, strict=True):
        check_row(row, record)


def test_texts_of_a_row_are_cut_and_escaped(where: DatabaseLocation) -> None:
    sessions = ["'; DROP TABLE requests; --", "x" * 5_000, "größe", "{}[]\"'"]
    for session in sessions:
        write(where, request_record(session_id=session, route="/" + "y" * 5_000))
    write(where, request_record(principal="\udcff", groups=("\udcff",), error="\ud800 x"))
    *cut, odd = rows(where)
    assert [row["session_id"] for row in cut] == [session[:256] for session in sessions]
    assert {row["route"] for row in cut} == {"/" + "y" * 255}
    assert (odd["principal"], odd["error"]) == ("\\udcff", "\\ud800 x")


# Settings


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({"LEDGER_DB": "."}, "LEDGER_DB=. cannot be used: it is a directory"),
        ({"LEDGER_RETENTION_DAYS": 1}, "LEDGER_RETENTION_DAYS is set without LEDGER_DB"),
        ({"LEDGER_SPOOL": "spool.db"}, "LEDGER_SPOOL is set without LEDGER_DB"),
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
        await scene.start(**variables)
    assert len(caught.value.faults) == 1


@sqlite_only
def test_configure_writes_nothing(where: Path) -> None:
    defaults = Settings.defaults(*Ledger().declare_settings())
    line = Ledger().configure(defaults.replace({LEDGER_DB: where, LEDGER_RETENTION_DAYS: 30}))
    assert line == f"a row for each request in {where}, kept for 30 days"
    line = Ledger().configure(defaults.replace({LEDGER_DB: where}))
    assert line == f"a row for each request in {where}, kept forever"
    assert list(where.parent.iterdir()) == []


# Retention


async def test_only_old_rows_are_deleted(scene: Scene, where: DatabaseLocation) -> None:
    day = 86_400
    now = time.time()
    ages = [0.0, day, 6.9 * day] + [7.1 * day] * (2 * STEP + 1)
    write(where, *(request_record(time=now - age) for age in ages))
    await scene.start(LEDGER_DB=where, LEDGER_RETENTION_DAYS=7)
    while len(rows(where)) > 3:  # no event tells of it; the test's own limit ends this
        await asyncio.sleep(0.02)
    assert [now - row["time"] for row in rows(where)] == pytest.approx(ages[:3], abs=1)


def test_rows_are_deleted_in_steps_the_oldest_first(where: DatabaseLocation) -> None:
    write(where, *(request_record(time=at) for at in reversed(range(STEP + 10))))
    with ledger(where) as opened, opened.transaction() as connection:
        assert delete_some(STEP + 5, connection)
        left = "SELECT time FROM requests ORDER BY time"
        assert [at for (at,) in connection.execute(left)] == [*range(STEP, STEP + 10)]
        assert not delete_some(STEP + 5, connection)
        assert [at for (at,) in connection.execute(left)] == [*range(STEP + 5, STEP + 10)]


# The command usage


NOON = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()
HALF_A_DAY = 43_200
FIGURES = (
    "requests", "errors", "input_tokens", "output_tokens", "cache_read_tokens",
    "cache_creation_tokens", "cost_usd", "unpriced_requests", "partial",
)  # fmt: skip


def used(**changes: Any) -> RequestRecord:
    """The record of a message of Ada's."""
    fields: dict[str, Any] = {
        "time": NOON,
        "groups": ("engineers", "leads"),
        "model": "opus",
        "usage": Usage(100, 10, 1000, 50),
        "cost": 1_500_000_000,
    }
    return request_record(**{**fields, **changes})


def unused(**changes: Any) -> RequestRecord:
    """The record of a request without usage."""
    nothing: dict[str, Any] = {"model": None, "usage": Usage(), "cost": None, "groups": ()}
    return used(**{**nothing, "upstream_time": None, **changes})


RECORDS = [
    used(),
    used(cost=1, usage=Usage(1, 1)),
    # a cut response of a model without a price
    used(
        time=NOON + HALF_A_DAY,
        model="new",
        outcome=Outcome.FAILED,
        usage=Usage(7, 3, partial=True),
        cost=None,
    ),
    used(time=NOON + HALF_A_DAY - 1, principal="bob", groups=("leads",), cost=250_000_000),
    # known to cost nothing
    unused(principal="bob", groups=("leads",), route="/v1/models"),
    unused(principal=None, status=401, outcome=Outcome.DENIED),
    # abandoned before it reported any usage, so its cost is unknown
    unused(principal="cy", status=None, outcome=Outcome.ABANDONED, upstream_time=1),
]
KEYS = [
    # key, requests, errors, input, output, cache read, cache created, cost, unpriced, partial
    (None, 1, 1, 0, 0, 0, 0, "0.00", 0, 0),
    ("ada", 3, 1, 108, 14, 1000, 50, "1.500000001", 1, 1),
    ("bob", 2, 0, 100, 10, 1000, 50, "0.25", 0, 0),
    ("cy", 1, 0, 0, 0, 0, 0, None, 1, 0),
]
TOTAL = (7, 2, 208, 24, 2000, 100, "1.750000001", 2, 1)


@pytest.fixture
def filled(where: DatabaseLocation) -> DatabaseLocation:
    write(where, *RECORDS)
    return where


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Run in UTC, with a wide terminal."""
    monkeypatch.setenv("COLUMNS", "150")
    set_zone(monkeypatch, "UTC")
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


def set_zone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("TZ", name)
    time.tzset()


def usage(where: DatabaseLocation, *arguments: str) -> str:
    done = run_command(Ledger(), {LEDGER_DB: where}, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def lines(where: DatabaseLocation, *arguments: str) -> list[list[object]]:
    """Return the lines of the JSON form, without their names."""
    document = json.loads(usage(where, *arguments, "--format", "json"))
    return [list(line.values()) for line in document["lines"]]


def test_sums_as_json_and_csv(filled: DatabaseLocation) -> None:
    assert json.loads(usage(filled, "--format", "json")) == {
        "by": ["key"],
        "lines": [dict(zip(("key", *FIGURES), line, strict=True)) for line in KEYS],
        "total": dict(zip(FIGURES, TOTAL, strict=True)),
    }
    found = list(csv.reader(io.StringIO(usage(filled, "--by", "key", "--format=csv"))))
    cells = [["" if cell is None else str(cell) for cell in line] for line in KEYS]
    assert found == [["key", *FIGURES], *cells]


def test_sums_as_text(filled: DatabaseLocation) -> None:
    assert [" ".join(line.split()) for line in usage(filled).splitlines()] == [
        "key requests errors input output cache read cache written cost unpriced partial",
        "- 1 1 0 0 0 0 $0.00 0 0",
        "ada 3 1 108 14 1000 50 $1.500000001 1 1",
        "bob 2 0 100 10 1000 50 $0.25 0 0",
        "cy 1 0 0 0 0 0 unpriced 1 0",
        "total 7 2 208 24 2000 100 $1.750000001 2 1",
        "",
        "Unpriced requests are not included in the cost.",
        "Partial responses were cut off: only the tokens seen until then are counted.",
    ]


def test_member_of_groups_counts_for_each_and_once_in_total(filled: DatabaseLocation) -> None:
    table = usage(filled, "--by", "group")
    found = [line.split()[:2] for line in table.splitlines()[1:5]]
    assert found == [["-", "2"], ["engineers", "3"], ["leads", "5"], ["total", "7"]]
    assert "counts for each group, and once in the total" in table
    assert "each group" not in usage(filled, "--by", "key")
    one = lines(filled, "--by", "group", "--group", "leads")
    assert [line[:2] for line in one] == [["leads", 5]]


ADVISED = Usage(
    *(1, 2, 3, 4),
    others=(
        ModelUsage("opus", Usage(10, 20), cost=500_000_000),
        ModelUsage("opus", Usage(10, 20), cost=500_000_000),
        ModelUsage("haiku", Usage(5, 6, 7, 8), cost=3),
    ),
)
UNPRICED = Usage(1, 2, others=(ModelUsage("haiku", Usage(5, 6), cost=3), ModelUsage(None, Usage())))


def test_models_of_a_request_are_summed_separately(where: DatabaseLocation) -> None:
    advised = used(model="sonnet", usage=ADVISED, cost=1_000_000_010)
    write(where, advised, used(model="sonnet", usage=UNPRICED, cost=None, principal="bob"))
    both: list[object] = ["ada", 1, 0, 26, 48, 10, 12, "1.00000001", 0, 0]
    assert lines(where) == [both, ["bob", 1, 0, 6, 8, 0, 0, None, 1, 0]]
    by_model: list[list[object]] = [
        [None, 1, 0, 0, 0, 0, 0, None, 1, 0],
        ["haiku", 2, 0, 10, 12, 7, 8, "0.000000003", 1, 0],
        ["opus", 1, 0, 20, 40, 0, 0, "1.00", 0, 0],
        ["sonnet", 2, 0, 2, 4, 3, 4, "0.000000007", 1, 0],
    ]
    assert lines(where, "--by", "model") == by_model
    assert lines(where, "--by", "model", "--group", "leads") == by_model
    assert lines(where, "--model", "opus") == [["ada", *by_model[2][1:]]]
    haiku = lines(where, "--model", "haiku", "--principal", "bob")
    assert haiku == [["bob", 1, 0, 5, 6, 0, 0, None, 1, 0]]
    table = usage(where, "--by", "model").splitlines()
    assert table[5].split() == ["total", "2", "0", "32", "56", "10", "12", "$1.00000001", "1", "0"]
    assert "A request on several models counts for each model, and once in the total." in table


@sqlite_only
def test_database_of_the_first_version_is_migrated(where: Path) -> None:
    first = Database(where, SCHEMA[:1], name="ledger")
    with first, first.transaction() as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(requests)")]
        values = dict.fromkeys(names, 0) | {"time": used().time, "model": "old"}
        values |= {"input_tokens": 7, "cost_nanos": 9}
        connection.execute(
            f"INSERT INTO requests ({', '.join(map(repr, values))}) "
            f"VALUES ({', '.join('?' for _ in values)})",
            list(values.values()),
        )
    write(where, used(model="new", usage=ADVISED, cost=1_000_000_010))
    assert [(line[0], line[3], line[7]) for line in lines(where, "--by", "model")] == [
        ("haiku", 5, "0.000000003"),
        ("new", 1, "0.000000007"),
        ("old", 7, "0.000000009"),
        ("opus", 20, "1.00"),
    ]


def test_days_and_months_are_those_of_the_time_zone(
    filled: DatabaseLocation, zone: pytest.MonkeyPatch
) -> None:
    set_zone(zone, "Asia/Tokyo")  # nine hours before UTC
    by_day = [line[:2] for line in lines(filled, "--by", "day", "--tz", "utc")]
    assert by_day == [["2026-11-29", 6], ["2026-11-30", 1]]
    by_day = [line[:2] for line in lines(filled, "--by", "day")]
    assert by_day == [["2026-11-29", 5], ["2026-11-30", 2]]
    assert [line[:2] for line in lines(filled, "--by", "month")] == [["2026-11", 7]]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (("--since", "2026-11-29", "--until", "2026-11-29"), 6),
        (("--since", "2026-11-30"), 1),
        (("--until", "2026-11-28"), 0),
        (("--since", "2026-11-30", "tokyo"), 2),
        (("--group", "leads"), 5),
        (("--model", "opus", "--principal", "ada", "--group", "engineers"), 2),
        (("--principal", "' OR 1=1 --"), 0),
    ],
)
def test_only_selected_requests_count(
    filled: DatabaseLocation, options: tuple[str, ...], count: int, zone: pytest.MonkeyPatch
) -> None:
    if "tokyo" in options:
        set_zone(zone, "Asia/Tokyo")
        options = options[:-1]
    document = json.loads(usage(filled, "--format=json", *options))
    assert document["total"]["requests"] == count
    assert sum(line["requests"] for line in document["lines"]) == count


def test_several_groupings_are_combined(filled: DatabaseLocation) -> None:
    for options in (["--by", "day,model"], ["--by", "day", "--by", "model", "--by", "day"]):
        found = [line[:3] for line in lines(filled, *options, "--principal", "ada")]
        assert found == [["2026-11-29", "opus", 2], ["2026-11-30", "new", 1]]
    assert usage(filled, "--by", "day,model").split()[:3] == ["day", "model", "requests"]


def test_empty_ledger_has_a_total_of_zero(where: DatabaseLocation) -> None:
    write(where)
    assert usage(where).splitlines()[1].split() == ["total", *"000000", "$0.00", "0", "0"]
    assert lines(where) == []


def test_age_selects_the_requests_since_then(where: DatabaseLocation) -> None:
    now = time.time()
    write(where, *(used(time=now - hours * 3600) for hours in (1, 25, 200)))
    ((_, count, *_),) = lines(where, "--since", "4w", "--until", "2h")
    assert count == 2


@sqlite_only
def test_usage_reads_while_others_write(filled: Path) -> None:
    before = filled.read_bytes()
    with locked(filled):
        assert lines(filled) == [list(line) for line in KEYS]
    assert filled.read_bytes() == before, "reading changes nothing"


def test_invalid_arguments_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a database" * 100)
    with Database(tmp_path / "other.db", ("CREATE TABLE a (b);",), name="other"):
        pass
    faults: dict[str, tuple[str | None, list[str]]] = {
        "LEDGER_DB is not set": (None, []),
        "none.db cannot be used: there is no such file": ("none.db", []),
        "notes cannot be used: it is not an SQLite": ("notes", []),
        "other.db cannot be used: ledger has never": ("other.db", []),
        "--until is before --since; exchange them": (
            *("none.db", ["--since", "2026-01-02", "--until=2026-01-01"]),
        ),
        "--until is before --since;": ("none.db", ["--since", "7d", "--until=7d"]),
        "--until: must be a time ago such as 7d, or a": (None, ["--until=today"]),
        "--by: must be one or several of key, group, model, day, month": (None, ["--by=key,x"]),
    }
    for fault, (name, arguments) in faults.items():
        values = {} if name is None else {LEDGER_DB: tmp_path / name}
        done = run_command(Ledger(), values, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert fault in done.stderr
    assert not (tmp_path / "none.db").exists()
