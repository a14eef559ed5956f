"""Clients that disconnect: their upstream requests end within a second, recorded once each.

They close, close one direction only, or reset; what they left unread makes no difference.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest
import trustme
from served import (
    EVENT_STREAM,
    EVENTS,
    MESSAGE,
    MESSAGE_BODY,
    MODELS,
    UPLOAD,
    chunks,
    full_backlog,
    request,
)

from tornadoproxy.testing import (
    RawConnection,
    ScriptedUpstream,
    json_response,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from pathlib import Path

    from scene import Scene

    from tornadoproxy import RequestRecord
    from tornadoproxy.testing import (
        Proxy,
        Records,
        StartProxy,
        UpstreamExchange,
    )

pytestmark = [
    pytest.mark.usefixtures("no_errors_logged", "proxy"),
    pytest.mark.skipif(
        sys.platform != "linux", reason="needs EPOLLRDHUP to see past unread bytes, and /proc"
    ),
]

BEGUN = sse_response(EVENTS[:3], end="hang")


async def half_close(client: RawConnection) -> None:
    client.half_close()


WAYS = (RawConnection.close, half_close, RawConnection.reset)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def all_closed(before: int) -> None:
    async with asyncio.timeout(1):
        while descriptors() > before:
            await asyncio.sleep(0)


async def abandoned(upstream: ScriptedUpstream, records: Records, count: int = 1) -> RequestRecord:
    """Return the last record, of the request whose client has just disconnected."""
    async with asyncio.timeout(1):
        record = await records.finished(count)
        await upstream.all_closed()
    assert len(records.all) == count
    assert record.outcome == "abandoned"
    return record


# -- while the upstream is asked


async def before_head(client: RawConnection, upstream: ScriptedUpstream) -> int | None:
    upstream.script(silent_response())
    await client.send(MESSAGE)
    await (await upstream.received(len(upstream.requests) + 1)).complete()
    return None


async def in_silent_stream(client: RawConnection, upstream: ScriptedUpstream) -> int | None:
    upstream.script(BEGUN)
    await client.send(MESSAGE)
    await client.head()
    assert [await client.chunk() for _ in range(3)] == EVENTS[:3]
    return 200


async def in_flowing_stream(client: RawConnection, upstream: ScriptedUpstream) -> int | None:
    async def endless(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        while True:
            await exchange.chunk(EVENTS[1])
            await exchange.pause()

    upstream.script(endless)
    await client.send(MESSAGE)
    await client.head()
    assert EVENTS[1] in await client.chunk()
    return 200


async def not_reading(client: RawConnection, upstream: ScriptedUpstream) -> int | None:
    """All buffers between the two are full."""
    stalled = asyncio.Event()

    async def endless(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        while True:
            sending = asyncio.create_task(exchange.chunk(bytes(0x10000)))
            if not (await asyncio.wait({sending}, timeout=0.05))[0]:
                stalled.set()
            await sending

    upstream.script(endless)
    await client.send(MESSAGE)
    await stalled.wait()
    return 200


async def uploading(client: RawConnection, upstream: ScriptedUpstream) -> int | None:
    await client.send(UPLOAD + b"3\r\nabc\r\n")
    await upstream.received(len(upstream.requests) + 1)
    return None


async def uploading_length(client: RawConnection, upstream: ScriptedUpstream) -> int | None:
    await client.send(request("POST", "/v1/files", ("Content-Length", "9999999")) + b"abc")
    await upstream.received(len(upstream.requests) + 1)
    return None


async def on_kept_connection(client: RawConnection, upstream: ScriptedUpstream) -> int | None:
    await client.ask(request("GET", "/health"))
    return await before_head(client, upstream)


@pytest.mark.parametrize(
    "stage",
    [
        before_head,
        in_silent_stream,
        in_flowing_stream,
        not_reading,
        uploading,
        uploading_length,
        on_kept_connection,
    ],
)
async def test_disconnect_aborts_the_upstream_request(
    stage: Callable[[RawConnection, ScriptedUpstream], Awaitable[int | None]], scene: Scene
) -> None:
    for count, disconnect in enumerate(WAYS, 1):
        client = await scene.raw(receive_buffer=16_384)
        status = await stage(client, scene.upstream)
        await disconnect(client)
        record = await abandoned(scene.upstream, scene.records, count)
        assert (record.status, record.principal) == (status, "token")
        assert len(scene.upstream.requests) == count
        if "uploading" in stage.__name__:
            assert scene.upstream.requests[-1].body_length <= record.bytes_in
            with pytest.raises(ConnectionError):
                await scene.upstream.requests[-1].complete()


@pytest.mark.parametrize(
    "unread",
    [b"\r\n", MESSAGE, b"G", MESSAGE * 1000],
    ids=["a stray line end", "a pipelined request", "half of one", "more than is read ahead"],
)
@pytest.mark.parametrize("began", [False, True], ids=["before the head", "in the stream"])
async def test_disconnect_behind_unread_bytes_is_noticed(
    began: bool, unread: bytes, scene: Scene
) -> None:
    for count, disconnect in enumerate(WAYS, 1):
        scene.upstream.script(BEGUN if began else silent_response())
        client = await scene.raw()
        await client.send(MESSAGE + unread)
        await scene.upstream.received(count)
        if began:
            await client.head()
        await disconnect(client)
        assert (await abandoned(scene.upstream, scene.records, count)).status == (
            200 if began else None
        )
        assert len(scene.upstream.requests) == count


async def test_disconnect_in_stream_counts_usage_so_far(scene: Scene) -> None:
    client = await scene.raw()
    await in_silent_stream(client, scene.upstream)
    await client.close()
    record = await abandoned(scene.upstream, scene.records)
    assert record.model == "claude-sonnet-5-5"
    assert (record.usage.input_tokens, record.usage.output_tokens) == (10, 1)
    assert (record.bytes_in, record.bytes_out) == (len(MESSAGE_BODY), len(b"".join(EVENTS[:3])))


async def test_reset_while_upstream_does_not_read_upload(scene: Scene) -> None:
    """A FIN would wait behind the bytes that are still on the client's side."""
    disconnected = asyncio.Event()

    async def deaf(exchange: UpstreamExchange) -> None:
        await disconnected.wait()
        await exchange.disconnected()

    scene.upstream.script(deaf)
    client = await scene.raw()
    await client.send(UPLOAD)
    while True:
        sending = asyncio.create_task(client.send(chunks(bytes(0x10000))))
        if not (await asyncio.wait({sending}, timeout=0.1))[0]:
            break
    await client.reset()
    with pytest.raises(ConnectionError):
        await sending
    disconnected.set()
    await abandoned(scene.upstream, scene.records)


