"""The tables of ``BUDGETS_DB`` and their queries.

Every change of a cap goes through `set_cap` or `remove_cap`, which add it to the audit log in the
same transaction, and increment the revision, so that other processes with the same database reload
the caps. Sums are added to without that: many processes do it at the same time, twice a second.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from tornadoproxy import Allowance, Database, admin
from tornadoproxy_budgets import increases
from tornadoproxy_budgets.caps import Cap, Scope
from tornadoproxy_budgets.periods import PERIODS, SECONDS_PER_DAY, Period, day_of, first_day
from tornadoproxy_budgets.state import Batch, Seen, State, Subject

if TYPE_CHECKING:
    from tornadoproxy import DatabaseConnection, DatabaseLocation

SCHEMA = (
    """
    CREATE TABLE budgets_caps (
        id TEXT PRIMARY KEY,
        scope_type TEXT NOT NULL,
        scope_name TEXT NOT NULL,
        shared INTEGER NOT NULL,
        period TEXT NOT NULL,
        cents INTEGER,
        created REAL NOT NULL,
        updated REAL NOT NULL,
        UNIQUE (scope_type, scope_name, shared, period)
    );
    CREATE TABLE budgets_spent (
        day INTEGER NOT NULL,
        scope_type TEXT NOT NULL,
        scope_name TEXT NOT NULL,
        nanos INTEGER NOT NULL,
        PRIMARY KEY (day, scope_type, scope_name)
    ) WITHOUT ROWID;
    CREATE TABLE budgets_seen (principal TEXT PRIMARY KEY, groups TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE budgets_audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time REAL NOT NULL,
        actor TEXT NOT NULL,
        action TEXT NOT NULL,
        cap_id TEXT NOT NULL,
        before TEXT,
        after TEXT
    );
    CREATE TABLE budgets_revision (revision INTEGER NOT NULL);
    INSERT INTO budgets_revision VALUES (0);
    """,
    increases.SCHEMA,
    "ALTER TABLE budgets_seen ADD COLUMN allowance TEXT NOT NULL DEFAULT '';",
)


ADD_SPENT = (
    "INSERT INTO budgets_spent VALUES (?, ?, ?, ?) ON CONFLICT (day, scope_type, scope_name)"
    " DO UPDATE SET nanos = budgets_spent.nanos + excluded.nanos"
)
# the engines have different types for a sum of whole numbers
_SUM_SINCE = "CAST(sum(CASE WHEN day >= ? THEN nanos ELSE 0 END) AS BIGINT)"


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the audit log.

    :param id: a number that increases with each entry.
    :param time: when the cap changed, in seconds since the epoch.
    :param actor: who changed it: ``admin-key:ops``, ``command-line:ada``.
    :param action: ``set`` or ``delete``.
    :param before: the cap before the change; ``None`` if it was created.
    :param after: the cap after the change; ``None`` if it was removed.
    """

    id: int
    time: float
    actor: str
    action: str
    cap_id: str
    before: Cap | None
    after: Cap | None


def database(where: DatabaseLocation) -> Database:
    """Return the budgets database."""
    return Database(
        where, SCHEMA, name="budgets", setting="BUDGETS_DB", watched=("budgets_revision",)
    )


def load(connection: DatabaseConnection, day: int) -> State:
    """Return the state for an engine on `day`."""
    firsts = {period: first_day(period, day) for period in PERIODS}
    spent: dict[Period, dict[Subject, int]] = {period: {} for period in PERIODS}
    rows = connection.execute(
        f"SELECT scope_type, scope_name, {', '.join([_SUM_SINCE] * 3)} FROM budgets_spent"  # noqa: S608  # constants
        " WHERE day >= ? GROUP BY 1, 2",
        (*firsts.values(), min(firsts.values())),
    )
    for scope_type, name, *sums in rows:
        for period, nanos in zip(PERIODS, sums, strict=True):
            if nanos:
                spent[period][scope_type, name] = nanos
    rows = connection.execute("SELECT principal, groups, allowance FROM budgets_seen")
    seen = {
        principal: Seen(tuple(json.loads(groups)), _allowance(text))
        for principal, groups, text in rows
    }
    return State(day, tuple(read_caps(connection)), spent, seen)


def save(connection: DatabaseConnection, batch: Batch) -> None:
    """Add the sums of `batch`."""
    # in one order everywhere, so that no two processes wait for each other's rows
    if batch.seen:
        connection.executemany(
            "INSERT INTO budgets_seen (principal, groups, allowance) VALUES (?, ?, ?)"
            " ON CONFLICT (principal)"
            " DO UPDATE SET groups = excluded.groups, allowance = excluded.allowance"
            " WHERE budgets_seen.groups <> excluded.groups"
            " OR budgets_seen.allowance <> excluded.allowance",
            [
                (principal, json.dumps(seen.groups), _allowance_text(seen.allowance))
                for principal, seen in sorted(batch.seen.items(), key=itemgetter(0))
            ],
        )
    if batch.spent:
        connection.executemany(
            ADD_SPENT,
            [(day, *subject, nanos) for (day, subject), nanos in sorted(batch.spent.items())],
        )


