"""The view People: the keys, and each person with theirs."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tornadoproxy import Denied, InvalidRequest, PageResponse, ProxyError, admin
from tornadoproxy_console import spending, texts

if TYPE_CHECKING:
    from tornadoproxy_console.site import Visit

DAYS = 7
LAST = "20"  # requests
PAGE = "50"  # keys
STATUSES = ("active", "inactive", "expired", "archived")
COUNTS = ("requests_per_minute", "tokens_per_minute", "concurrency")
GRACES = (0, 3600, 86_400, 604_800)  # seconds


async def show(visit: Visit, fault: ProxyError | None = None) -> PageResponse:
    """Show a page of keys; after a creation that was refused, with why."""
    name, status = visit.query("name"), visit.query("status")
    wanted = {
        "name": name,
        "status": status if status in STATUSES else "",
        "page": visit.query("page"),
    }
    query = {field: value for field, value in wanted.items() if value}
    keys = await visit.administrator.find("api_keys", {"limit": PAGE, **query})
    return visit.page(
        "people.html",
        texts.PEOPLE,
        status=fault.status if fault else 200,
        fault=fault.message if fault else "",
        name=name,
        chosen=wanted["status"],
        statuses=STATUSES,
        keys=keys and keys["data"],
        next_page=keys and keys["next_page"],
        once=secrets.token_urlsafe(16),
        field=visit.field if fault else lambda _: "",
    )


async def create(visit: Visit) -> PageResponse:
    """Create a key, and show it once."""
    try:
        made = await visit.administrator.ask(
            "POST",
            "api_keys",
            document={"name": visit.field("name").strip(), **_limits(visit)},
            headers={"Idempotency-Key": visit.field("once") or secrets.token_urlsafe(16)},
        )
    except ProxyError as error:
        return await show(visit, error)
    return visit.page("key.html", texts.NEW_KEY, key=made)


async def person(visit: Visit, fault: ProxyError | None = None) -> PageResponse:
    """Show a person with their keys, limits, spend and last requests."""
    name = visit.field("person") if visit.is_post else visit.query("name")
    if not name:
        raise Denied(texts.NOT_FOUND, status=404)
    get = visit.administrator.find
    keys = await get("api_keys", {"name": name, "limit": "100"})
    limits = await get("spend_limits/effective", {"user_ids[]": name})
    range_ = spending.Range.last_days(DAYS, time.time())
    of_them = range_.query() | {"actor_ids[]": name, "limit": "1000", "time_bucket_width": "1d"}
    costs = await get("analytics/cost", of_them | {"group_by[]": "model"})
    requests = await get("requests", {"principal": name, "limit": LAST})
    return visit.page(
        "person.html",
        name,
        status=fault.status if fault else 200,
        fault=fault.message if fault else "",
        name=name,
        keys=keys and [(key, admin.entity_tag(key)) for key in keys["data"]],
        limits=limits and spending.limits_of(limits["data"]),
        days=costs and spending.by_day(costs["data"], range_),
        models=costs and spending.by(costs["data"], "model"),
        requests=requests and requests["data"],
        period=range_.text(),
        graces=GRACES,
        once=secrets.token_urlsafe(16),
    )


async def change(visit: Visit) -> PageResponse:
    """Change, rotate or revoke a key of a person."""
    ask = visit.administrator.ask
    path = f"api_keys/{visit.field('id')}"
    headers = {"If-Match": visit.field("if_match")}
    action = visit.field("action")
    try:
        if action == "rotate":
            grace = {"grace_seconds": _count(visit.field("grace_seconds") or "0", texts.GRACE)}
            headers["Idempotency-Key"] = visit.field("once") or secrets.token_urlsafe(16)
            made = await ask("POST", f"{path}/rotate", document=grace, headers=headers)
            return visit.page("key.html", texts.NEW_KEY, key=made)
        document = {"status": action} if action in STATUSES else _limits(visit)
        await ask("POST", path, document=document, headers=headers)
    except ProxyError as error:
        return await person(visit, error)
    return visit.redirect(f"/people/person?name={quote(visit.field('person'), safe='')}&done=saved")


def _limits(visit: Visit) -> dict[str, Any]:  # Any: JSON
    """Return the fields of a form for a key, as the Admin API takes them.

    :raises InvalidRequest: a count is none.
    """
    end = visit.field("expires_at").strip()
    return {
        **{name: _words(visit.field(name)) for name in ("groups", "models")},
        **{name: _count(visit.field(name), texts.COUNTS[name]) for name in COUNTS},
        "expires_at": f"{end[:10]}T00:00:00Z" if end else None,
    }


def _words(text: str) -> list[str]:
    return [word for each in text.split(",") if (word := each.strip())]


def _count(text: str, title: str) -> int | None:
    plain = text.strip().replace(",", "")
    if not plain:
        return None
    if not (plain.isascii() and plain.isdigit()):
        raise InvalidRequest(texts.WRONG_COUNT.format(title))
    return int(plain)
