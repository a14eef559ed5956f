"""A client that goes away ends its upstream request within a second, and is counted once.

However it goes: by FIN, even if it would still read, or by RST; and whatever it left unread.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import trustme

from tornadoproxy import Identity, IncomingRequest, hookimpl
from tornadoproxy.testing import (
    TEST_TOKEN,
    json_response,
    message_document,
    message_events,
    raw_response,
    request_bytes,
    response_head,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tornadoproxy import RequestRecord
    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawConnection,
        Records,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

    Leave = Callable[[RawConnection], Awaitable[None]]

pytestmark = pytest.mark.usefixtures("no_errors_logged")

BODY = b'{"model":"claude-sonnet-5-5","max_tokens":9,"messages":[],"stream":true}'
REQUEST = request_bytes("POST", "/v1/messages", {}, BODY, token=TEST_TOKEN)
MODELS = request_bytes("GET", "/v1/models", token=TEST_TOKEN)
UPLOAD = request_bytes("POST", "/v1/files", {"Transfer-Encoding": "chunked"}, token=TEST_TOKEN)
EVENT_STREAM = [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]
EVENTS = message_events(message_document())
PIECE = bytes(0x10000)


async def close(client: RawConnection) -> None:
    await client.close()


async def half_close(client: RawConnection) -> None:
    client.half_close()


async def reset(client: RawConnection) -> None:
    await client.reset()


LINUX_ONLY = pytest.mark.skipif(
    sys.platform != "linux", reason="needs EPOLLRDHUP to see past unread bytes, or /proc"
)
WAYS = pytest.mark.parametrize("leave", [close, half_close, reset])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def abandoned(
    upstream: ScriptedUpstream, records: Records, *, count: int = 1
) -> RequestRecord:
    """The record of the request that its client has just left, of all `count` so far."""
    async with asyncio.timeout(1):
        await records.finished(count)
        await upstream.all_closed()
    assert len(records.all) == count
    record = records.all[-1]
    assert record.outcome == "abandoned"
    return record


# -- at every stage


@WAYS
async def test_before_the_head(
    leave: Leave, raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    upstream.script(silent_response())
    client = await raw()
    await client.send(REQUEST)
    await (await upstream.received()).complete()
    await leave(client)
    record = await abandoned(upstream, records)
    assert record.status is None
    assert record.principal == "token"
    assert record.bytes_in == len(BODY)


@WAYS
async def test_while_the_upstream_is_silent(
    leave: Leave, raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    """What was used until then is still counted."""
    upstream.script(sse_response(EVENTS[:3], end="hang"))
    client = await raw()
    await client.send(REQUEST)
    await client.head()
    for each in EVENTS[:3]:
        assert await client.chunk() == each
    await leave(client)
    record = await abandoned(upstream, records)
    assert record.status == 200
    assert record.bytes_out == len(b"".join(EVENTS[:3]))
    assert record.model == "claude-sonnet-5-5"
    assert (record.usage.input_tokens, record.usage.output_tokens) == (10, 1)


@WAYS
async def test_in_the_midst_of_the_stream(
    leave: Leave, raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    async def endless(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        while True:
            await exchange.chunk(EVENTS[1])
            await exchange.pause()

    upstream.script(endless)
    client = await raw()
    await client.send(REQUEST)
    await client.head()
    assert EVENTS[1] in await client.chunk()
    await leave(client)
    assert (await abandoned(upstream, records)).status == 200


@WAYS
async def test_while_it_does_not_read(
    leave: Leave, raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    """The upstream has stalled by then, with all buffers between the two full."""
    stalled = asyncio.Event()

    async def endless(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        while True:
            sending = asyncio.create_task(exchange.chunk(PIECE))
            if not (await asyncio.wait({sending}, timeout=0.1))[0]:
                stalled.set()
            await sending

    upstream.script(endless)
    client = await raw(receive_buffer=16_384)
    await client.send(REQUEST)
    await stalled.wait()
    await leave(client)
    assert (await abandoned(upstream, records)).bytes_out > len(PIECE)


@WAYS
@pytest.mark.parametrize(
    "request_head",
    [
        UPLOAD,
        request_bytes("POST", "/v1/files", {"Content-Length": "9999999"}, token=TEST_TOKEN),
    ],
    ids=["chunked", "with a length"],
)
async def test_while_uploading(
    request_head: bytes,
    leave: Leave,
    raw: OpenRaw,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    client = await raw()
    await client.send(request_head + b"3\r\nabc\r\n")
    await upstream.received()
    await leave(client)
    record = await abandoned(upstream, records)
    assert record.status is None
    assert upstream.requests[0].body_length <= record.bytes_in
    with pytest.raises(ConnectionError):
        await upstream.requests[0].complete()


@WAYS
async def test_within_a_body_that_is_held(
    leave: Leave, raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    client = await raw()
    await client.send(REQUEST[:-5])
    other = await raw()
    await other.send(REQUEST)  # when it is answered, what the first one sent has been read too
    await other.response()
    await leave(client)
    async with asyncio.timeout(1):
        record = await records.finished(2)
    assert (record.outcome, record.status) == ("abandoned", None)
    assert record.bytes_in == len(BODY) - 5
    assert len(upstream.requests) == 1


async def test_while_uploading_to_an_upstream_that_does_not_read(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    """By RST: a FIN waits behind the bytes that nobody takes, still on the client's side."""
    left = asyncio.Event()

    async def deaf(exchange: UpstreamExchange) -> None:
        await left.wait()
        await exchange.gone()

    upstream.script(deaf)
    client = await raw()
    await client.send(UPLOAD)
    while True:
        sending = asyncio.create_task(client.send(b"10000\r\n" + PIECE + b"\r\n"))
        if not (await asyncio.wait({sending}, timeout=0.1))[0]:
            break
    await client.reset()
    with pytest.raises(ConnectionError):
        await sending
    left.set()
    await abandoned(upstream, records)


