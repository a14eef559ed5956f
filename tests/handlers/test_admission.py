"""Requests in flight: those over the limit queue, briefly and fairly."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING

import pytest
from queueing import Clients, Gate, Names, get, is_overloaded, post, targets, upload
from served import CHAT_BODY, CHAT_PATH, in_chunks, openai_error

from tornadoproxy.testing import (
    Truncated,
    bytes_response,
    error_response,
    event,
    json_response,
    message_document,
    raw_response,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from scene import Scene

    from tornadoproxy.testing import (
        OpenRaw,
        RawConnection,
        Response,
        UpstreamExchange,
    )


@pytest.fixture
def clients(raw: OpenRaw) -> Clients:
    return Clients(raw)


# -- the queue


@pytest.mark.parametrize(
    "queued",
    [
        get(),
        post("/v1/messages", b'{"a": 1}'),
        post("/v1/x", b"x" * 3_000_000),
        upload("me", in_chunks(b"abc", 9)),
        post(CHAT_PATH, CHAT_BODY),
    ],
    ids=["no body", "held body", "streamed body", "chunked body", "chat"],
)
async def test_request_over_limit_waits_for_another_to_end(
    scene: Scene, clients: Clients, queued: bytes
) -> None:
    gate = Gate()
    await scene.start(MAX_CONCURRENT_REQUESTS=1, plugins=[clients.names])
    is_chat = CHAT_PATH.encode() in queued
    scene.upstream.script(gate, json_response(message_document("Hi") if is_chat else {}))
    first = await clients.send(get("/v1/first"))
    await scene.upstream.received()
    second = await scene.raw()
    sending = asyncio.create_task(second.send(queued))
    await clients.names.asked(2)
    assert targets(scene.upstream) == ["/v1/first"]
    gate.open.set()
    assert (await first.response()).body == b"{}"
    assert (await second.response()).status == 200
    await sending
    body = b"abc" if b"chunked" in queued else queued.partition(b"\r\n\r\n")[2]
    assert is_chat or scene.upstream.requests[1].body_length == len(body)


async def test_response_of_the_proxys_own_does_not_wait(scene: Scene, clients: Clients) -> None:
    await scene.start(
        MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=100, MAX_BODY_SIZE=100, plugins=[clients.names]
    )
    assert (await clients.ask(get("/openai/v1/models"))).status == 200, "cached from now on"
    scene.upstream.script(silent_response())
    await clients.send(get())
    for request, status in [
        (get("/health"), 200),
        (get("/ready"), 200),
        (get("/openai/v1/models"), 200),
        (get("/nowhere"), 404),
        (get("/v1/../x"), 400),
        (get(name="stranger"), 401),
        (post("/v1/x", b"x" * 101)[:-101], 413),
    ]:
        client = await scene.raw()
        assert (await client.ask(request)).status == status, request


async def test_request_that_is_authenticated_slowly_takes_no_place(
    scene: Scene, clients: Clients
) -> None:
    await scene.start(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=0, plugins=[clients.names])
    slow = await clients.send(get(name="slow"))
    assert (await clients.ask(get("/v1/models"))).status == 200
    clients.names.hanging.set()
    assert (await slow.response()).status == 404


async def test_queue_timeout_is_529_and_connection_usable(scene: Scene, clients: Clients) -> None:
    gate = Gate()
    await scene.start(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=0.05, plugins=[clients.names])
    scene.upstream.script(gate)
    first = await clients.send(get())
    client = await clients.send(get(name="late"))
    response = await client.response()
    assert is_overloaded(response)
    assert response.reason == "Overloaded"
    record = await scene.records.finished()
    assert (record.outcome, record.status, record.principal) == ("denied", 529, "late")
    assert record.upstream_time is None
    chat = await clients.ask(post(CHAT_PATH, CHAT_BODY))
    openai_error(chat, 503, "server_error")
    assert int(chat.header("Retry-After") or "") >= 1
    assert (await scene.records.finished(2)).outcome == "denied"
    gate.open.set()
    assert (await first.response()).status == 200
    assert (await client.ask(get("/v1/models"))).status == 200
    assert targets(scene.upstream) == ["/v1/x", "/v1/models"]


# -- fairness


async def test_principals_of_queued_requests_take_turns(scene: Scene, clients: Clients) -> None:
    gate = Gate()
    await scene.start(MAX_CONCURRENT_REQUESTS=1, plugins=[clients.names])
    scene.upstream.script(gate)
    queued = ["a1", "a2", "b1"]
    sent = [await clients.send(get("/v1/first"))]
    sent += [await clients.send(get(f"/v1/{name}", name[0])) for name in queued]
    gate.open.set()
    for client in sent:
        await client.response()
    turns = ["first", "a1", "b1", "a2"]
    assert targets(scene.upstream) == [f"/v1/{name}" for name in turns]


# -- disconnects, and the drain


async def close(client: RawConnection) -> None:
    await client.close()


async def half_close(client: RawConnection) -> None:
    client.half_close()


async def reset(client: RawConnection) -> None:
    await client.reset()


@pytest.mark.parametrize("disconnect", [close, half_close, reset])
@pytest.mark.parametrize(
    "queued", [get(), post("/v1/x", b"x" * 2_000_000)[:50_000]], ids=["get", "within a body"]
)
async def test_disconnect_while_queued_frees_its_place(
    scene: Scene,
    clients: Clients,
    disconnect: Callable[[RawConnection], Awaitable[None]],
    queued: bytes,
) -> None:
    gate = Gate()
    await scene.start(
        MAX_CONCURRENT_REQUESTS=1, MAX_QUEUED_REQUESTS=1, QUEUE_TIMEOUT=100, plugins=[clients.names]
    )
    scene.upstream.script(gate)
    first = await clients.send(get("/v1/first"))
    await disconnect(await clients.send(queued))
    record = await scene.records.finished()
    assert (record.outcome, record.status, record.principal) == ("abandoned", None, "me")
    last = await clients.send(get("/v1/last"))
    gate.open.set()
    assert (await first.response()).status == 200
    assert (await last.response()).status == 404
    assert targets(scene.upstream) == ["/v1/first", "/v1/last"]
    assert len(scene.records.all) == 3


@pytest.mark.parametrize("in_time", [True, False])
async def test_drain_serves_queue_until_its_timeout(
    scene: Scene, clients: Clients, *, in_time: bool
) -> None:
    gate = Gate()
    timeout = 100 if in_time else 0.05
    proxy = await scene.start(
        MAX_CONCURRENT_REQUESTS=1, DRAIN_TIMEOUT=timeout, plugins=[clients.names]
    )
    scene.upstream.script(gate, bytes_response(b"{}"))
    sent = [await clients.send(get()) for _ in range(2)]
    draining = asyncio.create_task(proxy.server.drain())
    await asyncio.sleep(0)  # it runs up to where it waits for those two
    if in_time:
        gate.open.set()
    responses = [await client.response() for client in sent]
    await draining
    assert [response.status for response in responses] == [200 if in_time else 503] * 2
    assert in_time or all(response.header("Retry-After") for response in responses)
    outcome = "completed" if in_time else "drained"
    assert [record.outcome for record in scene.records.all] == [outcome] * 2
    assert len(scene.upstream.requests) == (2 if in_time else 1)


# -- the count of places

LIMIT = 4

# the upstream's responses, by the request's query
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
    upload("me", b"3\r\nabc\r\n0\r\n\r\n"),
    upload("me", b"3\r\nabc\r\n"),
    upload("me", b"zz\r\n"),
    upload("me", b"5b8d80\r\n" + b"x" * 0x5B8D80),
    post("/v1/x?json", b"body")[:-1],
    request_bytes("POST", "/v1/x?json", {"x-api-key": "me", "Content-Length": "9000000"}),
    post(f"{CHAT_PATH}?json", CHAT_BODY),
    post(CHAT_PATH, b"{"),
    get(CHAT_PATH),
    get(name="stranger"),
    get("/nowhere"),
    get("/v1/../x"),
]


async def respond_by_query(exchange: UpstreamExchange) -> None:
    await RESPONSES[exchange.request.target.partition("?")[2] or "json"](exchange)


async def test_requests_that_end_in_every_way_free_their_places(scene: Scene) -> None:
    names = Names()
    await scene.start(
        MAX_CONCURRENT_REQUESTS=LIMIT,
        MAX_QUEUED_REQUESTS=2 * LIMIT,
        QUEUE_TIMEOUT=0.1,
        MAX_BODY_SIZE=5_000_000,
        CLIENT_BODY_TIMEOUT=0.05,
        UPSTREAM_FIRST_BYTE_TIMEOUT=0.05,
        plugins=[names],
    )
    requests = REQUESTS * 4
    scene.upstream.script(*[respond_by_query] * (len(requests) + LIMIT))
    chosen = random.Random(4)
    chosen.shuffle(requests)
    at_once = asyncio.Semaphore(4 * LIMIT)

    async def run(number: str, request: bytes, patience: str) -> None:
        line, _, rest = request.partition(b"\r\n")
        async with at_once:
            client = await scene.raw()
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
    await scene.records.finished(len(requests))
    outcomes = {record.outcome for record in scene.records.all}
    assert outcomes == {"completed", "denied", "failed", "abandoned"}
    assert any(record.status == 529 for record in scene.records.all)

    # as many as ever are served at once, and one more is not
    count = len(scene.upstream.requests)
    for _ in range(LIMIT):
        await (await scene.raw()).send(get("/v1/x?held"))
    await scene.upstream.received(count + LIMIT)
    assert is_overloaded(await (await scene.raw()).ask(get("/v1/x?json")))
    assert len(scene.records.all) == len(requests) + 1
    assert len(scene.upstream.requests) == count + LIMIT
