"""The resource ``requests`` of the Admin API: single rows of the ledger, the newest first.

An extension of this proxy. A search reads an index backwards, and stops at the end of its page.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from tornadoproxy import Denied, InvalidRequest, admin
from tornadoproxy_ledger.reading import read_for_request
from tornadoproxy_ledger.report_forms import cents_text

if TYPE_CHECKING:
    from tornadoproxy import Database, DatabaseConnection

OUTCOMES = ("completed", "denied", "failed", "abandoned", "drained")
STATUSES = {"success": "status < 400", "error": "(status >= 400 OR status IS NULL)"}
_STATUS = re.compile("[1-5][0-9]{2}", re.ASCII)

_FIELDS = (
    "principal", "method", "route", "dialect", "remote_ip", "status", "outcome", "error", "model",
    "stop_reason", "input_tokens", "output_tokens", "cache_read_input_tokens",
    "cache_creation_input_tokens", "bytes_in", "bytes_out", "duration", "time_to_first_byte",
    "time_to_first_token", "upstream_time", "session_id", "agent_id", "upstream", "attempts",
)  # fmt: skip
_COLUMNS = ("id", "time", "request_id", '"groups"', "cost_nanos", "failed_attempts", *_FIELDS)


class RequestsApi:
    """The resource that shows single requests.

    :param database: the ledger, which is not started.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def resources(self) -> tuple[admin.Resource, ...]:
        """Return the resources."""
        return (
            admin.Resource("requests", {"GET": self._list}),
            admin.Resource("requests/([^/]+)", {"GET": self._get}),
        )

    async def _list(self, request: admin.Request) -> admin.Document:
        limit = request.query.limit()
        conditions, values = filters(request.query)
        # one more than the page shows, to know whether another page follows
        rows = await read_for_request(
            self._database, partial(select, conditions, values, limit + 1)
        )
        has_more = len(rows) > limit
        next_page = admin.cursor(rows[limit - 1][1], rows[limit - 1][0]) if has_more else None
        return admin.list_document(
            [_document(row) for row in rows[:limit]], has_more=has_more, next_page=next_page
        )

    async def _get(self, request: admin.Request) -> admin.Document:
        rows = await read_for_request(
            self._database, partial(select, ["request_id = ?"], [request.arguments[0]], 1)
        )
        if not rows:
            raise Denied("The ledger has no request with this id.", status=404)
        return _document(rows[0])


def filters(query: admin.Query) -> tuple[list[str], list[object]]:
    """Return the conditions on the rows in SQL, and their parameters."""
    conditions, values = ["TRUE"], list[object]()
    for field in ("principal", "model", "request_id", "session_id"):
        if (value := query.value(field)) is not None:
            conditions.append(f"{field} = ?")
            values.append(value)
    if (status := query.value("status")) is not None:
        if status not in STATUSES and not _STATUS.fullmatch(status):
            raise InvalidRequest("status: must be success, error or a number from 100 to 599.")
        conditions.append(STATUSES.get(status, f"status = {status}"))
    if (outcome := query.value("outcome", OUTCOMES)) is not None:
        conditions.append("outcome = ?")
        values.append(outcome)
    if query.value("has_principal", ("true",)) is not None:
        conditions.append("principal IS NOT NULL")
    for field, comparison in (("starting_at", ">="), ("ending_at", "<")):
        if (moment := query.time(field)) is not None:
            conditions.append(f"time {comparison} ?")
            values.append(moment)
    if (page := query.value("page")) is not None:
        conditions.append("(time, id) < (?, ?)")
        values += admin.cursor_key(page, float, int)
    return conditions, values


def select(
    conditions: list[str], values: list[object], limit: int, connection: DatabaseConnection
) -> list[tuple[Any, ...]]:
    return connection.execute(
        f"SELECT {', '.join(_COLUMNS)} FROM requests WHERE {' AND '.join(conditions)}"  # noqa: S608  # constants
        " ORDER BY time DESC, id DESC LIMIT ?",
        (*values, limit),
    ).fetchall()


def _document(row: tuple[Any, ...]) -> admin.Document:
    _, time, request_id, groups, cost, failed, *fields = row
    return {
        "type": "request",
        "id": request_id,
        "created_at": admin.timestamp(time),
        "groups": json.loads(groups or "[]"),
        "cost": None if cost is None else cents_text(cost),
        "failed_attempts": json.loads(failed or "[]"),
        **dict(zip(_FIELDS, fields, strict=True)),
    }
