"""Requests in flight: one over the limit waits for its turn, in a queue that is short and fair."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tornadoproxy import AuthenticationFailed, Identity, hookimpl
from tornadoproxy.errors import Overloaded
from tornadoproxy.handlers.admission import Admission, FairThread, Turn
from tornadoproxy.testing import (
    Truncated,
    bytes_response,
    error_response,
    event,
    json_response,
    raw_response,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tornado.httputil import HTTPHeaders

    from tornadoproxy import IncomingRequest
    from tornadoproxy.testing import (
        OpenRaw,
        RawConnection,
        Records,
        Response,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

CHAT = b'{"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "Hi"}]}'


class Names:
    """Lets everybody in under the name that is sent as ``x-api-key``, and takes note of them.

    Between this and being admitted, or queued, no other task runs: who was asked is where it is to
    be by the time that a test hears of it.
    """

    def __init__(self) -> None:
        self._heads: list[HTTPHeaders] = []
        self._changed = asyncio.Event()
        self.hanging = asyncio.Event()

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> Identity | Awaitable[Identity]:
        name = request.headers.get("X-Api-Key", "")
        self._heads.append(request.headers)
        self._changed.set()
        self._changed = asyncio.Event()
        if name == "stranger":
            raise AuthenticationFailed("Who are you?")
        return self._hang(name) if name == "slow" else Identity(name)

    async def asked(self, count: int) -> None:
        """Wait until so many requests have come."""
        while len(self._heads) < count:
            await self._changed.wait()

    async def asked_for(self, number: str) -> None:
        """Wait until the request with this ``X-Number`` has come."""
        while all(head.get("X-Number") != number for head in self._heads):
            await self._changed.wait()

    async def _hang(self, name: str) -> Identity:
        await self.hanging.wait()
        return Identity(name)


class Gate:
    """An answer that comes when it is told to."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.body()
        await self.open.wait()
        await exchange.head(200, {"Content-Length": "2"})
        await exchange.send(b"{}")


def get(target: str = "/v1/x", name: str = "me") -> bytes:
    return request_bytes("GET", target, {"x-api-key": name})


def post(target: str, body: bytes, name: str = "me", **headers: str) -> bytes:
    lines = {"x-api-key": name, **{key.replace("_", "-"): value for key, value in headers.items()}}
    return request_bytes("POST", target, lines, body)


async def ask(raw: OpenRaw, names: Names, count: int, request: bytes) -> RawConnection:
    """Send a request on a connection of its own, the `count`-th; return when it is admitted."""
    client = await raw()
    await client.send(request)
    await names.asked(count)
    return client


def targets(upstream: ScriptedUpstream) -> list[str]:
    return [request.target for request in upstream.requests]


# -- its turn comes


@pytest.mark.parametrize(
    "waiting",
    [
        get(),
        post("/v1/messages", b'{"a": 1}'),
        post("/v1/x", b"x" * 3_000_000),
        request_bytes("POST", "/v1/x", {"x-api-key": "me", "Transfer-Encoding": "chunked"})
        + b"3\r\nabc\r\n0\r\n\r\n",
    ],
    ids=["no body", "held body", "streamed body", "chunked body"],
)
async def test_one_too_many_waits_and_is_served_when_another_ends(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, waiting: bytes
) -> None:
    names, gate = Names(), Gate()
    await start_proxy(MAX_CONCURRENT_REQUESTS=1, plugins=[names])
    upstream.script(gate, json_response({"second": True}))
    first = await ask(raw, names, 1, get("/v1/first"))
    second = await raw()
    sending = asyncio.create_task(second.send(waiting))
    await names.asked(2)
    await upstream.received()

    gate.open.set()

    assert (await first.response()).body == b"{}"
    assert json.loads((await second.response()).body) == {"second": True}
    await sending
    body = waiting.partition(b"\r\n\r\n")[2]
    assert upstream.requests[1].body_length == (3 if body.startswith(b"3\r\n") else len(body))


