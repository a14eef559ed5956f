"""The view Me: a person's own spend, limits, last requests, and how to set up their clients."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tornadoproxy_console import spending, texts
from tornadoproxy_console.snippets import snippets

if TYPE_CHECKING:
    from tornadoproxy import PageResponse
    from tornadoproxy_console.site import Visit

DAYS = 14
LAST = 20  # requests


async def show(visit: Visit) -> PageResponse:
    """Show a person what concerns themselves."""
    person = visit.person
    limits = await person.get("spend_limits/effective", "user_ids")
    range_ = spending.Range.last_days(DAYS, time.time())
    costs = await person.get(
        "analytics/cost",
        "actor_ids",
        {**range_.query(), "group_by[]": ("model",), "time_bucket_width": "1d", "limit": "1000"},
    )
    requests = await person.get("requests", "principal", {"limit": str(LAST)})
    return visit.page(
        "me.html",
        texts.ME,
        limits=limits and spending.limits_of(limits["data"]),
        days=costs and spending.by_day(costs["data"], range_),
        models=costs and spending.by(costs["data"], "model"),
        requests=requests and requests["data"],
        snippets=snippets(visit.request.base_url),
        period=range_.text(),
    )
