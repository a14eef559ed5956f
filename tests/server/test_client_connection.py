"""A client's connection: what is malformed, what is slow, and what of it goes on."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from tornadoproxy import Page, PageResponse, hookimpl
from tornadoproxy.server import client_transport
from tornadoproxy.testing import (
    TEST_TOKEN,
    Truncated,
    json_response,
    request_bytes,
    silent_response,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tornadoproxy import IncomingRequest, PageRequest
    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawConnection,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

pytestmark = pytest.mark.usefixtures("no_errors_logged")

TOKEN = b"Authorization: Bearer %b\r\n" % TEST_TOKEN.encode()
HEAD = b"POST %b HTTP/1.1\r\nHost: a\r\n" + TOKEN
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nHost: a\r\n" + TOKEN + b"\r\n"
MODELS = request_bytes("GET", "/v1/models", token=TEST_TOKEN)
HEALTH = request_bytes("GET", "/health")
ANTHROPIC, OPENAI = "/v1/messages?beta=true", "/openai/v1/chat/completions"


def check_refused(response: RawResponse, path: str, status: int = 400) -> None:
    """An error in the shape of the path's dialect, and the end of the connection announced."""
    assert response.status == status
    assert response.header("Content-Type") == "application/json"
    assert response.header("Connection") == "close"
    document = json.loads(response.body)
    error = document["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    if path.startswith("/openai"):
        assert error.keys() == {"message", "type", "param", "code"}
        assert (response.header("X-Request-Id") or "").startswith("req_")
    else:
        assert document["type"] == "error"
        assert document["request_id"] == response.header("Request-Id")


async def check_serving(raw: OpenRaw) -> None:
    client = await raw()
    await client.send(HEALTH)
    assert (await client.response()).status == 200


async def ended(client: RawConnection) -> None:
    """The proxy ends the connection, and sends nothing more."""
    async with asyncio.timeout(2):
        assert await client.read() == b""


# -- heads that two servers could read in two ways

HEADS = {
    "length and chunked": HEAD
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": HEAD
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "one length twice": HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
    "a list with blanks": HEAD + b"Content-Length:  5 , 5\r\n\r\nhello",
    "a list with two lengths": HEAD + b"Content-Length: 5,6\r\n\r\nhello",
    "length with a sign": HEAD + b"Content-Length: +5\r\n\r\nhello",
    "negative length": HEAD + b"Content-Length: -5\r\n\r\nhello",
    "hexadecimal length": HEAD + b"Content-Length: 0x5\r\n\r\nhello",
    "length with an underscore": HEAD + b"Content-Length: 1_0\r\n\r\nhellohello",
    "length with a blank within": HEAD + b"Content-Length: 5 5\r\n\r\nhello",
    "length in other digits": HEAD + b"Content-Length: \xb2\r\n\r\nhi",
    "length in a float": HEAD + b"Content-Length: 5.0\r\n\r\nhello",
    "empty length": HEAD + b"Content-Length:\r\n\r\nhello",
    "length beyond 64 bits": HEAD + b"Content-Length: 99999999999999999999\r\n\r\nhello",
    "xchunked": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked in two lines": HEAD
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and another line": HEAD
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "identity": HEAD + b"Transfer-Encoding: identity\r\n\r\n",
    "identity with a length": HEAD
    + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
    "chunked, identity": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "gzip, chunked": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked with a parameter": HEAD + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "chunked behind a vertical tab": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "quoted chunked": HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "empty coding": HEAD + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": HEAD.replace(b"/1.1", b"/1.0")
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded line": HEAD + b"X: a\r\n b\r\n\r\n",
    "a folded coding": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a first line that is folded": b"POST %b HTTP/1.1\r\n X: y\r\nHost: a\r\n" + TOKEN + b"\r\n",
    "bare LF everywhere": b"POST %b HTTP/1.1\nHost: a\n\n",
    "bare LF after one line": HEAD + b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare LF after the request line": HEAD.replace(b"/1.1\r\n", b"/1.1\n") + b"\r\n",
    "bare LF for the blank line": HEAD + b"X: y\r\n\n",
    "bare CR within a value": HEAD + b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare CR before a line's end": HEAD + b"X: y\r\r\n\r\n",
    "blank before the colon": HEAD + b"Content-Length : 5\r\n\r\nhello",
    "tab before the colon": HEAD + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    "no colon": HEAD + b"Content-Length 5\r\n\r\nhello",
    "no name": HEAD + b": 5\r\n\r\n",
    "NUL in a name": HEAD + b"Content-Length\x00: 5\r\n\r\nhello",
    "NUL in a value": HEAD + b"X: a\x00b\r\n\r\n",
    "a control character in a value": HEAD + b"X: a\x07b\r\n\r\n",
    "DEL in a value": HEAD + b"X: a\x7fb\r\n\r\n",
    "no Host": b"POST %b HTTP/1.1\r\n" + TOKEN + b"\r\n",
    "two Hosts": HEAD + b"Host: b\r\n\r\n",
    "one Host twice": HEAD + b"Host: a\r\n\r\n",
    "a list of Hosts": HEAD.replace(b"Host: a", b"Host: a, b") + b"\r\n",
    "Host with a path": HEAD.replace(b"Host: a", b"Host: a/b") + b"\r\n",
    "Host with a user": HEAD.replace(b"Host: a", b"Host: a@b") + b"\r\n",
    "HTTP/2.0": HEAD.replace(b"HTTP/1.1", b"HTTP/2.0") + b"\r\n",
    "HTTP/1.2": HEAD.replace(b"HTTP/1.1", b"HTTP/1.2") + b"\r\n",
    "HTTP/1.10": HEAD.replace(b"HTTP/1.1", b"HTTP/1.10") + b"\r\n",
    "http/1.1": HEAD.replace(b"HTTP/1.1", b"http/1.1") + b"\r\n",
    "no version": HEAD.replace(b" HTTP/1.1", b"") + b"\r\n",
    "a blank after the version": HEAD.replace(b"HTTP/1.1", b"HTTP/1.1 ") + b"\r\n",
    "two blanks": HEAD.replace(b" HTTP/1.1", b"  HTTP/1.1") + b"\r\n",
    "a tab": HEAD.replace(b" HTTP/1.1", b"\tHTTP/1.1") + b"\r\n",
    "a blank in the target": HEAD.replace(b" HTTP/1.1", b" x HTTP/1.1") + b"\r\n",
    "NUL in the target": HEAD.replace(b" HTTP/1.1", b"\x00 HTTP/1.1") + b"\r\n",
    "a method that is no token": HEAD.replace(b"POST", b"PO(ST") + b"\r\n",
    "a byte beyond ASCII in the target": HEAD.replace(b" HTTP/1.1", b"\xc3\xa9 HTTP/1.1") + b"\r\n",
    "a byte beyond ASCII in the query": HEAD.replace(b" HTTP/1.1", b"?\xff HTTP/1.1") + b"\r\n",
    "DEL in the target": HEAD.replace(b" HTTP/1.1", b"\x7f HTTP/1.1") + b"\r\n",
}


@pytest.mark.parametrize("path", [ANTHROPIC, OPENAI])
async def test_malformed_heads_are_refused(
    path: str,
    raw: OpenRaw,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    records: Records,
    subtests: pytest.Subtests,
) -> None:
    """In the shape of their path; nothing goes upstream, and nothing behind them is a request."""
    for fault, head in HEADS.items():
        with subtests.test(fault):
            client = await raw()
            await client.send(head.replace(b"%b", path.encode()) + SMUGGLED)
            check_refused(await client.response(), path)
            await ended(client)
            await check_serving(raw)
            assert not upstream.requests
            assert not records.all


@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b" \r\n\r\n",
        b"POST\r\n\r\n",
        b" POST /v1/messages HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\xff" * 100 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["HTTP/2", "a blank", "a word", "a blank first", "noise", "an answer"],
)
async def test_what_is_no_request_at_all_is_refused(
    sent: bytes, raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    await client.send(sent)
    check_refused(await client.response(), "/")
    await ended(client)
    await check_serving(raw)
    assert not upstream.requests


async def test_tls_on_plain_port_is_cut_and_logged_once(
    raw: OpenRaw, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    context = ssl.create_default_context()
    for _ in range(2):
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(2):
                await raw(ssl=context)
    (told,) = [each for each in caplog.messages if "TLS" in each]
    assert told.startswith("a client at 127.0.0.1 speaks TLS, but this port does not: give it")
    await check_serving(raw)


@pytest.mark.parametrize("method", ["get", "Post", "FOO", "CONNECT", "TRACE", "M-SEARCH", "1"])
async def test_odd_methods_are_405(
    method: str, raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    await client.send(request_bytes(method, "/v1/models", token=TEST_TOKEN))
    response = await client.response()
    assert response.status == 405
    assert json.loads(response.body)["type"] == "error"
    assert not upstream.requests


async def test_target_beyond_ascii_says_to_encode_it(raw: OpenRaw, proxy: Proxy) -> None:
    client = await raw()
    await client.send(HEAD.replace(b"%b", "/v1/é".encode()) + b"\r\n")
    response = await client.response()
    assert "send it percent-encoded" in json.loads(response.body)["error"]["message"]
    assert response.header("Date")


@pytest.mark.parametrize("path", ["/health", "/ready", "/api/hello"])
async def test_half_close_after_probe_is_answered(path: str, raw: OpenRaw, proxy: Proxy) -> None:
    for pause in range(50):
        client = await raw()
        await client.send(request_bytes("GET", path))
        for _ in range(pause % 5):  # so that the end comes with the request, or behind it
            await asyncio.sleep(0)
        client.half_close()
        assert (await client.response()).status == 200
        async with asyncio.timeout(2):
            await client.gone()


async def test_malformed_request_behind_a_good_one(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    await client.send(MODELS + HEADS["two lengths"] % b"/v1/messages" + SMUGGLED)
    assert (await client.response()).status == 200
    check_refused(await client.response(), "/v1/messages")
    await ended(client)
    assert [request.target for request in upstream.requests] == ["/v1/models"]


async def test_refusal_reaches_a_client_that_goes_on_sending(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    """A reset for what is unread would take the answer away from it."""
    client = await raw()
    await client.send(HEADS["length with a sign"] % b"/v1/messages" + bytes(0x100000))
    check_refused(await client.response(), "/v1/messages")
    assert await client.read() == b""
    assert not upstream.requests


# -- heads that are too large


async def test_head_over_the_limit(raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream) -> None:
    for path in ("/v1/models", "/openai/v1/models"):
        client = await raw()
        await client.send(request_bytes("GET", path, {"X-Large": "x" * 70_000}, token=TEST_TOKEN))
        check_refused(await client.response(), path, 431)
        await ended(client)
    assert not upstream.requests


async def test_the_limit_of_heads_is_a_setting(start_proxy: StartProxy, raw: OpenRaw) -> None:
    await start_proxy(MAX_HEADER_SIZE="1kB")
    small = request_bytes("GET", "/health", {"X-Large": "x" * 900})
    for size, status in ((1024, 200), (1025, 431)):
        client = await raw()
        await client.send(small.replace(b"xx", b"x" * (2 + size - len(small)), 1))
        assert (await client.response()).status == status


async def test_head_under_the_limit(raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream) -> None:
    client = await raw()
    headers = {"X-Large": "x" * 60_000}
    await client.send(request_bytes("GET", "/v1/models", headers, token=TEST_TOKEN))
    assert (await client.response()).status == 200
    assert upstream.requests[0].header("X-Large") == "x" * 60_000


async def test_head_without_an_end_is_not_read_for_ever(
    raw: OpenRaw, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_transport, "LINGER", 0.2)
    client = await raw()

    async def send_on() -> None:
        await client.send(b"GET /v1/models HTTP/1.1\r\n")
        while True:
            await client.send(b"X: %b\r\n" % (b"x" * 65_000))

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(send_on(), 5)
    await check_serving(raw)


class SlowAuthenticator:
    """Takes its time, and fails when it is cancelled; so do its public pages."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.cancelled = asyncio.Event()

    @hookimpl(tryfirst=True)
    async def authenticate(self, request: IncomingRequest) -> None:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
            raise RuntimeError

    @hookimpl
    def pages(self) -> list[Page]:
        async def serve(request: PageRequest) -> PageResponse:
            await self.authenticate(request.incoming)
            return PageResponse(b"")

        admitting = Page("/admitting", serve, ("POST",), public=True, admit=self.authenticate)
        return [Page("/serving", serve, public=True), admitting]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v1/models HTTP/1.1\r\nX: ".ljust(400, b"x"),
        request_bytes("POST", "/v1/files", body=b"x" * 400, token=TEST_TOKEN),
        request_bytes("POST", "/admitting", body=b"x" * 400),
        request_bytes("GET", "/serving") + b"x" * 400,
    ],
    ids=["half a head", "an authenticator", "admit of a page", "behind a page"],
)
async def test_oldest_of_what_waits_unauthenticated_is_closed(
    sent: bytes, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    """Such clients share a sixteenth of the room for held bodies."""
    proxy = await start_proxy(MAX_HELD_BODIES=16_000, plugins=[SlowAuthenticator()])
    clients = []
    for held in (400, 800):
        clients.append(await raw())
        await clients[-1].send(sent)
        while proxy.server.status().held_bytes < held:
            await asyncio.sleep(0)
    third = await raw()
    await third.send(sent)
    await ended(clients[0])
    assert proxy.server.status().held_bytes == 800
    assert not any(proxy.server.status().plugin_refusals.values())
    for client in (clients[1], third):
        await client.close()
    while proxy.server.status().held_bytes:
        await asyncio.sleep(0)


async def _drain(client: RawConnection, proxy: Proxy) -> None:
    await proxy.server.drain()


@pytest.mark.parametrize("path", ["/v1/messages", "/admitting"])
@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (lambda client, _: client.close(), "abandoned"),
        (lambda client, _: client.reset(), "abandoned"),
        (_drain, "drained"),
    ],
    ids=["close", "reset", "drain"],
)
async def test_authenticator_is_cancelled_with_its_request(
    path: str,
    end: Callable[[RawConnection, Proxy], Awaitable[None]],
    outcome: str,
    start_proxy: StartProxy,
    raw: OpenRaw,
    records: Records,
) -> None:
    """What it raises then is not its failure."""
    plugin = SlowAuthenticator()
    proxy = await start_proxy(plugins=[plugin], DRAIN_TIMEOUT=0.05)
    client = await raw()
    await client.send(request_bytes("POST", path, body=b"{}", token=TEST_TOKEN))
    await plugin.asked.wait()
    await end(client, proxy)
    async with asyncio.timeout(2):
        await plugin.cancelled.wait()
    assert (await records.finished()).outcome == outcome
    assert not any([*proxy.plugins.refusals.values(), *proxy.plugins.failures.values()])


# -- bodies

CHUNKS = {
    "a size that is no number": b"5x\r\nhello\r\n0\r\n\r\n",
    "a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "a size with a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a size with a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a size with an underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "a blank before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "a blank after the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "bare LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "a chunk longer than its size": b"5\r\nhelloo\r\n0\r\n\r\n",
    "a chunk shorter than its size": b"6\r\nhello\r\n0\r\n\r\n",
    "bare LF after the chunk": b"5\r\nhello\n0\r\n\r\n",
    "bare CR after the chunk": b"5\r\nhello\rX0\r\n\r\n",
    "an extension": b"5;x=y\r\nhello\r\n0\r\n\r\n",
    "an extension with a bare LF": b"5;x\n\r\nhello\r\n0\r\n\r\n",
    "a trailer": b"5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    "bare LF at the end": b"5\r\nhello\r\n0\r\n\n\n",
    "a size of many digits": b"0" * 100 + b"5\r\nhello\r\n0\r\n\r\n",
    "a line without an end": b"5;" + b"x" * 100_000,
}


async def test_malformed_chunks_are_refused(
    raw: OpenRaw,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    records: Records,
    subtests: pytest.Subtests,
) -> None:
    """What went upstream is one request each, and it is cut."""
    head = HEAD % b"/v1/files" + b"Transfer-Encoding: chunked\r\n\r\n"
    for count, (fault, chunks) in enumerate(CHUNKS.items(), 1):
        with subtests.test(fault):
            client = await raw()
            await client.send(head + chunks + SMUGGLED)
            check_refused(await client.response(), "/v1/files")
            await ended(client)
            record = await records.finished(count)
            assert (record.outcome, record.status) == ("denied", 400)
            assert record.error
            await check_serving(raw)
    assert len(upstream.requests) <= len(records.all) == len(CHUNKS)
    for request in upstream.requests:
        async with asyncio.timeout(1):
            await request.gone()
            with pytest.raises(ConnectionError):
                await request.complete()


async def test_chunks_of_every_shape_pass(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    upstream.script(json_response({}))
    client = await raw()
    head = HEAD % b"/v1/files" + b"transfer-encoding: Chunked\r\n\r\n"
    chunks = b"1\r\na\r\n" + b"0A\r\nbbbbbbbbbb\r\n" + b"00000002\r\n\r\n\r\n" + b"0\r\n\r\n"
    for start in range(len(head + chunks)):
        await client.send((head + chunks)[start : start + 1])
    assert (await client.response()).status == 200
    assert upstream.requests[0].body == b"abbbbbbbbbb\r\n"


# -- what is slow


@pytest.mark.parametrize(
    "sent", [b"", MODELS[:10], MODELS[:-2]], ids=["nothing", "half a line", "half a head"]
)
async def test_slow_head_is_cut(
    sent: bytes, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(CLIENT_IDLE_TIMEOUT=0.2)
    client = await raw()
    if sent:
        await client.send(sent)
    await ended(client)
    await check_serving(raw)
    assert not upstream.requests


async def test_head_that_drips_is_cut(start_proxy: StartProxy, raw: OpenRaw) -> None:
    """A byte now and then is no progress: the time is for the whole head."""
    await start_proxy(CLIENT_IDLE_TIMEOUT=0.3)
    client = await raw()

    async def drip() -> None:
        await client.send(b"GET /health HTTP/1.1\r\nX: ")
        while True:
            await client.send(b"x")
            await asyncio.sleep(0.05)

    with pytest.raises(ConnectionError):
        async with asyncio.timeout(3):
            await drip()


async def test_idle_connection_is_closed(start_proxy: StartProxy, raw: OpenRaw) -> None:
    await start_proxy(CLIENT_IDLE_TIMEOUT=0.2)
    client = await raw()
    for _ in range(3):
        await client.send(HEALTH)
        assert (await client.response()).status == 200
    await ended(client)


async def test_blank_lines_are_no_progress(start_proxy: StartProxy, raw: OpenRaw) -> None:
    await start_proxy(CLIENT_IDLE_TIMEOUT=0.3)
    client = await raw()

    async def drip() -> None:
        while True:
            await client.send(b"\r\n")
            await asyncio.sleep(0.05)

    with pytest.raises(ConnectionError):
        async with asyncio.timeout(3):
            await drip()


@pytest.mark.parametrize("path", ["/v1/models", "/v1/messages"])
@pytest.mark.parametrize("framing", ["Content-Length: 9", "Transfer-Encoding: chunked"])
async def test_body_that_does_not_come_is_408(
    path: str, framing: str, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    await start_proxy(CLIENT_BODY_TIMEOUT=0.2, CLIENT_IDLE_TIMEOUT=0.4)
    name, value = framing.split(": ")
    client = await raw()
    await client.send(request_bytes("GET", path, {name: value}, token=TEST_TOKEN))
    assert (await client.response()).status == 408
    await ended(client)


@pytest.mark.parametrize("target", ["/v1/models", "/v1/files", "/openai/v1/chat/completions"])
@pytest.mark.parametrize("rate", [0, 1_000_000_000])
async def test_body_that_drips_is_408(
    target: str, rate: int, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    """It is never silent for long; a rate of 0 lets it go on."""
    await start_proxy(MIN_BODY_RATE=rate, CLIENT_BODY_TIMEOUT=0.3)
    client, probe = await raw(), await raw()
    head = request_bytes("POST", target, {"Transfer-Encoding": "chunked"}, token=TEST_TOKEN)
    await client.send(head)
    response = asyncio.ensure_future(client.response())
    clock = asyncio.get_running_loop().time
    until = clock() + 0.6
    while not response.done() and (rate or clock() < until):
        await client.send(b"1\r\n \r\n")
        await probe.send(HEALTH)
        await probe.response()
    if rate:
        assert (await response).status == 408
        await ended(client)
    else:
        assert not response.done()
        response.cancel()


async def test_wait_for_upstream_is_no_slow_body(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(MIN_BODY_RATE=1_000_000_000, CLIENT_BODY_TIMEOUT=0.3)
    go_on = asyncio.Event()

    async def slow(exchange: UpstreamExchange) -> None:
        await go_on.wait()
        await exchange.read_all()
        await json_response({})(exchange)

    upstream.script(slow)
    client = await raw()
    body = bytes(20_000_000)
    sending = asyncio.ensure_future(
        client.send(request_bytes("POST", "/v1/files", body=body, token=TEST_TOKEN))
    )
    response = asyncio.ensure_future(client.response())
    done, _ = await asyncio.wait({response}, timeout=0.6)  # as long as the upstream takes nothing
    assert not done
    go_on.set()
    assert (await response).status == 200
    await sending


async def test_connection_in_use_is_not_idle(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(CLIENT_IDLE_TIMEOUT=0.1, UPSTREAM_FIRST_BYTE_TIMEOUT=0.4)
    upstream.script(silent_response())
    client = await raw()
    await client.send(MODELS)
    assert (await client.response()).status == 504


# -- what goes on


CONNECTIONS = [
    ("1.1", [], True),
    ("1.1", ["keep-alive"], True),
    ("1.1", ["foo"], True),
    ("1.1", ["close"], False),
    ("1.1", ["Close"], False),
    ("1.1", ["foo, close"], False),
    ("1.1", ["keep-alive , CLOSE"], False),
    ("1.1", ["foo", "close"], False),
    ("1.1", ["closed"], True),
    ("1.0", [], False),
    ("1.0", ["keep-alive"], False),
    ("1.0", ["close"], False),
]


@pytest.mark.parametrize("target", ["/health", "/v1/models", "/nowhere"])
async def test_keep_alive(
    target: str, raw: OpenRaw, proxy: Proxy, subtests: pytest.Subtests
) -> None:
    for version, lines, goes_on in CONNECTIONS:
        with subtests.test(version=version, lines=lines):
            headers = [("Connection", line) for line in lines]
            client = await raw()
            request = request_bytes("GET", target, headers, token=TEST_TOKEN)
            await client.send(request.replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
            response = await client.response()
            if goes_on:
                assert response.header("Connection") is None
                await client.send(HEALTH)
                assert (await client.response()).status == 200
            else:
                expected = "close" if version == "1.1" else None
                assert response.header("Connection") == expected
                await ended(client)


@pytest.mark.parametrize("token", [TEST_TOKEN, "wrong"])
async def test_a_flood_of_requests_in_one_go(token: str, raw: OpenRaw, proxy: Proxy) -> None:
    """Each is answered in its turn, whether or not its body was waited for."""
    request = request_bytes("POST", "/nowhere", body=b"{}", token=token)
    client = await raw()
    sending = asyncio.create_task(client.send(request * 2_000))
    statuses = {(await client.response()).status for _ in range(2_000)}
    await sending
    assert statuses == {404 if token == TEST_TOKEN else 401}


async def test_responses_that_nobody_reads_do_not_pile_up(
    start_proxy: StartProxy, raw: OpenRaw
) -> None:
    class Figures:
        served = 0

        @hookimpl
        def pages(self) -> list[Page]:
            return [Page("/figures", self._serve, public=True)]

        def _serve(self, _: PageRequest) -> PageResponse:
            self.served += 1
            return PageResponse(bytes(100_000))

    figures = Figures()
    proxy = await start_proxy(plugins=[figures])
    client, other = await raw(receive_buffer=4096), await raw()
    await client.send(request_bytes("GET", "/figures") * 300)
    for _ in range(400):  # each takes a turn of the event loop at least
        await other.send(HEALTH)
        assert (await other.response()).status == 200
    assert 0 < figures.served < 150
    assert proxy.server.status().held_bytes > 0
    for _ in range(300):
        assert len((await client.response()).body) == 100_000
    assert proxy.server.status().held_bytes == 0


async def test_line_ends_between_requests_are_passed_over(raw: OpenRaw, proxy: Proxy) -> None:
    client = await raw()
    await client.send(b"\r\n" * 3 + HEALTH + b"\r\n" + HEALTH)
    assert (await client.response()).status == 200
    assert (await client.response()).status == 200


async def test_early_answer_is_readable_and_the_connection_goes_on(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    """The client sends all of a body that nobody wants, and only then looks at the answer."""
    body = bytes(8 * 1024 * 1024)
    client = await raw()
    for target, token, status in (
        ("/v1/messages", "wrong", 401),
        ("/nowhere", TEST_TOKEN, 404),
        ("/v1/../x", TEST_TOKEN, 400),
    ):
        await client.send(request_bytes("POST", target, {}, body, token=token))
        response = await client.response()
        assert response.status == status
        assert response.header("Connection") is None
    await client.send(MODELS)
    assert (await client.response()).status == 200
    assert [request.target for request in upstream.requests] == ["/v1/models"]


async def test_body_that_nobody_wants_is_not_read_for_ever(
    raw: OpenRaw, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_transport, "LINGER", 0.2)
    client = await raw()
    headers = {"Content-Length": "1000000"}
    await client.send(request_bytes("POST", "/nowhere", headers, b"half", token=TEST_TOKEN))
    assert (await client.response()).status == 404
    await ended(client)


# -- Expect


@pytest.mark.parametrize("value", ["100-continue", "100-Continue"])
async def test_expectation_is_met(
    value: str, raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    upstream.script(json_response({}))
    client = await raw()
    headers = {"Expect": value, "Content-Length": "5"}
    await client.send(request_bytes("POST", "/v1/messages", headers, token=TEST_TOKEN))
    assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    await client.send(b"hello")
    assert (await client.response()).status == 200
    assert upstream.requests[0].body == b"hello"
    assert upstream.requests[0].header("Expect") is None


async def test_client_of_http_1_0_expects_nothing(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    """It would take the 100 for its answer (RFC 9110 §10.1.1)."""
    upstream.script(json_response({}))
    client = await raw()
    headers = {"Expect": "100-continue"}
    request = request_bytes("POST", "/v1/messages", headers, b"hello", token=TEST_TOKEN)
    await client.send(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
    response = await client.response()
    assert (response.status, response.interim) == (200, [])


async def test_refused_expectation_ends_the_connection(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream
) -> None:
    """Whether the body comes after all, nobody can tell."""
    client = await raw()
    headers = {"Expect": "100-continue", "Content-Length": str(len(SMUGGLED))}
    await client.send(request_bytes("POST", "/v1/messages", headers, token="wrong"))
    response = await client.response()
    assert (response.status, response.interim) == (401, [])
    assert response.header("Connection") == "close"
    await ended(client)
    assert not upstream.requests


async def test_client_that_has_left_before_its_refusal_is_no_error(
    raw: OpenRaw, proxy: Proxy, records: Records
) -> None:
    headers = {"Expect": "100-continue"}
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.setblocking(False)  # the kernel keeps more than the proxy reads at once
        client.send(request_bytes("POST", "/v1/messages", headers, bytes(400_000), token="wrong"))
    assert (await records.finished()).status == 401
    await check_serving(raw)


async def test_truncated_body_is_no_request(
    raw: OpenRaw, proxy: Proxy, upstream: ScriptedUpstream, records: Records
) -> None:
    client = await raw()
    headers = {"Content-Length": "1000"}
    await client.send(request_bytes("POST", "/v1/messages", headers, b"half", token=TEST_TOKEN))
    await check_serving(raw)  # by now it has been read
    client.half_close()
    with pytest.raises(Truncated):
        async with asyncio.timeout(1):
            await client.response()
    assert (await records.finished()).outcome == "abandoned"
    assert not upstream.requests


async def test_who_sends_and_leaves_at_once_is_recorded(
    raw: OpenRaw, proxy: Proxy, records: Records
) -> None:
    for count in range(1, 21):
        client = await raw()
        await client.send(request_bytes("POST", "/v1/messages", body=b"{}", token=TEST_TOKEN))
        await client.close()
        assert (await records.finished(count)).route == "/v1/messages"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/messages", "/openai/v1/chat/completions"])
async def test_request_that_is_over_leaves_nothing_behind(
    path: str, stream: bool, raw: OpenRaw, proxy: Proxy, records: Records
) -> None:
    """Nothing that only the garbage collector would find: that is a tenth of a request's time."""
    document = {"model": "claude-sonnet-5-5", "max_tokens": 9, "stream": stream}
    document["messages"] = [{"role": "user", "content": "hello"}]
    body = json.dumps(document).encode()
    client = await raw()
    gc.collect()
    gc.disable()
    try:
        for count in range(1, 4):
            await client.send(request_bytes("POST", path, body=body, token=TEST_TOKEN))
            assert (await client.response()).status == 200
            await records.finished(count)
        await check_serving(raw)
        left = {type(each).__name__ for each in gc.get_objects()}
    finally:
        gc.enable()
    assert "ClientConnection" in left
    assert not left & {"RelayHandler", "ChatHandler", "RequestConnection", "HTTPServerRequest"}
