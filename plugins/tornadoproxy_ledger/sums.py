"""Sums of the ledger's rows by key, group, model, day or month."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

if TYPE_CHECKING:
    from tornadoproxy import DatabaseConnection

GROUPINGS = ("key", "group", "model", "day", "month")

_ERROR = "outcome IN ('denied', 'failed', 'drained') OR status >= 400"
# Responses that reported usage, and requests that were abandoned before they could. Listing models
# costs nothing.
_UNPRICED = """cost_nanos IS NULL AND (
    partial <> 0 OR model IS NOT NULL OR input_tokens IS NOT NULL OR output_tokens IS NOT NULL
    OR outcome IN ('abandoned', 'drained') AND upstream_time IS NOT NULL
    AND route IN ('/v1/messages', '/openai/v1/chat/completions', '/openai/v1/responses',
                  '/openai/v1/responses/compact')
)"""
_OF_THE_REQUEST = 'time, principal, "groups", status, outcome, partial'


def _count(condition: str) -> str:
    return f"coalesce(sum(CASE WHEN counted AND ({condition}) THEN 1 ELSE 0 END), 0)"


_SUMS = f"""
    {_count("TRUE")},
    {_count(_ERROR)},
    CAST(coalesce(sum(input_tokens), 0) AS BIGINT),
    CAST(coalesce(sum(output_tokens), 0) AS BIGINT),
    CAST(coalesce(sum(cache_read_input_tokens), 0) AS BIGINT),
    CAST(coalesce(sum(cache_creation_input_tokens), 0) AS BIGINT),
    CAST(sum(cost_nanos) AS BIGINT),
    {_count("unpriced")},
    {_count("partial <> 0")}
