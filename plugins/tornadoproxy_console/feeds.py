"""What live pages are sent: server-sent events, made once for all pages of the same filter.

One task makes them, at most twice a second, while a page is open. A page that is slow to read gets
all that it has missed at once; one that has missed more than `KEPT` pieces is dropped, and its
browser connects again. The proxy disconnects one that reads nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from tornadoproxy_console import shown
from tornadoproxy_console.live import OWN, PAUSE
from tornadoproxy_console.rendering import render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tornadoproxy import RequestInFlight, RequestRecord, admin
    from tornadoproxy_console.live import Figures, Live, Wanted

SHOWN = 50  # requests that have ended
SHOWN_AT_ONCE = 20  # of those that ended between two pieces
SHOWN_IN_FLIGHT = 20
KEPT = 10  # pieces
HEARTBEAT = 10.0  # seconds


class Feed:
    """What the pages of one filter are sent.

    :ivar pages: how many of them are open.
    :ivar number: of the last piece.
    """

    def __init__(self, feeds: Feeds, wanted: Wanted, root: str) -> None:
        self._feeds = feeds
        self.wanted = wanted
        self.root = root
        self.pages = 0
        self.number = 0
        self._pieces: deque[bytes] = deque(maxlen=KEPT)
        self._last = feeds.live.last
        self._figures = self._in_flight = b""
        self._sent = asyncio.get_running_loop().time()

    def state(self) -> bytes:
        """Return the events for a page that has just been opened."""
        recent = self._feeds.live.since(None, self.wanted)[:SHOWN]
        return self._feeds.figures() + self._event_in_flight() + self._event("recent", recent)

    def advance(self) -> None:
        """Make the next piece: what has changed since the last one."""
        live, now = self._feeds.live, asyncio.get_running_loop().time()
        figures, in_flight = self._feeds.figures(), self._event_in_flight()
        piece = b""
        if figures != self._figures:
            piece += figures
        if in_flight != self._in_flight:
            piece += in_flight
        if ended := live.since(self._last, self.wanted):
            piece += self._event("ended", ended[:SHOWN_AT_ONCE])
        if not piece and now - self._sent >= HEARTBEAT:
            piece = b":\n\n"
        if piece:
            self._sent = now
        self._last, self._figures, self._in_flight = live.last, figures, in_flight
        self._pieces.append(piece)
        self.number += 1

    def after(self, number: int) -> bytes | None:
        """Return what came after the piece of that number; ``None`` if it is not kept."""
        missed = self.number - number
        if missed > len(self._pieces):
            return None
        if missed == 1:
            return self._pieces[-1]  # the same bytes for every page
        return b"".join(islice(self._pieces, len(self._pieces) - missed, None))

    def _event(self, name: str, records: Sequence[RequestRecord]) -> bytes:
        return event(name, "".join(self._feeds.row(each, self.root) for each in records))

    def _event_in_flight(self) -> bytes:
        found = self._feeds.in_flight(self.wanted)
        rows = render("in_flight_rows.html", in_flight=found, root=self.root)
        return event("in-flight", rows.decode())


class Feeds:
    """The feeds of all open pages, and the task that makes their pieces.

    :param in_flight: yields the requests in flight, the oldest first.
    """

    def __init__(self, live: Live, in_flight: Callable[[], Iterator[RequestInFlight]]) -> None:
        self.live = live
        self._all_in_flight = in_flight
        self._feeds: dict[tuple[Wanted, str], Feed] = {}
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._fault: Exception | None = None
        self._figures: tuple[Figures | None, bytes] = (None, b"")
        # by id and root; each with its record, whose id is no other's as long as it is kept
        self._rows: dict[tuple[int, str], tuple[RequestRecord, str]] = {}

    def join(self, wanted: Wanted, root: str) -> Feed:
        """Return the feed for a page; `leave` must be called in the end."""
        feed = self._feeds.get((wanted, root))
        if feed is None:
            feed = self._feeds[wanted, root] = Feed(self, wanted, root)
        feed.pages += 1
        self.live.readers += 1
        if self._task is None:
            self._fault = None
            self._task = asyncio.create_task(self._run())
        return feed

    def leave(self, feed: Feed) -> None:
        """Note that a page is closed."""
        feed.pages -= 1
        self.live.readers -= 1
        if not feed.pages:
            del self._feeds[feed.wanted, feed.root]
        if not self._feeds and self._task is not None:
            self._task.cancel()
            self._task = None

    async def moved(self) -> None:
        """Return when each feed has its next piece.

        :raises Exception: it could not be made.
        """
        await self._moved.wait()
        if self._fault is not None:
            raise self._fault

    def in_flight(self, wanted: Wanted) -> list[admin.Document]:
        """Return the oldest requests in flight, for templates."""
        found = (
            each
            for each in self._all_in_flight()
            if not each.route.startswith(OWN) and wanted.has_in_flight(each)
        )
        return [shown.in_flight(each) for each in islice(found, SHOWN_IN_FLIGHT)]

    def figures(self) -> bytes:
        """Return the event of the present figures."""
        figures = self.live.figures()
        if self._figures[0] is not figures:
            text = render("figures.html", figures=figures).decode()
            self._figures = figures, event("figures", text)
        return self._figures[1]

    def row(self, record: RequestRecord, root: str) -> str:
        """Return the row of a request that has ended."""
        key = id(record), root
        if key not in self._rows:
            requests = [shown.ended(record)]
            row = render("request_rows.html", requests=requests, root=root, show_person=True)
            self._rows[key] = record, row.decode()
        return self._rows[key][1]

    async def _run(self) -> None:
        while self._fault is None:
            await asyncio.sleep(PAUSE)
            try:
                for feed in self._feeds.values():
                    feed.advance()
            except Exception as error:
                self._fault = error
            self._rows.clear()
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()


def event(name: str, data: str) -> bytes:
    """Return a server-sent event whose data is a JSON string."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
