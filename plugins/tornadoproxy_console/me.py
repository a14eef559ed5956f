"""The view Me: a person's own spend, limits, last requests, and how to set up their clients."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tornadoproxy import ProxyError
from tornadoproxy_console import spending, texts
from tornadoproxy_console.snippets import snippets

if TYPE_CHECKING:
    from tornadoproxy import PageResponse
    from tornadoproxy_console.site import Visit

DAYS = 14
LAST = 20  # requests
INCREASES = "/v1/spend_limit_increase_requests"
LAST_INCREASES = 5


async def show(visit: Visit, fault: ProxyError | None = None) -> PageResponse:
    """Show a person what concerns themselves; after a form that was refused, with why."""
    person = visit.person
    increases = await person.ask("GET", INCREASES)
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
        status=fault.status if fault else 200,
        fault=fault.message if fault else "",
        increases=increases and increases["data"][:LAST_INCREASES],
        field=visit.field if fault else lambda _: "",
        limits=limits and spending.limits_of(limits["data"]),
        days=costs and spending.by_day(costs["data"], range_),
        models=costs and spending.by(costs["data"], "model"),
        requests=requests and requests["data"],
        snippets=snippets(visit.request.base_url),
        period=range_.text(),
    )


async def ask_for_more(visit: Visit) -> PageResponse:
    """Send a request for a higher limit, which an administrator approves or denies."""
    try:
        amount = spending.cents_of(visit.field("amount"))
        document = {
            "period": visit.field("period"),
            "requested_amount": amount,
            "reason": visit.field("reason").strip() or None,
        }
        sent = await visit.person.ask("POST", INCREASES, document)
    except ProxyError as error:
        return await show(visit, error)
    # a person has one pending request for each period
    is_earlier = sent is not None and not document.items() <= sent.items()
    return visit.redirect("/me?done=pending" if is_earlier else "/me?done=asked")
