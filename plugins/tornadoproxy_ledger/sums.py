"""Sums of the ledger's requests by key, group, model, day or month, for the command ``usage``."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tornadoproxy_ledger import reports
from tornadoproxy_ledger.reports import DIMENSIONS, Counts, Selection
from tornadoproxy_ledger.summed import DAY, HOUR

if TYPE_CHECKING:
    from tornadoproxy import DatabaseConnection
    from tornadoproxy_ledger.reports import Key

GROUPINGS = ("key", "group", "model", "day", "month")

_FORMATS = {"day": "%Y-%m-%d", "month": "%Y-%m"}
_DIMENSIONS = {"key": "principal", "group": "group", "model": "model"}
_QUARTER = 900  # seconds; time zones differ by multiples of it


@dataclass(frozen=True, slots=True)
class Question:
    """The requests to sum, and what to group them by.

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
    """The sums of the requests with the same `keys`.

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
    found: dict[tuple[str | None, ...], Counts] = {}
    report = reports.read(_selection(question), connection, dialect)
    for (start, key), counts in report.items():
        found.setdefault(_keys(question, start, key), Counts()).add(counts)
    ordered = sorted(found, key=lambda keys: [(key is not None, key or "") for key in keys])
    return [_sum(keys, found[keys]) for keys in ordered]


def total(question: Question, connection: DatabaseConnection, dialect: str) -> Sum:
    """Return the sum of all requests of `question`, each counted once."""
    (found,) = sums(replace(question, by=()), connection, dialect) or [_sum((), Counts())]
    return found


def _selection(question: Question) -> Selection:
    only = {"principal": question.principal, "group": question.group, "model": question.model}
    width = None
    if _FORMATS.keys() & question.by:
        width = DAY
        if not question.utc:
            width = HOUR if _has_whole_hours(question) else _QUARTER
    return Selection(
        since=question.since,
        until=question.until,
        width=width,
        by=frozenset(_DIMENSIONS[name] for name in question.by if name in _DIMENSIONS),
        only={name: frozenset({value}) for name, value in only.items() if value is not None},
        used=False,
    )


def _has_whole_hours(question: Question) -> bool:
    """Return whether days of this machine begin at whole hours of UTC."""
    until = int(question.until or time.time())
    months = range(int(question.since or 0), until + 30 * DAY, 30 * DAY)
    return all(time.localtime(each).tm_gmtoff % HOUR == 0 for each in months)


def _keys(question: Question, start: int, key: Key) -> tuple[str | None, ...]:
    named = dict(zip(DIMENSIONS, key, strict=True))
    when = time.gmtime(start) if question.utc else time.localtime(start)
    return tuple(
        time.strftime(_FORMATS[name], when) if name in _FORMATS else named[_DIMENSIONS[name]]
        for name in question.by
    )


def _sum(keys: tuple[str | None, ...], counts: Counts) -> Sum:
    return Sum(
        keys=keys,
        requests=counts.requests,
        errors=counts.errors,
        input_tokens=counts.input_tokens,
        output_tokens=counts.output_tokens,
        cache_read_tokens=counts.cache_read_input_tokens,
        cache_creation_tokens=counts.cache_creation_input_tokens,
        cost=None if counts.unpriced and not counts.priced else counts.cost_nanos,
        unpriced=counts.unpriced,
        partial=counts.partial,
    )
