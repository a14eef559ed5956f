"""Requests that two servers could read in two ways: a table of them, and damaged ones.

A case is followed by a well-formed request, the sentinel, which in a doubtful case may be a request
or part of a body. So that case is refused, and its connection closed. A case that is in no doubt
goes upstream as one request, and the sentinel as the next. tests/protocol has the whole grammar.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable

import pytest
from damage import damaged
from scene import Scene
from strict_reading import Request, read

from tornadoproxy.protocol.request_framing import (
    ChunkedBody,
    MalformedChunk,
    MalformedRequest,
    blank_lines,
    end_of_head,
    parse_head,
)
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    RawConnection,
    RawResponse,
    ReceivedRequest,
    Truncated,
    bytes_response,
    request_bytes,
)

pytestmark = pytest.mark.usefixtures("no_errors_logged", "proxy")

TARGET, CHAT_TARGET = b"/v1/messages", b"/openai/v1/chat/completions"
START = b"POST %b HTTP/1.1\r\n" % TARGET
LINES = b"Host: a\r\nAuthorization: Bearer %b\r\n" % TEST_TOKEN.encode()
HEAD = START + LINES
LENGTH, CHUNKED = b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"
LAST_CHUNK = b"0\r\n\r\n"

# what an attacker would like to have read as a request
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\n" + LINES + b"\r\n"
SENTINEL = request_bytes("GET", "/v1/sentinel", token=TEST_TOKEN)
AFTER = request_bytes("GET", "/v1/after", token=TEST_TOKEN)
HEALTH = request_bytes("GET", "/health")
OK = bytes_response(b"ok")


def post(*lines: bytes, start: bytes = START, body: bytes = b"") -> bytes:
    return start + LINES + b"".join(lines) + b"\r\n" + body


def chunked(chunks: bytes) -> bytes:
    return post(CHUNKED) + chunks


HTTP_1_0 = START.replace(b"1.1", b"1.0")
DOUBTFUL = {
    "a length and chunks": post(LENGTH, CHUNKED, body=LAST_CHUNK),
    "chunks and a length": post(CHUNKED, LENGTH, body=LAST_CHUNK),
    "a GET with both": post(LENGTH, CHUNKED, body=LAST_CHUNK).replace(b"POST", b"GET"),
    "chunks in HTTP/1.0": post(CHUNKED, start=HTTP_1_0, body=LAST_CHUNK),
    "two lengths": post(LENGTH, b"Content-Length: 6\r\n", body=b"hello"),
    "a length with a sign": post(b"Content-Length: +5\r\n", body=b"hello"),
    "another coding": post(b"Transfer-Encoding: xchunked\r\n", body=LAST_CHUNK),
    "a blank before the colon": post(b"Transfer-Encoding : chunked\r\n", body=LAST_CHUNK),
    "a folded coding": post(b"Transfer-Encoding:\r\n chunked\r\n", body=LAST_CHUNK),
    "a coding behind a bare LF": post(b"X: y\n" + CHUNKED, body=LAST_CHUNK),
    "a coding behind a bare CR": post(b"X: y\r" + CHUNKED, body=LAST_CHUNK),
    "NUL in a name": post(b"Content-Length\0: 5\r\n", body=b"hello"),
    "a head that ends in bare LF": HEAD + b"X: y\n\n",
    "two Hosts": post(b"Host: b\r\n"),
    "HTTP/0.9": b"GET /v1/messages\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a chunk size with a sign": chunked(b"+5\r\nhello\r\n" + LAST_CHUNK),
    "a chunk extension": chunked(b"5;a=b\r\nhello\r\n" + LAST_CHUNK),
    "a bare LF behind a size": chunked(b"5\nhello\r\n" + LAST_CHUNK),
    "more than a chunk's size": chunked(b"5\r\nhello!\r\n" + LAST_CHUNK),
    "a trailer": chunked(b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n"),
    # the next request's lines stand where trailers would
    "no end of the last chunk": chunked(b"5\r\nhello\r\n0\r\n"),
}


def carrying(*lines: bytes, start: bytes = START) -> bytes:
    """A request whose body is another request."""
    chunk = b"%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED)
    return post(CHUNKED, *lines, start=start, body=chunk + LAST_CHUNK)


ODD_CODING = b"TRANSFER-ENCODING:\tCHUNKED \t\r\n"
LOOKS_LIKE_FRAMING = (
    b"Content_Length: 5\r\nX-Content-Length: 5\r\nX: Transfer-Encoding: chunked\r\n"
)
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
IN_NO_DOUBT = {
    "a request in a length": post(b"Content-Length: %d\r\n" % len(SMUGGLED), body=SMUGGLED),
    "a request in chunks": carrying(),
    "a GET with a request": carrying(start=START.replace(b"POST", b"GET")),
    "a HEAD with a request": carrying(start=START.replace(b"POST", b"HEAD")),
    "Connection names the framing": carrying(b"Connection: transfer-encoding, host, via\r\n"),
    "an upgrade": carrying(UPGRADE),
    "a body that comes unasked": carrying(b"Expect: 100-Continue\r\n"),
    "the last chunk in a length": post(LENGTH, body=LAST_CHUNK),
    "a length with zeros and blanks": post(b"Content-Length: \t0005 \t\r\n", body=LAST_CHUNK),
    "a coding and sizes in another case": post(ODD_CODING, body=b"A\r\n0123456789\r\n000\r\n\r\n"),
    "names that look like framing": b"\r\n\r\n" + post(LOOKS_LIKE_FRAMING),
    "HTTP/1.0": post(LENGTH, start=HTTP_1_0, body=LAST_CHUNK),
}


def check_clean(received: ReceivedRequest, authority: str) -> None:
    """One framing, one credential, and one Host, the upstream's; nothing of the last hop."""
    assert received.version == "1.1"
    assert received.all("Host") == [authority]
    assert received.all("X-Api-Key") == [TEST_UPSTREAM_KEY]
    assert len(received.all("Content-Length") + received.all("Transfer-Encoding")) <= 1
    of_last_hop = {"authorization", "connection", "cookie", "expect", "te", "upgrade"}
    assert not of_last_hop & {name.lower() for name, _ in received.headers}
    assert received.header("HTTP2-Settings") is None


