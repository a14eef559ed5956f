"""The view Now of the web console: figures, filters, and the events of live pages."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from typing import Any

import pytest
from console_site import CANARY, ConsoleSite, Visitor, signed_in
from people import MESSAGES, Held, message, pause
from tornadoproxy_console import Console, feeds, live, now
from tornadoproxy_console.feeds import Feeds
from tornadoproxy_console.live import Live, Wanted
from tornadoproxy_console.rendering import render

from tornadoproxy import Outcome, RequestInFlight, Status, Usage
from tornadoproxy.testing import (
    Proxy,
    RawConnection,
    json_response,
    message_document,
    request_bytes,
    request_record,
)

STATUS = Status(
    in_flight=3,
    waiting=1,
    held_bytes=0,
    client_connections=0,
    upstream_connections=0,
    idle_upstream_connections=0,
    plugin_failures={},
    plugin_refusals={},
    draining=False,
)

pytest_plugins = ("console_site",)


def watched() -> Live:
    found = Live()
    found.status = lambda: STATUS
    return found


# -- figures


def test_figures_are_those_of_the_last_minute() -> None:
    present = watched()
    at = time.time()
    for age, changes in (
        (90, {}),
        (30, {"time_to_first_token": 0.5}),
        (20, {"time_to_first_token": 1.5, "status": 529}),
        (10, {"outcome": Outcome.ABANDONED, "status": None, "time_to_first_token": 0.7}),
        (5, {"route": "/console/now/events"}),
        (4, {}),
    ):
        present.finished(request_record(time=at - age, duration=1.0, **changes))
    found = present.figures()
    assert (found.in_flight, found.waiting) == (3, 1)
    assert found.per_second == pytest.approx(4 / 60)
    assert (found.errors, found.first_token) == (50.0, 0.7)


def test_figures_without_requests_are_zero() -> None:
    found = watched().figures()
    assert (found.per_second, found.errors, found.first_token) == (0, 0, None)


def test_rate_of_many_requests_counts_the_time_that_is_kept() -> None:
    present = watched()
    at = time.time()
    for number in range(3 * live.KEPT):
        present.finished(request_record(time=at - 30 + number * 0.01, duration=0.0))
    assert present.figures().per_second == pytest.approx(100, rel=0.1)


def test_figures_are_computed_at_most_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    present = watched()
    asked = []
    present.status = lambda: asked.append(clock) or STATUS  # type: ignore[func-returns-value]  # None
    for _ in range(100):
        present.figures()
    clock += live.PAUSE
    present.figures()
    assert asked == [100.0, 100.5]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(), True),
        (Wanted(person="ada"), True),
        (Wanted(person="bob"), False),
        (Wanted(model="claude-sonnet-5-5"), True),
        (Wanted(model="asked"), True),
        (Wanted(model="other"), False),
        (Wanted(status="error"), True),
        (Wanted(status="success"), False),
        (Wanted(status="529"), True),
        (Wanted(status="200"), False),
        (Wanted("ada", "asked", "529"), True),
    ],
)
def test_requests_are_filtered(wanted: Wanted, found: bool) -> None:
    record = request_record(
        principal="ada", model="claude-sonnet-5-5", requested_model="asked", status=529
    )
    assert wanted.has(record) == found


def test_requests_since_the_last_one_are_new() -> None:
    present = watched()
    records = [request_record(request_id=f"req_{number}") for number in range(4)]
    for record in records[:2]:
        present.finished(record)
    last = present.last
    assert present.since(None, Wanted()) == [records[1], records[0]]
    assert present.since(last, Wanted()) == []
    for record in records[2:]:
        present.finished(record)
    assert present.since(last, Wanted()) == [records[3], records[2]]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(), (True, True)),
        (Wanted(person="ada"), (True, True)),
        (Wanted(person="bob"), (False, False)),
        (Wanted(model="asked"), (True, True)),
        (Wanted(model="other"), (False, False)),
        (Wanted(status="200"), (False, True)),
        (Wanted(status="success"), (False, True)),
        (Wanted(status="error"), (False, False)),
    ],
)
def test_requests_in_flight_are_filtered(wanted: Wanted, found: tuple[bool, bool]) -> None:
    assert tuple(wanted.has_in_flight(running(status=status)) for status in (None, 200)) == found


def running(**changes: Any) -> RequestInFlight:
    fields: dict[str, Any] = {
        "time": time.time(),
        "request_id": "req_1",
        "principal": "ada",
        "method": "POST",
        "route": MESSAGES,
        "status": None,
        "upstream": None,
        "requested_model": "asked",
        "model": None,
        "usage": Usage(),
        "duration": 1.0,
    }
    return RequestInFlight(**{**fields, **changes})


# -- what is sent to live pages


async def test_pieces_come_at_most_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    assert live.PAUSE >= 0.5
    for module in (live, feeds):
        monkeypatch.setattr(module, "PAUSE", 0.02)
    present, times = watched(), list[float]()
    clock = asyncio.get_running_loop().time
    present.status = lambda: times.append(clock()) or STATUS  # type: ignore[func-returns-value]  # None
    pages = Feeds(present, lambda: iter(()))
    feed = pages.join(Wanted(), "/console")
    number = feed.number
    for _ in range(5):
        await pages.moved()
        present.finished(request_record())
    pages.leave(feed)
    assert feed.number == number + 5
    assert len(times) >= 5
    # the clock's own resolution is finer than that
    assert all(later - earlier > 0.02 - 1e-6 for earlier, later in itertools.pairwise(times))


async def test_pages_of_one_filter_share_what_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "PAUSE", 0.01)
    present, rendered = watched(), list[str]()

    def counting(template: str, **values: Any) -> bytes:
        rendered.append(template)
        return render(template, **values)

    monkeypatch.setattr(feeds, "render", counting)
    pages = Feeds(present, lambda: iter([running()]))
    everyone = [pages.join(Wanted(), "/console") for _ in range(50)]
    adas = pages.join(Wanted(person="ada"), "/console")
    assert {id(feed) for feed in everyone} == {id(everyone[0])}
    number = adas.number
    present.finished(request_record(principal="ada"))
    rendered.clear()
    await pages.moved()
    assert sorted(rendered) == [
        *("figures.html", "in_flight_rows.html", "in_flight_rows.html", "request_rows.html"),
    ]
    assert b"ada" in (adas.after(number) or b"")
    assert everyone[0].after(number) is everyone[1].after(number)
    for feed in (*everyone, adas):
        pages.leave(feed)
    assert present.readers == 0


async def test_page_gets_what_it_missed_until_that_is_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feeds, "PAUSE", 0.001)
    present = watched()
    pages = Feeds(present, lambda: iter(()))
    feed = pages.join(Wanted(), "/console")
    number = feed.number
    for each in ("ada", "bob"):
        present.finished(request_record(principal=each))
        await pages.moved()
    missed = feed.after(number) or b""
    assert 0 < missed.index(b">ada</a>") < missed.index(b">bob</a>")
    while feed.number - number <= feeds.KEPT:
        await pages.moved()
    assert feed.after(number) is None
    pages.leave(feed)


async def test_quiet_page_gets_a_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "PAUSE", 0.001)
    monkeypatch.setattr(feeds, "HEARTBEAT", 0.0)
    pages = Feeds(watched(), lambda: iter(()))
    feed = pages.join(Wanted(), "/console")
    await pages.moved()
    number = feed.number
    await pages.moved()
    assert feed.after(number) == b":\n\n"
    pages.leave(feed)


async def test_page_learns_that_a_piece_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "PAUSE", 0.001)
    present = watched()
    pages = Feeds(present, lambda: iter(()))
    feed = pages.join(Wanted(), "/console")
    present.finished("no record")  # type: ignore[arg-type]  # that is the fault
    with pytest.raises(AttributeError):
        await pages.moved()
    pages.leave(feed)
    present._recent.clear()
    again = pages.join(Wanted(), "/console")
    await pages.moved()
    pages.leave(again)


async def test_slow_page_is_dropped_and_others_go_on(
    site: ConsoleSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "PAUSE", 0.001)
    console = Console()
    await site.start(plugins=[console], DISABLED_PLUGINS="prices console")
    visitor = await signed_in(site)
    slow = await watch(site, visitor, receive_buffer=4096)
    quick = await watch(site, visitor)
    reading = asyncio.create_task(quick.end())
    for _ in range(20):  # more than the system's buffers take, and then more than is kept
        for _ in range(feeds.SHOWN_AT_ONCE):
            console.request_finished(request_record(principal="a" * 20_000))
        before = quick.size
        while quick.size == before:
            await asyncio.sleep(0)
    assert (await slow.end()).endswith(b"\n\n"), "it ends between two events"
    assert not reading.done()
    await quick.client.close()
    reading.cancel()


# -- the page and its events


async def test_now_shows_the_present_without_scripts(site: ConsoleSite) -> None:
    await site.start()
    ada, bob = await site.key("ada"), await site.key(CANARY)
    await site.spend(ada)
    await site.spend(bob)
    visitor = await signed_in(site)
    response = await visitor.get("/")
    assert response.status == 200
    assert "<h1>Now</h1>" in visitor.page
    assert ">ada</a>" in visitor.page
    assert CANARY not in visitor.page
    assert "&lt;img src=x" in visitor.page
    assert re.search(r">default</td>\s*<td[^>]*><span class=.state good.>works<", visitor.page)
    await visitor.get("/now?person=ada&status=success")
    assert "&lt;img src=x" not in visitor.page
    await visitor.get("/now?status=error")
    assert ">ada</a>" not in visitor.page


class Events:
    """The events of a live page."""

    def __init__(self, client: RawConnection) -> None:
        self.client = client
        self._text = b""

    @property
    def size(self) -> int:
        """How much came so far, in bytes."""
        return len(self._text)

    @property
    def text(self) -> str:
        """All that came so far."""
        return self._text.decode()

    async def until(self, name: str, shown: str) -> str:
        """Wait for an event of this name that shows a text, and return its data."""
        while True:
            for event in self._text.split(b"\n\n")[:-1]:
                lines = event.decode().split("\n")
                if lines[0] == f"event: {name}":
                    data: str = json.loads(lines[1].removeprefix("data: "))
                    if shown in data:
                        return data
            piece = await self.client.chunk()
            assert piece, "the stream has ended"
            self._text += piece

    async def end(self) -> bytes:
        """Wait for the end, and return what came until then."""
        while piece := await self.client.chunk():
            self._text += piece
        return self._text


async def watch(
    site: ConsoleSite, visitor: Visitor, query: str = "", receive_buffer: int | None = None
) -> Events:
    client = await site.raw(receive_buffer=receive_buffer)
    await client.send(
        request_bytes("GET", f"/console/now/events{query}", [("Cookie", visitor.cookie)])
    )
    head = await client.head()
    assert (head.status, head.header("content-type")) == (200, "text/event-stream")
    assert (head.header("content-security-policy") or "").startswith("default-src 'self'")
    return Events(client)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send pieces as often as a test wants to see them."""
    for module in (live, feeds):
        monkeypatch.setattr(module, "PAUSE", 0.02)