async def test_disconnect_while_connecting_closes_everything(scene: Scene) -> None:
    with full_backlog() as port:
        await scene.start(UPSTREAM_BASE_URL=f"http://127.0.0.1:{port}")
        before = descriptors()
        for count, disconnect in enumerate(WAYS, 1):
            client = await scene.raw()
            await client.send(MESSAGE)
            async with asyncio.timeout(5):
                while descriptors() < before + 3:  # the client's two ends, and the one that tries
                    await asyncio.sleep(0)
            await disconnect(client)
            async with asyncio.timeout(1):
                record = await scene.records.finished(count)
            assert (record.outcome, record.status) == ("abandoned", None)
            await client.close()
            await all_closed(before)


# -- before the upstream is asked


async def test_disconnect_within_held_body_asks_no_upstream(scene: Scene, proxy: Proxy) -> None:
    for count, disconnect in enumerate(WAYS, 1):
        client = await scene.raw()
        await client.send(MESSAGE[:-5])
        await scene.ask("/v1/models")  # by now the proxy has read what the first one sent
        await disconnect(client)
        async with asyncio.timeout(1):
            record = await scene.records.finished(2 * count)
        assert (record.outcome, record.status) == ("abandoned", None)
        assert record.bytes_in == len(MESSAGE_BODY) - 5
        assert len(scene.upstream.requests) == count


