"""The view Spend: costs by person, group, model and day, and the caps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tornadoproxy import InvalidRequest, PageResponse, ProxyError, admin, tables
from tornadoproxy_console import spending, texts
from tornadoproxy_console.spending import DAY, Range

if TYPE_CHECKING:
    from tornadoproxy_console.site import Visit

DAYS = 7
MOST_DAYS = 31  # of a report
DIMENSIONS = {"person": "actor", "group": "rbac_group_id", "model": "model"}
PERIODS = ("daily", "weekly", "monthly")
TOP = "20"  # people


async def show(visit: Visit, fault: ProxyError | None = None) -> PageResponse:
    """Show costs and caps; after a change that was refused, with why."""
    by = visit.query("by") if visit.query("by") in DIMENSIONS else "person"
    period = visit.query("period") if visit.query("period") in PERIODS else "monthly"
    try:
        range_ = _range(visit)
    except InvalidRequest as error:
        fault, range_ = error, Range.last_days(DAYS, time.time())
    get = visit.administrator.find
    report = range_.query() | {"time_bucket_width": "1d", "limit": "1000"}
    days = await get("analytics/cost", report)
    costs = await get(
        "analytics/cost", range_.query() | {"group_by[]": DIMENSIONS[by], "limit": "1000"}
    )
    caps = await get("spend_limits", {"limit": "100"} | _if_given(page=visit.query("caps_page")))
    increases = await get("spend_limit_increase_requests", {"status[]": "pending", "limit": "100"})
    people = await get(
        "spend_limits/effective", {"period[]": period, "sort": "spend_desc", "limit": TOP}
    )
    return visit.page(
        "spend.html",
        texts.SPEND,
        status=fault.status if fault else 200,
        fault=fault.message if fault else "",
        by=by,
        chosen_period=period,
        range_=range_,
        period=range_.text(),
        days=days and spending.by_day(days["data"], range_),
        costs=costs and spending.by(costs["data"], DIMENSIONS[by]),
        has_more=bool(costs and costs["has_more"]),
        caps=caps and [(cap, admin.entity_tag(cap)) for cap in caps["data"]],
        caps_page=caps and caps["next_page"],
        absent=admin.entity_tag({}),
        increases=[
            (each, admin.entity_tag({**each, "spend_summary": None}))
            for each in (increases["data"] if increases else ())
        ],
        people=people
        and [
            (row["actor"]["user_id"], limit)
            for row, limit in zip(people["data"], spending.limits_of(people["data"]), strict=True)
        ],
    )


async def csv(visit: Visit) -> PageResponse:
    """Return the costs of a range by day, and by person, group or model, as CSV."""
    by = visit.query("by") if visit.query("by") in DIMENSIONS else "person"
    range_ = _range(visit)
    query = range_.query() | {"group_by[]": DIMENSIONS[by], "time_bucket_width": "1d"}
    rows, page = [], None
    while page is None or page:
        found = await visit.administrator.get(
            "analytics/cost", query | {"limit": "1000"} | _if_given(page=page or "")
        )
        rows += [
            (row["starting_at"][:10], *spending.by([row], DIMENSIONS[by])) for row in found["data"]
        ]
        page = found["next_page"] or ""
    lines = [(day, cost.name, cost.requests, f"{cost.cents / 100:f}") for day, cost in sorted(rows)]
    body = tables.csv_text(("day", by, "requests", "cost_usd"), lines)
    name = f"spend-{range_.days()[0]}-{range_.days()[-1]}.csv"
    return visit.download(body.encode(), "text/csv; charset=utf-8", name)


async def change(visit: Visit) -> PageResponse:
    """Set or remove a cap."""
    ask = visit.administrator.ask
    match = {"If-Match": visit.field("if_match")}
    try:
        if id_ := visit.field("remove"):
            await ask("DELETE", f"spend_limits/{id_}", headers=match)
            return visit.redirect("/spend?done=removed#caps")
        await ask("POST", "spend_limits", document=_wanted(visit), headers=match)
    except ProxyError as error:
        return await show(visit, error)
    return visit.redirect("/spend?done=saved#caps")


async def resolve(visit: Visit) -> PageResponse:
    """Approve or deny a person's request for a higher limit."""
    path = f"spend_limit_increase_requests/{visit.field('id')}"
    match = {"If-Match": visit.field("if_match")}
    try:
        if visit.field("action") == "deny":
            await visit.administrator.ask("POST", f"{path}/deny", document={}, headers=match)
            return visit.redirect("/spend?done=denied#increases")
        amount = spending.cents_of(visit.field("amount"))
        document = {"amount": amount}
        await visit.administrator.ask("POST", f"{path}/approve", document=document, headers=match)
    except ProxyError as error:
        return await show(visit, error)
    return visit.redirect("/spend?done=approved#increases")


def _wanted(visit: Visit) -> admin.Document:
    """Return the cap that a form asks for, as the Admin API takes it."""
    kind, name = visit.field("type"), visit.field("name").strip()
    scope: admin.Document = {"type": kind}
    if kind == "user":
        scope["user_id"] = name
    elif kind == "rbac_group":
        scope["rbac_group_id"] = name
    elif name:
        raise InvalidRequest(texts.NAME_OF_EVERYONE)
    if visit.field("shared"):
        scope["shared"] = True
    return {
        "scope": scope,
        "period": visit.field("period"),
        "amount": spending.cents_of(visit.field("amount")),
    }


def _range(visit: Visit) -> Range:
    """Return the days that a query asks for.

    :raises InvalidRequest: they are none, or too many.
    """
    first, last = visit.query("from"), visit.query("to")
    if not first or not last:
        return Range.last_days(DAYS, time.time())
    since = admin.parse_timestamp(texts.FROM, f"{first[:10]}T00:00:00Z")
    until = admin.parse_timestamp(texts.TO, f"{last[:10]}T00:00:00Z") + DAY
    if not 0 <= since < until <= since + MOST_DAYS * DAY or since > time.time():
        raise InvalidRequest(texts.WRONG_RANGE.format(MOST_DAYS))
    return Range(int(since), int(until))


def _if_given(**fields: str) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value}
