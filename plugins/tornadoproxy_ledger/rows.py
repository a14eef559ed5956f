"""The ledger's table and its rows.

Texts that a client may choose are cut at 256 characters, counts and costs at `MAX_NUMBER`.
``groups`` is a JSON array, ``NULL`` without groups; ``time`` is in seconds since the epoch and
durations are in seconds, rounded to microseconds; ``cost_nanos`` is in billionths of a US dollar.
``NULL`` means unknown.

``attempts`` counts the upstreams that were asked, and ``failed_attempts`` is a JSON array of why
each failed that did not respond in the end.

The token counts are those of ``model``. ``other_models`` is a JSON array with an object for each
other call to a model (`Usage.others`), ``NULL`` without any: its ``model``, its counts under the
names of the columns, and its ``cost_nanos``, which the row's ``cost_nanos`` includes.

``usage_sums``, ``usage_summed`` and ``usage_state`` are described in `tornadoproxy_ledger.summed`.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, TypeAlias

from tornadoproxy_ledger import summed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tornadoproxy import DatabaseConnection, ModelUsage, RequestRecord

Row: TypeAlias = tuple[Any, ...]
"""Any: each column has a type of its own."""

MAX_TEXT = 256  # characters
MAX_NUMBER = 10**15
"""The highest count or cost of a row: the databases sum up to 2**63."""

STEP = 1_000  # rows of one deletion, or of one move

SCHEMA = (
    """
    CREATE TABLE requests (
        id INTEGER PRIMARY KEY,
        time REAL NOT NULL,
        request_id TEXT NOT NULL,
        principal TEXT,
        "groups" TEXT,
        method TEXT NOT NULL,
        route TEXT NOT NULL,
        dialect TEXT NOT NULL,
        remote_ip TEXT NOT NULL,
        status INTEGER,
        outcome TEXT NOT NULL,
        error TEXT,
        model TEXT,
        stop_reason TEXT,
        input_tokens INTEGER,
        output_tokens INTEGER,
        cache_read_input_tokens INTEGER,
        cache_creation_input_tokens INTEGER,
        cache_creation_1h_input_tokens INTEGER,
        web_search_requests INTEGER,
        web_fetch_requests INTEGER,
        partial INTEGER NOT NULL,
        cost_nanos INTEGER,
        bytes_in INTEGER NOT NULL,
        bytes_out INTEGER NOT NULL,
        duration REAL NOT NULL,
        time_to_first_byte REAL,
        time_to_first_token REAL,
        upstream_time REAL,
        session_id TEXT,
        agent_id TEXT,
        parent_agent_id TEXT
    );
    CREATE INDEX requests_by_time ON requests (time);
    """,
    """
    ALTER TABLE requests ADD COLUMN other_models TEXT;
    CREATE INDEX requests_of_several_models ON requests (time) WHERE other_models IS NOT NULL;
    """,
    "CREATE INDEX requests_by_principal ON requests (principal, time);",
    """
    ALTER TABLE requests ADD COLUMN upstream TEXT;
    ALTER TABLE requests ADD COLUMN attempts INTEGER;
    ALTER TABLE requests ADD COLUMN failed_attempts TEXT;
    CREATE INDEX requests_by_request_id ON requests (request_id);
    CREATE INDEX requests_by_model ON requests (model, time);
    CREATE INDEX requests_by_status ON requests (status, time);
    CREATE INDEX requests_failed ON requests (time) WHERE status >= 400 OR status IS NULL;
    """,
    """
    CREATE TABLE usage_sums (
        kind TEXT NOT NULL,
        seconds INTEGER NOT NULL,
        start INTEGER NOT NULL,
        number INTEGER NOT NULL,
        principal TEXT,
        "groups" TEXT,
        model TEXT,
        claude_code INTEGER NOT NULL,
        used INTEGER NOT NULL,
        other_call INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        errors INTEGER NOT NULL,
        unpriced INTEGER NOT NULL,
        partial INTEGER NOT NULL,
        priced INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        cache_read_input_tokens INTEGER NOT NULL,
        cache_creation_input_tokens INTEGER NOT NULL,
        cache_creation_1h_input_tokens INTEGER NOT NULL,
        web_search_requests INTEGER NOT NULL,
        cost_nanos INTEGER NOT NULL,
        PRIMARY KEY (kind, seconds, start, number)
    ) WITHOUT ROWID;
    CREATE TABLE usage_summed (
        start INTEGER NOT NULL,
        seconds INTEGER NOT NULL,
        PRIMARY KEY (start, seconds)
    ) WITHOUT ROWID;
    CREATE TABLE usage_state (generation INTEGER NOT NULL, summing_until REAL NOT NULL);
    INSERT INTO usage_state VALUES (0, 0);
    """,
)

_COLUMNS = (
    "time", "request_id", "principal", '"groups"', "method", "route", "dialect", "remote_ip",
    "status", "outcome", "error", "model", "stop_reason", "input_tokens", "output_tokens",
    "cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation_1h_input_tokens",
    "web_search_requests", "web_fetch_requests", "partial", "cost_nanos", "bytes_in", "bytes_out",
    "duration", "time_to_first_byte", "time_to_first_token", "upstream_time", "session_id",
    "agent_id", "parent_agent_id", "other_models",
    "upstream", "attempts", "failed_attempts",
)  # fmt: skip


def insert(records: Sequence[RequestRecord], connection: DatabaseConnection) -> None:
    """Write the rows of `records`."""
    _insert([_row(record) for record in records], connection)


def oldest(connection: DatabaseConnection) -> list[Row]:
    """Return the ids and values of up to `STEP` rows, those that were written first."""
    return connection.execute(
        f"SELECT id, {', '.join(_COLUMNS)} FROM requests ORDER BY id LIMIT ?",  # noqa: S608  # a constant
        (STEP,),
    ).fetchall()


def insert_missing(rows: Sequence[Row], connection: DatabaseConnection) -> None:
    """Write rows that `oldest` has returned, except for those that are there already."""
    times = [row[1] for row in rows]
    there = connection.execute(
        "SELECT time, request_id FROM requests WHERE time BETWEEN ? AND ?", (min(times), max(times))
    )
    known = {tuple(each) for each in there}
    missing = [row[1:] for row in rows if (row[1], row[2]) not in known]
    _insert(missing, connection)


def delete(rows: Sequence[Row], connection: DatabaseConnection) -> None:
    """Delete rows that `oldest` has returned."""
    connection.executemany("DELETE FROM requests WHERE id = ?", [(row[0],) for row in rows])


def _insert(rows: Sequence[Row], connection: DatabaseConnection) -> None:
    """Write rows with the values of `_COLUMNS`."""
    connection.insert("requests", _COLUMNS, rows)
    current = summed.start_of(time.time() - summed.LATE, summed.HOUR)
    if late := [row[0] for row in rows if row[0] < current]:
        summed.forget(late, connection)


def _row(record: RequestRecord) -> tuple[str | float | None, ...]:
    usage = record.usage
    return (
        _seconds(record.time),
        _text(record.request_id),
        _text(record.principal),
        json.dumps([_text(group) for group in record.groups]) if record.groups else None,
        _text(record.method),
        _text(record.route),
        record.dialect,
        _text(record.remote_ip),
        record.status,
        str(record.outcome),
        _text(record.error),
        _text(record.model),
        _text(record.stop_reason),
        _number(usage.input_tokens),
        _number(usage.output_tokens),
        _number(usage.cache_read_input_tokens),
        _number(usage.cache_creation_input_tokens),
        _number(usage.cache_creation_1h_input_tokens),
        _number(usage.web_search_requests),
        _number(usage.web_fetch_requests),
        int(usage.partial),
        _number(record.cost),
        record.bytes_in,
        record.bytes_out,
        _seconds(record.duration),
        _seconds(record.time_to_first_byte),
        _seconds(record.time_to_first_token),
        _seconds(record.upstream_time),
        _text(record.session_id),
        _text(record.agent_id),
        _text(record.parent_agent_id),
        json.dumps([_part(other) for other in usage.others]) if usage.others else None,
        _text(record.upstream),
        record.attempts,
        json.dumps([_text(each) for each in record.failed_attempts])
        if record.failed_attempts
        else None,
    )


def _part(other: ModelUsage) -> dict[str, str | int | None]:
    return {
        "model": _text(other.model),
        "input_tokens": _number(other.usage.input_tokens),
        "output_tokens": _number(other.usage.output_tokens),
        "cache_read_input_tokens": _number(other.usage.cache_read_input_tokens),
        "cache_creation_input_tokens": _number(other.usage.cache_creation_input_tokens),
        "cache_creation_1h_input_tokens": _number(other.usage.cache_creation_1h_input_tokens),
        "cost_nanos": _number(other.cost),
    }


def delete_some(before: float, connection: DatabaseConnection) -> bool:
    """Delete up to `STEP` rows that are older than `before`, and sums of them, the oldest first.

    :return: whether more of them may exist.
    """
    deleted = connection.execute(
        "DELETE FROM requests WHERE id IN "
        "(SELECT id FROM requests WHERE time < ? ORDER BY time LIMIT ?)",
        (before, STEP),
    )
    more = summed.delete_some(before, connection)
    return more or deleted.rowcount == STEP


def _number(value: int | None) -> int | None:
    return value if value is None or value < MAX_NUMBER else MAX_NUMBER


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value * 1e6) / 1e6


def _text(value: str | None) -> str | None:
    """Return `value` shortened, with NUL and half of a surrogate pair escaped.

    PostgreSQL stores neither, and SQLite not the second.
    """
    if value is None or (value.isascii() and len(value) <= MAX_TEXT and "\0" not in value):
        return value
    return value[:MAX_TEXT].replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