async def test_disconnect_together_with_request_leaves_nothing(scene: Scene) -> None:
    """The request may never be read."""
    await scene.start(UPSTREAM_KEEPALIVE_TIMEOUT=0)
    before = descriptors()
    for disconnect in WAYS:
        scene.records.all.clear()
        client = await scene.raw()
        await client.send(MESSAGE)
        await disconnect(client)
        assert (await scene.ask("/v1/models")).status == 200  # by now the first one has been seen
        await client.close()
        await all_closed(before)
        *others, last = [(record.route, record.outcome) for record in scene.records.all]
        assert last == ("/v1/models", "completed")
        assert others in ([], [("/v1/messages", "abandoned")])


@pytest.mark.parametrize(
    ("begins", "ends"),
    [(MESSAGE[:-5], MESSAGE[-5:]), (UPLOAD, b"0\r\n\r\n")],
    ids=["held", "chunked"],
)
async def test_disconnect_together_with_end_of_body(
    begins: bytes, ends: bytes, scene: Scene
) -> None:
    async def silent(exchange: UpstreamExchange) -> None:
        await (json_response({}) if exchange.request.method == "GET" else silent_response())(
            exchange
        )

    scene.upstream.script(*[silent] * 6)
    for count, disconnect in enumerate(WAYS, 1):
        client = await scene.raw()
        await client.send(begins)
        await scene.ask("/v1/models")  # by now the head of the first one has been read
        await client.send(ends)
        await disconnect(client)
        async with asyncio.timeout(1):
            assert (await scene.records.finished(2 * count)).outcome == "abandoned"
            for received in scene.upstream.requests:
                if received.method == "POST":
                    await received.disconnected()


async def test_disconnect_between_requests_is_no_request(scene: Scene) -> None:
    before = descriptors()
    for disconnect in WAYS:
        client = await scene.raw()
        await client.ask(request("GET", "/nowhere"))
        await disconnect(client)
        await client.close()
        await all_closed(before)
    assert [record.outcome for record in scene.records.all] == ["denied"] * 3


async def test_disconnect_after_whole_response_is_completed(scene: Scene) -> None:
    client = await scene.raw()
    await client.ask(MODELS)
    await client.reset()
    assert (await scene.records.finished()).outcome == "completed"


# -- TLS


async def start_with_tls(start_proxy: StartProxy, tmp_path: Path) -> ssl.SSLContext:
    """Start a proxy that listens with TLS; return a client's context for it."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    await start_proxy(TLS_CERT=cert, TLS_KEY=key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_disconnect_with_tls_aborts_upstream_request(scene: Scene, tmp_path: Path) -> None:
    context = await start_with_tls(scene.start, tmp_path)
    ways = [(RawConnection.close, b""), (RawConnection.reset, b""), (RawConnection.reset, b"\r\n")]
    for count, (disconnect, unread) in enumerate(ways, 1):
        scene.upstream.script(silent_response())
        client = await scene.raw(ssl=context)
        await client.send(MESSAGE + unread)
        await scene.upstream.received(count)
        await disconnect(client)
        await abandoned(scene.upstream, scene.records, count)


async def test_tls_probe_that_disconnects_logs_nothing(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = await start_with_tls(scene.start, tmp_path)
    probe = request_bytes("GET", "/health")
    for _ in range(20):
        client = await scene.raw(ssl=context)
        await client.send(probe)
        await client.close()
    assert (await (await scene.raw(ssl=context)).ask(probe)).status == 200
    assert [each for each in caplog.records if each.levelname != "DEBUG"] == []
