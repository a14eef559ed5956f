"""Bodies of requests that queue, and slow bodies, which take no place or room from others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from queueing import Clients, Gate, Names, get, is_overloaded, post, upload
from served import CHAT_BODY, CHAT_PATH, CHUNKED, in_chunks

from tornadoproxy import hookimpl
from tornadoproxy.testing import bytes_response, request_bytes

if TYPE_CHECKING:
    from scene import Scene

    from tornadoproxy.testing import OpenRaw

LENGTH = ("Content-Length", "1000000")


@pytest.fixture
def clients(raw: OpenRaw) -> Clients:
    return Clients(raw)


async def test_streamed_body_is_not_read_while_queued(scene: Scene, clients: Clients) -> None:
    gate = Gate()
    await scene.start(MAX_CONCURRENT_REQUESTS=1, plugins=[clients.names])
    scene.upstream.script(gate)
    await clients.send(get())
    client = await clients.send(upload("me", b"", ("Expect", "100-continue")))
    reading = asyncio.create_task(client.read(1))
    await (await scene.raw()).ask(get("/health"))
    assert not reading.done()
    gate.open.set()
    assert (await reading + await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    await client.send(in_chunks(b"body", 9))
    assert (await client.response()).status == 404
    assert scene.upstream.requests[1].body == b"body"


async def test_body_timeout_begins_after_the_queue(scene: Scene, clients: Clients) -> None:
    await scene.start(MAX_CONCURRENT_REQUESTS=1, CLIENT_BODY_TIMEOUT=0.1, plugins=[clients.names])
    first = await clients.send(upload("a", b"4\r\nbod"))
    second = await clients.send(upload("b", b"4\r\nbod"))
    third = await clients.send(upload("c", b"", ("Expect", "100-continue")))
    assert (await first.response()).status == 408
    assert (await second.response()).status == 408
    assert (await third.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    await third.send(in_chunks(b"body", 9))
    assert (await third.response()).status == 404
    assert scene.upstream.requests[-1].body == b"body"


@pytest.mark.parametrize(
    ("target", "framing"),
    [
        ("/v1/x", LENGTH),
        *(("/v1/messages", LENGTH), ("/v1/messages", CHUNKED)),
        *((CHAT_PATH, LENGTH), (CHAT_PATH, CHUNKED)),
    ],
)
async def test_slow_held_bodies_take_neither_place_nor_room(
    target: str, framing: tuple[str, str], scene: Scene
) -> None:
    """50 bodies of one principal, of each of which a byte has arrived."""

    class Authorizer:
        @hookimpl
        def authorize(self) -> None:
            """Have the body of each message held."""

    plugins = [Names(), Authorizer()]
    proxy = await scene.start(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=0, plugins=plugins)
    slow = request_bytes("POST", target, [("x-api-key", "greedy"), framing])
    for _ in range(50):
        await (await scene.raw()).send(slow + b"1\r\n{")
    while proxy.server.status().held_bytes < 50:
        await asyncio.sleep(0)
    for name in ("other", "greedy"):
        assert (await (await scene.raw()).ask(post(CHAT_PATH, CHAT_BODY, name))).status == 200
    assert proxy.server.status().held_bytes <= 50 * len(b"1\r\n{")


async def test_uploads_of_one_principal_leave_places(scene: Scene, clients: Clients) -> None:
    await scene.start(MAX_CONCURRENT_REQUESTS=4, QUEUE_TIMEOUT=0, plugins=[clients.names])
    slow = [await clients.send(upload("greedy")) for _ in range(2)]
    await scene.upstream.received(2)
    assert is_overloaded(await clients.ask(upload("greedy")))
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


async def test_held_bodies_of_one_principal_leave_room(scene: Scene) -> None:
    """One principal gets half of the room, the next half of what is left."""
    proxy = await scene.start(MAX_HELD_BODIES=80_000, plugins=[Names()])
    for held in (20_000, 40_000):
        await (await scene.raw()).send(post("/v1/x", b"x" * 20_001, "greedy")[:-1])
        while proxy.server.status().held_bytes < held:
            await asyncio.sleep(0)
    for name, size, status in (
        ("greedy", 20_000, 529),
        ("other", 20_001, 529),
        ("other", 20_000, 404),
        ("greedy", 1, 404),  # small, and in one piece
        ("other", 40_001, 413),  # more than half of an empty room
    ):
        client = await scene.raw()
        assert (await client.ask(post("/v1/x", b"x" * size, name))).status == status
