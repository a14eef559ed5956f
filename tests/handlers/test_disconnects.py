"""Clients that disconnect: their upstream requests end within a second, recorded once each.

They close, close one direction only, or reset; what they left unread makes no difference.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest
from held_stream import Endless, Held
from scene import Scene
from served import EVENTS, MESSAGE, MESSAGE_BODY, UPLOAD, chunks
from tls import OwnTLS

from tornadoproxy import RequestRecord
from tornadoproxy.testing import RawConnection, request_bytes, silent_response, sse_response

pytestmark = [
    pytest.mark.usefixtures("no_errors_logged", "proxy"),
    pytest.mark.skipif(
        sys.platform != "linux", reason="needs EPOLLRDHUP to see past unread bytes, and /proc"
    ),
]

Disconnect: TypeAlias = Callable[[RawConnection], Awaitable[None]]


async def half_close(client: RawConnection) -> None:
    client.half_close()


each_way = pytest.mark.parametrize(
    "disconnect", [RawConnection.close, half_close, RawConnection.reset]
)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def all_closed(before: int) -> None:
    async with asyncio.timeout(1):
        while descriptors() > before:
            await asyncio.sleep(0)


async def abandoned(scene: Scene) -> RequestRecord:
    """Return the only record, of the request whose client has just disconnected."""
    async with asyncio.timeout(1):
        record = await scene.records.finished()
        await scene.upstream.all_closed()
    assert len(scene.records.all) == len(scene.upstream.requests) == 1
    assert record.outcome == "abandoned"
    return record


# -- while the upstream is asked


async def in_silent_stream(client: RawConnection, scene: Scene) -> int | None:
    scene.upstream.script(sse_response(EVENTS[:3], end="hang"))
    await client.send(MESSAGE)
    await client.head()
    assert [await client.chunk() for _ in range(3)] == EVENTS[:3]
    return 200


async def not_reading(client: RawConnection, scene: Scene) -> int | None:
    """All buffers between the two are full."""
    endless = Endless()
    scene.upstream.script(endless)
    await client.send(MESSAGE)
    await endless.stalled.wait()
    return 200


async def uploading(client: RawConnection, scene: Scene) -> int | None:
    await client.send(UPLOAD + b"3\r\nabc\r\n")
    await scene.upstream.received()
    return None


@each_way
@pytest.mark.parametrize("stage", [in_silent_stream, not_reading, uploading])
async def test_disconnect_aborts_the_upstream_request(
    stage: Callable[[RawConnection, Scene], Awaitable[int | None]],
    disconnect: Disconnect,
    scene: Scene,
) -> None:
    client = await scene.raw(receive_buffer=16_384)
    status = await stage(client, scene)
    await disconnect(client)
    record = await abandoned(scene)
    assert (record.status, record.principal) == (status, "token")
    if stage is in_silent_stream:
        assert record.model == "claude-sonnet-5-5"
        assert (record.usage.input_tokens, record.usage.output_tokens) == (10, 1)
        assert record.bytes_out == len(b"".join(EVENTS[:3]))
    elif stage is uploading:
        (received,) = scene.upstream.requests
        assert received.body_length <= record.bytes_in
        with pytest.raises(ConnectionError):
            await received.complete()


@each_way
@pytest.mark.parametrize(
    "unread",
    [b"", b"\r\n", MESSAGE, b"G", MESSAGE * 1000],
    ids=[
        "none",
        "a stray line end",
        "a pipelined request",
        "half of one",
        "more than is read ahead",
    ],
)
async def test_disconnect_behind_unread_bytes_is_noticed(
    unread: bytes, disconnect: Disconnect, scene: Scene
) -> None:
    scene.upstream.script(silent_response())
    client = await scene.send(MESSAGE + unread)
    await scene.upstream.received()
    await disconnect(client)
    assert (await abandoned(scene)).status is None


async def test_reset_while_upstream_does_not_read_upload(scene: Scene) -> None:
    """A FIN would wait behind the bytes that are still on the client's side."""
    deaf = Held(silent_response())
    scene.upstream.script(deaf)
    client = await scene.send(UPLOAD)
    while True:
        sending = asyncio.create_task(client.send(chunks(bytes(0x10000))))
        if not (await asyncio.wait({sending}, timeout=0.1))[0]:
            break
    await client.reset()
    with pytest.raises(ConnectionError):
        await sending
    deaf.may_begin.set()
    await abandoned(scene)


# -- before the upstream is asked


@each_way
async def test_disconnect_within_held_body_asks_no_upstream(
    disconnect: Disconnect, scene: Scene
) -> None:
    client = await scene.send(MESSAGE[:-5])
    await scene.ask("/health")  # by now the proxy has read what the first one sent
    await disconnect(client)
    async with asyncio.timeout(1):
        record = await scene.records.finished()
    assert (record.outcome, record.status) == ("abandoned", None)
    assert record.bytes_in == len(MESSAGE_BODY) - 5
    assert scene.upstream.requests == []


@each_way
async def test_disconnect_together_with_request_leaves_nothing(
    disconnect: Disconnect, scene: Scene
) -> None:
    """The request may never be read."""
    await scene.start(UPSTREAM_KEEPALIVE_TIMEOUT=0)
    before = descriptors()
    client = await scene.send(MESSAGE)
    await disconnect(client)
    assert (await scene.ask("/v1/models")).status == 200  # by now the first one has been seen
    await client.close()
    await all_closed(before)
    *others, last = [(record.route, record.outcome) for record in scene.records.all]
    assert last == ("/v1/models", "completed")
    assert others in ([], [("/v1/messages", "abandoned")])


@pytest.mark.parametrize(
    ("unread", "disconnect"), [(b"", RawConnection.close), (b"\r\n", RawConnection.reset)]
)
async def test_disconnect_with_tls_aborts_upstream_request(
    unread: bytes, disconnect: Disconnect, scene: Scene, own_tls: OwnTLS
) -> None:
    await scene.start(**own_tls.settings)
    scene.upstream.script(silent_response())
    client = await scene.send(MESSAGE + unread, ssl=own_tls.trusting)
    await scene.upstream.received()
    await disconnect(client)
    await abandoned(scene)


async def test_tls_probe_that_disconnects_logs_nothing(
    scene: Scene, own_tls: OwnTLS, caplog: pytest.LogCaptureFixture
) -> None:
    await scene.start(**own_tls.settings)
    probe = request_bytes("GET", "/health")
    for _ in range(20):
        client = await scene.send(probe, ssl=own_tls.trusting)
        await client.close()
    assert (await (await scene.raw(ssl=own_tls.trusting)).ask(probe)).status == 200
    assert [each for each in caplog.records if each.levelname != "DEBUG"] == []
