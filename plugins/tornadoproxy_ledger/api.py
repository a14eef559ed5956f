"""The usage and cost reports of the Admin API.

A report reads the database on a connection of its own, one report at a time, so that the rows of
requests are written meanwhile. The ranked rows of the last reports are held for `HELD` seconds, so
that a client which asks for page after page has the sums made once.
"""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy import InvalidRequest, admin, tables
from tornadoproxy_ledger import report_forms, reports
from tornadoproxy_ledger.reading import read_for_request
from tornadoproxy_ledger.report_forms import FORMS, Asked, Form
from tornadoproxy_ledger.requests_api import RequestsApi
from tornadoproxy_ledger.summaries import SummariesApi

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tornadoproxy import Database
    from tornadoproxy_ledger.reports import Counts, Key, Report, Selection

# the metrics that rows can be ranked by, the default first
_RANKED_BY = {
    False: ("total_tokens", "output_tokens", "requests", "uncached_input_tokens"),
    True: ("amount", "list_amount"),
}
_ATTRIBUTES = {
    "uncached_input_tokens": "input_tokens",
    "amount": "cost_nanos",
    "list_amount": "cost_nanos",
}

_PRINCIPAL = reports.DIMENSIONS.index("principal")
_PAGING = ("limit", "page")

REPEATED = 2.0  # seconds after which a report is read again
HELD = 60.0  # seconds
MAX_HELD = 2  # reports


class _Row(NamedTuple):
    """A row of a report.

    :param rank: its place in the order; the lowest is the first.
    :param start: when its bucket begins.
    """

    rank: tuple[int, int, str]
    start: int
    key: Key
    counts: Counts


class ReportsApi:
    """The resources that show usage and cost.

    :param database: the ledger, which is not started.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reading = asyncio.Lock()
        self._tasks: dict[Selection, asyncio.Task[Report]] = {}
        self._held: OrderedDict[tuple[object, ...], Sequence[_Row]] = OrderedDict()

    def api(self) -> admin.Api:
        """Return the plugin's part of the Admin API."""
        return admin.Api(
            "ledger",
            (
                *RequestsApi(self._database).resources(),
                SummariesApi(self._database).resource(),
                *(
                    admin.Resource(
                        form.path,
                        {
                            "GET": partial(
                                self._rows if form.limits is None else self._buckets, form
                            )
                        },
                    )
                    for form in FORMS
                ),
            ),
        )

    async def _rows(self, form: Form, request: admin.Request) -> admin.Document:
        """Return rows, ranked by a metric or by time."""
        query = request.query
        limit = query.limit()
        page = query.value("page")
        ending_at, *after = [None] if page is None else admin.cursor_key(page, int, int, int, str)
        asked = report_forms.asked(form, query, ending_at)
        ranked = await self._ranked(asked, query, anew=page is None)
        first = bisect_right(ranked, tuple(after), key=lambda row: row.rank) if after else 0
        shown = ranked[first : first + limit]
        has_more = first + limit < len(ranked)
        return {
            "data": [_document(asked, row) for row in shown],
            "has_more": has_more,
            "next_page": admin.cursor(asked.ending_at, *shown[-1].rank) if has_more else None,
            "data_refreshed_at": tables.timestamp(time.time()),
        }

    async def _ranked(self, asked: Asked, query: admin.Query, *, anew: bool) -> Sequence[_Row]:
        """Return the rows of a report in the order that a query asks for.

        :param anew: whether they must not be those of an earlier page.
        """
        fields = [(name, tuple(of)) for name, of in query.fields.items() if name not in _PAGING]
        asked_for = (asked.form.path, asked.ending_at, tuple(sorted(fields)))
        held = self._held.get(asked_for)
        if held is not None and not anew:
            return held
        rank = _ranking(asked, query)
        report = await self._read(asked.selection)
        # many rows would hold up the event loop
        rows = await asyncio.to_thread(_ranked_rows, asked, report, rank)
        self._held[asked_for] = rows
        self._held.move_to_end(asked_for)
        if len(self._held) > MAX_HELD:
            self._held.popitem(last=False)
        asyncio.get_running_loop().call_later(HELD, self._drop, asked_for, rows)
        return rows

    def _drop(self, asked_for: tuple[object, ...], rows: Sequence[_Row]) -> None:
        if self._held.get(asked_for) is rows:
            del self._held[asked_for]

    async def _buckets(self, form: Form, request: admin.Request) -> admin.Document:
        """Return time buckets, the oldest first, each with its rows."""
        query = request.query
        page = query.value("page")
        first, end = (None, None) if page is None else admin.cursor_key(page, int, int)
        asked = report_forms.asked(form, query, end)
        assert asked.width is not None, "its width has a default"
        starts = _starts(asked, form, query, first)
        following = starts[-1] + asked.width if starts else asked.ending_at
        report: Report = {}
        if starts and asked.selection is not None:
            until = min(following, asked.ending_at)
            report = await self._read(replace(asked.selection, since=starts[0], until=until))
        data = await asyncio.to_thread(_bucket_documents, asked, starts, report)
        has_more = following < asked.ending_at
        return {
            "data": data,
            "has_more": has_more,
            "next_page": admin.cursor(following, asked.ending_at) if has_more else None,
            "data_refreshed_at": tables.timestamp(time.time()),
        }

    async def _read(self, selection: Selection | None) -> Report:
        """Return the counts; if they are just being read for another request, wait for those.

        A client that repeats a request which took too long gets what that has read meanwhile.
        """
        if selection is None:
            return {}
        task = self._tasks.get(selection)
        if task is None:
            task = self._tasks[selection] = asyncio.create_task(self._read_alone(selection))
            task.add_done_callback(partial(self._forget, selection))
        return await asyncio.shield(task)

    async def _read_alone(self, selection: Selection) -> Report:
        async with self._reading:
            work = partial(
                reports.read,
                selection,
                dialect=self._database.dialect,
                most=reports.MAX_ROWS,
            )
            return await read_for_request(self._database, work)

    def _forget(self, selection: Selection, task: asyncio.Task[Report]) -> None:
        if not task.cancelled() and task.exception() is None:
            asyncio.get_running_loop().call_later(REPEATED, self._tasks.pop, selection, None)
        else:
            self._tasks.pop(selection, None)


