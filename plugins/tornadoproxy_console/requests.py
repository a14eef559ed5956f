"""The view Requests: a search in the ledger, and single requests."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from tornadoproxy import PageResponse, ProxyError
from tornadoproxy_console import texts

if TYPE_CHECKING:
    from tornadoproxy_console.site import Visit

PAGE = "50"
FIELDS = ("principal", "model", "status", "request_id", "session_id")


async def show(visit: Visit) -> PageResponse:
    """Show the requests that a search finds."""
    wanted = {name: visit.query(name) for name in FIELDS}
    days = {name: visit.query(name) for name in ("from", "to", "all")}
    query = {name: value for name, value in wanted.items() if value}
    if days["from"]:
        query["starting_at"] = f"{days['from'][:10]}T00:00:00Z"
    if days["to"]:
        query["ending_at"] = f"{days['to'][:10]}T23:59:59.999999Z"
    if not visit.query("all"):
        query["has_principal"] = "true"
    if visit.query("page"):
        query["page"] = visit.query("page")
    fault, found = None, None
    try:
        found = await visit.administrator.find("requests", {"limit": PAGE, **query})
    except ProxyError as error:
        if error.status != 400:
            raise
        fault = error
    return visit.page(
        "requests.html",
        texts.REQUESTS,
        status=fault.status if fault else 200,
        fault=fault.message if fault else "",
        wanted={**wanted, **days},
        requests=found["data"] if found else None,
        has_ledger=found is not None or fault is not None,
        following=urlencode({**wanted, **days, "page": found["next_page"]})
        if found and found["has_more"]
        else "",
    )


async def one(visit: Visit) -> PageResponse:
    """Show one request with its attempts, and its recording if there is one."""
    id_ = visit.query("id")
    found = await visit.administrator.get(f"requests/{id_}")
    recording = None
    if visit.actor.may_change:
        recording = await visit.administrator.find(f"recordings/{id_}")
    return visit.page(
        "request.html",
        texts.REQUEST,
        request=found,
        parts=[
            (title, _text(recording[name]))
            for name, title in texts.PARTS.items()
            if recording and recording[name]
        ],
    )


def _text(part: dict[str, Any]) -> str:  # Any: JSON
    """Return the headers and the body of a recorded request or response."""
    body = part["body"]
    text = body.get("text", texts.BINARY if "base64" in body else "")
    with contextlib.suppress(ValueError, RecursionError):  # it is no JSON
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    lines = [f"{name}: {value}" for name, value in part["headers"]]
    if body.get("truncated") or body.get("omitted"):
        text += f"\n\n{texts.INCOMPLETE}"
    return "\n".join([*lines, "", text])
