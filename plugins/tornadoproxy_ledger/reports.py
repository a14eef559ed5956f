"""The usage that reports show, summed by time bucket and by what requests have in common.

Only requests that used tokens count. A request on several models has its counts in the row for the
model that responded, and those of the other calls in ``other_models``. Therefore two statements are
asked: one sums all rows as they are, and the other, which finds few rows by their own index, sums
the calls to other models, whose cost the rows include.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

from tornadoproxy import InvalidRequest
from tornadoproxy_ledger.sums import FUNCTIONS

if TYPE_CHECKING:
    from tornadoproxy import DatabaseConnection
    from tornadoproxy_ledger.sums import Functions

# each dimension of a report in SQL; a row for each of a request's groups is made from "groups"
_EXPRESSIONS = {
    "model": "model",
    "principal": "principal",
    "group": '"groups"',
    "product": "CASE WHEN session_id IS NULL THEN 'messages_api' ELSE 'claude_code' END",
    "actor_type": "CASE WHEN principal IS NULL THEN NULL ELSE 'user_actor' END",
}
DIMENSIONS = tuple(_EXPRESSIONS)

MAX_ROWS = 100_000
"""The most rows of a report, which are held in memory."""

_COUNTS = (
    "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
    "cache_creation_1h_input_tokens", "web_search_requests", "cost_nanos",
)  # fmt: skip
_USED = "(input_tokens IS NOT NULL OR output_tokens IS NOT NULL OR other_models IS NOT NULL)"

Key: TypeAlias = tuple[str | None, ...]
"""A value for each dimension, in the order of `DIMENSIONS`; ``None`` is none, or unknown."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows to sum, and how.

    :param since: the first moment, in seconds since the epoch.
    :param until: the moment after the last one.
    :param width: of a time bucket in seconds; ``None`` is one bucket.
    :param by: the dimensions to sum by.
    :param only: for a dimension, the values that count.
    """

    since: int
    until: int
    width: int | None
    by: frozenset[str]
    only: Mapping[str, frozenset[str]]

    def __hash__(self) -> int:
        only = frozenset(self.only.items())
        return hash((self.since, self.until, self.width, self.by, only))


@dataclass(slots=True)
class Counts:
    """What requests used.

    :param cost_nanos: the known costs, in billionths of a US dollar.
    :param unpriced: requests whose cost is unknown.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    web_search_requests: int = 0
    cost_nanos: int = 0
    requests: int = 0
    unpriced: int = 0

    @property
    def total_tokens(self) -> int:
        """All tokens."""
        return (
            self.input_tokens
            + self.output_tokens
            + self.cache_read_input_tokens
            + self.cache_creation_input_tokens
        )

    def add(self, other: Counts) -> None:
        """Add the counts of `other`."""
        for name in _FIELDS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_FIELDS = tuple(each.name for each in fields(Counts))

Report: TypeAlias = dict[tuple[int, Key], Counts]
"""The counts by the start of the bucket, in seconds since the epoch, and the key."""


def read(selection: Selection, connection: DatabaseConnection, dialect: str) -> Report:
    """Return the counts of each bucket and combination of values with usage.

    :param dialect: see `Database.dialect`.
    :raises InvalidRequest: they are too many.
    """
    functions = FUNCTIONS[dialect]
    # what is filtered must be known of each sum as well
    columns = [name for name in DIMENSIONS if name in selection.by or name in selection.only]
    report: Report = defaultdict(Counts)
    for bucket, values, counts in (
        *_rows(connection, selection, columns, functions),
        *_other_calls(connection, selection, columns, functions),
    ):
        named = dict(zip(columns, values, strict=True))
        start = selection.since if bucket is None else bucket * (selection.width or 0)
        for key in _keys(named, selection):
            report[start, key].add(counts)
        if len(report) > MAX_ROWS:
            raise InvalidRequest(
                f"group_by: the report has more than {MAX_ROWS} rows; ask for fewer dimensions, "
                "wider buckets or a shorter range."
            )
    return report