async def whole(received: ReceivedRequest) -> bool:
    """Wait for a request's end; return whether that was its own."""
    try:
        await received.complete()
    except ConnectionError:
        return False
    return True


async def send_in_pieces(client: RawConnection, pieces: list[bytes]) -> None:
    """Send them so that the proxy reads each by itself."""
    try:
        for piece in pieces:
            await client.send(piece)
            # the loop looks at its sockets between two turns, and the proxy is in the same one
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    except ConnectionError:
        pass  # it has been refused already


async def forwarded(scene: Scene, before: int = 0) -> list[tuple[str, bytes]]:
    """Return target and body of each whole request behind the upstream's first `before` ones."""
    # had more gone upstream, it would be there by now
    scene.upstream.script(OK)
    assert (await scene.ask(AFTER)).body == b"ok"
    found = []
    for received in scene.upstream.requests[before:-1]:
        check_clean(received, f"127.0.0.1:{scene.upstream.port}")
        if await whole(received):
            found.append((received.target, received.body))
        else:  # of a body whose chunks became doubtful
            assert b"hello".startswith(received.body)
    return found


def at_each_line_end(sent: bytes) -> list[bytes]:
    """Before, within and behind each CR and LF."""
    return [*re.split(rb"(?<=[\r\n])|(?=[\r\n])", sent)]


either_split = pytest.mark.parametrize("split", [lambda sent: [sent], at_each_line_end])


@pytest.mark.parametrize("target", [TARGET, CHAT_TARGET])
@either_split
async def test_doubtful_framing_is_400_and_ends_connection(
    split: Callable[[bytes], list[bytes]], target: bytes, scene: Scene, subtests: pytest.Subtests
) -> None:
    for name, sent in DOUBTFUL.items():
        with subtests.test(name):
            sent = sent.replace(TARGET, target)
            before, client = len(scene.upstream.requests), await scene.raw()
            *pieces, last = split(sent + SMUGGLED)
            await send_in_pieces(client, [*pieces, last + SENTINEL])
            response = await client.response()
            assert (response.status, response.header("Connection")) == (400, "close")
            document = json.loads(response.body)
            assert document["error"]["message"]
            if sent.startswith(b"POST "):
                assert ("type" in document) == (target == TARGET)
            assert await client.read() == b""
            assert await forwarded(scene, before) == []


@either_split
async def test_framing_in_no_doubt_is_forwarded_unchanged(
    split: Callable[[bytes], list[bytes]], scene: Scene, subtests: pytest.Subtests
) -> None:
    for name, sent in IN_NO_DOUBT.items():
        with subtests.test(name):
            before, client = len(scene.upstream.requests), await scene.raw()
            goes_on = b"HTTP/1.0" not in sent
            scene.upstream.script(*[OK] * (1 + goes_on))
            *pieces, last = split(sent)
            await send_in_pieces(client, [*pieces, last + SENTINEL])
            response = await client.response(to_head=sent.startswith(b"HEAD "))
            assert response.status == 200
            if goes_on:
                assert (await client.response()).body == b"ok"
            (first,) = read(sent)
            both = [(TARGET.decode(), first.body), ("/v1/sentinel", b"")]
            assert await forwarded(scene, before) == both[: 1 + goes_on]


async def test_body_of_refused_request_is_never_a_request(scene: Scene) -> None:
    scene.upstream.script(OK, OK)
    tunnel = carrying(start=b"CONNECT a:443 HTTP/1.1\r\n")
    for sent, status in ((tunnel, 405), (carrying(b"X-Api-Key: wrong\r\n"), 401)):
        client = await scene.send(sent + SENTINEL)
        assert (await client.response()).status == status
        assert (await client.response()).body == b"ok"
    assert await forwarded(scene) == [("/v1/sentinel", b"")] * 2