def _allowance(text: str) -> Allowance | None:
    return msgspec.json.decode(text, type=Allowance) if text else None


def _allowance_text(allowance: Allowance | None) -> str:
    return "" if allowance is None else msgspec.json.encode(allowance).decode()


def read_caps(connection: DatabaseConnection) -> list[Cap]:
    """Return all caps in the order of their creation."""
    rows = connection.execute("SELECT * FROM budgets_caps ORDER BY created, id")
    return [_cap(row) for row in rows]


def find_cap(connection: DatabaseConnection, scope: Scope, period: Period) -> Cap | None:
    """Return the cap with that scope and period; ``None`` if there is none."""
    row = connection.execute(
        "SELECT * FROM budgets_caps"
        " WHERE scope_type = ? AND scope_name = ? AND shared = ? AND period = ?",
        _where(scope, period),
    ).fetchone()
    return _cap(row) if row else None


def read_people(connection: DatabaseConnection) -> list[admin.Person]:
    """Return everybody who has sent a request, since the day of their first spend."""
    first_days = dict(
        connection.execute(
            "SELECT scope_name, min(day) FROM budgets_spent WHERE scope_type = 'user' GROUP BY 1"
        )
    )
    today = day_of(time.time())
    return [
        admin.Person(name, tuple(json.loads(groups)), first_days.get(name, today) * SECONDS_PER_DAY)
        for name, groups in connection.execute("SELECT principal, groups FROM budgets_seen")
    ]


def set_cap(
    connection: DatabaseConnection,
    scope: Scope,
    period: Period,
    cents: int | None,
    *,
    actor: str,
    now: float,
) -> Cap:
    """Create a cap, or replace the one with the same scope and period, which keeps its id.

    :param cents: the amount; ``None`` for no limit.
    :param actor: who sets it, for the audit log.
    """
    before = find_cap(connection, scope, period)
    cap = Cap(
        id=before.id if before else f"spl_{secrets.token_hex(12)}",
        scope=scope,
        period=period,
        cents=cents,
        created=before.created if before else now,
        updated=now,
    )
    connection.execute(
        "INSERT INTO budgets_caps VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET cents = excluded.cents, updated = excluded.updated",
        (cap.id, *_where(scope, period), cents, cap.created, cap.updated),
    )
    _record(connection, now, actor, "set", before, cap)
    return cap


def remove_cap(
    connection: DatabaseConnection, cap_id: str, *, actor: str, now: float
) -> Cap | None:
    """Remove a cap and return it; ``None`` if no cap has that id."""
    row = connection.execute("SELECT * FROM budgets_caps WHERE id = ?", (cap_id,)).fetchone()
    if row is None:
        return None
    cap = _cap(row)
    connection.execute("DELETE FROM budgets_caps WHERE id = ?", (cap_id,))
    _record(connection, now, actor, "delete", cap, None)
    return cap


def read_changes(
    connection: DatabaseConnection, limit: int, after: int | None = None
) -> list[Change]:
    """Return entries of the audit log, the newest first.

    :param limit: the most entries.
    :param after: only entries older than the one with this id.
    """
    rows = connection.execute(
        "SELECT * FROM budgets_audit WHERE id < ? ORDER BY id DESC LIMIT ?",
        (1 << 62 if after is None else after, limit),
    )
    return [
        Change(number, time, actor, action, cap_id, _parsed(before), _parsed(after_it))
        for number, time, actor, action, cap_id, before, after_it in rows
    ]


def _record(
    connection: DatabaseConnection,
    now: float,
    actor: str,
    action: str,
    before: Cap | None,
    after: Cap | None,
) -> None:
    cap = after or before
    assert cap is not None
    connection.execute(
        "INSERT INTO budgets_audit (time, actor, action, cap_id, before, after)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (now, actor, action, cap.id, _text(before), _text(after)),
    )
    connection.execute("UPDATE budgets_revision SET revision = revision + 1")


def _where(scope: Scope, period: Period) -> tuple[str, str, int, Period]:
    return scope.type, scope.name, int(scope.shared), period


def _cap(row: tuple[Any, ...]) -> Cap:  # Any: the columns
    cap_id, scope_type, name, shared, period, cents, created, updated = row
    return Cap(cap_id, Scope(scope_type, name, bool(shared)), period, cents, created, updated)


def _text(cap: Cap | None) -> str | None:
    if cap is None:
        return None
    scope = cap.scope
    return json.dumps(
        [
            cap.id, scope.type, scope.name, scope.shared,
            cap.period, cap.cents, cap.created, cap.updated,
        ]
    )  # fmt: skip


def _parsed(text: str | None) -> Cap | None:
    return None if text is None else _cap(tuple(json.loads(text)))