@LINUX_ONLY
@WAYS
@pytest.mark.parametrize(
    "unread",
    [b"\r\n", REQUEST, b"G", REQUEST * 200],
    ids=["a stray line end", "a pipelined request", "half of one", "200 requests"],
)
@pytest.mark.parametrize("began", [False, True], ids=["before the head", "in the stream"])
async def test_with_unread_bytes_in_the_buffer(
    began: bool,
    unread: bytes,
    leave: Leave,
    raw: OpenRaw,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    upstream.script(sse_response(EVENTS[:3], end="hang") if began else silent_response())
    client = await raw()
    await client.send(REQUEST + unread)
    await upstream.received()
    if began:
        await client.head()
    await leave(client)
    assert (await abandoned(upstream, records)).status == (200 if began else None)
    assert len(upstream.requests) == 1


@LINUX_ONLY
@WAYS
async def test_together_with_its_request(
    leave: Leave,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    """The end is there before the request is read, which may then never be."""
    await start_proxy(UPSTREAM_KEEPALIVE_TIMEOUT=0)
    before = descriptors()
    client = await raw()
    await client.send(REQUEST)
    await leave(client)
    other = await raw()
    await other.send(MODELS)
    assert (await other.response()).status == 200  # by now the first one has been seen
    await client.close()
    await other.close()
    async with asyncio.timeout(1):
        while descriptors() > before:
            await asyncio.sleep(0)
    outcomes = [(record.route, record.outcome) for record in records.all]
    assert outcomes[-1] == ("/v1/models", "completed")
    assert outcomes[:-1] in ([], [("/v1/messages", "abandoned")])


@WAYS
@pytest.mark.parametrize("request_head", [REQUEST[:-5], UPLOAD], ids=["held", "chunked"])
async def test_together_with_the_last_of_its_body(
    request_head: bytes,
    leave: Leave,
    raw: OpenRaw,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    async def silent(exchange: UpstreamExchange) -> None:
        if exchange.request.path != "/v1/models":
            return await silent_response()(exchange)
        return await json_response({})(exchange)

    upstream.script(silent, silent, silent)
    client = await raw()
    await client.send(request_head)
    other = await raw()
    await other.send(MODELS)
    await other.response()  # by now the head of the first one has been read
    await client.send(REQUEST[-5:] if request_head != UPLOAD else b"0\r\n\r\n")
    await leave(client)
    async with asyncio.timeout(1):
        record = await records.finished(2)
        for request in upstream.requests:
            if request.path != "/v1/models":
                await request.gone()
    assert record.outcome == "abandoned"


@WAYS
async def test_on_a_kept_connection(
    leave: Leave, raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    upstream.script(json_response({}), silent_response())
    client = await raw()
    await client.send(REQUEST)
    await client.response()
    await client.send(REQUEST)
    await upstream.received(2)
    await leave(client)
    await abandoned(upstream, records, count=2)


@LINUX_ONLY
@WAYS
async def test_between_two_requests_is_no_request(
    leave: Leave, raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    before = descriptors()
    client = await raw()
    await client.send(request_bytes("GET", "/nowhere", token=TEST_TOKEN))
    await client.response()
    await leave(client)
    await client.close()
    async with asyncio.timeout(1):
        while descriptors() > before:
            await asyncio.sleep(0)
    assert [record.outcome for record in records.all] == ["denied"]


@WAYS
@pytest.mark.parametrize("sent", [REQUEST, MODELS], ids=["with a body", "without"])
async def test_while_it_is_authenticated(
    sent: bytes,
    leave: Leave,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    """Nothing goes upstream for it, whatever the plugin says in the end."""
    asked, decided = asyncio.Event(), asyncio.Event()

    class Ponderer:
        @hookimpl
        async def authenticate(self, request: IncomingRequest) -> Identity:
            asked.set()
            await decided.wait()
            return Identity("late")

    await start_proxy(plugins=[Ponderer()])
    client = await raw()
    await client.send(sent)
    await asked.wait()
    await leave(client)
    async with asyncio.timeout(1):
        record = await records.finished()
    assert (record.outcome, record.principal) == ("abandoned", None)
    decided.set()
    other = await raw()
    await other.send(MODELS)
    assert (await other.response()).status == 200
    assert len(upstream.requests) == 1
    assert len(records.all) == 2


@LINUX_ONLY
@WAYS
async def test_while_the_upstream_is_connected_to(
    leave: Leave, start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # its queue is full: one more waits for its SYN's answer
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        port = listener.getsockname()[1]
        await start_proxy(UPSTREAM_BASE_URL=f"http://127.0.0.1:{port}")
        before = descriptors()
        client = await raw()
        await client.send(REQUEST)
        async with asyncio.timeout(5):
            while descriptors() < before + 3:  # both ends of the client's, and the one that tries
                await asyncio.sleep(0)
        await leave(client)
        async with asyncio.timeout(1):
            record = await records.finished()
        assert (record.outcome, record.status) == ("abandoned", None)
        await client.close()
        async with asyncio.timeout(1):
            while descriptors() > before:
                await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("leave", "unread"),
    [(close, b""), (reset, b""), (reset, b"\r\n")],
    ids=["close", "reset", "reset with unread bytes"],
)
async def test_with_tls(
    leave: Leave,
    unread: bytes,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    tmp_path: Path,
) -> None:
    context = await start_with_tls(start_proxy, tmp_path)
    upstream.script(silent_response())
    client = await raw(ssl=context)
    await client.send(REQUEST + unread)
    await upstream.received()
    await leave(client)
    await abandoned(upstream, records)


async def start_with_tls(start_proxy: StartProxy, tmp_path: Path) -> ssl.SSLContext:
    """Start a proxy that listens with TLS; what a client trusts it by."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    await start_proxy(TLS_CERT=cert, TLS_KEY=key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_probe_with_tls_that_leaves_at_once_logs_nothing(
    start_proxy: StartProxy, raw: OpenRaw, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = await start_with_tls(start_proxy, tmp_path)
    for _ in range(20):
        client = await raw(ssl=context)
        await client.send(request_bytes("GET", "/health"))
        await client.close()
    last = await raw(ssl=context)
    await last.send(request_bytes("GET", "/health"))
    assert (await last.response()).status == 200
    assert [each for each in caplog.records if each.levelname != "DEBUG"] == []


# -- and nothing is left of it


@LINUX_ONLY
@pytest.mark.parametrize("began", [False, True], ids=["before the head", "in the stream"])
async def test_many_at_once(
    began: bool,
    raw: OpenRaw,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    """200 of them, in every way: each ends upstream, is recorded once, and leaves nothing open."""
    count = 200
    before = descriptors()
    response = sse_response(EVENTS[:3], end="hang") if began else silent_response()
    upstream.script(*[response] * count)
    clients = []
    for number in range(1, count + 1):
        clients.append(client := await raw())
        await client.send(REQUEST)
        await upstream.received(number)
    if began:
        for client in clients:
            await client.head()
    for number, client in enumerate(clients):
        await (close, half_close, reset)[number % 3](client)
    await abandoned(upstream, records, count=count)
    assert {record.outcome for record in records.all} == {"abandoned"}
    assert len({record.request_id for record in records.all}) == count
    for client in clients:
        await client.close()
    async with asyncio.timeout(1):
        while descriptors() > before:
            await asyncio.sleep(0)
    other = await raw()
    await other.send(request_bytes("GET", "/nowhere", token=TEST_TOKEN))
    assert (await other.response()).status == 404
    assert len(records.all) == count + 1


async def test_room_is_given_back(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    """One who left is not counted among MAX_CONCURRENT_REQUESTS."""
    await start_proxy(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=0)
    upstream.script(silent_response(), json_response({}))
    first, second = await raw(), await raw()
    await first.send(REQUEST)
    await upstream.received()
    await second.send(REQUEST)
    assert (await second.response()).status == 529
    await first.close()
    await records.finished(2)
    await second.send(REQUEST)
    assert (await second.response()).status == 200


async def test_answer_that_was_whole_is_no_abandoned_one(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    head = response_head(200, {"Content-Length": "2"})
    upstream.script(raw_response(head + b"{}"))
    client = await raw()
    await client.send(REQUEST)
    await client.response()
    await client.reset()
    assert (await records.finished()).outcome == "completed"
