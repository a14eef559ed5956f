"""The view Now: what happens at present, and the same as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from msgspec.structs import asdict

from tornadoproxy import Denied, PageResponse, admin
from tornadoproxy_console import texts
from tornadoproxy_console.live import PAUSE, Wanted, is_error
from tornadoproxy_console.rendering import render

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from tornadoproxy import RequestRecord
    from tornadoproxy_console.live import Live
    from tornadoproxy_console.site import Visit

SHOWN = 50  # requests
SHOWN_LIVE = 20  # of those that ended between two events
HEARTBEAT = 10.0  # seconds
CHECKED = 5.0  # seconds between two checks of the session
MOST_READERS = 20


async def show(visit: Visit) -> PageResponse:
    """Show the figures, and the requests that ended last."""
    live, wanted = visit.site.live, _wanted(visit)
    query = {name: value for name, value in asdict(wanted).items() if value}
    return visit.page(
        "now.html",
        texts.NOW,
        wanted=wanted,
        query=urlencode(query),
        figures=live.figures(),
        requests=_documents(live.since(None, wanted)),
        show_person=True,
    )


async def events(visit: Visit) -> PageResponse:
    """Return the events of a live page.

    :raises Denied: 503, too many of them are open.
    """
    if visit.site.live.readers >= MOST_READERS:
        raise Denied(texts.TOO_MANY_READERS, status=503)
    headers = visit.headers() | {"X-Accel-Buffering": "no"}
    stream = _events(visit, visit.site.live, _wanted(visit))
    return PageResponse(b"", "text/event-stream", headers=headers, stream=stream)


async def _events(visit: Visit, live: Live, wanted: Wanted) -> AsyncGenerator[bytes, None]:
    """Yield the figures when they change, and the requests as they end.

    It ends with the session, and when the proxy stops.
    """
    live.readers += 1
    try:
        last, shown = live.last, ""
        sent = checked = time.monotonic()
        yield b"retry: 2000\n\n"
        while not live.status().draining:
            pieces = []
            figures = render("figures.html", figures=live.figures()).decode()
            if figures != shown:
                shown = figures
                pieces.append(_event("figures", figures))
            if new := live.since(last, wanted):
                rows = render(
                    "request_rows.html",
                    requests=_documents(new[:SHOWN_LIVE]),
                    root=visit.root,
                    show_person=True,
                )
                pieces.append(_event("requests", rows.decode()))
            last = live.last
            now = time.monotonic()
            if not pieces and now - sent >= HEARTBEAT:
                pieces.append(b":\n\n")
            if pieces:
                sent = now
                yield b"".join(pieces)
            if now - checked >= CHECKED:
                checked = now
                if not await visit.is_signed_in():
                    yield _event("ended", "")
                    return
            await asyncio.sleep(PAUSE)
    finally:
        live.readers -= 1


def _event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def _wanted(visit: Visit) -> Wanted:
    return Wanted(*(visit.query(name) for name in Wanted.__struct_fields__))


def _documents(records: Sequence[RequestRecord]) -> list[admin.Document]:
    """Return requests as the resource ``requests`` shows them."""
    return [
        {
            "id": record.request_id,
            "created_at": admin.timestamp(record.time),
            "principal": record.principal,
            "model": record.model or record.requested_model,
            "status": record.status,
            "outcome": record.outcome.value,
            "is_error": is_error(record),
            "input_tokens": record.usage.input_tokens,
            "output_tokens": record.usage.output_tokens,
            "cost": None if record.cost is None else record.cost / 10_000_000,
            "duration": record.duration,
        }
        for record in records[:SHOWN]
    ]
