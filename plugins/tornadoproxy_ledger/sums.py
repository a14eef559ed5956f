"""Sums of the ledger's rows by key, group, model, day or month."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3

GROUPINGS = ("key", "group", "model", "day", "month")

_ERROR = "outcome IN ('denied', 'failed', 'drained') OR status >= 400"
# Responses that reported usage, and requests that were abandoned before they could. Listing models
# costs nothing.
_UNPRICED = """cost_nanos IS NULL AND (
    partial OR model IS NOT NULL OR input_tokens IS NOT NULL OR output_tokens IS NOT NULL
    OR outcome IN ('abandoned', 'drained') AND upstream_time IS NOT NULL
    AND route IN ('/v1/messages', '/openai/v1/chat/completions')
)"""
_SUMS = f"""
    total(counted),
    total(counted AND ({_ERROR})),
    coalesce(sum(input_tokens), 0),
    coalesce(sum(output_tokens), 0),
    coalesce(sum(cache_read_input_tokens), 0),
    coalesce(sum(cache_creation_input_tokens), 0),
    sum(cost_nanos),
    total(counted AND unpriced),
    total(counted AND partial)
"""
_OF_THE_REQUEST = 'time, principal, "groups", status, outcome, partial'


def _sum_of_parts(name: str) -> str:
    return f"sum(json_extract(part.value, '$.{name}'))"


# A row's part for the model that responded, and one for each model of its other calls. `counted` is
# whether the part counts as a request. The cost of a part is known only if that of the row is.
_OTHER_MODEL = "json_extract(part.value, '$.model')"
_PARTS = f"""(
    SELECT {_OF_THE_REQUEST}, model, input_tokens, output_tokens, cache_read_input_tokens,
        cache_creation_input_tokens, iif(other_models IS NULL, cost_nanos, cost_nanos - (
            SELECT {_sum_of_parts("cost_nanos")} FROM json_each(other_models) AS part
        )) AS cost_nanos, {_UNPRICED} AS unpriced, TRUE AS counted
    FROM requests
    UNION ALL
    SELECT {_OF_THE_REQUEST}, {_OTHER_MODEL},
        {_sum_of_parts("input_tokens")}, {_sum_of_parts("output_tokens")},
        {_sum_of_parts("cache_read_input_tokens")}, {_sum_of_parts("cache_creation_input_tokens")},
        iif(cost_nanos IS NULL, NULL, {_sum_of_parts("cost_nanos")}), cost_nanos IS NULL,
        :by_model AND {_OTHER_MODEL} IS NOT model
    FROM requests INDEXED BY requests_of_several_models, json_each(other_models) AS part
    WHERE other_models IS NOT NULL
    GROUP BY requests.id, {_OTHER_MODEL}
)"""  # noqa: S608 - all parts of it are above


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


def sums(question: Question, connection: sqlite3.Connection) -> list[Sum]:
    """Return a sum for each combination of keys, sorted by the keys."""
    keys = ", ".join(_expression(name, utc=question.utc) for name in question.by)
    where, values = _condition(question)
    table = _PARTS
    if "group" in question.by:
        table += ' LEFT JOIN json_each("groups") AS member'
        if question.group is not None:
            where += " AND member.value = :group"
    # all parts of the statement are constants of this module; values are bound
    found = connection.execute(
        f"SELECT {keys}, {_SUMS} FROM {table} WHERE {where} GROUP BY {keys} ORDER BY {keys}",  # noqa: S608  # as said
        values,
    )
    return [_sum(row, len(question.by)) for row in found]


def total(question: Question, connection: sqlite3.Connection) -> Sum:
    """Return the sum of all rows of `question`, each request counted once."""
    where, values = _condition(replace(question, by=()))
    statement = f"SELECT {_SUMS} FROM {_PARTS} WHERE {where}"  # noqa: S608  # constants, as above
    return _sum(connection.execute(statement, values).fetchone(), 0)


def _expression(name: str, *, utc: bool) -> str:
    if name in ("day", "month"):
        pattern = "%Y-%m-%d" if name == "day" else "%Y-%m"
        zone = "" if utc else ", 'localtime'"
        return f"strftime('{pattern}', time, 'unixepoch'{zone})"
    return {"key": "principal", "group": "member.value", "model": "model"}[name]


def _condition(question: Question) -> tuple[str, dict[str, object]]:
    conditions = {
        "since": "time >= :since",
        "until": "time < :until",
        "principal": "principal = :principal",
        "group": 'EXISTS (SELECT 1 FROM json_each("groups") WHERE value = :group)',
        "model": "model = :model",
    }
    values = {name: getattr(question, name) for name in conditions}
    given = {name: value for name, value in values.items() if value is not None}
    where = " AND ".join(["TRUE", *(conditions[name] for name in given)])
    given["by_model"] = "model" in question.by or question.model is not None
    return where, given


def _sum(row: tuple[Any, ...], keys: int) -> Sum:  # Any: SQLite's columns
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