def _ranking(asked: Asked, query: admin.Query) -> Callable[[int, Counts], tuple[int, int]]:
    """Return what gives a row's place in the order that a query asks for, the first the lowest."""
    form = asked.form
    metrics = _RANKED_BY[form.costs]
    by_time = () if form.person else ("time",)
    order_by = query.value("order_by", (*metrics, *by_time)) or metrics[0]
    sign = 1 if query.value("order", ("asc", "desc")) == "asc" else -1
    metric = metrics[0] if order_by == "time" else order_by
    attribute = _ATTRIBUTES.get(metric, metric)
    if order_by == "time" and asked.width is not None:
        return lambda start, counts: (sign * start, -getattr(counts, attribute))
    return lambda _, counts: (sign * getattr(counts, attribute), 0)


def _ranked_rows(
    asked: Asked, report: Report, rank: Callable[[int, Counts], tuple[int, int]]
) -> Sequence[_Row]:
    rows = [
        # the text makes the order of equal ranks the same in each page
        _Row((*rank(start, counts), json.dumps([start, *key])), start, key, counts)
        for (start, key), counts in report.items()
        if not asked.form.person or key[_PRINCIPAL] is not None
    ]
    rows.sort(key=lambda row: row.rank)
    return rows


def _starts(asked: Asked, form: Form, query: admin.Query, first: int | None) -> range:
    """Return when the buckets of a page begin; there is none if all are in the future."""
    assert asked.width is not None, "its width has a default"
    assert form.limits is not None, "it has buckets"
    name = query.value(form.width_field) or "1d"
    limit = query.limit(*form.limits[name])
    starts = range(asked.since, asked.ending_at, asked.width)
    at = 0
    if first is not None:
        if first not in starts:
            raise InvalidRequest("page: must be next_page of the previous response.")
        at = starts.index(first)
    return starts[at : at + limit]


def _document(asked: Asked, row: _Row) -> admin.Document:
    _, start, key, counts = row
    dimensions = report_forms.dimensions_of(asked, key)
    figures = report_forms.figures(asked, counts)
    end = asked.ending_at if asked.width is None else start + asked.width
    if not asked.form.person:
        return {
            **_bounds(start, end),
            "group": dimensions,
            "cost" if asked.form.costs else "usage": figures,
        }
    bounds = dict.fromkeys(("starting_at", "ending_at"))
    return {
        **(bounds if asked.width is None else _bounds(start, end)),
        "actor": report_forms.actor(str(key[_PRINCIPAL])),
        **dimensions,
        **figures,
    }


def _bucket_documents(
    asked: Asked, starts: Sequence[int], report: Report
) -> Sequence[admin.Document]:
    by_start: dict[int, list[tuple[Key, Counts]]] = defaultdict(list)
    for (start, key), counts in report.items():
        by_start[start].append((key, counts))
    return [_bucket(asked, start, by_start[start]) for start in starts]


def _bucket(asked: Asked, start: int, rows: Sequence[tuple[Key, Counts]]) -> admin.Document:
    assert asked.width is not None, "its width has a default"
    metric = "cost_nanos" if asked.form.costs else "total_tokens"
    ranked = sorted(rows, key=lambda row: (-getattr(row[1], metric), json.dumps(row[0])))
    return {
        **_bounds(start, start + asked.width),
        "results": [
            {**report_forms.dimensions_of(asked, key), **report_forms.figures(asked, counts)}
            for key, counts in ranked[: report_forms.MAX_GROUPS]
        ],
    }


def _bounds(start: int, end: int) -> admin.Document:
    return {"starting_at": tables.timestamp(start), "ending_at": tables.timestamp(end)}
