"""Requests in flight: those over the limit queue, and slow bodies take nothing from others."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from held_stream import Held
from scene import Scene
from served import CHAT_BODY, CHAT_PATH, CHUNKED, anthropic_error, held, in_chunks, openai_error

from tornadoproxy import AuthenticationFailed, Identity, IncomingRequest, hookimpl
from tornadoproxy.testing import (
    Proxy,
    RawConnection,
    RawResponse,
    Response,
    ScriptedUpstream,
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

LENGTH = ("Content-Length", "1000000")


class Clients:
    """Clients of a proxy that admits few requests; each has a connection of its own.

    It is the plugin that authenticates them as well, by the name in ``x-api-key``. No other task
    runs between that and a request's admission or its place in the queue.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._sent = self._asked = 0
        self._changed = asyncio.Event()

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> Identity:
        self._asked += 1
        self._changed.set()
        name = request.headers.get("X-Api-Key", "")
        if name == "stranger":
            raise AuthenticationFailed("Who are you?")
        return Identity(name)

    async def start(self, places: int = 1, **variables: object) -> Proxy:
        """Start a proxy with this many places."""
        return await self._scene.start(plugins=[self], MAX_CONCURRENT_REQUESTS=places, **variables)

    async def send(self, request: bytes) -> RawConnection:
        """Send a request; return its connection once it is admitted or queued."""
        client = await self._scene.send(request)
        self._sent += 1
        while self._asked < self._sent:
            self._changed.clear()
            await self._changed.wait()
        return client

    async def ask(self, request: bytes) -> RawResponse:
        """Return the response to a request."""
        return await (await self.send(request)).response()


@pytest.fixture
def clients(scene: Scene) -> Clients:
    return Clients(scene)


def get(target: str = "/v1/x", name: str = "me") -> bytes:
    return request_bytes("GET", target, {"x-api-key": name})


def post(target: str, body: bytes, name: str = "me") -> bytes:
    return request_bytes("POST", target, {"x-api-key": name}, body)


def upload(name: str, body: bytes = b"", *lines: tuple[str, str]) -> bytes:
    """Return a chunked request, which streams, with this part of its body."""
    return request_bytes("POST", "/v1/messages/x", [("x-api-key", name), CHUNKED, *lines]) + body


def targets(upstream: ScriptedUpstream) -> list[str]:
    return [request.target for request in upstream.requests]


# -- the queue


@pytest.mark.parametrize(
    "queued",
    [
        get(),
        post("/v1/messages", b'{"a": 1}'),
        upload("me", in_chunks(b"abc", 9)),
        post(CHAT_PATH, CHAT_BODY),
    ],
    ids=["no body", "held body", "streamed body", "chat"],
)
async def test_request_over_limit_waits_for_another_to_end(
    queued: bytes, scene: Scene, clients: Clients
) -> None:
    gate = Held(json_response({}))
    await clients.start()
    scene.upstream.script(gate, json_response(message_document("Hi")))
    first = await clients.send(get("/v1/first"))
    await scene.upstream.received()
    second = await clients.send(queued)
    assert targets(scene.upstream) == ["/v1/first"]
    gate.may_begin.set()
    assert (await first.response()).body == b"{}"
    assert (await second.response()).status == 200
    assert b"abc" not in queued or scene.upstream.requests[1].body == b"abc"


async def test_response_of_the_proxys_own_does_not_wait(scene: Scene, clients: Clients) -> None:
    await clients.start(QUEUE_TIMEOUT=100, MAX_BODY_SIZE=100)
    assert (await clients.ask(get("/openai/v1/models"))).status == 200, "cached from now on"
    scene.upstream.script(silent_response())
    await clients.send(get())
    for request, status in [
        (get("/health"), 200),
        (get("/openai/v1/models"), 200),
        (get("/nowhere"), 404),
        (get("/v1/../x"), 400),
        (get(name="stranger"), 401),
        (post("/v1/x", b"x" * 101)[:-101], 413),
    ]:
        client = await scene.raw()
        assert (await client.ask(request)).status == status, request


async def test_queue_timeout_is_529_and_connection_usable(scene: Scene, clients: Clients) -> None:
    gate = Held(json_response({}))
    await clients.start(QUEUE_TIMEOUT=0.05)
    scene.upstream.script(gate)
    first = await clients.send(get())
    client = await clients.send(get(name="late"))
    response = await client.response()
    anthropic_error(response, 529, "overloaded_error")
    assert (response.reason, response.header("Retry-After")) == ("Overloaded", "1")
    record = await scene.records.finished()
    assert (record.outcome, record.status, record.principal) == ("denied", 529, "late")
    assert record.upstream_time is None
    chat = await clients.ask(post(CHAT_PATH, CHAT_BODY))
    openai_error(chat, 503, "server_error")
    assert chat.header("Retry-After") == "1"
    gate.may_begin.set()
    assert (await first.response()).status == 200
    assert (await client.ask(get("/v1/models"))).status == 200
    assert targets(scene.upstream) == ["/v1/x", "/v1/models"]


async def test_principals_of_queued_requests_take_turns(scene: Scene, clients: Clients) -> None:
    gate = Held(json_response({}))
    await clients.start()
    scene.upstream.script(gate)
    sent = [await clients.send(get("/v1/first"))]
    sent += [await clients.send(get(f"/v1/{name}", name[0])) for name in ("a1", "a2", "b1")]
    gate.may_begin.set()
    for client in sent:
        await client.response()
    assert targets(scene.upstream) == ["/v1/first", "/v1/a1", "/v1/b1", "/v1/a2"]


