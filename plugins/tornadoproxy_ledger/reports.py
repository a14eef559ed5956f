"""Usage summed by time and by what requests have in common: the one piece for all reports.

The Admin API's reports and the command ``usage`` read with it. It takes earlier sums where there
are some, and rows elsewhere; see `tornadoproxy_ledger.summed`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import add
from typing import TYPE_CHECKING, Any, TypeAlias

from tornadoproxy import InvalidRequest
from tornadoproxy_ledger import relations, summed
from tornadoproxy_ledger.summed import DAY, HOUR

if TYPE_CHECKING:
    from collections.abc import Collection

    from tornadoproxy import DatabaseConnection
    from tornadoproxy_ledger.summed import Segment

# each dimension of a report in SQL; a row for each of a request's groups is made from "groups"
_EXPRESSIONS = {
    "model": "model",
    "principal": "principal",
    "group": '"groups"',
    "product": "CASE WHEN claude_code = 1 THEN 'claude_code' ELSE 'messages_api' END",
    "actor_type": "CASE WHEN principal IS NULL THEN NULL ELSE 'user_actor' END",
}
DIMENSIONS = tuple(_EXPRESSIONS)

_SUMMED_BY = {
    "models": frozenset({"model", "product"}),
    "people": frozenset({"principal", "group", "actor_type", "product"}),
}
"""The dimensions that each kind of sums has."""

MAX_ROWS = 100_000
"""The most rows of a report, which are held in memory."""

Key: TypeAlias = tuple[str | None, ...]
"""A value for each dimension, in the order of `DIMENSIONS`; ``None`` is none, or unknown."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The requests to sum, and how.

    :param since: the first moment, in seconds since the epoch; ``None`` is the first request's.
    :param until: the moment after the last one; ``None`` is after the last request.
    :param width: of a time bucket in seconds; ``None`` is one bucket.
    :param by: the dimensions to sum by.
    :param only: for a dimension, the values that count.
    :param used: whether only requests count that used tokens.
    :param counts: what is summed, of `relations.COUNTS`; the others are 0.
    """

    since: float | None
    until: float | None
    width: int | None
    by: frozenset[str]
    only: Mapping[str, frozenset[str]]
    used: bool = True
    counts: tuple[str, ...] = relations.COUNTS

    def __hash__(self) -> int:
        only = frozenset(self.only.items())
        return hash((self.since, self.until, self.width, self.by, only, self.used, self.counts))


@dataclass(slots=True)
class Counts:
    """What requests used, in the order of `relations.COUNTS`.

    :param errors: requests that were rejected or failed, or had a status from 400 on; those that
        the client abandoned are not counted.
    :param unpriced: requests whose cost is unknown.
    :param partial: responses that were cut off, so that more tokens may have been used.
    :param priced: more than 0 if a cost is known.
    :param cost_nanos: the known costs, in billionths of a US dollar.
    """

    requests: int = 0
    errors: int = 0
    unpriced: int = 0
    partial: int = 0
    priced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    web_search_requests: int = 0
    cost_nanos: int = 0

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


def read(
    selection: Selection, connection: DatabaseConnection, dialect: str, most: int | None = None
) -> Report:
    """Return the counts of each bucket and combination of values with requests.

    :param dialect: see `Database.dialect`.
    :param most: how many may be returned.
    :raises InvalidRequest: they are more.
    """
    # what is filtered must be known of each sum as well
    needed = selection.by | selection.only.keys()
    columns = [name for name in DIMENSIONS if name in needed]
    found: dict[tuple[int, Key], Sequence[int]] = {}
    for bucket, values, counts in _summed(connection, selection, columns, dialect):
        named = dict(zip(columns, values, strict=True))
        start = int(selection.since or 0) if bucket is None else bucket * (selection.width or 0)
        for key in _keys(named, selection):
            place = start, key
            known = found.get(place)
            found[place] = counts if known is None else list(map(add, known, counts))
        if most is not None and len(found) > most:
            raise InvalidRequest(
                f"group_by: the report has more than {most} rows; ask for fewer dimensions, "
                "wider buckets or a shorter range."
            )
    return {place: Counts(*counts) for place, counts in found.items()}


def _summed(
    connection: DatabaseConnection, selection: Selection, columns: Sequence[str], dialect: str
) -> Iterator[tuple[int | None, Sequence[Any], Sequence[int]]]:
    """Yield a bucket, the values of `columns`, and counts; several times, if in several parts."""
    functions = relations.FUNCTIONS[dialect]
    where, parameters = _conditions(selection)
    bucket = [] if selection.width is None else [functions.bucket.format(selection.width)]
    keys = [*bucket, *(_EXPRESSIONS[name] for name in columns)]
    kind, widths = _kind(selection, columns)
    for part in _parts(connection, selection, widths):
        if part.seconds is None:
            read = relations.rows(functions)
        else:
            read = (relations.sums(kind, part.seconds),)
        for relation in read:
            statement = relations.sums_of(
                relation, keys, by_model="model" in columns, where=where, counts=selection.counts
            )
            bounds = {"since": part.since, "until": part.until}
            for row in connection.execute(statement, parameters | bounds):
                at = len(bucket)
                counted = at + len(columns)
                yield row[0] if bucket else None, row[at:counted], row[counted:]


def _kind(selection: Selection, columns: Collection[str]) -> tuple[str, Collection[int]]:
    """Return the kind of sums that answer a report, and the seconds of those that do."""
    kind = next((kind for kind, known in _SUMMED_BY.items() if known.issuperset(columns)), None)
    if kind is None:
        return "", ()
    width = selection.width or DAY
    return kind, [each for each in summed.WIDTHS[kind] if width % each == 0]


def _parts(
    connection: DatabaseConnection, selection: Selection, widths: Collection[int]
) -> Sequence[Segment]:
    since, until = selection.since, selection.until
    if since is None or until is None:
        first, last = connection.execute(
            "SELECT (SELECT min(time) FROM requests), (SELECT max(time) FROM requests)"
        ).fetchone()
        if first is None:
            return ()
        since = summed.start_of(first, DAY) if since is None else since
        until = summed.start_of(last, HOUR) + HOUR if until is None else until
    return summed.segments(since, until, widths, connection)


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


def _conditions(selection: Selection) -> tuple[Sequence[str], dict[str, object]]:
    where = ["used = 1"] if selection.used else []
    if "principal" not in selection.only:
        return where, {}
    principals = sorted(selection.only["principal"])
    names = [f"principal_{number}" for number in range(len(principals))]
    where.append(f"principal IN ({', '.join(f':{name}' for name in names) or 'NULL'})")
    return where, dict(zip(names, principals, strict=True))
