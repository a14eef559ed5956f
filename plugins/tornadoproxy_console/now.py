"""The view Now: what happens at present, and the same as server-sent events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from msgspec.structs import asdict

from tornadoproxy import Denied, PageResponse
from tornadoproxy_console import shown, texts
from tornadoproxy_console.feeds import SHOWN, event
from tornadoproxy_console.live import Wanted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tornadoproxy_console.site import Visit

CHECKED = 5.0  # seconds between two checks of the session
MOST_READERS = 200


async def show(visit: Visit) -> PageResponse:
    """Show the figures, the requests in flight, and those that ended last."""
    live, wanted = visit.site.live, _wanted(visit)
    query = {name: value for name, value in asdict(wanted).items() if value}
    return visit.page(
        "now.html",
        texts.NOW,
        wanted=wanted,
        query=urlencode(query),
        figures=live.figures(),
        in_flight=visit.site.feeds.in_flight(wanted),
        requests=[shown.ended(each) for each in live.since(None, wanted)[:SHOWN]],
        show_person=True,
    )


async def events(visit: Visit) -> PageResponse:
    """Return the events of a live page.

    :raises Denied: 503, too many of them are open.
    """
    if visit.site.live.readers >= MOST_READERS:
        raise Denied(texts.TOO_MANY_READERS, status=503)
    headers = visit.headers() | {"X-Accel-Buffering": "no"}
    stream = _events(visit, _wanted(visit))
    return PageResponse(b"", "text/event-stream", headers=headers, stream=stream)


async def _events(visit: Visit, wanted: Wanted) -> AsyncGenerator[bytes, None]:
    """Yield the present state, then what changes.

    It ends with the session, when the proxy stops, and when too many changes were missed; at once,
    if too many pages are open. The browser connects again then.
    """
    feeds, time = visit.site.feeds, asyncio.get_running_loop().time
    if feeds.live.readers >= MOST_READERS:  # others were opened at the same time
        return
    feed = feeds.join(wanted, visit.root)
    try:
        number, checked = feed.number, time()
        yield b"retry: 2000\n\n" + feed.state()
        await feeds.moved()  # sent with the next one: this may come at once
        while not feeds.live.status().draining:
            await feeds.moved()
            piece = feed.after(number)
            if piece is None:
                return
            number = feed.number
            if piece:
                yield piece
            if time() - checked >= CHECKED:
                checked = time()
                if not await visit.is_signed_in():
                    yield event("signed-out", "")
                    return
    finally:
        feeds.leave(feed)


def _wanted(visit: Visit) -> Wanted:
    return Wanted(*(visit.query(name) for name in Wanted.__struct_fields__))