"""


@dataclass(frozen=True, slots=True)
class Functions:
    """What the engines write differently, as patterns of `str.format`."""

    texts: str  # the table of a JSON array's texts
    objects: str  # the table of a JSON array's objects
    text: str  # a text of an object
    number: str  # a number of an object
    differs: str  # whether two values differ, one of which may be NULL
    hint: str  # the index to use
    day: str  # the day or month of `time`
    bucket: str  # the number of the bucket of so many seconds that `time` is in


FUNCTIONS = {
    "sqlite": Functions(
        texts="json_each({}) AS {}",
        objects="json_each({}) AS {}",
        text="json_extract({}.value, '$.{}')",
        number="json_extract({}.value, '$.{}')",
        differs="IS NOT",
        hint="INDEXED BY requests_of_several_models",
        day="strftime('{sqlite}', time, 'unixepoch', :zone)",
        bucket="CAST(time / {} AS INTEGER)",
    ),
    "postgresql": Functions(
        texts="json_array_elements_text(CAST({} AS json)) AS {}(value)",
        objects="json_array_elements(CAST({} AS json)) AS {}(value)",
        text="({}.value ->> '{}')",
        number="CAST({}.value ->> '{}' AS BIGINT)",
        differs="IS DISTINCT FROM",
        hint="",
        day="to_char(to_timestamp(time) AT TIME ZONE :zone, '{postgresql}')",
        bucket="CAST(floor(time / {}) AS BIGINT)",
    ),
}
_DAYS = {
    "day": {"sqlite": "%Y-%m-%d", "postgresql": "YYYY-MM-DD"},
    "month": {"sqlite": "%Y-%m", "postgresql": "YYYY-MM"},
}


def _parts(functions: Functions) -> str:
    """Return a table with a row for each model of a request.

    That is a part for the model that responded, and one for each model of the other calls.
    `counted` is whether the part counts as a request. The cost of a part is known only if that of
    the row is.
    """
    other_models = functions.objects.format("other_models", "part")
    model = functions.text.format("part", "model")

    def sum_of(name: str) -> str:
        return f"sum({functions.number.format('part', name)})"

    return f"""(
    SELECT {_OF_THE_REQUEST}, model, input_tokens, output_tokens, cache_read_input_tokens,
        cache_creation_input_tokens,
        CASE WHEN other_models IS NULL THEN cost_nanos ELSE cost_nanos - (
            SELECT {sum_of("cost_nanos")} FROM {other_models}
        ) END AS cost_nanos, {_UNPRICED} AS unpriced, TRUE AS counted
    FROM requests
    UNION ALL
    SELECT {_OF_THE_REQUEST}, {model},
        {sum_of("input_tokens")}, {sum_of("output_tokens")},
        {sum_of("cache_read_input_tokens")}, {sum_of("cache_creation_input_tokens")},
        CASE WHEN cost_nanos IS NULL THEN NULL ELSE {sum_of("cost_nanos")} END,
        cost_nanos IS NULL, :by_model AND {model} {functions.differs} model
    FROM requests {functions.hint}, {other_models}
    WHERE other_models IS NOT NULL
    GROUP BY requests.id, {model}
) AS parts"""  # noqa: S608 - all parts of it are above


@dataclass(frozen=True, slots=True)
class Question:
    """The rows to sum, and the columns to group them by.

    :param by: names of `GROUPINGS`; a key is a principal.
    :param since: the first moment, in seconds since the epoch.
    :param until: the moment after the last one.
    :param utc: whether days and months are those of UTC; otherwise this machine's.
    """

    by: tuple[str, ...]
    since: float | None
    until: float | None
    principal: str | None
    group: str | None
    model: str | None
    utc: bool


@dataclass(frozen=True, slots=True)
class Sum:
    """The sums of the rows with the same `keys`.

    :param keys: a value for each of ``Question.by``; `None` is none or unknown.
    :param errors: requests that were rejected or failed, or had a status from 400 on; those that
        the client abandoned are not counted.
    :param cost: the sum of the known costs, in billionths of a US dollar; `None` if no cost is
        known although tokens were used.
    :param unpriced: requests whose cost is unknown and not in `cost`.
    :param partial: responses that were cut off, so that more tokens may have been used.
    """

    keys: tuple[str | None, ...]
    requests: int
    errors: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int
    cost: int | None
    unpriced: int
    partial: int


def sums(question: Question, connection: DatabaseConnection, dialect: str) -> list[Sum]:
    """Return a sum for each combination of keys, sorted by the keys, the unknown ones first.

    :param dialect: see `Database.dialect`.
    """
    functions = FUNCTIONS[dialect]
    keys = ", ".join(_expression(name, functions) for name in question.by)
    where, values = _condition(question, functions)
    table = _parts(functions)
    if "group" in question.by:
        members = functions.texts.format('"groups"', "member")
        table += f" LEFT JOIN {members} ON TRUE"
        if question.group is not None:
            where += " AND member.value = :group"
    if {"day", "month"} & set(question.by):
        values["zone"] = _zone(dialect, utc=question.utc)
    grouping = ", ".join(str(1 + number) for number in range(len(question.by)))
    # all parts of the statement are constants of this module; values are bound
    rows = connection.execute(
        f"SELECT {keys}, {_SUMS} FROM {table} WHERE {where} GROUP BY {grouping}",  # noqa: S608  # as said
        values,
    )
    found = [_sum(row, len(question.by)) for row in rows]
    # the engines sort text differently
    return sorted(found, key=lambda each: [(key is not None, key or "") for key in each.keys])


def total(question: Question, connection: DatabaseConnection, dialect: str) -> Sum:
    """Return the sum of all rows of `question`, each request counted once."""
    functions = FUNCTIONS[dialect]
    where, values = _condition(replace(question, by=()), functions)
    statement = f"SELECT {_SUMS} FROM {_parts(functions)} WHERE {where}"  # noqa: S608  # constants, as above
    return _sum(connection.execute(statement, values).fetchone(), 0)


def _expression(name: str, functions: Functions) -> str:
    if name in _DAYS:
        return functions.day.format(**_DAYS[name])
    return {"key": "principal", "group": "member.value", "model": "model"}[name]


def _zone(dialect: str, *, utc: bool) -> str:
    """Return the time zone of days in the terms of the engine."""
    if dialect == "sqlite":
        return "+0 days" if utc else "localtime"
    return "UTC" if utc else _local_zone()


def _local_zone() -> str:
    """Return the name of this machine's time zone, or else its present distance to UTC."""
    now = datetime.now().astimezone()
    _, _, name = str(Path("/etc/localtime").resolve()).rpartition("zoneinfo/")
    with contextlib.suppress(ValueError, OSError, ZoneInfoNotFoundError):
        if now.astimezone(ZoneInfo(name)).utcoffset() == now.utcoffset():
            return name
    minutes = round((now.utcoffset() or timedelta()).total_seconds() / 60)
    # PostgreSQL counts such distances, as POSIX does, to the west
    return f"<local>{'-' if minutes > 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def _condition(question: Question, functions: Functions) -> tuple[str, dict[str, object]]:
    groups = functions.texts.format('"groups"', "of_it")
    conditions = {
        "since": "time >= :since",
        "until": "time < :until",
        "principal": "principal = :principal",
        "group": f"EXISTS (SELECT 1 FROM {groups} WHERE of_it.value = :group)",  # noqa: S608  # constants
        "model": "model = :model",
    }
    values = {name: getattr(question, name) for name in conditions}
    given = {name: value for name, value in values.items() if value is not None}
    where = " AND ".join(["TRUE", *(conditions[name] for name in given)])
    given["by_model"] = "model" in question.by or question.model is not None
    return where, given


def _sum(row: tuple[Any, ...], keys: int) -> Sum:  # Any: the columns
    requests, errors, read, written, cached, created, cost, unpriced, partial = row[keys:]
    return Sum(
        keys=row[:keys],
        requests=int(requests),
        errors=int(errors),
        input_tokens=read,
        output_tokens=written,
        cache_read_tokens=cached,
        cache_creation_tokens=created,
        cost=0 if cost is None and not unpriced else cost,
        unpriced=int(unpriced),
        partial=int(partial),
    )
