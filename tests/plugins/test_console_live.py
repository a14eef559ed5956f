"""The view Now of the web console: figures, filters, and the events of live pages."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from budget_team import ADMIN
from console_site import ConsoleSite, Visitor
from people import MESSAGES, Held, message
from scene import Scene
from tornadoproxy_console import live, now
from tornadoproxy_console.live import Live, Wanted

from tornadoproxy import DatabaseLocation, Outcome, Status
from tornadoproxy.testing import (
    Proxy,
    RawConnection,
    json_response,
    message_document,
    request_bytes,
    request_record,
)

CANARY = "<img src=x onerror=alert(1)>"
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


@pytest.fixture
def site(scene: Scene, where: DatabaseLocation) -> ConsoleSite:
    return ConsoleSite(scene, where)


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


# -- the page and its events


async def signed_in(site: ConsoleSite, key: str = ADMIN) -> Visitor:
    visitor = site.visitor()
    await visitor.sign_in(key)
    return visitor


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
    assert re.search(r"<td>default</td><td><span class=.state good.>well", visitor.page)
    await visitor.get("/now?person=ada&status=success")
    assert "&lt;img src=x" not in visitor.page
    await visitor.get("/now?status=error")
    assert ">ada</a>" not in visitor.page


class Events:
    """The events of a live page."""

    def __init__(self, client: RawConnection) -> None:
        self.client = client
        self._text = b""

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


async def watch(site: ConsoleSite, visitor: Visitor, query: str = "") -> Events:
    client = await site.raw()
    await client.send(
        request_bytes("GET", f"/console/now/events{query}", [("Cookie", visitor.cookie)])
    )
    head = await client.head()
    assert (head.status, head.header("content-type")) == (200, "text/event-stream")
    assert (head.header("content-security-policy") or "").startswith("default-src 'self'")
    return Events(client)


async def test_events_show_requests_as_they_end(site: ConsoleSite) -> None:
    proxy = await site.start()
    ada, bob = await site.key("ada"), await site.key(CANARY)
    visitor = await signed_in(site)
    everyone, adas = await watch(site, visitor), await watch(site, visitor, "?person=ada")
    await everyone.until("figures", ">In flight</dt><dd><strong>0<")
    held = Held(json_response(message_document("Hi")))
    site.upstream.script(held)
    begun = await site.begin(bob)
    await everyone.until("figures", ">In flight</dt><dd><strong>1<")
    held.released.set()
    await begun.response()
    rows = await everyone.until("requests", "&lt;img")
    assert CANARY not in rows
    await site.request(MESSAGES, message(), token=ada)
    assert "&lt;img" not in await adas.until("requests", ">ada</a>")
    assert proxy.server.status().in_flight == 2


async def test_events_end_with_the_session(
    site: ConsoleSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(now, "CHECKED", 0.0)
    monkeypatch.setattr(now, "PAUSE", 0.01)
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
        assert b"event: ended" in await events.end()


async def test_events_need_an_administrator(site: ConsoleSite) -> None:
    await site.start()
    visitor = await signed_in(site, await site.key())
    assert (await visitor.get("/now/events")).status == 404
    assert (await site.visitor().get("/now/events", follow=False)).status == 303


async def test_events_end_when_the_proxy_stops(site: ConsoleSite) -> None:
    proxy: Proxy = await site.start()
    events = await watch(site, await signed_in(site))
    await events.until("figures", "In flight")
    await proxy.server.drain()
    await events.end()


async def test_open_pages_are_bounded_and_released(
    site: ConsoleSite, monkeypatch: pytest.MonkeyPatch
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
            again = None
    await again.until("figures", "In flight")
