"""The statements of the Admin API read what they need by an index, however large a table is."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from tornadoproxy_budgets import increases
from tornadoproxy_budgets import storage as budgets
from tornadoproxy_keys import changes, wire
from tornadoproxy_keys import store as keys
from tornadoproxy_ledger import relations, reports, requests_api, rows
from tornadoproxy_ledger.reports import Selection
from tornadoproxy_ledger.summed import HOUR

from tornadoproxy import Database, DatabaseConnection, admin

KEY = keys.KeyRow("id", "ada", (), keys.Limits(), 7, None, None)
DAY = frozenset({"model", "principal", "group"})
ADA = {"principal": frozenset({"ada"})}


class Explained:
    """A connection that asks for the plan of each statement in place of executing it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.plans: list[str] = []

    def execute(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        plan = self._connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        self.plans += [detail for *_, detail in plan]
        return self._connection.execute("SELECT NULL WHERE FALSE")


@contextmanager
def explained(database: Database) -> Iterator[Explained]:
    with database:
        pass  # it has its tables then
    connection = sqlite3.connect(str(database.where))
    yield Explained(connection)
    connection.close()


def page(status: str | None = None, **edge: Any) -> Callable[[DatabaseConnection], object]:
    values = [7] if status else []
    edges = {"after": None, "before": None, **edge}
    condition = wire.CONDITIONS[status] if status else "TRUE"
    return lambda each: keys.page(each, condition, values, limit=2, **edges)


def report(width: int | None, **only: Any) -> Callable[[DatabaseConnection], object]:
    return lambda each: reports.read(Selection(7, 99, width, DAY, only), each, "sqlite")


def requests(query: str) -> Callable[[DatabaseConnection], object]:
    page = {"page": (admin.cursor(7.0, 7),), **{n: tuple(v) for n, v in parse_qs(query).items()}}
    conditions, values = requests_api.filters(admin.Query(page))
    return lambda each: requests_api.select(conditions, values, 2, each)


CASES: dict[str, Callable[[DatabaseConnection], object]] = {
    "keys: page": page(),
    "keys: next page": page("active", after=KEY),
    "keys: page before": page("archived", before=KEY),
    "keys: by id": lambda each: keys.by_id(each, "id"),
    "keys: by name": lambda each: keys.by_name(each, "ada", 7),
    "keys: last use": lambda each: keys.last_used(each, ["id", "other"]),
    "keys: repetition": lambda each: changes.repeated(
        each, changes.By("x", admin.Once("key", "fingerprint"))
    ),
    "keys: secret": lambda each: keys.is_current(each, "tp-x"),
    "keys: trail": lambda each: keys.TRAIL.read(each, 2, 7),
    "budgets: requests": lambda each: increases.page(
        each, ("pending",), (), limit=2, after=(7.0, "id")
    ),
    "budgets: pending": lambda each: increases.create(each, "ada", "daily", None, None, 7),
    "budgets: trail": lambda each: budgets.read_changes(each, 2, 7),
    "ledger: report": report(None),
    "ledger: report of buckets": report(60),
    "ledger: report of a person": report(86_400, **ADA),
    "ledger: sums": lambda each: each.execute(
        relations.sums_of(relations.sums("people", HOUR), ["principal"], by_model=False),
        {"since": 7, "until": 99},
    ),
    "ledger: deletion": lambda each: rows.delete_some(7, each),
    **{
        f"ledger: requests by {name or 'time'}": requests(name)
        for name in ("", "principal=ada", "model=m", "status=500", "status=error", "request_id=r")
    },
}
SCHEMAS = {"keys": keys.SCHEMA, "budgets": budgets.SCHEMA, "ledger": rows.SCHEMA}


@pytest.mark.parametrize("case", CASES)
def test_statement_uses_an_index(case: str, tmp_path: Path) -> None:
    name = case.partition(":")[0]
    with explained(Database(tmp_path / "plugin.db", SCHEMAS[name], name=name)) as connection:
        CASES[case](connection)  # type: ignore[arg-type]  # it has what reads use
    assert connection.plans
    read = [plan for plan in connection.plans if plan.startswith(("SCAN", "SEARCH"))]
    # the last are a table of one row, and the few requests on several models, found by an index
    functions = (
        "SCAN CONSTANT ROW",
        "SCAN part VIRTUAL TABLE INDEX",
        "SCAN usage_state",
        "SCAN parts",
    )
    assert [plan for plan in read if " USING " not in plan and not plan.startswith(functions)] == []
    if case.startswith("ledger: report"):
        assert all("time>? AND time<?" in plan for plan in read if "requests" in plan)


def test_report_of_a_person_reads_their_rows_alone(tmp_path: Path) -> None:
    database = Database(tmp_path / "plugin.db", rows.SCHEMA, name="ledger")
    with explained(database) as connection:
        report(None, **ADA)(connection)  # type: ignore[arg-type]  # as above
    assert any("requests_by_principal" in plan for plan in connection.plans)
