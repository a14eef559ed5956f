"""The table of requests for higher caps, and its queries.

A person has at most one pending request for each period.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from tornadoproxy import admin

if TYPE_CHECKING:
    from tornadoproxy import DatabaseConnection
    from tornadoproxy_budgets.periods import Period

# the names of the Admin API
Status: TypeAlias = Literal["approved", "denied", "pending"]

STATUSES: tuple[Status, ...] = get_args(Status)

TRAIL = admin.AuditTable("budgets_increases_trail", "spend_limit_increase_request")

SCHEMA = f"""
    CREATE TABLE budgets_increases (
        id TEXT PRIMARY KEY,
        principal TEXT NOT NULL,
        period TEXT NOT NULL,
        cents INTEGER,
        reason TEXT,
        created REAL NOT NULL,
        status TEXT NOT NULL,
        resolved REAL,
        resolver TEXT
    );
    CREATE INDEX budgets_increases_by_age ON budgets_increases (created, id);
    CREATE UNIQUE INDEX budgets_increases_pending ON budgets_increases (principal, period)
        WHERE status = 'pending';
    {TRAIL.schema}"""

_COLUMNS = "id, principal, period, cents, reason, created, status, resolved, resolver"


@dataclass(frozen=True, slots=True)
class Increase:
    """A person's request for a higher cap. Times are in seconds since the epoch.

    :param id: ``slir_…``.
    :param cents: the amount that they ask for; ``None`` if they name none.
    :param reason: why, in their words.
    :param resolver: who approved or denied it, as in the audit trail.
    """

    id: str
    principal: str
    period: Period
    cents: int | None
    reason: str | None
    created: float
    status: Status = "pending"
    resolved: float | None = None
    resolver: str | None = None


def find(connection: DatabaseConnection, id_: str) -> Increase | None:
    """Return the request with that id; ``None`` if there is none."""
    return next(iter(_select(connection, "id = ?", (id_,))), None)


def create(
    connection: DatabaseConnection,
    principal: str,
    period: Period,
    cents: int | None,
    reason: str | None,
    now: float,
) -> Increase:
    """Create a request; if the person has one that is pending, return that."""
    condition = "principal = ? AND period = ? AND status = 'pending'"
    for pending in _select(connection, condition, (principal, period)):
        return pending
    made = Increase(f"slir_{secrets.token_hex(12)}", principal, period, cents, reason, now)
    connection.execute(
        f"INSERT INTO budgets_increases ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608  # a constant
        (made.id, principal, period, cents, reason, now, made.status, None, None),
    )
    return made


def resolve(
    connection: DatabaseConnection, increase: Increase, status: Status, resolver: str, now: float
) -> Increase:
    """Approve or deny a request, and return it as it is then."""
    resolved = replace(increase, status=status, resolved=now, resolver=resolver)
    connection.execute(
        "UPDATE budgets_increases SET status = ?, resolved = ?, resolver = ? WHERE id = ?",
        (status, now, resolver, increase.id),
    )
    return resolved


def page(
    connection: DatabaseConnection,
    statuses: Sequence[str],
    principals: Sequence[str],
    *,
    limit: int,
    after: tuple[float, str] | None,
) -> list[Increase]:
    """Return requests, the most recent first.

    :param statuses: those to return; none is all.
    :param principals: whose to return; none is everybody's.
    :param after: the time and the id of the request that the page follows.
    """
    conditions, values = ["TRUE"], list[object]()
    for column, wanted in (("status", statuses), ("principal", principals)):
        if wanted:
            conditions.append(f"{column} IN ({', '.join('?' * len(wanted))})")
            values += wanted
    if after is not None:
        conditions.append("(created, id) < (?, ?)")
        values += after
    order = "ORDER BY created DESC, id DESC LIMIT ?"
    return _select(connection, f"{' AND '.join(conditions)} {order}", (*values, limit))


def _select(
    connection: DatabaseConnection, condition: str, values: Sequence[object]
) -> list[Increase]:
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM budgets_increases WHERE {condition}",  # noqa: S608  # constants
        tuple(values),
    )
    return [Increase(*row) for row in rows]