async def test_rest_behind_whole_requests_is_400(scene: Scene) -> None:
    """It stands where the next request would, and nothing tells what it was meant to be."""
    scene.upstream.script(OK, OK, OK)
    for sent, statuses in (
        (post(b"Content-Length: 4\r\n", body=SMUGGLED), [200, 400]),
        (post() * 2 + post(LENGTH, CHUNKED, body=LAST_CHUNK), [200, 200, 400]),
    ):
        client = await scene.send(sent + SENTINEL)
        assert [(await client.response()).status for _ in statuses] == statuses
        assert await client.read() == b""
    assert await forwarded(scene) == [(TARGET.decode(), body) for body in (b"GET ", b"", b"")]


# -- damaged requests, the same in each run: a failure names the number that decides the damage

# another token of the same length: damage may put it where `TEST_TOKEN` must not be
FUZZER = TEST_TOKEN.encode()[::-1]
CHAT = b'{"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "Hi \\u00e9"}]}'
GOOD = [
    sent.replace(TEST_TOKEN.encode(), FUZZER).replace(b"HEAD ", b"DELETE ")
    for sent in (
        *IN_NO_DOUBT.values(),
        *(post(start=b"GET %b HTTP/1.1\r\n" % path) for path in (b"/v1/models?a=%2F", b"/health")),
        post(b"Content-Length: %d\r\n" % len(CHAT), body=CHAT).replace(TARGET, CHAT_TARGET),
    )
]


def damaged_request(number: int) -> bytes:
    pick = random.Random(number)
    return damaged(pick.choice(GOOD), pick, GOOD)


def read_by_the_proxy(sent: bytes) -> list[Request]:
    """The whole requests before the first fault, as the proxy's parser reads them."""
    found: list[Request] = []
    keeps_alive = True
    while keeps_alive and (end := end_of_head(sent := sent[blank_lines(sent) :], 0)):
        try:
            head = parse_head(sent[:end])
            body, sent = sent[end : end + head.length], sent[end + head.length :]
            if head.chunked:
                decoder = ChunkedBody()
                body = decoder.feed(sent)
                sent = decoder.rest
        except (MalformedRequest, MalformedChunk):
            break
        if not (decoder.complete if head.chunked else len(body) == head.length):
            break
        found.append(Request(head.method, head.target, body))
        keeps_alive = head.keeps_alive
    return found


@pytest.mark.parametrize("count", [4000, pytest.param(100_000, marks=pytest.mark.long)])
def test_damaged_request_is_read_in_the_strictest_way(count: int) -> None:
    refused_besides = 0  # targets beyond ASCII, and commas in Host
    for number in range(count):
        sent = damaged_request(number)
        found, whole_ones = read_by_the_proxy(sent), read(sent)
        assert found == whole_ones[: len(found)], number
        refused_besides += len(found) < len(whole_ones)
    assert refused_besides < count / 50


async def responses_to(
    sent: bytes, client: RawConnection, good: RawConnection
) -> list[RawResponse]:
    """Return a response to each whole request, and to what follows, till the connection ends."""
    responses: list[RawResponse] = []
    await client.send(sent)
    left = len(read(sent))
    try:
        async with asyncio.timeout(10):
            while not responses or responses[-1].header("Connection") != "close":
                if len(responses) == left:
                    await good.ask(HEALTH)  # by now all of it has been read
                    client.half_close()
                responses.append(await client.response())
    except Truncated as cut:
        if cut.response is not None:
            raise
    return responses


@pytest.mark.parametrize("count", [150, pytest.param(3000, marks=pytest.mark.long)])
@pytest.mark.gen_test(timeout=200)
@pytest.mark.timeout(240)
async def test_damaged_request_is_answered_and_smuggles_nothing(
    count: int, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    await scene.start(AUTH_TOKEN=FUZZER.decode())
    good = await scene.raw()
    statuses = set()
    for number in range(count):
        sent = damaged_request(number)
        whole_ones = read(sent)
        before = len(scene.upstream.requests)
        client = await scene.raw()
        responses = await responses_to(sent, client, good)
        await client.close()
        assert bool(responses) >= bool(whole_ones), number
        for response in responses:
            assert response.status < 500, number
            if response.status >= 400:
                assert json.loads(response.body)["error"]["message"]
        statuses |= {response.status for response in responses}
        for received in scene.upstream.requests[before:]:
            check_clean(received, f"127.0.0.1:{scene.upstream.port}")
            if await whole(received) and received.target != "/v1/messages":
                whole_one = Request(received.method, received.target, received.body)
                assert whole_one in whole_ones, number
    assert statuses >= {200, 400, 401, 404}  # the damage was neither none nor total
    assert [each for each in caplog.records if each.exc_info] == []
    assert (await good.ask(HEALTH)).status == 200