async def test_events_show_requests_as_they_end(site: ConsoleSite, often: None) -> None:
    proxy = await site.start()
    ada, bob = await site.key("ada"), await site.key(CANARY)
    visitor = await signed_in(site)
    everyone, adas = await watch(site, visitor), await watch(site, visitor, "?person=ada")
    await everyone.until("figures", ">In flight</dt><dd><strong>0<")
    held = Held(json_response(message_document("Hi")))
    site.upstream.script(held)
    begun = await site.begin(bob)
    await everyone.until("figures", ">In flight</dt><dd><strong>1<")
    assert CANARY not in await everyone.until("in-flight", "&lt;img")
    held.released.set()
    await begun.response()
    rows = await everyone.until("ended", "&lt;img")
    assert CANARY not in rows
    await everyone.until("in-flight", "There are no requests in flight.")
    await site.request(MESSAGES, message(), token=ada)
    assert "&lt;img" not in await adas.until("ended", ">ada</a>")
    assert "&lt;img" not in adas.text
    assert proxy.server.status().in_flight == 2
    later = await watch(site, visitor)
    assert ">ada</a>" in await later.until("recent", "&lt;img"), "those before it was opened"


async def test_events_end_with_the_session(
    site: ConsoleSite, monkeypatch: pytest.MonkeyPatch, often: None
) -> None:
    monkeypatch.setattr(now, "CHECKED", 0.0)
    proxy = await site.start()
    out, revoked = await signed_in(site), await signed_in(site)
    for visitor in (out, revoked):
        await visitor.get("/health")
        events = await watch(site, visitor)
        await events.until("figures", "In flight")
        if visitor is out:
            cookie = visitor.cookie
            await visitor.post("/sign-out")
            visitor.cookie = cookie
        else:
            proxy.reload(ADMIN_KEY="x" * 32)
        assert b"event: signed-out" in await events.end()