def _rows(
    connection: DatabaseConnection,
    selection: Selection,
    columns: Sequence[str],
    functions: Functions,
) -> Iterator[tuple[int | None, Sequence[Any], Counts]]:
    """Yield the sums of the rows as they are."""
    where, values = _condition(selection)
    keys = [_bucket(selection, functions), *(_EXPRESSIONS[name] for name in columns)]
    # SQLite would sort all rows even by a constant
    grouping = f"GROUP BY {_positions(keys)}" if columns or selection.width else ""
    statement = f"""
        SELECT {", ".join(keys)}, {", ".join(map(_sum, _COUNTS))},
            count(*), count(*) - count(cost_nanos)
        FROM requests WHERE {_USED} AND {where} {grouping}
    """  # noqa: S608  # constants; values are bound
    for bucket, *row in connection.execute(statement, values):
        counts = Counts(*row[len(columns) :])
        if counts.requests:  # without GROUP BY, no rows have a sum as well
            yield bucket, row[: len(columns)], counts


def _other_calls(
    connection: DatabaseConnection,
    selection: Selection,
    columns: Sequence[str],
    functions: Functions,
) -> Iterator[tuple[int | None, Sequence[Any], Counts]]:
    """Yield the sums of the calls to other models, and what the rows have of them taken away."""
    where, values = _condition(selection)
    model = functions.text.format("part", "model")
    counts = [
        _sum(functions.number.format("part", name))
        for name in (*_COUNTS[:5], "cost_nanos")  # an API's own tools are those of the request
    ]
    keys = [_bucket(selection, functions), *(_EXPRESSIONS[name] for name in columns), model]
    known = "cost_nanos IS NOT NULL"
    statement = f"""
        SELECT {", ".join(keys)}, {known}, count(DISTINCT requests.id), {", ".join(counts)}
        FROM requests {functions.hint}, {functions.objects.format("other_models", "part")}
        WHERE other_models IS NOT NULL AND {where} GROUP BY {_positions([*keys, known])}
    """  # noqa: S608  # constants; values are bound
    at = columns.index("model") if "model" in columns else None
    for bucket, *row in connection.execute(statement, values):
        own, (other, priced, requests, *tokens, cost) = row[: len(columns)], row[len(columns) :]
        others = list(own)
        is_another = False
        if at is not None:
            others[at], is_another = other, other != own[at]
        yield bucket, own, Counts(cost_nanos=-cost if priced else 0)
        counted = dict(zip(_COUNTS, tokens, strict=False))
        if priced:
            counted["cost_nanos"] = cost
        if is_another:  # a request counts for each of its models
            counted |= {"requests": requests, "unpriced": 0 if priced else requests}
        yield bucket, others, Counts(**counted)


def _keys(named: Mapping[str, str | None], selection: Selection) -> Iterator[Key]:
    """Yield the keys of a row with these values; none, if a filter excludes it."""
    groups: list[str | None] = [None]
    if "group" in named:
        groups = list(dict.fromkeys(json.loads(named["group"] or "[]"))) or [None]
        if "group" in selection.only:
            groups = [group for group in groups if group in selection.only["group"]]
        if "group" not in selection.by:
            groups = groups[:1]
    for name, wanted in selection.only.items():
        if name != "group" and named[name] not in wanted:
            return
    for group in groups:
        values = {**named, "group": group}
        yield tuple(values[name] if name in selection.by else None for name in DIMENSIONS)


def _bucket(selection: Selection, functions: Functions) -> str:
    return "NULL" if selection.width is None else functions.bucket.format(selection.width)


def _condition(selection: Selection) -> tuple[str, dict[str, object]]:
    where = "time >= :since AND time < :until"
    values: dict[str, object] = {"since": selection.since, "until": selection.until}
    principals = sorted(selection.only.get("principal", ()))
    if "principal" in selection.only:
        names = [f"principal_{number}" for number in range(len(principals))]
        where += f" AND principal IN ({', '.join(f':{name}' for name in names) or 'NULL'})"
        values.update(zip(names, principals, strict=True))
    return where, values


def _sum(expression: str) -> str:
    # the engines have different types for a sum of whole numbers
    return f"CAST(coalesce(sum({expression}), 0) AS BIGINT)"


def _positions(keys: Sequence[str]) -> str:
    return ", ".join(str(number) for number in range(1, len(keys) + 1))
