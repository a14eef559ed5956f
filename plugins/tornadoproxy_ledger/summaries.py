"""The resource ``analytics/summaries`` of the Admin API: how many people use Claude each day.

A person is active on a day on which a request of theirs used tokens. The proxy knows of no seats
and invitations, and of no product but Claude Code; what depends on them is ``null``, or 0 where
Anthropic's format has no ``null``.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy import InvalidRequest, admin
from tornadoproxy_ledger import reports
from tornadoproxy_ledger.reading import read_for_request
from tornadoproxy_ledger.reports import DIMENSIONS, Selection
from tornadoproxy_ledger.summed import DAY, start_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tornadoproxy import Database, DatabaseConnection

PERIODS = {"daily": 1, "weekly": 7, "monthly": 30}  # days
MAX_DAYS = 366
MAX_FILTERS = 100

_PRODUCTS = ("chat", "chat_cowork_unified", "claude_design", "claude_tag", "office_agent")
_UNKNOWN = (
    *("assigned_seat_count", "pending_invite_count", "science_entitled_user_count"),
    *(f"{period}_adoption_rate" for period in PERIODS),
    *(f"{product}_{period}_active_user_count" for product in _PRODUCTS for period in PERIODS),
    *(f"science_{period}_active_user_count" for period in PERIODS),
)
_DATE = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_PERSON, _PRODUCT = DIMENSIONS.index("principal"), DIMENSIONS.index("product")


class Days(NamedTuple):
    """The days to summarize, in seconds since the epoch, and whose activity counts.

    :param groups: none is everyone.
    """

    since: int
    until: int
    groups: frozenset[str]


class SummariesApi:
    """The resource.

    :param database: the ledger, which is not started.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def resource(self) -> admin.Resource:
        """Return the resource."""
        return admin.Resource("analytics/summaries", {"GET": self._list})

    async def _list(self, request: admin.Request) -> admin.Document:
        days = asked(request.query, time.time())
        count = partial(counted, days, dialect=self._database.dialect)
        return {
            "data": await read_for_request(self._database, lambda each: list(count(each))),
            "has_more": False,
            "next_page": None,
        }


def asked(query: admin.Query, now: float) -> Days:
    """Return what a query asks for.

    :raises InvalidRequest: a field is invalid.
    """
    query.limit(default=100)
    if query.value("page") is not None:
        raise InvalidRequest("page: there is only one page.")
    since, until = (_day(name, query.value(name)) for name in ("starting_date", "ending_date"))
    if since is None:
        raise InvalidRequest("starting_date: missing; send a date such as 2026-11-30.")
    today = start_of(now, DAY)
    until = today if until is None else min(until, today + DAY)
    if since >= until:
        raise InvalidRequest("starting_date: must be before ending_date, and before today.")
    if until - since > MAX_DAYS * DAY:
        raise InvalidRequest(f"ending_date: the range may span at most {MAX_DAYS} days.")
    filters = query.values("filter")
    if len(filters) > MAX_FILTERS:
        raise InvalidRequest(f"filter: send at most {MAX_FILTERS}.")
    groups = frozenset(each.removeprefix("rbac_group_id:") for each in filters)
    if any(not each.startswith("rbac_group_id:") for each in filters):
        raise InvalidRequest("filter: must be rbac_group_id:GROUP.")
    return Days(since, until, groups)


def counted(days: Days, connection: DatabaseConnection, dialect: str) -> Iterator[admin.Document]:
    """Yield the document of each day, the first day first."""
    only: Mapping[str, frozenset[str]] = {"group": days.groups} if days.groups else {}
    seen: dict[str, int] = {}  # the last day of each person's activity
    seen_in_code: dict[str, int] = {}
    for day in range(days.since - (max(PERIODS.values()) - 1) * DAY, days.until, DAY):
        by = frozenset({"principal", "product"})
        selection = Selection(day, day + DAY, None, by, only, counts=("requests",))
        for _, key in reports.read(selection, connection, dialect):
            if (person := key[_PERSON]) is not None:
                seen[person] = day
                if key[_PRODUCT] == "claude_code":
                    seen_in_code[person] = day
        if day >= days.since:
            yield {
                "starting_at": admin.timestamp(day),
                "ending_at": admin.timestamp(day + DAY),
                **dict.fromkeys(_UNKNOWN),
                **dict.fromkeys((f"cowork_{each}_active_user_count" for each in PERIODS), 0),
                **_active("", day, seen),
                **_active("claude_code_", day, seen_in_code),
            }


def _active(product: str, day: int, seen: Mapping[str, int]) -> admin.Document:
    return {
        f"{product}{period}_active_user_count": sum(
            last > day - days * DAY for last in seen.values()
        )
        for period, days in PERIODS.items()
    }


def _day(name: str, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        if _DATE.fullmatch(value):
            day = date.fromisoformat(value)
            return max(int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()), 0)
    except ValueError:
        pass  # the 30th of February
    raise InvalidRequest(f"{name}: must be a date such as 2026-11-30.")