@pytest.mark.parametrize(
    "queued", [get(), post("/v1/x", b"x" * 2_000_000)[:50_000]], ids=["get", "within a body"]
)
async def test_disconnect_while_queued_frees_its_place(
    queued: bytes, scene: Scene, clients: Clients
) -> None:
    gate = Held(json_response({}))
    await clients.start(MAX_QUEUED_REQUESTS=1, QUEUE_TIMEOUT=100)
    scene.upstream.script(gate)
    first = await clients.send(get("/v1/first"))
    await (await clients.send(queued)).reset()
    record = await scene.records.finished()
    assert (record.outcome, record.status, record.principal) == ("abandoned", None, "me")
    last = await clients.send(get("/v1/last"))
    gate.may_begin.set()
    assert (await first.response()).status == 200
    assert (await last.response()).status == 404
    assert targets(scene.upstream) == ["/v1/first", "/v1/last"]
    assert len(scene.records.all) == 3


# -- bodies of requests that queue, and slow ones


async def test_streamed_body_is_neither_read_nor_late_in_queue(
    scene: Scene, clients: Clients
) -> None:
    await clients.start(CLIENT_BODY_TIMEOUT=0.1)
    first, second = [await clients.send(upload(name, b"4\r\nbod")) for name in "ab"]
    third = await clients.send(upload("c", b"", ("Expect", "100-continue")))
    reading = asyncio.create_task(third.read_until(b"\r\n\r\n"))
    assert (await first.response()).status == 408
    assert not reading.done()
    assert (await second.response()).status == 408
    assert (await reading).startswith(b"HTTP/1.1 100 ")
    await third.send(in_chunks(b"body", 9))
    assert (await third.response()).status == 404
    assert scene.upstream.requests[-1].body == b"body"


@pytest.mark.parametrize(
    ("target", "framing"), [("/v1/x", LENGTH), (CHAT_PATH, LENGTH), (CHAT_PATH, CHUNKED)]
)
async def test_slow_held_bodies_take_neither_place_nor_room(
    target: str, framing: tuple[str, str], scene: Scene, clients: Clients
) -> None:
    """50 bodies of one principal, of each of which a byte has arrived."""
    proxy = await clients.start(QUEUE_TIMEOUT=0)
    slow = request_bytes("POST", target, [("x-api-key", "greedy"), framing])
    for _ in range(50):
        await scene.send(slow + b"1\r\n{")
    await held(proxy, 50)
    for name in ("other", "greedy"):
        assert (await scene.ask(post(CHAT_PATH, CHAT_BODY, name))).status == 200
    assert proxy.server.status().held_bytes <= 50 * len(b"1\r\n{")


async def test_uploads_of_one_principal_leave_places(scene: Scene, clients: Clients) -> None:
    await clients.start(places=4, QUEUE_TIMEOUT=0)
    slow = [await clients.send(upload("greedy")) for _ in range(2)]
    await scene.upstream.received(2)
    anthropic_error(await clients.ask(upload("greedy")), 529, "overloaded_error")
    for whole in (upload("b", b"0\r\n\r\n"), get(), post("/v1/x", b"{}")):
        assert (await clients.ask(whole)).status == 404
    # a complete body, or an ended request, is no upload any more
    scene.upstream.script(*[bytes_response(b"ok")] * 2)
    for client in slow:
        await client.send(b"0\r\n\r\n")
        await client.response()
    for _ in range(2):
        await clients.send(upload("greedy"))
    await scene.upstream.received(7)


async def test_held_bodies_of_one_principal_leave_room(scene: Scene, clients: Clients) -> None:
    """One principal gets half of the room, the next half of what is left."""
    proxy = await clients.start(places=9, MAX_HELD_BODIES=80_000)
    for size in (20_000, 40_000):
        await scene.send(post("/v1/x", b"x" * 20_001, "greedy")[:-1])
        await held(proxy, size)
    for name, size, status in (
        ("greedy", 20_000, 529),
        ("other", 20_001, 529),
        ("other", 20_000, 404),
        ("greedy", 1, 404),  # small, and in one piece
        ("other", 40_001, 413),  # more than half of an empty room
    ):
        assert (await scene.ask(post("/v1/x", b"x" * size, name))).status == status


# -- the count of places


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (get(), bytes_response(b"{}")),
        (get(), raw_response(end="reset")),
        (get(), silent_response()),
        (get(), sse_response([event({"type": "ping"})], end="reset")),
        (post("/v1/x", b"{}"), error_response(429, "rate_limit_error", "Slow down.")),
        (upload("me", b"3\r\nabc\r\n0\r\n\r\n"), bytes_response(b"{}")),
        (upload("me", b"3\r\nabc\r\n"), silent_response()),
        (upload("me", b"zz\r\n"), silent_response()),
        (upload("me", b"5b8d80\r\n" + b"x" * 0x5B8D80), silent_response()),
        (post(CHAT_PATH, CHAT_BODY), raw_response(b"garbage\r\n\r\n")),
        (post(CHAT_PATH, b"{"), silent_response()),
    ],
)
async def test_request_that_ends_in_any_way_frees_its_place(
    request_: bytes, response: Response, scene: Scene, clients: Clients
) -> None:
    await clients.start(
        QUEUE_TIMEOUT=0,
        MAX_BODY_SIZE=5_000_000,
        CLIENT_BODY_TIMEOUT=0.05,
        UPSTREAM_FIRST_BYTE_TIMEOUT=0.05,
    )
    scene.upstream.script(response)
    with contextlib.suppress(Truncated):
        await clients.ask(request_)
    await scene.records.finished()
    scene.upstream.script(silent_response())
    await (await clients.send(get("/v1/last"))).reset()
    assert (await scene.records.finished(2)).outcome == "abandoned"
    assert (await scene.ask(get())).status != 529