async def test_chat_completions_wait_as_well(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    names, gate = Names(), Gate()
    await start_proxy(MAX_CONCURRENT_REQUESTS=1, plugins=[names])
    upstream.script(gate)
    first = await ask(raw, names, 1, get("/v1/first"))
    await upstream.received()
    chat = await ask(raw, names, 2, post("/openai/v1/chat/completions", CHAT))
    second = await ask(raw, names, 3, get("/v1/models"))
    assert targets(upstream) == ["/v1/first"]

    gate.open.set()

    assert (await first.response()).status == 200
    assert json.loads((await chat.response()).body)["object"] == "chat.completion"
    assert (await second.response()).status == 200
    assert targets(upstream) == ["/v1/first", "/v1/messages", "/v1/models"]


async def test_nobody_waits_for_what_does_not_go_upstream(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """Probes, the cached list of models, what is not there, who is not let in, what is too large:
    they are answered while the only place is taken and a hundred seconds of waiting allowed."""
    names = Names()
    await start_proxy(
        MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=100, MAX_BODY_SIZE=100, plugins=[names]
    )
    client = await raw()
    await client.send(get("/openai/v1/models"))
    assert (await client.response()).status == 200
    upstream.script(silent_response())
    await ask(raw, names, 2, get())

    for request, status in [
        (get("/health"), 200),
        (get("/ready"), 200),
        (get("/openai/v1/models"), 200),
        (get("/nowhere"), 404),
        (get("/v1/../x"), 400),
        (get(name="stranger"), 401),
        (post("/v1/x", b"x" * 101)[:-101], 413),
    ]:
        client = await raw()
        await client.send(request)
        assert (await client.response()).status == status, request


async def test_whom_an_authenticator_has_not_decided_on_takes_no_place(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    names = Names()
    await start_proxy(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=0, plugins=[names])
    slow = await ask(raw, names, 1, get(name="slow"))
    client = await ask(raw, names, 2, get("/v1/models"))
    assert (await client.response()).status == 200
    names.hanging.set()
    assert (await slow.response()).status == 404


# -- its body meanwhile


def upload(name: str, body: bytes = b"", **headers: str) -> bytes:
    """A chunked request, which streams; `body` is what is sent of it."""
    lines = {"x-api-key": name, "Transfer-Encoding": "chunked", **headers}
    return request_bytes("POST", "/v1/messages/x", lines) + body


async def test_streamed_body_is_not_asked_for_before_its_turn(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    names, gate = Names(), Gate()
    await start_proxy(MAX_CONCURRENT_REQUESTS=1, plugins=[names])
    upstream.script(gate)
    await ask(raw, names, 1, get())
    client = await ask(raw, names, 2, upload("me", Expect="100-continue"))
    reading = asyncio.create_task(client.read(1))
    other = await raw()
    await other.send(get("/health"))
    await other.response()
    assert not reading.done()

    gate.open.set()

    assert (await reading + await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    await client.send(b"4\r\nbody\r\n0\r\n\r\n")
    assert (await client.response()).status == 404
    assert upstream.requests[1].body == b"body"


async def test_streamed_body_that_waits_for_its_turn_does_not_stall(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """CLIENT_BODY_TIMEOUT runs from the turn on: the third has waited for twice that time."""
    names = Names()
    await start_proxy(MAX_CONCURRENT_REQUESTS=1, CLIENT_BODY_TIMEOUT=0.4, plugins=[names])
    first = await ask(raw, names, 1, upload("a", b"4\r\nbod"))
    second = await ask(raw, names, 2, upload("b", b"4\r\nbod"))
    third = await ask(raw, names, 3, upload("c", Expect="100-continue"))

    assert (await first.response()).status == 408
    assert (await second.response()).status == 408
    assert (await third.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    await third.send(b"4\r\nbody\r\n0\r\n\r\n")
    assert (await third.response()).status == 404
    assert upstream.requests[-1].body == b"body"


# -- slow bodies


class Anything:
    """Authorizes every request, so that the body of each message is held."""

    @hookimpl
    def authorize(self) -> None:
        """Have no objection."""


@pytest.mark.parametrize(
    ("target", "framing"),
    [
        ("/v1/x", "Content-Length"),
        ("/v1/messages", "Content-Length"),
        ("/v1/messages", "Transfer-Encoding"),
        ("/openai/v1/chat/completions", "Content-Length"),
        ("/openai/v1/chat/completions", "Transfer-Encoding"),
    ],
)
async def test_slow_held_bodies_take_neither_places_nor_room(
    target: str, framing: str, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """50 bodies of one principal, of each of which a byte has come."""
    proxy = await start_proxy(
        MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=0, plugins=[Names(), Anything()]
    )
    value = {"Content-Length": "1000000", "Transfer-Encoding": "chunked"}[framing]
    slow = request_bytes("POST", target, {"x-api-key": "greedy", framing: value})
    for _ in range(50):
        await (await raw()).send(slow + b"1\r\n{")
    while proxy.server.status().held_bytes < 50:
        await asyncio.sleep(0)
    for name in ("other", "greedy"):
        client = await raw()
        await client.send(post("/openai/v1/chat/completions", CHAT, name))
        assert (await client.response()).status == 200
    assert proxy.server.status().held_bytes <= 50 * len(b"1\r\n{")


async def test_uploads_of_one_principal_leave_places_free(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    names = Names()
    await start_proxy(MAX_CONCURRENT_REQUESTS=4, QUEUE_TIMEOUT=0, plugins=[names])
    slow = [await ask(raw, names, number, upload("greedy")) for number in (1, 2)]
    await upstream.received(2)
    refused = await ask(raw, names, 3, upload("greedy"))
    response = await refused.response()
    assert (response.status, response.header("Retry-After")) == (529, "1")

    for number, whole in enumerate((upload("b", b"0\r\n\r\n"), get(), post("/v1/x", b"{}")), 4):
        assert (await (await ask(raw, names, number, whole)).response()).status == 404
    # one that is whole is an upload no more, and one that is over is none
    upstream.script(*[bytes_response(b"ok")] * 2)
    for client in slow:
        await client.send(b"0\r\n\r\n")
        await client.response()
    for number in (7, 8):
        await ask(raw, names, number, upload("greedy"))
    await upstream.received(7)


async def test_held_bodies_of_one_principal_leave_room(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """One gets half of the room, the next half of what is left."""
    proxy = await start_proxy(MAX_HELD_BODIES=80_000, plugins=[Names()])
    for held in (20_000, 40_000):
        await (await raw()).send(post("/v1/x", b"x" * 20_001, "greedy")[:-1])
        while proxy.server.status().held_bytes < held:
            await asyncio.sleep(0)
    for name, size, status in (
        ("greedy", 20_000, 529),
        ("other", 20_001, 529),
        ("other", 20_000, 404),
        ("greedy", 1, 404),  # it comes in one piece, and is small
        ("other", 40_001, 413),  # it would not fit into an empty room either
    ):
        client = await raw()
        await client.send(post("/v1/x", b"x" * size, name))
        assert (await client.response()).status == status


# -- its turn does not come


async def test_when_the_time_is_over_it_is_529_and_the_connection_serves_on(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    names, gate = Names(), Gate()
    await start_proxy(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=0.1, plugins=[names])
    upstream.script(gate)
    first = await ask(raw, names, 1, get())
    client = await raw()
    for number in (1, 2):
        await client.send(get(name="late"))
        response = await client.response()
        assert (response.status, response.reason) == (529, "Overloaded")
        assert json.loads(response.body)["error"]["type"] == "overloaded_error"
        assert int(response.header("Retry-After") or "") >= 1
        record = await records.finished(number)
        assert (record.outcome, record.status, record.principal) == ("denied", 529, "late")
        assert record.upstream_time is None
    gate.open.set()
    assert (await first.response()).status == 200
    await client.send(get("/v1/models"))
    assert (await client.response()).status == 200
    assert targets(upstream) == ["/v1/x", "/v1/models"]


async def test_when_the_time_is_over_it_is_503_in_the_other_dialect(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    names = Names()
    await start_proxy(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=0.1, plugins=[names])
    upstream.script(silent_response())
    await ask(raw, names, 1, get())
    client = await ask(raw, names, 2, post("/openai/v1/chat/completions", CHAT))
    response = await client.response()
    assert response.status == 503
    assert json.loads(response.body)["error"]["type"] == "server_error"
    assert int(response.header("Retry-After") or "") >= 1
    assert (await records.finished()).outcome == "denied"


async def test_a_full_queue_refuses_at_once_and_keeps_those_that_wait(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    names, gate = Names(), Gate()
    await start_proxy(
        MAX_CONCURRENT_REQUESTS=1, MAX_QUEUED_REQUESTS=2, QUEUE_TIMEOUT=100, plugins=[names]
    )
    upstream.script(gate)
    clients = [await ask(raw, names, number, get(f"/v1/{number}")) for number in (1, 2, 3)]
    one_more = await ask(raw, names, 4, get("/v1/4"))
    response = await one_more.response()
    assert response.status == 529
    assert int(response.header("Retry-After") or "") >= 1
    gate.open.set()
    assert [(await client.response()).status for client in clients] == [200, 404, 404]
    assert targets(upstream) == ["/v1/1", "/v1/2", "/v1/3"]


# -- it is fair


async def test_principals_take_turns_and_within_one_the_first_comes_first(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    names, gate = Names(), Gate()
    await start_proxy(MAX_CONCURRENT_REQUESTS=1, plugins=[names])
    upstream.script(gate)
    clients = [await ask(raw, names, 1, get("/v1/first"))]
    waiting = ["a1", "a2", "a3", "a4", "b1", "c1", "b2", "a5"]
    for number, name in enumerate(waiting, 2):
        clients.append(await ask(raw, names, number, get(f"/v1/{name}", name[0])))

    gate.open.set()

    for client in clients:
        await client.response()
    turns = ["first", "a1", "b1", "c1", "a2", "b2", "a3", "a4", "a5"]
    assert targets(upstream) == [f"/v1/{name}" for name in turns]


async def test_principal_with_fewest_places_goes_first(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    names, gates = Names(), [Gate() for _ in range(3)]
    await start_proxy(MAX_CONCURRENT_REQUESTS=3, plugins=[names])
    upstream.script(*gates)
    for number, name in enumerate(("a0", "a1", "b0"), 1):
        await ask(raw, names, number, get(f"/v1/{name}", name[0]))
        await upstream.received(number)
    for number, name in enumerate(("a2", "a3", "b1", "c0"), 4):
        upstream.script(silent_response())
        await ask(raw, names, number, get(f"/v1/{name}", name[0]))
    for number, name in enumerate(("c0", "a2", "b1"), 3):
        gates[number - 3].open.set()
        await upstream.received(number + 1)
        assert targets(upstream)[-1] == f"/v1/{name}"


async def test_whoever_fills_the_queue_does_not_keep_the_others_out(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """The newest of the one with the most gives way, until they have equally many."""
    names, gate = Names(), Gate()
    await start_proxy(
        MAX_CONCURRENT_REQUESTS=1, MAX_QUEUED_REQUESTS=4, QUEUE_TIMEOUT=100, plugins=[names]
    )
    upstream.script(gate)
    count = 0

    async def come(name: str) -> RawConnection:
        nonlocal count
        count += 1
        return await ask(raw, names, count, get(f"/v1/{name}", name[0]))

    clients = {name: await come(name) for name in ("a0", "a1", "a2", "a3", "a4")}
    for name, gives_way in [("b1", "a4"), ("b2", "a3"), ("b3", "b3"), ("a5", "a5")]:
        clients[name] = await come(name)
        refused = await clients.pop(gives_way).response()
        assert refused.status == 529
        assert int(refused.header("Retry-After") or "") >= 1
    clients["c1"] = await come("c1")
    assert (await clients.pop("a2").response()).status == 529
    # one each, or one more than somebody: nobody gives way to a newcomer any more
    clients["d1"] = await come("d1")
    assert (await clients.pop("b2").response()).status == 529
    assert (await (await come("e1")).response()).status == 529

    gate.open.set()

    for client in clients.values():
        await client.response()
    assert targets(upstream) == [f"/v1/{name}" for name in ("a0", "a1", "b1", "c1", "d1")]


# -- its client leaves


async def _close(client: RawConnection) -> None:
    await client.close()


async def _half_close(client: RawConnection) -> None:
    client.half_close()


async def _reset(client: RawConnection) -> None:
    await client.reset()


@pytest.mark.parametrize("leave", [_close, _half_close, _reset])
@pytest.mark.parametrize(
    "request_", [get(), post("/v1/x", b"x" * 2_000_000)[:50_000]], ids=["get", "within a body"]
)
async def test_who_leaves_gives_its_turn_up_at_once(
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    leave: Callable[[RawConnection], Awaitable[None]],
    request_: bytes,
) -> None:
    names, gate = Names(), Gate()
    await start_proxy(
        MAX_CONCURRENT_REQUESTS=1, MAX_QUEUED_REQUESTS=1, QUEUE_TIMEOUT=100, plugins=[names]
    )
    upstream.script(gate)
    first = await ask(raw, names, 1, get("/v1/first"))
    client = await ask(raw, names, 2, request_)

    await leave(client)

    async with asyncio.timeout(1):
        record = await records.finished()
    assert (record.outcome, record.status, record.principal) == ("abandoned", None, "me")
    # and there is room in the queue again
    last = await ask(raw, names, 3, get("/v1/last"))
    gate.open.set()
    assert (await first.response()).status == 200
    assert (await last.response()).status == 404
    assert targets(upstream) == ["/v1/first", "/v1/last"]
    assert len(records.all) == 3


async def test_a_place_is_not_lost_on_one_who_leaves_as_it_is_handed_over(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    names = Names()
    await start_proxy(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=100, plugins=[names])
    for round_ in range(30):
        upstream.script(silent_response())
        count = len(upstream.requests)
        first = await ask(raw, names, 3 * round_ + 1, get("/v1/first"))
        await upstream.received(count + 1)
        leaving = await ask(raw, names, 3 * round_ + 2, get("/v1/leaving"))
        last = await ask(raw, names, 3 * round_ + 3, get("/v1/last"))
        await (first.reset() if round_ % 2 else leaving.reset())
        await (leaving.reset() if round_ % 2 else first.reset())
        assert (await last.response()).status == 404


# -- the process stops


async def test_those_that_wait_are_served_while_it_drains(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    names, gate = Names(), Gate()
    proxy = await start_proxy(MAX_CONCURRENT_REQUESTS=1, DRAIN_TIMEOUT=100, plugins=[names])
    upstream.script(gate, bytes_response(b"second"))
    clients = [await ask(raw, names, number, get()) for number in (1, 2)]

    draining = asyncio.create_task(proxy.server.drain())
    await asyncio.sleep(0)  # it runs up to where it waits for those two
    gate.open.set()

    assert (await clients[0].response()).status == 200
    assert (await clients[1].response()).body == b"second"
    await draining
    assert [record.outcome for record in records.all] == ["completed", "completed"]


async def test_those_that_wait_are_refused_when_its_time_is_over(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    names = Names()
    proxy = await start_proxy(
        MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=100, DRAIN_TIMEOUT=0.1, plugins=[names]
    )
    upstream.script(silent_response())
    clients = [await ask(raw, names, number, get()) for number in (1, 2, 3)]

    await proxy.server.drain()

    responses = [await client.response() for client in clients]
    assert [response.status for response in responses] == [503, 503, 503]
    assert all(response.header("Retry-After") for response in responses)
    assert [record.outcome for record in records.all] == ["drained"] * 3
    assert len(upstream.requests) == 1


# -- it counts right


LIMIT = 4


def _chunked(target: str, body: bytes) -> bytes:
    lines = {"x-api-key": "me", "Transfer-Encoding": "chunked"}
    return request_bytes("POST", target, lines) + body


# what the upstream answers, by the request's query
RESPONSES: dict[str, Response] = {
    "json": bytes_response(b"{}"),
    "events": sse_response([event({"type": "ping"})]),
    "error": error_response(429, "rate_limit_error", "Slow down."),
    "reset": raw_response(end="reset"),
    "garbage": raw_response(b"garbage\r\n\r\n"),
    "cut": sse_response([event({"type": "ping"})], end="reset"),
    "silent": silent_response(),
    "held": sse_response([event({"type": "ping"})], end="hang"),
}
REQUESTS = [
    *(get(f"/v1/x?{kind}") for kind in RESPONSES if kind != "held"),
    request_bytes("HEAD", "/v1/x?json", {"x-api-key": "me"}),
    post("/v1/x?json", b"{}"),
    post("/v1/x?json", b"x" * 2_000_000),
    post("/v1/x?reset", b"x" * 2_000_000),
    _chunked("/v1/x?json", b"3\r\nabc\r\n0\r\n\r\n"),
    _chunked("/v1/x?json", b"3\r\nabc\r\n"),
    _chunked("/v1/x?json", b"zz\r\n"),
    _chunked("/v1/x?json", b"5b8d80\r\n" + b"x" * 0x5B8D80),
    post("/v1/x?json", b"body")[:-1],
    post("/v1/x?json", b"", Content_Length="9000000"),
    post("/openai/v1/chat/completions?json", CHAT),
    post("/openai/v1/chat/completions", b"{"),
    get("/openai/v1/chat/completions"),
    get(name="stranger"),
    get("/nowhere"),
    get("/v1/../x"),
]


async def _respond_by_query(exchange: UpstreamExchange) -> None:
    await RESPONSES[exchange.request.target.partition("?")[2] or "json"](exchange)


async def test_hundreds_that_end_in_every_way_leave_every_place_free_and_no_more(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    names = Names()
    await start_proxy(
        MAX_CONCURRENT_REQUESTS=LIMIT,
        MAX_QUEUED_REQUESTS=2 * LIMIT,
        QUEUE_TIMEOUT=0.3,
        MAX_BODY_SIZE=5_000_000,
        CLIENT_BODY_TIMEOUT=0.1,
        UPSTREAM_FIRST_BYTE_TIMEOUT=0.1,
        plugins=[names],
    )
    requests = REQUESTS * 12
    upstream.script(*[_respond_by_query] * (len(requests) + LIMIT))
    chosen = random.Random(4)
    chosen.shuffle(requests)
    at_once = asyncio.Semaphore(4 * LIMIT)

    async def run(number: str, request: bytes, patience: str) -> None:
        line, _, rest = request.partition(b"\r\n")
        async with at_once:
            client = await raw()
            with contextlib.suppress(ConnectionError, Truncated):
                await client.send(b"%b\r\nX-Number: %b\r\n%b" % (line, number.encode(), rest))
                if patience == "none":
                    await names.asked_for(number)
                    await client.reset()
                elif patience == "little":
                    await client.read(1)
                    await client.reset()
                else:
                    await client.response(to_head=line.startswith(b"HEAD"))
                    await client.close()

    patience = chosen.choices(["all", "all", "none", "little"], k=len(requests))
    numbered = zip(map(str, range(len(requests))), requests, patience, strict=True)
    await asyncio.gather(*(run(*each) for each in numbered))
    await records.finished(len(requests))
    outcomes = {record.outcome for record in records.all}
    assert outcomes == {"completed", "denied", "failed", "abandoned"}
    assert any(record.status == 529 for record in records.all)

    # as many as ever are served at once, and one more is not
    count = len(upstream.requests)
    for _ in range(LIMIT):
        client = await raw()
        await client.send(get("/v1/x?held"))
    await upstream.received(count + LIMIT)
    one_more = await raw()
    await one_more.send(get("/v1/x?json"))
    assert (await one_more.response()).status == 529
    assert len(records.all) == len(requests) + 1
    assert len(upstream.requests) == count + LIMIT


# -- the queue by itself


async def test_thread_works_for_principals_in_turn() -> None:
    thread, go_on, done = FairThread(), threading.Event(), list[int]()

    def work(number: int) -> int:
        assert go_on.wait(10)
        done.append(number)
        return number

    tasks = [
        asyncio.create_task(thread.run(principal, work, number))
        for number, principal in enumerate(("greedy",) * 4 + ("other",))
    ]
    await asyncio.sleep(0)
    for gone in (tasks[0], tasks[1]):  # at work, and waiting
        gone.cancel()
    go_on.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[2:] == [2, 3, 4]
    assert done == [0, 4, 2, 3]
    assert await thread.run("greedy", work, 5) == 5
    thread.close()


async def test_a_handed_place_goes_on_if_its_request_is_over_before_it_heard_of_it() -> None:
    admission = Admission(1, max_waiting=3, timeout=100)
    assert admission.enter("a")
    leaving, staying = admission.queue("a"), admission.queue("a")
    admission.leave("a")
    assert leaving.has_place
    admission.withdraw(leaving)
    assert staying.has_place
    admission.withdraw(staying)
    admission.withdraw(staying)
    assert admission.enter("a")
    assert not admission.enter("a")


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("eqlw"), st.integers(0, 9)), max_size=60))
def test_there_are_never_too_many_and_never_a_free_place_while_somebody_waits(
    steps: list[tuple[str, int]],
) -> None:
    """Requests come, leave while they wait, and end, in any order; at the end all have ended."""

    async def run() -> None:
        limit, room = 2, 4
        admission = Admission(limit, max_waiting=room, timeout=100)
        served: list[str] = []
        turns: list[Turn] = []

        def enter(principal: str) -> bool:
            if not admission.enter(principal):
                return False
            served.append(principal)
            return True

        for step, number in steps:
            principal = "abc"[number % 3]
            if step == "e":
                enter(principal)
            elif step == "q" and not enter(principal):
                with contextlib.suppress(Overloaded):
                    turns.append(admission.queue(principal))
            elif step == "l" and served:
                admission.leave(served.pop(number % len(served)))
            elif step == "w" and turns:
                admission.withdraw(turns.pop(number % len(turns)))
            with_place = len(served) + sum(turn.has_place for turn in turns)
            waiting = [turn for turn in turns if not turn.has_place and not turn.refused]
            assert with_place <= limit
            assert len(waiting) <= room
            assert with_place == limit or not waiting
        for turn in turns:
            admission.withdraw(turn)
        for principal in served:
            admission.leave(principal)
        assert [admission.enter("a") for _ in range(limit + 1)] == [True, True, False]

    asyncio.run(run())