async def test_events_need_an_administrator(site: ConsoleSite) -> None:
    await site.start()
    visitor = await signed_in(site, await site.key())
    assert (await visitor.get("/now/events")).status == 404
    assert (await site.visitor().get("/now/events", follow=False)).status == 303


async def test_events_end_when_the_proxy_stops(site: ConsoleSite, often: None) -> None:
    proxy: Proxy = await site.start()
    events = await watch(site, await signed_in(site))
    await events.until("figures", "In flight")
    await proxy.server.drain()
    await events.end()


async def test_open_pages_are_bounded_and_released(
    site: ConsoleSite, monkeypatch: pytest.MonkeyPatch, often: None
) -> None:
    monkeypatch.setattr(now, "MOST_READERS", 1)
    await site.start()
    visitor = await signed_in(site)
    events = await watch(site, visitor)
    await events.until("figures", "In flight")
    assert (await visitor.get("/now/events")).status == 503
    assert "Too many live pages are open" in visitor.page
    await events.client.close()
    again: Any = None
    while again is None:
        try:
            again = await watch(site, visitor)
        except AssertionError:
            await pause()
    await again.until("figures", "In flight")


async def test_pages_opened_at_once_are_bounded(
    site: ConsoleSite, monkeypatch: pytest.MonkeyPatch, often: None
) -> None:
    monkeypatch.setattr(now, "MOST_READERS", 2)
    await site.start()
    cookie = ("Cookie", (await signed_in(site)).cookie)
    clients = [await site.raw() for _ in range(20)]
    for client in clients:
        await client.send(request_bytes("GET", "/console/now/events", [cookie]))
    live = 0
    for client in clients:
        if (await client.head()).status == 200:
            live += await client.chunk() != b""
    assert live == 2
